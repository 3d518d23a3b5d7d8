"""Part `served`: the same engines behind tritonserver and the plugin, over gRPC and over shared memory.

Where no library runs engines, the plugin's stand-in for TensorRT (benchmarks/standin) takes their place.

Beside each of them a model that computes nothing, in the same number of instances: what Triton, its Python backend
and the transport deliver at most, whatever the engine. Processor use says which process is at its limit.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks import standin
from benchmarks.gpu import device
from benchmarks.gpu.context import ARCHS, PRECISIONS, Context, Results, read
from benchmarks.gpu.engine import publish_engine
from benchmarks.gpu.load import run_load
from benchmarks.gpu.networks import NUM_CLASSES, make_images
from benchmarks.gpu.processor import private_bytes, read_parents
from benchmarks.gpu.shared_memory import TRANSPORTS, requests

BATCH = 128
"""The figure to reach is at this batch; it is the largest that Triton puts together here."""
INSTANCES = (2, 4)
# Images per request, requests in flight: whole batches, and single images that Triton has to gather.
_LOADS = ((BATCH, 8), (BATCH, 1), (BATCH, 4), (8, 64), (1, 256))
_WARMUP_S, _DURATION_S = 0.5, 1.5
# Long enough for a million images where the ceiling is 100,000 a second.
_SOAK_S = 12.0
_MODEL_S = 30.0
# Room for all batches in flight: by default 64 MiB and 256, with 18 in a batch of 128.
_POOLS = ("--cuda-memory-pool-byte-size=0:1073741824", "--pinned-memory-pool-byte-size=1073741824")
_NULL = Path(__file__).with_name("models") / "null"


def run(context: Context, results: Results) -> None:
    """Measure every model, the important ones first, until the time is up."""
    probe = read(context, "probe") or {}
    kind = probe.get("kind")
    reason = None if kind else f"no engine was served: {probe.get('reason') or 'probe did not run'}"
    stand_in = probe.get("rows", {}).get(standin.NAME, {"error": "not tried"})
    if kind is None and stand_in["error"] is None:
        kind = standin.NAME
    results.begin(kind=kind, warmup_s=_WARMUP_S, duration_s=_DURATION_S, transports=TRANSPORTS)
    for arch, precision, instances in _models(context, kind):
        name = f"{arch} {precision} x{instances}" if precision else f"null x{instances}"
        if results.content.get("done", {}).get(name):
            continue
        if context.left_s < _MODEL_S:
            results.end("stopped", f"no time left before {name}; run again to go on")
            return
        try:
            done = serve(context, results, kind, arch, precision, instances, name)
            results.content.setdefault("done", {})[name] = done
        except Exception as error:  # one model: the others are measured all the same
            results.put(name, {"error": f"{type(error).__name__}: {error}"[:600]})
    results.end("complete", reason)


def _models(context: Context, kind: str | None) -> Iterator[tuple[str, str | None, int]]:
    """Network, precision (None: the model that computes nothing) and instances."""
    archs, precisions = context.archs or ARCHS, context.precisions or PRECISIONS
    if kind == standin.NAME:
        yield from ((standin.NAME, "null", instances) for instances in (2, 4, 1))
        yield standin.NAME, None, INSTANCES[0]
        return
    for instances in INSTANCES:
        if kind:
            yield archs[0], precisions[0], instances
        yield archs[0], None, instances
    for arch in archs if kind else ():
        for precision in precisions:
            if (arch, precision) != (archs[0], precisions[0]):
                yield arch, precision, INSTANCES[-1]


def serve(
    context: Context,
    results: Results,
    kind: str | None,
    arch: str,
    precision: str | None,
    instances: int,
    name: str,
) -> bool:
    """Start a server with one model and measure it under every load; False when the time ran out.

    Raises:
        TemperError: The server does not start; its reason.
    """
    from temper.client.client import Client
    from temper.serve.server import TritonServer

    batch = min(BATCH, max(context.batches or (BATCH,)))
    if precision is None:
        repository = context.work / "null_repository"
        model = write_null(repository, instances, context.image_size, batch, on_gpu=context.device != "cpu")
    else:
        published = publish_engine(context, str(kind), arch, precision, num_instances=instances, max_batch=batch)
        repository, model = Path(published["repository"]), published["model"]
    gpu_before, begin = device.memory_used_bytes(), time.monotonic()
    log = context.work / "logs" / f"{model}.log"
    pools = () if context.device == "cpu" else _POOLS
    server = TritonServer(
        repository,
        models=[model],
        ready_timeout_s=300,
        log_file=log,
        extra_args=pools,
        only_published=precision is not None,
    )
    stand_in = standin.plugin(context.work / "stand-in") if kind == standin.NAME else contextlib.nullcontext()
    with stand_in, server:
        results.put(name, {"ready_s": round(time.monotonic() - begin, 1), "gpu_mib": device.used_mib(gpu_before)})
        with Client(server.grpc_url) as client:
            info = client.model_info(model)
        images = make_images(2 * batch, context.image_size)
        loads = [(transport, *load, _DURATION_S) for transport in TRANSPORTS for load in _loads(batch)]
        if instances == INSTANCES[0] and precision is not None:
            loads.append((TRANSPORTS[-1], batch, 8, _SOAK_S))
        for transport, size, concurrency, duration_s in loads:
            if transport == "cuda" and context.device == "cpu":
                continue
            key = f"{name} {transport} {size}x{concurrency}" + (" soak" if duration_s == _SOAK_S else "")
            if results.has(key):
                continue
            if context.left_s < _WARMUP_S + duration_s + 5:
                return False
            results.attempt(key)
            before = _memory(server.pid)
            headers = server.key.grpc_headers
            with requests(server.grpc_url, transport, info, images, size, headers) as messages:
                row = run_load(
                    server.grpc_url,
                    info,
                    messages,
                    batch=size,
                    concurrency=concurrency,
                    num_processes=max(1, min(8, len(os.sched_getaffinity(0)) // 2)),
                    warmup_s=_WARMUP_S,
                    duration_s=duration_s,
                    server_pid=server.pid,
                )
            memory = {"before": before, "after": _memory(server.pid)}
            about = {"model": name, "transport": transport, "batch": size, "concurrency": concurrency}
            failed = row["interrupted"] or (f"errors: {row['errors']}" if row["errors"] else None)
            results.put(key, about | row | {"memory_mib": memory, "error": failed})
            print(f"{key}: {row['ips']:.0f}/s, cores {row['cores']}", file=sys.stderr, flush=True)
    return True


def _memory(server_pid: int) -> dict[str, int]:
    """MiB in use: of the GPU by everybody, and of the host by tritonserver and its stubs.

    The host's leave out mapped files and shared memory, in which tensors pass between these and come from clients.
    """
    gpu = device.memory_used_bytes() or 0
    pids = [server_pid, *(pid for pid, parent in read_parents().items() if parent == server_pid)]
    return {"gpu": gpu >> 20, "host": sum(map(private_bytes, pids)) >> 20}


def _loads(batch: int) -> list[tuple[int, int]]:
    """The loads whose requests the model takes, the large ones cut to its largest batch."""
    return list(dict.fromkeys((min(size, batch), concurrency) for size, concurrency in _LOADS))


def write_null(repository: Path, instances: int, image_size: int, max_batch: int, *, on_gpu: bool) -> str:
    """Writes the entry of the model that computes nothing.

    Args:
        repository: Receives it.
        instances: Triton's model instances.
        image_size: In pixels.
        max_batch: The largest batch that Triton puts together.
        on_gpu: Its instances belong to the GPU, and images in CUDA shared memory stay there.

    Returns:
        The model's name.
    """
    from google.protobuf import text_format  # type: ignore[import-untyped]  # ships none
    from tritonclient.grpc import model_config_pb2 as pb  # type: ignore[import-untyped]  # ships none

    model = f"null_x{instances}"
    config = pb.ModelConfig(name=model, backend="python", max_batch_size=max_batch)
    config.input.add(name="image", data_type=pb.TYPE_UINT8, dims=[image_size, image_size, 3])
    config.output.add(name="logits", data_type=pb.TYPE_FP32, dims=[NUM_CLASSES])
    group = pb.ModelInstanceGroup
    config.instance_group.add(count=instances, kind=group.KIND_GPU if on_gpu else group.KIND_CPU)
    config.dynamic_batching.SetInParent()
    config.parameters["FORCE_CPU_ONLY_INPUT_TENSORS"].string_value = "no" if on_gpu else "yes"
    shutil.rmtree(repository / model, ignore_errors=True)
    shutil.copytree(_NULL, repository / model, ignore=shutil.ignore_patterns("__pycache__"))
    (repository / model / "config.pbtxt").write_text(text_format.MessageToString(config))
    return model
