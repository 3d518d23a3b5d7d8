"""The second road to a TensorRT engine: from the PyTorch network, by torch.export and torch-tensorrt.

It ends in the same file as the ONNX parser's road. torch-tensorrt drives TensorRT, torch-tensorrt-rtx drives
TensorRT-RTX; both install the package `torch_tensorrt`, and both want an NVIDIA driver when they are imported.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from builder.errors import EngineError

if TYPE_CHECKING:
    from torch import nn

    from builder.engines import EngineConfig
    from builder.engines.tensorrt import Library


def compile_module(
    library: Library,
    module: nn.Module | None,
    config: EngineConfig,
    *,
    image_shape: tuple[int, ...],
    precision: str,
) -> Any:
    """Exports a module and compiles it.

    Args:
        library: TensorRT or TensorRT-RTX.
        module: uint8 [N, S, S, 3] to logits; quantised ones hold ModelOpt's quantisers.
        config: The batches and the portability.
        image_shape: (S, S, 3).
        precision: `fp16` and `bf16` convert the module's floating point tensors first.

    Returns:
        The serialised engine, bytes.

    Raises:
        EngineError: torch-tensorrt is not installed, finds no driver, or cannot compile the module.
    """
    torch_tensorrt = _import(library)
    if module is None:
        raise EngineError(
            f"engine {library.kind}: frontend 'torch-tensorrt' compiles PyTorch networks, but this variant's "
            "steps made an ONNX graph; use frontend 'onnx' for it"
        )
    import torch

    example = torch.zeros((2, *image_shape), dtype=torch.uint8, device="cuda")
    batch = torch.export.Dim("batch", min=config.min_batch, max=config.max_batch)
    try:
        exported = torch.export.export(module.cuda().eval(), (example,), dynamic_shapes=({0: batch},))
        inputs = torch_tensorrt.Input(
            min_shape=(config.min_batch, *image_shape),
            opt_shape=(config.opt_batch, *image_shape),
            max_shape=(config.max_batch, *image_shape),
            dtype=torch.uint8,
        )
        return torch_tensorrt.dynamo.convert_exported_program_to_serialized_trt_engine(
            exported,
            arg_inputs=[inputs],
            use_explicit_typing=True,
            hardware_compatible=config.hardware_compatibility == "ampere_plus",
            version_compatible=config.version_compatible,
        )
    except Exception as error:  # torch.export's, torch-tensorrt's and TensorRT's own
        reason = (str(error).splitlines() or [""])[0]
        raise EngineError(
            f"engine {library.kind}: torch-tensorrt cannot compile the network: {type(error).__name__}: {reason}; "
            "use engine.frontend = 'onnx'"
        ) from error


def _import(library: Library) -> Any:
    project = "torch-tensorrt-rtx" if library.kind == "tensorrt-rtx" else "torch-tensorrt"
    try:
        import torch_tensorrt  # type: ignore[import-not-found,import-untyped,unused-ignore]  # optional
    except ImportError as error:
        if error.name == "torch_tensorrt":
            raise EngineError(
                f"engine {library.kind}: the package {project} is not installed; run `pip install {project}`, or "
                "use engine.frontend = 'onnx'"
            ) from error
        raise _no_driver(library, error) from error
    except Exception as error:  # it looks at the GPU when it is imported
        raise _no_driver(library, error) from error
    return torch_tensorrt


def _no_driver(library: Library, error: Exception) -> EngineError:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return EngineError(
        f"engine {library.kind}: torch-tensorrt cannot be imported here: {reason}; it wants an NVIDIA driver, so "
        "build on a machine with a GPU, or use engine.frontend = 'onnx'"
    )
