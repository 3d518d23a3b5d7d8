"""A model that takes as long as it is told, and counts the requests that were cancelled meanwhile."""

import time
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils  # type: ignore[import-not-found]  # only inside Triton

_STEP_S = 0.01


class TritonPythonModel:
    """Sleeps WAIT hundredths of a second per row; a WAIT of 255 fails."""

    def initialize(self, args: dict[str, str]) -> None:
        """Begin with nothing seen."""
        self.seen = [0, 0]

    def execute(self, requests: list[Any]) -> list[Any]:
        """Return one response per request: in each row how many came so far, and how many were cancelled."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        waits = pb_utils.get_input_tensor_by_name(request, "WAIT").as_numpy()
        if waits.max() == 255:
            return pb_utils.InferenceResponse(error=pb_utils.TritonError("this one fails"))
        cancelled = request.is_cancelled()
        for _ in range(int(waits.sum())):
            time.sleep(_STEP_S)
            cancelled = cancelled or request.is_cancelled()
        self.seen[0] += 1
        self.seen[1] += cancelled
        seen = np.tile(np.array(self.seen, np.float32), (len(waits), 1))
        return pb_utils.InferenceResponse([pb_utils.Tensor("SEEN", seen)])
