"""Pruning: ModelOpt's FastNAS narrows the layers until a budget of FLOPs, parameters or latency is met."""

from __future__ import annotations

import copy
import json
import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from temper.builder.compress.step import Need, NetworkStep, StepContext
from temper.builder.errors import CompressError

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from temper.builder.engines.latency import CompareLatency

_BUDGETS = ("flops", "params", "latency")
_LATENCY_FILE = "latency.json"
_SEARCH_FILE = "search.pth"


@dataclass(frozen=True, kw_only=True)
class PruneConfig:
    """How far a network is narrowed: exactly one of `flops`, `params` and `latency`."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    method: Literal["fastnas"] = "fastnas"
    """ModelOpt's search."""
    flops: float | None = None
    """Share of the FLOPs that may be left, more than 0 to 1."""
    params: float | None = None
    """Share of the parameters that may be left, more than 0 to 1."""
    latency: float | None = None
    """Share of the latency at batch 1 in the engine that will serve that may be left, more than 0 to 1."""
    divisor: int = 32
    """Widths are multiples of this: int8 tensor-core kernels pad their channels to 32."""
    score: Literal["expected_accuracy", "accuracy"] = "expected_accuracy"
    """What is kept high on images held out of the training split: the mean probability of the right label (the
    accuracy of an answer drawn from the probabilities), or the share of right answers. The first also tells apart
    candidates that are right on the same few hundred images."""
    num_images: int = 256
    """Training images that batch normalisation is measured on anew for every candidate; at least 2."""

    def __post_init__(self) -> None:
        """Checks every field, and that there is one budget.

        Raises:
            ValueError: A field is out of its range, or there is no budget or more than one.
        """
        if self.method != "fastnas":
            raise ValueError(f"method: got {self.method!r}, expected 'fastnas'")
        if self.score not in ("expected_accuracy", "accuracy"):
            raise ValueError(f"score: got {self.score!r}, expected 'expected_accuracy' or 'accuracy'")
        given = [name for name in _BUDGETS if getattr(self, name) is not None]
        if len(given) != 1:
            found = " and ".join(given) or "none"
            raise ValueError(
                f"{given[-1] if given else 'flops'}: got {found} of {', '.join(_BUDGETS)}, expected one"
            )
        if not 0 < self.share <= 1:
            raise ValueError(f"{self.budget}: got {self.share}, expected a share of more than 0 and at most 1")
        if self.divisor < 1:
            raise ValueError(f"divisor: got {self.divisor}, expected 1 or more")
        if self.num_images < 2:
            raise ValueError(f"num_images: got {self.num_images}, expected 2 or more")

    @property
    def budget(self) -> Literal["flops", "params", "latency"]:
        """Which budget is given."""
        return next(name for name in ("flops", "params", "latency") if getattr(self, name) is not None)

    @property
    def share(self) -> float:
        """The budget: the share of the unpruned network's that may be left."""
        value: float = getattr(self, self.budget)
        return value


class Prune(NetworkStep[PruneConfig]):
    """Searches for a smaller network inside the finetuned one."""

    name = "prune"
    about = "Search for a smaller network inside the finetuned one."
    config = PruneConfig
    place = 10
    budgets = _BUDGETS
    code = ("temper.builder.compress.fastnas",)

    def needs(self, config: PruneConfig) -> frozenset[Need]:
        """A search by latency finds another network in another engine."""
        return frozenset() if config.latency is None else frozenset({"engine"})

    def run(
        self, network: nn.Module, config: PruneConfig, context: StepContext
    ) -> tuple[nn.Module, dict[str, Any]]:
        """See `run_prune`."""
        return run_prune(network, config, context)


STEP = Prune()


def run_prune(network: nn.Module, config: PruneConfig, context: StepContext) -> tuple[nn.Module, dict[str, Any]]:
    """Prunes a network; the weights that stay keep their values, and batch normalisation is measured anew.

    Candidates are scored on `context.held_out`. What a killed search left in `context.folder` is used, with the
    same result as without the kill; for `latency` so far as the engine's times had been taken.

    Args:
        network: One of torchvision's ResNets: float32 [N, 3, H, W], normalised. It stays as it is.
        config: The budget.
        context: The step's data and surroundings; for `latency` with what times two networks.

    Returns:
        The pruned network, on the CPU in evaluation mode, and: method, budget, share (wanted), reached (share that
        is left), what `change_figures` counts, widths (of every convolution that changed, before and after),
        seconds, note; with `latency` also latency_ms_before, latency_ms.

    Raises:
        CompressError: The budget cannot be met (names the smallest that can), there is no held-out image, or
            `latency` has nothing to be measured in.
    """
    from temper.builder.compress.calibrate import change_figures

    started = time.monotonic()
    _check(config, context)
    cost = _Cost(network, config, context)
    if config.share == 1:
        pruned, note = copy.deepcopy(network).cpu().eval(), f"{config.budget} = 1 leaves nothing to prune"
    else:
        pruned = _search(network, config, context, cost)
        note = f"{cost.share_of(pruned):.2f} of the {cost.unit}"
    reached = cost.share_of(pruned) if config.share < 1 else 1.0
    measured = cost.figures(pruned)
    _clean(context.folder)
    return pruned, {
        "method": config.method,
        "budget": config.budget,
        "share": config.share,
        "reached": reached,
        **change_figures(network, pruned, context),
        **measured,
        "widths": _changed_widths(network, pruned),
        "seconds": round(time.monotonic() - started, 2),
        "note": note,
    }


class _Cost:
    """What the budget is about, of one network after another."""

    def __init__(self, network: nn.Module, config: PruneConfig, context: StepContext) -> None:
        self._network = network
        self._config = config
        self._context = context
        self._compare: CompareLatency | None = context.compare_latency
        self._file = context.folder / _LATENCY_FILE
        self.unit = {"flops": "FLOPs", "params": "parameters", "latency": "latency"}[config.budget]

    def share_of(self, candidate: nn.Module) -> float:
        """Returns what a network costs, as a share of the unpruned one."""
        if self._config.budget == "latency":
            latency, original = self._latencies(candidate)
            return latency / original
        field = {"flops": "flops", "params": "num_parameters"}[self._config.budget]
        return float(self._count(candidate, field) / self._count(self._network, field))

    def figures(self, pruned: nn.Module) -> dict[str, float]:
        """Returns the measured latencies, when they are the budget."""
        if self._config.budget != "latency" or self._config.share == 1:
            return {}
        latency, original = self._latencies(pruned)
        return {"latency_ms_before": original, "latency_ms": latency}

    def _count(self, network: nn.Module, field: str) -> int:
        from temper.builder.network.files import count_network

        value: int = getattr(count_network(network, self._context.image_size), field)
        return value

    def _latencies(self, candidate: nn.Module) -> tuple[float, float]:
        """Times a candidate once; a resumed search takes the times of the run before, as they never repeat."""
        assert self._compare is not None, "checked before"
        known: dict[str, tuple[float, float]] = {}
        if self._file.exists():
            known = json.loads(self._file.read_text())
        key = " ".join(str(width) for width in _widths(candidate).values())
        if key not in known:
            known[key] = self._compare(_with_any_weights(copy.deepcopy(candidate)), self._network)
            new = self._file.with_suffix(".new")
            new.write_text(json.dumps(known))
            new.replace(self._file)
        latency, original = known[key]
        return latency, original


def _check(config: PruneConfig, context: StepContext) -> None:
    if len(context.held_out[1]) == 0:
        raise CompressError("prune: got no held-out image to score candidates with, expected at least one")
    if config.budget == "latency" and context.compare_latency is None:
        raise CompressError("prune: latency: there is no engine to measure it in; give flops or params")


def _search(network: nn.Module, config: PruneConfig, context: StepContext, cost: _Cost) -> nn.Module:
    from temper.builder.compress.calibrate import (
        expected_accuracy,
        held_out_accuracy,
        recalibrate,
        training_batches,
    )
    from temper.builder.network.train import pick_device
    from temper.builder.quiet import quiet_modelopt

    with quiet_modelopt():  # ModelOpt warns when it is imported, too
        from temper.builder.compress.fastnas import SearchSpace

    device = pick_device(context.train_config)
    space = SearchSpace(copy.deepcopy(network).to(device), config.divisor)
    smallest = cost.share_of(space.narrowest())
    if smallest > config.share:
        raise CompressError(
            f"prune: {config.budget}: got {config.share:g}, but with every layer at its narrowest "
            f"{math.ceil(1000 * smallest) / 1000:g} of the {cost.unit} are left; ask for that or more, or make "
            f"divisor (now {config.divisor}) smaller"
        )
    batches = training_batches(context, config.num_images)
    rate = held_out_accuracy if config.score == "accuracy" else expected_accuracy

    def score(candidate: nn.Module) -> float:
        recalibrate(candidate, batches)
        return rate(candidate, context)

    checkpoint = context.folder / _SEARCH_FILE
    pruned = space.search(score, cost.share_of, config.share, checkpoint, context.progress)
    recalibrate(pruned, training_batches(context, len(context.train)))
    return pruned.cpu().eval()


def _clean(folder: Path) -> None:
    """Removes what only an interrupted search needs."""
    for name in (_LATENCY_FILE, _SEARCH_FILE):
        (folder / name).unlink(missing_ok=True)


def _widths(network: nn.Module) -> dict[str, int]:
    """Returns the number of output channels of every convolution."""
    from torch import nn

    return {name: module.out_channels for name, module in network.named_modules() if isinstance(module, nn.Conv2d)}


def _changed_widths(before: nn.Module, after: nn.Module) -> dict[str, list[int]]:
    new = _widths(after)
    return {name: [old, new[name]] for name, old in _widths(before).items() if new[name] != old}


def _with_any_weights(network: nn.Module) -> nn.Module:
    """Gives a network on "meta" weights to be timed with: denormal numbers would make kernels far slower."""
    import torch
    from torch import nn

    generator = torch.Generator().manual_seed(0)
    network = network.to_empty(device="cpu")
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.reset_parameters()
            elif isinstance(module, nn.Conv2d | nn.Linear):
                for weight in module.parameters(recurse=False):
                    weight.normal_(0, 0.05, generator=generator)
    return network.eval()
