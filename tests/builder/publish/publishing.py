"""Helpers of the tests that publish: a module, so that processes which are killed or starved can import it too."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

from google.protobuf import text_format  # type: ignore[import-untyped]  # ships none
from tritonclient.grpc import model_config_pb2  # type: ignore[import-untyped]  # ships none

from temper.builder.publish.entry import Published, publish
from temper.builder.publish.switch import switch
from temper.builder.publish.triton_config import PluginBackend, TritonConfig

OPENVINO = PluginBackend(engine="openvino", on_cpu=True, parameters={"precision_hint": "f32"})
CONFIG = TritonConfig(name="m_int8", image_size=32, num_classes=2, max_batch=8, backend=OPENVINO, num_instances=2)


def publish_bytes(folder: Path, content: bytes = b"engine 1", **changes: Any) -> Published:
    """Publishes a file of these bytes; `changes` are arguments of `publish`, or fields of its config."""
    engine = folder / "model.onnx"
    engine.write_bytes(content)
    arguments: dict[str, Any] = {
        "engine_file": engine,
        "labels": ["cat", "dog"],
        "card": {"recipe": {"name": "m"}},
        "binding": None,
    }
    fields = {name: changes.pop(name) for name in list(changes) if name not in arguments}
    return publish(folder / "repository", replace(CONFIG, **fields), **{**arguments, **changes})


def serve_bytes(folder: Path, content: bytes, **changes: Any) -> Published:
    """Publishes a file of these bytes and serves it."""
    published = publish_bytes(folder, content, **changes)
    switch(folder / "repository", published.model, published.version, event="promoted")
    return replace(published, served=published.version)


def read_config(model: Path) -> Any:
    return text_format.Parse((model / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())


def check_repository(repository: Path) -> list[tuple[str, int, str]]:
    """Fails when Triton could not load what is served; returns (model, version, engine's content) of each."""
    found = []
    for model in sorted(repository.iterdir()):
        config = read_config(model)
        assert config.name == model.name
        (version,) = config.version_policy.specific.versions
        folder = model / str(version)
        subprocess.run(
            ["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=folder, check=True, capture_output=True
        )
        assert (folder / "config.pbtxt").read_bytes() == (model / "config.pbtxt").read_bytes()
        assert len((model / config.output[0].label_filename).read_text().split()) == config.output[0].dims[0]
        json.loads((folder / "card.json").read_text())
        found.append((model.name, version, (folder / config.parameters["file"].string_value).read_text()))
    return found
