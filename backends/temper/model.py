"""Temper's Triton backend: a *python-based backend*, so that a model only says `backend: "temper"`.

Triton starts one process of this file per model instance. Whatever does not depend on a request (checking the
digests, compiling, warming up) happens in `initialize`; `execute` gathers the requests of a batch into one
inference. Several instances keep several inferences in flight.

What an entry of the model repository must hold is written down in model_repository/README.md. This folder runs
inside Triton and imports nothing of ours: only numpy and the runtime of the engine.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import triton_python_backend_utils as pb_utils

import artifact
import runners

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt


class TritonPythonModel:
    """One instance of a model: an engine, and the buffers that one inference at a time needs."""

    @staticmethod
    def auto_complete_config(config: Any) -> Any:
        """Fill in, or check, what the artifact itself knows: tensor names, types, shapes and batching.

        Raises:
            TritonModelException: The artifact is missing, was tampered with, or contradicts the config.
        """
        given = config.as_dict()
        try:
            folder = artifact.folder_of_this_process(given["name"])
            entry = artifact.verify(folder, given["parameters"])
            signature = runners.load(entry.engine).signature(entry)
        except artifact.ArtifactError as error:
            raise pb_utils.TritonModelException(str(error)) from error
        config.add_input(signature.input.as_config())
        config.add_output(signature.output.as_config())
        if given["max_batch_size"] == 0:
            config.set_max_batch_size(entry.max_batch)
        config.set_dynamic_batching()
        return config

    def initialize(self, args: dict[str, str]) -> None:
        """Verify the artifact, compile it, and answer once at the smallest and the largest batch.

        Triton calls the model READY only when this returns, so the first request is as fast as the next.

        Raises:
            TritonModelException: The artifact is missing, was tampered with, or does not compile here.
        """
        config = json.loads(args["model_config"])
        folder = Path(args["model_repository"]) / args["model_version"]
        self._shape = tuple(int(size) for size in config["input"][0]["dims"])
        self._input = config["input"][0]["name"]
        self._output = config["output"][0]["name"]
        self._max_batch = int(config["max_batch_size"])
        try:
            entry = artifact.verify(folder, config["parameters"])
            num_instances = sum(group["count"] for group in config["instance_group"])
            self._runner = runners.load(entry.engine).Runner(entry, self._max_batch, num_instances)
        except artifact.ArtifactError as error:
            raise pb_utils.TritonModelException(str(error)) from error
        for batch in sorted({1, self._max_batch}):
            self._runner.infer([np.zeros((batch, *self._shape), np.uint8)])
        pb_utils.Logger.log_info(f"{args['model_instance_name']}: {self._runner.description}")

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer a batch of requests with one inference; a bad request is answered by itself.

        Each request holds 1 to `max_batch_size` images, UINT8 [N, H, W, 3]; its answer is FP32 [N, classes].
        Triton keeps the sum within `max_batch_size`.
        """
        responses: list[Any] = [None] * len(requests)
        good: list[int] = []
        images: list[npt.NDArray[np.uint8]] = []
        for index, request in enumerate(requests):
            batch = pb_utils.get_input_tensor_by_name(request, self._input).as_numpy()
            if batch.dtype != np.uint8 or batch.shape[1:] != self._shape or not 0 < len(batch) <= self._max_batch:
                responses[index] = self._refuse(batch)
            else:
                good.append(index)
                images.append(batch)
        try:
            answers = self._runner.infer(images) if images else []
        except runners.RunnerError as error:
            failed = pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error)))
            answers = []
            for index in good:
                responses[index] = failed
        for index, logits in zip(good, answers, strict=False):
            responses[index] = pb_utils.InferenceResponse([pb_utils.Tensor(self._output, logits)])
        return responses

    def _refuse(self, batch: npt.NDArray[Any]) -> Any:
        height, width, channels = self._shape
        message = (
            f"{self._input}: got {batch.dtype} {list(batch.shape)}, expected uint8 "
            f"[1..{self._max_batch}, {height}, {width}, {channels}]; resize the image and send NHWC RGB bytes"
        )
        return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, pb_utils.TritonError.INVALID_ARG))
