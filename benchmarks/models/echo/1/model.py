"""Echo for Triton's python backend: the cheapest model there is, so that a load test of it measures the client.

`temper load` and perf_analyzer are compared on it, on the same server (see benchmarks/RESULTS.md).
"""

from typing import Any

import triton_python_backend_utils as pb_utils  # type: ignore[import-not-found]  # only inside Triton


class TritonPythonModel:
    """Answers every request with its own input."""

    def execute(self, requests: list[Any]) -> list[Any]:
        """Return one response per request, with OUTPUT0 equal to INPUT0 (float32 [3, 32, 32])."""
        responses = []
        for request in requests:
            array = pb_utils.get_input_tensor_by_name(request, "INPUT0").as_numpy()
            responses.append(pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT0", array)]))
        return responses
