"""The images to look at networks with: test images to measure on, training images that probes learn from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from temper.builder.contract import TEST_IMAGES_FILE, TEST_LABELS_FILE
from temper.builder.data.sources import open_source
from temper.builder.data.spread import spread
from temper.imaging.store import create_images

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from temper.builder.data.config import DataConfig
    from temper.builder.data.sources import Source

TRAIN_IMAGES_FILE = "train_images.npy"
TRAIN_LABELS_FILE = "train_labels.npy"
ROWS_FILE = "test_rows.npy"


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
    """Writes test images spread evenly over all, and as many training images of each class, with their labels.

    Args:
        config: Of the images.
        data: The folder of the stage `data`.
        folder: Receives test_images.npy, test_labels.npy, test_rows.npy (their places among all test images),
            train_images.npy and train_labels.npy.
        progress: Called with (training images done, images in all).
        num_images: Test images, at most.
        num_train: Training images, at most.
        seed: Decides which training images.

    Returns:
        num_images, num_train, num_missing (classes without a training image).

    Raises:
        DataError: The source is missing, or an image cannot be read.
    """
    images, labels = (np.load(data / name, mmap_mode="r") for name in (TEST_IMAGES_FILE, TEST_LABELS_FILE))
    rows = spread(len(images), num_images)
    test = create_images(folder / TEST_IMAGES_FILE, len(rows), *images.shape[1:3])
    for position, row in enumerate(rows):
        test[position] = images[row]
    test.flush()
    np.save(folder / TEST_LABELS_FILE, labels[rows])
    np.save(folder / ROWS_FILE, rows)
    source = open_source(config)
    drawn = _draw(source, num_train, seed)
    train = create_images(folder / TRAIN_IMAGES_FILE, len(drawn), *images.shape[1:3])
    for position, index in enumerate(drawn):
        train[position] = source.read(int(index))
        progress(position + 1, len(drawn))
    train.flush()
    np.save(folder / TRAIN_LABELS_FILE, source.labels[drawn])
    return {
        "num_images": len(rows),
        "num_train": len(drawn),
        "num_missing": len(source.class_names) - len(np.unique(source.labels[drawn])),
    }


def _draw(source: Source, num_train: int, seed: int) -> NDArray[np.int64]:
    """Training images at random, of every class in turn: one without an image is one that no probe answers."""
    order = np.random.default_rng([seed, 3]).permutation(source.train)
    labels, turns = source.labels[order], np.empty(len(order), np.int64)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        turns[rows] = np.arange(len(rows))
    drawn: NDArray[np.int64] = order[np.argsort(turns, kind="stable")[:num_train]]
    return drawn
