"""The images to look at networks with: test images to measure on, training images that probes learn from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from temper.builder.contract import TEST_IMAGES_FILE, TEST_LABELS_FILE
from temper.builder.data.sources import open_source
from temper.imaging.store import create_images

if TYPE_CHECKING:
    from temper.builder.data.config import DataConfig

TRAIN_IMAGES_FILE = "train_images.npy"
TRAIN_LABELS_FILE = "train_labels.npy"


def write_images(
    config: DataConfig,
    data: Path,
    folder: Path,
    progress: Callable[[int, int], None],
    *,
    num_images: int,
    num_train: int,
    seed: int,
) -> dict[str, Any]:
    """Writes test images spread evenly over all, and training images at random, not augmented, with their labels.

    Args:
        config: Of the images.
        data: The folder of the stage `data`.
        folder: Receives test_images.npy, test_labels.npy, train_images.npy and train_labels.npy.
        progress: Called with (training images done, images in all).
        num_images: Test images, at most.
        num_train: Training images, at most.
        seed: Decides which training images.

    Returns:
        num_images, num_train.

    Raises:
        DataError: The source is missing, or an image cannot be read.
    """
    images, labels = (np.load(data / name, mmap_mode="r") for name in (TEST_IMAGES_FILE, TEST_LABELS_FILE))
    count = min(num_images, len(images))
    rows = np.arange(count) * len(images) // count
    test = create_images(folder / TEST_IMAGES_FILE, count, *images.shape[1:3])
    for position, row in enumerate(rows):
        test[position] = images[row]
    test.flush()
    np.save(folder / TEST_LABELS_FILE, labels[rows])
    source = open_source(config)
    drawn = np.random.default_rng([seed, 3]).permutation(source.train)[:num_train]
    train = create_images(folder / TRAIN_IMAGES_FILE, len(drawn), *images.shape[1:3])
    for position, index in enumerate(drawn):
        train[position] = source.read(int(index))
        progress(position + 1, len(drawn))
    train.flush()
    np.save(folder / TRAIN_LABELS_FILE, source.labels[drawn])
    return {"num_images": count, "num_train": len(drawn)}
