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
        """Answer one request; members that do not agree on a shape fail it alone."""
        tensors = [pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in self._inputs]
        shapes = [list(tensor.shape) for tensor in tensors]
        if any(shape != shapes[0] for shape in shapes):
            message = f"the mean's inputs have the shapes {shapes}, expected one; publish the ensemble again"
            return pb_utils.InferenceResponse(
                error=pb_utils.TritonError(message, pb_utils.TritonError.INVALID_ARG)
            )
        mean = np.mean(np.stack(tensors), axis=0, dtype=np.float32)
        return pb_utils.InferenceResponse([pb_utils.Tensor(self._output, mean)])
