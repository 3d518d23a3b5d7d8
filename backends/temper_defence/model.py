"""Defences before a model: the first step of an ensemble.

A *python-based backend* of Temper (`backend: "temper_defence"`), as `temper_mean` is: config.pbtxt names its one
input and its one output, and the parameter `defend` lists what is done, in order.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import triton_python_backend_utils as pb_utils

from defences import defend, read_defences

if TYPE_CHECKING:
    from collections.abc import Sequence


class TritonPythonModel:
    """Takes UINT8 [N, H, W, 3] and answers the same behind its defences."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read the names of the tensors and the defences."""
        config = json.loads(args["model_config"])
        self._input, self._output = config["input"][0]["name"], config["output"][0]["name"]
        self._defences = read_defences(config["parameters"]["defend"]["string_value"])
        # From the system's entropy: who knows the draws has nothing random before them.
        self._generator = np.random.default_rng()

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer every request with its images behind the defences."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        """Answer one request; what goes wrong fails it alone."""
        try:
            images = pb_utils.get_input_tensor_by_name(request, self._input).as_numpy()
            behind = defend(images, self._defences, self._generator)
        except Exception as error:  # Pillow's own are of many kinds, and the batch has other requests
            message = f"the defence failed: {type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(message))
        return pb_utils.InferenceResponse([pb_utils.Tensor(self._output, behind)])
