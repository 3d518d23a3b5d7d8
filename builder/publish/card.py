"""card.json, typed: where a version of a model comes from. It decides nothing about what is served."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

FORMAT: Literal[1] = 1
"""Raised when a key goes or changes its meaning; a further key is no other format, and needs a default.

Cards of before there were formats have the same keys but this one."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """The base of all that card.json consists of."""

    __pydantic_config__: ClassVar[dict[str, bool]] = {"use_attribute_docstrings": True, "allow_inf_nan": False}


@dataclass(frozen=True, kw_only=True)
class CardRecipe(Record):
    """What the recipe says of the variant, with its defaults; an ensemble has its members' other tables."""

    name: str
    """The recipe's name."""
    variant: dict[str, Any]
    """The variant's table."""
    engine: dict[str, Any]
    """`[engine]`."""
    data: dict[str, Any] | None = None
    """`[data]`."""
    model: dict[str, Any] | None = None
    """`[model]`."""
    train: dict[str, Any] | None = None
    """`[train]`."""


@dataclass(frozen=True, kw_only=True)
class CardStage(Record):
    """One stage that made the variant."""

    name: str
    """`data`, `weights`, a step of the compression, `export` or `engine`."""
    digest: str
    """Key of its result in the run's store."""
    figures: dict[str, Any]
    """What it says of its result; every stage has its own. `engine` has `runtime`: what built the engine."""


@dataclass(frozen=True, kw_only=True)
class CardEngine(Record):
    """An engine's file."""

    name: str
    """Its name in the version's folder."""
    sha256: str
    """SHA-256 of its content."""
    size_bytes: int
    """Its size."""


@dataclass(frozen=True, kw_only=True)
class CardPlan(Record):
    """One of the engines of a version that serves several types of GPU."""

    name: str
    """Its name in the version's folder."""
    sha256: str
    """SHA-256 of its content."""
    size_bytes: int
    """Its size."""
    compute_capability: str | None
    """The only one that it runs on, as "9.0"; null when it is not bound to one."""
    runtime: str | None
    """The library that built it."""
    gpu: str | None = None
    """The only type of GPU that it is promised to, by its name; null when it is not bound to one."""


@dataclass(frozen=True, kw_only=True)
class Card(Record):
    """What card.json holds; what does not apply is left out of it."""

    format: Literal[1] = FORMAT
    """Of this file."""
    recipe: CardRecipe
    """What the recipe says."""
    data_digest: str
    """Key of the images in the run's store."""
    engine: str | None = None
    """The kind of engine; an ensemble has none."""
    versions: dict[str, str] = field(default_factory=dict)
    """Versions of the packages that made it."""
    stages: tuple[CardStage, ...] = ()
    """Every stage that made it, in order."""
    member_digests: dict[str, str] = field(default_factory=dict)
    """An ensemble: what stands for all that made each member, by its model."""
    members: tuple[str, ...] = ()
    """An ensemble: its members' models; added when it is published."""
    defend: tuple[dict[str, Any], ...] = ()
    """An ensemble: what images go through before its members, in order; added when it is published."""
    model: str | None = None
    """The model's name; added when it is published."""
    preprocessing: dict[str, Any] | None = None
    """How an image is made into what it takes, as config.pbtxt has it; added when it is published."""
    graph_sha256: str | None = None
    """SHA-256 of the graph that every plan was built from; added when it is published."""
    engine_file: CardEngine | None = None
    """The engine; added when it is published."""
    plans: tuple[CardPlan, ...] = ()
    """Engines for several types of GPU; added when it is published."""

    def to_json(self) -> dict[str, Any]:
        """Returns the card as JSON, without what does not apply."""
        found = dataclasses.asdict(self)
        found["recipe"] = {name: table for name, table in found["recipe"].items() if table is not None}
        return {name: value for name, value in found.items() if value not in (None, (), {})}
