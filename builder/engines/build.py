"""Picks the kind of engine, builds it, and compares it with PyTorch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from temper.builder.engines.gpu import read_driver
from temper.builder.engines.kind import ENGINES, AutoConfig, BuildJob, EngineConfig, EngineKind
from temper.builder.errors import EngineError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import nn


@dataclass(frozen=True, kw_only=True)
class AgreementLimits:
    """How far an engine may be from PyTorch."""

    min_agreement: float | None = None
    """The smallest share of images on which it gives PyTorch's label, 0 to 1; None for no limit."""
    max_logit_diff: float | None = None
    """The largest difference of a logit; None for no limit."""


@dataclass(frozen=True, kw_only=True)
class PickedEngine:
    """What runs the variants of a recipe."""

    config: EngineConfig
    """Of the picked kind, never `auto`."""
    why: str
    """Why that one, in a few words."""

    @property
    def kind(self) -> EngineKind[Any]:
        """The kind."""
        return ENGINES.get(self.config.kind)


def pick_engine(config: EngineConfig) -> PickedEngine:
    """Decides what runs the variants.

    Args:
        config: Of the wanted kind, or `auto`.

    Raises:
        EngineError: The library of the kind is not installed, or does not know what the config asks for.
        PluginError: Another package's kind does not load.
    """
    if not isinstance(config, AutoConfig):
        picked = PickedEngine(config=config, why="asked for in the recipe")
        picked.kind.require(config)
        return picked
    driver, no_gpu = read_driver()
    ranked = [kind for kind in ENGINES.all().values() if kind.rank is not None]
    *others, last = sorted(ranked, key=lambda kind: kind.rank or 0)
    refusals = []
    for kind in others:
        if kind.device == "gpu" and driver is None:
            continue
        reason = kind.why_not_run()
        if reason is None:
            capability = driver.gpus[0].compute_capability if driver is not None else ""
            on = f"a GPU of compute capability {capability}" if kind.device == "gpu" else f"{kind.title} runs here"
            return PickedEngine(config=config.become(kind.config), why=on)
        refusals.append(reason)
    # The last one is taken whatever it would say: there is no other, and it tells when it is used.
    why = f"the CPU, as {' and '.join(refusals)}" if refusals else "no NVIDIA GPU found, so the CPU"
    picked = PickedEngine(config=config.become(last.config), why=why)
    try:
        last.require(picked.config)
    except EngineError as error:
        raise EngineError(f"engine auto: {' and '.join(refusals) or no_gpu}; and {error}") from error
    return picked


def build_engine(
    onnx_path: Path,
    folder: Path,
    config: EngineConfig,
    images: NDArray[np.uint8] | None = None,
    *,
    reference: NDArray[np.float32] | None = None,
    limits: AgreementLimits | None = None,
    precision: str = "fp32",
    sparse_weights: bool = False,
    timing_cache: Path | None = None,
    module: nn.Module | None = None,
) -> dict[str, Any]:
    """Builds the engine of a graph, and loads, runs and inspects it once where that is possible here.

    Args:
        onnx_path: The graph, float32, half precision or Q/DQ.
        folder: Receives the engine file.
        config: Of the wanted kind, from `pick_engine`: batch sizes, precision, portability, limits.
        images: uint8 [N, H, W, 3] to run it on, where this machine can.
        reference: PyTorch's logits of the images, float32 [N, classes].
        limits: How far the engine may be from them.
        precision: The variant's, `fp32`, `fp16`, `bf16`, `int8` or `fp8`: what the engine's audit expects.
        sparse_weights: Sparse kernels may be used; the weights must be 2:4.
        timing_cache: TensorRT's timings, read when there and written back; builds get shorter and more alike.
        module: Where the kind wants one: uint8 [N, H, W, 3] to logits, with its quantisers.

    Returns:
        kind, file (in `folder`), size_bytes, and what the kind adds.

    Raises:
        EngineError: The library is missing, it refuses the graph (names the node where the library does), or a
            limit is passed.
    """
    kind = ENGINES.get(config.kind)
    kind.require(config)
    job = BuildJob(
        onnx_path=onnx_path,
        folder=folder,
        config=config,
        images=images,
        precision=precision,
        sparse_weights=sparse_weights,
        timing_cache=timing_cache,
        module=module,
    )
    info, logits = kind.build(job)
    if logits is not None and reference is not None:
        info["against_pytorch"] = _compare(kind.name, reference, logits, limits or AgreementLimits())
    size_bytes = (folder / kind.file).stat().st_size
    return {"kind": kind.name, "file": kind.file, "size_bytes": size_bytes, **info}


def _compare(
    kind: str, reference: NDArray[np.float32], logits: NDArray[np.float32], limits: AgreementLimits
) -> dict[str, Any]:
    from temper.builder.network.export import compare_logits

    figures: dict[str, Any] = compare_logits(reference, logits)
    agreement, diff = figures["agreement"], figures["max_abs_diff"]
    if limits.min_agreement is not None and agreement < limits.min_agreement:
        raise EngineError(
            f"engine {kind}: gives PyTorch's label on {100 * agreement:.1f} % of {len(logits)} images, expected "
            f"at least {100 * limits.min_agreement:.1f} % (min_agreement); do not serve it"
        )
    if limits.max_logit_diff is not None and not diff <= limits.max_logit_diff:
        raise EngineError(
            f"engine {kind}: a logit differs from PyTorch's by {diff:.3g}, expected at most "
            f"{limits.max_logit_diff:g} (max_logit_diff); do not serve it"
        )
    return figures
