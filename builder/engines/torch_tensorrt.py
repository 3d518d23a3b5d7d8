"""The second road to a TensorRT engine: from the PyTorch network, by torch.export and torch-tensorrt.

It ends in the same file as the ONNX parser's road, with the same tensor names. torch-tensorrt drives TensorRT,
torch-tensorrt-rtx drives TensorRT-RTX; both install the package `torch_tensorrt`, and both want an NVIDIA driver:
they ask for the GPU's compute capability when they are imported, and load the engine after building it.

torch-tensorrt-rtx 2.13 wants tensorrt-rtx 1.5, which this project is past (1.5 builds no int8 convolutions), so it
goes into an environment of its own.
"""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from temper.builder.contract import OUTPUT_NAME
from temper.builder.errors import EngineError

if TYPE_CHECKING:
    import torch
    from torch import nn

    from temper.builder.engines.kind import EngineConfig, EngineKind


def compile_module(
    kind: EngineKind[Any],
    module: nn.Module | None,
    config: EngineConfig,
    *,
    project: str,
    image_shape: tuple[int, ...],
    precision: str,
    hardware_compatible: bool = False,
    sparse_weights: bool = False,
    timing_cache: Path | None = None,
) -> Any:
    """Exports a module and compiles it.

    Args:
        kind: TensorRT or TensorRT-RTX.
        module: uint8 [N, H, W, 3] to float32 logits, a `served.Served`; quantised ones hold ModelOpt's
            quantisers. It is not changed.
        config: The batches.
        project: The package that drives the kind, as pip knows it.
        image_shape: (H, W, 3).
        precision: `fp32` leaves the module as it is, `bf16` converts it, and everything else makes what is not
            quantised float16.
        hardware_compatible: The plan runs on Ampere and later.
        sparse_weights: TensorRT may use the sparse kernels.
        timing_cache: Of TensorRT; TensorRT-RTX has none.

    Returns:
        The serialised engine, bytes.

    Raises:
        EngineError: torch-tensorrt is not installed, finds no driver, or cannot compile the module.
    """
    torch_tensorrt = _import(kind, project)
    if module is None:
        raise EngineError(
            f"engine {kind.name}: frontend 'torch-tensorrt' compiles PyTorch networks, but this variant's "
            "steps made an ONNX graph; use frontend 'onnx' for it"
        )
    options: dict[str, Any] = {} if timing_cache is None else {"timing_cache_path": str(timing_cache)}
    try:
        exported = export_module(module, config, image_shape=image_shape, precision=precision)
        with _our_names(torch_tensorrt):
            return torch_tensorrt.dynamo.convert_exported_program_to_serialized_trt_engine(
                exported,
                arg_inputs=[_input(torch_tensorrt, config, image_shape)],
                use_explicit_typing=True,  # 2.13 knows nothing else and ignores it
                hardware_compatible=hardware_compatible,
                sparse_weights=sparse_weights,
                immutable_weights=True,
                # The network stays in the machine's memory: the GPU's is for TensorRT.
                offload_module_to_cpu=True,
                **options,
            )
    except EngineError:
        raise
    except Exception as error:  # torch.export's, torch-tensorrt's and TensorRT's own
        reason = _first_line(error)
        raise EngineError(
            f"engine {kind.name}: torch-tensorrt cannot compile the network: {type(error).__name__}: {reason}; "
            "use engine.frontend = 'onnx'"
        ) from error


def export_module(
    module: nn.Module, config: EngineConfig, *, image_shape: tuple[int, ...], precision: str
) -> torch.export.ExportedProgram:
    """Exports a copy of a module for torch-tensorrt, with a free batch.

    Args:
        module: As for `compile_module`.
        config: The batches.
        image_shape: (H, W, 3).
        precision: As for `compile_module`.

    Returns:
        The exported program, on the GPU where there is one: ModelOpt's int8 quantisers are exported there only.
    """
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    ready = copy.deepcopy(module).to(device).eval()
    if precision != "fp32":
        ready = ready.to(torch.bfloat16 if precision == "bf16" else torch.float16)
    # Images come as NHWC and are permuted: a channels-last tensor, which makes torch's global pooling end in
    # as_strided, and for that torch-tensorrt has no converter.
    body = getattr(ready, "model", ready)
    body.register_forward_pre_hook(lambda _, inputs: tuple(each.contiguous() for each in inputs))
    example = torch.zeros((2, *image_shape), dtype=torch.uint8, device=device)
    batch = torch.export.Dim("batch", min=1, max=config.max_batch)
    with _exportable_quantizers(), torch.no_grad(), warnings.catch_warnings():
        # torch's own export uses what torch deprecates.
        warnings.filterwarnings("ignore", category=FutureWarning, message=r"`isinstance\(treespec, LeafSpec\)`")
        return torch.export.export(ready, (example,), dynamic_shapes=({0: batch},))


@contextlib.contextmanager
def _exportable_quantizers() -> Iterator[None]:
    """ModelOpt's quantisers are exported as torch-tensorrt's operators only in a mode of their own."""
    import sys

    # A module with quantisers in it has imported ModelOpt.
    if "modelopt.torch.quantization" not in sys.modules:
        yield
        return
    from modelopt.torch.quantization.utils import export_torch_mode  # type: ignore[import-untyped]  # ships none

    with export_torch_mode():
        yield


def _input(torch_tensorrt: Any, config: EngineConfig, image_shape: tuple[int, ...]) -> Any:
    import torch

    return torch_tensorrt.Input(
        min_shape=(1, *image_shape),
        opt_shape=(config.opt_batch, *image_shape),
        max_shape=(config.max_batch, *image_shape),
        dtype=torch.uint8,
    )


@contextlib.contextmanager
def _our_names(torch_tensorrt: Any) -> Iterator[None]:
    """Names the output `logits`, and keeps the layers' details for the inspector.

    torch-tensorrt has no option for either: it calls the output `output0`, and keeps the layers' names only. So
    two steps of its interpreter are followed by ours; found in 2.13.
    """
    interpreter = torch_tensorrt.dynamo.conversion.TRTInterpreter
    steps = ("_construct_trt_network_def", "_populate_trt_builder_config")
    if not all(hasattr(interpreter, step) for step in steps):
        raise EngineError(
            f"torch-tensorrt {torch_tensorrt.__version__} has no {' and '.join(steps)}, in which the output is "
            "named, expected 2.13; use engine.frontend = 'onnx'"
        )
    construct, populate = (getattr(interpreter, step) for step in steps)

    def named(self: Any) -> None:
        construct(self)
        self.ctx.net.get_output(0).name = OUTPUT_NAME

    def detailed(self: Any, *args: Any, **options: Any) -> Any:
        settings = populate(self, *args, **options)
        settings.profiling_verbosity = type(settings.profiling_verbosity).DETAILED
        return settings

    replaced: tuple[Callable[..., Any], Callable[..., Any]] = (named, detailed)
    try:
        for step, ours in zip(steps, replaced, strict=True):
            setattr(interpreter, step, ours)
        yield
    finally:
        for step, theirs in zip(steps, (construct, populate), strict=True):
            setattr(interpreter, step, theirs)


def _import(kind: EngineKind[Any], project: str) -> Any:
    try:
        import torch_tensorrt  # type: ignore[import-not-found,import-untyped,unused-ignore]  # optional
    except ImportError as error:
        if error.name == "torch_tensorrt":
            raise EngineError(
                f"engine {kind.name}: the package {project} is not installed; run `pip install {project}` in "
                "an environment of its own, or use engine.frontend = 'onnx'"
            ) from error
        raise _no_driver(kind, error) from error
    except Exception as error:  # it looks at the GPU when it is imported
        raise _no_driver(kind, error) from error
    return torch_tensorrt


def _no_driver(kind: EngineKind[Any], error: Exception) -> EngineError:
    return EngineError(
        f"engine {kind.name}: torch-tensorrt cannot be imported here: {_first_line(error)}; it wants an NVIDIA "
        "driver, so build on a machine with a GPU, or use engine.frontend = 'onnx'"
    )


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
