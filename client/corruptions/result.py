"""What a measurement on corrupted images found: which image was right in which kind and severity."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from temper.client.scores import Int64Array
from temper.client.stats import BoolArray, Estimate, Proportion, bootstrap_mean, proportion

VECTORS_FILE = "corruptions.npz"


@dataclass(frozen=True, kw_only=True)
class Vectors:
    """What two variants are compared by: the answers to the same corrupted images.

    Raises:
        ValueError: `load` was given no such file.
    """

    kinds: tuple[str, ...]
    """kinds of corruption"""
    severities: tuple[int, ...]
    """severities"""
    correct: BoolArray
    """bool [kinds, severities, n], right on the corrupted image"""
    clean: BoolArray
    """bool [n], right on the image itself"""
    inputs: str
    """digest of the images, their labels, the seed and the versions that corrupted them"""

    def save(self, folder: Path) -> None:
        """Write corruptions.npz into a folder, made when missing."""
        folder.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(folder / VECTORS_FILE, **vars(self))

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what `save` wrote."""
        path = folder / VECTORS_FILE
        try:
            with np.load(path, allow_pickle=False) as found:
                return cls(
                    kinds=tuple(found["kinds"].tolist()),
                    severities=tuple(found["severities"].tolist()),
                    correct=found["correct"],
                    clean=found["clean"],
                    inputs=str(found["inputs"]),
                )
        except FileNotFoundError:
            raise ValueError(
                f"{path}: no such file, expected a folder that `temper corrupt --save` wrote"
            ) from None
        except (OSError, ValueError, KeyError, EOFError) as error:
            raise ValueError(f"{path}: is no {VECTORS_FILE} of `temper corrupt --save` ({error})") from None


@dataclass(frozen=True, kw_only=True)
class CorruptionResult:
    """Accuracy of one endpoint on corrupted images."""

    vectors: Vectors
    """which image was right; compare variants with `compare_corruptions`"""
    seed: int
    """seed of images and draws"""
    indices: Int64Array
    """int64 [n], the images' indices in the data set"""
    errors: dict[str, int]
    """corrupted images whose answer was no score, by kind ("nonfinite_output"); each counts as wrong"""
    retries: dict[str, int]
    """requests that were sent again, by the kind of error that made it necessary (in this run)"""
    images_per_s: float
    """corrupted images answered per second (in this run)"""
    duration_s: float
    """seconds (of this run)"""

    @property
    def accuracy(self) -> Estimate:
        """Mean over kinds and severities, with its interval over the images."""
        return bootstrap_mean(self.vectors.correct.mean(axis=(0, 1)))

    def cells(self) -> list[dict[str, Any]]:
        """Accuracy by kind and severity: {kind, severity} and the share with its Wilson 95 % interval."""
        vectors = self.vectors
        return [
            {"kind": kind, "severity": severity, **proportion(vectors.correct[row, column])}
            for row, kind in enumerate(vectors.kinds)
            for column, severity in enumerate(vectors.severities)
        ]

    def to_json(self) -> dict[str, Any]:
        """Return the figures as a JSON object, without the vectors."""
        clean: Proportion = proportion(self.vectors.clean)
        return {
            "kinds": list(self.vectors.kinds),
            "severities": list(self.vectors.severities),
            "seed": self.seed,
            "num_images": len(self.indices),
            "clean_accuracy": dict(clean),
            "accuracy": dict(self.accuracy),
            "cells": self.cells(),
            "errors": self.errors,
            "retries": self.retries,
            "images_per_s": self.images_per_s,
            "duration_s": self.duration_s,
        }
