"""Runs a TensorRT engine in process, to compare it with PyTorch and to inspect it; needs an NVIDIA GPU.

Serving is the plugin's: this is for one look at a fresh engine, with PyTorch's own tensors as its buffers.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch

from temper.builder.contract import INPUT_NAME, OUTPUT_NAME
from temper.builder.engines.kind import EngineKind
from temper.builder.engines.library import Logger, load_library
from temper.builder.errors import EngineError

if TYPE_CHECKING:
    from numpy.typing import NDArray


class LoadedEngine:
    """A deserialised engine with one execution context, a context manager."""

    def __init__(self, kind: EngineKind[Any], path: Path) -> None:
        """Deserialises the engine on the current GPU.

        Args:
            kind: Its kind.
            path: The engine file; it was built here, so its content is trusted.

        Raises:
            EngineError: The library refuses it.
        """
        trt = load_library(kind)
        self._trt = trt
        self._kind = kind
        self._log = Logger(trt)
        self._memory: torch.Tensor | None = None
        self._running: tuple[Any, Any] | None = None
        self._runtime = trt.Runtime(self._log.native)
        self._engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
        if self._engine is None:
            raise EngineError(f"engine {kind.name}: cannot load {path.name} on this GPU: {self._log.reason}")

    def __enter__(self) -> Self:
        """Holds the engine."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Gives the GPU's memory back."""
        self._running = None
        del self._engine, self._runtime
        self._memory = None

    def inspect(self) -> str:
        """Returns the inspector's JSON: every layer with its formats, tactic and ONNX nodes.

        It is asked of a context at the batch that the engine was tuned for: an engine with a free batch has no
        formats by itself.

        Raises:
            EngineError: There is no memory for the context, or it refuses that batch.
        """
        context = self._make_context()
        _, best, _ = self._engine.get_tensor_profile_shape(INPUT_NAME, 0)
        if not context.set_input_shape(INPUT_NAME, tuple(best)):
            raise EngineError(f"engine {self._kind.name}: refuses a batch of {best[0]}: {self._log.reason}")
        inspector = self._engine.create_engine_inspector()
        inspector.execution_context = context
        text: str = inspector.get_engine_information(self._trt.LayerInformationFormat.JSON)
        return text

    def run(self, images: NDArray[np.uint8], max_batch: int) -> NDArray[np.float32]:
        """Returns the logits of images.

        Args:
            images: uint8 [N, H, W, 3].
            max_batch: The profile's largest batch.

        Returns:
            float32 [N, classes].

        Raises:
            EngineError: An inference failed, or the GPU's memory is exhausted.
        """
        return self.run_outputs(images, max_batch)[OUTPUT_NAME]

    def run_outputs(self, images: NDArray[np.uint8], max_batch: int) -> dict[str, NDArray[np.float32]]:
        """Returns all outputs of the engine for images, by name; see `run`."""
        try:
            parts = list(self._run_batches(images, max_batch))
        except RuntimeError as error:  # PyTorch's: no memory left, or a driver older than its CUDA
            reason = (str(error).splitlines() or [""])[0]
            raise EngineError(
                f"engine {self._kind.name}: cannot run on this GPU: {reason}; free its memory, or take a "
                "smaller engine.max_batch"
            ) from error
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _make_context(self) -> Any:
        context = self._engine.create_execution_context()
        if context is None:  # it may be built to allocate nothing by itself
            context = self._engine.create_execution_context(
                self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
            )
            nbytes = self._engine.device_memory_size_v2
            self._memory = torch.empty(max(1, nbytes), dtype=torch.uint8, device="cuda")
            if context is not None:
                context.set_device_memory(self._memory.data_ptr(), nbytes)
        if context is None:
            raise EngineError(f"engine {self._kind.name}: no execution context on this GPU: {self._log.reason}")
        return context

    def _run_batches(self, images: NDArray[np.uint8], max_batch: int) -> Iterator[dict[str, NDArray[np.float32]]]:
        trt, engine = self._trt, self._engine
        if self._running is None:  # TensorRT-RTX compiles kernels for each context
            stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # torch has no types here
            self._running = self._make_context(), stream
        context, stream = self._running
        tensors = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        outputs = [name for name in tensors if engine.get_tensor_mode(name) == trt.TensorIOMode.OUTPUT]
        halves = {name: engine.get_tensor_dtype(name) == trt.float16 for name in outputs}
        for start in range(0, len(images), max_batch):
            # A copy: the images may be mapped from a file, read-only.
            batch = torch.from_numpy(np.array(images[start : start + max_batch])).cuda()
            context.set_input_shape(INPUT_NAME, tuple(batch.shape))
            context.set_tensor_address(INPUT_NAME, batch.data_ptr())
            found = {}
            for name, is_half in halves.items():
                dtype = torch.float16 if is_half else torch.float32
                found[name] = torch.empty(tuple(context.get_tensor_shape(name)), dtype=dtype, device="cuda")
                context.set_tensor_address(name, found[name].data_ptr())
            torch.cuda.synchronize()  # the tensors were made on PyTorch's own stream
            if not context.execute_async_v3(stream.cuda_stream):
                raise EngineError(
                    f"engine {self._kind.name}: failed on a batch of {len(batch)}: {self._log.reason}"
                )
            stream.synchronize()
            yield {name: value.float().cpu().numpy() for name, value in found.items()}
