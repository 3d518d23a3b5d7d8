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

    def publish_file(repository: Path, model: str, engine: Path, **more: Any) -> Path:
        settings: dict[str, Any] = {"card": {"recipe": "toy"}, "max_batch": 16, "num_instances": 1, **more}
        settings["parameters"] = {"engine": "tensorrt-rtx", **settings.get("parameters", {})}
        labels = [str(digit) for digit in range(10)]
        return publish(
            repository, model=model, engine_file=engine, labels=labels, image_size=32, num_classes=10, **settings
        ).path

    return publish_file
