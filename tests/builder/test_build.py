"""The whole build, from images to a repository: what it makes, what it reuses, what it says."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]  # ships none
import numpy as np
import pytest
from PIL import Image

from temper.builder.build import build_variants
from temper.builder.built import Built
from temper.builder.compress import sensitivity
from temper.builder.compress.cast import CastConfig
from temper.builder.compress.quantize import STEP, Quantize, QuantizeConfig
from temper.builder.compress.saturation import weight_bits
from temper.builder.compress.stage import run_graph_step
from temper.builder.compress.variant import ChosenStep, VariantConfig
from temper.builder.data.config import DataConfig
from temper.builder.engines.build import PickedEngine
from temper.builder.engines.isa import instruction_set
from temper.builder.engines.kind import ENGINES
from temper.builder.engines.openvino import OpenVinoConfig
from temper.builder.engines.tensorrt_rtx import TensorRtRtxConfig
from temper.builder.errors import DataError, EngineError, ModelError, PublishError, QuantizeError
from temper.builder.network.resnet import ModelConfig
from temper.builder.network.stage import Setting
from temper.builder.network.train import TrainConfig
from temper.builder.publish.defence import Defence, JpegConfig
from temper.builder.publish.serving import ServingConfig
from temper.builder.publish.triton_config import NativeBackend
from temper.builder.store import code
from temper.builder.store.artifacts import Artifact, Store

FP32 = VariantConfig(name="fp32")
INT8 = VariantConfig(name="int8", compress=(ChosenStep(quantize=QuantizeConfig(method="max")),))


class View:
    """Keeps what a stage was shown as."""

    def __init__(self, label: str) -> None:
        """Takes the stage's label."""
        self.label = label
        self.reused = False
        self.note = ""

    def __call__(self, done: int, total: int) -> None:
        """Checks the progress."""
        assert 0 <= done <= total


class Workshop:
    """A folder with images, a store and a repository."""

    def __init__(self, folder: Path) -> None:
        """Draws the images."""
        self.folder = folder
        self.views: list[View] = []
        rng = np.random.default_rng(0)
        for name, low in (("bright", 150), ("dark", 0)):
            (folder / "images" / name).mkdir(parents=True)
            for index in range(12):
                pixels = rng.integers(low, low + 100, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / "images" / name / f"{index}.png")

    def build(self, *variants: VariantConfig, **changes: Any) -> list[Built]:
        """Builds, and keeps the views of this time only."""
        self.views = []
        arguments: dict[str, Any] = {
            "data": DataConfig(
                source="folder", path=str(self.folder / "images"), image_size=32, num_calibration=8, augment="none"
            ),
            "model": ModelConfig(),
            "train": TrainConfig(epochs=3, batch_size=6, device="cpu"),
            "engine": OpenVinoConfig(),
        }
        return build_variants(
            "toy",
            **{**arguments, **changes},
            variants=variants,
            store=Store(self.folder / "store"),
            repository=self.folder / "repository",
            progress_factory=self.show,
        )

    @contextlib.contextmanager
    def show(self, label: str) -> Iterator[View]:
        """Stands for the command line's display."""
        self.views.append(View(label))
        yield self.views[-1]

    def made(self) -> list[str]:
        """The stages that ran."""
        return [view.label for view in self.views if not view.reused]


def parameter_of(built: Built, name: str) -> str:
    """What config.pbtxt says of a parameter, as text; empty when it does not."""
    config = (built.path / "config.pbtxt").read_text()
    return config.partition(f'key: "{name}"')[2].partition("}")[0]


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    workshop = Workshop(tmp_path_factory.mktemp("build"))
    workshop.build(FP32, INT8)
    return workshop


def test_build_publishes_every_variant(workshop: Workshop) -> None:
    fp32, int8 = workshop.build(FP32, INT8)
    assert [(built.variant, built.model) for built in (fp32, int8)] == [("fp32", "toy_fp32"), ("int8", "toy_int8")]
    assert (fp32.engine, fp32.engine_reason) == ("openvino", "asked for in the recipe")
    assert int8.size_bytes == (int8.path / "model.onnx").stat().st_size < 0.3 * fp32.size_bytes
    assert [stage.name for stage in fp32.stages] == ["data", "weights", "export", "engine"]
    assert [stage.name for stage in int8.stages] == ["data", "weights", "export", "quantize", "engine"]
    figures = {stage.name: stage.figures for stage in int8.stages}
    assert figures["weights"]["accuracy"] == 1.0
    assert figures["quantize"]["against_float32"]["agreement"] == 1.0
    assert figures["quantize"]["audit"]["num_conv"] == 20
    # Decided by a measurement at AVX2, so alike on every machine.
    asked, used = (figures["quantize"]["reduce_range"][key] for key in ("asked", "used"))
    assert (asked, figures["quantize"]["weight_bits"]) == ("auto", 7 if used else 8)
    assert f'"{figures["quantize"]["weight_bits"]}"' in parameter_of(int8, "int8_weight_bits")
    assert parameter_of(fp32, "int8_weight_bits") == ""
    assert np.load(fp32.test_images, mmap_mode="r").shape == (6, 32, 32, 3)
    assert np.load(fp32.test_labels).tolist() == [0, 0, 0, 1, 1, 1]
    libraries = ["temper", "numpy", "pillow", "torch", "torchvision", "onnx", "onnxruntime-gpu", "openvino"]
    for built, more in ((fp32, []), (int8, ["nvidia-modelopt"])):
        found = json.loads((built.path / "card.json").read_text())["versions"]
        assert found == {name: importlib.metadata.version(name) for name in [*libraries, *more]}


def check_card(card: dict[str, Any]) -> None:
    schema = Path(__file__).parents[2] / "temper" / "report" / "schema" / "card.json"
    jsonschema.Draft202012Validator(json.loads(schema.read_text())).validate(card)
    assert card["format"] == 1


def test_card_says_where_it_comes_from(workshop: Workshop) -> None:
    (int8,) = workshop.build(INT8)
    card = json.loads((int8.path / "card.json").read_text())
    assert card["recipe"]["name"] == "toy"
    (step,) = card["recipe"]["variant"]["compress"]
    assert step["quantize"].items() >= {"precision": "int8", "method": "max"}.items()
    assert card["data_digest"] == int8.data.digest
    assert card["engine"] == "openvino"
    assert card["versions"].keys() >= {"temper", "torch", "nvidia-modelopt", "onnx", "openvino"}
    assert [stage["name"] for stage in card["stages"]] == ["data", "weights", "export", "quantize", "engine"]
    assert card["stages"][-1]["digest"] == int8.digest
    assert card["stages"][-1]["figures"]["precision_hint"] == "f32"
    assert card["stages"][-1]["figures"]["isa"] == instruction_set()
    check_card(card)


def test_every_precision_is_built_and_published(workshop: Workshop) -> None:
    fp16 = ChosenStep(cast=CastConfig(precision="fp16"))
    fp8 = ChosenStep(quantize=QuantizeConfig(precision="fp8", method="max"))
    half, low = workshop.build(
        VariantConfig(name="fp16", compress=(fp16,), min_agreement=0.5), VariantConfig(name="fp8", compress=(fp8,))
    )
    assert [stage.name for stage in half.stages] == ["data", "weights", "export", "cast", "engine"]
    assert half.stages[-1].figures["against_pytorch"]["agreement"] == 1.0
    assert half.size_bytes < 0.52 * half.snapshots[0].graph.info["num_parameters"] * 4
    assert [one.step for one in low.snapshots] == ["float32", "quantize"]
    (stem,) = low.stages[-2].figures["audit"]["kept_high"]
    assert stem["name"] == "/model/conv1/Conv"


@pytest.mark.parametrize(
    ("kind", "precision", "asked", "handed"),
    [
        ("openvino", "int8", "auto", "auto"),
        ("openvino", "int8", True, True),
        ("openvino", "fp8", "auto", False),
        ("tensorrt", "int8", "auto", False),
        ("tensorrt", "int8", True, True),
        ("tensorrt-rtx", "int8", "auto", False),
    ],
)
def test_range_is_measured_only_where_a_cpu_runs_int8(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch, kind: str, precision: Any, asked: Any, handed: Any
) -> None:
    seen = []

    def stop(step: object, source: Path, target: Path, config: QuantizeConfig, context: object) -> None:
        seen.append(config)
        raise QuantizeError("seen enough")

    picked = PickedEngine(config=ENGINES.get(kind).config(), why="for this test")
    monkeypatch.setattr("temper.builder.engines.build.pick_engine", lambda _: picked)
    monkeypatch.setattr(Quantize, "run", stop)
    config = QuantizeConfig(precision=precision, reduce_range=asked, max_loss=99.0)  # of no other test
    with pytest.raises(QuantizeError, match="seen enough"):
        workshop.build(VariantConfig(name="int8", compress=(ChosenStep(quantize=config),)))
    assert seen == [dataclasses.replace(config, reduce_range=handed)]


@pytest.mark.parametrize("max_loss", [None, 100.0])
@pytest.mark.parametrize("saturates", [True, False])
def test_what_saturates_is_quantised_to_7_bits(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, saturates: bool, max_loss: float | None
) -> None:
    found = iter([{"changed": 0.5 * saturates, "rms": 0.5 * saturates}, {"changed": 0.0, "rms": 0.0}])
    searched, search = [], sensitivity.quantize_within

    def spy(*arguments: Any, **settings: Any) -> dict[str, Any]:
        searched.append(settings["max_loss"])
        return search(*arguments, **settings)

    monkeypatch.setattr("temper.builder.compress.saturation.measure", lambda *_: next(found))
    monkeypatch.setattr("temper.builder.compress.sensitivity.quantize_within", spy)
    (fp32,) = workshop.build(FP32)
    config = QuantizeConfig(method="max", keep_high=("/model/fc/Gemm",), max_loss=max_loss)
    setting, weights = (
        Setting(data=DataConfig(), model=ModelConfig(), train=TrainConfig()),
        Artifact(tmp_path, "", {}, reused=True),
    )
    graph = fp32.snapshots[0].graph
    info = run_graph_step(STEP, config, setting, fp32.data, weights, weights, graph, tmp_path, lambda *_: None)
    assert info["weight_bits"] == weight_bits(tmp_path / "model.onnx") == (7 if saturates else 8)
    assert (info["reduce_range"]["asked"], info["reduce_range"]["used"]) == ("auto", saturates)
    assert info["kept_high"] == ["/model/fc/Gemm"]
    # Other weights lose something else, so the search for the layers to keep is done again.
    assert searched == ([] if max_loss is None else [100.0] * (1 + saturates))


def test_measured_range_belongs_to_its_openvino(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    def of(asked: Any, precision: Any = "int8") -> VariantConfig:
        config = QuantizeConfig(precision=precision, method="max", reduce_range=asked)
        return VariantConfig(name="other", compress=(ChosenStep(quantize=config),))

    monkeypatch.setattr("temper.builder.compress.saturation.measure", lambda *_: {"changed": 0.0, "rms": 0.0})
    version = code.package_version
    workshop.build(of(asked=False), of("auto"), of("auto", "fp8"))
    monkeypatch.setattr(code, "package_version", lambda name: "0" if name == "openvino" else version(name))
    made = {}
    for name, variant in {"asked": of(asked=False), "auto": of("auto"), "fp8": of(False, "fp8")}.items():
        workshop.build(variant)
        made[name] = [label for label in workshop.made() if "quantise" in label]
    assert made == {"asked": [], "auto": ["other: quantise to int8"], "fp8": []}


def test_other_serving_rebuilds_nothing(workshop: Workshop) -> None:
    (one,) = workshop.build(INT8, serving=ServingConfig(max_queue=7, queue_timeout_ms=500))
    assert workshop.made() == ["int8: publish"]
    assert one.served != one.version
    config = (one.path / "config.pbtxt").read_text()
    assert "max_queue_size: 7" in config
    assert "default_timeout_microseconds: 500000" in config


def test_twin_that_takes_files_follows_its_variant(workshop: Workshop) -> None:
    serving = ServingConfig(jpeg=True)
    (one,) = workshop.build(INT8, serving=serving)
    root = one.path.parents[1]
    folders = {one.model: one.path, f"{one.model}_jpeg": root / f"{one.model}_jpeg"}
    texts = {name: (folder / "config.pbtxt").read_text() for name, folder in folders.items()}
    assert all("max_queue_size" not in text for text in texts.values())
    assert 'name: "encoded"' in texts[f"{one.model}_jpeg"]
    assert 'key: "preprocessing"' in (root / f"{one.model}_jpeg_decode" / "config.pbtxt").read_text()
    card = json.loads((root / f"{one.model}_jpeg" / "1" / "card.json").read_text())
    assert (card["model"], card["members"]) == (f"{one.model}_jpeg", [one.model])
    assert [stage.name for stage in one.stages if not stage.reused] == []
    (again,) = workshop.build(INT8, serving=serving)
    assert again.reused
    assert not (root / f"{one.model}_jpeg" / "2").exists()
    workshop.build(INT8)
    assert not (root / f"{one.model}_jpeg").exists() and not (root / f"{one.model}_jpeg_decode").exists()


def test_watch_that_the_backend_cannot_keep_is_refused_first(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As TensorRT's, which needs a GPU.
    monkeypatch.setattr(type(ENGINES.get("openvino")), "backend", lambda *_: NativeBackend())
    with pytest.raises(PublishError, match="serving.watch_queries: got 25 with Triton's own backend 'tensorrt'"):
        workshop.build(INT8, serving=ServingConfig(watch_queries=25))
    assert workshop.made() == []


def test_other_instances_build_no_engine_again(workshop: Workshop) -> None:
    workshop.build(INT8, engine=OpenVinoConfig(num_instances=5, opt_batch=3))
    assert workshop.made() == ["int8: publish"]
    workshop.build(INT8)  # the others of this file expect two


def test_quantisation_by_training_starts_from_the_network(workshop: Workshop) -> None:
    # Its Q/DQ graph is audited like that of quantisation after training: same layers, same residual additions.
    trained = VariantConfig(name="qat", compress=(ChosenStep(quantize=QuantizeConfig(method="qat")),))
    (qat,) = workshop.build(trained)
    assert workshop.made() == ["qat: train in int8", "qat: openvino engine", "qat: publish"]
    assert [stage.name for stage in qat.stages] == ["data", "weights", "export", "quantize", "engine"]
    figures = qat.stages[-2].figures
    assert figures["against_float32"]["agreement"] == 1.0
    assert (figures["method"], figures["audit"]["num_conv"], figures["audit"]["num_residual_adds"]) == (
        "qat",
        20,
        8,
    )
    workshop.build(trained)
    assert workshop.made() == []


def test_ensemble_follows_its_members(workshop: Workshop) -> None:
    pair = VariantConfig(name="pair", ensemble=("fp32", "int8"))
    fp32, int8, both = workshop.build(FP32, INT8, pair)
    assert (both.model, both.version, both.stages, both.snapshots) == ("toy_pair", 1, [], [])
    assert both.size_bytes == fp32.size_bytes + int8.size_bytes
    bits = str(int8.weight_bits)
    assert (fp32.weight_bits, both.weight_bits, bits in ("7", "8")) == (None, int8.weight_bits, True)
    assert f'"{bits}"' in parameter_of(both, "int8_weight_bits")
    assert both.engine_reason == "the mean of the logits of fp32, int8"
    card = json.loads((both.path / "card.json").read_text())
    check_card(card)
    assert card["member_digests"] == {"toy_fp32": fp32.digest, "toy_int8": int8.digest}
    assert workshop.build(FP32, INT8, pair)[2].reused
    guarded = VariantConfig(name="guarded", ensemble=("int8",), defend=(Defence(jpeg=JpegConfig()),))
    one = workshop.build(FP32, INT8, guarded)[2]
    assert (one.engine_reason, one.size_bytes) == ("int8, behind jpeg (quality 75)", int8.size_bytes)
    card = json.loads((one.path / "card.json").read_text())
    check_card(card)
    assert card["defend"] == card["recipe"]["variant"]["defend"] == [{"jpeg": {"quality": 75}}]
    other = VariantConfig(
        name="int8",
        compress=(ChosenStep(quantize=QuantizeConfig(method="max", keep_high=("/model/fc/Gemm",))),),
    )
    changed = workshop.build(FP32, other, pair)[2]
    assert (changed.version, changed.reused) == (2, False)
    assert changed.digest != both.digest


def test_tensorrt_engine_gets_half_precision_where_it_is_not_quantised(workshop: Workshop) -> None:
    pytest.importorskip("tensorrt_rtx")
    (int8,) = workshop.build(INT8, engine=TensorRtRtxConfig())
    assert [stage.name for stage in int8.stages] == ["data", "weights", "export", "quantize", "cast", "engine"]
    assert int8.stages[-2].figures["precision"] == "fp16"
    assert int8.stages[-3].figures["weight_bits"] == 8  # a GPU does not saturate
    assert sorted(path.name for path in int8.path.iterdir()) == [
        "SHA256SUMS",
        "card.json",
        "config.pbtxt",
        "labels.txt",
        "model.rtx",
    ]
    workshop.build(INT8)  # the others of this file expect OpenVINO's


def test_engine_outside_of_its_limit_is_not_published(workshop: Workshop, tmp_path: Path) -> None:
    strict = VariantConfig(name="strict", compress=INT8.compress, max_logit_diff=1e-6)
    with pytest.raises(EngineError, match=r"a logit differs from PyTorch's by .*, expected at most 1e-06"):
        workshop.build(strict)
    assert not (workshop.folder / "repository" / "toy_strict").exists()


def test_second_build_does_nothing(workshop: Workshop) -> None:
    workshop.build(FP32, INT8)  # an ensemble's members are published with another queue
    workshop.build(FP32, INT8)
    assert workshop.made() == []
    assert all(view.note for view in workshop.views)


def test_changed_quantisation_redoes_only_that(workshop: Workshop) -> None:
    other = VariantConfig(name="int8", compress=(ChosenStep(quantize=QuantizeConfig(method="entropy")),))
    fp32, int8 = workshop.build(FP32, other)
    assert workshop.made() == ["int8: quantise to int8", "int8: openvino engine", "int8: publish"]
    assert fp32.reused
    assert not int8.reused


def test_user_checkpoint_is_taken_as_it_is(workshop: Workshop) -> None:
    (fp32,) = workshop.build(FP32)
    (weights,) = (workshop.folder / "store").glob("weights-*/weights.safetensors")
    (own,) = workshop.build(
        VariantConfig(name="own"), model=ModelConfig(weights=str(weights)), train=TrainConfig(epochs=0)
    )
    assert (own.path / "model.onnx").read_bytes() == (fp32.path / "model.onnx").read_bytes()


def test_checkpoint_with_another_head_is_one_line(workshop: Workshop, tmp_path: Path) -> None:
    from temper.builder.network.resnet import build_model, save_weights

    path = tmp_path / "ten.safetensors"
    save_weights(build_model(ModelConfig(), 10), path)
    with pytest.raises(ModelError, match=r"ten.safetensors: its head has 10 classes, the data has 2"):
        workshop.build(FP32, model=ModelConfig(weights=str(path)), train=TrainConfig(epochs=0))


def test_missing_checkpoint_is_one_line(workshop: Workshop) -> None:
    with pytest.raises(ModelError, match=r"checkpoint none.pt: no such file"):
        workshop.build(FP32, model=ModelConfig(weights="none.pt"))


def test_changed_images_are_seen(tmp_path: Path) -> None:
    workshop = Workshop(tmp_path)
    for path in (tmp_path / "images" / "dark").iterdir():
        path.unlink()
    with pytest.raises(DataError, match=r"no images of 1 of 2 classes: dark"):
        workshop.build(FP32)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ChosenStep(), r"quantize: got nothing in one step, expected exactly one of .*quantize"),
        (
            lambda: VariantConfig(name="x", compress=(*INT8.compress, *INT8.compress)),
            r"compress\[1\]: got quantize a second time, expected prune, select, low_rank, sparsify, quantize",
        ),
        (
            lambda: VariantConfig(name="x", ensemble=("a", "a")),
            r"ensemble: got \['a', 'a'\], expected two or more variants, each once",
        ),
        (
            lambda: VariantConfig(name="x", ensemble=("a", "b"), compress=INT8.compress),
            r"compress: got it beside ensemble, expected it in the members' own variants",
        ),
    ],
)
def test_config_is_checked(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
