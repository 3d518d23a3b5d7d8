"""verdict.json, typed: may this version be shipped, and what says so. Standard library only.

It lies in the version's folder, beside SHA256SUMS, which does not name it: a verdict is given after the
publication. What it is bound to are the digests that it holds.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from temper.report.measured import Record

FORMAT: Literal[1] = 1
"""Raised when a key goes or changes its meaning; a further key is no other format, and needs a default."""
Answer = Literal["SHIP", "HOLD", "NOT ENOUGH DATA"]
"""All limits are kept; one is broken; neither can be said."""


@dataclass(frozen=True, kw_only=True)
class Finding(Record):
    """What one rule found, in the units of its limit."""

    rule: str
    """The rule, as the key of `[gate]` names it."""
    name: str
    """What was looked at, in words: the rule's title, with a class, a budget or a rate where it has several."""
    answer: Answer
    """What follows from it alone."""
    figure: float | None
    """What was measured; null when nothing could be."""
    low: float | None
    """Lower end of the interval; null of a figure that has none, such as a size."""
    high: float | None
    """Upper end of it."""
    limit: float
    """What the figure is held against."""
    unit: str
    """Of all four: `points`, `%`, `ms`, `x` or none."""
    reason: str
    """What decided it, in one sentence."""
    num_images: int | None = None
    """Images that it was measured on."""
    needed: int | None = None
    """Images that would decide it; null when it is decided, or no number would."""


@dataclass(frozen=True, kw_only=True)
class Side(Record):
    """One of the two that were compared."""

    model: str
    """The served model's name."""
    version: int | None
    """Its version; null when the server names none."""
    sums_sha256: str | None
    """SHA-256 of the version's SHA256SUMS, and so of every file that was published; null where the repository was
    not at hand."""
    engine_sha256: str | None = None
    """SHA-256 of the engine's file; null without an engine, or without the repository."""
    accuracy: float | None = None
    """The share of the test images that it answers right, 0 to 1."""


@dataclass(frozen=True, kw_only=True)
class Signature(Record):
    """Who vouches for a verdict."""

    key: str
    """The public key, ed25519, 64 hexadecimal digits."""
    value: str
    """The signature, 128 hexadecimal digits, of the verdict without this table, as `canonical` writes it."""


@dataclass(frozen=True, kw_only=True)
class Verdict(Record):
    """The answer of a gate on one version."""

    format: Literal[1] = FORMAT
    """Of this file."""
    answer: Answer
    """May it be shipped?"""
    candidate: Side
    """What is judged."""
    reference: Side
    """What it is held against."""
    findings: tuple[Finding, ...]
    """One for each thing that the rules looked at."""
    confidence: float
    """1 minus the error of shipping what breaks a limit."""
    correction: str
    """How the error stays what it is over several rules and classes, in one sentence."""
    config: dict[str, Any]
    """`[gate]`, with its defaults."""
    data_sha256: str | None
    """SHA-256 of the images and labels that were sent."""
    num_images: int
    """Test images."""
    created: str
    """When, to the second, in UTC."""
    server: str
    """What it was measured through, in words."""
    machine: str
    """Where: the GPU or CPU."""
    versions: dict[str, str]
    """Versions of Python and of the libraries that a figure depends on."""
    commit: str | None = None
    """Temper's commit; null when it ran from no checkout."""
    looks: int = 1
    """How often this version was judged, each time on other images, as far as its folder tells, with this one."""
    signature: Signature | None = None
    """Who vouches for it; null when it is not signed."""

    def to_json(self) -> dict[str, Any]:
        """Returns it as JSON."""
        return dataclasses.asdict(self)
