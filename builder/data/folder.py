"""A folder of images: which classes it has, and which of its folders train and which test.

Two layouts are read. One folder per class, split by `test_fraction`; or `train/` beside `test/` or `val/`, under
any of their usual names, each with a folder per class. With both, `test/` tests and `val/` is not used; a `test/`
that holds none of the training classes, as of a competition, is passed over; without either the test images are
drawn from `train/`. A split among the class folders, by its name or by the folders in it, is refused.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from temper.builder.data.encoded import DRAWN, Files, Found, state_of
from temper.builder.data.splits import Role, role_of
from temper.builder.errors import DataError
from temper.imaging.errors import FolderError, show
from temper.imaging.folder import LeftOut, describe_left_out, list_folders, list_images, name_few
from temper.imaging.formats import SUFFIXES

_EXPECTED = "expected a sub-folder of images per class, or train/ beside val/ or test/ with such folders"


@dataclass(kw_only=True)
class Folder:
    """The images of a folder and its split."""

    class_names: list[str]
    """In order of their labels."""
    train: list[tuple[Path, int]]
    """The training images and their labels; all images where the folder has no split of its own."""
    test: list[tuple[Path, int]] | None
    """The test images, or None where they are to be drawn from the others."""
    split: dict[str, Any]
    """Which folder trains, which tests, which are not used and why; as JSON."""
    left_out: list[LeftOut] = field(default_factory=list)
    """The files and folders that are not used."""


def open_folder(root: Path) -> Folder:
    """Lists a folder of images and decides which of its folders train and test.

    Raises:
        DataError: The folder cannot be read, a class has no images, or the layout is not clear.
    """
    try:
        return _open(root)
    except FolderError as error:
        raise DataError(f"data {error}; {_EXPECTED}") from error


def fingerprint_folder(root: Path) -> str:
    """Returns a digest of what `open_folder` finds: the classes, and path, size and time of change of every image.

    What is not used is not in it: a .DS_Store, or a `val/` beside a `test/`, trains no new model.

    Raises:
        DataError: As `open_folder`.
    """
    found = open_folder(root)
    roles = [found.split["train"], found.split["test"]]
    digest = hashlib.sha256(repr([found.class_names, roles, len(found.train)]).encode())
    for path, _ in found.train + (found.test or []):
        digest.update(state_of(path, root))
    return digest.hexdigest()


def find_folder(root: Path) -> Found:
    """Finds the images of a folder.

    Raises:
        DataError: As `open_folder`.
    """
    folder = open_folder(root)
    files = folder.train + (folder.test or [])
    return Found(
        items=Files(root, [path for path, _ in files]),
        order=np.arange(len(files)),
        labels=np.array([label for _, label in files], dtype=np.int64),
        num_train=None if folder.test is None else len(folder.train),
        class_names=folder.class_names,
        info={"split": folder.split, "left_out": describe_left_out(folder.left_out, root)},
        left_out=folder.left_out,
    )


def _open(root: Path) -> Folder:
    top = list_folders(root)
    roles = {folder: role for folder in top.paths if (role := role_of(folder.name))}
    splits = {folder: role for folder, role in roles.items() if list_folders(folder).paths}
    training = [folder for folder, role in splits.items() if role == "train"]
    if len(training) > 1:
        raise _unclear(root, f"{_names(training)} are all names of the training split; keep one")
    if training:
        others = [folder for folder in top.paths if folder != training[0]]
        return _open_split(root, training[0], others, splits, top.left_out)
    if splits and len(roles) == len(top.paths):
        raise _unclear(root, f"{_names(list(splits))} hold class folders, but there is no train/")
    names, files, left_out = _list_classes(root)
    split = {"train": ".", "test": DRAWN, "unused": {}}
    return Folder(class_names=names, train=files, test=None, split=split, left_out=left_out)


def _open_split(
    root: Path, training: Path, others: list[Path], splits: dict[Path, Role], left_out: list[LeftOut]
) -> Folder:
    names, train, left_train = _list_classes(training)
    found = Folder(class_names=names, train=train, test=None, split={}, left_out=left_out + left_train)
    unused: dict[str, str] = {}
    candidates = [folder for role in ("test", "val") for folder in others if splits.get(folder) == role]
    chosen: Path | None = None
    for folder in candidates:
        classes = [path.name for path in list_folders(folder).paths if list_images(path).paths]
        if splits[folder] == "test" and not {name.lower() for name in classes} & {name.lower() for name in names}:
            unused[f"{folder.name}/"] = "holds none of the training classes"
        elif chosen is None:
            _check_classes(root, training, folder, names, classes)
            chosen = folder
        elif splits[folder] == splits[chosen]:
            raise _unclear(root, f"{_names([chosen, folder])} are names of the same split; keep one")
        else:
            unused[f"{folder.name}/"] = f"{chosen.name}/ tests"
    for folder in others:
        if folder not in splits:
            if chosen is None and role_of(folder.name) is None and list_images(folder).paths:
                raise _unclear(
                    root, f"{training.name}/ holds class folders as a split does, {folder.name}/ is none"
                )
            unused[f"{folder.name}/"] = "holds no class folders" if role_of(folder.name) else "no split's name"
    if chosen is not None:
        _, found.test, left_test = _list_classes(chosen, names)
        found.left_out += left_test
    tests = f"{chosen.name}/" if chosen is not None else f"{DRAWN} of {training.name}/"
    found.split = {"train": f"{training.name}/", "test": tests, "unused": unused}
    if found.test is not None:
        tested = {label for _, label in found.test}
        found.split["untested"] = [name for label, name in enumerate(names) if label not in tested]
    return found


def _check_classes(root: Path, training: Path, folder: Path, names: list[str], classes: list[str]) -> None:
    """Refuses a test split with classes that the training split lacks; that it lacks some itself is no error."""
    extra = sorted(set(classes) - set(names))
    if not extra:
        return
    spelt = {name.lower(): name for name in names}
    same = [f"{name} is {spelt[name.lower()]} there" for name in extra if name.lower() in spelt]
    hint = f" ({name_few(same)})" if same else ""
    raise DataError(
        f"data {show(root)}: {folder.name}/ holds classes that {training.name}/ lacks: "
        f"{name_few([show(name) for name in extra])}{hint}; expected the same folders in both"
    )


def _list_classes(
    folder: Path, names: list[str] | None = None
) -> tuple[list[str], list[tuple[Path, int]], list[LeftOut]]:
    """Lists one folder per class; with `names`, those of another split, whose labels it takes."""
    listing = list_folders(folder)
    if names is None:
        _check_names(folder, listing.paths)
    labels = {name: label for label, name in enumerate(names or [path.name for path in listing.paths])}
    files: list[tuple[Path, int]] = []
    left_out, empty = list(listing.left_out), []
    for path in listing.paths:
        images = list_images(path)
        left_out += images.left_out
        if names is None:
            _check_inside(folder, path, images.paths, labels)
        # An empty folder of a test split may be no class.
        files += [(image, labels[path.name]) for image in images.paths]
        if not images.paths:
            empty.append(show(path.name))
    if names is None and empty:
        raise DataError(
            f"data {show(folder)}: no images of {len(empty)} of {len(labels)} classes: {name_few(empty)}; "
            f"remove the folders, or add files that end in {', '.join(SUFFIXES)}"
        )
    if names is None and len(labels) < 2:
        raise _too_few(folder, listing.paths)
    return list(labels), files, left_out


def _too_few(folder: Path, classes: list[Path]) -> DataError:
    inside = list_folders(classes[0]).paths if classes else []
    found = ", ".join(show(path.name) for path in classes) or "none"
    deeper = f"; {show(classes[0])} holds {len(inside)} folders: is that the one?" if len(inside) > 1 else ""
    return DataError(f"data {show(folder)}: got {len(classes)} classes ({found}), {_EXPECTED}{deeper}")


def _check_names(folder: Path, classes: list[Path]) -> None:
    """Refuses folders named like splits among the classes, as valid, or seg_train beside seg_test."""
    found = [path for path in classes if role_of(path.name)]
    if [path.name.lower() for path in found] == ["train"]:  # a vehicle
        found = []
    # By the rest of the name: test_tube and train_station are of no one data set.
    stems: dict[tuple[str, ...], dict[Path, set[Role]]] = defaultdict(dict)
    for path in classes:
        words = {word: role_of(word) for word in re.findall(r"[^\W\d_]+", path.name.lower())}
        if roles := {role for role in words.values() if role}:
            stems[tuple(word for word, role in words.items() if not role)][path] = roles
    for told in stems.values():
        if len(told) > 1 and len(set[Role]().union(*told.values())) > 1:
            found += [path for path in told if path not in found]
    if found and len(classes) > 1:
        what = f"got {_names(sorted(found))} among the classes, which is how splits of the data are named"
        raise _unclear(folder, what, "; rename what is a class")


def _check_inside(folder: Path, path: Path, images: list[Path], labels: dict[str, int]) -> None:
    """Refuses a folder among the classes that holds some of them itself, as a split does under any name."""
    inside = {image.parent.name for image in images if image.parent != path}
    shared = sorted(inside & labels.keys() - {path.name})
    if len(shared) > 1:
        what = f"got {show(path.name)}/ among the classes, which holds classes itself ({name_few(shared)})"
        raise _unclear(folder, what)


def _unclear(root: Path, what: str, hint: str = "") -> DataError:
    return DataError(f"data {show(root)}: {what}; {_EXPECTED}{hint}")


def _names(folders: list[Path]) -> str:
    return name_few([f"{show(folder.name)}/" for folder in folders])
