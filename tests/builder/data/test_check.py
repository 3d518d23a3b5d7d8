"""What is wrong with images: all of it is found, in every source, and what is right is left alone."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from temper.builder.data.check import DataCheck, check_data
from temper.builder.data.config import DataConfig
from temper.builder.data.duplicates import find_near, group_equal
from temper.builder.data.find import guess_kind
from temper.builder.errors import DataError
from temper.cli.main import cli


def picture(seed: int, size: tuple[int, int] = (80, 70)) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes and two splits, all images their own."""
    root = tmp_path_factory.mktemp("healthy") / "images"
    seed = 0
    for part, num in (("train", 12), ("val", 10)):
        for name in ("ant", "bee"):
            (root / part / name).mkdir(parents=True)
            for index in range(num):
                seed += 1
                picture(seed).save(root / part / name / f"{index}.png")
    return root


@pytest.fixture
def root(healthy: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(healthy, tmp_path / "images"))


def check(root: Path, **more: Any) -> DataCheck:
    return check_data(DataConfig(source=guess_kind(root), path=str(root), image_size=64, **more))


def test_healthy_images_have_no_finding(root: Path) -> None:
    calls: list[tuple[int, int]] = []
    config = DataConfig(source="folder", path=str(root), image_size=64)
    found = check_data(config, lambda done, total: calls.append((done, total)))
    assert found.findings == []
    assert found.notes == []
    assert (found.num_images, found.num_train, found.num_test, found.num_classes) == (44, 24, 20, 2)
    assert found.sizes == {"width": [80, 80, 80], "height": [70, 70, 70], "shorter_side": [70, 70, 70]}
    assert calls == [(done, 44) for done in range(1, 45)]


def copy(source: str, target: str) -> Callable[[Path], object]:
    return lambda root: shutil.copy(root / source, root / target)


def write(name: str, data: bytes) -> Callable[[Path], object]:
    return lambda root: (root / name).write_bytes(data)


def smaller(target: str) -> Callable[[Path], object]:
    """The first training image, smaller and as a JPEG."""
    return lambda root: Image.open(root / "train/ant/0.png").resize((60, 52)).save(root / target, quality=75)


def plain(root: Path) -> None:
    """Images of one colour have one perceptual hash, and are not alike."""
    Image.new("RGB", (80, 70), (255, 0, 0)).save(root / "train/ant/red.png")
    Image.new("RGB", (80, 70), (0, 0, 255)).save(root / "val/ant/blue.png")


def more_of_ant(root: Path) -> None:
    for seed in range(1000, 1230):
        picture(seed).save(root / f"train/ant/{seed}.png")


def turned(root: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(500).save(root / "train/ant/turned.jpg", exif=exif)


def large(root: Path) -> None:
    Image.new("1", (9000, 9000)).save(root / "train/ant/large.png")


# What is done to the healthy images; the finding's level, kind, and how its line and the first name begin.
WRONG: dict[str, tuple[Callable[[Path], object], str, str, str, str]] = {
    "empty": (
        write("train/ant/0.png", b""),
        "error",
        "broken",
        "1 image cannot be used; repair",
        "train/ant/0.png is e",
    ),
    "cut": (
        write("val/bee/x.jpg", b"\xff\xd8\xff\xe0"),
        "error",
        "broken",
        "1 image cannot be used",
        "val/bee/x.jpg ",
    ),
    "page": (
        write("val/bee/x.jpg", b"<html>"),
        "error",
        "broken",
        "1 image cannot",
        "val/bee/x.jpg is a web page",
    ),
    "too large": (large, "error", "broken", "1 image cannot", "train/ant/large.png is too large: 9000 x 9000"),
    "ending": (
        lambda root: (root / "train/ant/0.png").rename(root / "train/ant/0.jpg"),
        "warning",
        "wrong ending",
        "1 image of another format than the name says, read all the same",
        "train/ant/0.jpg is a PNG",
    ),
    "left out": (
        write("train/ant/notes.txt", b"x"),
        "warning",
        "left out",
        "1 file left out, no image by",
        "train/ant/no",
    ),
    "two labels": (
        copy("train/ant/0.png", "train/bee/x.png"),
        "error",
        "two labels",
        "1 image under two labels; keep the right one",
        "train/ant/0.png (ant) = train/bee/x.png (bee)",
    ),
    "leak": (
        copy("train/ant/0.png", "val/ant/x.png"),
        "error",
        "leak",
        "1 image both in training and test; remove all but one",
        "train/ant/0.png = val/ant/x.png",
    ),
    "duplicate": (
        copy("train/ant/0.png", "train/ant/x.png"),
        "warning",
        "duplicate",
        "1 image there more than once",
        "train/ant/0.png = train/ant/x.png",
    ),
    "near": (
        smaller("val/ant/x.jpg"),
        "warning",
        "near-duplicate",
        "1 test image nearly the same as one that trains; keep such in one split",
        "val/ant/x.jpg ~ train/ant/0.png",
    ),
    "no test images": (
        lambda root: shutil.rmtree(root / "val/bee"),
        "warning",
        "one split",
        "no test images of 1 class",
        "bee",
    ),
    "imbalance": (
        more_of_ant,
        "warning",
        "imbalance",
        "the classes have 22 to 252 images; an accuracy over",
        "bee",
    ),
    "grey": (
        lambda root: picture(400).convert("L").save(root / "val/ant/x.png"),
        "warning",
        "grey",
        "1 of 45 images are grey among coloured ones",
        "val/ant/x.png",
    ),
    "empty class": (
        lambda root: (root / "train/cat").mkdir(),
        "error",
        "layout",
        f"data {'{root}'}/train: no images of 1 of 3 classes: cat",
        "",
    ),
    "extra class": (
        lambda root: shutil.copytree(root / "val/ant", root / "val/cat"),
        "error",
        "layout",
        f"data {'{root}'}: val/ holds classes that train/ lacks: cat",
        "",
    ),
}


@pytest.mark.parametrize(("harm", "level", "kind", "text", "name"), WRONG.values(), ids=WRONG.keys())
def test_what_is_wrong_is_found(
    root: Path, harm: Callable[[Path], object], level: str, kind: str, text: str, name: str
) -> None:
    harm(root)
    found = check(root)
    (finding,) = [each for each in found.findings if each.kind == kind]
    assert finding.level == level
    assert finding.text.startswith(text.replace("{root}", str(root)))
    assert (finding.names or [""])[0].startswith(name)
    if kind not in ("layout",):
        assert {each.kind for each in found.findings} == {kind}
    assert found.num_errors == sum(each.level == "error" for each in found.findings)


@pytest.mark.parametrize("harm", [plain], ids=["plain"])
def test_what_only_seems_wrong_is_no_finding(root: Path, harm: Callable[[Path], object]) -> None:
    harm(root)
    assert check(root).findings == []


def test_what_is_neither_is_a_note(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    turned(root)
    (root / "train/ant/.DS_Store").touch()
    picture(501, (50, 70)).save(root / "val/ant/small.png")
    monkeypatch.setitem(sys.modules, "imagehash", None)
    found = check(root)
    assert found.findings == []
    assert found.notes == [
        "1 file left by a system or hidden left out",
        "1 image turned by the EXIF; `upright` in [data] says whether that is applied",
        "1 image with a side below 64 pixels, which are enlarged",
        'near-duplicates were not looked for: that needs ImageHash; run `pip install "temper[data]"`',
    ]


def test_all_that_is_wrong_is_found_at_once(root: Path) -> None:
    for name in ("two labels", "leak", "near", "empty", "empty class"):
        WRONG[name][0](root)
    (root / "train/ant/1.png").rename(root / "train/ant/1.jpg")
    found = check(root)
    assert {one.kind for one in found.findings if one.level == "error"} == {"layout", "broken", "two labels"}
    assert {one.kind for one in found.findings if one.level == "warning"} == {"wrong ending", "near-duplicate"}


def test_drawn_split_says_so(tmp_path: Path) -> None:
    for name in ("ant", "bee"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for index in range(10):
            picture(index % 5 if name == "ant" else index + 50).save(tmp_path / "images" / name / f"{index}.png")
    texts = [finding.text for finding in check(tmp_path / "images", test_fraction=0.5).findings]
    assert any(
        text.endswith("both in training and test, as the split is drawn; remove all but one") for text in texts
    )


def test_labels_that_the_list_lacks_are_an_error(root: Path, tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("ant\nwasp\n")
    (finding,) = check(root, labels=str(tmp_path / "names.txt")).findings
    assert (finding.level, finding.kind) == ("error", "labels")
    assert "got 1 of 2 classes that `labels` does not list: bee" in finding.text


def test_nothing_to_look_at_is_one_line(tmp_path: Path) -> None:
    for path, message in (
        (tmp_path, "got 0 classes"),
        (tmp_path / "none", "no such folder"),
        (tmp_path / "x.csv", "no s"),
    ):
        with pytest.raises(DataError, match=message):
            check(path)


def as_table(root: Path) -> Path:
    rows = [f"{path.relative_to(root)},{path.parts[-2]},{path.parts[-3]}" for path in sorted(root.glob("*/*/*"))]
    (root / "list.csv").write_text("\n".join(["path,label,split", *rows]))
    return root / "list.csv"


def as_shards(root: Path) -> Path:
    import tarfile

    for part in ("train", "val"):
        with tarfile.open(root / f"{part}.tar", "w") as archive:
            for index, path in enumerate(sorted((root / part).glob("*/*"))):
                for ending, data in ((path.suffix, path.read_bytes()), (".cls", path.parts[-2].encode())):
                    member = tarfile.TarInfo(f"{index:03}{ending}")
                    member.size = len(data)
                    archive.addfile(member, io.BytesIO(data))
    return root / "{train,val}.tar"


def as_dataset(root: Path) -> Path:
    import datasets  # type: ignore[import-untyped]  # ships none

    datasets.disable_progress_bars()
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["ant", "bee"])})
    parts = {}
    for part in ("train", "val"):
        files = sorted((root / part).glob("*/*"))
        columns = {"image": list(map(str, files)), "label": [path.parts[-2] for path in files]}
        parts[part] = datasets.Dataset.from_dict(columns, features=features)
    datasets.DatasetDict(parts).save_to_disk(str(root / "set"))
    return root / "set"


@pytest.mark.parametrize("write_as", [as_table, as_shards, as_dataset])
def test_other_sources_are_looked_at_as_folders_are(root: Path, write_as: Callable[[Path], Path]) -> None:
    for name in ("two labels", "leak", "near", "empty"):
        harm = WRONG[name][0] if name != "empty" else write("val/bee/0.png", b"")
        harm(root)
    (root / "train/ant/0.png").rename(root / "train/ant/00.png")
    copy("train/bee/1.png", "val/bee/y.png")(root)
    folder = check(root)
    other = check(write_as(root))
    assert [(one.level, one.kind, len(one.names)) for one in other.findings if one.kind != "left out"] == [
        (one.level, one.kind, len(one.names)) for one in folder.findings
    ]
    assert (other.num_train, other.num_test, other.sizes) == (folder.num_train, folder.num_test, folder.sizes)


def run(*args: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(cli, ["data", "check", *map(str, args)])
    assert "Traceback" not in result.output
    return result.exit_code, result.stdout, result.stderr


def test_command_prints_a_line_a_finding_and_exits_by_the_errors(root: Path, tmp_path: Path) -> None:
    code, out, _ = run(root)
    assert code == 0
    assert out.splitlines()[0] == f"{root}: 24 train, 20 test images of 2 classes"
    assert out.splitlines()[-1] == "no errors, no warnings"
    copy("train/ant/0.png", "train/ant/x.png")(root)
    code, out, _ = run(root)
    assert (code, out.splitlines()[-1]) == (0, "no errors, 1 warning")
    for index in range(12):
        (root / f"train/ant/bad{index:02}.png").write_bytes(b"")
    code, out, err = run(root)
    assert code == 1
    assert "error: 12 images cannot be used; repair or remove them: train/ant/bad00.png is empty, " in out
    assert out.splitlines()[-1] == "1 error, 1 warning; --json lists every name"
    assert "images" in err
    code, out, _ = run(root, "--json")
    written = json.loads(out)
    assert (code, written["ok"]) == (1, False)
    assert len(written["findings"][0]["names"]) == 12


def test_command_takes_a_recipe(root: Path, tmp_path: Path) -> None:
    text = 'name = "x"\n[data]\nsource = "{}"\n{}\n[[variants]]\nname = "a"\n'
    (tmp_path / "recipe.toml").write_text(text.format("folder", 'path = "images"'))
    assert run(tmp_path / "recipe.toml")[0] == 0
    (tmp_path / "recipe.toml").write_text(text.format("digits", ""))
    code, _, err = run(tmp_path / "recipe.toml")
    assert code == 1
    assert "data.source: got 'digits', expected one on disk: folder, table, webdataset, huggingface" in err


def test_command_needs_no_torch(root: Path) -> None:
    program = (
        "import sys; from temper.cli.main import cli\n"
        "try:\n    cli(['data', 'check', sys.argv[1]])\nexcept SystemExit as end:\n    assert not end.code\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program, root], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"


def test_near_hashes_are_those_that_a_plain_search_finds() -> None:
    rng = np.random.default_rng(0)
    among = rng.integers(0, 1 << 63, 500, dtype=np.uint64)
    hashes = rng.integers(0, 1 << 63, 60, dtype=np.uint64)
    for index in range(40):  # a few bits away from one of them
        bits = rng.choice(64, index % 7, replace=False)
        hashes[index] = among[index * 3] ^ np.uint64(sum(1 << int(bit) for bit in bits))
    distances = [[bin(int(one) ^ int(other)).count("1") for other in among] for one in hashes]
    expected = {index: row.index(min(row)) for index, row in enumerate(distances) if min(row) <= 4}
    assert {index: int(near[0]) for index, near in find_near(hashes, among)} == expected
    assert 20 < len(expected) < 40


def test_equal_digests_are_grouped_in_order() -> None:
    digests = np.array([5, 3, 5, 7, 3, 5, 5], dtype=np.uint64)
    ok = np.array([True] * 6 + [False])
    assert [group.tolist() for group in group_equal(digests, ok)] == [[0, 2, 5], [1, 4]]
    assert list(group_equal(digests[:0], ok[:0])) == []
