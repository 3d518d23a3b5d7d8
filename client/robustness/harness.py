"""Attack a served model: choose the images, measure the clean accuracy, run the attack, report."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from client.accuracy import evaluate
from client.errors import ClientError
from client.retry import RetryingInfer, RetryPolicy
from client.robustness.base import Attack, AttackConfig, Slots
from client.robustness.checkpoint import Checkpoint, build_header
from client.robustness.judge import Judge
from client.robustness.noise import Noise
from client.robustness.result import AttackResult, build_result
from client.robustness.scheduler import Scheduler, build_slots
from client.robustness.square import Square
from client.scores import Infer, Int64Array, Progress, UInt8Array, check_labels

_FAMILIES: dict[str, Callable[[Slots], Attack]] = {"square": Square, "noise": Noise}


def attack(
    url: str,
    model: str,
    images: UInt8Array,
    labels: npt.ArrayLike,
    config: AttackConfig,
    progress: Progress | None = None,
    gallery: int = 8,
    *,
    checkpoint: Path | None = None,
    version: str = "",
    timeout_s: float = 30.0,
    retry: RetryPolicy | None = None,
) -> AttackResult:
    """Measure the adversarial robustness of a model through its endpoint.

    Only images that the served model gets right are attacked. Every image that counts as adversarial was sent as
    uint8, within the budget, and misclassified by the server. Memory stays flat: pass a memory map, and only the
    images under attack and the gallery are held. Not for use inside a running event loop; `attack_endpoint` is.

    Args:
        url: host and port of the gRPC endpoint.
        model: name of the served model.
        images: uint8 [N, H, W, 3].
        labels: integer [N], the class of each image.
        config: attack, budget and cost.
        progress: called with (queries spent, budget of all images); a fooled image gives back its rest at once.
        gallery: how many fooled images to keep as examples.
        checkpoint: file of finished images; an attack that was interrupted goes on from it.
        version: version of the model; "" is the server's choice.
        timeout_s: deadline of one request in seconds.
        retry: how requests that failed are sent again; `RetryPolicy()` when not given.

    Raises:
        ValueError: images or labels are not as described, or the checkpoint belongs to another attack.
        ClientError: the server failed; the message says how many images were finished.
    """
    # Here, because a recipe reads `AttackConfig` without gRPC.
    from client.aio import AsyncClient

    async def run() -> AttackResult:
        async with AsyncClient(url, timeout_s=timeout_s) as client:
            infer = RetryingInfer(lambda batch: client.infer(model, batch, version=version), retry)
            result = await attack_endpoint(
                infer,
                images,
                labels,
                config,
                progress=progress,
                gallery=gallery,
                checkpoint=checkpoint,
                endpoint=f"{model}:{version}",
            )
            return replace(result, retries=dict(infer.retries))

    return asyncio.run(run())


async def attack_endpoint(
    infer: Infer,
    images: UInt8Array,
    labels: npt.ArrayLike,
    config: AttackConfig,
    *,
    progress: Progress | None = None,
    gallery: int = 8,
    checkpoint: Path | None = None,
    endpoint: str = "",
) -> AttackResult:
    """Attack any endpoint behind the `Infer` seam; see `attack`.

    Args:
        infer: the endpoint: uint8 [n, H, W, 3] in, scores [n, classes] out.
        images: uint8 [N, H, W, 3].
        labels: integer [N].
        config: attack, budget and cost.
        progress: called with (queries spent, budget of all images).
        gallery: how many fooled images to keep as examples.
        checkpoint: file of finished images.
        endpoint: name of what is attacked; a checkpoint is refused when it names another.
    """
    truth = check_labels(images, labels)
    indices = choose_images(len(images), config)
    log = Checkpoint(checkpoint, build_header(config, images, truth, endpoint)) if checkpoint else None
    with log or nullcontext():
        num_finished = 0
        try:
            clean = await evaluate(
                infer,
                images,
                truth,
                indices=indices,
                batch_size=config.batch_size,
                concurrency=config.concurrency,
            )
            right = indices[clean.correct]
            judge = Judge(config, images, truth, right, gallery=gallery, checkpoint=log, progress=progress)
            start = time.perf_counter()
            try:
                await _run(infer, judge, right)
            finally:
                num_finished = int(judge.finished[right].sum())
        except ClientError as error:
            raise type(error)(
                f"{error} (attack {config.name}: {num_finished} of {len(indices)} images were finished"
                f"{'; run it again to go on from its checkpoint' if checkpoint else ''})",
                code=error.code,
            ) from error
    return build_result(
        config,
        indices=indices,
        labels=truth[indices],
        correct=clean.correct,
        fooled_at=judge.fooled_at[indices],
        broken_at=judge.broken_at[indices],
        errors=clean.errors,
        queries=judge.queries[indices],
        gallery=judge.gallery,
        num_queries_now=judge.num_queries,
        duration_s=time.perf_counter() - start,
    )


async def _run(infer: Infer, judge: Judge, right: Int64Array) -> None:
    judge.report_progress()
    if judge.config.name == "art-square":
        # ART brings scikit-learn and scipy along: seconds that only this attack should cost.
        from client.robustness.art import attack_with_art

        await attack_with_art(infer, judge, right)
        return
    todo = right[~judge.finished[right]]
    if todo.size:
        family = _FAMILIES[judge.config.name]
        await Scheduler(infer, family(build_slots(judge, len(todo))), judge, todo).run()


def choose_images(num_available: int, config: AttackConfig) -> Int64Array:
    """Return the indices of the images to evaluate, ascending: drawn by the seed, the same for every model.

    Raises:
        ValueError: more images are asked for than there are.
    """
    if config.num_images is None:
        return np.arange(num_available)
    if config.num_images > num_available:
        raise ValueError(f"num_images: got {config.num_images}, expected at most {num_available}, all there are")
    drawn = np.random.default_rng(config.seed).choice(num_available, config.num_images, replace=False)
    return np.sort(drawn.astype(np.int64))
