"""Images that a user names on the command line, as the uint8 arrays that a model takes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from client.images import load_image
from client.model import ModelInfo
from temper.errors import TemperError

Images = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]
Progress = Callable[[int, int], None]

SUFFIXES = (".png", ".jpg", ".jpeg")


class InputError(TemperError):
    """The images or labels on the command line cannot be used."""


def image_size(info: ModelInfo) -> tuple[int, int]:
    """The height and width of a model's images in pixels.

    Raises:
        InputError: The model takes something else than UINT8 [H, W, 3].
    """
    shape = info.image_shape
    if info.input_dtype != "UINT8" or len(shape) != 3 or shape[2] != 3 or min(shape) < 1:
        raise InputError(
            f"model {info.name}: takes {info.input_dtype} {list(shape)}, expected UINT8 [height, width, 3] images"
        )
    return shape[0], shape[1]


def random_images(info: ModelInfo, count: int, seed: int = 0) -> Images:
    """Uniformly random pixels, uint8 [count, H, W, 3]."""
    height, width = image_size(info)
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def find_images(paths: Sequence[Path]) -> list[Path]:
    """The image files among `paths` and in the folders among them, sorted within a folder, hidden ones left out.

    Raises:
        InputError: A path does not exist, or a folder holds no PNG or JPEG.
    """
    found: list[Path] = []
    for path in paths:
        if not path.exists():
            raise InputError(f"{path}: no such file, expected a PNG or JPEG image or a folder of them")
        if not path.is_dir():
            found.append(path)
            continue
        inside = sorted(
            file
            for file in path.rglob("*")
            if file.suffix.lower() in SUFFIXES and not file.name.startswith(".") and file.is_file()
        )
        if not inside:
            raise InputError(f"{path}: holds no image, expected {', '.join(SUFFIXES)} files")
        found += inside
    return found


def load_images(paths: Sequence[Path], info: ModelInfo, limit: int) -> Images:
    """At most `limit` images: from image files and folders, or from one .npy file, which is mapped and not read.

    Raises:
        InputError: The .npy file is not uint8 [N, H, W, 3] of the model's size.
        ImageError: A file cannot be decoded.
    """
    if len(paths) == 1 and paths[0].suffix == ".npy":
        return open_images(paths[0], info)[:limit]
    height, width = image_size(info)
    return np.stack([load_image(path, height, width) for path in find_images(paths)[:limit]])


def open_images(path: Path, info: ModelInfo) -> Images:
    """A memory map of a .npy file, uint8 [N, H, W, 3].

    Raises:
        InputError: The file is missing, no .npy file, or not of the model's shape.
    """
    height, width = image_size(info)
    array = _open_npy(path)
    if array.dtype != np.uint8 or array.shape[1:] != (height, width, 3) or len(array) == 0:
        raise InputError(
            f"{path}: got {array.dtype} {list(array.shape)}, "
            f"expected uint8 [N, {height}, {width}, 3] for {info.name}"
        )
    return array


def open_labels(path: Path, num_images: int, info: ModelInfo) -> Labels:
    """The labels in a .npy file, int64 [N].

    Raises:
        InputError: The file is missing, no .npy file, not one integer per image, or a label is no class.
    """
    array = _open_npy(path)
    if array.shape != (num_images,) or not np.issubdtype(array.dtype, np.integer):
        raise InputError(f"{path}: got {array.dtype} {list(array.shape)}, expected integers [{num_images}]")
    labels: Labels = array.astype(np.int64)
    top = info.num_classes
    if labels.min() < 0 or (top > 0 and labels.max() >= top):
        raise InputError(f"{path}: got labels {labels.min()} to {labels.max()}, expected 0 to {top - 1}")
    return labels


def _open_npy(path: Path) -> npt.NDArray[np.uint8]:
    try:
        array: npt.NDArray[np.uint8] = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file, expected a .npy array") from None
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path}: is no whole .npy array ({error})") from error
    if not isinstance(array, np.ndarray):
        raise InputError(f"{path}: holds several arrays, expected one .npy array")
    return array


def load_tree(
    folder: Path, info: ModelInfo, work: Path, progress: Progress | None = None
) -> tuple[Images, Labels]:
    """The images of a tree with one folder per class, decoded into a memory-mapped file in `work`.

    The folders are matched with the model's labels by name; where none matches and there is one folder per class,
    by their order.

    Returns:
        uint8 [N, H, W, 3] and int64 [N].

    Raises:
        InputError: There are no class folders, or they are not the model's classes.
        ImageError: A file cannot be decoded.
    """
    height, width = image_size(info)
    files = list(_labelled_files(folder, info))
    shape = (len(files), height, width, 3)
    images: Images = np.memmap(work / "images.uint8", dtype=np.uint8, mode="w+", shape=shape)
    for index, (path, _) in enumerate(files):
        images[index] = load_image(path, height, width)
        if progress is not None:
            progress(index + 1, len(files))
    return images, np.array([label for _, label in files], dtype=np.int64)


def _labelled_files(folder: Path, info: ModelInfo) -> Iterator[tuple[Path, int]]:
    if not folder.is_dir():
        raise InputError(f"{folder}: is no folder, expected one with a folder of images per class, or a .npy file")
    classes = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not classes:
        raise InputError(f"{folder}: holds no folders, expected one folder of images per class")
    indices = _match_classes(folder, [path.name for path in classes], info)
    for path, index in zip(classes, indices, strict=True):
        for file in find_images([path]):
            yield file, index


def _match_classes(folder: Path, names: list[str], info: ModelInfo) -> list[int]:
    known = {label: index for index, label in enumerate(info.labels)}
    unknown = [name for name in names if name not in known]
    if not unknown:
        return [known[name] for name in names]
    if len(unknown) == len(names) == info.num_classes:
        # As ImageFolder does; numbered folders count by number, so that 10 comes after 9.
        if all(re.fullmatch(r"\d+", name) for name in names):
            order = sorted(range(len(names)), key=lambda index: int(names[index]))
            return [order.index(index) for index in range(len(names))]
        return list(range(len(names)))
    shown = ", ".join(info.labels[:8]) + (", ..." if len(info.labels) > 8 else "")
    raise InputError(
        f"{folder / unknown[0]}: no class of {info.name}, expected folders named {shown or 'as its classes'}"
    )
