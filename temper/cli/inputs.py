"""Images that a user names on the command line, as the uint8 arrays that a model takes."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from temper.client.errors import InvalidRequest
from temper.client.images import preprocessing_of
from temper.client.model import ModelInfo
from temper.errors import TemperError
from temper.imaging.errors import FolderError, ImageError, show
from temper.imaging.folder import Listing, describe_left_out, list_folders, list_images, name_few, say_left_out
from temper.imaging.formats import SUFFIXES
from temper.imaging.preprocess import Preprocessing
from temper.imaging.read import read_encoded, read_image
from temper.imaging.store import create_images

Images = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]
LeftOut = dict[str, Any] | None
Progress = Callable[[int, int], None]


class InputError(TemperError):
    """The images or labels on the command line cannot be used."""


def preprocessing(info: ModelInfo) -> Preprocessing:
    """How an image is made into what a model takes.

    Raises:
        InputError: The model takes something else than UINT8 [H, W, 3].
    """
    try:
        return preprocessing_of(info)
    except InvalidRequest as error:
        raise InputError(str(error)) from error


def random_images(info: ModelInfo, count: int, seed: int = 0) -> Images:
    """Uniformly random pixels, uint8 [count, H, W, 3]."""
    how = preprocessing(info)
    return np.random.default_rng(seed).integers(0, 256, (count, how.height, how.width, 3), dtype=np.uint8)


def find_images(paths: Sequence[Path], say: Callable[[str], None]) -> list[Path]:
    """The image files among `paths` and in the folders among them, sorted within a folder.

    Args:
        paths: Files, which are taken whatever they are called, and folders.
        say: Receives a line for every folder of which something is left out.

    Raises:
        InputError: A path does not exist, or a folder holds no image.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            listing = _list_images(path)
            if left_out := say_left_out(describe_left_out(listing.left_out, path)):
                say(f"{show(path)}: {left_out}")
            found += listing.paths
        elif path.exists() or path.is_symlink():
            found.append(path)
        else:
            raise InputError(f"{show(path)}: no such file, expected an image or a folder of images")
    return found


def _list_images(folder: Path) -> Listing:
    try:
        listing = list_images(folder)
    except FolderError as error:
        raise InputError(str(error)) from error
    if not listing.paths:
        raise InputError(f"{show(folder)}: holds no image, expected {', '.join(SUFFIXES)} files")
    return listing


def load_images(paths: Sequence[Path], info: ModelInfo, limit: int, say: Callable[[str], None]) -> Images:
    """At most `limit` images: from image files and folders, or from one .npy file, which is mapped and not read.

    Args:
        paths: As of `find_images`, or one .npy file.
        info: The model that they are for.
        limit: How many at most.
        say: As of `find_images`.

    Raises:
        InputError: The .npy file is not uint8 [N, H, W, 3] of the model's size, or files cannot be decoded.
    """
    if len(paths) == 1 and paths[0].suffix == ".npy":
        return open_images(paths[0], info)[:limit]
    files = find_images(paths, say)[:limit]
    how = preprocessing(info)
    images = np.empty((len(files), how.height, how.width, 3), np.uint8)
    _decode(files, images, how)
    return images


def load_encoded(paths: Sequence[Path], info: ModelInfo, limit: int, say: Callable[[str], None]) -> list[bytes]:
    """At most `limit` image files as they are, for a model that decodes them itself.

    Args:
        paths: As of `find_images`.
        info: The model that they are for.
        limit: How many at most.
        say: As of `find_images`.

    Raises:
        InputError: There are none, or files cannot be read.
    """
    if not paths:
        raise InputError(f"model {info.name}: takes image files, expected --images with some; none are made up")
    files = find_images(paths, say)[:limit]
    how = contract(info)
    try:
        return [read_encoded(path, how) for path in files]
    except ImageError as error:
        raise InputError(str(error)) from error


def contract(info: ModelInfo) -> Preprocessing:
    """How a model that takes image files makes pixels of them."""
    assert info.preprocessing is not None, "it would not be one that takes files"
    return info.preprocessing


def _decode(files: Sequence[Path], images: Images, how: Preprocessing, progress: Progress | None = None) -> None:
    """Decodes every file into its row; those that fail are named all at once."""
    failed: list[str] = []
    for index, path in enumerate(files):
        try:
            images[index] = read_image(path, how)
        except ImageError as error:
            failed.append(f"{show(path)} {error.reason}")
        if progress is not None:
            progress(index + 1, len(files))
    if failed:
        num = f"{len(failed):,} of {len(files):,}"
        raise InputError(f"{num} images cannot be used: {name_few(failed)}; repair or remove them")


def open_images(path: Path, info: ModelInfo) -> Images:
    """A memory map of a .npy file, uint8 [N, H, W, 3].

    Raises:
        InputError: The file is missing, no .npy file, or not of the model's shape.
    """
    how, array = preprocessing(info), _open_npy(path)
    if array.dtype != np.uint8 or array.shape[1:] != (how.height, how.width, 3) or len(array) == 0:
        raise InputError(
            f"{path}: got {array.dtype} {list(array.shape)}, "
            f"expected uint8 [N, {how.height}, {how.width}, 3] for {info.name}"
        )
    return array


def open_labels(path: Path, num_images: int, info: ModelInfo) -> Labels:
    """The labels in a .npy file, int64 [N].

    Raises:
        InputError: The file is missing, no .npy file, not one integer per image, or a label is no class.
    """
    labels = read_integers(path, num_images)
    top = -1 if info.answers_classes else info.num_classes
    if labels.min() < 0 or (top > 0 and labels.max() >= top):
        raise InputError(f"{path}: got labels {labels.min()} to {labels.max()}, expected 0 to {top - 1}")
    return labels


def read_integers(path: Path, num_images: int) -> Labels:
    """The integers in a .npy file, int64 [N].

    Raises:
        InputError: The file is missing, no .npy file, or not one integer per image.
    """
    array = _open_npy(path)
    if array.shape != (num_images,) or not np.issubdtype(array.dtype, np.integer):
        raise InputError(f"{path}: got {array.dtype} {list(array.shape)}, expected integers [{num_images}]")
    return array.astype(np.int64)


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


@dataclass(frozen=True, kw_only=True)
class Tree:
    """Labelled images, from a tree with one folder per class or from arrays."""

    images: Images
    """uint8 [N, H, W, 3]."""
    labels: Labels
    """int64 [N]."""
    left_out: LeftOut
    """What of the folder was not used, as `temper.imaging.folder.describe_left_out` says it; None of arrays."""


@dataclass(frozen=True, kw_only=True)
class Files:
    """Labelled image files, from a tree with one folder per class."""

    files: list[Path]
    """The images."""
    labels: Labels
    """int64 [N]."""
    left_out: LeftOut
    """As of `Tree`."""


def list_tree(folder: Path, info: ModelInfo) -> Files:
    """The images of a tree with one folder per class, not decoded.

    The folders are matched with the model's labels by name; where none matches and there is one folder per class,
    by their order.

    Raises:
        InputError: There are no class folders, or they are not the model's classes.
    """
    if not folder.is_dir():
        raise InputError(
            f"{show(folder)}: is no folder, expected one with a folder of images per class, or a .npy file"
        )
    try:
        classes = list_folders(folder)
    except FolderError as error:
        raise InputError(str(error)) from error
    if not classes.paths:
        raise InputError(f"{show(folder)}: holds no folders, expected one folder of images per class")
    indices = _match_classes(folder, [path.name for path in classes.paths], info)
    files: list[Path] = []
    labels: list[int] = []
    left_out = list(classes.left_out)
    for path, index in zip(classes.paths, indices, strict=True):
        listing = _list_images(path)
        files += listing.paths
        labels += [index] * len(listing.paths)
        left_out += listing.left_out
    described = describe_left_out(left_out, folder)
    return Files(files=files, labels=np.array(labels, dtype=np.int64), left_out=described)


def load_tree(folder: Path, info: ModelInfo, work: Path, progress: Progress | None = None) -> Tree:
    """The images of a tree, as `list_tree` lists them, decoded into a memory-mapped file in `work`.

    Raises:
        InputError: As `list_tree`, or the model takes no pixels, or files cannot be decoded.
        OSError: `work` has no room for them.
    """
    how = preprocessing(info)  # first: of a model that takes files the other one is to be asked, whatever comes
    found = list_tree(folder, info)
    images = create_images(work / "images.npy", len(found.files), how.height, how.width)
    _decode(found.files, images, how, progress)
    return Tree(images=images, labels=found.labels, left_out=found.left_out)


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
        f"{show(folder / unknown[0])}: no class of {info.name}, expected folders named {shown or 'as its classes'}"
    )
