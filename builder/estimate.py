"""A figure with its interval, as the builder's modules return it."""

from __future__ import annotations

from statistics import NormalDist
from typing import NamedTuple

Z95 = NormalDist().inv_cdf(0.975)
"""Standard errors on each side of a 95 % interval."""


class Estimate(NamedTuple):
    """A figure with its 95 % interval."""

    value: float
    """The figure."""
    low: float
    """Lower end."""
    high: float
    """Upper end."""
