"""Encoded images into pixels: the first step of an ensemble that takes files as they are.

A *python-based backend* of Temper (`backend: "temper_decode"`), as `temper_defence` is: config.pbtxt names its one
input and its one output, and the parameter `preprocessing` says what the pixels are to be. What makes them is the
repository's `imaging/`, which lies here by a link: the code that client and training use, so the same pixels.
"""

from __future__ import annotations

import json
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import triton_python_backend_utils as pb_utils

from imaging.batch import Decoder
from imaging.preprocess import PREPROCESSING, read_preprocessing

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import numpy.typing as npt

    from imaging.errors import ImageError


class TritonPythonModel:
    """Takes BYTES [N, 1], a file each, and answers UINT8 [N, H, W, 3]."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read the names of the tensors and the contract."""
        config = json.loads(args["model_config"])
        self._input, self._output = config["input"][0]["name"], config["output"][0]["name"]
        self._decoder = Decoder(read_preprocessing(config["parameters"][PREPROCESSING]["string_value"]))

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Decode the images of all requests together; an image that is none fails its own request alone."""
        each = [pb_utils.get_input_tensor_by_name(request, self._input).as_numpy().ravel() for request in requests]
        pixels, errors = self._decoder.decode([file for files in each for file in files])
        ends = list(accumulate(map(len, each)))
        return [
            self._answer(pixels[end - len(files) : end], {i - end + len(files): e for i, e in errors.items()})
            for files, end in zip(each, ends, strict=True)
        ]

    def _answer(self, pixels: npt.NDArray[np.uint8], errors: dict[int, ImageError]) -> Any:
        """Answer one request; `errors` has those of the others as well, with numbers that are none of its rows."""
        for row in range(len(pixels)):
            if row in errors:
                where = f"row {row}: " if len(pixels) > 1 else ""
                error = pb_utils.TritonError(f"{where}{errors[row]}", pb_utils.TritonError.INVALID_ARG)
                return pb_utils.InferenceResponse(error=error)
        return pb_utils.InferenceResponse([pb_utils.Tensor(self._output, pixels)])

    def finalize(self) -> None:
        """End the threads."""
        self._decoder.close()
