"""What is wrong with the images of a source: all of it, not the first that a build would stop at.

`seen.py` looks at every image once; what is concluded from it is here. Near-duplicates are found by ImageHash's
perceptual hash and looked at again before they are reported.
"""

from __future__ import annotations

from collections.abc import Iterator, Sized
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from temper.builder.data.duplicates import find_near, group_equal
from temper.builder.data.encoded import Files, Found
from temper.builder.data.find import find_images
from temper.builder.data.labels import map_labels, read_class_names
from temper.builder.data.seen import Images, One, Progress, Seen, look_at, thumbnail
from temper.builder.data.splits import role_of
from temper.builder.errors import DataError
from temper.imaging.errors import FolderError, show
from temper.imaging.folder import RUBBISH, list_images, name_few
from temper.imaging.formats import FORMATS, max_pixels

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from temper.builder.data.config import DataConfig

# Above it the classes are called unequal.
_IMBALANCE = 10
_FEW_IMAGES = 10
# A photo set may hold some grey images; what is grey as a whole is no finding.
_MOSTLY = 0.5
# Mean difference of two thumbnails, as a share of the contrast. Photos of scikit-image at a third of their size
# and as JPEGs of quality 40 differ by 0.03 to 0.05; two digits of scikit-learn's of one class by at least 0.1.
_NEAR_DIFFERENCE = 0.1
_LEAST_CONTRAST = 20.0


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that is wrong, or to be known."""

    level: Literal["error", "warning"]
    """An error spoils a build or its figures; a warning may be meant so."""
    kind: str
    """Which check found it, in one or two words."""
    text: str
    """What it is and what to do, one line without the names."""
    names: list[str]
    """All images, classes or files that it is about."""


@dataclass(frozen=True, kw_only=True)
class DataCheck:
    """What is in a source and what is wrong with it."""

    path: str
    """The source."""
    num_images: int
    """Images that were looked at."""
    num_train: int
    """Those that train."""
    num_test: int
    """Those that test."""
    num_classes: int
    """Classes, those without images among them."""
    sizes: dict[str, list[int]]
    """Smallest, median and largest width, height and shorter side in pixels; empty without a whole image."""
    notes: list[str] = field(default_factory=list)
    """What is neither wrong nor missing: how many are turned, what could not be looked for."""
    findings: list[Finding]
    """What is wrong, errors first."""

    @property
    def num_errors(self) -> int:
        """How many of the findings are errors."""
        return sum(finding.level == "error" for finding in self.findings)


def check_data(config: DataConfig, progress: Progress | None = None) -> DataCheck:
    """Looks at every image of a source that lies on disk.

    Args:
        config: The source.
        progress: Called with (images done, images in all).

    Returns:
        What is wrong. What a build would refuse is an error in it, and the images are looked at all the same.

    Raises:
        DataError: The source is no such one, or there is nothing to look at.
    """
    findings: list[Finding] = []
    found = _find(config, findings)
    train, test = found.split(config)
    how = config.preprocessing
    images = Images(found, train, test, max_pixels(how.height, how.width))
    seen = Seen.empty(len(found.order))
    findings += _files(images, look_at(images, seen, progress))
    findings += _left_out(images)
    findings += _classes(images, config)
    findings += _duplicates(images, seen)
    if images.hashed:
        findings += _near_duplicates(images, seen)
    notes, odd = _notes(images, seen, min(how.height, how.width))
    return DataCheck(
        path=show(config.path or ""),
        num_images=len(found.order),
        num_train=len(train),
        num_test=len(test),
        num_classes=len(found.class_names),
        sizes=_sizes(seen),
        notes=notes,
        findings=sorted([*findings, *odd], key=lambda finding: finding.level),
    )


def _find(config: DataConfig, findings: list[Finding]) -> Found:
    """The images; where a build refuses a folder, all files in it, by the names of their folders."""
    try:
        return find_images(config)
    except DataError as error:
        root = Path(config.path or "")
        if config.source != "folder" or not root.is_dir():
            raise
        findings.append(Finding(level="error", kind="layout", text=str(error), names=[]))
        return _walk(root, error)


def _walk(root: Path, error: DataError) -> Found:
    try:
        listing = list_images(root)
    except FolderError:
        raise error from None
    if not listing.paths:
        raise error
    parts: list[bool] = []
    classes: list[str] = []
    for path in listing.paths:
        folders = path.relative_to(root).parts[:-1]
        role = role_of(folders[0]) if len(folders) > 1 else None
        parts.append(role in ("test", "val"))
        classes.append(folders[1] if role else folders[0] if folders else "")
    names = sorted(set(classes))
    places = {name: index for index, name in enumerate(names)}
    order = np.argsort(np.array(parts), kind="stable")
    labels = np.array([places[name] for name in classes], dtype=np.int64)[order]
    num_train = len(parts) - sum(parts)
    return Found(
        items=Files(root, listing.paths),
        order=order,
        labels=labels,
        num_train=num_train if any(parts) else None,
        class_names=names,
        left_out=listing.left_out,
    )


def _files(images: Images, seen: Iterator[tuple[int, One]]) -> Iterator[Finding]:
    """What cannot be decoded, and what is of another format than its name says."""
    broken: list[str] = []
    misnamed: list[str] = []
    for index, one in seen:
        name = images.name(index)
        if one.broken is not None:
            broken.append(f"{name} {one.broken}")
        elif wrong := _wrong_ending(name, one.form):
            misnamed.append(f"{name} {wrong}")
    if broken:
        text = f"{count(broken, 'image')} cannot be used; repair or remove them"
        yield Finding(level="error", kind="broken", text=text, names=broken)
    if misnamed:
        text = f"{count(misnamed, 'image')} of another format than the name says, read all the same"
        yield Finding(level="warning", kind="wrong ending", text=text, names=misnamed)


def _wrong_ending(name: str, form: str | None) -> str | None:
    ending = f".{name.rpartition('.')[2].lower()}"
    if form is None or not any(ending in endings for endings in FORMATS.values()):
        return None
    if form == "MPO":  # a JPEG with more pictures behind it
        form = "JPEG"
    return None if ending in FORMATS.get(form, (ending,)) else f"is a {form}"


def _left_out(images: Images) -> Iterator[Finding]:
    """The files that nothing reads, but for what systems leave behind."""
    root = images.found.items.root if isinstance(images.found.items, Files) else None
    names: dict[str, list[str]] = {}
    for one in images.found.left_out:
        below = one.path.relative_to(root) if root and one.path.is_relative_to(root) else one.path
        if one.reason != RUBBISH:
            names.setdefault(one.reason, []).append(show(below))
    for reason, paths in names.items():
        yield Finding(
            level="warning", kind="left out", text=f"{count(paths, 'file')} left out, {reason}", names=paths
        )
    for part, why in images.found.info.get("split", {}).get("unused", {}).items():
        yield Finding(level="warning", kind="left out", text=f"{show(part)} is not used: {why}", names=[])


def _classes(images: Images, config: DataConfig) -> Iterator[Finding]:
    """Classes that the list lacks, those without images, those that only train or only test, and unequal ones."""
    found = images.found
    own = [show(name) for name in found.class_names]
    if config.labels is not None:
        names = read_class_names(Path(config.labels))
        try:
            if not found.numbered:
                map_labels(f"data {show(config.path or '')}", found.class_names, names, found.labels)
            elif found.labels.max() >= len(names):
                raise DataError(
                    f"got the label {found.labels.max()}, expected 0 to {len(names) - 1} as in the list"
                )
        except DataError as error:
            yield Finding(level="error", kind="labels", text=str(error), names=[])
    counts = [np.bincount(found.labels[part], minlength=len(own)) for part in (images.train, images.test)]
    both = counts[0] + counts[1]
    empty = [own[index] for index in np.flatnonzero(both == 0)]
    if empty:
        yield Finding(
            level="warning", kind="empty class", text=f"no images of {count(empty, 'class')}", names=empty
        )
    for part, other, word in ((0, 1, "test"), (1, 0, "train")):
        only = [own[index] for index in np.flatnonzero((counts[part] > 0) & (counts[other] == 0))]
        if only:
            level: Literal["error", "warning"] = "warning" if word == "test" else "error"
            yield Finding(
                level=level, kind="one split", text=f"no {word} images of {count(only, 'class')}", names=only
            )
    yield from _balance(own, both)


def _balance(own: list[str], counts: NDArray[np.int64]) -> Iterator[Finding]:
    present = counts[counts > 0]
    if len(present) < 2:
        return
    least, most = int(present.min()), int(present.max())
    if most >= _IMBALANCE * least:
        names = [own[index] for index in np.flatnonzero(counts * _IMBALANCE <= most) if counts[index]]
        text = f"the classes have {least:,} to {most:,} images; an accuracy over all says little of the small ones"
        yield Finding(level="warning", kind="imbalance", text=text, names=names)
    few = [f"{own[index]} ({counts[index]})" for index in np.flatnonzero((counts > 0) & (counts < _FEW_IMAGES))]
    if few:
        text = f"fewer than {_FEW_IMAGES} images of {count(few, 'class')}"
        yield Finding(level="warning", kind="few images", text=text, names=few)


def _duplicates(images: Images, seen: Seen) -> Iterator[Finding]:
    """The same file more than once: under two labels, in training and test, or within one part."""
    tested = np.zeros(len(seen.ok), np.bool_)
    tested[images.test] = True
    labels, class_names = images.found.labels, images.found.class_names
    two_labels, both_parts, same = [], [], []
    for group in group_equal(seen.digest, seen.ok):
        if len(set(labels[group])) > 1:
            told = [f"{images.name(int(index))} ({show(class_names[labels[index]])})" for index in group]
            two_labels.append(" = ".join(told))
        elif tested[group].any() and not tested[group].all():
            both_parts.append(" = ".join(images.named(group)))
        else:
            same.append(" = ".join(images.named(group)))
    if two_labels:
        text = f"{count(two_labels, 'image')} under two labels; keep the right one"
        yield Finding(level="error", kind="two labels", text=text, names=two_labels)
    if both_parts:
        drawn = images.found.num_train is None
        why = ", as the split is drawn" if drawn else ""
        text = f"{count(both_parts, 'image')} both in training and test{why}; remove all but one"
        yield Finding(level="error", kind="leak", text=text, names=both_parts)
    if same:
        text = f"{count(same, 'image')} there more than once"
        yield Finding(level="warning", kind="duplicate", text=text, names=same)


def _near_duplicates(images: Images, seen: Seen) -> Iterator[Finding]:
    """Test images that look as a training image does, but resized or recompressed."""
    train, test = images.train[seen.ok[images.train]], images.test[seen.ok[images.test]]
    exact = np.isin(seen.digest[test], seen.digest[train])
    test = test[~exact]
    pairs = [
        f"{images.name(int(test[one]))} ~ {images.name(int(train[other]))}"
        for one, candidates in find_near(seen.near[test], seen.near[train])
        for other in _confirm(images, int(test[one]), train, candidates)
    ]
    if pairs:
        text = f"{count(pairs, 'test image')} nearly the same as one that trains; keep such in one split"
        yield Finding(level="warning", kind="near-duplicate", text=text, names=pairs)


def _confirm(images: Images, test: int, train: NDArray[np.int64], candidates: NDArray[np.int64]) -> Iterator[int]:
    """The first of some training images that is really like a test image: plain colours have one hash."""
    wanted = thumbnail(images, test)
    if wanted is None:
        return
    most = _NEAR_DIFFERENCE * max(_LEAST_CONTRAST, float(wanted.std()))
    for candidate in candidates:
        found = thumbnail(images, int(train[candidate]))
        if found is not None and float(np.abs(wanted - found).mean()) <= most:
            yield int(candidate)
            return


def _notes(images: Images, seen: Seen, side: int) -> tuple[list[str], list[Finding]]:
    notes: list[str] = []
    rubbish = [one for one in images.found.left_out if one.reason == RUBBISH]
    if rubbish:
        notes.append(f"{count(rubbish, 'file')} {RUBBISH} left out")
    odd: list[Finding] = []
    num = int(seen.ok.sum())
    if len(turned := np.flatnonzero(seen.turned)):
        notes.append(
            f"{count(turned, 'image')} turned by the EXIF; `upright` in [data] says whether that is applied"
        )
    grey = np.flatnonzero(seen.grey)
    if len(grey) > _MOSTLY * num:
        notes.append(f"{len(grey):,} of {num:,} images are grey")
    elif len(grey):
        text = f"{len(grey):,} of {num:,} images are grey among coloured ones"
        odd.append(Finding(level="warning", kind="grey", text=text, names=images.named(grey)))
    small = np.flatnonzero(seen.ok & (np.minimum(seen.width, seen.height) < side))
    if len(small):
        notes.append(f"{count(small, 'image')} with a side below {side} pixels, which are enlarged")
    if not images.hashed:
        notes.append('near-duplicates were not looked for: that needs ImageHash; run `pip install "temper[data]"`')
    return notes, odd


def _sizes(seen: Seen) -> dict[str, list[int]]:
    if not seen.ok.any():
        return {}
    width, height = seen.width[seen.ok], seen.height[seen.ok]
    sides = {"width": width, "height": height, "shorter_side": np.minimum(width, height)}
    return {name: [int(side.min()), int(np.median(side)), int(side.max())] for name, side in sides.items()}


def count(things: Sized, noun: str) -> str:
    """Returns how many things there are, with the noun: 1 class, 2 classes."""
    plural = noun if len(things) == 1 else f"{noun}es" if noun.endswith("s") else f"{noun}s"
    return f"{len(things):,} {plural}"


def describe_finding(finding: Finding) -> str:
    """Returns a finding as one line: its level, what it is, and the first of the names."""
    names = f": {name_few(finding.names)}" if finding.names else ""
    return f"{finding.level}: {finding.text}{names}"
