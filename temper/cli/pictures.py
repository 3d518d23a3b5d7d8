"""Images that are read when they are wanted, a batch at a time, so that a folder of any size takes no memory."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from temper.cli.inputs import Images, InputError, Labels, find_images, open_images, preprocessing
from temper.client.model import ModelInfo
from temper.imaging.errors import ImageError, show
from temper.imaging.folder import name_few
from temper.imaging.read import read_image


class Pictures:
    """The images of a folder, in the order of the folders' and the files' names, or of a .npy file.

    Args:
        path: An image, a folder of them, or a .npy file of uint8 [N, H, W, 3], which is mapped and not read.
        info: The model that they are for.
        say: Receives a line for what of a folder is left out.

    Raises:
        InputError: There are none, or the array is not of the model's shape.
    """

    def __init__(self, path: Path, info: ModelInfo, say: Callable[[str], None]) -> None:
        """Looks for them; none is read yet."""
        self._root, self._how = path, preprocessing(info)
        self._array = open_images(path, info) if path.suffix == ".npy" and not path.is_dir() else None
        self._files = [] if self._array is not None else find_images([path], say)
        self.failed: dict[int, str] = {}
        """Why an image cannot be used, by its index; of those that were read so far."""

    def __len__(self) -> int:
        """How many there are."""
        return len(self._files) if self._array is None else len(self._array)

    def read(self, start: int, end: int) -> tuple[Images, Labels]:
        """Images `start` to `end` - 1, uint8 [k, H, W, 3], and which these are, int64 [k]; no broken files."""
        if self._array is not None:
            return np.array(self._array[start:end]), np.arange(start, end)
        images, rows = [], []
        for index in range(start, end):
            try:
                images.append(read_image(self._files[index], self._how))
                rows.append(index)
            except ImageError as error:
                self.failed[index] = f"{show(self._files[index])} {error.reason}"
        if not images:
            return np.empty((0, self._how.height, self._how.width, 3), np.uint8), np.empty(0, np.int64)
        return np.stack(images), np.array(rows, np.int64)

    def name(self, index: int) -> str | None:
        """The file's path within the folder; None of an array."""
        if self._array is not None:
            return None
        path = self._files[index]
        inner = path.relative_to(self._root) if path != self._root else Path(path.name)
        return os.fsencode(inner).decode(errors="backslashreplace")

    def say_failed(self) -> str | None:
        """Names some of the images that could not be used; None when there are none.

        Raises:
            InputError: None could be used.
        """
        if not self.failed:
            return None
        said = f"{len(self.failed):,} of {len(self):,} images cannot be used: {name_few([*self.failed.values()])}"
        if len(self.failed) == len(self):
            raise InputError(f"{said}; repair or remove them")
        return said
