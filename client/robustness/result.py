"""What an attack found: robust accuracy with its interval, its cost in queries, and examples to look at."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from temper.client.robustness.balls import Float64Array
from temper.client.robustness.base import AttackConfig
from temper.client.scores import Int64Array, UInt8Array
from temper.client.stats import BoolArray, Proportion, proportion, proportion_per_class

SURVIVED_FILE = "survived.npy"
INDICES_FILE = "indices.npy"
DISTANCES_FILE = "distances.npy"
TAKEN_FOR_FILE = "taken_for.npy"
_CURVE_POINTS = 20
_MAX_PAIRS = 10


@dataclass(frozen=True, kw_only=True)
class Example:
    """One image that was fooled, as it was sent."""

    index: int
    """index in the data set"""
    original: UInt8Array
    """uint8 [H, W, 3]"""
    adversarial: UInt8Array
    """uint8 [H, W, 3], exactly what the server misjudged"""
    label: int
    """the true class"""
    served_label: int
    """the class that the server answered"""
    num_queries: int
    """queries until then"""


@dataclass(frozen=True, kw_only=True)
class AttackResult:
    """Outcome of one attack on one endpoint. Vectors are in the order of `indices`."""

    attack: str
    """attack family"""
    norm: str
    """norm of the budget"""
    epsilon: float
    """budget in units of 1/255 as configured; on the integer grid its floor counts"""
    max_queries: int
    """queries an image may cost"""
    seed: int
    """seed of images and draws"""
    white_box: bool
    """whether it followed the gradients of all that is attacked, in several steps, and no random draws"""
    draws: bool
    """whether these gradients went through random draws, so that luck fools and spares images too"""
    accuracy: Proportion
    """robust accuracy: still right after the attack / all images evaluated, with its 95 % interval"""
    clean_accuracy: Proportion
    """accuracy on the same images without attack"""
    per_class: dict[int, Proportion]
    """robust accuracy by class index"""
    pairs: list[dict[str, int]]
    """the most frequent pairs of classes of fooled images, at most 10: {label, answer, num_images}"""
    success: Proportion | None
    """of an attack that compares with a reference: share of the images that both got right before for which one
    was found that the attacked model misjudges and the reference does not; None of any other. `correct`, and with
    it all other figures, count what both got right before as right"""
    reference_queries: int
    """how often the reference was asked in all: once for each query that was misjudged"""
    num_queries: int
    """queries of the attack in all, without one per image for the clean accuracy"""
    errors: dict[str, int]
    """images whose answer was no score, by kind ("nonfinite_output", "short_output", "server_error"), attacked or
    not; none of them is robust"""
    retries: dict[str, int]
    """requests that were sent again, by the kind of error that made it necessary (in this run)"""
    stuck: float
    """share of the queries that left the attack nothing to follow: scores that were those of the image's query
    before, or a surrogate's gradient that was zero; 0 for an attack that sees neither"""
    queries_to_success: dict[str, float] | None
    """median and mean over the fooled images; None when there are none"""
    distance: dict[str, float] | None
    """how near the nearest misclassified image was that was sent, in the norm of the budget and units of 1/255:
    {median, mean, num_images} over the images of which there is one; None when there are none. The main figure of
    an attack that minimises it; any other one goes no further than the first image that fools"""
    queries_per_s: float
    """queries per second of the attack phase of this run (a resumed run counts only its own)"""
    duration_s: float
    """seconds of the attack phase of this run"""
    curve: list[dict[str, float]]
    """robust accuracy after 0, 1, ... max_queries queries per image: {num_queries, accuracy}, log-spaced"""
    survived: BoolArray
    """bool [n], right before and after the attack; compare variants with `temper.client.stats.compare_paired`"""
    correct: BoolArray
    """bool [n], right before the attack"""
    queries: Int64Array
    """int64 [n], queries spent on each image; 0 where the clean image was already wrong"""
    taken_for: Int64Array
    """int64 [n], the class that each fooled image was taken for; -1 where none was"""
    distances: Float64Array
    """float64 [n], of each image what `distance` sums up; infinite where no misclassified one was sent"""
    indices: Int64Array
    """int64 [n], the images' indices in the data set"""
    gallery: list[Example]
    """fooled images drawn at random by the seed, by index"""

    def to_json(self) -> dict[str, Any]:
        """Return the figures as a JSON object, without the vectors and images."""
        return {
            "attack": self.attack,
            "norm": self.norm,
            "epsilon": self.epsilon,
            "max_queries": self.max_queries,
            "seed": self.seed,
            "white_box": self.white_box,
            "draws": self.draws,
            "accuracy": dict(self.accuracy),
            "clean_accuracy": dict(self.clean_accuracy),
            "per_class": {str(label): dict(figures) for label, figures in self.per_class.items()},
            "pairs": self.pairs,
            "success": self.success and dict(self.success),
            "num_queries": self.num_queries,
            "reference_queries": self.reference_queries,
            "errors": self.errors,
            "retries": self.retries,
            "stuck": self.stuck,
            "queries_to_success": self.queries_to_success,
            "distance": self.distance,
            "queries_per_s": self.queries_per_s,
            "duration_s": self.duration_s,
            "curve": self.curve,
        }

    def save_vectors(self, folder: Path) -> None:
        """Write survived.npy, indices.npy, distances.npy and taken_for.npy into a folder."""
        np.save(folder / SURVIVED_FILE, self.survived)
        np.save(folder / INDICES_FILE, self.indices)
        np.save(folder / DISTANCES_FILE, self.distances)
        np.save(folder / TAKEN_FOR_FILE, self.taken_for)

    def save(self, folder: Path) -> None:
        """Write the vectors and the gallery's PNG pairs into a folder, made when missing.

        PNG is lossless: reading `<index>_adversarial_*.png` gives the very image that the server misjudged.
        """
        from PIL import Image  # only a saved gallery needs it

        folder.mkdir(parents=True, exist_ok=True)
        self.save_vectors(folder)
        for example in self.gallery:
            stem = f"{example.index:06d}"
            Image.fromarray(example.original).save(folder / f"{stem}_original_{example.label}.png")
            Image.fromarray(example.adversarial).save(folder / f"{stem}_adversarial_{example.served_label}.png")


def build_result(
    config: AttackConfig,
    *,
    indices: Int64Array,
    labels: Int64Array,
    correct: BoolArray,
    lost_at: Int64Array,
    broken: npt.NDArray[np.str_],
    errors: Mapping[str, int],
    queries: Int64Array,
    stuck: Int64Array,
    distances: Float64Array,
    taken_for: Int64Array,
    reference_queries: Int64Array | None,
    white_box: bool,
    draws: bool,
    gallery: list[Example],
    num_queries_now: int,
    duration_s: float,
) -> AttackResult:
    """Work out the figures from the vectors of one attack, all [n] in the order of `indices`.

    What was noted of images that were not right before the attack does not count.

    Args:
        config: the attack.
        indices: the images' indices in the data set.
        labels: true classes.
        correct: right before the attack.
        lost_at: the query that each image was lost at, counted from 1; 0 where there is none.
        broken: why the answer to it was no score, by kind; "" where the image was fooled.
        errors: images without a score before the attack, by kind.
        queries: queries spent on each image.
        stuck: how many of them left the attack nothing to follow.
        distances: how near the nearest misclassified image was; infinite where there is none.
        taken_for: the class that each fooled image was taken for.
        reference_queries: how often the reference was asked for each image; None without one.
        white_box: whether the gradients of all that is attacked were followed, in several steps, without draws.
        draws: whether random draws stand before a surrogate.
        gallery: examples.
        num_queries_now: queries that this run sent.
        duration_s: seconds that they took.
    """
    lost_at, queries = (np.where(correct, noted, 0) for noted in (lost_at, queries))
    distances = np.where(correct, distances, np.inf)
    fooled = (lost_at > 0) & (broken == "")
    survived = correct & (lost_at == 0)
    counted = Counter(errors)
    counted.update(broken[(lost_at > 0) & (broken != "")].tolist())
    found = distances[np.isfinite(distances)]
    return AttackResult(
        attack=config.name,
        norm=config.norm,
        epsilon=config.epsilon,
        max_queries=config.max_queries,
        seed=config.seed,
        white_box=white_box,
        draws=draws,
        accuracy=proportion(survived),
        clean_accuracy=proportion(correct),
        per_class=proportion_per_class(survived, labels),
        pairs=count_pairs(labels[fooled], taken_for[fooled]),
        success=None if reference_queries is None else _success(fooled[correct]),
        reference_queries=0 if reference_queries is None else int(reference_queries[correct].sum()),
        num_queries=int(queries.sum()),
        errors=dict(counted),
        retries={},
        stuck=float(stuck.sum() / max(1, queries.sum())),
        queries_to_success=_middle(lost_at[fooled]),
        distance=(middle := _middle(found)) and {**middle, "num_images": len(found)},
        queries_per_s=num_queries_now / duration_s if num_queries_now else 0.0,
        duration_s=duration_s,
        curve=_curve(config.max_queries, correct, lost_at[lost_at > 0]),
        survived=survived,
        correct=correct,
        queries=queries,
        taken_for=np.where(fooled, taken_for, -1),
        distances=distances,
        indices=indices,
        gallery=gallery,
    )


def count_pairs(labels: Int64Array, answers: Int64Array) -> list[dict[str, int]]:
    """Count pairs of the true and the answered class, both int64 [n], and return the most frequent ones.

    Returns:
        At most 10 of {label, answer, num_images}, the most frequent first, by class where they are as frequent.
    """
    pairs = Counter(zip(labels.tolist(), answers.tolist(), strict=True))
    ranked = sorted(pairs.items(), key=lambda each: (-each[1], each[0]))[:_MAX_PAIRS]
    return [{"label": label, "answer": answer, "num_images": count} for (label, answer), count in ranked]


def _success(fooled: BoolArray) -> Proportion:
    """Return the share, which may be anything where there is no image."""
    return proportion(fooled) if fooled.size else Proportion(value=0.0, low=0.0, high=1.0, num_images=0)


def _middle(values: npt.NDArray[Any]) -> dict[str, float] | None:
    return {"median": float(np.median(values)), "mean": float(values.mean())} if values.size else None


def _curve(max_queries: int, correct: BoolArray, lost_at: Int64Array) -> list[dict[str, float]]:
    points = np.unique(np.round(np.geomspace(1, max_queries, _CURVE_POINTS)).astype(np.int64)).tolist()
    right, n = int(correct.sum()), len(correct)
    return [
        {"num_queries": point, "accuracy": (right - int((lost_at <= point).sum())) / n} for point in [0, *points]
    ]
