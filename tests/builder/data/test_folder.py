"""A folder of images: which of its folders are classes and which are splits, and the one line for the rest."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from temper.builder.data.config import DataConfig
from temper.builder.data.prepare import describe_data, fingerprint_data, load_train, prepare_data
from temper.builder.errors import DataError


def fill(root: Path, *names: str) -> Path:
    """Writes images, all of another colour; a name that ends in a slash is an empty folder."""
    for number, name in enumerate(names):
        path = root / name
        if name.endswith("/"):
            path.mkdir(parents=True, exist_ok=True)
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 36), (number % 256, number // 256, 7)).save(path, "PNG")
    return root


def classes(folder: str, *names: str, num: int = 4) -> list[str]:
    return [f"{folder}{name}/{index}.png" for name in names for index in range(num)]


def prepare(root: Path, out: Path, **more: Any) -> dict[str, Any]:
    out.mkdir()
    return prepare_data(DataConfig(source="folder", path=str(root), image_size=32, **more), out)


def labels_of(out: Path) -> list[str]:
    return (out / "labels.txt").read_text().splitlines()


TRAIN = classes("train/", "ant", "bee")


@pytest.mark.parametrize(
    ("train", "test"),
    [
        *(("train", name) for name in ("test", "testing", "val", "valid", "validation", "dev", "eval")),
        *[("Train", "Val"), ("TRAIN", "TEST"), ("Training", "Testing"), ("training_set", "test_set")],
        *[("train-images", "Validation images"), ("train2017", "val2017")],
    ],
)
def test_usual_names_of_splits_are_known(tmp_path: Path, train: str, test: str) -> None:
    names = classes(f"{train}/", "ant", "bee") + classes(f"{test}/", "ant", "bee", num=3)
    info = prepare(fill(tmp_path / "images", *names), tmp_path / "out", num_calibration=4)
    assert labels_of(tmp_path / "out") == ["ant", "bee"]
    assert (info["num_train"], info["num_test"], info["num_calibration"]) == (8, 6, 4)
    assert np.load(tmp_path / "out/test_labels.npy").tolist() == [0, 0, 0, 1, 1, 1]
    assert info["split"] == {"train": f"{train}/", "test": f"{test}/", "unused": {}, "untested": []}
    assert describe_data(info) == f"8 train, 6 test images; {train}/ trains, {test}/ tests"


LAYOUTS = [
    # Name, files, number of training and of test images, what is said.
    ("flat", classes("", "ant", "bee"), (6, 2), "6 train, 2 test images"),
    ("a class called train", classes("", "train", "bus", "car"), (9, 3), "9 train, 3 test images"),
    ("classes that begin so", classes("", "train_car", "train_station"), (6, 2), "6 train, 2 test images"),
    ("of several splits", classes("", "test_tube", "train_station"), (6, 2), "6 train, 2 test images"),
    ("a class of a split", classes("train/", "train", "bus"), (6, 2), "drawn from every class of train/ tests"),
    ("folders in classes", classes("", "ant/red", "bee/red", "red/ant"), (9, 3), "9 train, 3 test images"),
    (
        "test beside val",
        [*TRAIN, *classes("val/", "ant", "bee", num=2), *classes("test/", "ant", "bee", num=3)],
        (8, 6),
        "train/ trains, test/ tests; val/ not used: test/ tests",
    ),
    (
        "test without folders",
        [*TRAIN, *classes("val/", "ant", "bee", num=2), "test/0.png"],
        (8, 4),
        "train/ trains, val/ tests; test/ not used: holds no class folders",
    ),
    (
        "test of one folder that is no class",
        [*TRAIN, *classes("val/", "ant", "bee", num=2), "test/unknown/0.png"],
        (8, 4),
        "train/ trains, val/ tests; test/ not used: holds none of the training classes",
    ),
    (
        "test with empty class folders",
        [*TRAIN, *classes("val/", "ant", "bee", num=2), "test/ant/", "test/bee/"],
        (8, 4),
        "train/ trains, val/ tests; test/ not used: holds none of the training classes",
    ),
    (
        "only train",
        TRAIN,
        (6, 2),
        "6 train, 2 test images; train/ trains, drawn from every class of train/ tests",
    ),
    (
        "train beside an unlabelled test",
        [*TRAIN, "test/0.png"],
        (6, 2),
        "drawn from every class of train/ tests; test/ not used: holds no class folders",
    ),
    (
        "other folders",
        [*TRAIN, *classes("valid/", "ant", "bee", num=2), "samples/0.png", "docs/"],
        (8, 4),
        "valid/ tests; docs/ not used: no split's name; samples/ not used: no split's name",
    ),
    (
        "a class without test images",
        [*TRAIN, *classes("val/", "ant", num=2), "val/bee/"],
        (8, 2),
        "train/ trains, val/ tests; no test images of bee",
    ),
    (
        "images beside the classes",
        [*TRAIN, *classes("val/", "ant", "bee", num=2), "0.png", "train/1.png", "val/2.png"],
        (8, 4),
        "3 left out (3 an image in no class folder): 0.png, train/1.png, val/2.png",
    ),
    (
        "an empty folder of the test split that is no class",
        [*TRAIN, *classes("val/", "ant", "bee", num=2), "val/cat/"],
        (8, 4),
        "train/ trains, val/ tests",
    ),
]


@pytest.mark.parametrize(
    ("names", "counts", "said"), [row[1:] for row in LAYOUTS], ids=[row[0] for row in LAYOUTS]
)
def test_layout(tmp_path: Path, names: list[str], counts: tuple[int, int], said: str) -> None:
    info = prepare(fill(tmp_path / "images", *names), tmp_path / "out")
    assert (info["num_train"], info["num_test"]) == counts
    assert describe_data(info).endswith(said)


REFUSED = [
    ("no folder", ["0.png"], r"got 0 classes \(none\), expected a sub-folder of images per class"),
    ("one class", classes("", "ant"), r"got 1 classes \(ant\), expected a sub-folder of images per class"),
    (
        "too few",
        ["ant/0.png", "bee/0.png"],
        "no image is left for the test split; add images or change test_fraction",
    ),
    (
        "empty classes",
        [*classes("", "ant", "bee"), "cat/", "dog/"],
        r"images: no images of 2 of 4 classes: cat, dog; remove the folders, or add files that end in \.png, ",
    ),
    (
        "one folder deeper",
        classes("flowers/", "ant", "bee"),
        r"got 1 classes \(flowers\), .*; .*/images/flowers holds 2 folders: is that the one\?",
    ),
    (
        "splits one folder deeper",
        [*classes("flowers/train/", "ant", "bee"), "__MACOSX/0.png"],
        r"got 1 classes \(flowers\)",
    ),
    (
        "train one folder deeper",
        [*classes("train/train/", "ant", "bee"), *classes("val/", "ant", "bee")],
        r"images/train: got 1 classes \(train\), .*; .*/train/train holds 2 folders",
    ),
    ("splits without classes", ["train/0.png", "valid/0.png"], "got train/, valid/ among the classes"),
    (
        "splits without classes beside another",
        ["train/0.png", "train/1.png", "test/0.png", "test/1.png", "more/0.png"],
        "got test/, train/ among the classes",
    ),
    (
        "test without classes beside the classes",
        [*classes("", "ant", "bee"), "test/0.png", "test/1.png"],
        "got test/ among the classes, which is how splits of the data are named; "
        "expected a sub-folder of images per class, or train/ beside .*; rename what is a class",
    ),
    *[
        (
            f"{name} beside the classes",
            [*classes("", "ant", "bee"), *classes(f"{name}/", "ant", "bee")],
            f"got {name}/ among the classes",
        )
        for name in ("val", "test", "Validation", "test1", "holdout")
    ],
    ("several of one split", classes("", "valid", "dev"), "got dev/, valid/ among the classes"),
    ("two of training", classes("", "train", "training"), "got train/, training/ among the classes"),
    (
        "val among the classes of train",
        [*classes("train/", "ant", "bee", "val"), *classes("test/", "ant", "bee")],
        "images/train: got val/ among the classes",
    ),
    (
        "both one folder deeper",
        classes("train/train/", "ant", "bee") + classes("train/val/", "ant", "bee"),
        "images/train: got train/, val/ among the classes",
    ),
    (
        "unknown names of splits",
        classes("seg_train/", "ant", "bee") + classes("seg_test/", "ant", "bee") + classes("", "seg_pred"),
        "got seg_test/, seg_train/ among the classes",
    ),
    (
        "no train",
        classes("val/", "ant", "bee") + classes("test/", "ant", "bee"),
        "test/, val/ hold class folders, but there is no train/",
    ),
    (
        "two of a name",
        [*TRAIN, *classes("Training/", "ant", "bee"), *classes("val/", "ant", "bee")],
        "Training/, train/ are all names of the training split; keep one",
    ),
    (
        "two validations",
        [*TRAIN, *classes("val/", "ant", "bee"), *classes("valid/", "ant", "bee")],
        "val/, valid/ are names of the same split; keep one",
    ),
    (
        "a class that only val has",
        [*TRAIN, *classes("val/", "ant", "cat")],
        "val/ holds classes that train/ lacks: cat; expected the same folders in both",
    ),
    (
        "none of the classes in val",
        [*TRAIN, *classes("val/", "cat", "dog")],
        "val/ holds classes that train/ lacks: cat, dog; expected the same folders in both",
    ),
    (
        "classes that differ in case",
        [*TRAIN, *classes("test/", "Ant", "Bee")],
        r"test/ holds classes that train/ lacks: Ant, Bee \(Ant is ant there, Bee is bee there\)",
    ),
    (
        "a class called train with folders",
        [*TRAIN, *classes("", "bus", "car")],
        "train/ holds class folders as a split does, bus/ is none",
    ),
]


@pytest.mark.parametrize(("names", "message"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_layout_that_is_refused(tmp_path: Path, names: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        prepare(fill(tmp_path / "images", *names), tmp_path / "out")
    assert str(caught.value).isprintable()


def test_classes_that_differ_in_case_only_are_classes(tmp_path: Path) -> None:
    """As the letters of a set of handwriting are."""
    prepare(fill(tmp_path / "images", *classes("", "A", "a")), tmp_path / "out")
    assert labels_of(tmp_path / "out") == ["A", "a"]


def test_missing_folder_is_one_line(tmp_path: Path) -> None:
    config = DataConfig(source="folder", path=str(tmp_path / "none"), image_size=32)
    for use in (fingerprint_data, load_train):
        with pytest.raises(DataError, match=r"data .*none: no such folder; expected a sub-folder of images"):
            use(config)


def test_rubbish_is_neither_a_class_nor_an_image_nor_a_change(tmp_path: Path) -> None:
    root = fill(tmp_path / "images", *TRAIN, *classes("val/", "ant", "bee"))
    config = DataConfig(source="folder", path=str(root), image_size=32)
    before = fingerprint_data(config)
    fill(root, ".ipynb_checkpoints/0-checkpoint.png", "train/.ipynb_checkpoints/", "train/__MACOSX/0.png")
    for name in (
        ".DS_Store",
        "train/.DS_Store",
        "train/ant/._0.png",
        "train/ant/Thumbs.db",
        "val/bee/desktop.ini",
    ):
        (root / name).write_bytes(b"\0\0\0\1Bud1")
    assert fingerprint_data(config) == before
    info = prepare(root, tmp_path / "out")
    assert labels_of(tmp_path / "out") == ["ant", "bee"]
    assert (info["num_train"], info["num_test"]) == (8, 8)
    assert info["left_out"]["num"] == 8
    assert info["left_out"]["reasons"] == {"left by a system or hidden": 8}


def test_changed_folder_is_a_new_input(tmp_path: Path) -> None:
    root = fill(tmp_path / "images", *classes("", "ant", "bee"))
    config = DataConfig(source="folder", path=str(root), image_size=32)
    seen = {fingerprint_data(config)}
    assert seen == {fingerprint_data(config)}
    changes: list[Callable[[], object]] = [
        lambda: fill(root, "ant/new.png"),
        lambda: os.utime(root / "ant/new.png", (1, 1)),
        lambda: (root / "ant/link.png").symlink_to("nothing"),
        lambda: fill(root, "cat/0.png", "cat/1.png"),
        lambda: fill(root, os.fsdecode(b"ant/\xff.png")),
    ]
    for number, change in enumerate(changes, start=2):
        change()
        seen.add(fingerprint_data(config))
        assert len(seen) == number
    assert fingerprint_data(DataConfig()) is None


def test_what_is_not_used_is_no_new_input(tmp_path: Path) -> None:
    root = fill(tmp_path / "images", *TRAIN, *classes("test/", "ant", "bee"))
    config = DataConfig(source="folder", path=str(root), image_size=32)
    before = fingerprint_data(config)
    fill(root, *classes("val/", "ant", "bee"), "docs/0.png", "test/cat/")
    assert fingerprint_data(config) == before
    (root / "test").rename(root / "old")  # now val/ tests
    assert fingerprint_data(config) != before


def test_empty_class_is_refused_when_all_is_to_be_reused_too(tmp_path: Path) -> None:
    root = fill(tmp_path / "images", *TRAIN, *classes("test/", "ant", "bee"), "train/cat/")
    with pytest.raises(DataError, match=r"images/train: no images of 1 of 3 classes: cat; remove the folders"):
        fingerprint_data(DataConfig(source="folder", path=str(root), image_size=32))


def test_files_that_cannot_be_used_are_named_all_at_once(tmp_path: Path) -> None:
    root = fill(tmp_path / "images", *classes("", "ant", "bee", num=10), os.fsdecode(b"bee/\xe9.png"))
    (root / "ant/0.png").write_bytes((root / "ant/0.png").read_bytes()[:60])
    (root / "ant/1.png").write_text("<html>")
    (root / "ant/2.png").write_text("version https://git-lfs.github.com/spec/v1\n")
    (root / "ant/3.png").write_bytes(b"")
    (root / "ant/4.png").unlink()
    (root / "ant/4.png").symlink_to("nothing")
    os.mkfifo(root / "ant/pipe.png")
    for index in range(6, 10):
        (root / f"bee/{index}.png").write_text("text")
    (root / os.fsdecode(b"bee/\xe9.png")).write_bytes(b"")
    # One calibration and one test image are decoded: the first that fails brings the others along.
    with pytest.raises(DataError) as caught:
        prepare(root, tmp_path / "out", test_fraction=0.5)
    assert str(caught.value) == (
        f"data {root}: 10 of 21 images cannot be used: "
        "ant/0.png cannot be decoded (image file is truncated), "
        "ant/1.png is a web page, perhaps what a download got in place of the file, "
        "ant/2.png is a Git LFS pointer and not the file itself, which `git lfs pull` fetches, "
        "ant/3.png is empty, ant/4.png is a link to nothing, bee/6.png is text, bee/7.png is text, "
        r"bee/8.png is text, bee/9.png is text, bee/\xe9.png is empty; repair or remove them"
    )


@pytest.mark.slow
def test_training_image_that_cannot_be_used_brings_the_others_along(tmp_path: Path) -> None:
    root = fill(tmp_path / "images", *TRAIN, *classes("val/", "ant", "bee"))
    train = load_train(DataConfig(source="folder", path=str(root), image_size=32))
    for index in (1, 2):
        (root / f"train/bee/{index}.png").write_bytes(b"")
    assert train[0][1] == 0
    with pytest.raises(
        DataError, match=r"2 of 16 images cannot be used: train/bee/1.png is empty, train/bee/2.png"
    ):
        train[5]


def test_folder_is_fingerprinted_without_torch(tmp_path: Path) -> None:
    """A run that reuses everything shall not cost the seconds of its import."""
    root = fill(tmp_path / "images", *classes("", "ant", "bee"))
    program = (
        "import sys; from temper.builder.data.prepare import DataConfig, fingerprint_data; "
        "fingerprint_data(DataConfig(source='folder', path=sys.argv[1])); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program, root], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
