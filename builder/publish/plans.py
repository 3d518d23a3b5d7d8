"""Engines in a version's folder: their names, and those that a new version takes over from the one before.

A TensorRT plan runs on the compute capability that it was built on. An entry that shall serve several types of GPU
holds one plan for each, all from the same graph, and the server chooses (Triton's `cc_model_filenames`).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from temper.builder.errors import PublishError
from temper.builder.publish.versions import read_digests
from temper.builder.store.files import sha256_file

_CAPABILITY = re.compile(r"[0-9]+\.[0-9]")


@dataclass(frozen=True, kw_only=True)
class Binding:
    """To what a plan is bound that runs on the GPUs of one compute capability only."""

    compute_capability: str
    """The GPU's that built it, as "9.0"."""
    gpu: str | None = None
    """That GPU's name, where the library promises the plan to this type of GPU alone."""
    graph_sha256: str | None = None
    """SHA-256 of the graph that it was built from; without it no plan is kept from before."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One engine of a version."""

    name: str
    """Its file in the version's folder."""
    source: Path
    """Where it is copied from."""
    sha256: str
    size_bytes: int
    compute_capability: str | None
    """The only one that it runs on, as "9.0"; None when it is not bound to one."""
    gpu: str | None
    """The only type of GPU that it is promised to; None when it is not bound to one."""
    runtime: str | None
    """The library that built it, as "TensorRT 11.0.0.114"."""

    def as_json(self) -> dict[str, Any]:
        """The plan as the card lists it."""
        return {
            "name": self.name,
            "sha256": self.sha256,
            "size_bytes": self.size_bytes,
            "compute_capability": self.compute_capability,
            "gpu": self.gpu,
            "runtime": self.runtime,
        }


def plan_name(engine_file: Path, compute_capability: str | None) -> str:
    """Returns the engine's name in the version's folder: model.plan, or model_sm90.plan for "9.0".

    Raises:
        PublishError: The compute capability is not of the form 9.0.
    """
    if compute_capability is None:
        return engine_file.name
    if not _CAPABILITY.fullmatch(compute_capability):
        raise PublishError(f"compute capability: got {compute_capability!r}, expected one such as '9.0'")
    return f"{engine_file.stem}_sm{compute_capability.replace('.', '')}{engine_file.suffix}"


def runtime_of(card: Mapping[str, Any]) -> str | None:
    """Returns what the card's stage `engine` says built the engine; None when it does not."""
    for stage in reversed(card.get("stages", [])):
        if stage.get("name") == "engine":
            runtime = stage.get("figures", {}).get("runtime")
            return None if runtime is None else str(runtime)
    return None


def carried_plans(version: Path, graph_sha256: str | None, own: Sequence[str]) -> list[Plan]:
    """Finds the plans that a new version takes over: same graph, other compute capabilities.

    Args:
        version: The newest version's folder.
        graph_sha256: The graph of the new plan; None takes over nothing.
        own: The names of the new plans, which replace those of the same name.

    Returns:
        The plans, each found to be as it was published.

    Raises:
        PublishError: A plan is missing, or it or the card was changed since it was published.
    """
    try:
        content = (version / "card.json").read_bytes()
        card = json.loads(content)
    except (OSError, ValueError, RecursionError):
        return []  # no version of ours, or not whole: nothing to take over
    if graph_sha256 is None or not isinstance(card, dict) or card.get("graph_sha256") != graph_sha256:
        return []
    digests = read_digests(version / "SHA256SUMS")
    if digests.get("card.json") != hashlib.sha256(content).hexdigest():
        raise PublishError(
            f"{version / 'card.json'}: is not what was published (SHA256SUMS has another SHA-256), so no plan is "
            f"taken over; remove the folder {version} and publish again"
        )
    try:
        plans = [_listed_plan(version, listed) for listed in card["plans"]]
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise PublishError(
            f"{version / 'card.json'}: got a list of plans that is none ({error!r}); remove the folder {version} "
            "and publish again"
        ) from error
    kept = [plan for plan in plans if plan.name not in own]
    for plan in kept:
        # The card's own digest of it is for its readers: with SHA256SUMS everything is compared.
        if not plan.source.is_file() or not sha256_file(plan.source) == plan.sha256 == digests.get(plan.name):
            raise PublishError(
                f"{plan.source}: is not what was published (SHA256SUMS has another SHA-256), so it is not taken "
                f"over; remove the folder {version} and publish again"
            )
    return kept


def _listed_plan(version: Path, listed: Mapping[str, Any]) -> Plan:
    name = Path(str(listed["name"])).name  # never a path: the card may have been edited
    return Plan(
        name=name,
        source=version / name,
        sha256=str(listed["sha256"]),
        size_bytes=int(listed["size_bytes"]),
        compute_capability=str(listed["compute_capability"]),
        gpu=listed.get("gpu"),  # an older card has none
        runtime=listed["runtime"],
    )
