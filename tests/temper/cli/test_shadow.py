"""`temper shadow` on a real server: what is printed of two versions, what is kept, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from onnx import numpy_helper
from PIL import Image

from temper.builder.publish.entry import publish
from temper.builder.publish.triton_config import PluginBackend, TritonConfig
from temper.cli.main import cli
from temper.imaging.preprocess import Preprocessing
from temper.serve.server import TritonServer

if TYPE_CHECKING:
    from benchmarks.sample import Sample

pytestmark = pytest.mark.server
NUM = 60


def change_head(source: Path, target: Path, change: Callable[[Any], Any]) -> Path:
    """Writes the network with another last layer: `change` gets its weight, and then its bias."""
    model = onnx.load(source)
    last = [node for node in model.graph.node if node.op_type == "Gemm"][-1]
    for initializer in model.graph.initializer:
        if initializer.name in last.input[1:]:
            changed = change(numpy_helper.to_array(initializer))
            initializer.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(changed), initializer.name))
    num_classes = next(each.dims[0] for each in model.graph.initializer if each.name == last.input[2])
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = num_classes
    onnx.save(model, target)
    return target


def favour_three(values: Any) -> Any:
    changed = values.copy()
    if changed.ndim == 1:
        changed[3] += 4  # many images become threes
    return changed


def add_class(values: Any) -> Any:
    return np.concatenate([values, values[:1] * 0])


@pytest.fixture(scope="module")
def repository(sample: Sample, toy_onnx: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Version 1 is the network, version 2 likes threes, version 3 knows one class more."""
    folder = tmp_path_factory.mktemp("shadow")
    networks = [
        toy_onnx,
        change_head(toy_onnx, folder / "threes.onnx", favour_three),
        change_head(toy_onnx, folder / "more.onnx", add_class),
    ]
    for network, labels in zip(networks, [sample.class_names] * 2 + [[*sample.class_names, "ten"]], strict=True):
        config = TritonConfig(
            name="toy",
            image_size=32,
            num_classes=len(labels),
            max_batch=32,
            preprocessing=Preprocessing(height=32, width=32),
            backend=PluginBackend(engine="openvino", on_cpu=True, parameters={"precision_hint": "f32"}),
        )
        publish(folder / "repository", config, engine_file=network, labels=labels, card={"recipe": "toy"})
    return folder / "repository"


@pytest.fixture(scope="module")
def arrays(sample: Sample, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The test images and their classes as .npy files."""
    folder = tmp_path_factory.mktemp("arrays")
    np.save(folder / "images.npy", sample.images[:NUM])
    np.save(folder / "labels.npy", sample.labels[:NUM])
    return folder / "images.npy", folder / "labels.npy"


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def shadow(*args: object) -> Result:
    return CliRunner().invoke(cli, ["shadow", "toy", *map(str, args)])


def error_of(result: Result, exit_code: int = 1) -> str:
    assert result.exit_code == exit_code, result.output
    assert "Traceback" not in result.output
    return result.stderr.splitlines()[-1].removeprefix("error: ").removeprefix("Error: ")


def test_figures_and_what_is_kept(repository: Path, arrays: tuple[Path, Path], sample: Sample) -> None:
    images, labels = arrays
    result = shadow(
        "--versions", "1,2", "--images", images, "--labels", labels, "--repository", repository, "--json"
    )
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    first, second = found["sides"]
    assert (first["version"], second["version"], found["disagreement"]["num_images"]) == (1, 2, NUM)
    # What changed became a three: right of threes alone.
    assert found["num_disagreements"] == len(found["kept"]) > 5
    assert all(one["answers"][1]["index"] == 3 for one in found["kept"])
    assert first["accuracy"]["value"] - second["accuracy"]["value"] == pytest.approx(
        -found["difference"]["difference"]
    )
    differences = [one["difference"] for one in found["kept"]]
    assert differences == sorted(differences, reverse=True) and 0 < min(differences) and max(differences) <= 1

    folder = Path("runs/toy-shadow")
    assert json.loads((folder / "shadow.json").read_text()) == found
    for one in found["kept"]:
        with Image.open(folder / one["picture"]) as picture:
            assert np.array_equal(np.asarray(picture), sample.images[one["index"]])
        assert one["label"] == sample.class_names[sample.labels[one["index"]]]
    assert len([*(folder / "disagreements").iterdir()]) == len(found["kept"])
    page = (folder / "shadow.html").read_text()
    assert page.count("data:image/png;base64,") == len(found["kept"])
    assert "Versions 1 and 2 disagree on" in page and "went from right to wrong" in page
    assert 'src="http' not in page


def test_folder_in_order_of_the_names(repository: Path, sample: Sample, tmp_path: Path) -> None:
    """What cannot be read is named and not counted; a second run leaves nothing of the first."""
    traffic = tmp_path / "traffic"
    traffic.mkdir()
    for index in range(NUM):
        Image.fromarray(sample.images[index]).save(traffic / f"{index:03d}.png")
    (traffic / "007.png").write_bytes(b"no image")
    options = ["--versions", "1,2", "--images", traffic, "--repository", repository, "--out", tmp_path / "out"]
    whole = shadow(*options, "--json")
    assert "1 of 60 images cannot be used: " in whole.stderr and "007.png" in whole.stderr
    found = json.loads(whole.stdout)
    assert (found["unreadable"], found["disagreement"]["num_images"], found["difference"]) == (1, NUM - 1, None)
    assert all(one["image"] == f"{one['index']:03d}.png" and one["label"] is None for one in found["kept"])

    result = shadow(*options, "--keep", 2)
    lines = result.stdout.splitlines()
    assert lines[0] == "toy, version 1 against 2, 59 images"
    assert lines[1].startswith("disagree ") and lines[1].endswith(f"  {found['num_disagreements']} images")
    assert lines[2].startswith(
        f"kept            2 of {found['num_disagreements']} disagreements, the most different"
    )
    pictures = sorted(path.name for path in (tmp_path / "out" / "disagreements").iterdir())
    assert pictures == sorted(Path(one["picture"]).name for one in found["kept"][:2])


@pytest.mark.parametrize(
    ("versions", "more", "message"),
    [
        ("3,3", [], "--versions: got 3,3, expected two versions that differ, such as 3,4"),
        ("1,2,3", [], "--versions: got 1,2,3, expected two versions that differ"),
        ("1,two", [], "Invalid value for '--versions': got '1,two', expected integers of at least 1"),
    ],
)
def test_wrong_usage(versions: str, more: list[str], message: str, arrays: tuple[Path, Path]) -> None:
    assert error_of(shadow("--versions", versions, "--images", arrays[0], *more), 2).startswith(message)


def test_version_that_is_not_there(repository: Path, arrays: tuple[Path, Path], server: TritonServer) -> None:
    result = shadow("--versions", "1,9", "--images", arrays[0], "--repository", repository)
    assert error_of(result) == f"{repository}/toy: has no version 9, expected two of its versions: 1, 2, 3"
    shadow_served = [
        "shadow",
        "toy_fp32",
        "--versions",
        "1,2",
        "--images",
        str(arrays[0]),
        "--url",
        server.grpc_url,
    ]
    served = CliRunner().invoke(cli, shadow_served)
    assert "has no version 2; it serves: 1" in error_of(served)


def test_other_classes_are_refused_and_other_settings_take_two_servers(
    repository: Path, arrays: tuple[Path, Path]
) -> None:
    """Triton has one config.pbtxt for all versions that it loads, so versions of two need two servers."""
    result = shadow("--versions", "2,3", "--images", arrays[0], "--repository", repository)
    assert error_of(result) == (
        "model toy: version 2 has 10 classes, version 3 has 11 classes; expected the same of both, "
        "as they answer the same requests"
    )


def test_labels_of_other_images(repository: Path, arrays: tuple[Path, Path], tmp_path: Path) -> None:
    np.save(tmp_path / "few.npy", np.zeros(5, np.int64))
    options = ["--versions", "1,2", "--images", arrays[0], "--repository", repository]
    result = shadow(*options, "--labels", tmp_path / "few.npy")
    assert error_of(result) == f"{tmp_path}/few.npy: got int64 [5], expected integers [60]"
    broken = tmp_path / "broken"
    broken.mkdir()
    shutil.copyfile(tmp_path / "few.npy", broken / "a.png")
    result = shadow(*options[:3], broken, *options[4:])
    assert error_of(result).startswith("1 of 1 images cannot be used: ")
