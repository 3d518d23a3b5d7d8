"""Attack a served model: choose the images, measure the clean accuracy, run the attack, report."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import AsyncExitStack, ExitStack, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from temper.client.accuracy import evaluate
from temper.client.errors import ClientError
from temper.client.model import ModelInfo
from temper.client.retry import RetryingInfer, RetryPolicy, open_model
from temper.client.robustness.base import ATTACKS, OWN, REFERENCE, AttackConfig, AttackKind, Network, Surrogates
from temper.client.robustness.checkpoint import Say, build_header, open_checkpoint
from temper.client.robustness.draws import draw_images
from temper.client.robustness.expectation import NUM_ASKED_TWICE, average, draws_at_random
from temper.client.robustness.judge import Judge
from temper.client.robustness.result import AttackResult, build_result
from temper.client.robustness.scheduler import Scheduler, build_slots
from temper.client.scores import Infer, Int64Array, Progress, UInt8Array, check_labels

_GRAPHS = {OWN: "the model's own graph", REFERENCE: "the reference's graph"}


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
    checkpoints: Path | None = None,
    identity: str = "",
    surrogates: Surrogates | None = None,
    reference: str = "",
    reference_version: str = "",
    say: Say | None = None,
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
        checkpoints: folder of such files, when `checkpoint` is not given: the attack finds its own by what its
            outcome depends on, and deletes it when it is done.
        identity: tells the model from others of its name and version, such as a digest of its files.
        surrogates: ONNX files by the name that the config calls them, several where their logits are averaged;
            a `Network` is one behind a defence. A name that is not among them is itself a file, or several joined
            by "+".
        reference: name of a second model of this server, for an attack that compares: only what the reference
            still gets right counts as fooled.
        reference_version: its version; "" is the newest one.
        say: called with one line when the attack goes on from a checkpoint, or can keep none, and when the
            endpoint draws at random though the config expects one answer of it.
        version: version of the model; "" is the newest one, and the attack stays with it.
        timeout_s: deadline of one request in seconds.
        retry: how requests that failed are sent again; `RetryPolicy()` when not given.

    Raises:
        ValueError: images or labels are not as described, or the checkpoint belongs to another attack.
        ClientError: the server failed; the message says how many images were finished.
    """

    async def run() -> AttackResult:
        async with AsyncExitStack() as stack:

            async def opened(name: str, version: str) -> tuple[ModelInfo, RetryingInfer]:
                return await stack.enter_async_context(
                    open_model(url, name, version=version, timeout_s=timeout_s, retry=retry)
                )

            info, infer = await opened(model, version)
            endpoint, theirs = f"{model}:{info.version}:{identity}", None
            if reference:
                other, theirs = await opened(reference, reference_version)
                check_reference(info, other)
                endpoint = f"{endpoint}:{other.name}:{other.version}"
            result = await attack_endpoint(
                infer,
                images,
                labels,
                config,
                progress=progress,
                gallery=gallery,
                checkpoint=checkpoint,
                checkpoints=checkpoints,
                endpoint=endpoint,
                surrogates=surrogates,
                reference=theirs,
                say=say,
            )
            return replace(result, retries=dict(infer.retries + (theirs.retries if theirs else Counter())))

    return asyncio.run(run())


def check_reference(info: ModelInfo, reference: ModelInfo) -> None:
    """Refuse a model that the attacked one cannot be compared with.

    Raises:
        ValueError: it is the attacked model, or takes other images, or knows other classes.
    """
    if (reference.name, reference.version) == (info.name, info.version):
        raise ValueError(f"reference: got {info.name}, which is the attacked model, expected another one")
    shapes = [f"{list(one.image_shape)} and {one.num_classes} classes" for one in (reference, info)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"reference: {reference.name} has images {shapes[0]}, expected {shapes[1]} as {info.name} has; "
            "use a model that was trained for the same"
        )


async def attack_endpoint(
    infer: Infer,
    images: UInt8Array,
    labels: npt.ArrayLike,
    config: AttackConfig,
    *,
    progress: Progress | None = None,
    gallery: int = 8,
    checkpoint: Path | None = None,
    checkpoints: Path | None = None,
    endpoint: str = "",
    surrogates: Surrogates | None = None,
    reference: Infer | None = None,
    say: Say | None = None,
) -> AttackResult:
    """Attack any endpoint behind the `Infer` seam; see `attack`.

    Args:
        infer: the endpoint: uint8 [n, H, W, 3] in, scores [n, classes] or classes [n] out.
        images: uint8 [N, H, W, 3].
        labels: integer [N].
        config: attack, budget and cost.
        progress: called with (queries spent, budget of all images).
        gallery: how many fooled images to keep as examples.
        checkpoint: file of finished images.
        checkpoints: folder of such files, each in use until its attack is done.
        endpoint: name of what is attacked; a checkpoint is refused when it names another, or was written for one
            that answered the images themselves otherwise.
        surrogates: as of `attack`.
        reference: endpoint of the model that an attack compares with.
        say: as of `attack`; without it nothing is asked to find out about draws.
    """
    kind = ATTACKS.get(config.name)
    if kind.compares != (reference is not None):
        needed = (
            "a second model to compare with" if kind.compares else "none, as this attack compares with no other"
        )
        raise ValueError(f"reference: got {'one' if reference else 'none'}, expected {needed} ({kind.name})")
    if kind.needs_scores:
        infer = _with_scores(infer, kind)
    truth = check_labels(images, labels)
    indices = choose_images(len(images), config)
    networks = _find_surrogates(config, surrogates or {})
    times = config.expectation
    infer = average(infer, times)
    few = indices[:NUM_ASKED_TWICE]
    log = None
    with ExitStack() as stack:
        num_finished = 0
        try:
            clean = [
                await evaluate(
                    one,
                    images,
                    truth,
                    indices=indices,
                    batch_size=config.batch_size,
                    concurrency=config.concurrency,
                )
                for one in (infer, reference)
                if one is not None
            ]
            correct = np.logical_and.reduce([one.correct for one in clean])
            draws = times > 1 or await _say_if_random(config, infer, images[few], truth[few], say)
            if checkpoint or checkpoints:
                # What draws at random answers otherwise when the attack goes on.
                answers = None if draws else np.concatenate([one.answers for one in clean])
                header = build_header(config, images, truth, indices, answers, endpoint, networks)
                log = open_checkpoint(checkpoint, checkpoints, header, say)
                stack.enter_context(log or nullcontext())
            right = indices[correct]
            judge = Judge(
                config.of_one_answer(),
                kind,
                infer,
                images,
                truth,
                right,
                gallery=gallery,
                checkpoint=log,
                progress=progress and (lambda done, total: progress(times * done, times * total)),
                surrogates=networks,
                reference=reference,
                expectation=times,
            )
            start = time.perf_counter()
            try:
                await _run(kind, judge, right)
            finally:
                num_finished = int(judge.finished[right].sum())
        except asyncio.CancelledError:
            if say is not None and num_finished < len(indices):
                say(f"{config.name}: {num_finished} of {len(indices)} images were finished")
            raise
        except ClientError as error:
            raise type(error)(
                f"{error} (attack {config.name}: {num_finished} of {len(indices)} images were finished"
                f"{f'; run it again to go on from {log.path}' if log else ''})",
                code=error.code,
            ) from error
        if log and not checkpoint:
            log.remove()
    return build_result(
        config,
        indices=indices,
        labels=truth[indices],
        correct=correct,
        lost_at=times * judge.lost_at[indices],
        broken=judge.broken[indices],
        errors=sum((Counter(one.errors) for one in clean), Counter()),
        taken_for=judge.taken_for[indices],
        # Behind random draws an image is fooled by luck too, and none of it bounds what an attacker gets.
        white_box=config.is_white_box and not any(network.is_random for network in networks.get(OWN, ())),
        draws=any(network.is_random for each in networks.values() for network in each),
        reference_queries=judge.reference_queries[indices] if reference else None,
        queries=times * judge.queries[indices],
        stuck=times * judge.stuck[indices],
        distances=judge.distances[indices],
        gallery=[replace(one, num_queries=times * one.num_queries) for one in judge.gallery],
        num_queries_now=times * judge.num_queries,
        duration_s=time.perf_counter() - start,
    )


def split_files(name: str) -> list[Path]:
    """Return the files that a surrogate's name stands for: one, or several with "+" between them."""
    whole = Path(name)  # a file's name may have a "+" of its own
    return [whole] if whole.is_file() else [Path(part) for part in name.split("+")]


def _find_surrogates(config: AttackConfig, known: Surrogates) -> dict[str, Sequence[Network]]:
    """Return the networks that the config names."""
    found: dict[str, Sequence[Network]] = {}
    for name in getattr(config, "surrogates", ()):
        given = known.get(name) or split_files(name)
        networks = [one if isinstance(one, Network) else Network(one) for one in given]
        for path, _ in networks:
            if not path.is_file():
                raise ValueError(
                    f"surrogates: {path}: no such file, expected the ONNX file of a classifier"
                    + (f", as nothing here knows {_GRAPHS[name]}" if name in _GRAPHS else "")
                )
        found[name] = networks
    return found


async def _say_if_random(
    config: AttackConfig, infer: Infer, images: UInt8Array, labels: Int64Array, say: Say | None
) -> bool:
    """Return whether the endpoint draws at random; nothing is asked where nobody would be told."""
    if say is None or not await draws_at_random(infer, images, labels):
        return False
    say(
        f"{config.name}: the endpoint answers one image differently each time, so luck counts as success; "
        "let the attack expect several answers (expectation = 10)"
    )
    return True


def _with_scores(infer: Infer, kind: AttackKind) -> Infer:
    async def ask(images: UInt8Array) -> npt.NDArray[Any]:
        answer = await infer(images)
        if answer.ndim == 1:
            others = ", ".join(name for name, other in ATTACKS.all().items() if not other.needs_scores)
            raise ClientError(
                f"the model answers the class alone, and {kind.name} needs scores; "
                f"use an attack that does not: {others}"
            )
        return answer

    return ask


async def _run(kind: AttackKind, judge: Judge, right: Int64Array) -> None:
    judge.report_progress()
    if kind.run:
        await kind.run(judge, right)
        return
    assert kind.attack
    todo = right[~judge.finished[right]]
    if todo.size:
        await Scheduler(kind.attack(build_slots(judge, len(todo))), judge, todo).run()


def choose_images(num_available: int, config: AttackConfig) -> Int64Array:
    """Return the indices of the images to evaluate, ascending: drawn by the seed, the same for every model.

    Of one seed fewer images are always among the more.

    Raises:
        ValueError: more images are asked for than there are.
    """
    return draw_images(num_available, config.num_images, config.seed)
