"""`temper init` with somebody else's network: its own preprocessing and order of classes stand in the recipe."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image

from temper.builder.data.labels import read_class_names
from temper.builder.network.resnet import ModelConfig, build_model
from temper.cli.main import cli
from temper.run.recipe import Recipe, load_recipe

CLASSES = ["ant", "bee", "cat"]
OTHER = ["cat", "ant", "bee"]

pytestmark = pytest.mark.slow


def run(*args: object) -> Result:
    return CliRunner().invoke(cli, [str(arg) for arg in args])


def make_images(folder: Path, size: tuple[int, int] = (90, 70), classes: list[str] = CLASSES) -> Path:
    rng = np.random.default_rng(0)
    for name in classes:
        (folder / name).mkdir(parents=True)
        for index in range(4):
            Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).save(
                folder / name / f"{index}.png"
            )
    return folder


def init(folder: Path, *args: object) -> Recipe:
    result = run("init", "--images", folder / "images", "--out", folder / "recipe.toml", *args)
    assert result.exit_code == 0, result.output
    return load_recipe(folder / "recipe.toml")


def network_of(names: list[str]) -> dict[str, Any]:
    torch.manual_seed(0)
    return {"state_dict": build_model(ModelConfig(), len(names)).state_dict(), "classes": names}


def write_huggingface(folder: Path) -> Path:
    from transformers import ConvNextImageProcessor, ResNetConfig, ResNetForImageClassification

    sizes = {"layer_type": "basic", "depths": [2, 2, 2, 2], "hidden_sizes": [64, 128, 256, 512]}
    config = ResNetConfig(**sizes, id2label=dict(enumerate(OTHER)))  # type: ignore[arg-type]
    ResNetForImageClassification(config).save_pretrained(folder / "hub")
    ConvNextImageProcessor(size={"shortest_edge": 64}, crop_pct=0.875, resample=3).save_pretrained(folder / "hub")
    return folder / "hub"


NET = """<ir_version: 8, opset_import: ["": 17]>
net (float[n, 3, {size}] x) => (float[n, 3] logits) <float[3, 3, 3, 3] w, float[3, 3] h> {{
  c = Conv<pads = [1, 1, 1, 1]>(x, w)
  p = GlobalAveragePool(c)
  f = Flatten(p)
  logits = Gemm(f, h)
}}"""


BELOW = "onnx/model.onnx"
"""Where many of the hub's folders have it."""


def write_onnx(
    folder: Path, size: str = "height, width", names: tuple[str, ...] = ("model.onnx", "model_quantized.onnx")
) -> Path:
    """What Optimum leaves: the graph beside the files of Hugging Face."""
    from transformers import BitImageProcessor, ResNetConfig

    ResNetConfig(id2label=dict(enumerate(OTHER))).save_pretrained(folder / "hub")
    sized: dict[str, Any] = {"size": {"shortest_edge": 80}, "crop_size": {"height": 64, "width": 64}}
    BitImageProcessor(**sized, image_mean=[0.1] * 3, image_std=[0.2] * 3).save_pretrained(folder / "hub")
    model, rng = onnx.parser.parse_model(NET.format(size=size)), np.random.default_rng(0)
    for weight, shape in (("w", (3, 3, 3, 3)), ("h", (3, 3))):
        values = rng.normal(size=shape).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(values, weight))
    for name in names:
        (folder / "hub" / name).parent.mkdir(exist_ok=True)
        onnx.save(model, folder / "hub" / name)
    return folder / "hub"


def write_onnx_beside_others(folder: Path) -> Path:
    """Its config.json is of another program, and so is what is called as Hugging Face's file."""
    hub = write_onnx(folder)
    (hub / "config.json").write_text("[1]  // mine")
    (hub / "preprocessor_config.json").write_text("[]")
    return hub / "model.onnx"


def write_timm(folder: Path) -> Path:
    import timm
    from timm.models import save_for_hf

    own = {"input_size": [3, 64, 64], "crop_pct": 0.95, "mean": [0.5] * 3, "std": [0.5] * 3}
    network = timm.create_model("resnet18", num_classes=3, pretrained_cfg_overlay=own)
    save_for_hf(network, str(folder / "hub"), model_config={"label_names": OTHER})
    return folder / "hub"


def write_checkpoint(folder: Path) -> Path:
    torch.save(network_of(OTHER), folder / "last.pth")
    return folder / "last.pth"


BIT = {"image_size": 64, "preset": "huggingface", "resize": 80, "mean": (0.1,) * 3, "std": (0.2,) * 3}
# Who wrote it, and what the recipe says in `[data]`.
MADE: dict[str, tuple[Callable[[Path], Path], str, dict[str, Any]]] = {
    "huggingface": (
        write_huggingface,
        "hub/config.json",
        {"image_size": 64, "preset": "huggingface", "interpolation": None, "mean": (0.5,) * 3},
    ),
    "timm": (
        write_timm,
        "recipe.classes.txt",
        {"image_size": 64, "preset": "timm", "resize": 67, "mean": (0.5,) * 3, "std": (0.5,) * 3},
    ),
    "checkpoint": (
        write_checkpoint,
        "recipe.classes.txt",
        {"image_size": 64, "preset": "torchvision", "resize": None},
    ),
    "ONNX in a folder": (write_onnx, "hub/config.json", BIT),
    "ONNX": (lambda folder: write_onnx(folder) / "model_quantized.onnx", "hub/config.json", BIT),
    "ONNX below": (lambda folder: write_onnx(folder, names=(BELOW,)) / BELOW, "hub/config.json", BIT),
}


@pytest.mark.parametrize(("make", "labels", "expected"), MADE.values(), ids=MADE.keys())
def test_recipe_says_how_it_was_trained(
    tmp_path: Path, make: Callable[[Path], Path], labels: str, expected: dict[str, Any]
) -> None:
    make_images(tmp_path / "images")
    recipe = init(tmp_path, "--weights", make(tmp_path))
    assert recipe.data.labels == str(tmp_path / labels)
    assert read_class_names(Path(recipe.data.labels)) == OTHER
    assert {key: getattr(recipe.data, key) for key in expected} == expected
    assert (recipe.model.replace_head, recipe.train.epochs) == (False, 0)
    assert (recipe.model.graph is not None) == (expected is BIT)


def test_pytorchs_weights_beside_an_onnx_file_win(tmp_path: Path) -> None:
    make_images(tmp_path / "images")
    write_onnx(tmp_path)
    assert init(tmp_path, "--weights", write_huggingface(tmp_path)).model.graph is None


def write_script(folder: Path) -> Path:
    """What timm's training script leaves."""
    args = argparse.Namespace(model="resnet18", img_size=64, crop_pct=0.8, interpolation="", mean=[0.5])
    content = {"state_dict": network_of(CLASSES)["state_dict"], "arch": "resnet18", "version": 2, "args": args}
    torch.save(content, folder / "last.pth.tar")
    return folder / "last.pth.tar"


def write_lightning(folder: Path, num_classes: int = 3) -> Path:
    torch.manual_seed(0)
    state = build_model(ModelConfig(arch="resnet18d"), num_classes).state_dict()
    named = {"hyper_parameters": {"model_name": "resnet18d"}, "pytorch-lightning_version": "2"}
    torch.save({"state_dict": {f"net.{name}": value for name, value in state.items()}, **named}, folder / "a.ckpt")
    return folder / "a.ckpt"


ALL = "preprocessing: all of it guessed, as the weights do not say; see [data]"
ORDER = "classes: guessed to be in the order of the folders' names; --labels FILE gives another"
# What is written, what becomes of an image, and what is said in the terminal beside.
DOUBTS: dict[str, tuple[Callable[[Path], object], dict[str, Any], list[str]]] = {
    "nothing": (lambda folder: "random", {"preset": None}, []),
    "all is known": (write_huggingface, {"preset": "huggingface"}, []),
    "ONNX alone": (
        lambda folder: write_onnx(folder).joinpath("model.onnx").rename(folder / "model.onnx"),
        {"preset": "torchvision", "image_size": 64},
        [ALL, ORDER],
    ),
    "ONNX beside somebody's files": (
        write_onnx_beside_others,
        {"preset": "torchvision", "image_size": 64},
        [ALL, ORDER],
    ),
    "timm's script": (
        write_script,
        {"preset": "timm", "image_size": 64, "resize": 80, "mean": (0.5,) * 3, "interpolation": None},
        ["preprocessing: interpolation guessed, as the weights do not say; see [data]", ORDER],
    ),
    "timm's layers": (write_lightning, {"preset": "timm", "image_size": 64}, [ALL, ORDER]),
    "another task": (
        lambda folder: write_lightning(folder, 5),
        {"preset": "timm"},
        [ALL, "head: a new one is trained, as the checkpoint has a head of 5 classes"],
    ),
}


@pytest.mark.parametrize(("make", "expected", "lines"), DOUBTS.values(), ids=DOUBTS.keys())
def test_what_is_guessed_is_said(
    tmp_path: Path, make: Callable[[Path], object], expected: dict[str, Any], lines: list[str]
) -> None:
    make_images(tmp_path / "images")
    out = tmp_path / "recipe.toml"
    result = run("init", "--images", tmp_path / "images", "--weights", make(tmp_path), "--out", out)
    kinds = ("preprocessing:", "classes:", "head:")
    said = [line for line in result.stdout.splitlines() if line.startswith(kinds)]
    assert (result.exit_code, said) == (0, lines)
    is_stated = expected["preset"] is not None and ALL not in lines
    assert ("preprocessing is from " in result.stdout) == is_stated
    assert {key: getattr(load_recipe(out).data, key) for key in expected} == expected
    script = "from timm's training script in last.pth.tar: img_size, crop_pct, mean (interpolation, which it took"
    assert (script in " ".join(out.read_text().replace("\n# ", " ").split())) == (make is write_script)


# What is written, and what `temper init` says of it.
FOLDERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "another size": (
        lambda folder: write_onnx(folder, "32, 32"),
        "hub/model.onnx: takes images of 32 x 32 pixels, preprocessor_config.json of Hugging Face "
        "(BitImageProcessor) beside it says 64 x 64; mend that file",
    ),
    "several": (
        lambda folder: write_onnx(folder, names=("a.onnx", "b.onnx")),
        "folder hub: holds a.onnx, b.onnx, expected one; give the file to be served",
    ),
}


@pytest.mark.parametrize(("write", "message"), FOLDERS.values(), ids=FOLDERS.keys())
def test_folder_of_onnx_files_that_is_unclear_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[[Path], object], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    make_images(tmp_path / "images")
    write(tmp_path)
    refused = run("init", "--images", "images", "--weights", "hub")
    assert refused.exit_code == 1 and message in refused.stderr and refused.stderr.count("\n") == 1


def test_images_of_the_right_size_are_left_as_they_are(tmp_path: Path) -> None:
    make_images(tmp_path / "images", (64, 64))
    assert init(tmp_path, "--weights", write_checkpoint(tmp_path)).data.preset is None
    assert init(tmp_path, "--force", "--weights", write_lightning(tmp_path)).data.preset == "timm"


def test_classes_in_their_own_order_need_no_list(tmp_path: Path) -> None:
    make_images(tmp_path / "images")
    torch.save(network_of(CLASSES), tmp_path / "last.pth")
    assert init(tmp_path, "--weights", tmp_path / "last.pth").data.labels is None
    assert not (tmp_path / "recipe.classes.txt").exists()


def test_classes_of_other_names_are_asked_for(tmp_path: Path) -> None:
    make_images(tmp_path / "images", classes=["n01", "n02", "n03"])
    weights, out = write_checkpoint(tmp_path), tmp_path / "recipe.toml"
    arguments = ("init", "--images", tmp_path / "images", "--weights", weights, "--out", out)
    refused = run(*arguments)
    assert refused.exit_code == 1 and not out.exists()
    assert "knows the classes cat, ant, bee, the data has n01, n02, n03 instead; rename them, or" in refused.stderr
    (tmp_path / "mine.json").write_text(json.dumps(["n02", "n03", "n01"]))
    assert run(*arguments, "--labels", tmp_path / "mine.json").exit_code == 0
    assert load_recipe(out).data.labels == str(tmp_path / "mine.json")


# The checkpoint's classes, those of --labels, and what is refused.
LISTS = {
    "another order": (
        OTHER,
        CLASSES,
        "calls its output 0 cat, labels mine.txt calls it ant; put the list",
    ),
    "the same order": (OTHER, OTHER, None),
    "partly others": (["cat", "ant", "wasp"], CLASSES, None),
    "others": (["x", "y", "z"], CLASSES, None),
}


@pytest.mark.parametrize(("names", "listed", "message"), LISTS.values(), ids=LISTS.keys())
def test_list_that_contradicts_the_checkpoint_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: list[str], listed: list[str], message: str | None
) -> None:
    monkeypatch.chdir(tmp_path)
    make_images(tmp_path / "images")
    torch.save(network_of(names), "last.pth")
    Path("mine.txt").write_text("\n".join(listed))
    result = run("init", "--images", "images", "--weights", "last.pth", "--labels", "mine.txt")
    assert (result.exit_code, bool(result.stderr)) == ((1, True) if message else (0, False))
    assert (message or "") in result.stderr and Path("recipe.toml").exists() == (message is None)


# The checkpoint's classes, and what a build says where the recipe has no list.
ORDERS = {
    "another order": (OTHER, "lists its classes in another order than the data: cat, ant, bee; write them"),
    "other names": (["x", "y", "z"], "lists the classes x, y, z, the data has ant, bee, cat; set data.labels"),
}


@pytest.mark.parametrize(("names", "message"), ORDERS.values(), ids=ORDERS.keys())
def test_build_takes_no_order_by_accident(tmp_path: Path, names: list[str], message: str) -> None:
    make_images(tmp_path / "images")
    torch.save(network_of(names), tmp_path / "last.pth")
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        'name = "x"\n[data]\nsource = "folder"\npath = "images"\nimage_size = 32\n[model]\nweights = "last.pth"\n'
        '[train]\nepochs = 0\n[[variants]]\nname = "fp32"\n[engine]\nkind = "openvino"\n'
    )
    places = ("--repository", tmp_path / "repo", "--runs", tmp_path / "runs")
    refused = run("build", recipe, *places)
    assert refused.exit_code == 1 and message in refused.stderr
    (tmp_path / "classes.txt").write_text("bee\nant\ncat\n")
    recipe.write_text(recipe.read_text().replace("[model]", 'labels = "classes.txt"\n[model]'))
    if set(names) == set(CLASSES):
        listed = f"calls its output 0 cat, labels {tmp_path / 'classes.txt'} calls it bee; put the list into"
        assert listed in run("build", recipe, *places).stderr
        (tmp_path / "classes.txt").write_text("cat\nant\nbee\n")
    assert run("build", recipe, *places).exit_code == 0
