"""The sources on disk: the same images in any of them are the same data, and what cannot be read is one line.

Long because every source is held to one table, and has a table of its own mistakes.
"""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from temper.builder.data.config import DataConfig
from temper.builder.data.find import guess_kind
from temper.builder.data.prepare import describe_data, fingerprint_data, load_train, prepare_data
from temper.builder.data.shards import find_shards
from temper.builder.data.sources import Source, open_source
from temper.builder.errors import DataError

CLASSES = ("ant", "bee", "größe")


def make_images(root: Path, parts: dict[str, int], classes: tuple[str, ...] = CLASSES) -> Path:
    """Photos of noise in several formats, a folder per class, for each part so many of each."""
    rng = np.random.default_rng(0)
    for part, num in parts.items():
        for name in classes:
            folder = root / part / name
            folder.mkdir(parents=True)
            for index in range(num):
                suffix = ("png", "jpg", "webp")[index % 3]
                pixels = rng.integers(0, 256, (36, 40 + index, 3), np.uint8)
                Image.fromarray(pixels).save(folder / f"{index}.{suffix}")
    return root


def listed(root: Path) -> list[tuple[str, str, Path]]:
    """Part, class and path of every image, sorted."""
    return [(path.parts[-3], path.parts[-2], path) for path in sorted(root.glob("*/*/*"))]


def write_csv(root: Path, rows: list[list[str]], head: list[str], name: str = "list.csv") -> Path:
    with (root / name).open("w", newline="") as file:
        csv.writer(file).writerows([head, *rows])
    return root / name


def as_csv(root: Path) -> str:
    rows = [[str(path.relative_to(root)), name, part] for part, name, path in listed(root)]
    return str(write_csv(root, rows, ["path", "label", "split"]))


def as_parquet(root: Path) -> str:
    import pyarrow as pa  # type: ignore[import-untyped]  # ships none
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    rows = [(str(path), CLASSES.index(name), part) for part, name, path in listed(root)]
    columns = dict(zip(("image_path", "class", "subset"), map(list, zip(*rows, strict=True)), strict=True))
    pq.write_table(pa.table(columns), root / "list.parquet")
    return str(root / "list.parquet")


def as_table_per_split(root: Path) -> str:
    (root / "tables").mkdir()
    for part in ("train", "val"):
        rows = [[f"../{path.relative_to(root)}", name] for one, name, path in listed(root) if one == part]
        write_csv(root / "tables", rows, ["file", "category"], f"{part}.csv")
    return str(root / "tables")


def as_shards(root: Path) -> str:
    import webdataset as wds  # type: ignore[import-untyped]  # ships none

    (root / "shards").mkdir()
    for part in ("train", "val"):
        members = [(name, path) for one, name, path in listed(root) if one == part]
        with wds.ShardWriter(str(root / "shards" / f"{part}-%03d.tar"), maxcount=4, verbose=0) as sink:
            for index, (name, path) in enumerate(members):
                image = {path.suffix[1:]: path.read_bytes()}
                sink.write({"__key__": f"{index:04}", **image, "cls": CLASSES.index(name)})
    return str(root / "shards")


def as_dataset(root: Path) -> str:
    import datasets  # type: ignore[import-untyped]  # ships none

    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=list(CLASSES))})
    datasets.disable_progress_bars()
    parts = {}
    for part, split in (("train", "train"), ("val", "validation")):
        rows = [(str(path), CLASSES.index(name)) for one, name, path in listed(root) if one == part]
        images, labels = map(list, zip(*rows, strict=True))
        parts[split] = datasets.Dataset.from_dict({"img": images, "label": labels}, features=features)
    datasets.DatasetDict(parts).save_to_disk(str(root / "dataset"))
    return str(root / "dataset")


# The kind, what writes it beside the images, and whether its labels are numbers without names.
SOURCES: dict[str, tuple[str, Callable[[Path], str], bool]] = {
    "csv": ("table", as_csv, False),
    "parquet": ("table", as_parquet, True),
    "table per split": ("table", as_table_per_split, False),
    "shards": ("webdataset", as_shards, True),
    "dataset": ("huggingface", as_dataset, False),
}


def table(root: Path, **more: Any) -> DataConfig:
    return DataConfig(**{"source": "table", "path": str(root), "image_size": 32, "augment": "none", **more})


def pixels_of(source: Source, which: str) -> dict[bytes, str]:
    """The pixels of a split's images, and the class of each."""
    indices = getattr(source, which)
    found = {source.read(int(index)).tobytes(): source.class_names[source.labels[index]] for index in indices}
    assert len(found) == len(indices)
    return found


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    root = make_images(tmp_path_factory.mktemp("written") / "images", {"train": 4, "val": 2})
    others = {}
    for name, (_, write, _) in SOURCES.items():
        place = root.parent / name
        shutil.copytree(root, place)
        others[name] = write(place)
    return root, others


@pytest.mark.slow
@pytest.mark.parametrize("name", SOURCES)
def test_same_images_are_the_same_data(written: tuple[Path, dict[str, str]], tmp_path: Path, name: str) -> None:
    """Pixels, labels, class names and the split are those of the folder; so is what a build makes of them."""
    kind, _, numbered = SOURCES[name]
    root, path = written[0], written[1][name]
    assert guess_kind(Path(path)) == kind
    (tmp_path / "names.txt").write_text("\n".join(CLASSES) + "\n")
    labels = {"labels": str(tmp_path / "names.txt")} if numbered else {}
    config = table(Path(path), source=kind, **labels)
    ours, folder = open_source(config), open_source(table(root, source="folder"))
    assert ours.class_names == folder.class_names == list(CLASSES)
    for which in ("train", "test"):
        assert pixels_of(ours, which) == pixels_of(folder, which)
    out = tmp_path / "out"
    out.mkdir()
    info = prepare_data(config, out)
    assert (info["num_train"], info["num_test"], info["num_classes"]) == (12, 6, 3)
    assert describe_data(info).startswith("12 train, 6 test images; train")
    tested = np.load(out / "test_images.npy")
    assert {image.tobytes() for image in tested} == set(pixels_of(folder, "test"))
    assert load_train(config)[0][0].numpy().tobytes() in pixels_of(folder, "train")
    assert fingerprint_data(config) == fingerprint_data(config)


@pytest.mark.parametrize("name", SOURCES)
def test_what_changed_is_a_new_input(written: tuple[Path, dict[str, str]], tmp_path: Path, name: str) -> None:
    kind, write, _ = SOURCES[name]
    root = make_images(tmp_path / "images", {"train": 2, "val": 1})
    config = table(Path(write(root)), source=kind)
    before = fingerprint_data(config)
    assert before is not None and before == fingerprint_data(config)
    for path in sorted(root.rglob("*")):
        if path.suffix in (".png", ".tar", ".arrow"):
            os.utime(path, (1, 1))
    changed = fingerprint_data(config)
    assert changed != before
    (tmp_path / "names.txt").write_text("ant\nbee\ngröße\nwasp\n")
    assert fingerprint_data(
        table(Path(config.path or ""), source=kind, labels=str(tmp_path / "names.txt"))
    ) not in (
        before,
        changed,
    )


HEAD = ["path", "label"]
ROWS = [[f"train/{name}/{index}.{('png', 'jpg')[index]}", name] for name in CLASSES for index in range(2)]

# Keys of the recipe, the table's head and rows; the number of training and test images, and what is said.
TABLES: dict[str, tuple[dict[str, Any], list[str], list[list[str]], tuple[int, int], str]] = {
    "without a split": ({"test_fraction": 0.5}, HEAD, ROWS, (3, 3), "3 train, 3 test images"),
    "columns by name": (
        {"image_column": "a", "label_column": "b", "test_fraction": 0.5},
        ["a", "b", "path"],
        [[*row, "x"] for row in ROWS],
        (3, 3),
        "3 train, 3 test images",
    ),
    "a split by name": (
        {"split_column": "fold"},
        [*HEAD, "fold"],
        [[*row, ("train", "test")[index % 2]] for index, row in enumerate(ROWS)],
        (3, 3),
        "train trains, test tests",
    ),
    "three splits": (
        {},
        ["Image Path", "Class_Name", "Split"],
        [[*row, ("train", "test", "val")[index % 3]] for index, row in enumerate([*ROWS, *ROWS])],
        (4, 4),
        "train trains, test tests; val not used: test tests",
    ),
    "a set that is no split": (
        {"test_fraction": 0.5},
        [*HEAD, "set"],
        [[*row, "A"] for row in ROWS],
        (3, 3),
        "3 train, 3 test images",
    ),
    "labels by number": (
        {"test_fraction": 0.5},
        HEAD,
        [[path, str(CLASSES.index(name) * 2)] for path, name in ROWS],
        (3, 3),
        "no images of 2 of the 5 classes",
    ),
    "written on Windows": (
        {"test_fraction": 0.5},
        HEAD,
        [[path.replace("/", "\\"), name] for path, name in ROWS],
        (3, 3),
        "3 train, 3 test images",
    ),
}


@pytest.mark.parametrize(("keys", "head", "rows", "counts", "said"), TABLES.values(), ids=TABLES.keys())
def test_table(
    tmp_path: Path,
    keys: dict[str, Any],
    head: list[str],
    rows: list[list[str]],
    counts: tuple[int, int],
    said: str,
) -> None:
    path = write_csv(make_images(tmp_path / "images", {"train": 2}), rows, head)
    (tmp_path / "out").mkdir()
    info = prepare_data(table(path, **keys), tmp_path / "out")
    assert (info["num_train"], info["num_test"]) == counts
    assert describe_data(info).endswith(said)


# Keys, what is written as list.csv, and the message.
BAD_TABLES: dict[str, tuple[dict[str, Any], bytes, str]] = {
    "no image column": ({}, b"x,label\n", r"got the columns x, label, expected one for the image, called 'image'"),
    "no label column": ({}, b"path,y1\n", r"expected one for the label, called 'label' or so; set label_column"),
    "no head": ({}, b"train/ant/0.png,ant\n", r"got the columns train/ant/0.png, ant, expected one for the image"),
    "two images": (
        {},
        b"path,filename,label\n",
        "got several columns for the image, path, filename; set image_col",
    ),
    "two labels": (
        {},
        b"path,label,class\n",
        "got several columns for the label, label, class; set label_column to",
    ),
    "two splits": (
        {},
        b"path,label,split,set\nx,y,train,test\n",
        "several columns for the split, split, set; set spl",
    ),
    "wrong name": (
        {"label_column": "z"},
        b"path,label\n",
        "label_column: got 'z', expected one of the columns path",
    ),
    "one name twice": ({}, b"path,label,label\n", "got two columns called label, expected one; rename it"),
    "empty": ({}, b"", "got the columns none, expected one for the image"),
    "no rows": ({}, b"path,label\n", "holds no labelled images, expected some"),
    "no label": ({}, b"path,label\nx.png,\n", "row 1 has no label in column label; fill or remove it"),
    "no path": ({}, b"path,label\nx.png,a\n ,b\n", "row 2 has no path in column path; fill or remove it"),
    "too few fields": (
        {},
        b"path,label\nx.png\n",
        "line 2 has 1 fields, expected 2 as the first line has; put text",
    ),
    "negative": (
        {},
        b"path,label\nx.png,-1\ny.png,0\n",
        "got the label -1, expected the index of a class, 0 to 99,999",
    ),
    "a year": ({}, b"path,label\nx.png,20240101\n", "got the label 20240101, expected the index of a class"),
    "one class": ({}, b"path,label\nx.png,a\ny.png,a\n", r"got 1 classes \(a\), expected at least two"),
    "one numbered class": (
        {},
        b"path,label\nx.png,1\ny.png,1\n",
        r"got images of one class \(1\), expected at least",
    ),
    "no train": (
        {"split_column": "s"},
        b"path,label,s\nx.png,a,test\n",
        "got the splits test, expected one called train",
    ),
    "two trains": (
        {},
        b"path,label,split\nx.png,a,train\ny.png,b,Training\n",
        "Training, train are all names of the same split; keep one",
    ),
    "drawn from repeated": (
        {},
        b"path,label\nx.png,a\ny.png,b\nx.png,a\n",
        "1 images have several rows, and the split is drawn: x.png; keep one row of each",
    ),
    "in both parts": (
        {},
        b"path,label,split\nx.png,a,train\ny.png,b,train\ny.png,b,train\nx.png,a,test\ny.png,b,test\n",
        "2 images have a row that trains and one that tests: x.png, y.png; keep one row of each",
    ),
    "latin-1": ({}, b"path,label\nx.png,gr\xf6\xdfe\n", r"is not UTF-8 text \(byte 19\)"),
    "binary": ({}, bytes(range(256)), "is not UTF-8 text"),
    "an escape": ({}, b"path,\x1b[2J\n", r"got the columns path, \\x1b\[2J, expected one for the label"),
    "files that are missing": (
        {},
        b"path,label\nx.png,a\ny.png,b\nz.png,a\nw.png,b\n",
        "4 of 4 images cannot be used: .*x.png no such file",
    ),
}


@pytest.mark.parametrize(("keys", "content", "message"), BAD_TABLES.values(), ids=BAD_TABLES.keys())
def test_bad_table_is_one_line(tmp_path: Path, keys: dict[str, Any], content: bytes, message: str) -> None:
    (tmp_path / "list.csv").write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        open_source(table(tmp_path / "list.csv", **keys)).read(0)
    assert str(caught.value).isprintable()
    assert str(caught.value).startswith("data ")


def test_missing_or_damaged_parquet_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "bad.parquet").write_bytes(b"PAR1")
    for name, message in (("none.parquet", "no such file; expected a CSV"), ("bad.parquet", "cannot be read: ")):
        with pytest.raises(DataError, match=rf"data .*{name}: {message}"):
            open_source(table(tmp_path / name))


def test_parquet_of_the_images_themselves_says_what_to_do(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    cells = [{"bytes": b"x", "path": None}, {"bytes": b"y", "path": None}]
    pq.write_table(pa.table({"image": cells, "label": [0, 1]}), tmp_path / "list.parquet")
    with pytest.raises(
        DataError, match="column image holds the images themselves, expected paths; write the set with"
    ):
        open_source(table(tmp_path / "list.parquet"))


@pytest.mark.parametrize(("module", "write"), [("pyarrow.parquet", as_parquet), ("datasets", as_dataset)])
def test_missing_library_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, write: Callable[[Path], str]
) -> None:
    path = Path(write(make_images(tmp_path / "images", {"train": 2, "val": 1})))
    monkeypatch.setitem(__import__("sys").modules, module, None)
    package = module.partition(".")[0]
    with pytest.raises(DataError, match=rf'needs the package {package}; run `pip install "temper\[data\]"`'):
        open_source(table(path, source=guess_kind(path)))


def png(number: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (40, 36), (number, 1, 2)).save(buffer, "PNG")
    return buffer.getvalue()


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    path.parent.mkdir(exist_ok=True, parents=True)
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def sample(key: str, label: str | None, number: int = 0, ending: str = "cls") -> dict[str, bytes]:
    return {f"{key}.png": png(number), **({} if label is None else {f"{key}.{ending}": label.encode()})}


def samples(*labels: str, ending: str = "cls") -> dict[str, bytes]:
    return {
        name: data
        for at, label in enumerate(labels)
        for name, data in sample(f"{at:03}", label, at, ending).items()
    }


TWO = samples("0", "1", "0", "1")
# The shards, keys, the number of training and of test images, the classes.
SHARDS: dict[str, tuple[dict[str, dict[str, bytes]], dict[str, Any], tuple[int, int], list[str]]] = {
    "drawn": ({"a.tar": TWO}, {}, (2, 2), ["0", "1"]),
    "by name": ({"x-train-0.tar": TWO, "x-train-1.tar": TWO, "x-val-0.tar": TWO}, {}, (8, 4), ["0", "1"]),
    "by folder": ({"train/0.tar": TWO, "test/0.tar": samples("1")}, {}, (4, 1), ["0", "1"]),
    "test beside val": ({"train.tar": TWO, "val.tar": TWO, "test.tar": samples("1")}, {}, (4, 1), ["0", "1"]),
    "names": ({"a.tar": samples("dog", "cat", "dog", "cat", ending="label")}, {}, (2, 2), ["cat", "dog"]),
    "json": (
        {
            "a.tar": samples(
                *[json.dumps({"label": each, "id": 7}) for each in ("b", "a", "b", "a")], ending="json"
            )
        },
        {},
        (2, 2),
        ["a", "b"],
    ),
    "a key of json": (
        {"a.tar": samples(*[json.dumps({"label": "x", "kind": each}) for each in (0, 1, 0, 1)], ending="json")},
        {"label_column": "kind"},
        (2, 2),
        ["0", "1"],
    ),
    "more beside": (
        {"a.tar": {**TWO, "readme": b"x", "._000.png": b"x", "__meta__.json": b"{}", "9.txt": b"no image"}},
        {},
        (2, 2),
        ["0", "1"],
    ),
    "folders inside": ({"a.tar": {f"a/{name}": data for name, data in TWO.items()}}, {}, (2, 2), ["0", "1"]),
}


@pytest.mark.parametrize(("shards", "keys", "counts", "names"), SHARDS.values(), ids=SHARDS.keys())
def test_shards(
    tmp_path: Path,
    shards: dict[str, dict[str, bytes]],
    keys: dict[str, Any],
    counts: tuple[int, int],
    names: list[str],
) -> None:
    for name, members in shards.items():
        write_tar(tmp_path / "shards" / name, members)
    source = open_source(table(tmp_path / "shards", source="webdataset", test_fraction=0.5, **keys))
    assert (len(source.train), len(source.test)) == counts
    assert source.class_names == names
    assert source.read(0)[0, 0].tolist() == [0, 1, 2]
    num_left_out = 5 if "readme" in next(iter(shards.values())) else 0
    assert source.info["left_out"]["num"] == num_left_out - (num_left_out > 4)


def test_pattern_names_the_shards(tmp_path: Path) -> None:
    for number in range(9, 12):
        write_tar(tmp_path / f"x-{number:03}.tar", TWO)
    for pattern, num in (("x-{009..011}.tar", 12), ("x-{009,011}.tar", 8), ("x-01*.tar", 8), ("x-009.tar", 4)):
        source = open_source(table(tmp_path / pattern, source="webdataset", test_fraction=0.5))
        assert len(source.labels) == num
    for pattern in ("x-{009..012}.tar", "y*.tar", "none"):
        with pytest.raises(DataError, match="no such file: .*, expected tar shards of images beside their labels"):
            open_source(table(tmp_path / pattern, source="webdataset"))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:1600])


def pack_with_holes(path: Path) -> None:
    """Writes a shard as GNU tar does it of a file that has a hole."""
    image = path.with_name("0.png")
    with image.open("wb") as file:
        file.seek(1 << 20)
        file.write(png(0))
    (path.parent / "0.cls").write_text("0")
    subprocess.run(["tar", "--sparse", "-cf", path.name, "0.png", "0.cls"], cwd=path.parent, check=True)


# What is in the shard, keys, what is done to it, and the message.
BAD_SHARDS: dict[str, tuple[dict[str, bytes], dict[str, Any], Callable[[Path], object], str]] = {
    "no label": (
        sample("0", None),
        {},
        repr,
        r"sample 0 has no label: got the members png, expected cls, label, json",
    ),
    "two images": (
        {**sample("0", "1"), "0.jpg": b""},
        {},
        repr,
        "sample 0 has several images, png, jpg; set image",
    ),
    "several keys": (
        sample("0", '{"label": 1, "class": 2}', ending="json"),
        {},
        repr,
        "sample 0: .json has several labels, label, class among the keys label, class; set label_column",
    ),
    "no key": (
        sample("0", '{"a": 1}', ending="json"),
        {},
        repr,
        ".json has no label among the keys a; set label_col",
    ),
    "a list": (
        sample("0", '{"label": [1]}', ending="json"),
        {},
        repr,
        "has a list under label, expected one class",
    ),
    "no json": (sample("0", "{", ending="json"), {}, repr, ".json is no text that can be read"),
    "no text": ({"0.png": b"", "0.cls": b"\xff"}, {}, repr, ".cls is no text that can be read"),
    "long label": (
        {"0.png": b"", "0.cls": b"1" * (2 << 20)},
        {},
        repr,
        ".cls is 2,097,152 bytes long, expected the",
    ),
    "wrong ending": (
        sample("0", "1"),
        {"label_column": "kind"},
        repr,
        "no label: got the members png, cls, expected k",
    ),
    "no images": ({"a.txt": b""}, {}, repr, "holds no labelled images, expected some"),
    "cut": (TWO, {}, cut, "is no whole tar file"),
    "holes": (
        TWO,
        {},
        pack_with_holes,
        "sample 0 is stored with its holes left out, as `tar --sparse` does",
    ),
    "empty": (TWO, {}, lambda path: path.write_bytes(b""), "a.tar: is empty, expected tar shards of images"),
    "packed": (
        TWO,
        {},
        lambda path: path.write_bytes(b"\x1f\x8b123"),
        "is a gzip file; unpack it, as what is packed",
    ),
    "two splits": (
        TWO,
        {},
        lambda path: path.rename(path.with_name("train_val.tar")),
        "names of several splits, t",
    ),
    "one without": (
        TWO,
        {},
        lambda path: shutil.copy(path, path.with_name("train.tar")),
        "a.tar: named after no split as others are, expected train-",
    ),
    "no shards": (TWO, {}, lambda path: path.unlink(), "no such shards, expected tar shards of images beside"),
}


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("{a,b}-{08..10}.tar", ["a-08", "a-09", "a-10", "b-08", "b-09", "b-10"]),
        ("c-{0..99}{0..9999}.tar", None),
    ],
)
def test_braces_are_written_out_within_bounds(tmp_path: Path, pattern: str, found: list[str] | None) -> None:
    for name in found or []:
        (tmp_path / f"{name}.tar").touch()
    if found is None:
        with pytest.raises(DataError, match=r"names more than 100,000 shards, expected fewer"):
            find_shards(tmp_path / pattern)
    else:
        assert [path.stem for path in find_shards(tmp_path / pattern)] == found


@pytest.mark.parametrize(("members", "keys", "change", "message"), BAD_SHARDS.values(), ids=BAD_SHARDS.keys())
def test_bad_shard_is_one_line(
    tmp_path: Path, members: dict[str, bytes], keys: dict[str, Any], change: Callable[[Path], object], message: str
) -> None:
    change(write_tar(tmp_path / "shards" / "a.tar", members))
    with pytest.raises(DataError, match=message) as caught:
        open_source(table(tmp_path / "shards", source="webdataset", **keys))
    assert str(caught.value).isprintable()


def test_broken_image_in_a_shard_is_named(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", {**TWO, "002.png": png()[:50], "003.png": b"<html>"})
    source = open_source(table(tmp_path / "a.tar", source="webdataset"))
    with pytest.raises(
        DataError, match=r"a.tar: 2 of 4 images cannot be used: a.tar/002.png .*, a.tar/003.png is a web"
    ):
        for index in range(4):
            source.read(index)


def save_dataset(path: Path, columns: dict[str, list[Any]], features: dict[str, Any]) -> Path:
    import datasets

    datasets.disable_progress_bars()
    datasets.Dataset.from_dict(columns, features=datasets.Features(features)).save_to_disk(str(path))
    return path


def bad_datasets() -> dict[str, tuple[dict[str, list[Any]], dict[str, Any], str]]:
    import datasets

    image, text = datasets.Image(), datasets.Value("string")
    kinds = datasets.ClassLabel(names=["a", "b"])
    cells = [{"bytes": png(number), "path": None} for number in range(4)]
    four = [0, 1, 0, 1]
    return {
        "no image": (
            {"x": ["a"], "label": [0]},
            {"x": text, "label": kinds},
            r"no column of images among x \(Value\)",
        ),
        "no label": ({"image": cells, "x": ["a"] * 4}, {"image": image, "x": text}, "expected one for the label"),
        "two images": (
            {"left": cells, "right": cells, "label": four},
            {"left": image, "right": image, "label": kinds},
            r"got the columns left, right, expected one for the image",
        ),
        "two labels": (
            {"image": cells, "fine_label": four, "coarse_label": four},
            {"image": image, "fine_label": kinds, "coarse_label": kinds},
            "got the columns fine_label, coarse_label, expected one for the label",
        ),
        "not labelled": (
            {"image": cells, "label": [0, 1, -1, 0]},
            {"image": image, "label": kinds},
            "got the label -1, expected the index of a class, 0 to 1 as there are 2 names",
        ),
        "no bytes": (
            {"image": [None] * 4, "label": four},
            {"image": image, "label": kinds},
            r"\[0\] has neither bytes nor a path",
        ),
    }


@pytest.mark.parametrize("name", ["no image", "no label", "two images", "two labels", "not labelled", "no bytes"])
def test_bad_dataset_is_one_line(tmp_path: Path, name: str) -> None:
    columns, features, message = bad_datasets()[name]
    save_dataset(tmp_path / "set", columns, features)
    with pytest.raises(DataError, match=message) as caught:
        open_source(table(tmp_path / "set", source="huggingface")).read(0)
    assert str(caught.value).isprintable()


def test_damaged_or_missing_dataset_is_one_line(tmp_path: Path) -> None:
    columns, features, _ = bad_datasets()["not labelled"]
    path = save_dataset(tmp_path / "set", columns, features)
    (path / "dataset_info.json").write_text("{")
    for place, message in (
        (path, "datasets cannot open it"),
        (tmp_path, "is no data set on disk"),
        ("x", "no such fol"),
    ):
        with pytest.raises(
            DataError, match=rf"data .*: {message}.*expected a folder that datasets' save_to_disk wrote"
        ):
            open_source(table(Path(place), source="huggingface"))


def test_columns_of_a_dataset_by_name(tmp_path: Path) -> None:
    columns, features, _ = bad_datasets()["two labels"]
    path = save_dataset(tmp_path / "set", columns, features)
    config = table(path, source="huggingface", label_column="fine_label", test_fraction=0.5)
    assert open_source(config).class_names == ["a", "b"]


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda root: write_csv(make_images(root, {"images": 2}), ROWS, HEAD).parent, "table"),
        (lambda root: write_csv(make_images(root, {".": 2}), ROWS, HEAD).parent, "folder"),
        (lambda root: write_tar(root / "a.tar", TWO).parent, "webdataset"),
        (lambda root: root / "train-{000..009}.tar", "webdataset"),
        (lambda root: root / "list.CSV", "table"),
        (lambda root: make_images(root, {"train": 2, "val": 2}), "folder"),
        (lambda root: root, "folder"),
    ],
)
def test_kind_of_a_path_is_seen(tmp_path: Path, make: Callable[[Path], Path], kind: str) -> None:
    (tmp_path / "images").mkdir()
    assert guess_kind(make(tmp_path / "images")) == kind
