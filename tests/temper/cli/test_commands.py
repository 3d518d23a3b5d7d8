"""`query`, `load` and `attack` on a real server, with images as users have them."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from temper.cli.commands.corrupt import _left_out
from temper.cli.main import cli
from temper.client.client import Client
from temper.client.corruptions.compare import CorruptionComparison
from temper.client.robustness.base import ATTACKS
from temper.client.stats import Estimate
from temper.serve.server import TritonServer

if TYPE_CHECKING:
    from benchmarks.sample import Sample

pytestmark = pytest.mark.server

ROOT = Path(__file__).parents[3]
STRIPES = ROOT / "docs" / "examples" / "attack" / "temper_example_attack.py"
MODEL = "toy_fp32"


@pytest.fixture(scope="session")
def tree(sample: Sample, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 test images as PNG and JPEG files of other sizes, one folder per class."""
    folder = tmp_path_factory.mktemp("tree")
    for index, (pixels, label) in enumerate(zip(sample.images[:24], sample.labels[:24], strict=True)):
        place = folder / str(label)
        place.mkdir(exist_ok=True)
        suffix = "jpg" if index % 2 else "png"
        Image.fromarray(pixels).resize((40 + index, 50)).save(place / f"{index:02d}.{suffix}")
    return folder


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a command leaves in the working folder is this test's own."""
    monkeypatch.chdir(tmp_path)


def on(server: TritonServer, command: str, *args: object) -> Result:
    options = ["--url", server.grpc_url, "--model", MODEL]
    return CliRunner().invoke(cli, [command, *options, *map(str, args)])


def error_of(result: Result) -> str:
    """The last line on standard error, of a command that failed."""
    assert result.exit_code == 1, result.output
    assert "Traceback" not in result.output
    last = result.stderr.splitlines()[-1]
    assert last.startswith("error: ")
    return last.removeprefix("error: ")


def test_query_prints_labels(server: TritonServer, tree: Path) -> None:
    files = sorted(tree.rglob("*.png"))
    result = on(server, "query", *files, "--top", 2)
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[::3] == [str(file) for file in files]
    right = [line.split()[0] == file.parent.name for line, file in zip(lines[1::3], files, strict=True)]
    assert sum(right) > len(right) / 2
    assert all(line.endswith(" %") for line in lines[1::3] + lines[2::3])
    assert result.stderr == ""


def test_query_json_of_a_folder(server: TritonServer, tree: Path) -> None:
    result = on(server, "query", tree, "--json", "--top", 20)
    answers = json.loads(result.stdout)
    assert len(answers) == 24
    for answer in answers:
        assert len(answer["predictions"]) == 10
        assert sum(one["probability"] for one in answer["predictions"]) == pytest.approx(1)


def test_query_truncated_image_answers_the_others(server: TritonServer, tree: Path, tmp_path: Path) -> None:
    whole = next(tree.rglob("*.png"))
    cut = tmp_path / "cut.png"
    cut.write_bytes(whole.read_bytes()[:100])
    result = on(server, "query", whole, cut, whole)
    assert error_of(result).startswith(f"{cut}: ")
    assert [line for line in result.stdout.splitlines() if line.endswith(".png")] == [str(whole)] * 2


def test_query_wrong_model(server: TritonServer, tree: Path) -> None:
    result = CliRunner().invoke(
        cli, ["query", "--url", server.grpc_url, "--model", "nope", str(next(tree.rglob("*.png")))]
    )
    assert "nope" in error_of(result)
    assert MODEL in error_of(result)


def test_query_folder_without_images(server: TritonServer, tmp_path: Path) -> None:
    message = f"{tmp_path}: holds no image, expected .png, .jpg, .jpeg, .jfif, .bmp, .webp"
    assert error_of(on(server, "query", tmp_path)).startswith(message)


@pytest.fixture
def mixed_tree(sample: Sample, tmp_path: Path) -> Path:
    """An image of every format in folders of their classes, with what systems leave there."""
    names = ["0.png", "1.jpg", "2.bmp", "3.webp", "4.tif", "5.ppm", "6.gif", os.fsdecode(b"\xff.png")]
    for name, pixels, label in zip(names, sample.images, sample.labels, strict=False):
        folder = tmp_path / "mixed" / str(label)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).resize((40, 50)).save(folder / name)
        (folder / ".DS_Store").touch()
        (folder / "._0.png").touch()
    (tmp_path / "mixed" / ".ipynb_checkpoints").mkdir()
    (tmp_path / "mixed" / "notes.txt").touch()
    return tmp_path / "mixed"


def test_query_of_a_folder_leaves_nothing_out_without_a_word(server: TritonServer, mixed_tree: Path) -> None:
    result = on(server, "query", mixed_tree, "--json")
    assert result.exit_code == 0, result.output
    answers = [Path(one["image"]).name for one in json.loads(result.stdout)]
    assert sorted(answers) == ["0.png", "1.jpg", "2.bmp", "3.webp", "4.tif", "5.ppm", "6.gif", r"\xff.png"]
    num_folders = len([path for path in mixed_tree.iterdir() if path.name.isdigit()])
    assert result.stderr.startswith(f"{mixed_tree}: {2 * num_folders + 2} left out (")
    assert "1 no image by its name" in result.stderr
    text = on(server, "query", mixed_tree)
    assert r"/\xff.png" in text.stdout


def test_attack_of_a_folder_says_what_was_left_out(server: TritonServer, mixed_tree: Path) -> None:
    settings = ("--attack", "noise", "--epsilon", 2, "--max-queries", 2, "--json")
    result = on(server, "attack", "--images", mixed_tree, *settings)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["accuracy"]["num_images"] == 8
    assert found["left_out"]["num"] > 2
    assert f"{mixed_tree}: {found['left_out']['num']} left out (" in result.stderr


@pytest.mark.parametrize("command", ["attack", "load", "query"])
def test_images_that_cannot_be_used_are_named_all_at_once(
    server: TritonServer, mixed_tree: Path, command: str
) -> None:
    folder = next(path for path in mixed_tree.iterdir() if path.name.isdigit())
    for index in range(12):
        (folder / f"bad{index:02}.png").write_text("<html>")
    result = on(server, command, *([] if command == "query" else ["--images"]), mixed_tree)
    last = error_of(result)
    bad = [f"{folder}/bad{index:02}.png" for index in range(12)]
    if command == "query":
        assert last == "2 more of the 20 images cannot be used"
        lines = result.stderr.splitlines()[-11:-1]
        assert all(
            line.startswith(f"error: {path}: is a web page") for line, path in zip(lines, bad, strict=False)
        )
    else:
        assert last.startswith(f"12 of 20 images cannot be used: {bad[0]} is a web page, ")
        assert last.endswith(" and 2 more; repair or remove them")
        assert bad[10] not in last


def test_load_prints_a_row_per_run(server: TritonServer, tree: Path) -> None:
    settings = ("--duration", 3, "--warmup", 0.1, "--concurrency", "1,2")
    result = on(server, "load", "--images", tree, *settings)
    assert result.exit_code == 0
    head, *rows = result.stdout.splitlines()
    assert head.split()[:2] == ["load", "images/s"]
    assert [row.split(",")[0] for row in rows] == ["closed", "closed", "open"]
    assert len({len(row) for row in (head, *rows)}) == 1


def test_load_open_loop_alone_json(server: TritonServer) -> None:
    result = on(server, "load", "--rate", 40, "--duration", 0.3, "--warmup", 0.1, "--json")
    (run,) = json.loads(result.stdout)
    assert (run["mode"], run["rate_rps"], run["errors"]) == ("open", 40.0, {})
    assert run["latency_ms"]["p999"] >= run["latency_ms"]["p50"] > 0
    assert "no --images: sending random pixels of shape [32, 32, 3]" in result.stderr


def test_load_batch_beyond_the_model(server: TritonServer) -> None:
    result = on(server, "load", "--batch-size", 64)
    assert "at most 32 images" in error_of(result)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((4, 32, 32, 3), dtype=np.float32), "got float32 [4, 32, 32, 3], expected uint8 [N, 32, 32, 3]"),
        (np.zeros((4, 16, 16, 3), dtype=np.uint8), "got uint8 [4, 16, 16, 3], expected uint8 [N, 32, 32, 3]"),
        (np.zeros((0, 32, 32, 3), dtype=np.uint8), "got uint8 [0, 32, 32, 3], expected uint8 [N, 32, 32, 3]"),
    ],
)
def test_load_wrong_array(server: TritonServer, tmp_path: Path, array: npt.NDArray[Any], message: str) -> None:
    path = tmp_path / "x.npy"
    np.save(path, array)
    assert error_of(on(server, "load", "--images", path)) == f"{path}: {message} for {MODEL}"


def test_load_not_an_array(server: TritonServer, tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    path.write_bytes(b"hello")
    assert error_of(on(server, "load", "--images", path)).startswith(f"{path}: is no whole .npy array")
    assert error_of(on(server, "load", "--images", tmp_path / "none.npy")) == (
        f"{tmp_path / 'none.npy'}: no such file, expected a .npy array"
    )


def test_load_server_killed_reports_what_was_answered(
    toy_repository: Path, tmp_path: Path, until: Callable[[Callable[[], object]], None]
) -> None:
    with TritonServer(toy_repository, log_file=tmp_path / "server.log") as doomed:
        command = [sys.executable, "-m", "temper.cli.main", "load", "--url", doomed.grpc_url, "--model", MODEL]
        process = subprocess.Popen(
            [*command, "--duration", "600", "--warmup", "0.1", "--concurrency", "2"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        with Client(doomed.grpc_url) as client:
            until(lambda: client.statistics(MODEL).num_success > 20)
        os.kill(doomed.pid, signal.SIGKILL)
        output, errors = process.communicate()
    assert process.returncode == 1
    assert output.splitlines()[1].startswith("closed, 2 in flight")
    last = errors.splitlines()[-1]
    assert last.startswith(f"error: the server at {doomed.grpc_url} died ")
    assert " requests answered, " in last and " lost on the way" in last
    assert "Traceback" not in errors


def test_attack_folder_tree(server: TritonServer, tree: Path, tmp_path: Path) -> None:
    save = tmp_path / "found"
    settings = ("--epsilon", 64, "--max-queries", 30, "--save", save)
    result = on(server, "attack", "--images", tree, *settings)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith(f"square L∞ 64/255, at most 30 queries per image, on {MODEL} version 1\n")
    assert "accuracy under attack" in result.stdout
    assert len(np.load(save / "survived.npy")) == 24
    again = on(server, "attack", "--images", tree, *settings)
    assert again.stdout.splitlines()[1:3] == result.stdout.splitlines()[1:3]


def test_attack_without_room_for_the_images_names_the_temporary_folder(
    server: TritonServer, tree: Path, tmp_path: Path, mount: Callable[[Path, str], list[str]]
) -> None:
    """A write into a mapped file beyond the room there is would end the process by SIGBUS."""
    command = [sys.executable, "-m", "temper.cli.main", "attack", "--images", str(tree), "--model", MODEL]
    done = subprocess.run(
        [*mount(tmp_path, "size=32k"), *command, "--url", server.grpc_url],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)},
    )
    assert done.returncode == 1, done.stderr
    assert "No space left on device; the temporary folder is " in done.stderr.splitlines()[-1]
    assert f"{tmp_path} (0 MiB free): make room, or point TMPDIR" in done.stderr.splitlines()[-1]


def test_attack_arrays_json(server: TritonServer, sample: Sample, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", sample.images[:20])
    np.save(tmp_path / "y.npy", sample.labels[:20])
    files = ("--images", tmp_path / "x.npy", "--labels", tmp_path / "y.npy")
    result = on(server, "attack", *files, "--attack", "noise", "--max-queries", 3, "--json")
    found = json.loads(result.stdout)
    assert (found["attack"], found["norm"], found["epsilon"]) == ("noise", "linf", 8.0)
    assert found["accuracy"]["num_images"] == 20
    assert found["accuracy"]["value"] <= found["clean_accuracy"]["value"]
    assert (found["errors"], found["retries"]) == ({}, {})
    assert list(Path("runs", "attacks").iterdir()) == []  # its checkpoint goes when it is done


def test_attack_of_another_package_in_l2(server: TritonServer, tree: Path, install: Callable[..., Path]) -> None:
    install(
        ATTACKS,
        "stripes",
        (ROOT / "docs" / "examples" / "attack" / "temper_example_attack.py").read_text(),
        {"stripes": "STRIPES"},
    )
    settings = ("--attack", "stripes", "--norm", "l2", "--epsilon", 512, "--max-queries", 3)
    result = on(server, "attack", "--images", tree, *settings)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith(f"stripes L2 512/255, at most 3 queries per image, on {MODEL} version 1\n")


def test_attack_more_images_than_there_are(server: TritonServer, tree: Path) -> None:
    result = on(server, "attack", "--images", tree, "--num-images", 50)
    assert error_of(result) == "num_images: got 50, expected at most 24, all there are"


def test_attack_labels_that_do_not_fit(server: TritonServer, sample: Sample, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", sample.images[:4])
    files = ("--images", tmp_path / "x.npy", "--labels", tmp_path / "y.npy")
    np.save(tmp_path / "y.npy", np.array([0, 1, 10, 3]))
    assert error_of(on(server, "attack", *files)) == (f"{tmp_path / 'y.npy'}: got labels 0 to 10, expected 0 to 9")
    np.save(tmp_path / "y.npy", np.array([0.0, 1.0, 2.0, 3.0]))
    assert error_of(on(server, "attack", *files)) == (
        f"{tmp_path / 'y.npy'}: got float64 [4], expected integers [4]"
    )


def test_attack_folder_of_an_unknown_class(server: TritonServer, tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    assert error_of(on(server, "attack", "--images", tmp_path)) == (
        f"{tmp_path / 'cat'}: no class of {MODEL}, expected folders named 0, 1, 2, 3, 4, 5, 6, 7, ..."
    )


def test_attack_without_class_folders(server: TritonServer, tmp_path: Path) -> None:
    assert error_of(on(server, "attack", "--images", tmp_path)) == (
        f"{tmp_path}: holds no folders, expected one folder of images per class"
    )
    assert "is no folder, expected one with a folder of images per class" in error_of(
        on(server, "attack", "--images", tmp_path / "none")
    )


def test_kinds_that_the_mean_corruption_error_leaves_out_are_named() -> None:
    found = Estimate(value=90.0, low=80.0, high=95.0)
    figures: dict[str, Any] = {"mce": found, "relative_mce": found, "difference": found, "num_images": 9}
    some, none = ({"fog": 90.0, "snow": error} for error in (None, 80.0))
    assert _left_out(CorruptionComparison(**figures, corruption_errors=some)) == (
        ", without snow, where the baseline makes no error"
    )
    assert _left_out(CorruptionComparison(**figures, corruption_errors=none)) == ""


def test_corrupt_compares_with_what_another_run_saved(
    server: TritonServer, sample: Sample, tree: Path, tmp_path: Path
) -> None:
    settings = ("--kinds", "contrast,fog", "--severities", "1,5", "--save", tmp_path / "first")
    first = on(server, "corrupt", tree, *settings)
    assert first.exit_code == 0, first.output
    assert first.stdout.startswith(f"2 kinds of corruption, severities 1, 5, on {MODEL} version 1\n")
    assert re.search(r"\ncontrast +[0-9.]+ % +[0-9.]+ %\nfog ", first.stdout)
    settings = (*settings[:4], "--against", tmp_path / "first")
    found = json.loads(on(server, "corrupt", tree, *settings, "--json").stdout)
    assert [(cell["kind"], cell["severity"]) for cell in found["cells"]] == [
        ("contrast", 1), ("contrast", 5), ("fog", 1), ("fog", 5)
    ]  # fmt: skip
    assert found["against"]["mce"] == {"value": 100.0, "low": 100.0, "high": 100.0}
    assert found["against"]["difference"]["value"] == 0.0
    np.save(tmp_path / "x.npy", sample.images[:4])
    np.save(tmp_path / "y.npy", sample.labels[:4])
    other = on(server, "corrupt", tmp_path / "x.npy", tmp_path / "y.npy", *settings)
    assert error_of(other).startswith(f"{tmp_path / 'first'}: the baseline was measured on other images, labels, ")
    alone = on(server, "corrupt", tree, "--kinds", "fog", "--severities", "1,5", "--against", tmp_path / "first")
    assert error_of(alone).endswith(
        "first: kinds: the baseline has contrast, fog, expected fog; measure both alike"
    )
    assert error_of(on(server, "corrupt", tree, "--against", tmp_path)) == (
        f"{tmp_path / 'corruptions.npz'}: no such file, expected a folder that `temper corrupt --save` wrote"
    )
