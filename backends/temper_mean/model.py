"""The mean of several models' logits: the last step of an ensemble.

Another *python-based backend* of Temper (`backend: "temper_mean"`), apart from the plugin as it runs no engine:
config.pbtxt names its inputs, and its one output is their mean.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import triton_python_backend_utils as pb_utils

if TYPE_CHECKING:
    from collections.abc import Sequence


class TritonPythonModel:
    """Averages FP32 [N, classes] inputs of one shape."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read the names of the tensors."""
        config = json.loads(args["model_config"])
        self._inputs = [tensor["name"] for tensor in config["input"]]
        self._output = config["output"][0]["name"]

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer every request with the mean of its inputs, FP32 [N, classes]."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        tensors = (pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in self._inputs)
        mean = np.mean(np.stack(list(tensors)), axis=0, dtype=np.float32)
        return pb_utils.InferenceResponse([pb_utils.Tensor(self._output, mean)])
