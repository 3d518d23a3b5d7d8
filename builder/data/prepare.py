"""Images: where they come from, and which of them train, calibrate and test.

The test images are drawn first and never train or calibrate; the calibration images are drawn from the training
split.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from temper.builder.contract import CALIBRATION_IMAGES_FILE, LABELS_FILE, TEST_IMAGES_FILE, TEST_LABELS_FILE
from temper.builder.data.config import DataConfig
from temper.builder.errors import DataError
from temper.builder.names import render_labels

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image

    from temper.builder.data.sources import Source, TrainImages

Progress = Callable[[int, int], None]
_MAX_HELD_OUT = 1000


def prepare_data(config: DataConfig, folder: Path, progress: Progress | None = None) -> dict[str, Any]:
    """Writes the test and calibration images, the test labels and the class names.

    Args:
        config: The source and the split.
        folder: Receives test_images.npy (uint8 [N, H, W, 3]), test_labels.npy (int64 [N]),
            calibration_images.npy (uint8 [M, H, W, 3]) and labels.txt. Images are written one by one; memory
            does not grow with their number.
        progress: Called with (images done, images in all).

    Returns:
        num_train, num_test, num_calibration, num_classes, image_size, source; of a source on disk also split and
        left_out; without_images where classes have none.

    Raises:
        DataError: The source is missing, empty, has one class only, or holds an image that cannot be read.
    """
    import numpy as np

    from temper.builder.data.sources import open_source

    source = open_source(config)
    test, calibration = _draw(source, config)
    total = len(test) + len(calibration)
    _write_images(folder / TEST_IMAGES_FILE, source, test, progress, 0, total)
    _write_images(folder / CALIBRATION_IMAGES_FILE, source, calibration, progress, len(test), total)
    np.save(folder / TEST_LABELS_FILE, source.labels[test])
    (folder / LABELS_FILE).write_bytes(render_labels(source.class_names))
    return {
        "source": config.name if config.source == "torchvision" else config.source,
        "num_train": len(source.train),
        "num_test": len(test),
        "num_calibration": len(calibration),
        "num_classes": len(source.class_names),
        "image_size": config.image_size,
        **source.info,
    }


def describe_data(info: Mapping[str, Any]) -> str:
    """Returns what `prepare_data` gave as one line: how many images, of which folders, and what was left out."""
    from temper.imaging.errors import show
    from temper.imaging.folder import name_few, say_left_out

    parts = [f"{info['num_train']} train, {info['num_test']} test images"]
    split = info.get("split", {})
    if split.get("train", ".") != ".":
        parts.append(f"{split['train']} trains, {split['test']} tests")
    parts += [f"{folder} not used: {why}" for folder, why in split.get("unused", {}).items()]
    if split.get("untested"):
        parts.append(f"no test images of {name_few([show(name) for name in split['untested']])}")
    if without := info.get("without_images"):
        parts.append(f"no images of {without['num']:,} of the {without['of']:,} classes")
    parts.append(say_left_out(info.get("left_out")))
    return "; ".join(part for part in parts if part)


def load_train(config: DataConfig) -> TrainImages:
    """Returns the training split as a torch Dataset of (uint8 tensor [H, W, 3], label), augmented at every access.

    Raises:
        DataError: As `prepare_data`.
    """
    from temper.builder.data.sources import TrainImages, open_source

    return TrainImages(open_source(config), config.augmentation)


def hold_out(
    train: TrainImages, share: float, seed: int
) -> tuple[TrainImages, tuple[NDArray[np.uint8], NDArray[np.int64]]]:
    """Sets a share of the training images aside; the same share and seed set aside the same ones.

    Args:
        train: The training split; it stays as it is.
        share: More than 0 to less than 1; at least one image and at most 1000 are held out.
        seed: Decides which.

    Returns:
        The other images, augmented as before; those held out, uint8 [N, H, W, 3], not augmented; their labels.
    """
    import numpy as np

    from temper.builder.data.sources import TrainImages

    source = train.source
    order = np.random.default_rng([seed, 2]).permutation(source.train)
    num_held_out = max(1, min(_MAX_HELD_OUT, int(share * len(order))))
    held_out = np.sort(order[:num_held_out])
    images = np.stack([source.read(int(index)) for index in held_out])
    rest = replace(source, train=np.sort(order[num_held_out:]))
    return TrainImages(rest, train.augmentation), (images, source.labels[held_out])


def open_tests(config: DataConfig, num: int) -> Iterator[Image.Image | Path | IO[bytes]]:
    """Yields test images as they are, before anything is made of them: files, or what has no file.

    Args:
        config: The images.
        num: How many, at most; which ones, `spread` says.

    Raises:
        DataError: As `prepare_data`.
    """
    from temper.builder.data.sources import open_source

    source = open_source(config)
    tests = _draw(source, config)[0]
    for index in tests[spread(len(tests), num)]:
        yield source.open_image(int(index)) if source.open_file is None else source.open_file(int(index))


def spread(total: int, num: int) -> NDArray[np.int64]:
    """Returns int64 [min(num, total)], positions spread evenly over all: a folder's images are sorted by class."""
    import numpy as np

    return np.linspace(0, total - 1, min(num, total)).round().astype(np.int64)


def file_of(image: Image.Image | Path | IO[bytes]) -> bytes:
    """Returns the file of what `open_tests` yields, as it is; of what has none a PNG."""
    import numpy as np
    from PIL import Image

    if isinstance(image, Path):
        return image.read_bytes()
    if not isinstance(image, Image.Image):
        return image.read()
    packed = io.BytesIO()
    Image.fromarray(np.asarray(image)).save(packed, "PNG")  # its pixels alone
    return packed.getvalue()


def fingerprint_data(config: DataConfig) -> str | None:
    """Returns a digest of the names, sizes and times of a source's files, so that what changed is a new input.

    None for a source whose content its name decides.

    Raises:
        DataError: The source is missing.
    """
    from temper.builder.data.find import fingerprint_images

    return fingerprint_images(config)


def _draw(source: Source, config: DataConfig) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    import numpy as np

    rng = np.random.default_rng([config.seed, 1])
    test = source.test
    if config.num_test is not None and config.num_test < len(test):
        test = np.sort(rng.choice(test, config.num_test, replace=False))
    calibration = rng.permutation(source.train)[: config.num_calibration]
    return test, calibration


def _write_images(
    path: Path, source: Source, indices: NDArray[np.int64], progress: Progress | None, done: int, total: int
) -> None:
    from temper.imaging.store import create_images

    try:
        images = create_images(path, len(indices), source.how.height, source.how.width)
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error.strerror or error}") from error
    for position, index in enumerate(indices):
        images[position] = source.read(int(index))
        if progress is not None:
            progress(done + position + 1, total)
    images.flush()
