"""Temper's Triton backend: a *python-based backend*, so that a model only says `backend: "temper"`.

Triton starts one process of this file per model instance. Whatever does not depend on a request (checking the
digests, compiling, warming up) happens in `initialize`; `execute` gathers the requests of a batch into one
inference. Several instances keep several inferences in flight.

What an entry of the model repository must hold is written down in model_repository/README.md. This folder runs
inside Triton and imports nothing of ours: only numpy and the runtime of the engine.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import triton_python_backend_utils as pb_utils  # type: ignore[import-not-found]  # only inside Triton

import artifact
import monitor
import priority
import runners
import verdict
from runners.dlpack import DeviceTensor

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from runners.dlpack import Images

# For the last answers to leave this process before it ends; nothing tells when Triton has taken them.
_GRACE_S = 1.0
# Triton's own parameter for python backends: "no" hands GPU tensors over as they are.
_FORCE_CPU = "FORCE_CPU_ONLY_INPUT_TENSORS"


class TritonPythonModel:
    """One instance of a model: an engine, and the buffers that one inference at a time needs."""

    _ending = False

    @staticmethod
    def auto_complete_config(config: Any) -> Any:
        """Fill in, or check, what the artifact itself knows: tensor names, types, shapes and batching.

        Raises:
            TritonModelException: The artifact is missing, was tampered with, lacks the verdict that is asked for,
                or contradicts the config.
        """
        given = config.as_dict()
        try:
            folder = artifact.folder_of_this_process(given["name"])
            entry = _verify(folder, given, given["name"])
            signature = runners.load(entry.engine).signature(entry, given)
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

        Triton calls the model READY only when this returns, so the first request is as fast as the next, but for
        shared memory: Triton's region grows with the batches, and a runner may have to pin it then.

        Raises:
            TritonModelException: The artifact is missing, was tampered with, lacks the verdict that is asked for,
                or does not compile here.
        """
        try:
            with priority.in_background():
                self._load(args)
        except (artifact.ArtifactError, runners.RunnerError) as error:
            raise pb_utils.TritonModelException(str(error)) from error
        pb_utils.Logger.log_info(f"{args['model_instance_name']}: {self._runner.description}")

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer a batch of requests with one inference; a bad request is answered by itself.

        Each request holds 1 to `max_batch_size` images, UINT8 [N, H, W, 3]; its answer is FP32 [N, classes].
        Triton keeps the sum within `max_batch_size`.
        """
        responses: list[Any] = [None] * len(requests)
        good: list[int] = []
        images: list[Images] = []
        for index, request in enumerate(requests):
            try:
                tensor = pb_utils.get_input_tensor_by_name(request, self._input)
                batch = _read(tensor, in_place=self._runner.accepts_device_tensors)
            except runners.RunnerError as error:
                responses[index] = pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error)))
                continue
            if batch.dtype != np.uint8 or batch.shape[1:] != self._shape or not 0 < len(batch) <= self._max_batch:
                responses[index] = self._refuse(batch)
            else:
                good.append(index)
                images.append(batch)
        if self._monitor is not None:
            # Before the inference, which lets go of images that are read where Triton has them.
            self._monitor.watch([requests[index] for index in good], images)
        try:
            answers = self._runner.infer(images) if images else []
        except runners.RunnerError as error:
            failed = pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error)))
            answers = []
            for index in good:
                responses[index] = failed
            if isinstance(error, runners.ContextLostError):
                self._end_soon(str(error))
        for index, logits in zip(good, answers, strict=False):
            responses[index] = pb_utils.InferenceResponse([pb_utils.Tensor(self._output, logits)])
        return responses

    def finalize(self) -> None:
        """Give the engine's memory back, before Triton ends this process."""
        priority.lower()
        if self._monitor is not None:
            self._monitor.close()
        self._runner.close()

    def _load(self, args: dict[str, str]) -> None:
        config = json.loads(args["model_config"])
        entry = _verify(Path(args["model_repository"]) / args["model_version"], config, args["model_name"])
        instance = _instance(config, args)
        self._input, self._output = instance.signature.input.name, instance.signature.output.name
        self._shape = tuple(instance.signature.input.dims)
        self._max_batch = instance.max_batch
        module = runners.load(entry.engine)
        if not module.Runner.accepts_device_tensors and _wants_device_tensors(config):
            raise artifact.ArtifactError(
                f"{_FORCE_CPU}: got 'no', expected 'yes' or nothing with engine {entry.engine}, which reads "
                "host memory; remove it from config.pbtxt"
            )
        self._runner = module.Runner(entry, instance)
        for batch in sorted({1, self._max_batch}):
            self._runner.infer([np.zeros((batch, *self._shape), np.uint8)])
        self._monitor = self._start_monitor(entry, args)

    def _start_monitor(self, entry: artifact.Entry, args: dict[str, str]) -> monitor.QueryMonitor | None:
        long_run = monitor.long_run_from(entry.parameters)
        if long_run is None:
            return None
        return monitor.QueryMonitor(
            long_run=long_run,
            image_bytes=math.prod(self._shape),
            labels={"model": args["model_name"], "version": args["model_version"]},
            metric_family=pb_utils.MetricFamily,
            log=pb_utils.Logger.log_warn,
        )

    def _end_soon(self, reason: str) -> None:
        """End this process, as it would answer nothing but errors for ever.

        Whoever watches the server then starts it again with all its models: `temper serve` by itself,
        docker/serve.py by ending its container.
        """
        if not self._ending:
            self._ending = True
            pb_utils.Logger.log_error(f"this process ends, as its GPU context is lost: {reason}")
            timer = threading.Timer(_GRACE_S, os._exit, [1])
            timer.daemon = True  # an unload does not wait for it
            timer.start()

    def _refuse(self, batch: Images) -> Any:
        height, width, channels = self._shape
        message = (
            f"{self._input}: got {batch.dtype} {list(batch.shape)}, expected uint8 "
            f"[1..{self._max_batch}, {height}, {width}, {channels}]; resize the image and send NHWC RGB bytes"
        )
        return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, pb_utils.TritonError.INVALID_ARG))


def _verify(folder: Path, config: dict[str, Any], model: str) -> artifact.Entry:
    """The artifact, found to be what was published and, where a verdict is asked for, what was judged."""
    entry = artifact.verify(folder, config)
    judged = verdict.check_required(folder, model=model, parameters=entry.parameters, digests=entry.digests)
    return dataclasses.replace(entry, judged=judged)


def _instance(config: dict[str, Any], args: dict[str, str]) -> runners.Instance:
    signature = runners.Signature.from_config(config)
    if signature is None:
        raise artifact.ArtifactError(
            f"config.pbtxt has {len(config['input'])} inputs and {len(config['output'])} outputs, expected one of "
            "each; publish this version again"
        )
    return runners.Instance(
        signature=signature,
        max_batch=int(config["max_batch_size"]),
        num_instances=sum(group["count"] for group in config["instance_group"]),
        device=int(args["model_instance_device_id"]),
        log=pb_utils.Logger.log_warn,
    )


def _wants_device_tensors(config: dict[str, Any]) -> bool:
    given = config["parameters"].get(_FORCE_CPU, {})
    return bool(given.get("string_value") == "no")


def _read(tensor: Any, *, in_place: bool) -> Images:
    """A request's images, on a GPU where Triton has them there.

    Args:
        tensor: Of the Python backend.
        in_place: Give those on the host where Triton has them as well, read-only.
    """
    if tensor.is_cpu():
        # `as_numpy` gives a copy that the Python backend has made; this is the shared memory that it was made of.
        images: npt.NDArray[np.uint8] = np.from_dlpack(tensor) if in_place else tensor.as_numpy()
        return images
    return DeviceTensor(tensor.to_dlpack())
