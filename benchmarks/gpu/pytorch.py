"""The contenders from PyTorch: eager with channels last, compiled, and compiled ahead of time, on any device."""

from __future__ import annotations

import copy
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.gpu.networks import build_network, make_images, serve


class Reference:
    """One network on a device, in half precision unless told otherwise; its contenders share the weights."""

    def __init__(self, network: nn.Module | str, device: str, dtype: torch.dtype = torch.float16) -> None:
        """Build it with the weights that the engines hold, or copy a network that has been built."""
        self.device = device
        made = build_network(network) if isinstance(network, str) else copy.deepcopy(network)
        # The preprocessing too is in the network, as it is in the engines.
        served = serve(made).to(device=device, dtype=dtype)
        self.network = served.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # not in its types

    def eager(self, batch: int, size: int) -> TorchContender:
        """The network as it is."""
        return TorchContender(self.network, batch, size, self.device)

    def compiled(self, batch: int, size: int, mode: str = "max-autotune") -> TorchContender:
        """The network compiled for one batch size; with CUDA graphs, as `max-autotune` has them."""
        torch._dynamo.reset()  # else the sizes before count against the limit of recompilations
        module = torch.compile(self.network, mode=mode, dynamic=False)
        return TorchContender(module, batch, size, self.device)

    def ahead_of_time(self, batch: int, size: int, package: Path) -> None:
        """Compile the network for one batch size by AOTInductor, which writes a package for `load`."""
        images = torch.from_numpy(make_images(batch, size)).to(self.device)
        with torch.no_grad():
            exported = torch.export.export(self.network, (images,))
        torch._inductor.aoti_compile_and_package(exported, package_path=str(package))

    def load(self, batch: int, size: int, package: Path, *, graphed: bool = False) -> TorchContender:
        """A package's network, with its kernels in one CUDA graph if wanted."""
        # The pool of copies that serves several threads cannot be captured.
        module = torch._inductor.aoti_load_package(str(package), run_single_threaded=graphed)
        return self.graphed(batch, size, module) if graphed else TorchContender(module, batch, size, self.device)

    def graphed(self, batch: int, size: int, module: Any = None) -> TorchContender:
        """The network as it is, or a module, with its kernels in one CUDA graph."""
        images = torch.from_numpy(make_images(batch, size)).to(self.device)
        return TorchContender(Graphed(module or self.network, images), batch, size, self.device)


class Graphed:
    """A module's kernels as one CUDA graph, which reads and writes the same memory every time."""

    def __init__(self, module: Any, images: torch.Tensor) -> None:
        """Warm up on a stream of its own, as capturing wants it, and capture."""
        self._module = module  # the graph reads its weights, and keeps nothing alive
        self._graph = torch.cuda.CUDAGraph()
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # torch has no types here
        stream.wait_stream(torch.cuda.current_stream())
        with torch.inference_mode():
            self._images = images.clone()
            with torch.cuda.stream(stream):
                for _ in range(3):
                    module(self._images)
            torch.cuda.current_stream().wait_stream(stream)
            with torch.cuda.graph(self._graph):
                self._logits: torch.Tensor = module(self._images)

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Copies the images to where the graph reads them; the logits are valid until the next call."""
        self._images.copy_(images)
        self._graph.replay()
        return self._logits


class TorchContender:
    """A module with its buffers: pinned ones on the host, and the images once on the device."""

    def __init__(self, module: Any, batch: int, size: int, device: str) -> None:
        """Allocate, and run once, which compiles what is to be compiled."""
        self.batch = batch
        self._module, self._device = module, device
        images = torch.from_numpy(make_images(batch, size))
        self._on_gpu = device.startswith("cuda")
        self._pinned = images.pin_memory() if self._on_gpu else images
        self._resident = images.to(device)
        with torch.inference_mode():
            answer = module(self._resident)
        self._logits = torch.empty(answer.shape, dtype=answer.dtype, pin_memory=self._on_gpu)
        self._wait()

    def time_device(self, count: int) -> float:
        """Seconds for `count` batches that stay on the device: CUDA's events, or the wall clock elsewhere."""
        with torch.inference_mode():
            if not self._on_gpu:
                begin = time.perf_counter()
                for _ in range(count):
                    self._module(self._resident)
                return time.perf_counter() - begin
            first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            first.record()
            for _ in range(count):
                self._module(self._resident)
            last.record()
            last.synchronize()
            return float(first.elapsed_time(last)) / 1e3

    def infer(self) -> None:
        """One batch from pinned host memory to logits in host memory."""
        with torch.inference_mode():
            images = self._pinned.to(self._device, non_blocking=True)
            self._logits.copy_(self._module(images), non_blocking=True)
        self._wait()

    @property
    def logits(self) -> torch.Tensor:
        """What the last `infer` gave, float32 [batch, classes], on the host."""
        return self._logits

    def close(self) -> None:
        """Drop the buffers."""
        del self._module, self._pinned, self._resident, self._logits
        if self._on_gpu:
            torch.cuda.empty_cache()

    def _wait(self) -> None:
        if self._on_gpu:
            torch.cuda.synchronize()
