"""The sources of images: digits, textures, photographs, torchvision's data sets, and what `find.py` finds."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from temper.builder.data.encoded import EncodedImages
from temper.builder.data.find import find_images
from temper.builder.data.labels import map_labels, read_class_names
from temper.builder.data.splits import draw_split
from temper.builder.errors import DataError
from temper.builder.names import is_printable
from temper.imaging.errors import show
from temper.imaging.fit import RESAMPLING, fit_image
from temper.imaging.folder import describe_left_out
from temper.imaging.formats import max_pixels
from temper.imaging.preprocess import Preprocessing
from temper.imaging.read import to_rgb

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from temper.builder.data.config import DataConfig

# What torchvision's data sets call their splits, best first.
_TRAIN_SPLITS = ("train", "trainval")
_TEST_SPLITS = ("test", "val", "valid", "validation")


@dataclass(frozen=True)
class Source:
    """Labelled images and their split."""

    class_names: list[str]
    """One per label, in order."""
    labels: NDArray[np.int64]
    """The label of every image."""
    train: NDArray[np.int64]
    """Indices of the training split."""
    test: NDArray[np.int64]
    """Indices of the test split; none is in `train`."""
    how: Preprocessing
    """What `read` makes of an image."""
    open_image: Callable[[int], Image.Image]
    """Decodes the image of an index: RGB, its EXIF rotation applied if `how` says so; its size is its own."""
    in_memory: bool = False
    """True when `open_image` decodes nothing, so that loading needs no process of its own."""
    info: dict[str, Any] = field(default_factory=dict)
    """What is to be known of how the images were found, as JSON."""
    numbered: bool = False
    """Whether the labels are numbers and `class_names` only repeats them."""
    open_file: Callable[[int], Path | IO[bytes]] | None = None
    """Opens the file of an index, which nothing has decoded; None of what has no files."""

    def read(self, index: int) -> NDArray[np.uint8]:
        """Returns one image, uint8 [H, W, 3].

        Raises:
            DataError: It cannot be decoded.
        """
        return np.asarray(fit_image(self.open_image(index), self.how))


class TrainImages(Dataset[tuple[torch.Tensor, int]]):
    """The training split: (uint8 tensor [H, W, 3], label), augmented with torch's random state."""

    def __init__(self, source: Source, augmentation: str) -> None:
        """Takes the split of a source.

        Args:
            source: The images.
            augmentation: `none`, `shift` or `crop-flip`.
        """
        self.source = source
        self.augmentation = augmentation

    def __len__(self) -> int:
        """Returns the number of training images."""
        return len(self.source.train)

    def __getitem__(self, position: int) -> tuple[torch.Tensor, int]:
        """Returns one image, uint8 [H, W, 3], and its label."""
        index = int(self.source.train[position])
        if self.augmentation == "crop-flip":
            pixels = torch.from_numpy(_crop_flip(self.source.open_image(index), self.source.how))
        else:
            pixels = torch.from_numpy(self.source.read(index).copy())
        if self.augmentation == "shift":
            pixels = _shift(pixels)
        return pixels, int(self.source.labels[index])


def open_source(config: DataConfig) -> Source:
    """Opens a source and splits it.

    Raises:
        DataError: It is missing, empty, has one class only, or leaves a split without images.
    """
    openers = {
        "digits": _open_digits,
        "textures": _open_textures,
        "photos": _open_photos,
        "torchvision": _open_torchvision,
    }
    source = openers.get(config.source, _open_encoded)(config)
    where = show(config.name or config.path or config.source)
    if len(source.class_names) < 2:
        names = ", ".join(source.class_names) or "none"
        raise DataError(f"data {where}: got {len(source.class_names)} classes ({names}), expected at least two")
    odd = [name for name in source.class_names if not name.strip() or not is_printable(name)]
    if odd:
        raise DataError(f"data {where}: got the class {odd[0]!r}, expected one line of printable text; rename it")
    if config.labels is not None:
        source = _in_order(source, f"data {where}", Path(config.labels))
    used = np.concatenate([source.train, source.test])
    num_used = len(np.unique(source.labels[used]))
    if num_used == 1:
        name = show(source.class_names[source.labels[used][0]])
        raise DataError(f"data {where}: got images of one class ({name}), expected at least two")
    if num_used < len(source.class_names):
        missing = {"num": len(source.class_names) - num_used, "of": len(source.class_names)}
        source = replace(source, info={**source.info, "without_images": missing})
    for name, indices in (("training", source.train), ("test", source.test)):
        if len(indices) == 0:
            raise DataError(
                f"data {where}: no image is left for the {name} split; add images or change test_fraction"
            )
    return source


def _open_digits(config: DataConfig) -> Source:
    from sklearn.datasets import load_digits  # type: ignore[import-untyped]  # ships none

    bunch = load_digits()
    grey = np.rint(bunch.images * (255 / 16)).astype(np.uint8)
    images = [to_rgb(Image.fromarray(pixels)) for pixels in grey]
    labels = bunch.target.astype(np.int64)
    train, test = draw_split(labels, config.test_fraction, config.seed)
    names = [str(name) for name in bunch.target_names]
    return Source(names, labels, train, test, config.preprocessing, images.__getitem__, True)


def _open_textures(config: DataConfig) -> Source:
    from temper.builder.data.textures import CLASS_NAMES, NUM_TEST, NUM_TRAIN, make_texture

    # Kept once drawn: every epoch reads them again.
    @functools.cache
    def open_image(index: int) -> Image.Image:
        return to_rgb(Image.fromarray(make_texture(config.seed, index)))

    indices = np.arange(NUM_TRAIN + NUM_TEST)
    labels = indices % len(CLASS_NAMES)
    train, test = indices[:NUM_TRAIN], indices[NUM_TRAIN:]
    return Source(list(CLASS_NAMES), labels, train, test, config.preprocessing, open_image, True)


def _open_photos(config: DataConfig) -> Source:
    from temper.builder.data.photos import cut_photos

    folder = Path(config.path) if config.path else None
    cut = cut_photos(folder, config.seed)
    info = {"left_out": describe_left_out(cut.left_out, folder)} if folder else {}
    return Source(cut.class_names, cut.labels, cut.train, cut.test, config.preprocessing, cut, True, info)


def _open_encoded(config: DataConfig) -> Source:
    how = config.preprocessing
    found = find_images(config)
    train, test = found.split(config)
    where = f"data {show(config.path or '')}"
    images = EncodedImages(where, found.items, found.order, max_pixels(how.height, how.width), upright=how.upright)
    return Source(
        found.class_names,
        found.labels,
        train,
        test,
        how,
        images,
        info=found.info,
        numbered=found.numbered,
        open_file=images.open,
    )


def _in_order(source: Source, where: str, path: Path) -> Source:
    """A source whose labels are those of a list of names."""
    names = read_class_names(path)
    if not source.numbered:
        labels = map_labels(where, source.class_names, names, source.labels)
    elif len(source.labels) and source.labels.max() >= len(names):
        raise DataError(
            f"{where}: got the label {source.labels.max()}, expected 0 to {len(names) - 1}, as {show(path)} has "
            f"{len(names):,} names"
        )
    else:
        labels = source.labels
    return replace(source, class_names=names, labels=labels, numbered=False)


def _open_torchvision(config: DataConfig) -> Source:
    import torchvision.datasets  # type: ignore[import-untyped]  # ships none

    name = config.name or ""
    kind = getattr(torchvision.datasets, name, None)
    if name not in torchvision.datasets.__all__ or not isinstance(kind, type):
        raise DataError(f"data: got the name {name!r}, expected a class of torchvision.datasets such as 'CIFAR10'")
    root = Path(config.path) if config.path else Path(torch.hub.get_dir()) / "datasets"
    parts = _make_torchvision(kind, root)
    labels = np.concatenate([_labels_of(part) for part in parts])
    if len(parts) == 2:
        train, test = np.arange(len(parts[0])), np.arange(len(parts[0]), len(labels))
    else:
        train, test = draw_split(labels, config.test_fraction, config.seed)
    own = getattr(parts[0], "classes", None)
    names = own or [str(label) for label in range(int(labels.max()) + 1)]

    def open_image(index: int) -> Image.Image:
        part, offset = (parts[0], 0) if index < len(parts[0]) else (parts[1], len(parts[0]))
        try:
            image = part[index - offset][0]
            if not isinstance(image, Image.Image):
                raise DataError(f"data {name}: gives {type(image).__name__}, expected images")
            return to_rgb(image, upright=config.preprocessing.upright)
        except (OSError, SyntaxError, ValueError) as error:
            raise DataError(f"data {name}: image {index - offset} cannot be decoded ({error})") from error

    # Imagenette has a tuple of synonyms for each class.
    names = [str(each[0] if isinstance(each, tuple) else each) for each in names]
    return Source(names, labels, train, test, config.preprocessing, open_image, numbered=not own)


def _make_torchvision(kind: type[Any], root: Path) -> list[Any]:
    """Returns the data set's training and test parts, or one part when it has no split of its own."""
    arguments = inspect.signature(kind).parameters
    fixed: dict[str, Any] = {}
    if "root" in arguments:
        root.mkdir(parents=True, exist_ok=True)
        fixed["root"] = str(root)
    if "download" in arguments:
        fixed["download"] = True
    try:
        if "train" in arguments:
            return [kind(train=True, **fixed), kind(train=False, **fixed)]
        if "split" in arguments:
            return [_first_split(kind, fixed, splits) for splits in (_TRAIN_SPLITS, _TEST_SPLITS)]
        return [kind(**fixed)]
    except (OSError, RuntimeError, TypeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"data {kind.__name__}: torchvision cannot open it in {root}: {reason}") from error


def _first_split(kind: type[Any], fixed: dict[str, Any], splits: tuple[str, ...]) -> Any:
    for split in splits:
        try:
            return kind(split=split, **fixed)
        except ValueError:
            continue
    raise ValueError(f"none of its splits is called {', '.join(splits)}")


def _labels_of(part: Any) -> NDArray[np.int64]:
    for attribute in ("targets", "labels", "_labels"):
        labels = getattr(part, attribute, None)
        if isinstance(labels, Sequence | np.ndarray | torch.Tensor) and len(labels) == len(part):
            return np.asarray(labels, dtype=np.int64)
    samples = getattr(part, "_samples", None)  # (path, label) of each; the last way decodes every image
    if isinstance(samples, Sequence) and len(samples) == len(part):
        return np.array([int(sample[1]) for sample in samples], dtype=np.int64)
    return np.array([int(part[index][1]) for index in range(len(part))], dtype=np.int64)


def _shift(pixels: torch.Tensor) -> torch.Tensor:
    """Moves an image [H, W, 3] by up to an eighth of its shorter side each way; the edge pixels fill the gap."""
    height, width, _ = pixels.shape
    reach = min(height, width) // 8
    down, right = torch.randint(-reach, reach + 1, (2,)).tolist()
    rows, columns = (
        (torch.arange(height) - down).clamp(0, height - 1),
        (torch.arange(width) - right).clamp(0, width - 1),
    )
    return pixels[rows][:, columns]


def _crop_flip(image: Image.Image, how: Preprocessing) -> NDArray[np.uint8]:
    """Cuts out 35 to 100 % of the area at an aspect of 3/4 to 4/3, and mirrors every second image."""
    from torchvision.transforms import RandomResizedCrop  # type: ignore[import-untyped]  # ships none

    top, left, height, width = RandomResizedCrop.get_params(image, [0.35, 1.0], [3 / 4, 4 / 3])
    box = (left, top, left + width, top + height)
    pixels = np.array(image.resize((how.width, how.height), RESAMPLING[how.interpolation], box=box))
    return np.ascontiguousarray(pixels[:, ::-1]) if torch.rand(()) < 0.5 else pixels
