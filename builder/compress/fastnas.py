"""ModelOpt's FastNAS: what narrowing each layer costs, and the widths that a budget asks for.

FastNAS narrows one layer at a time, scores the network, and so gets a table of what every width of every layer
costs in score. One threshold on that cost then decides all widths at once; the search is a bisection of the
threshold for the budget. The table is what takes long: it is saved after every layer, and an interrupted search
goes on from there.
"""

from __future__ import annotations

import copy
import os
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import modelopt.torch.nas as mtn  # type: ignore[import-untyped]  # ships none
import modelopt.torch.nas.algorithms as mtn_algorithms  # type: ignore[import-untyped]
import torch
from modelopt.torch.nas.utils import no_modelopt_patches, sample  # type: ignore[import-untyped]
from modelopt.torch.prune.fastnas import BinarySearcher  # type: ignore[import-untyped]
from modelopt.torch.prune.pruning import PruneModeRegistry  # type: ignore[import-untyped]
from modelopt.torch.utils import safe_load  # type: ignore[import-untyped]
from torch import nn

from temper.builder.quiet import quiet_modelopt

Measure = Callable[[nn.Module], float]
Progress = Callable[[int, int], None]


class SearchSpace:
    """A network whose layers can be narrowed."""

    def __init__(self, network: nn.Module, divisor: int) -> None:
        """Takes a network; it becomes the search space and must not be used otherwise from here on.

        Args:
            network: One of torchvision's ResNets, on any device, contiguous.
            divisor: Widths are multiples of it, or the layer's own.
        """
        self.divisor = divisor
        self._plain = copy.deepcopy(network).to("meta")
        rules = {
            "nn.Conv2d": {"channels_ratio": None, "kernel_size": (), "channel_divisor": divisor},
            "nn.BatchNorm2d": {"features_ratio": None, "feature_divisor": divisor},
            "nn.Linear": {"features_ratio": None, "feature_divisor": divisor},
        }
        mode = [("fastnas", {name: {"*": rule} for name, rule in rules.items()})]
        with quiet_modelopt():
            self._dynamic = mtn.convert(network, mode, registry=PruneModeRegistry)

    def narrowest(self) -> nn.Module:
        """Returns a plain network with every layer as narrow as it can be, on "meta": it has sizes only."""
        with quiet_modelopt(), no_modelopt_patches():
            sample(self._dynamic, min)
            narrowest = self._resized()
            sample(self._dynamic, max)
        return narrowest

    def search(
        self, score: Measure, measure: Measure, limit: float, checkpoint: Path, progress: Progress
    ) -> nn.Module:
        """Searches the widths, and ends the use of this space.

        Args:
            score: Rates a network; larger is better. It may change the running statistics of batch normalisation.
            measure: Returns what the budget is about, for a plain network on "meta": it has sizes only.
            limit: The budget.
            checkpoint: The file that the search is saved in; it ends in `.pth`.
            progress: Called with (widths scored, widths in all).

        Returns:
            A plain network within the budget.
        """
        searcher = _Searcher()
        with quiet_modelopt(), _constraint(type(self._dynamic), lambda: measure(self._resized())):
            config = {
                "score_func": _Counted(score, searcher, progress),
                "checkpoint": str(checkpoint),
            }
            searcher.search(self._dynamic, {"flops": limit}, torch.zeros(()), config)
            exported = mtn.export(self._dynamic)
            found = self._resized()
            found.load_state_dict(exported.state_dict(), assign=True)
        return found

    def _resized(self) -> nn.Module:
        """Returns a plain network with the widths that are selected now, on "meta"."""
        resized = copy.deepcopy(self._plain)
        with torch.device("meta"):
            for name, module in self._plain.named_modules():
                layer = _resize(module, self._dynamic.get_submodule(name))
                if layer is not None:
                    resized.set_submodule(name, layer)
        return resized.eval()


def _resize(plain: nn.Module, dynamic: Any) -> nn.Module | None:
    """Returns a new layer of the dynamic one's present sizes, or None for a module without weights."""
    if isinstance(plain, nn.Conv2d):
        return nn.Conv2d(
            dynamic.in_channels,
            dynamic.out_channels,
            plain.kernel_size,  # type: ignore[arg-type]  # its stub allows any length
            stride=plain.stride,  # type: ignore[arg-type]
            padding=plain.padding,  # type: ignore[arg-type]
            dilation=plain.dilation,  # type: ignore[arg-type]
            groups=dynamic.groups,
            bias=plain.bias is not None,
        )
    if isinstance(plain, nn.BatchNorm2d):
        return nn.BatchNorm2d(dynamic.num_features, eps=plain.eps, momentum=plain.momentum)
    if isinstance(plain, nn.Linear):
        return nn.Linear(dynamic.in_features, dynamic.out_features, bias=plain.bias is not None)
    return None


class _Searcher(BinarySearcher):  # type: ignore[misc]  # untyped
    """FastNAS's searcher, whose checkpoint survives being killed while it is written."""

    def before_search(self) -> None:
        super().before_search()
        # Its bisection only comes close to the largest threshold, so the narrowest network would never be tried,
        # and a budget that only this one meets would be missed. Now it is the first candidate.
        self.max_degrade += self.max_degrade - self.min_degrade + 1e-4

    def save_search_checkpoint(self, verbose: bool = False) -> None:
        path = self.config["checkpoint"]
        self.config["checkpoint"] = f"{os.path.splitext(path)[0]}.new.pth"
        try:
            super().save_search_checkpoint(verbose)
            os.replace(self.config["checkpoint"], path)
        finally:
            self.config["checkpoint"] = path

    def load_search_checkpoint(self) -> bool:
        path = Path(self.config["checkpoint"])
        try:
            safe_load(path)
        except FileNotFoundError:
            return False
        except (RuntimeError, EOFError, pickle.UnpicklingError):
            path.unlink()  # cut off by a crash of the machine: from the start, then
            return False
        loaded: bool = super().load_search_checkpoint()
        return loaded

    def num_choices(self) -> int:
        """The widths of all layers together."""
        return sum(len(parameter.choices) for parameter in self._get_binary_search_hps().values())


class _Counted:
    """A score function that reports how far the table is."""

    def __init__(self, score: Measure, searcher: _Searcher, progress: Progress) -> None:
        self._score = score
        self._searcher = searcher
        self._progress = progress
        self._total: int | None = None
        self._layer = (-1, 0)

    def __call__(self, network: nn.Module) -> float:
        done = self._searcher.sensitivity_map
        num_layers, num_scored = self._layer
        self._layer = (len(done), num_scored + 1 if num_layers == len(done) else 0)
        if self._total is None:
            self._total = self._searcher.num_choices()
        self._progress(sum(len(scores) for scores in done.values()) + self._layer[1], self._total)
        with no_modelopt_patches():  # they would measure the running statistics as well
            return self._score(network)


@contextmanager
def _constraint(network_type: type[nn.Module], measure: Callable[[], float]) -> Iterator[None]:
    """Makes FastNAS's constraint "flops" the result of a function of ours, by its registry for plugins."""

    class Constraint(mtn_algorithms.ConstraintsFunc):  # type: ignore[misc]  # untyped
        @property
        def constraint_eval_funcs(self) -> dict[str, Callable[[Any], float]]:
            return {"flops": lambda _: measure()}

        def evaluate_constraints(self) -> tuple[bool, dict[str, float]]:
            value = measure()
            return value <= self.limits["flops"][1], {"flops": value}

    registry = mtn_algorithms.MODULE_TYPE_TO_CONSTRAINTS_FUNC
    before = dict(registry)
    registry[network_type] = Constraint
    try:
        yield
    finally:
        registry.clear()
        registry.update(before)
