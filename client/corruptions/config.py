"""Settings of a measurement on corrupted images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

KINDS = (
    "gaussian_noise",
    "shot_noise",
    "impulse_noise",
    "defocus_blur",
    "glass_blur",
    "motion_blur",
    "zoom_blur",
    "snow",
    "frost",
    "fog",
    "brightness",
    "contrast",
    "elastic_transform",
    "pixelate",
    "jpeg_compression",
)
"""The kinds of ImageNet-C (Hendrycks and Dietterich 2019, arXiv:1903.12261): noise, blur, weather, digital. A
kind's place here is part of its random draws' seed."""
SEVERITIES = (1, 2, 3, 4, 5)


@dataclass(frozen=True, kw_only=True)
class CorruptionsConfig:
    """Accuracy on corrupted images: each image in every kind and severity. Needs the extra `corruptions`.

    Raises:
        ValueError: A value makes no sense; the message names the field.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    kinds: tuple[str, ...] = KINDS
    """Which of the 15 kinds of ImageNet-C."""
    severities: tuple[int, ...] = SEVERITIES
    """How strong, 1 to 5. The strengths are those of ImageNet-C, made for images of 224 pixels, whatever the size:
    smaller ones lose more to blur, and CIFAR-10-C has other strengths."""
    num_images: int | None = None
    """Images to corrupt, drawn by the seed; all when not given."""
    batch_size: int = 32
    """Images per request."""
    concurrency: int = 4
    """Requests in flight."""
    num_processes: int | None = None
    """Processes that corrupt images; not given: one for each core, at most 8."""
    seed: int = 0
    """Decides the images and every random draw."""

    def __post_init__(self) -> None:
        """Refuse values that make no sense."""
        _check_choice("kinds", self.kinds, KINDS)
        _check_choice("severities", self.severities, SEVERITIES)
        for field in ("batch_size", "concurrency"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field}: got {getattr(self, field)}, expected at least 1")
        if self.num_images is not None and self.num_images < 1:
            raise ValueError(f"num_images: got {self.num_images}, expected at least 1")
        if self.num_processes is not None and not 1 <= self.num_processes <= 64:
            raise ValueError(f"num_processes: got {self.num_processes}, expected 1 to 64")
        if self.seed < 0:
            raise ValueError(f"seed: got {self.seed}, expected at least 0")


def _check_choice(field: str, chosen: Sequence[str | int], known: Sequence[str | int]) -> None:
    wrong = [choice for choice in chosen if choice not in known]
    twice = [choice for choice in known if chosen.count(choice) > 1]
    listed = ", ".join(map(str, known))
    if wrong or not chosen:
        raise ValueError(f"{field}: got {wrong[0] if wrong else 'none'}, expected some of {listed}")
    if twice:
        raise ValueError(f"{field}: got {twice[0]} twice, expected each at most once")
