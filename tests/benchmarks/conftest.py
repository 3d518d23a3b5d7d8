"""What the tests of the benchmarks share."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu.context import Context


@pytest.fixture
def context(tmp_path: Path) -> Context:
    folders: dict[str, Any] = {name: tmp_path / name for name in ("out", "work", "carried")}
    return Context(**folders, deadline=time.monotonic() + 3600, device="cpu", kind="openvino", image_size=32)
