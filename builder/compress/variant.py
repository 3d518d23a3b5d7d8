"""A variant: what is done to the finetuned network before it is published, and in which order that makes sense."""

from __future__ import annotations

import dataclasses
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar

from temper.builder.compress.step import REGISTRY, Step, rank
from temper.builder.publish.defence import Defence


@dataclass(frozen=True, kw_only=True)
class _Choice:
    """One step of a variant's compression; a table with exactly one key, for example `quantize`."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

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
    def step(self) -> Step[Any]:
        """The step."""
        return REGISTRY.get(self.name)

    @property
    def config(self) -> Any:
        """Its config."""
        return getattr(self, self.name)


if TYPE_CHECKING:

    class ChosenStep(_Choice):
        """A step by its name, with its config: `ChosenStep(quantize=QuantizeConfig())`."""

        def __init__(self, **step: Any) -> None:
            """Takes one step."""
else:
    # A field for every step there is, so that whatever reads the recipe's dataclasses knows them all.
    ChosenStep = dataclasses.make_dataclass(
        "ChosenStep",
        [
            (name, step.config | None, dataclasses.field(default=None, metadata={"doc": step.about}))
            for name, step in REGISTRY.all().items()
        ],
        bases=(_Choice,),
        namespace={"__doc__": _Choice.__doc__, "__module__": __name__},
        frozen=True,
        kw_only=True,
    )


@dataclass(frozen=True, kw_only=True)
class VariantConfig:
    """One model to publish: how the finetuned network is compressed."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    name: str
    """Names the model, after the recipe's name and `_`."""
    compress: tuple[ChosenStep, ...] = ()
    """The steps, in order; none is the float32 network."""
    ensemble: tuple[str, ...] = ()
    """Earlier variants of the recipe that answer together, with the mean of their logits; without any step. One
    alone with `defend`."""
    defend: tuple[Defence, ...] = ()
    """What every image goes through before the variants of `ensemble` see it, in order."""
    against: str | None = None
    """The earlier variant that it is compared with; the recipe's first one when not given."""
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
        if self.defend and not self.ensemble:
            raise ValueError(
                "defend: got it without ensemble, expected the variant that it stands before, "
                'as in ensemble = ["int8"]'
            )
        if self.ensemble:
            self._check_ensemble()
        _check_order([chosen.step for chosen in self.compress])
        pairs = [(chosen.step, chosen.config) for chosen in self.compress]
        for position, (step, config) in enumerate(pairs):
            step.check_after(config, pairs[:position])

    def _check_ensemble(self) -> None:
        if len(set(self.ensemble)) < (1 if self.defend else 2) or len(set(self.ensemble)) != len(self.ensemble):
            wanted = "one or more variants" if self.defend else "two or more variants"
            hint = "" if self.defend else ", or defend beside one"
            raise ValueError(f"ensemble: got {list(self.ensemble)}, expected {wanted}, each once{hint}")
        for name in ("compress", "min_agreement", "max_logit_diff"):
            if getattr(self, name) not in ((), None):
                raise ValueError(f"{name}: got it beside ensemble, expected it in the members' own variants")

    @property
    def is_sparse(self) -> bool:
        """True when weights are 2:4 sparse."""
        return any(chosen.step.sparse_weights for chosen in self.compress)

    @property
    def is_random(self) -> bool:
        """True when it answers one image differently each time."""
        return any(one.is_random for one in self.defend)

    @property
    def precision(self) -> str:
        """The type that most of it computes in: `fp32`, `fp16`, `bf16`, `int8` or `fp8`."""
        # The first that says so: a later one changes what this one left in float32.
        found = (chosen.step.precision(chosen.config) for chosen in self.compress)
        return next((precision for precision in found if precision is not None), "fp32")

    def to_json(self) -> dict[str, Any]:
        """Returns what was asked for, as JSON: every step under its own key."""
        steps = [{chosen.name: asdict(chosen.config)} for chosen in self.compress]
        return {**asdict(self), "compress": steps, "defend": [one.to_json() for one in self.defend]}


def _check_order(steps: list[Step[Any]]) -> None:
    """Refuses an order in which what comes later would undo, or could not read, what comes earlier.

    A chain of small convolutions has no channels left to search, a decomposition fills the zeros of 2:4 again, and
    whatever follows Q/DQ would need new scales.
    """
    for position, step in enumerate(steps):
        earlier = steps[:position]
        if step.repeats and not earlier and not step.may_begin:
            raise ValueError(f"compress[{position}]: got {step.name} first, {_order_rule()}")
        if not step.repeats and step in earlier:
            raise ValueError(f"compress[{position}]: got {step.name} a second time, {_order_rule()}")
        if step.repeats:
            later = [each for each in earlier if each.works_on != step.works_on]
        else:
            later = [each for each in earlier if not each.repeats and rank(each) > rank(step)]
        if later:
            raise ValueError(f"compress[{position}]: got {step.name} after {later[-1].name}, {_order_rule()}")


def _order_rule() -> str:
    steps = sorted(REGISTRY.all().values(), key=rank)
    ordered = ", ".join(step.name for step in steps if not step.repeats)
    rule = f"expected {ordered} in this order, each at most once"
    for step in steps:
        if step.repeats:
            where = "stand before or after" if step.may_begin else "follow"
            rule += f"; {step.name} may {where} any that changes the {step.works_on}"
    return rule
