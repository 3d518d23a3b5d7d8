"""One runner per engine kind: ours here, those of other packages by their entry points.

An entry point of the group `temper.runners`, named as the engine kind, is a module like ours; its package must be
installed for tritonserver's python3. It imports this package as `runners`, and `artifact` beside it.

Each module has `signature(entry, config)`, what the artifact takes and gives, and `Runner(entry, instance)` with

    accepts_device_tensors   whether `infer` takes a DeviceTensor; images on the host are then read-only, where
                             Triton has them, and to be let go of when it returns
    description              one line for the log
    infer(batches)           UINT8 [n_i, H, W, 3] each, together at most max_batch, to FP32 [n_i, classes] each
    close()                  gives everything back
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any

import artifact

_GROUP = "temper.runners"
# Engine kind -> module of this package. Imported on demand: each needs the runtime of its engine.
_MODULES = {
    "openvino": "runners.openvino_runner",
    "tensorrt": "runners.tensorrt_runner",
    "tensorrt-rtx": "runners.tensorrt_runner",
}


class RunnerError(Exception):
    """An inference failed in the engine."""


class ContextLostError(RunnerError):
    """The GPU's context ended with an inference: no later one succeeds in this process, only in a new one."""


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

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Signature | None:
        """What config.pbtxt, as Triton's JSON, states; None when it leaves the input or the output out."""
        if len(config.get("input", ())) != 1 or len(config.get("output", ())) != 1:
            return None
        image, logits = (
            TensorSignature(
                name=tensor["name"],
                data_type=tensor["data_type"],
                # Triton's JSON has 64-bit numbers as text.
                dims=[int(size) for size in tensor["dims"]],
            )
            for tensor in (config["input"][0], config["output"][0])
        )
        return cls(input=image, output=logits)


@dataclass(frozen=True, kw_only=True)
class Instance:
    """What Triton says of the model instance that a runner serves."""

    signature: Signature
    max_batch: int
    """The largest batch that Triton puts together."""
    num_instances: int
    """Instances of this model, this one included."""
    device: int
    """Index of the GPU, for a runner that needs one."""
    log: Callable[[str], None]
    """Writes a line into the server's log."""


def load(engine: str) -> Any:
    """The module that runs an engine kind.

    Raises:
        ArtifactError: No runner for this kind, or its runtime is not installed beside tritonserver.
    """
    others = {} if engine in _MODULES else {each.name: each for each in entry_points(group=_GROUP)}
    known = {**_MODULES, **{name: each.value for name, each in others.items()}}
    if engine not in known:
        raise artifact.ArtifactError(
            f"engine: got {engine!r}, expected one of {', '.join(sorted(known))}; "
            "build the recipe again with an engine kind that this plugin runs, or install the package that brings "
            "its runner beside tritonserver"
        )
    try:
        return importlib.import_module(known[engine])
    except ImportError as error:
        raise artifact.ArtifactError(
            f"engine {engine} needs the package {error.name}, which the python3 of tritonserver lacks; install it"
        ) from error
