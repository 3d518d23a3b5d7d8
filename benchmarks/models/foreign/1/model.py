"""An image classifier that is none of Temper's: OpenVINO runs model.onnx beside this file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov  # type: ignore[import-untyped]  # ships no types
import triton_python_backend_utils as pb_utils  # type: ignore[import-not-found]  # of the backend


class TritonPythonModel:
    """Called by Triton's python backend."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Compiles the graph with the precision that config.pbtxt asks for."""
        config = json.loads(args["model_config"])
        hint = config["parameters"]["hint"]["string_value"]
        self.output = config["output"][0]["name"]
        self.input = config["input"][0]["name"]
        graph = Path(args["model_repository"]) / args["model_version"] / "model.onnx"
        self.model = ov.Core().compile_model(str(graph), "CPU", {"INFERENCE_PRECISION_HINT": hint})

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answers each request by itself."""
        responses = []
        for request in requests:
            images = pb_utils.get_input_tensor_by_name(request, self.input).as_numpy()
            whole = images if images.ndim == 4 else images[None]
            scores = np.ascontiguousarray(self.model(np.ascontiguousarray(whole))[0])
            scores = scores if images.ndim == 4 else scores[0]
            responses.append(pb_utils.InferenceResponse([pb_utils.Tensor(self.output, scores)]))
        return responses
