"""Where each variant and what it is compared with look, in images that they answer differently: the stage."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from temper.builder.contract import GRAPH_FILE, LABELS_FILE
from temper.builder.explain.images import ROWS_FILE
from temper.builder.names import read_labels
from temper.report.explained import Attribution, AttributionMaps
from temper.run.explain.look import ORIGINAL, Look, Network, Progress

PICTURES = "explain"


def attribute_variants(look: Look, networks: Sequence[Network]) -> Iterator[Attribution]:
    """Where each variant and what it is compared with look, in images that they answer differently.

    Args:
        look: The look.
        networks: From `Look.networks`, the original first.
    """
    if all(look.is_original(one.variant) for one in look.chosen):
        look.note("no attributions: what was looked at is the network before any compression", "attributions")
    original, run = networks[0], {network.name: network for network in networks if network.kind == "variant"}
    for one in look.chosen:
        second = run.get(one.variant)
        if second is None:  # it is the original, or did not run
            continue
        baseline = look.baseline(one)
        # The first variant is its own baseline, and an ensemble has no network: the original stands in.
        first = run.get(baseline) if baseline != one.variant else None
        name = baseline if first is not None or look.is_original(baseline) else ORIGINAL
        with look.leaving_out(f"{one.variant}: where it looks", "attributions", one.variant):
            yield from _attribute(look, (name, first or original), (one.variant, second))


def _attribute(look: Look, *pair: tuple[str, Network]) -> Iterator[Attribution]:
    names = [name for name, _ in pair]

    def make(folder: Path, progress: Progress) -> Mapping[str, Any]:
        from temper.run.explain.maps import write_attributions

        networks = [(name, each.graph.path / GRAPH_FILE, each.answers) for name, each in pair]
        found, notes = write_attributions(
            folder,
            look.test_images(),
            look.labels,
            read_labels(look.data.path / LABELS_FILE),
            networks,
            num_images=look.config.num_attributions,
            progress=progress,
        )
        return {"attributions": [asdict(one) for one in found], "notes": list(notes)}

    found = look.stage(
        "attributions",
        f"{names[1]}: where it and {names[0]} look",
        {"names": names, "num_images": look.config.num_attributions},
        [*(each for _, network in pair for each in (network.graph, network.run)), look.images, look.data],
        make,
        code=("temper.run.explain.maps",),
        libraries=("torch", "captum", "onnx"),
    )
    for words in found.info["notes"]:
        look.note(words, "attributions", names[1])
    place = f"{PICTURES}/{names[1]}"
    shutil.rmtree(look.folder / place, ignore_errors=True)  # an earlier look's
    rows = np.load(look.images.path / ROWS_FILE)
    for each in found.info["attributions"]:
        yield _from_folder({**each, "index": int(rows[each["index"]])}, found.path, look.folder, place)


def _from_folder(found: Mapping[str, Any], stage: Path, folder: Path, place: str) -> Attribution:
    """Copies an image's pictures beside the page, and names them from there."""
    (folder / place).mkdir(parents=True, exist_ok=True)

    def copied(name: str) -> str:
        shutil.copyfile(stage / name, folder / place / name)
        return f"{place}/{name}"

    pictures = ("integrated_gradients", "grad_cam")
    maps = tuple(
        AttributionMaps.of(each, **{name: copied(each[name]) for name in pictures}) for each in found["maps"]
    )
    return Attribution.of(found, image=copied(found["image"]), maps=maps)
