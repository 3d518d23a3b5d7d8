"""TensorRT and TensorRT-RTX on an NVIDIA GPU: one stream, fixed buffers, one inference at a time.

The GPU reads images where Triton has them, on a GPU or in shared memory; other host memory goes through a pinned
buffer. CUDA graphs save the launches of a batch size's kernels. TensorRT's are captured here, all of one execution
context. TensorRT-RTX captures its own, because it replaces kernels while it runs and a graph captured from outside
would keep the old ones; a context has one graph, of its last shape, so every prepared size has a context.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

import runners
from artifact import ArtifactError, Entry
from runners import cuda
from runners.dlpack import DeviceTensor, Images
from runners.request_memory import RequestMemory
from runners.runtime_cache import CacheFile, cache_folder, cache_key
from runners.tensorrt_engine import LIBRARIES, Engine, load_engine

# A batch is filled up to a prepared size when at most this share of that size is padding: padded images cost GPU
# time like any other. A choice, not a measurement.
_MAX_PADDING = 0.25
# TensorRT-RTX captures in the second run of a shape and replays from the third on.
_RUNS_TO_REPLAY = 3


def signature(entry: Entry, config: Mapping[str, Any]) -> runners.Signature:
    """Names, types and shapes as config.pbtxt states them, which `temper build` always does.

    The engine itself would have to be deserialised for them, which needs the GPU and takes the time of a load;
    `Runner` compares the two.

    Raises:
        ArtifactError: config.pbtxt does not state one input and one output.
    """
    stated = runners.Signature.from_config(config)
    if stated is None:
        raise ArtifactError(
            f"{entry.file}: config.pbtxt states no input or no output, expected one of each, as an engine for a "
            "GPU is not opened to fill them in; publish this version again"
        )
    return stated


def prepared_batches(text: str | None, opt_batch: int, max_batch: int) -> list[int]:
    """The batch sizes that get a CUDA graph, ascending.

    Args:
        text: Parameter `graph_batches`, as "1,8,32"; "" for no graphs, None for 1, `opt_batch` and `max_batch`.
        opt_batch: The engine's.
        max_batch: Triton's.

    Raises:
        ArtifactError: It is no list of sizes from 1 to `max_batch`.
    """
    if text is None:
        return sorted({1, min(opt_batch, max_batch), max_batch})
    try:
        sizes = sorted({int(size) for size in text.split(",") if text.strip()})
    except ValueError:
        sizes = [0]
    if sizes and not 1 <= sizes[0] <= sizes[-1] <= max_batch:
        raise ArtifactError(
            f"graph_batches: got {text!r}, expected sizes from 1 to {max_batch} (max_batch_size), as in '1,8,32'"
        )
    return sizes


def padded_batch(batch: int, prepared: Sequence[int]) -> int:
    """The size to run a batch at: the smallest prepared one that holds it, unless that is too much padding.

    Args:
        batch: Images.
        prepared: Ascending.

    Returns:
        One of `prepared`, or `batch` itself.
    """
    size = next((size for size in prepared if size >= batch), batch)
    return size if size - batch <= _MAX_PADDING * size else batch


class Runner:
    """An engine with the buffers of one batch; one thread at a time may call it.

    Parameters it reads from config.pbtxt: `graph_batches` (see `prepared_batches`) and `version_compatible`
    ("true" lets a plan run the host code that it carries). The environment's TEMPER_CACHE_DIR says where
    TensorRT-RTX's kernels are kept. `send`, `run` and `fetch`, on `stream`, are there to be timed
    one by one; `infer` has a `send` of its own, which gathers the requests.
    """

    accepts_device_tensors = True

    def __init__(self, entry: Entry, instance: runners.Instance) -> None:
        """Load the engine, allocate for the largest batch, and prepare the batch sizes of `graph_batches`.

        Raises:
            ArtifactError: No usable GPU, the engine does not run on it, or its memory is exhausted.
        """
        device = cuda.open_device(instance.device)
        entry = entry.for_capability(device.capability)
        self._log = instance.log
        self._request_memory = RequestMemory(instance.log)
        self._graphs: dict[int, cuda.Graph] = {}
        self._contexts: dict[int, Any] = {}
        self._work: cuda.DeviceBuffer | None = None
        self._cache: Any = None
        self._cache_file: CacheFile | None = None
        try:
            self._engine: Engine = load_engine(entry, instance, device)
            self._prepared = prepared_batches(
                entry.parameters.get("graph_batches"), self._engine.opt_batch, instance.max_batch
            )
            self._allocate(instance)
            if LIBRARIES[entry.engine].compiles_on_load:
                self._prepare_compiled(entry, device)
            else:
                self._prepare_tensorrt()
        except (cuda.CudaError, runners.RunnerError) as error:
            raise ArtifactError(f"{entry.file}: {_explain(error)}") from error
        batches = ", ".join(map(str, self._prepared)) or "no batch"
        whose = "its own CUDA graphs" if self._contexts else "CUDA graphs"
        self.description = (
            f"{LIBRARIES[entry.engine].name} {self._engine.trt.__version__} on {device.name} (compute capability "
            f"{device.capability}), {whose} for batches of {batches}"
        )

    def infer(self, batches: Sequence[Images]) -> list[npt.NDArray[np.float32]]:
        """Run batches of images as one inference.

        Args:
            batches: UINT8 [n_i, H, W, 3] each, on the host or on a GPU, together at most `max_batch` images.

        Returns:
            FP32 [n_i, classes] per batch. The arrays view the output buffer, which the next call overwrites.

        Raises:
            RunnerError: The engine or the driver failed; the next call may succeed, but for a ContextLostError.
        """
        num_images = sum(map(len, batches))
        if num_images > len(self._images.array):
            # A copy beyond the buffer on the GPU would overwrite what lies there.
            raise runners.RunnerError(f"got {num_images} images, expected at most {len(self._images.array)}")
        try:
            self._upload(batches)
            self.run(padded_batch(num_images, self._prepared))
            logits = self.fetch(num_images)
            self.stream.synchronize()
        except (cuda.CudaError, runners.RunnerError) as error:
            with contextlib.suppress(cuda.CudaError):
                self.stream.synchronize()  # nothing of this batch may still be running when the next one comes
            reason = _explain(error)
            kind = runners.ContextLostError if cuda.is_lost() else runners.RunnerError
            raise kind(f"a batch of {num_images} failed: {reason}") from error
        self._request_memory.keep_newest()
        return list(np.split(logits, np.cumsum([len(batch) for batch in batches])[:-1]))

    def close(self) -> None:
        """Keep TensorRT-RTX's kernels for the next start, and give the GPU's memory back."""
        self._save_kernels()
        for graph in self._graphs.values():
            graph.close()
        # The contexts go before their cache and the engine, and all before the buffers that they write to.
        self._contexts.clear()
        del self._context
        self._cache = None
        del self._engine
        buffers = (self._images, self._logits, self._device_images, self._device_logits, self._work)
        for owned in (self._request_memory, *buffers, self.stream):
            if owned is not None:
                owned.close()

    def _allocate(self, instance: runners.Instance) -> None:
        images = (instance.max_batch, *instance.signature.input.dims)
        logits = (instance.max_batch, *instance.signature.output.dims)
        self.stream = cuda.Stream()
        self._images = cuda.PinnedBuffer(images, np.uint8)
        self._logits = cuda.PinnedBuffer(logits, np.float32)
        self._device_images = cuda.DeviceBuffer(math.prod(images), self.stream)
        self._device_logits = cuda.DeviceBuffer(math.prod(logits) * 4, self.stream)

    def _upload(self, batches: Sequence[Images]) -> None:
        """Queue each batch behind the one before; the first travels while the second is gathered."""
        start = offset = 0
        for batch in batches:
            if isinstance(batch, DeviceTensor):
                source = batch.pointer
            elif (found := self._request_memory.find(batch)) is not None:
                source = found
            else:
                np.copyto(self._images.array[start : start + len(batch)], batch)
                source = self._images.pointer + offset
            self.stream.copy(self._device_images.pointer + offset, source, batch.nbytes)
            start += len(batch)
            offset += batch.nbytes

    def send(self, num_images: int) -> None:
        """Queue the copy of the first images of the pinned buffer to the GPU.

        Raises:
            CudaError: The driver refuses it.
        """
        self.stream.copy(self._device_images.pointer, self._images.pointer, self._images.array[:num_images].nbytes)

    def run(self, size: int) -> None:
        """Queue one inference of the first images that lie on the GPU.

        Raises:
            RunnerError: The engine refuses the batch.
            CudaError: The driver does.
        """
        if size in self._graphs:
            self._graphs[size].launch(self.stream)
        elif size in self._contexts:
            self._enqueue(self._contexts[size])
        else:
            self._set_shape(self._context, size)
            self._enqueue(self._context)

    def fetch(self, num_images: int) -> npt.NDArray[np.float32]:
        """Queue the copy of the first logits to the pinned buffer; they are there once `stream` is done.

        Raises:
            CudaError: The driver refuses it.
        """
        logits = self._logits.array[:num_images]
        self.stream.copy(self._logits.pointer, self._device_logits.pointer, logits.nbytes)
        return logits

    def _set_shape(self, context: Any, size: int) -> None:
        engine = self._engine
        if not context.set_input_shape(engine.input, (size, *self._images.array.shape[1:])):
            raise runners.RunnerError(engine.logger.reason())

    def _enqueue(self, context: Any) -> None:
        if not context.execute_async_v3(int(self.stream.handle)):
            raise runners.RunnerError(self._engine.logger.reason())

    def _prepare_tensorrt(self) -> None:
        """Make the context and capture a CUDA graph per prepared size; without one a batch runs as it is."""
        self._context = self._bind(self._engine.engine.create_execution_context())
        for size in self._prepared:
            # TensorRT sets up a new shape in its first run, with calls that cannot be captured.
            self._warm(self._context, size)
            try:
                self._graphs[size] = self.stream.capture(partial(self._enqueue, self._context))
            except (cuda.CudaError, runners.RunnerError) as error:
                self._log(f"no CUDA graph for batches of {size}: {_explain(error)}")
        self._prepared = sorted(self._graphs)

    def _prepare_compiled(self, entry: Entry, device: cuda.Device) -> None:
        """Make a context per prepared size and one for the rest; compile what no earlier start kept.

        All of them work in one piece of memory, as only one runs at a time.
        """
        trt, engine = self._engine.trt, self._engine.engine
        key = cache_key(
            digest=entry.digest, version=trt.__version__, capability=device.capability, gpu=device.name
        )
        self._cache_file = CacheFile(cache_folder() / key, self._log)
        self._cache = engine.create_runtime_config().create_runtime_cache()
        kernels = self._cache_file.read()
        if kernels is not None and not self._cache.deserialize(kernels):
            self._log(f"runtime cache {self._cache_file.path} does not fit: {self._engine.logger.reason()}")
        self._work = cuda.DeviceBuffer(engine.device_memory_size_v2, self.stream)
        strategy = trt.DynamicShapesKernelSpecializationStrategy
        for size in self._prepared:
            # Waits for the kernels that are specialised for its size, so that the graph holds these.
            context = self._compiled_context(strategy.EAGER, graphs=True)
            self._warm(context, size, _RUNS_TO_REPLAY)
            if context.is_stream_capturable(int(self.stream.handle)):
                self._contexts[size] = context
            else:
                self._log(f"no CUDA graph for batches of {size}: TensorRT-RTX says that they cannot be captured")
        self._prepared = sorted(self._contexts)
        # Waiting would stall it on every size that comes for the first time: it takes general kernels until then.
        self._context = self._compiled_context(strategy.LAZY, graphs=False)
        self._warm(self._context, 1)
        self._save_kernels()

    def _compiled_context(self, specialization: Any, *, graphs: bool) -> Any:
        trt, engine, work = self._engine.trt, self._engine.engine, self._work
        config = engine.create_runtime_config()
        config.set_runtime_cache(self._cache)
        config.set_execution_context_allocation_strategy(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        config.dynamic_shapes_kernel_specialization_strategy = specialization
        strategy = trt.CudaGraphStrategy
        config.cuda_graph_strategy = strategy.WHOLE_GRAPH_CAPTURE if graphs else strategy.DISABLED
        context = self._bind(engine.create_execution_context(config))
        if work is not None:
            context.set_device_memory(work.pointer, work.nbytes)
        return context

    def _bind(self, context: Any) -> Any:
        """Give a new context the buffers, which stay the same for its whole life."""
        engine = self._engine
        if context is None:
            free, _ = cuda.free_memory()
            raise runners.RunnerError(
                f"no execution context: {engine.logger.reason()} ({free >> 20} MiB of the GPU's memory are free, "
                f"activations need {engine.engine.device_memory_size_v2 >> 20})"
            )
        buffers = {engine.input: self._device_images.pointer, engine.output: self._device_logits.pointer}
        for name, pointer in buffers.items():
            if not context.set_tensor_address(name, pointer):
                raise runners.RunnerError(engine.logger.reason())
        return context

    def _warm(self, context: Any, size: int, runs: int = 1) -> None:
        self._set_shape(context, size)
        for _ in range(runs):
            self._enqueue(context)
            self.stream.synchronize()

    def _save_kernels(self) -> None:
        if self._cache is not None and self._cache_file is not None:
            kernels = self._cache.serialize()
            if kernels is not None:
                self._cache_file.write(bytes(memoryview(kernels)))


def _explain(error: Exception) -> str:
    """The error in a line, with what to do where it is the GPU's memory."""
    if isinstance(error, cuda.CudaError) and error.out_of_memory and not cuda.is_lost():
        free, total = cuda.free_memory()
        return (
            f"the GPU's memory is exhausted: {error}; {free >> 20} MiB of {total >> 20} are free; lower "
            "engine.num_instances or engine.max_batch, or unload another model"
        )
    return str(error)
