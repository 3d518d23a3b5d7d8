"""The query monitor where something fails: serving must not notice. In Triton it is in test_plugin.py."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

import artifact
import monitor

IMAGES = np.random.default_rng(0).integers(0, 256, (64, 8, 8, 3), np.uint8)


class _Request:
    """Triton's request, as far as the monitor reads it."""

    def __init__(self, parameters: str) -> None:
        self._parameters = parameters

    def parameters(self) -> str:
        return self._parameters


class _Family:
    """Triton's MetricFamily; it has no place in this process. What `broken` names fails."""

    COUNTER, GAUGE = "counter", "gauge"
    broken = ""

    def __init__(self, name: str, description: str, kind: str) -> None:
        self._fail("family")

    def Metric(self, labels: dict[str, str]) -> _Family:  # noqa: N802
        self._fail("metric")
        return self

    def increment(self, value: int) -> None:
        self._fail("increment")

    def set(self, value: int) -> None:
        self._fail("set")

    def _fail(self, what: str) -> None:
        if self.broken == what:
            raise RuntimeError(f"no {what}")


@pytest.mark.parametrize(
    ("broken", "parameters", "batch", "reason"),
    [
        ("family", "{}", IMAGES, "RuntimeError('no family')"),
        ("metric", "{}", IMAGES, "RuntimeError('no metric')"),
        ("increment", "{}", IMAGES, "RuntimeError('no increment')"),
        ("set", "{}", IMAGES, "RuntimeError('no set')"),
        ("", "{", IMAGES, "JSONDecodeError"),
        ("", "[]", IMAGES, "AttributeError"),
        ("", "{}", IMAGES[:, :4], "IndexError"),
    ],
)
def test_failure_is_logged_once_and_turns_it_off(
    monkeypatch: pytest.MonkeyPatch, broken: str, parameters: str, batch: Any, reason: str
) -> None:
    monkeypatch.setattr(_Family, "broken", broken)
    lines: list[str] = []
    watch = monitor.QueryMonitor(
        long_run=10, image_bytes=192, labels={"model": "m"}, metric_family=_Family, log=lines.append
    )
    for _ in range(3):
        watch.watch([_Request(parameters)], [batch])
    watch.close()
    (line,) = lines
    assert line.startswith("model m: the query monitor is off, and the model is served without it: ")
    assert reason in line


def test_images_on_a_gpu_are_left_alone() -> None:
    lines: list[str] = []
    watch = monitor.QueryMonitor(
        long_run=10, image_bytes=192, labels={"model": "m"}, metric_family=_Family, log=lines.append
    )
    watch.watch([_Request(""), _Request('{"client": 5}')], [object(), IMAGES])
    watch.close()
    watch.watch([_Request("")], [IMAGES])
    assert lines == []


@pytest.mark.parametrize("given", ["1", "0", "-3", "2.5", "many", "²"])
def test_wrong_length_is_refused(given: str) -> None:
    expected = re.escape(f"watch_queries: got {given!r}, expected a number of images from 2;")
    with pytest.raises(artifact.ArtifactError, match=expected):
        monitor.long_run_from({"watch_queries": given})
    assert monitor.long_run_from({"watch_queries": "25"}) == 25
    assert monitor.long_run_from({}) is None
