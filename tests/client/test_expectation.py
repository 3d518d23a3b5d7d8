"""Endpoints that draw at random: several answers judge an image, and gradients go through the defence."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from temper.backends.temper_defence.defences import NUM_DRAWS, read_defences
from temper.client.errors import ClientError, ServerError
from temper.client.robustness import AttackConfig, AttackResult, attack_endpoint
from temper.client.robustness.attacks.transfer import FgsmConfig, PgdConfig
from temper.client.robustness.base import ATTACKS, Network
from temper.client.robustness.defence import Defence
from temper.client.robustness.expectation import average, draws_at_random
from temper.client.robustness.surrogate import Surrogate

Digits = Any  # the fixture's class in conftest.py


class Noisy:
    """The digits' classifier whose scores are off, now this way and now that, and right in the mean of two."""

    def __init__(self, digits: Digits, size: float, *, labels_only: bool = False) -> None:
        """Answer with scores that are `size` of their spread off."""
        self.endpoint, self.labels_only = digits.endpoint(), labels_only
        self._size = size
        self._turns: dict[bytes, int] = {}

    async def infer(self, images: npt.NDArray[np.uint8]) -> npt.NDArray[Any]:
        scores: npt.NDArray[np.float32] = await self.endpoint.infer(images)
        for row, image in enumerate(images):
            turn = self._turns[bytes(image)] = self._turns.get(bytes(image), 0) + 1
            off = (
                np.random.default_rng([(turn - 1) // 2, *image[5, 5]]).normal(size=10)
                * self._size
                * np.ptp(scores[row])
            )
            scores[row] += off if turn % 2 else -off
        return scores.argmax(axis=1) if self.labels_only else scores


async def run(digits: Digits, noisy: Noisy, settings: AttackConfig, **given: Any) -> AttackResult:
    return await attack_endpoint(noisy.infer, digits.images, digits.labels, settings, **given)


def config(name: str, **changes: Any) -> AttackConfig:
    settings = {"epsilon": 40, "max_queries": 61, "batch_size": 16, "expectation": 2, **changes}
    if name == "hop-skip-jump":
        settings = {"init_changes": 10, "init_tries": 5, **settings}
    made: AttackConfig = ATTACKS.get(name).config(**settings)
    return made


@pytest.mark.parametrize("name", ["square", "simba", "noise", "hop-skip-jump", "art-square", "pgd"])
async def test_every_answer_is_a_query(digits: Digits, name: str) -> None:
    settings = config(name, num_images=40, **({"max_queries": 4, "steps": 2} if name == "pgd" else {}))
    noisy, seen = Noisy(digits, 0.1), list[tuple[int, int]]()
    result = await run(digits, noisy, settings, surrogates=digits.surrogates, progress=lambda *at: seen.append(at))
    # Two attacks ask for the number of classes as well.
    extra = 2 * (name in ("art-square", "pgd"))
    assert noisy.endpoint.num_images == 2 * 40 + extra + result.num_queries
    assert result.num_queries > 0 and result.queries.sum() == result.num_queries
    assert set((result.queries % 2).tolist()) == {0} and result.queries.max() <= settings.max_queries
    assert max(noisy.endpoint.batch_sizes) <= 16
    assert all(example.num_queries % 2 == 0 for example in result.gallery)
    assert seen[-1][0] == seen[-1][1] == settings.max_queries // 2 * 2 * result.correct.sum()


async def test_the_mean_of_the_answers_judges(digits: Digits) -> None:
    """The mean of two is exact, so the attack is that of an endpoint which does not draw."""
    exact = await attack_endpoint(
        digits.endpoint().infer, digits.images, digits.labels, config("square", max_queries=30, expectation=1)
    )
    mean = await run(digits, Noisy(digits, 0.2), config("square", max_queries=60))
    single = await run(digits, Noisy(digits, 0.2), config("square", max_queries=30, expectation=1))
    assert mean.clean_accuracy == exact.clean_accuracy != single.clean_accuracy
    np.testing.assert_array_equal(mean.correct, exact.correct)
    # Sums of float32 differ in the last digit, and with them a rare step.
    assert np.mean(mean.survived != exact.survived) < 0.02 < np.mean(single.survived != exact.survived)
    assert mean.num_queries == pytest.approx(2 * exact.num_queries, rel=0.05)


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ([[3, 1], [3, 2], [5, 2]], [3, 2]),
        ([[[0.0, 1.0]], [[2.0, 0.0]]], [[1.0, 0.5]]),
        ([[[np.nan, 1.0]], [[2.0, 0.0]]], [[np.nan, 0.5]]),
        ([[[np.inf, 1.0]], [[-np.inf, 0.0]]], [[np.nan, 0.5]]),
        ([[[1.0, 2.0], [3.0, 4.0]], [[1.0, 2.0]]], [[1.0, 2.0]]),
    ],
    ids=["most frequent class", "mean", "no number", "infinities", "too few rows"],
)
def test_several_answers_become_one(answers: list[Any], expected: list[Any]) -> None:
    waiting = iter([np.array(one) for one in answers])

    async def infer(images: npt.NDArray[np.uint8]) -> npt.NDArray[Any]:
        return next(waiting)

    found = asyncio.run(_ask(average(infer, len(answers))))
    np.testing.assert_array_equal(found, np.array(expected))


async def _ask(infer: Any) -> Any:
    return await infer(np.zeros((2, 1, 1, 3), np.uint8))


@pytest.mark.parametrize("labels_only", [False, True])
async def test_endpoint_that_draws_is_named_once(digits: Digits, labels_only: bool) -> None:
    name = "hop-skip-jump" if labels_only else "square"
    said: list[str] = []
    for noisy, expectation in ((Noisy(digits, 0.5, labels_only=labels_only), 1), (Noisy(digits, 0.5), 2)):
        await run(
            digits, noisy, config(name, num_images=20, max_queries=10, expectation=expectation), say=said.append
        )
    assert [line.partition(":")[0] for line in said] == [name]
    assert "answers one image differently each time" in said[0] and "(expectation = 10)" in said[0]
    some = digits.images[:8], digits.labels[:8]
    assert not await draws_at_random(digits.endpoint().infer, *some)
    assert not await draws_at_random(Noisy(digits, 1e-3).infer, *some), "arithmetic of another batch"


@pytest.mark.parametrize("expectation", [1, 2])
async def test_image_that_the_server_refuses_ends_no_attack(digits: Digits, expectation: int) -> None:
    endpoint, said = digits.endpoint(), list[str]()

    async def infer(images: npt.NDArray[np.uint8]) -> npt.NDArray[Any]:
        if any(np.array_equal(image, digits.images[0]) for image in images):
            raise ServerError("127.0.0.1:1 answered INTERNAL: the defence failed")
        found: npt.NDArray[Any] = await endpoint.infer(images)
        return found

    settings = config("noise", max_queries=4, expectation=expectation)
    images, labels = digits.images[:20], digits.labels[:20]
    result = await attack_endpoint(infer, images, labels, settings, say=said.append)
    assert (result.errors, said) == ({"server_error": 1}, [])


async def test_attack_on_what_draws_goes_on(digits: Digits, tmp_path: Path) -> None:
    """Its clean answers are others the second time."""
    path, settings = tmp_path / "finished.jsonl", config("square", num_images=60, max_queries=20)
    first = await run(digits, Noisy(digits, 0.3), settings, checkpoint=path)
    noisy = Noisy(digits, 0.3)
    await _ask_all(noisy, digits)
    again = await run(digits, noisy, settings, checkpoint=path)
    both = first.correct & again.correct
    assert both.sum() > 20
    np.testing.assert_array_equal(first.survived[both], again.survived[both])


async def _ask_all(noisy: Noisy, digits: Digits) -> None:
    await noisy.infer(digits.images)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("square", {"expectation": 0}, "expectation: got 0, expected at least 1"),
        (
            "square",
            {"expectation": 20, "max_queries": 19},
            r"max_queries: got 0, expected at least 1, after it was divided by expectation \(20\)",
        ),
        (
            "pgd",
            {"expectation": 2, "max_queries": 3, "surrogates": ("a", "b")},
            r"max_queries: got 1, expected at least 2: one for each of the surrogates, after it was divided",
        ),
    ],
)
def test_too_few_queries_are_refused(name: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ATTACKS.get(name).config(**changes)


DEFENCES: list[list[dict[str, dict[str, float]]]] = [
    [{"jpeg": {"quality": 60}}],
    [{"bit_depth": {"bits": 3}}],
    [{"random_resize": {"smallest": 0.6}}],
    [{"bit_depth": {"bits": 5}}, {"random_resize": {"smallest": 0.8}}],
]


@pytest.mark.parametrize("steps", DEFENCES, ids=lambda steps: "+".join(name for step in steps for name in step))
def test_surrogate_sees_what_the_backend_makes_of_an_image(
    digits: Digits, steps: list[dict[str, dict[str, float]]]
) -> None:
    """To one level, which the two ways to shrink an image round differently; and with a gradient."""
    text, images = json.dumps(steps), digits.images[:5]
    draws = np.random.default_rng(0).random((5, NUM_DRAWS * len(steps)))
    expected = images
    for number, defence in enumerate(read_defences(text)):
        mine = draws[:, NUM_DRAWS * number : NUM_DRAWS * (number + 1)]
        expected = np.stack([defence(image, row.tolist()) for image, row in zip(expected, mine, strict=True)])
    pixels = torch.from_numpy(images).float().requires_grad_()
    defence_there = Defence(text)
    found = defence_there(pixels, draws.astype(np.float64))
    assert np.abs(found.detach().numpy() - expected).max() <= 1
    assert defence_there.num_draws == (draws.shape[1] if "random" in text else 0)
    (gradient,) = torch.autograd.grad(found.sum(), pixels)
    if "jpeg" not in text:
        assert (gradient > 0).float().mean() > 0.99
    if "bit_depth" in text and "random" not in text:
        assert (gradient == 1).all()


@pytest.mark.parametrize("quality", [40, 85])
def test_gradient_through_jpeg_tells_what_a_change_does(digits: Digits, quality: int) -> None:
    """The change that JPEG lets through is nearer to what the gradient says than to the change itself."""
    defence, draw = Defence(json.dumps([{"jpeg": {"quality": quality}}])), np.random.default_rng(0)
    pixels = torch.from_numpy(draw.integers(40, 215, (8, 16, 16, 3))).float()
    change = torch.from_numpy(draw.choice([-2.0, 2.0], (8, 16, 16, 3))).float()
    _, said = torch.autograd.functional.jvp(defence, pixels, change)  # type: ignore[no-untyped-call]
    done = defence(pixels + change) - defence(pixels)

    def alike(guess: torch.Tensor) -> float:
        return float(torch.cosine_similarity(guess.flatten(), done.flatten(), dim=0))

    assert alike(said) > alike(change) + 0.05


async def test_gradients_through_a_defence_vouch_unless_it_draws(digits: Digits) -> None:
    (graph,) = digits.surrogates["own"]
    for step, vouches in (("jpeg", True), ("random_resize", False)):
        defend = json.dumps([{step: {"quality": 80} if step == "jpeg" else {"smallest": 0.8}}])
        own = {"own": [Network(graph, defend)]}
        settings = PgdConfig(epsilon=8, num_images=5, steps=2)
        endpoint = digits.endpoint()
        found = await attack_endpoint(endpoint.infer, digits.images, digits.labels, settings, surrogates=own)
        assert (found.white_box, found.draws) == (vouches, not vouches)


def test_gradient_is_the_mean_over_the_draws_of_the_defence(
    digits: Digits, write_graph: Any, tmp_path: Path
) -> None:
    """A network that looks at the upper rows alone, where the defence may put any others."""
    weights = digits.weights.copy().reshape(16, -1, 10)
    weights[4:] = 0
    graph = write_graph(tmp_path / "rows.onnx", weights.reshape(-1, 10) / 1e5)
    text, images, labels = '[{"random_resize": {"smallest": 0.6}}]', digits.images[:4] // 2 + 60, digits.labels[:4]

    def changed(network: Network, num_draws: int, num_images: int = 4) -> npt.NDArray[np.bool_]:
        surrogate, rows = Surrogate([network], num_draws=num_draws), slice(0, num_images)
        found, _ = FgsmConfig(epsilon=8).make(surrogate, images[rows], labels[rows], np.arange(num_images), 0)
        return np.asarray((np.abs(found - images[rows]) > 1).any(axis=(2, 3)))

    assert not changed(Network(graph), 16)[:, 4:].any()
    one, many = changed(Network(graph, text), 1), changed(Network(graph, text), 16)
    assert many.sum() > one.sum() and many[:, 4:].any(axis=1).all()
    # Whose draws do not depend on what stands beside them.
    np.testing.assert_array_equal(changed(Network(graph, text), 16, 2), many[:2])
    assert Surrogate([Network(graph)], num_draws=16).num_draws == 1, "nothing to draw"


async def test_attack_goes_on_with_the_same_defence_alone(digits: Digits, tmp_path: Path) -> None:
    (graph,), path = digits.surrogates["own"], tmp_path / "finished.jsonl"

    async def go(network: Network) -> AttackResult:
        settings = FgsmConfig(epsilon=8, num_images=5)
        return await attack_endpoint(
            digits.endpoint().infer,
            digits.images,
            digits.labels,
            settings,
            surrogates={"own": [network]},
            checkpoint=path,
        )

    await go(Network(graph))
    with pytest.raises(ValueError, match=r"belongs to another attack \(differs in surrogates\)"):
        await go(Network(graph, '[{"bit_depth": {"bits": 3}}]'))


def test_defence_that_is_not_known_is_one_line() -> None:
    with pytest.raises(ClientError, match="defence blur: not known here, expected some of jpeg, bit_depth"):
        Defence('[{"blur": {}}]')
