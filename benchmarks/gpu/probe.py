"""Part `probe`: the machine, and whether an engine runs on its GPU; where not, the library's own words."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import standin
from benchmarks.gpu import device
from benchmarks.gpu.context import IMAGE_SIZE, Context, Results
from benchmarks.gpu.networks import build_network, make_images, serve

_ARCH, _PRECISION, _NUM_IMAGES = "resnet18", "fp16", 8


def run(context: Context, results: Results) -> None:
    """Try each kind of engine, the wanted one or both of NVIDIA's, and keep what each says."""
    from temper.host.machine import commit, machine, versions

    results.begin(gpu=device.describe(), machine=machine(), versions=versions() | _torch(), commit=commit())
    kinds = ("tensorrt", "tensorrt-rtx") if context.kind == "auto" else (context.kind,)
    for kind in kinds:
        results.put(kind, try_kind(context, kind))
    running = [kind for kind in kinds if results.has(kind)]
    results.content["kind"] = running[0] if running else None
    if running:
        results.end("complete")
        return
    rows = results.content["rows"]
    if context.device != "cpu":
        results.put(standin.NAME, try_stand_in(context))
    results.end(
        "complete", "no engine runs here: " + "; ".join(f"{kind}: {rows[kind]['error']}" for kind in kinds)
    )


def try_kind(context: Context, kind: str) -> dict[str, Any]:
    """Build a small engine, load it in the plugin's runner, and compare its answers with PyTorch's.

    Returns:
        What came out; `error` is the first refusal, of the builder, of the library or of the plugin.
    """
    from benchmarks.gpu.engine import open_runner, publish_engine
    from temper.builder.engines.kind import ENGINES

    engine = ENGINES.get(kind)
    if not engine.is_installed:
        return {"error": f"the package {engine.package} is not installed"}

    row: dict[str, Any] = {"error": None}
    if kind == "tensorrt-rtx":
        row["compute_capabilities"] = _known_capabilities()
    try:
        published = publish_engine(context, kind, _ARCH, _PRECISION)
        row["built"] = {name: published.get(name) for name in ("runtime", "build_s", "size_bytes", "engine_audit")}
    except Exception as error:  # the library's, the builder's, or a broken installation's: it is the answer
        return row | {"error": f"{type(error).__name__}: {error}"}
    if engine.device == "gpu":
        row["library"] = _load(kind, Path(published["path"]))
        if kind == "tensorrt-rtx" and row["library"] != "loads":
            row["built_for_this_gpu"] = _build_for_this_gpu(context)
    try:
        runner = open_runner(published, kind, context)
    except Exception as error:
        return row | {"error": str(error)}
    try:
        row["plugin"] = getattr(runner, "description", "")
        images = make_images(_NUM_IMAGES, context.image_size)
        (answer,) = runner.infer([images])
        return row | compare(answer, images, context.device)
    except Exception as error:
        return row | {"error": str(error)}
    finally:
        runner.close()


def try_stand_in(context: Context) -> dict[str, Any]:
    """Run the plugin in this process on the stand-in: are its answers right, and how fast are its buffers?

    Returns:
        plugin, equal (whether every answer is right to the bit), in_process: by batch, of timing.measure for the
        runner's own buffers and for the plugin's whole `infer`, of ordinary memory and of shared memory.
    """
    from benchmarks.gpu.engine import BATCHES, EngineContender, PluginContender, open_runner, publish_engine
    from benchmarks.gpu.shared_memory import handed_over
    from benchmarks.gpu.timing import measure

    try:
        runner = open_runner(publish_engine(context, standin.NAME, standin.NAME, "null"), standin.NAME, context)
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}
    row: dict[str, Any] = {"error": None, "equal": True, "in_process": {}}
    try:
        batches, size = context.batches or BATCHES, context.image_size
        with handed_over(make_images(max(batches), size)) as shared, closing(runner):
            row["plugin"] = runner.description
            for batch in batches:
                images = make_images(batch, size)
                (answer,) = runner.infer([images])
                expected = standin.expected_logits(images, answer.shape[1])
                row["equal"] &= bool((answer.view(np.uint32) == expected.view(np.uint32)).all())
                row["in_process"][batch] = {
                    "buffers": measure(EngineContender(runner, batch, size), context.seconds),
                    "plugin": measure(PluginContender(runner, batch, size), context.seconds),
                    "shared": measure(PluginContender(runner, batch, size, shared[:batch]), context.seconds),
                }
        return row
    except Exception as error:
        return row | {"error": f"{type(error).__name__}: {error}"}


def compare(answer: Any, images: Any, on: str) -> dict[str, Any]:
    """The largest difference from PyTorch's float32 logits, the largest of these, the share of equal labels."""
    import torch

    if not np.isfinite(answer).all():
        return {"error": "its answers were not finite"}
    with torch.inference_mode():
        network = serve(build_network(_ARCH)).to(on)
        expected = network(torch.from_numpy(images).to(on)).cpu().numpy()
    return {
        "max_abs_diff": float(np.abs(answer - expected).max()),
        "max_abs_logit": float(np.abs(expected).max()),
        "agreement": float((answer.argmax(1) == expected.argmax(1)).mean()),
    }


def _torch() -> dict[str, str]:
    import torch

    return {"torch": torch.__version__, "cuda of torch": torch.version.cuda or "none"}


def _known_capabilities() -> list[str]:
    import tensorrt_rtx  # type: ignore[import-untyped]  # ships none

    from temper.builder.engines.tensorrt_rtx import known_capabilities

    return known_capabilities(tensorrt_rtx)


def _load(kind: str, path: Path) -> str:
    """Why the library does not deserialise an engine; "loads" when it does."""
    from temper.builder.engines.kind import ENGINES
    from temper.builder.engines.run import LoadedEngine

    try:
        with LoadedEngine(ENGINES.get(kind), path):
            return "loads"
    except Exception as error:  # it is the answer
        return str(error)


def _build_for_this_gpu(context: Context) -> str:
    """TensorRT-RTX told to build for the GPU that is here, whichever it is: its last word on a card it lacks."""
    import tensorrt_rtx as trt

    from benchmarks.gpu.engine import find_graph

    errors: list[str] = []

    class Logger(trt.ILogger):  # type: ignore[misc]  # untyped base
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                errors.append(" ".join(message.split()))

    logger = Logger()
    try:
        builder = trt.Builder(logger)
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = trt.OnnxParser(network, logger)
        parser.parse(find_graph(context, _ARCH, _PRECISION).read_bytes())
        settings = builder.create_builder_config()
        settings.num_compute_capabilities = 1
        settings.set_compute_capability(trt.ComputeCapability.CURRENT, 0)
        profile = builder.create_optimization_profile()
        profile.set_shape("image", *[(batch, IMAGE_SIZE, IMAGE_SIZE, 3) for batch in (1, 8, 8)])
        settings.add_optimization_profile(profile)
        plan = builder.build_serialized_network(network, settings)
        if plan is not None and trt.Runtime(logger).deserialize_cuda_engine(plan) is not None:
            return "loads"
    except Exception as error:  # it is the answer
        errors.append(f"{type(error).__name__}: {error}")
    return errors[0] if errors else "refused without a reason"
