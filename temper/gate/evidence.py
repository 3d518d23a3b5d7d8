"""What a gate looks at: two served models' answers to the same images, and what else was measured of both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

BoolArray = npt.NDArray[np.bool_]
Int64Array = npt.NDArray[np.int64]
Float32Array = npt.NDArray[np.float32]
WORST_CASE = "worst_case"
"""Names what is left when every attack of a recipe may try."""


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What one model answered to the n test images."""

    classes: Int64Array
    """int64 [n], the class answered; -1 where the answer was no score."""
    confidence: Float32Array | None = None
    """float32 [n], the probability of that class, 0 to 1; NaN where the answer was no score; None of an endpoint
    without scores."""


@dataclass(frozen=True, kw_only=True)
class Attacked:
    """Who withstood one attack, or the worst case of all, at one budget."""

    name: str
    """The attack's name, or `worst_case`."""
    norm: str
    """`linf` or `l2`."""
    epsilon: float
    """The budget, in units of 1/255."""
    reference: BoolArray
    """bool [n], right and not fooled."""
    candidate: BoolArray
    """bool [n], of the same images."""
    doubt: str | None = None
    """Why the two cannot be compared, in words, such as masked gradients; None when they can."""


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """All that was measured; None or empty where nothing was."""

    class_names: Sequence[str]
    """By class index."""
    labels: Int64Array
    """int64 [n], the test images' classes."""
    reference: Answers
    """Of what the candidate is held against."""
    candidate: Answers
    """Of what is judged."""
    attacked: Sequence[Attacked] = ()
    """Each attack at each budget, and the worst case of all attacks at each."""
    throughput_ips: Sequence[tuple[float, float]] = ()
    """Images per second, (reference, candidate), closed loop, one pair per round: the two take turns."""
    p99_ms: Sequence[float] = ()
    """The candidate's 99th percentile of latency in an open loop at the wanted rate, one per round."""
    latency_note: str | None = None
    """Why the latencies are none, in words: requests failed, or were shed; None when they are."""
    size_bytes: tuple[int, int] | None = None
    """Of the engines' files, (reference, candidate)."""
    same_as_torch: BoolArray | None = None
    """bool [m], the served answer is that of the network before compression, run by PyTorch, on m test images."""
    missing: Mapping[str, str] = field(default_factory=dict)
    """Why something was not measured, in words, by the rule that asks for it."""
