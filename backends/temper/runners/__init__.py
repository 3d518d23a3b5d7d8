"""One runner per engine kind: each module has `signature(entry)` and `Runner(entry, max_batch, num_instances)`."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

import artifact

# Engine kind -> module of this package. Imported on demand: each needs the runtime of its engine.
_MODULES = {"openvino": "runners.openvino_runner"}


class RunnerError(Exception):
    """An inference failed in the engine."""


@dataclass(frozen=True, kw_only=True)
class TensorSignature:
    """Name, Triton type and shape of a tensor, without the batch dimension."""

    name: str
    data_type: str
    dims: list[int]

    def as_config(self) -> dict[str, Any]:
        """The form that Triton's `add_input` and `add_output` take."""
        return {"name": self.name, "data_type": self.data_type, "dims": self.dims}


@dataclass(frozen=True, kw_only=True)
class Signature:
    """What an artifact takes and gives."""

    input: TensorSignature
    output: TensorSignature


def load(engine: str) -> Any:
    """The module that runs an engine kind.

    Raises:
        ArtifactError: No runner for this kind, or its runtime is not installed beside tritonserver.
    """
    if engine not in _MODULES:
        raise artifact.ArtifactError(
            f"engine: got {engine!r}, expected one of {', '.join(sorted(_MODULES))}; "
            "build the recipe again with an engine kind that this plugin runs"
        )
    try:
        return importlib.import_module(_MODULES[engine])
    except ImportError as error:
        raise artifact.ArtifactError(
            f"engine {engine} needs the package {error.name}, which the python3 of tritonserver lacks; install it"
        ) from error
