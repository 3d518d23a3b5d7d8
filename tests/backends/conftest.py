"""Makes the plugin's modules importable, under the names that they have inside Triton; publishes engine files."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "backends" / "temper"))


@pytest.fixture(scope="session")
def publish_engine() -> Callable[..., Path]:
    """Publishes an engine file under a name, and returns the version's folder."""
    from temper.builder.publish.entry import publish
    from temper.builder.publish.triton_config import PluginBackend, TritonConfig

    def publish_file(repository: Path, model: str, engine: Path, **more: Any) -> Path:
        card = more.pop("card", {"recipe": "toy"})
        backend = PluginBackend(engine="tensorrt-rtx")
        settings = {"max_batch": 16, **more}
        config = TritonConfig(name=model, image_size=32, num_classes=10, backend=backend, **settings)
        labels = [str(digit) for digit in range(10)]
        return publish(repository, config, engine_file=engine, labels=labels, card=card).path

    return publish_file
