"""A first recipe: what is chosen for which folder and checkpoint, what is refused, and that the result builds."""

from __future__ import annotations

import io
import json
import re
import tarfile
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from safetensors.torch import save_file

from temper.builder.data.sources import open_source
from temper.builder.network.resnet import ModelConfig, build_model
from temper.cli.main import cli
from temper.run.init_recipe import Found, name_for, render_recipe
from temper.run.init_weights import Weights
from temper.run.recipe import load_recipe

ODD = 'my "best"  Blümen \\ 花 #1'
CLASSES = ("ant", "bee's [nest]", "größe")


def make_images(folder: Path, num: int = 4, size: tuple[int, int] = (48, 40)) -> Path:
    rng = np.random.default_rng(0)
    for name in CLASSES:
        (folder / name).mkdir(parents=True)
        for index in range(num):
            pixels = rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{index}.png")
    return folder


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return build_model(ModelConfig(), len(CLASSES)).state_dict()


def run(*args: object) -> Result:
    return CliRunner().invoke(cli, [str(arg) for arg in args])


def init(folder: Path, *args: object) -> Path:
    """Writes recipe.toml beside the images and returns it."""
    out = folder.parent / "recipe.toml"
    result = run("init", "--images", folder, "--out", out, *args)
    assert result.exit_code == 0, result.output
    return out


@pytest.mark.slow
@pytest.mark.parametrize("with_weights", [True, False], ids=["checkpoint", "from nothing"])
def test_written_recipe_builds(tmp_path: Path, weights: dict[str, torch.Tensor], with_weights: bool) -> None:
    images = make_images(tmp_path / ODD)
    save_file(weights, tmp_path / "größe 1.safetensors")
    out = init(images, *(("--weights", tmp_path / "größe 1.safetensors") if with_weights else ()))
    if not with_weights:  # one epoch of the many is enough
        text, count = re.subn(r"(?m)^epochs = \d{2}$", "epochs = 1", out.read_text())
        assert count == 1
        out.write_text(text)
    result = run("build", out, "--runs", tmp_path / "runs", "--repository", tmp_path / "models", "--json")
    assert result.exit_code == 0, result.output
    assert [row["variant"] for row in json.loads(result.stdout)] == ["fp32", "int8"]
    (labels,) = (tmp_path / "models").glob("*_int8/labels.txt")
    assert labels.read_text().splitlines() == list(CLASSES)


def as_csv(images: Path) -> Path:
    rows = [f'"{path.relative_to(images.parent)}","{path.parent.name}"' for path in sorted(images.glob("*/*"))]
    (images.parent / "list.csv").write_text("\n".join(["file,label", *rows]))
    return images.parent / "list.csv"


def as_shard(images: Path) -> Path:
    (images.parent / "shards").mkdir()
    with tarfile.open(images.parent / "shards" / "0.tar", "w") as archive:
        for number, path in enumerate(sorted(images.glob("*/*"))):
            for ending, data in (("png", path.read_bytes()), ("cls", path.parent.name.encode())):
                member = tarfile.TarInfo(f"{number:04}.{ending}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    return images.parent / "shards"


def as_dataset(images: Path) -> Path:
    import datasets  # type: ignore[import-untyped]  # ships none

    files = sorted(images.glob("*/*"))
    columns = {"image": list(map(str, files)), "label": [path.parent.name for path in files]}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(CLASSES))})
    datasets.disable_progress_bars()
    datasets.Dataset.from_dict(columns, features=features).save_to_disk(str(images.parent / "set"))
    return images.parent / "set"


@pytest.mark.parametrize(
    ("write", "source"), [(as_csv, "table"), (as_shard, "webdataset"), (as_dataset, "huggingface")]
)
def test_other_sources_get_a_recipe_that_loads(
    tmp_path: Path, weights: dict[str, torch.Tensor], write: Callable[[Path], Path], source: str
) -> None:
    path = write(make_images(tmp_path / "images"))
    save_file(weights, tmp_path / "w.safetensors")
    recipe = load_recipe(init(path, "--weights", tmp_path / "w.safetensors"))
    assert (recipe.data.source, recipe.data.path) == (source, str(path))
    opened = open_source(recipe.data)
    assert (opened.class_names, len(opened.train), len(opened.test)) == (list(CLASSES), 9, 3)
    text = (tmp_path / "recipe.toml").read_text().replace("\n# ", " ")
    assert "3 classes, taken in the order of the data's own labels, from" in text


def test_paths_are_quoted_and_relative_to_the_recipe(tmp_path: Path) -> None:
    out = init(make_images(tmp_path / "below" / ODD))
    assert tomllib.loads(out.read_text())["data"]["path"] == ODD
    recipe = load_recipe(out)
    assert (recipe.data.path, recipe.name) == (str(tmp_path / "below" / ODD), "my_best_blumen_1")
    elsewhere = tmp_path / "elsewhere.toml"
    assert run("init", "--images", tmp_path / "below", "--out", elsewhere).exit_code == 1  # one class
    (tmp_path / "deep").mkdir()
    run("init", "--images", tmp_path / "below" / ODD, "--out", tmp_path / "deep" / "x.toml")
    found = tomllib.loads((tmp_path / "deep" / "x.toml").read_text())
    assert found["data"]["path"] == str(tmp_path / "below" / ODD)


Change = Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]


def head_of(num: int) -> Change:
    return lambda state: {**state, "fc.weight": torch.zeros(num, 512), "fc.bias": torch.zeros(num)}


def headless(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in state.items() if not name.startswith("fc.")}


# The checkpoint, made from one with a head for the folder; replace_head, head_epochs and epochs; a comment.
CHECKPOINTS: dict[str, tuple[Change, tuple[bool, int, int], str]] = {
    "head fits": (dict, (False, 0, 0), 'and 3 classes, taken in the order of the folders\' names, from "ant" to'),
    "other head": (head_of(10), (True, 2, 5), "and a head of 10 classes, the folder has 3 classes: a new head"),
    "no head": (headless, (True, 2, 5), "and no head, the folder has 3 classes: a new head is trained"),
}


@pytest.mark.parametrize(("change", "expected", "comment"), CHECKPOINTS.values(), ids=CHECKPOINTS.keys())
def test_checkpoint_decides_the_training(
    tmp_path: Path,
    weights: dict[str, torch.Tensor],
    change: Change,
    expected: tuple[bool, int, int],
    comment: str,
) -> None:
    save_file(change(weights), tmp_path / "w.safetensors")
    out = init(make_images(tmp_path / "images"), "--weights", tmp_path / "w.safetensors")
    recipe = load_recipe(out)
    assert (recipe.model.arch, recipe.model.weights) == ("resnet18", str(tmp_path / "w.safetensors"))
    assert (recipe.model.replace_head, recipe.train.head_epochs, recipe.train.epochs) == expected
    assert comment in " ".join(out.read_text().replace("\n# ", " ").split())
    build_model(recipe.model, len(CLASSES))


def test_averaged_weights_of_a_folder_are_written_down(tmp_path: Path, weights: dict[str, torch.Tensor]) -> None:
    other = {name: tensor.clone() for name, tensor in weights.items()}
    (tmp_path / "hub").mkdir()
    torch.save(
        {"model": weights, "model_ema": {**other, "fc.bias": torch.ones(3)}},
        tmp_path / "hub" / "pytorch_model.bin",
    )
    out = tmp_path / "recipe.toml"
    said = run("init", "--images", make_images(tmp_path / "images"), "--weights", tmp_path / "hub", "--out", out)
    assert "checkpoint: torch.save file, `model_ema`, averaged (EMA) weights used" in said.stdout
    assert 'weights = "./hub"' in out.read_text()
    recipe = load_recipe(out)
    assert (recipe.model.averaged, recipe.train.epochs) == (True, 0)
    assert torch.equal(build_model(recipe.model, 3).get_parameter("fc.bias"), torch.ones(3))


def found(**changes: Any) -> Found:
    seen: dict[str, Any] = {
        "source": "folder",
        "described": "900 train, 300 test images",
        "class_names": ["a", "b"],
        "num_train": 900,
        "num_test": 300,
        "num_sampled": 48,
        "shorter_sides": (200, 500, 900),
        "weights": Weights(given="random", arch="resnet18"),
    }
    return Found(**{**seen, **changes})


# What was seen, and what the recipe then says.
CHOICES: dict[str, tuple[dict[str, Any], str, dict[str, Any]]] = {
    "photos": ({}, "random", {"image_size": 224, "num_test": None, "epochs": 22, "num_images": 100}),
    "torchvision": (
        {},
        "torchvision",
        {"preset": "torchvision", "head_epochs": 2, "epochs": 5, "learning_rate": 3e-4},
    ),
    "tiny": ({"shorter_sides": (20, 28, 30)}, "random", {"image_size": 32, "num_images": 200}),
    "small": ({"shorter_sides": (90, 100, 110)}, "random", {"image_size": 96, "num_images": 100}),
    "few": ({"num_train": 20, "num_test": 6}, "random", {"epochs": 60, "num_images": 6}),
    "many": ({"num_train": 10**6, "num_test": 50_000}, "random", {"epochs": 10, "num_test": 2000}),
}


@pytest.mark.parametrize(("changes", "weights", "expected"), CHOICES.values(), ids=CHOICES.keys())
def test_what_is_chosen(changes: dict[str, Any], weights: str, expected: dict[str, Any], tmp_path: Path) -> None:
    seen = found(weights=Weights(given=weights, arch="resnet18"), **changes)
    text = render_recipe(seen, name="x", images=tmp_path / "d", folder=tmp_path)
    (tmp_path / "recipe.toml").write_text(text)
    recipe = load_recipe(tmp_path / "recipe.toml")
    said = {**vars(recipe.train), **vars(recipe.attacks[0]), **vars(recipe.data), **vars(recipe.model)}
    assert {key: said[key] for key in expected} == expected
    assert said["weights"] == weights


HUGGINGFACE = {"preset": "huggingface", "image_size": (240, 320), "resize": (240, 320), "upright": True}
NO_SQUARE: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"size": (240, 320)}, {"preset": None, "resize": None}),
    ({"pixels": HUGGINGFACE}, {"preset": "huggingface", "resize": (240, 320), "upright": None}),
]


@pytest.mark.parametrize(("known", "expected"), NO_SQUARE)
def test_what_is_no_square_is_written_so_that_it_is_read(
    known: dict[str, Any], expected: dict[str, Any], tmp_path: Path
) -> None:
    seen = found(weights=Weights(given="model.onnx", arch=None, num_classes=2, **known))
    (tmp_path / "recipe.toml").write_text(render_recipe(seen, name="x", images=tmp_path, folder=tmp_path))
    said = vars(load_recipe(tmp_path / "recipe.toml").data)
    assert {key: said[key] for key in expected} == expected and said["image_size"] == (240, 320)


def test_comments_hold_no_control_characters(tmp_path: Path) -> None:
    seen = found(described="1 left out: a\x1b\nb")
    text = render_recipe(seen, name="x", images=tmp_path, folder=tmp_path)
    assert tomllib.loads(text)["name"] == "x"
    assert "a\\u001b\\u000ab" in text


NAMES = {"flowers": "flowers", "My Data (2)": "my_data_2", "_x_": "x", "花": "recipe", "Blümen": "blumen"}


@pytest.mark.parametrize(("folder", "name"), [*NAMES.items(), ("a" * 200, "a" * 100)])
def test_name_is_like_the_folders(folder: str, name: str) -> None:
    assert name_for(Path("x") / folder) == name


def test_says_what_to_run_next_and_overwrites_only_by_force(tmp_path: Path) -> None:
    images = make_images(tmp_path / "images")
    out = tmp_path / "my recipe.toml"
    result = run("init", "--images", images, "--out", out)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[:2] == [
        "3 classes; 9 train, 3 test images",
        "resnet18 at 32 pixels; weights: random, trained for 60 epochs",
    ]
    assert lines[-1] == f"    temper run '{out}'"
    before = out.read_bytes()
    again = run("init", "--images", images, "--out", out, "--name", "other")
    assert again.stderr == f"error: {out}: exists already; choose another --out, or overwrite it with --force\n"
    assert (again.exit_code, out.read_bytes()) == (1, before)
    said = json.loads(run("init", "--images", images, "--out", out, "--name", "other", "--force", "--json").stdout)
    assert (said["path"], said["next"]) == (str(out), f"temper run '{out}'")
    assert said["found"]["class_names"] == list(CLASSES)
    assert said["recipe"]["name"] == load_recipe(out).name == "other"


def lone_image(folder: Path) -> None:
    for path in folder.rglob("*.png"):
        if path.name != "0.png":
            path.unlink()


def broken_image(folder: Path) -> None:
    (folder / "ant" / "2.png").write_bytes(b"GIF89a")


def no_classes(folder: Path) -> None:
    for path in folder.glob("[!a]*"):
        path.rename(folder.parent / path.name)


def vgg(folder: Path) -> None:
    save_file({"features.0.weight": torch.zeros(3, 3)}, folder.parent / "vgg.safetensors")


# What is done to a good folder, what is added to the command line, and how the line begins.
REFUSED: dict[str, tuple[Callable[[Path], object], tuple[str, ...], str]] = {
    "too few images": (lone_image, (), "data {images}: no image is left for the test split; add images or"),
    "broken image": (broken_image, (), "data {images}: 1 of 12 images cannot be used: ant/2.png "),
    "one class": (no_classes, (), "data {images}: got 1 classes (ant), expected a sub-folder of images per class"),
    "no folder": (lambda folder: folder.rename(folder.parent / "x"), (), "data {images}: no such folder"),
    "name": (str, ("--name", "My Data"), "--name: got My Data, expected up to 100 of a-z, 0-9, _ and -"),
    "no checkpoint": (str, ("--weights", "none.pt"), "checkpoint none.pt: no such file"),
    "not a ResNet": (
        vgg,
        ("--weights", "vgg.safetensors"),
        "checkpoint vgg.safetensors: holds the layers of none of",
    ),
    "no place": (str, ("--out", "none/x.toml"), "none/x.toml: cannot be written: No such file or directory"),
}


@pytest.mark.parametrize(("change", "args", "line"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_built_is_refused(
    change: Callable[[Path], object],
    args: tuple[str, ...],
    line: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    images = make_images(tmp_path / "images")
    change(images)
    result = run("init", "--images", images, *args)
    assert result.exit_code == 1
    assert result.stderr.startswith(f"error: {line.format(images=images)}")
    assert len(result.stderr.splitlines()) == 1
    assert not list(tmp_path.glob("*.toml"))


def test_path_that_no_recipe_can_hold(tmp_path: Path) -> None:
    images = make_images(tmp_path / "a\nb")
    result = run("init", "--images", images, "--out", tmp_path / "recipe.toml")
    assert result.exit_code == 1
    assert "a\\nb: got a path that does not print as UTF-8 text, expected one; rename it" in result.stderr
