"""Low rank: a large convolution becomes a chain of small ones, where that is cheaper.

Two chains for a k x k convolution:

- channel SVD: k x k to `rank` channels, then 1 x 1 to all (Zhang et al., "Accelerating Very Deep Convolutional
  Networks for Classification and Detection", TPAMI 2016);
- Tucker-2: 1 x 1 to `rank_in` channels, k x k to `rank_out`, 1 x 1 to all (Kim et al., "Compression of Deep
  Convolutional Neural Networks for Fast and Low Power Mobile Applications", ICLR 2016).

What is kept is not what is large in the weights but what the logits feel: the channels' covariance on training
images, weighted by the gradients of the logits (`moments.py`). The mean that the chain loses comes back as batch
normalisation is measured anew. The chains themselves are in `chains.py`.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from temper.builder.compress.step import NetworkStep, StepContext
from temper.builder.errors import CompressError

if TYPE_CHECKING:
    from torch import nn

    from temper.builder.compress.chains import Choice

_MIN_INPUTS = 16
_BISECTIONS = 60


@dataclass(frozen=True, kw_only=True)
class LowRankConfig:
    """How convolutions are replaced: exactly one of `energy` and `flops` says how far."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    method: Literal["svd", "tucker"] = "svd"
    """The chain of a k x k convolution; a 1 x 1 convolution is always cut in two by SVD."""
    energy: float | None = None
    """Share of every layer's squared singular values that its chain keeps at least, more than 0 to 1."""
    flops: float | None = None
    """Share of the network's FLOPs that may be left, more than 0 to 1; ranks are chosen over the whole network."""
    multiple: int = 32
    """Ranks are multiples of this: int8 tensor-core kernels pad their channels to 32, so a rank between two costs
    as much as the larger one."""
    num_images: int = 512
    """Training images that the covariances are measured on, at least 2."""

    def __post_init__(self) -> None:
        """Checks every field, and that there is one budget.

        Raises:
            ValueError: A field is out of its range, or there is no budget or both.
        """
        if self.method not in ("svd", "tucker"):
            raise ValueError(f"method: got {self.method!r}, expected 'svd' or 'tucker'")
        if (self.energy is None) == (self.flops is None):
            found = "neither" if self.flops is None else "both"
            raise ValueError(f"flops: got {found} of energy and flops, expected one of them")
        for name in ("energy", "flops"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= 1:
                raise ValueError(f"{name}: got {value}, expected a share of more than 0 and at most 1")
        for name, low in (("multiple", 1), ("num_images", 2)):
            if getattr(self, name) < low:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected {low} or more")


class LowRank(NetworkStep[LowRankConfig]):
    """Replaces large convolutions by chains of small ones."""

    name = "low_rank"
    about = "Replace large convolutions by chains of small ones."
    config = LowRankConfig
    place = 20
    budgets = ("flops", "energy")

    def libraries(self, config: LowRankConfig) -> tuple[str, ...]:
        """Linear algebra alone decides."""
        return ("torch",)

    def run(
        self, network: nn.Module, config: LowRankConfig, context: StepContext
    ) -> tuple[nn.Module, dict[str, Any]]:
        """See `run_low_rank`."""
        return run_low_rank(network, config, context)


STEP = LowRank()


def run_low_rank(
    network: nn.Module, config: LowRankConfig, context: StepContext
) -> tuple[nn.Module, dict[str, Any]]:
    """Replaces convolutions by chains and measures batch normalisation anew.

    Args:
        network: One of torchvision's ResNets: float32 [N, 3, H, W], normalised. It stays as it is.
        config: The chain and the budget.
        context: The step's data and surroundings.

    Returns:
        The network with chains, on the CPU in evaluation mode, and: method, what `change_figures` counts, layers
        (per chain: ranks, kept energy, flops_before, flops), left_alone (per other convolution the reason),
        seconds, note.

    Raises:
        CompressError: The budget cannot be met; names the smallest share that can.
    """
    from temper.builder.compress.calibrate import change_figures

    started = time.monotonic()
    chosen: dict[str, Any] = {}
    left_alone: dict[str, str] = {}
    if config.energy == 1 or config.flops == 1:
        changed = copy.deepcopy(network).cpu().eval()
        note = f"{'energy' if config.flops is None else 'flops'} = 1 leaves nothing to do"
    else:
        changed, chosen, left_alone = _decompose(network, config, context)
        note = f"{len(chosen)} layers became chains" if chosen else "no layer's chain is cheaper within the budget"
    figures = change_figures(network, changed, context)
    return changed, {
        "method": config.method,
        **figures,
        "layers": chosen,
        "left_alone": left_alone,
        "seconds": round(time.monotonic() - started, 2),
        "note": f"{note}, {100 * figures['flops'] / figures['flops_before']:.0f} % of the FLOPs",
    }


def _decompose(
    network: nn.Module, config: LowRankConfig, context: StepContext
) -> tuple[nn.Module, dict[str, Any], dict[str, str]]:
    from temper.builder.compress.calibrate import recalibrate, training_batches
    from temper.builder.compress.chains import Decomposition
    from temper.builder.compress.moments import measure_moments
    from temper.builder.network.files import count_layers
    from temper.builder.network.train import pick_device

    left_alone = _left_alone(network)
    names = [name for name in _convs(network) if name not in left_alone]
    network = copy.deepcopy(network).to(pick_device(context.train_config)).eval()
    batches = training_batches(context, config.num_images)
    moments = measure_moments(network, names, batches, context.progress, seed=context.seed)
    flops = count_layers(network, context.image_size)
    cuts = {name: Decomposition(network.get_submodule(name), moments[name]) for name in names}
    choices: dict[str, list[Choice]] = {}
    for name, cut in cuts.items():
        choices[name] = cut.list_choices(flops[name], config.method, config.multiple)
        if not choices[name]:
            left_alone[name] = f"a chain with ranks in multiples of {config.multiple} would cost more"
    picked = _pick(choices, flops, config)
    layers: dict[str, Any] = {}
    for name, options in choices.items():
        choice = picked.get(name)
        if choice is not None:
            network.set_submodule(name, cuts[name].build_chain(choice.ranks))
            kept = {"ranks": list(choice.ranks), "energy": choice.energy}
            layers[name] = {**kept, "flops_before": flops[name], "flops": choice.flops}
        elif options:
            left_alone[name] = "its chain would lose more than others for the same FLOPs"
            if config.energy is not None:
                left_alone[name] = f"a chain that keeps {config.energy:g} of its energy would cost more"
    recalibrate(network, training_batches(context, len(context.train)))
    return network.cpu().eval(), layers, left_alone


def _convs(network: nn.Module) -> dict[str, nn.Conv2d]:
    from torch import nn

    return {name: module for name, module in network.named_modules() if isinstance(module, nn.Conv2d)}


def _left_alone(network: nn.Module) -> dict[str, str]:
    """Returns the convolutions that are not even measured, and why."""
    from temper.builder.network.files import is_chain

    reasons = {}
    for name, conv in _convs(network).items():
        if is_chain(network.get_submodule(name.rpartition(".")[0])):
            reasons[name] = "part of a chain already"
        elif conv.groups > 1:
            reasons[name] = f"grouped: each of its {conv.groups} groups is small already"
        elif conv.in_channels < _MIN_INPUTS:
            # Engines have kernels of their own for it, with the preprocessing fused.
            reasons[name] = f"the stem: {conv.in_channels} input channels leave little to cut"
    return reasons


def _pick(choices: dict[str, list[Choice]], flops: dict[str, int], config: LowRankConfig) -> dict[str, Choice]:
    if config.energy is None:
        return _meet_flops(choices, flops, config)
    picked = {}
    for name, options in choices.items():
        enough = [choice for choice in options if choice.energy >= config.energy]
        if enough:
            picked[name] = min(enough, key=lambda choice: choice.flops)
    return picked


def _meet_flops(
    choices: dict[str, list[Choice]], flops: dict[str, int], config: LowRankConfig
) -> dict[str, Choice]:
    """Picks the ranks that lose the least within a budget of FLOPs.

    A price per FLOP makes the layers independent of each other (Lagrange); it is found by bisection, and what is
    then left of the budget goes where it helps most.
    """
    assert config.flops is not None, "checked in the config"
    share, multiple, total = config.flops, config.multiple, sum(flops.values())
    budget = share * total
    fixed = total - sum(flops[name] for name in choices)

    def cost(picked: dict[str, Choice]) -> int:
        return fixed + sum(picked[name].flops if name in picked else flops[name] for name in choices)

    smallest = cost({name: min(options, key=_flops) for name, options in choices.items() if options})
    if smallest > budget:
        reachable = math.ceil(1000 * smallest / total) / 1000
        raise CompressError(
            f"low_rank: flops: got {share:g}, but with every chain at its smallest {reachable:g} of the FLOPs are "
            f"left; ask for that or more, make multiple (now {multiple}) smaller, or prune first"
        )
    low, high = -100.0, 100.0  # of the price's logarithm
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        if cost(_at_price(choices, flops, math.exp(middle))) > budget:
            low = middle
        else:
            high = middle
    return _spend(choices, flops, _at_price(choices, flops, math.exp(high)), budget, cost)


def _flops(choice: Choice) -> int:
    return choice.flops


def _at_price(choices: dict[str, list[Choice]], flops: dict[str, int], price: float) -> dict[str, Choice]:
    picked = {}
    for name, options in choices.items():
        if options:
            best = min(options, key=lambda choice: choice.loss + price * choice.flops)
            if best.loss + price * best.flops < price * flops[name]:
                picked[name] = best
    return picked


def _spend(
    choices: dict[str, list[Choice]],
    flops: dict[str, int],
    picked: dict[str, Choice],
    budget: float,
    cost: Callable[[dict[str, Choice]], int],
) -> dict[str, Choice]:
    """Raises ranks, the best gain per FLOP first, while the budget has room."""
    while True:
        room = budget - cost(picked)
        best: tuple[float, str, Choice | None] | None = None
        for name, now in picked.items():
            for gain, more, choice in _upgrades(now, choices[name], flops[name]):
                if more <= room and (best is None or gain / more > best[0]):
                    best = (gain / more, name, choice)
        if best is None:
            return picked
        _, name, choice = best
        picked = {**picked, name: choice} if choice is not None else {k: v for k, v in picked.items() if k != name}


def _upgrades(now: Choice, options: Sequence[Choice], whole: int) -> list[tuple[float, int, Choice | None]]:
    """Lists (loss saved, FLOPs added, choice) of what is better than a choice; None is the layer as it was."""
    better: list[tuple[float, int, Choice | None]] = [
        (now.loss - choice.loss, choice.flops - now.flops, choice)
        for choice in options
        if choice.loss < now.loss and choice.flops > now.flops
    ]
    return [*better, (now.loss, whole - now.flops, None)]
