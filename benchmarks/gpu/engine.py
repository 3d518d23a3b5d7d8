"""The contenders from engines: the plugin's own runner in this process, with the buffers and graphs of serving."""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import standin
from benchmarks.gpu.context import IMAGE_SIZE, ROOT, Context
from benchmarks.gpu.networks import NUM_CLASSES, make_graph, make_images
from benchmarks.gpu.skeletons import SUFFIX, read_skeleton

BATCHES = (1, 8, 32, 128, 256)
OPT_BATCH = 128


def find_graph(context: Context, arch: str, precision: str) -> Path:
    """Returns a network's graph: from its carried skeleton, or made here, where ModelOpt is.

    Raises:
        BuilderError: A step of making it failed.
        ValueError: The skeleton does not give the graph it was made of.
    """
    folder = context.work / "graphs"
    path = folder / f"{arch}-{precision}.onnx"
    skeleton = context.work / "files" / f"{arch}-{precision}{SUFFIX}"
    if not path.exists() and skeleton.exists() and context.image_size == IMAGE_SIZE:
        return read_skeleton(skeleton, path)
    return make_graph(arch, precision, folder, context.image_size)


def build(context: Context, kind: str, arch: str, precision: str) -> dict[str, Any]:
    """Builds an engine for the wanted batches; one that an earlier run in this work folder built is taken.

    Args:
        context: Settings.
        kind: `tensorrt`, `tensorrt-rtx`, `stand-in`, or `openvino`, on which the tests run this.
        arch: One of context.ARCHS; the stand-in has no network.
        precision: One of context.PRECISIONS, likewise.

    Returns:
        path of the engine, and the builder's figures.

    Raises:
        BuilderError: The engine cannot be built.
    """
    batches = sorted(context.batches or BATCHES)
    name = f"{arch}-{precision}-{context.image_size}-{'-'.join(map(str, batches))}"
    folder = context.work / "engines" / kind / name
    about = folder / "engine.json"
    if kind == standin.NAME:
        info = standin.write_engine(
            folder,
            (context.image_size, context.image_size, 3),
            NUM_CLASSES,
            max_batch=batches[-1],
            opt_batch=_opt_batch(batches),
        )
        return info | {"path": str(folder / info["file"])}
    if not about.exists():
        from temper.builder.engines.build import build_engine
        from temper.builder.engines.kind import ENGINES

        folder.mkdir(parents=True, exist_ok=True)
        config = ENGINES.get(kind).config(opt_batch=_opt_batch(batches), max_batch=batches[-1])
        graph = find_graph(context, arch, precision)
        info = build_engine(graph, folder, config, precision=precision)
        about.write_text(json.dumps(info | {"path": str(folder / info["file"])}, default=str))
    built: dict[str, Any] = json.loads(about.read_text())
    return built


def publish_engine(
    context: Context,
    kind: str,
    arch: str,
    precision: str,
    *,
    num_instances: int = 1,
    max_batch: int | None = None,
) -> dict[str, Any]:
    """Builds an engine and publishes it, as a recipe would.

    Args:
        context: Settings.
        kind: As `build`.
        arch: As `build`.
        precision: As `build`.
        num_instances: Triton's model instances.
        max_batch: The largest batch that Triton puts together; None is the engine's.

    Returns:
        repository, model, version (its folder), and what `build` gives.

    Raises:
        BuilderError: The engine cannot be built.
    """
    from temper.builder.engines.kind import ENGINES
    from temper.builder.publish.entry import publish
    from temper.builder.publish.triton_config import PluginBackend, TritonConfig

    built = build(context, kind, arch, precision)
    batches = [batch for batch in sorted(context.batches or BATCHES) if batch <= (max_batch or batch)]
    repository = context.work / "model_repository"
    model = f"{arch}_{precision}_{batches[-1]}_x{num_instances}"
    shutil.rmtree(repository / model, ignore_errors=True)
    published = publish(
        repository,
        TritonConfig(
            name=model,
            image_size=context.image_size,
            num_classes=NUM_CLASSES,
            max_batch=batches[-1],
            backend=PluginBackend(
                engine=_engine(kind),
                on_cpu=ENGINES.get(_engine(kind)).device == "cpu",
                opt_batch=_opt_batch(batches),
                graph_batches=tuple(batches),
            ),
            num_instances=num_instances,
        ),
        engine_file=Path(built["path"]),
        labels=[str(number) for number in range(NUM_CLASSES)],
        card={"recipe": "benchmarks.gpu", "stages": [{"name": "engine", "figures": built}]},
    )
    return {"repository": str(repository), "model": model, "version": str(published.path), **built}


def _engine(kind: str) -> str:
    """The plugin's name of a kind: it takes the stand-in for TensorRT."""
    return "tensorrt" if kind == standin.NAME else kind


def _opt_batch(batches: list[int]) -> int:
    return OPT_BATCH if OPT_BATCH in batches else batches[-1]


def open_runner(published: dict[str, Any], kind: str, context: Context, *, engine: str | None = None) -> Any:
    """Returns the plugin's runner on a published engine, in this process.

    Args:
        published: From `publish_engine`.
        kind: As there.
        context: The batches.
        engine: The plugin's name of what runs it, where the stand-in shall be one for TensorRT-RTX.

    Raises:
        ArtifactError: The plugin's own words why the engine does not run here (of the module `artifact`).
    """
    folder = str(ROOT / "backends" / "temper")
    if folder not in sys.path:
        sys.path.insert(0, folder)
    import artifact  # type: ignore[import-not-found,unused-ignore]  # the plugin's, found inside Triton
    import runners  # type: ignore[import-not-found,unused-ignore]

    batches = sorted(context.batches or BATCHES)
    engine = engine or _engine(kind)
    parameters = {"engine": engine, "file": published["file"], "graph_batches": ",".join(map(str, batches))}
    given = {"parameters": {name: {"string_value": value} for name, value in parameters.items()}}
    size = context.image_size
    instance = runners.Instance(
        signature=runners.Signature(
            input=runners.TensorSignature(name="image", data_type="TYPE_UINT8", dims=[size, size, 3]),
            output=runners.TensorSignature(name="logits", data_type="TYPE_FP32", dims=[NUM_CLASSES]),
        ),
        max_batch=batches[-1],
        num_instances=1,
        device=0,
        log=lambda line: print(line, file=sys.stderr),
    )
    with standin.importable() if kind == standin.NAME else contextlib.nullcontext():
        return runners.load(engine).Runner(artifact.verify(Path(published["version"]), given), instance)


class EngineContender:
    """A runner at one batch size; several share the runner, which somebody else closes."""

    def __init__(self, runner: Any, batch: int, size: int) -> None:
        """Put the images into the runner's pinned buffer and onto the GPU."""
        self.batch = batch
        self._runner, self._images = runner, make_images(batch, size)
        runner.infer([self._images])

    def time_device(self, count: int) -> float:
        """Seconds for `count` batches whose images lie on the GPU already, by CUDA's events."""
        if self._runner.accepts_device_tensors:
            return time_runs(self._runner, self.batch, count)
        begin = time.perf_counter()  # an engine on the CPU
        for _ in range(count):
            self._runner.infer([self._images])
        return time.perf_counter() - begin

    def infer(self) -> None:
        """One batch from the runner's pinned buffer, into which the plugin copies first, to its logits there."""
        runner = self._runner
        if not runner.accepts_device_tensors:
            runner.infer([self._images])
            return
        runner.send(self.batch)
        runner.run(self.batch)
        runner.fetch(self.batch)
        runner.stream.synchronize()

    def logits(self) -> Any:
        """What the plugin answers to these images, float32 [batch, classes]."""
        (answer,) = self._runner.infer([self._images])
        return np.array(answer)

    def close(self) -> None:
        """Nothing of its own."""


class PluginContender(EngineContender):
    """The plugin's whole `infer`, of images in ordinary memory, which it copies first, or as Triton has them."""

    def __init__(self, runner: Any, batch: int, size: int, images: Any = None) -> None:
        """Take other images than those of `make_images`."""
        super().__init__(runner, batch, size)
        self._images = self._images if images is None else images

    def infer(self) -> None:
        """One batch from an array to logits."""
        self._runner.infer([self._images])


def time_runs(runner: Any, batch: int, count: int) -> float:
    """Seconds for `count` runs of a batch that is on the GPU."""
    from cuda.bindings import runtime  # type: ignore[import-untyped]  # ships no types

    stream = runner.stream.handle
    events = [check(runtime.cudaEventCreate()) for _ in range(2)]
    check(runtime.cudaEventRecord(events[0], stream))
    for _ in range(count):
        runner.run(batch)
    check(runtime.cudaEventRecord(events[1], stream))
    runner.stream.synchronize()
    elapsed_ms = check(runtime.cudaEventElapsedTime(*events))
    for event in events:
        check(runtime.cudaEventDestroy(event))
    return float(elapsed_ms) / 1e3


def check(answer: Sequence[Any]) -> Any:
    """What a CUDA call returned besides its status.

    Raises:
        RuntimeError: It failed.
    """
    status, *values = answer
    if status.value != 0:
        raise RuntimeError(f"CUDA: {status.name}")
    return values[0] if values else None
