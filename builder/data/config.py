"""Where the images come from and how they are split."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from temper.builder.data.pixels import PixelsConfig


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """Where the images come from and how they are split."""

    source: Literal["digits", "textures", "photos", "folder", "torchvision"] = "digits"
    """scikit-learn's digits, 20 classes of generated colour textures with noise (4000 to train, 2000 to test),
    [patches of 16 photographs](photos.md), an ImageFolder tree, or a torchvision data set by name."""
    path: str | None = None
    """`folder`: the tree, one folder per class, or `train/` beside `val/` or `test/` with such folders.
    `photos`: a folder of further photographs, each a class of its own. `torchvision`: its root."""
    name: str | None = None
    """`torchvision`: the class, for example `CIFAR10`."""
    num_calibration: int = 512
    """Training images that calibrate the quantisation; all when there are fewer."""
    num_test: int | None = None
    """Test images, drawn by the seed; all when not given."""
    test_fraction: float = 0.25
    """Share of every class that is kept for testing, where the source has no split of its own."""
    augment: Literal["auto", "none", "shift", "crop-flip"] = "auto"
    """How training images vary: shifted by up to an eighth, or cropped at random and mirrored. `auto` shifts
    digits and crops the rest."""
    seed: int = 0
    """Decides every draw."""

    def __post_init__(self) -> None:
        """Checks every field.

        Raises:
            ValueError: A field is out of its range, or missing for the source.
        """
        if self.source == "folder" and not self.path:
            raise ValueError("path: got nothing, expected the image folder of source 'folder'")
        if self.source == "torchvision" and not self.name:
            raise ValueError("name: got nothing, expected a class of torchvision.datasets such as 'CIFAR10'")
        unused = {"folder": ("name",), "photos": ("name",), "torchvision": ()}.get(self.source, ("name", "path"))
        for field in unused:
            if getattr(self, field) is not None:
                raise ValueError(
                    f"{field}: got {getattr(self, field)!r}, expected nothing for source {self.source!r}"
                )
        if self.num_calibration < 1:
            raise ValueError(f"num_calibration: got {self.num_calibration}, expected at least 1")
        if self.num_test is not None and self.num_test < 1:
            raise ValueError(f"num_test: got {self.num_test}, expected at least 1, or no such key for all")
        if not 0 < self.test_fraction < 1:
            raise ValueError(f"test_fraction: got {self.test_fraction}, expected more than 0 and less than 1")
        if self.seed < 0:
            raise ValueError(f"seed: got {self.seed}, expected 0 or more")

    @property
    def augmentation(self) -> Literal["none", "shift", "crop-flip"]:
        """The augmentation that `auto` stands for."""
        if self.augment == "auto":
            return "shift" if self.source == "digits" else "crop-flip"
        return self.augment

    @property
    def libraries(self) -> tuple[str, ...]:
        """The packages, as pip names them, whose versions decide the images."""
        own = {
            "digits": ("scikit-learn",),
            "photos": ("scikit-image", "scikit-learn"),
            "torchvision": ("torchvision",),
        }
        return ("numpy", "pillow", *own.get(self.source, ()))


@dataclass(frozen=True, kw_only=True)
class DataConfig(PixelsConfig, SourceConfig):
    """Where the images come from, how they are split, and what they are made into before the network."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    def __post_init__(self) -> None:
        """Checks every field.

        Raises:
            ValueError: A field is out of its range, or missing for the source.
        """
        SourceConfig.__post_init__(self)
        PixelsConfig.__post_init__(self)
