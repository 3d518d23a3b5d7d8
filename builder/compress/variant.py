"""A variant: what is done to the finetuned network before it is published, and in which order that makes sense."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar

from temper.builder.compress.cast import CastConfig
from temper.builder.compress.distil import DistilConfig
from temper.builder.compress.low_rank import LowRankConfig
from temper.builder.compress.prune import PruneConfig
from temper.builder.compress.quantize import QuantizeConfig
from temper.builder.compress.sparsify import SparsifyConfig

NETWORK_STEPS = ("prune", "low_rank", "sparsify", "distil")
"""They change the PyTorch network."""
GRAPH_STEPS = ("quantize", "cast")
"""They change its ONNX graph."""
# What comes later would undo, or cannot read, what comes earlier: a chain of small convolutions has no channels
# left to search, a decomposition fills the zeros of 2:4 again, and whatever follows Q/DQ would need new scales.
_ORDER = ("prune", "low_rank", "sparsify", "quantize", "cast")
_ORDER_RULE = (
    f"expected {', '.join(_ORDER)} in this order, each at most once; distil may follow any of the first three, "
    "but nothing but cast may follow quantize"
)


@dataclass(frozen=True, kw_only=True)
class CompressStage:
    """One step of a variant's compression; a table with exactly one key, for example `quantize`."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    prune: PruneConfig | None = None
    """Search for a smaller network inside the finetuned one."""
    low_rank: LowRankConfig | None = None
    """Replace large convolutions by chains of small ones."""
    sparsify: SparsifyConfig | None = None
    """Set two of every four weights to zero, as sparse tensor cores need it."""
    distil: DistilConfig | None = None
    """Let the uncompressed network teach the compressed one, to recover what an earlier step cost."""
    quantize: QuantizeConfig | None = None
    """Quantise weights and activations."""
    cast: CastConfig | None = None
    """Convert what is float32 to a half-precision type."""

    def __post_init__(self) -> None:
        """Checks that the step says what to do, and one thing only.

        Raises:
            ValueError: It does not.
        """
        given = [field.name for field in fields(self) if getattr(self, field.name) is not None]
        if len(given) != 1:
            found = " and ".join(given) or "nothing"
            raise ValueError(
                f"{given[-1] if given else 'quantize'}: got {found} in one step, expected exactly one of "
                f"{', '.join(field.name for field in fields(self))}, as in {{ cast = {{ precision = 'fp16' }} }}"
            )

    @property
    def name(self) -> str:
        """Which step it is."""
        return next(field.name for field in fields(self) if getattr(self, field.name) is not None)

    @property
    def config(self) -> Any:
        """The step's own config."""
        return getattr(self, self.name)


@dataclass(frozen=True, kw_only=True)
class VariantConfig:
    """One model to publish: how the finetuned network is compressed."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    name: str
    """Names the model, after the recipe's name and `_`."""
    compress: tuple[CompressStage, ...] = ()
    """The steps, in order; none is the float32 network."""
    ensemble: tuple[str, ...] = ()
    """Earlier variants of the recipe that answer together, with the mean of their logits; without any step."""
    min_agreement: float | None = None
    """Fail the build when the engine gives PyTorch's label on a smaller share of the test images, 0 to 1."""
    max_logit_diff: float | None = None
    """Fail the build when a logit of the engine is further from PyTorch's."""

    def __post_init__(self) -> None:
        """Checks the steps together.

        Raises:
            ValueError: They cannot follow one another, or a limit is out of its range.
        """
        if self.min_agreement is not None and not 0 <= self.min_agreement <= 1:
            raise ValueError(f"min_agreement: got {self.min_agreement}, expected a share from 0 to 1")
        if self.max_logit_diff is not None and not self.max_logit_diff > 0:
            raise ValueError(f"max_logit_diff: got {self.max_logit_diff}, expected a positive number")
        if self.ensemble:
            self._check_ensemble()
        _check_order([step.name for step in self.compress])
        if self.compress and self.compress[-1].cast is not None and self.compress[-1].cast.precision == "bf16":
            if any(step.quantize is not None for step in self.compress):
                # Its 8 bits round the scales themselves: an int8 network was right on 12 % of digits so.
                raise ValueError("compress: got cast to bf16 after quantize, expected fp16")

    def _check_ensemble(self) -> None:
        if len(set(self.ensemble)) < 2 or len(set(self.ensemble)) != len(self.ensemble):
            raise ValueError(f"ensemble: got {list(self.ensemble)}, expected two or more variants, each once")
        for name in ("compress", "min_agreement", "max_logit_diff"):
            if getattr(self, name) not in ((), None):
                raise ValueError(f"{name}: got it beside ensemble, expected it in the members' own variants")

    @property
    def is_sparse(self) -> bool:
        """True when weights are 2:4 sparse."""
        return any(step.name == "sparsify" for step in self.compress)

    @property
    def precision(self) -> str:
        """The type that most of it computes in: `fp32`, `fp16`, `bf16`, `int8` or `fp8`."""
        found = "fp32"
        for step in self.compress:
            if step.quantize is not None:
                return step.quantize.precision
            found = step.cast.precision if step.cast is not None else found
        return found

    def to_json(self) -> dict[str, Any]:
        """Returns what was asked for, as JSON: every step under its own key."""
        steps = [{step.name: asdict(step.config)} for step in self.compress]
        return {**asdict(self), "compress": steps}


def _check_order(names: list[str]) -> None:
    last = -1
    for position, name in enumerate(names):
        if name == "distil":
            if position == 0 or last > _ORDER.index("sparsify"):
                where = "first" if position == 0 else f"after {names[position - 1]}"
                raise ValueError(f"compress[{position}]: got distil {where}, {_ORDER_RULE}")
            continue
        rank = _ORDER.index(name)
        if rank <= last:
            what = "a second time" if name in names[:position] else f"after {_ORDER[last]}"
            raise ValueError(f"compress[{position}]: got {name} {what}, {_ORDER_RULE}")
        last = rank
