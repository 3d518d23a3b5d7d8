"""Where the images come from and how they are split."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from temper.builder.data.pixels import PixelsConfig

_PATHS = {
    "folder": "the image folder",
    "table": "the table",
    "webdataset": "the folder or pattern of tar files",
    "huggingface": "the folder",
}
# Which sources have which key.
_FIELDS = {
    "name": ("torchvision",),
    "path": (*_PATHS, "photos", "torchvision"),
    "image_column": ("table", "webdataset", "huggingface"),
    "label_column": ("table", "webdataset", "huggingface"),
    "split_column": ("table",),
}
_LIBRARIES = {
    "digits": ("scikit-learn",),
    "huggingface": ("datasets", "pyarrow"),
    "photos": ("scikit-image", "scikit-learn"),
    "table": ("pyarrow",),
    "torchvision": ("torchvision",),
}


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """Where the images come from and how they are split."""

    source: Literal[
        "digits", "textures", "photos", "folder", "table", "webdataset", "huggingface", "torchvision"
    ] = "digits"
    """scikit-learn's digits, 20 classes of generated colour textures with noise (4000 to train, 2000 to test),
    [patches of 16 photographs](photos.md), an ImageFolder tree, a table of paths and labels, WebDataset shards, a
    Hugging Face data set on disk, or a torchvision data set by name. [Which is what](data.md)."""
    path: str | None = None
    """`folder`: the tree, one folder per class, or `train/` beside `val/` or `test/` with such folders.
    `table`: a .csv, .tsv or .parquet file, or a folder with one for each split. `webdataset`: a folder of .tar
    files, or a pattern such as `train-{000..099}.tar`. `huggingface`: what `save_to_disk` wrote. `photos`: a
    folder of further photographs, each a class of its own. `torchvision`: its root."""
    name: str | None = None
    """`torchvision`: the class, for example `CIFAR10`."""
    labels: str | None = None
    """A file that lists the class names in the order of the network's outputs: .txt, one a line, or .json, a list,
    `{"0": name}`, `{name: 0}` or Hugging Face's config.json. It may list more classes than there are images of.
    Without it the classes are in the order of their names, or that of the data set's own list."""
    image_column: str | None = None
    """The column of images in a `table` (paths, taken from its own folder) or a `huggingface` data set; of
    `webdataset` the ending of the images. Found by its usual names when not given."""
    label_column: str | None = None
    """The column of labels: names, or numbers, which are indices; of `webdataset` the ending of what holds
    them, or a key of its .json. Found by its usual names when not given."""
    split_column: str | None = None
    """`table`: the column that says train, val or test. Found by its usual names when not given."""
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
        self._check_source()
        if self.num_calibration < 1:
            raise ValueError(f"num_calibration: got {self.num_calibration}, expected at least 1")
        if self.num_test is not None and self.num_test < 1:
            raise ValueError(f"num_test: got {self.num_test}, expected at least 1, or no such key for all")
        if not 0 < self.test_fraction < 1:
            raise ValueError(f"test_fraction: got {self.test_fraction}, expected more than 0 and less than 1")
        if self.seed < 0:
            raise ValueError(f"seed: got {self.seed}, expected 0 or more")

    def _check_source(self) -> None:
        if self.source in _PATHS and not self.path:
            raise ValueError(f"path: got nothing, expected {_PATHS[self.source]} of source {self.source!r}")
        if self.source == "torchvision" and not self.name:
            raise ValueError("name: got nothing, expected a class of torchvision.datasets such as 'CIFAR10'")
        for field, sources in _FIELDS.items():
            if self.source not in sources and getattr(self, field) is not None:
                raise ValueError(
                    f"{field}: got {getattr(self, field)!r}, expected nothing for source {self.source!r}"
                )

    @property
    def augmentation(self) -> Literal["none", "shift", "crop-flip"]:
        """The augmentation that `auto` stands for."""
        if self.augment == "auto":
            return "shift" if self.source == "digits" else "crop-flip"
        return self.augment

    @property
    def libraries(self) -> tuple[str, ...]:
        """The packages, as pip names them, whose versions decide the images."""
        return ("numpy", "pillow", *_LIBRARIES.get(self.source, ()))


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
