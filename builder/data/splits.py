"""Which images train and which test: by the names that people give to splits, or drawn."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from temper.builder.errors import DataError
from temper.imaging.errors import show
from temper.imaging.folder import name_few

if TYPE_CHECKING:
    from numpy.typing import NDArray

Role = Literal["train", "test", "val"]

_ROLES: dict[str, Role] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("test", "testing"), "test"),
    **dict.fromkeys(("val", "valid", "validation", "dev", "eval"), "val"),
}
# `training_set`, `test-images`, `val2017` and the like.
_SUFFIX = re.compile(r"([ _-]?(set|split|data|images))?[ _-]?\d*$")


@dataclass(frozen=True, kw_only=True)
class Split:
    """Which of a source's parts trains and which tests."""

    train: str
    """Its name."""
    test: str | None
    """Its name; None where the test images are to be drawn from the training part."""
    unused: dict[str, str]
    """The other parts, and why."""


def role_of(name: str) -> Role | None:
    """Returns what a split of this name is for; None for a name that no split has."""
    return _ROLES.get(_SUFFIX.sub("", name.lower()))


def pick_split(where: str, names: Iterable[str], unlabelled: Mapping[str, str] | None = None) -> Split:
    """Picks the parts that train and test: `test` tests, or else `val`.

    Args:
        where: What messages begin with.
        names: Of the parts.
        unlabelled: Parts that cannot test, and why.

    Raises:
        DataError: None of the parts trains, or two have names of the same split.
    """
    roles = {name: role_of(name) for name in names}
    training = [name for name, role in roles.items() if role == "train"]
    if not training:
        found = name_few([show(name) for name in roles]) or "none"
        raise DataError(f"{where}: got the splits {found}, expected one called train; rename the one that trains")
    unused: dict[str, str] = dict(unlabelled or {})
    chosen: str | None = None
    for role in ("train", "test", "val"):
        same = [name for name, its in roles.items() if its == role and name not in unused]
        if len(same) > 1:
            shown = name_few([show(name) for name in same])
            raise DataError(f"{where}: {shown} are all names of the same split; keep one")
        if role == "train" or not same:
            continue
        if chosen is None:
            chosen = same[0]
        else:
            unused[same[0]] = f"{chosen} tests"
    unused |= {name: "no split's name" for name, role in roles.items() if role is None}
    return Split(train=training[0], test=chosen, unused=unused)


def draw_split(
    labels: NDArray[np.int64], test_fraction: float, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Draws the same share of every class for testing: at least one image, and never the last one.

    Returns:
        The indices of the training and of the test images, each in order.
    """
    rng = np.random.default_rng([seed, 0])
    test: list[NDArray[np.int64]] = []
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        count = min(max(1, round(len(members) * test_fraction)), len(members) - 1)
        test.append(members[:count])
    chosen = np.sort(np.concatenate(test)) if test else np.empty(0, np.int64)
    return np.setdiff1d(np.arange(len(labels)), chosen), chosen
