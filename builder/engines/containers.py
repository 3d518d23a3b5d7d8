"""Which TensorRT a Triton container holds, and whether a plan can be served by it.

A plan runs on the version of TensorRT that built it, and on no other, unless it was built *version compatible*. So
a recipe names the container that will serve (`engine.triton_release`), and the plan is refused before it is built.
"""

from __future__ import annotations

import re

from temper.builder.errors import EngineError

TENSORRT_OF_RELEASE: dict[str, str] = {
    # tritonserver:26.06-py3 holds TensorRT 11.0 (read inside the image, in a public scan of it of July 2026), and
    # tensorrt:26.06-py3, the builder's image of that month, 11.0.0.114 (public benchmark logs run in it).
    "26.06": "11.0.0.114",
}
"""NGC's tritonserver:<release>-py3 to its TensorRT; the -trtllm images of the same months hold others.

NVIDIA's own table (docs.nvidia.com/deeplearning/frameworks/support-matrix) is the one to extend this from. A
release is here only when its version could be confirmed.
"""

_RELEASE = re.compile(r"[0-9]{2}\.[0-9]{2}")


def expected_tensorrt(release: str) -> str:
    """Returns the version of TensorRT in a Triton container, as "11.0.0.114".

    Args:
        release: NGC's name of the container, as "26.06".

    Raises:
        EngineError: It is no release's name, or its TensorRT is not known here.
    """
    if not _RELEASE.fullmatch(release):
        raise EngineError(f"triton_release: got {release!r}, expected a month such as '26.06'")
    version = TENSORRT_OF_RELEASE.get(release)
    if version is None:
        known = ", ".join(sorted(TENSORRT_OF_RELEASE))
        raise EngineError(
            f"triton_release: the TensorRT of tritonserver {release} was not confirmed (known: {known}); look it "
            "up in NVIDIA's frameworks support matrix and add it to builder/engines/containers.py, or leave "
            "triton_release out"
        )
    return version


def check_release(release: str, tensorrt_version: str, *, version_compatible: bool) -> None:
    """Refuses a plan that the container which will serve it cannot load.

    The rules are those of TensorRT's documentation, engine compatibility (11.1.0) and support matrix (11.4.1): the
    same version; or, version compatible, a later one of the same major version, or of the next: 8 runs on 10 and
    10 on 11, no other pair. Never an earlier one.

    Args:
        release: NGC's name of the container, as "26.06".
        tensorrt_version: Of the library that builds the plan, as "11.0.0.114".
        version_compatible: The plan is built with that flag. The server then needs
            `--backend-config=tensorrt,version-compatible=true`.

    Raises:
        EngineError: The container holds another TensorRT, or an unknown one.
    """
    served = expected_tensorrt(release)
    built_parts, served_parts = _parse(tensorrt_version), _parse(served)
    if built_parts == served_parts[: len(built_parts)] or built_parts[: len(served_parts)] == served_parts:
        return
    refusal = (
        f"triton_release: tritonserver {release} holds TensorRT {served}, the plan is built by {tensorrt_version}"
    )
    same = f"build in nvcr.io/nvidia/tensorrt:{release}-py3 (docker/builder.Dockerfile)"
    if not version_compatible:
        later = " or set version_compatible = true" if _runs_on(built_parts, served_parts) else ""
        raise EngineError(f"{refusal}, and a plan runs on no other version; {same}{later}")
    if not _runs_on(built_parts, served_parts):
        raise EngineError(f"{refusal}, which not even a version compatible plan survives; {same}")


def _runs_on(built: tuple[int, ...], served: tuple[int, ...]) -> bool:
    """Says whether a version compatible plan runs on another version."""
    if built[0] == served[0]:
        return built < served
    return (built[0], served[0]) in ((8, 10), (10, 11))


def _parse(version: str) -> tuple[int, ...]:
    numbers = re.match(r"\d+(\.\d+)+", version)
    if numbers is None:
        raise EngineError(f"TensorRT: got the version {version!r}, expected one such as '11.0.0.114'")
    return tuple(int(number) for number in numbers[0].split("."))
