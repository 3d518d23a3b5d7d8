"""Asks a version on a server of its own before it is switched to, where nobody else gets its answers."""

from __future__ import annotations

import math
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt

from temper.builder.publish.switch import steps_of, versions_with
from temper.client import Client
from temper.client.errors import ClientError
from temper.errors import ServerError
from temper.progress import Display
from temper.serve.endpoint import Endpoint
from temper.serve.signs import Before, Limits, Probe, Sign, Traffic, find_sign


def rehearse(
    repository: Path,
    model: str,
    version: int,
    images: npt.NDArray[np.uint8],
    *,
    before: Before,
    limits: Limits,
    display: Display,
) -> Sign | None:
    """Starts a server for the version, and asks it once about each image that the served one has answered.

    Its latency is not judged: the server is another one, and new.

    Args:
        repository: The model repository.
        model: The model.
        version: The version.
        images: uint8 [N, H, W, 3].
        before: What the version that is served answered.
        limits: What is allowed.
        display: Is told when there is no such server here.

    Returns:
        The sign that it is worse; None when there is none, or nothing here runs its engine.
    """
    names = [model, *steps_of(repository / model)]
    versions = {
        name: which for name, which in versions_with(repository, [(model, version)]).items() if name in names
    }
    try:
        with Endpoint(None, repository, models=names, versions=versions, display=display) as endpoint:
            probes = _ask(endpoint.url(), model, images, before)
    except ServerError as error:
        display.say(f"{model}: version {version} is not asked before it is switched to: {error}")
        return None
    return find_sign(before, probes, Traffic(), limits, switched_s=math.inf, now_s=time.monotonic())


def _ask(url: str, model: str, images: npt.NDArray[np.uint8], before: Before) -> list[Probe]:
    probes = []
    with Client(url) as client:
        for image in sorted(before.answers):
            due, answer, reason = time.monotonic(), None, None
            try:
                answer = int(client.infer(model, images[image : image + 1])[0].argmax())
            except ClientError as error:
                reason = str(error)
            latency_s = time.monotonic() - due
            probes.append(Probe(image=image, due_s=due, latency_s=latency_s, answer=answer, error=reason))
    return probes
