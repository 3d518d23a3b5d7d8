"""What lies in a folder: which files are images, and the count of the rest."""

from __future__ import annotations

import os
import socket
import subprocess
from pathlib import Path

import pytest

from temper.imaging.errors import FolderError
from temper.imaging.folder import describe_left_out, list_folders, list_images, name_few, say_left_out


def fill(root: Path, *names: str | bytes) -> Path:
    for name in names:
        path = root / os.fsdecode(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def test_images_are_found_by_name_in_every_folder_and_sorted(tmp_path: Path) -> None:
    names = ["a.png", "b.JPG", "c/d/e.webp", "c/f.TIFF", "c-d/g.bmp", "h.gif", "i.pgm", "j.jpeg"]
    fill(tmp_path, *names, b"\xff.png")
    (tmp_path / "link").symlink_to(tmp_path / "c" / "d")
    found = [str(path.relative_to(tmp_path)) for path in list_images(tmp_path).paths]
    # As torchvision's ImageFolder sorts them, so that the same seed draws the same test images.
    here = ["a.png", "b.JPG", "h.gif", "i.pgm", "j.jpeg", "\udcff.png"]
    assert found == [*here, "c/f.TIFF", "c-d/g.bmp", "c/d/e.webp", "link/e.webp"]


RUBBISH = [".DS_Store", "._0.png", ".hidden.png", "Thumbs.db", "Desktop.ini", "Icon\r"]
RUBBISH_FOLDERS = [
    "__MACOSX/ant/0.png",
    ".ipynb_checkpoints/0-checkpoint.png",
    "@eaDir/0.png",
    "$RECYCLE.BIN/0.png",
]


def test_what_is_no_image_is_left_out_with_its_reason(tmp_path: Path) -> None:
    fill(tmp_path, "a.png", "notes.txt", "a.xml", "a.heic", *RUBBISH, *RUBBISH_FOLDERS)
    os.mkfifo(tmp_path / "pipe.png")
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind(str(tmp_path / "socket.png"))
        (tmp_path / "zero.png").symlink_to("/dev/zero")
        (tmp_path / "dangling.png").symlink_to("nothing")
        (tmp_path / "loop").symlink_to(tmp_path)
        found = list_images(tmp_path)
    # A link to nothing was meant to be an image: it is one that cannot be read.
    assert [path.name for path in found.paths] == ["a.png", "dangling.png"]
    reasons = {one.path.name: one.reason for one in found.left_out}
    assert {name for name, reason in reasons.items() if reason == "left by a system or hidden"} == {
        *RUBBISH,
        *(name.partition("/")[0] for name in RUBBISH_FOLDERS),
    }
    assert {name for name, reason in reasons.items() if reason == "no image by its name"} == {
        "notes.txt",
        "a.xml",
        "a.heic",
    }
    assert {name for name, reason in reasons.items() if reason == "no regular file"} == {
        "pipe.png",
        "socket.png",
        "zero.png",
    }
    assert reasons["loop"] == "leads back to a folder above it"


def test_folder_deeper_than_python_recurses_is_listed(tmp_path: Path) -> None:
    place = tmp_path
    here = os.open(tmp_path, os.O_RDONLY)
    try:
        for _ in range(1500):  # "d/" each, below the longest path there may be
            os.mkdir("d", dir_fd=here)
            inner = os.open("d", os.O_RDONLY, dir_fd=here)
            os.close(here)
            here, place = inner, place / "d"
        os.close(os.open("a.png", os.O_CREAT | os.O_WRONLY, dir_fd=here))
    finally:
        os.close(here)
    try:
        assert list_images(tmp_path).paths == [place / "a.png"]
    finally:  # pytest, which recurses, could not tidy it
        subprocess.run(["rm", "-r", str(tmp_path / "d")], check=True)


def test_folders_are_listed_and_loose_files_left_out(tmp_path: Path) -> None:
    fill(tmp_path, "b/0.png", "a/0.png", "loose.png", "README.md", *RUBBISH, *RUBBISH_FOLDERS)
    found = list_folders(tmp_path)
    assert [path.name for path in found.paths] == ["a", "b"]
    assert len(found.left_out) == 2 + len(RUBBISH) + len(RUBBISH_FOLDERS)
    assert ("loose.png", "an image in no class folder") in [(one.path.name, one.reason) for one in found.left_out]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none", "none: no such folder"),
        ("file", "file: is no folder"),
        ("circle", "circle: cannot be read: Too many"),
    ],
)
def test_folder_that_cannot_be_listed_is_one_line(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "circle").symlink_to("circle")
    for listing in (list_images, list_folders):
        with pytest.raises(FolderError, match=message):
            listing(tmp_path / name)


def test_what_was_left_out_is_counted_and_the_first_named(tmp_path: Path) -> None:
    fill(tmp_path, "0.png", "z/.DS_Store", *(f"{index:02}.txt" for index in range(12)))
    described = describe_left_out(list_images(tmp_path).left_out, tmp_path)
    names = [f"{index:02}.txt" for index in range(10)]
    reasons = {"no image by its name": 12, "left by a system or hidden": 1}
    assert described == {"num": 13, "reasons": reasons, "first": names}
    assert say_left_out(described) == (
        "13 left out (12 no image by its name, 1 left by a system or hidden): "
        "00.txt, 01.txt, 02.txt, 03.txt, 04.txt, 05.txt, 06.txt, 07.txt, 08.txt, 09.txt and 3 more"
    )
    assert say_left_out(describe_left_out([], tmp_path)) == say_left_out(None) == ""
    assert name_few(["a", "b"]) == "a, b"
