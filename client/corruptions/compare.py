"""The mean corruption error of one variant against another, from their answers to the same corrupted images.

Source: D. Hendrycks, T. Dietterich, "Benchmarking neural network robustness to common corruptions and
perturbations", ICLR 2019, arXiv:1903.12261. The intervals are ours: images are resampled, as one image's answers
to all its corruptions depend on one another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from temper.client.corruptions.result import Vectors
from temper.client.stats import BoolArray, Estimate, bootstrap_means, estimate

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class CorruptionComparison:
    """A variant against a baseline; 95 % intervals by resampling the images in pairs."""

    mce: Estimate | None
    """mean corruption error in %: the mean over kinds of 100 * errors / baseline's errors, each summed over the
    severities; above 100 the variant is worse. None where the baseline errs in no kind."""
    relative_mce: Estimate | None
    """the same of the errors that the corruption adds to those on the clean images; None where it adds none to the
    baseline's in any kind"""
    difference: Estimate
    """mean corrupted accuracy, variant minus baseline, -1 to 1"""
    corruption_errors: dict[str, float | None]
    """by kind, in %; None where the baseline makes no error, so that the kind does not count in `mce`"""
    num_images: int
    """images judged by both"""

    def to_json(self) -> dict[str, Any]:
        """Return the figures as a JSON object."""
        return asdict(self)


def check_alike(baseline: Vectors, kinds: Sequence[str], severities: Sequence[int]) -> None:
    """Refuse a baseline of other kinds or severities; whether the images are the same, the comparison sees.

    Raises:
        ValueError: they are others, or in another order.
    """
    for field, wanted in (("kinds", kinds), ("severities", severities)):
        one, two = (", ".join(map(str, each)) for each in (getattr(baseline, field), wanted))
        if one != two:
            raise ValueError(f"{field}: the baseline has {one}, expected {two}; measure both alike")


def compare_corruptions(baseline: Vectors, variant: Vectors) -> CorruptionComparison:
    """Compare a variant with a baseline.

    Raises:
        ValueError: they did not answer the same corrupted images.
    """
    check_alike(baseline, variant.kinds, variant.severities)
    if baseline.inputs != variant.inputs:
        raise ValueError(
            "the baseline was measured on other images, labels, another seed or with other versions of the "
            "libraries that corrupt; measure both alike"
        )
    # Errors of each image, float64 [2 * (kinds + 1), n]; then their means, as found and resampled.
    errors = np.concatenate([_errors(baseline), _errors(variant)])
    found, resampled = errors.mean(axis=1, keepdims=True), bootstrap_means(errors)
    num_severities = len(baseline.severities)
    defined = found[: len(baseline.kinds), 0] > 0
    shares = 100 * _ratios(found, relative=False)[:, 0]
    return CorruptionComparison(
        mce=_mean_ratio(found, resampled, relative=False),
        relative_mce=_mean_ratio(found, resampled, relative=True),
        difference=estimate(float(_difference(found, num_severities)[0]), _difference(resampled, num_severities)),
        corruption_errors={
            kind: float(share) if known else None
            for kind, share, known in zip(baseline.kinds, shares, defined, strict=True)
        },
        num_images=len(baseline.clean),
    )


def _errors(vectors: Vectors) -> FloatArray:
    """float64 [kinds + 1, n]: of each image, summed over the severities; clean, times the number of these."""
    clean: BoolArray = ~vectors.clean
    return np.vstack([(~vectors.correct).sum(axis=1), len(vectors.severities) * clean]).astype(np.float64)


def _ratios(errors: FloatArray, *, relative: bool) -> FloatArray:
    """Variant's errors over the baseline's, float64 [kinds, ...]; NaN where the baseline's are not above 0."""
    baseline, variant = np.split(errors, 2)
    one, two = (side[:-1] - side[-1] if relative else side[:-1] for side in (baseline, variant))
    return np.divide(two, one, out=np.full_like(one, np.nan), where=one > 0)


def _mean_ratio(found: FloatArray, resampled: FloatArray, *, relative: bool) -> Estimate | None:
    """Mean over the kinds whose ratio is defined, in %: as found, and those again in every resample."""
    ratios = _ratios(found, relative=relative)
    counted = ~np.isnan(ratios[:, 0])
    if not counted.any():
        return None
    values = _ratios(resampled, relative=relative)[counted]
    known = ~np.isnan(values)
    values, num_known = np.where(known, values, 0).sum(axis=0), known.sum(axis=0)
    means = values[num_known > 0] / num_known[num_known > 0]
    return estimate(100 * float(ratios[counted].mean()), 100 * means)


def _difference(errors: FloatArray, num_severities: int) -> FloatArray:
    """float64 [...]: mean accuracy on corrupted images, variant minus baseline."""
    baseline, variant = np.split(errors, 2)
    means: FloatArray = (baseline[:-1] - variant[:-1]).mean(axis=0) / num_severities
    return means
