"""Which plans a Triton container takes."""

from __future__ import annotations

import re

import pytest

from temper.builder.engines import containers
from temper.builder.engines.containers import TENSORRT_OF_RELEASE, check_release, expected_tensorrt
from temper.builder.errors import EngineError


def test_table_is_of_releases_and_full_versions() -> None:
    assert TENSORRT_OF_RELEASE["26.06"] == expected_tensorrt("26.06")
    for release, version in TENSORRT_OF_RELEASE.items():
        assert re.fullmatch(r"2[4-9]\.(0[1-9]|1[0-2])", release)
        assert re.fullmatch(r"\d+\.\d+\.\d+\.\d+", version)


@pytest.mark.parametrize(
    ("release", "message"),
    [
        ("26.6", r"triton_release: got '26.6', expected a month such as '26.06'"),
        ("latest", r"triton_release: got 'latest', expected a month"),
        ("23.01", r"the TensorRT of tritonserver 23.01 was not confirmed \(known: .*26.06\); look it up"),
    ],
)
def test_unknown_release_is_refused(release: str, message: str) -> None:
    with pytest.raises(EngineError, match=message):
        expected_tensorrt(release)


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> None:
    """A table of two containers, for rules that must hold whatever NVIDIA releases next."""
    monkeypatch.setattr(containers, "TENSORRT_OF_RELEASE", {"30.01": "10.13.3.9", "30.02": "11.2.0.10"})


@pytest.mark.usefixtures("served")
@pytest.mark.parametrize(
    ("release", "built", "compatible"),
    [
        ("30.01", "10.13.3.9", False),
        ("30.01", "10.13.3.9.post1", False),
        ("30.01", "10.13.3", False),
        ("30.01", "10.9.0.34", True),
        ("30.01", "8.6.1.6", True),
        ("30.02", "11.0.0.114", True),
        ("30.02", "10.16.1.11", True),
        ("30.02", "11.2.0.10", True),
    ],
)
def test_plan_that_the_container_runs(release: str, built: str, compatible: bool) -> None:
    check_release(release, built, version_compatible=compatible)


NO_OTHER = (
    r"tritonserver 30.0\d holds TensorRT .*, the plan is built by {}, and a plan runs on no other version; build"
)
NEVER = (
    r"the plan is built by {}, which not even a version compatible plan survives; build in nvcr.io/nvidia/tensor"
)


@pytest.mark.usefixtures("served")
@pytest.mark.parametrize(
    ("release", "built", "compatible", "message"),
    [
        ("30.01", "10.9.0.34", False, NO_OTHER + r".* or set version_compatible = true$"),
        ("30.01", "10.13.2.6", False, NO_OTHER),
        ("30.01", "11.0.0.114", False, NO_OTHER + r" in nvcr.io/\S+ \(docker/builder.Dockerfile\)$"),
        ("30.01", "11.0.0.114", True, NEVER),
        ("30.01", "10.14.1.48", True, NEVER),
        ("30.01", "9.3.0.1", True, NEVER),
        ("30.02", "8.6.1.6", True, NEVER),
        ("30.02", "11.3.0.0", True, NEVER),
        ("30.02", "none", True, r"TensorRT: got the version 'none', expected one such as '11.0.0.114'"),
    ],
)
def test_plan_that_the_container_refuses(release: str, built: str, compatible: bool, message: str) -> None:
    with pytest.raises(EngineError, match=message.format(re.escape(built))):
        check_release(release, built, version_compatible=compatible)
