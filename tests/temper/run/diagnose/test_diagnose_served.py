"""`temper diagnose` on a real server, and on answers that a client of the user's own got."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from temper.builder.network.resnet import save_weights
from temper.cli.main import cli
from temper.client.client import Client
from temper.serve.server import TritonServer

if TYPE_CHECKING:
    from benchmarks.sample import Sample

pytestmark = [pytest.mark.server, pytest.mark.slow]
MODEL = "toy_fp32"


@pytest.fixture(scope="session")
def folder(sample: Sample, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint, and 16 test images in one folder per class, of other sizes than the network's."""
    place = tmp_path_factory.mktemp("diagnose")
    save_weights(sample.model, place / "weights.safetensors")
    for index, (pixels, label) in enumerate(zip(sample.images[:16], sample.labels[:16], strict=True)):
        target = place / "images" / str(label)
        target.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).resize((44 + index, 60)).save(target / f"{index:02d}.png")
    return place


def run(folder: Path, *args: object) -> Result:
    common = ["--images", folder / "images", "--weights", folder / "weights.safetensors"]
    return CliRunner().invoke(cli, ["diagnose", *map(str, [*args, *common])])


def test_a_healthy_model_agrees(server: TritonServer, folder: Path) -> None:
    done = run(folder, MODEL, "--url", server.grpc_url)
    assert done.exit_code == 0, done.output
    assert "agrees: what is served is the network's" in done.stdout
    assert "as the server says" in done.stdout
    assert "accuracy" in done.stdout
    assert "Traceback" not in done.output


def test_a_client_that_sizes_images_otherwise_is_found(server: TritonServer, folder: Path) -> None:
    done = run(folder, MODEL, "--url", server.grpc_url, "--sent", "resize = [32, 32]", "--json")
    assert done.exit_code == 3, done.output
    found = json.loads(done.stdout)
    (cause,) = found["causes"]
    assert (cause["kind"], cause["side"]) == ("size and crop", "client")
    assert cause["explained"]["low"] > 0.99
    assert "`resize = 32`" in cause["mend"]
    assert found["candidates"] and found["agrees"] is False


def test_a_mean_of_a_model_that_takes_bytes_is_the_graphs(server: TritonServer, folder: Path) -> None:
    stated = ("--trained", "mean = [0.3, 0.3, 0.3], std = [0.2, 0.2, 0.2]")
    found = json.loads(run(folder, MODEL, "--url", server.grpc_url, *stated, "--json").stdout)
    cause = found["causes"][0]
    assert (cause["kind"], cause["side"]) == ("mean and std", "graph")
    assert cause["mend"].startswith("export again with `mean = [0.3, 0.3, 0.3]`")


def test_answers_of_a_client_with_bgr_are_diagnosed_without_a_server(
    server: TritonServer, folder: Path, tmp_path: Path
) -> None:
    files = sorted((folder / "images").rglob("*.png"), key=lambda path: (str(path.parent), path.name))
    rng = np.random.default_rng(0)
    for path in files:  # digits are grey, and grey has no order of channels
        pixels = np.asarray(Image.open(path).convert("RGB")) * rng.uniform(0.3, 1, 3)
        target = tmp_path / "images" / path.parent.name / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).resize((32, 32)).save(target)
    (tmp_path / "weights.safetensors").write_bytes((folder / "weights.safetensors").read_bytes())
    sent = np.stack(
        [np.asarray(Image.open(tmp_path / "images" / p.parent.name / p.name))[..., ::-1] for p in files]
    )
    with Client(server.grpc_url) as client:
        np.save(tmp_path / "answers.npy", client.infer(MODEL, np.ascontiguousarray(sent)))
    stated = ("--trained", 'image_size = 32, resize = "cover"')
    done = run(tmp_path, "--answers", tmp_path / "answers.npy", *stated)
    assert done.exit_code == 3, done.output
    assert "differs: served with the colours as BGR where the network learnt RGB" in done.stdout
    assert "cv2.COLOR_BGR2RGB" in done.stdout


WRONG: list[tuple[list[str], int, str]] = [
    ([], 2, "expected either MODEL or --answers"),
    (["m", "--answers", "a.npy"], 2, "expected either MODEL or --answers"),
    (["--answers", "nowhere.npy"], 1, "nowhere.npy: no such file, expected the scores of the images"),
]


@pytest.mark.parametrize(("args", "code", "message"), WRONG)
def test_wrong_usage_is_one_line(folder: Path, args: list[str], code: int, message: str) -> None:
    done = run(folder, *args)
    assert done.exit_code == code
    assert message in done.output
    assert "Traceback" not in done.output


def _arrays(folder: Path, place: Path) -> list[object]:
    np.save(place / "a.npy", np.zeros((16, 10), np.float32))
    np.save(place / "labels.npy", np.arange(16))
    (place / "one").mkdir()
    Image.new("RGB", (64, 64)).save(place / "one" / "a.png")
    np.save(place / "b.npy", np.zeros((1, 10), np.float32))
    return ["--trained", "image_size = 32"]


FEW: list[tuple[list[str], str]] = [
    (
        ["--answers", "a.npy", "--labels", "labels.npy"],
        "labels: got 0 to 15, expected the network's outputs",
    ),
    (["--answers", "b.npy", "--images", "one"], "one: holds 1 image, expected at least 2, better 24"),
]


@pytest.mark.parametrize(("args", "message"), FEW, ids=["labels", "one image"])
def test_images_and_labels_that_do_not_do_are_one_line(
    folder: Path, tmp_path: Path, args: list[str], message: str
) -> None:
    common = _arrays(folder, tmp_path)
    placed = [arg if arg.startswith("--") else str(tmp_path / arg) for arg in args]
    usual = ["--images", folder / "images", "--weights", folder / "weights.safetensors"]
    done = CliRunner().invoke(cli, ["diagnose", *map(str, [*usual, *common, *placed])])
    assert done.exit_code == 1
    assert message in done.output and "Traceback" not in done.output


def test_images_that_memory_does_not_hold_are_refused(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("temper.run.diagnose.diagnose._MAX_PIXELS", 5000)
    done = run(folder, "--answers", tmp_path / "a.npy", *_arrays(folder, tmp_path))
    assert done.exit_code == 1
    assert "--num-images: got 16, of which 2 have " in done.output


def test_raw_weights_beside_averaged_ones_are_found(
    server: TritonServer, sample: Sample, folder: Path, tmp_path: Path
) -> None:
    import torch

    raw = sample.model.state_dict()
    averaged = {name: value * 1.1 if name.startswith("fc.") else value for name, value in raw.items()}
    torch.save({"state_dict": raw, "state_dict_ema": averaged}, tmp_path / "both.pt")
    given = [MODEL, "--url", server.grpc_url, "--images", folder / "images", "--weights", tmp_path / "both.pt"]
    done = CliRunner().invoke(cli, ["diagnose", *map(str, given)])
    assert done.exit_code == 3, done.output
    assert "both.pt (averaged)" in done.output
    assert f"served with the weights of {tmp_path / 'both.pt'} (as trained)" in done.stdout


def test_answers_without_a_stated_size_are_refused(folder: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((16, 10), np.float32))
    done = run(folder, "--answers", tmp_path / "a.npy")
    assert done.exit_code == 1
    assert "image_size: got nothing, and no server says it" in done.output


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda names: names[:-1], "names 9 classes, expected 10"),
        (lambda names: [*names[:8], names[9], names[8]], "names of 2 outputs that are others than the network's"),
    ],
    ids=["too few", "swapped"],
)
def test_class_names_are_compared(
    server: TritonServer, sample: Sample, folder: Path, tmp_path: Path, spoil: Callable[[Any], Any], message: str
) -> None:
    (tmp_path / "classes.txt").write_text("\n".join(spoil(sample.class_names)) + "\n")
    done = run(folder, MODEL, "--url", server.grpc_url, "--classes", tmp_path / "classes.txt")
    assert done.exit_code in (1, 3)
    assert message in done.output
