"""The pooled features of a network's blocks on disk: written once, batch by batch, and read by rows.

A folder holds `features.npy`, float32 [images, features] with all blocks side by side, and `blocks.json` with
their names and numbers of features. Nothing is kept in memory between two calls: the pages of a memory map that is
kept count as the process's own, and grow with the images.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from temper.builder.errors import ModelError, StoreError

FloatArray = npt.NDArray[np.float32]
Rows = npt.NDArray[np.integer[Any]]

_ARRAY = "features.npy"
_BLOCKS = "blocks.json"
_TYPE = np.dtype("<f4")


class FeaturesWriter:
    """Writes the features of one network, in the images' order; a context manager.

    Args:
        folder: Receives the two files; made when missing.
        blocks: Number of features by block, the first block first.
        num_images: Images that will be appended, in all.
    """

    def __init__(self, folder: Path, blocks: Mapping[str, int], num_images: int) -> None:
        """Begins the file."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / _BLOCKS).write_text(json.dumps(dict(blocks)))
        self._blocks, self._num_images, self._num_written = dict(blocks), num_images, 0
        self._file = (folder / _ARRAY).open("wb")
        shape = (num_images, sum(blocks.values()))
        header = {"descr": _TYPE.str, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self._file, header)  # type: ignore[no-untyped-call]  # NumPy has none

    def append(self, features: Mapping[str, npt.NDArray[np.floating[Any]]]) -> None:
        """Adds the next images.

        Args:
            features: [n, features] by block; n may differ from call to call.

        Raises:
            ModelError: A feature is NaN or infinite.
            ValueError: A block is missing, or has another number of features.
        """
        shapes = {name: array.shape[1:] for name, array in features.items()}
        if shapes != {name: (width,) for name, width in self._blocks.items()}:
            raise ValueError(f"features: got {shapes}, expected [n, features] of {self._blocks}")
        rows = np.concatenate([features[name] for name in self._blocks], axis=1, dtype=_TYPE, casting="same_kind")
        if not np.isfinite(rows).all():
            bad = next(name for name in self._blocks if not np.isfinite(features[name]).all())
            raise ModelError(f"features of {bad}: got NaN or infinity, expected finite numbers; check the weights")
        self._file.write(rows.tobytes())
        self._num_written += len(rows)

    def __enter__(self) -> Self:
        """Returns itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends the file.

        Raises:
            ValueError: Not all images were appended.
        """
        self._file.close()
        if kind is None and self._num_written != self._num_images:
            raise ValueError(f"features: got {self._num_written} images, expected {self._num_images}")


class Features:
    """The features of one network's blocks on some images; nothing but their place is in memory.

    Args:
        folder: As `FeaturesWriter` leaves it.

    Raises:
        StoreError: The files are missing, damaged or do not fit each other.
    """

    def __init__(self, folder: Path) -> None:
        """Reads what the folder holds."""
        self.folder = folder
        """Where the files are."""
        self._path = folder / _ARRAY
        try:
            self.blocks: dict[str, int] = json.loads((folder / _BLOCKS).read_text())
            """Number of features by block, in the network's order."""
            array = np.load(self._path, mmap_mode="r")
        except (OSError, ValueError) as error:
            raise StoreError(
                f"features {folder}: {error}; expected {_ARRAY} and {_BLOCKS}; make them anew"
            ) from error
        self._width = sum(self.blocks.values())
        if array.dtype != _TYPE or array.ndim != 2 or array.shape[1] != self._width:
            got = f"got {array.dtype} {list(array.shape)}"
            raise StoreError(f"features {self._path}: {got}, expected {_TYPE} [n, {self._width}]; make them anew")
        self.num_images = len(array)
        """Images."""
        self._offset = int(array.offset)
        ends = np.cumsum(list(self.blocks.values())).tolist()
        self._columns = {
            name: slice(end - width, end) for (name, width), end in zip(self.blocks.items(), ends, strict=True)
        }

    def take(self, rows: Rows) -> dict[str, FloatArray]:
        """Returns [len(rows), features] by block, of these images in this order."""
        found = self._read(rows, slice(0, self._width))
        return {name: found[:, columns] for name, columns in self._columns.items()}

    def block(self, name: str, rows: Rows | None = None) -> FloatArray:
        """Returns [len(rows), features] of one block, of these images in this order; of all unless given."""
        return self._read(np.arange(self.num_images) if rows is None else rows, self._columns[name])

    def _read(self, rows: Rows, columns: slice) -> FloatArray:
        found = np.empty((len(rows), columns.stop - columns.start), _TYPE)
        with self._path.open("rb") as file:
            for row, index in zip(found, rows.tolist(), strict=True):
                place = self._offset + _TYPE.itemsize * (index * self._width + columns.start)
                if os.preadv(file.fileno(), [row], place) != row.nbytes:
                    raise StoreError(
                        f"features {self._path}: got no image {index}, expected {self.num_images}; make them anew"
                    )
        return found
