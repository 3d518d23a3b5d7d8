"""Runs the engine kind `ort` inside Triton, where nothing of Temper is but its plugin."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

import runners
from artifact import ArtifactError, Entry


def signature(entry: Entry, config: Mapping[str, Any]) -> runners.Signature:
    """What the engine takes and gives: what config.pbtxt says.

    Raises:
        ArtifactError: It does not say.
    """
    stated = runners.Signature.from_config(config)
    if stated is None:
        raise ArtifactError(f"{entry.file}: config.pbtxt has no input and output; publish this version again")
    return stated


class Runner:
    """One session; one thread at a time may call it."""

    accepts_device_tensors = False

    def __init__(self, entry: Entry, instance: runners.Instance) -> None:
        """Loads the graph.

        Raises:
            ArtifactError: ONNX Runtime refuses it.
        """
        options = onnxruntime.SessionOptions()
        if entry.parameters.get("optimize") == "no":
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        try:
            # Not by its path: exactly these bytes were verified.
            self._session = onnxruntime.InferenceSession(entry.read(), options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise ArtifactError(f"{entry.file}: ONNX Runtime cannot load it: {error}") from error
        self._input = instance.signature.input.name
        self.description = f"ONNX Runtime {onnxruntime.__version__}"

    def infer(self, batches: Sequence[npt.NDArray[np.uint8]]) -> list[npt.NDArray[np.float32]]:
        """Runs batches of images, UINT8 [n_i, H, W, 3] each, as one inference, to FP32 [n_i, classes] each."""
        logits = self._session.run(None, {self._input: np.ascontiguousarray(np.concatenate(batches))})[0]
        return list(np.split(logits, np.cumsum([len(batch) for batch in batches])[:-1]))

    def close(self) -> None:
        """Nothing to give back."""
