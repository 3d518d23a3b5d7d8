"""SimBA, HopSkipJump and Square in L2: what is theirs alone, and that they do as well as a kept implementation."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from temper.client.errors import ClientError, ServerError, ShortOutput
from temper.client.robustness import AttackConfig, AttackResult, attack_endpoint
from temper.client.robustness.attacks.hop_skip_jump import HopSkipJumpConfig
from temper.client.robustness.attacks.simba import Simba, SimbaConfig, cosines
from temper.client.robustness.attacks.square import SquareConfig, SquareL2, eta, window_sides
from temper.client.robustness.balls import BALLS
from temper.client.robustness.base import ATTACKS, Slots
from temper.client.robustness.harness import choose_images

Digits = Any  # the fixture's class in conftest.py
UInt8Array = npt.NDArray[np.uint8]
SHAPE = (12, 14, 3)


async def run(digits: Digits, settings: AttackConfig, num: int = 160, infer: Any = None) -> AttackResult:
    return await attack_endpoint(
        infer or digits.endpoint().infer,
        digits.images[:num],
        digits.labels[:num],
        settings,
        surrogates=digits.surrogates,
    )


def slots(config: AttackConfig) -> Slots:
    made = Slots(2, SHAPE, config)
    for slot in range(2):
        made.fill(slot, slot, np.full(SHAPE, 128, np.uint8), 0)
    return made


def scores_of(losses: list[float]) -> npt.NDArray[np.float32]:
    """Scores whose margin, and whose odds, for class 0 fall with the loss."""
    return np.array([[loss, 0.0] for loss in losses], dtype=np.float32)


def test_pattern_is_two_halves_of_opposite_sign_piled_up_around_their_centres() -> None:
    for side in (1, 2, 3, 7, 8, 29):
        pattern = eta(side)
        assert np.linalg.norm(pattern) == pytest.approx(1)
        assert (pattern[: side // 2] >= 0).all() and (pattern[side // 2 :] <= 0).all()
    # All of 1 + 1/4 + 1/9 + ... in the centre, its first term missing one step away, and so on.
    piled = np.cumsum(1 / np.arange(5, 0, -1.0) ** 2)
    assert eta(8)[2] / eta(8)[2, 4] == pytest.approx(piled[[0, 1, 2, 3, 4, 3, 2, 1]] / piled[4])


def test_windows_are_odd_and_fit() -> None:
    for height, width in ((1, 1), (2, 5), (4, 30), (12, 14), (224, 224)):
        sides = window_sides(0.8, 100, height, width)
        assert (sides % 2 == 1).all() and sides.max() <= min(height, width) and sides.min() >= min(3, sides.max())


def test_each_query_moves_the_norm_of_one_window_and_keeps_it_only_when_the_margin_falls() -> None:
    attack = SquareL2(slots(SquareConfig(norm="l2", epsilon=200, max_queries=400)))
    both, rng = np.arange(2), np.random.default_rng(0)
    best = attack.propose(both) - 128
    attack.slots.num_queries += 1
    attack.observe(both, scores_of([1.0, 1.0]))
    lowest, touched = np.ones(2), np.zeros(SHAPE[:2], dtype=bool)
    num_same = 0
    for query in range(1, 200):
        change = attack.propose(both) - 128
        assert np.linalg.norm(change.reshape(2, -1), axis=1) == pytest.approx([200, 200], rel=1e-4)
        side = int(attack._sides[query])
        for new, old in zip(change, best, strict=True):
            moved = (np.abs(new - old) > 1e-3).any(axis=2)
            assert moved.sum() <= 2 * side * side
            touched |= moved
            num_same += not moved.any()  # the window to fill is the one to empty, with the pattern that it has
        losses = rng.normal(lowest, 0.1).astype(np.float32)
        attack.slots.num_queries += 1
        attack.observe(both, scores_of(losses.tolist()))
        better = losses < lowest.astype(np.float32)
        best[better], lowest[better] = change[better], losses[better]
    assert touched.all() and num_same < 20


def test_cosines_are_the_orthonormal_basis() -> None:
    from scipy.fft import idct  # type: ignore[import-untyped]  # ships none

    for size in (1, 8, 13):
        assert cosines(size) == pytest.approx(idct(np.eye(size), norm="ortho", axis=1), abs=1e-6)


@pytest.mark.parametrize("basis", ["pixel", "dct"])
def test_directions_are_tried_both_ways_and_once_each(basis: Any) -> None:
    attack = Simba(slots(SimbaConfig(norm="l2", epsilon=1e4, max_queries=500, basis=basis, step=60)))
    both, tried = np.arange(2), list[npt.NDArray[Any]]()
    assert (attack.propose(both) == 128).all()
    attack.slots.num_queries += 1
    attack.observe(both, scores_of([1.0, 1.0]))
    for query in range(300):  # nothing helps slot 0, everything slot 1
        change = attack.propose(both) - 128
        tried.append(change[0].ravel())
        attack.slots.num_queries += 1
        attack.observe(both, scores_of([2.0, 0.5 - query]))
        # Later ones go beyond black and white.
        assert query > 4 or np.linalg.norm(change[1]) == pytest.approx(60 * np.sqrt(query + 1), rel=1e-4)
    up, down = np.stack(tried[::2]), np.stack(tried[1::2])
    assert up == pytest.approx(-down, abs=1e-4)
    assert up @ up.T == pytest.approx(3600 * np.eye(150), abs=0.1)


async def test_each_attack_of_scores_beats_noise_in_l2(digits: Digits) -> None:
    robust = {}
    for name in ("square", "simba", "noise"):
        config = ATTACKS.get(name).config(norm="l2", epsilon=600, max_queries=150, num_images=60)
        robust[name] = (await run(digits, config)).accuracy["value"]
    assert max(robust["square"], robust["simba"]) < robust["noise"] - 0.15


@pytest.mark.parametrize("norm", BALLS)
async def test_distance_is_that_of_the_nearest_wrong_image_that_was_sent(digits: Digits, norm: Any) -> None:
    index = int(np.flatnonzero(digits.correct)[0])
    image, label = digits.images[index], digits.labels[index]
    fooled = set()
    for epsilon in (1, 90 if norm == "linf" else 1500):
        endpoint = digits.endpoint()
        config = HopSkipJumpConfig(norm=norm, epsilon=epsilon, max_queries=400, seed=1)
        result = await attack_endpoint(endpoint.infer, image[None], [label], config)
        sent = np.concatenate(endpoint.requests)
        wrong = sent[endpoint.scores(sent).argmax(axis=1) != label]
        ball = config.ball
        distances = [ball.distance(one, image) for one in wrong]
        assert result.distance and result.distance["median"] == min(distances) == result.distances[0]
        assert len(sent) == 1 + result.num_queries and result.num_queries <= 400
        # Fooled is what was wrong inside the budget, and nothing is asked that is of no use after that.
        inside = [ball.holds(one, image) for one in wrong]
        assert result.survived[0] == (not any(inside))
        fooled.add(any(inside))
        assert not any(inside) or (result.num_queries < 400 and ball.holds(result.gallery[0].adversarial, image))
    assert fooled == {True, False}


async def test_image_that_no_random_one_helps_is_reported_and_not_fooled(digits: Digits) -> None:
    async def infer(images: UInt8Array) -> npt.NDArray[Any]:
        return np.full(len(images), 3, dtype=np.int64)  # whatever it is shown

    result = await attack_endpoint(
        infer, digits.images[:4], np.full(4, 3), HopSkipJumpConfig(init_tries=7, max_queries=50)
    )
    assert result.survived.all() and result.queries.tolist() == [7] * 4
    assert result.distance is None and np.isinf(result.distances).all()


async def test_requests_of_the_walks_are_full_and_in_flight(digits: Digits) -> None:
    endpoint = digits.endpoint(jitter=0)
    config = HopSkipJumpConfig(norm="l2", epsilon=1, max_queries=200, batch_size=16, concurrency=3)
    await run(digits, config, num=60, infer=endpoint.infer)
    assert endpoint.most_in_flight == 3
    attack = np.array(endpoint.batch_sizes[4:])
    assert attack.sum() / len(attack) > 0.9 * 16


async def test_endpoint_that_answers_the_class_alone(digits: Digits) -> None:
    async def classes(images: UInt8Array) -> npt.NDArray[Any]:
        found: npt.NDArray[Any] = (await digits.endpoint().infer(images)).argmax(axis=1)
        return found

    for name in ("hop-skip-jump", "noise", "pgd"):
        config = ATTACKS.get(name).config(epsilon=60, max_queries=100, num_images=30)
        alone, scored = await run(digits, config, infer=classes), await run(digits, config)
        assert np.array_equal(alone.queries, scored.queries)
        assert np.array_equal(alone.distances, scored.distances)
    for name in ("square", "simba", "art-square"):
        message = (
            f"the class alone, and {name} needs scores; use an attack that does not: hop-skip-jump, noise, fg"
        )
        with pytest.raises(ClientError, match=message):
            await run(digits, ATTACKS.get(name).config(), infer=classes)


@pytest.mark.parametrize("name", ["square", "hop-skip-jump"])
@pytest.mark.parametrize("kind", ["server_error", "short_output"])
async def test_error_of_one_image_is_counted_and_the_others_go_on(digits: Digits, name: str, kind: str) -> None:
    """An image whose first value is 5 is the server's undoing, with all that is asked beside it."""
    clean = set(map(bytes, digits.images))

    async def infer(images: UInt8Array) -> npt.NDArray[Any]:
        under_attack = np.array([bytes(image) not in clean for image in images])
        broken = under_attack & (images[:, 0, 0, 0] == 5)
        if broken.any() and kind == "server_error":
            raise ServerError("127.0.0.1:1 answered INTERNAL: out of memory", code="INTERNAL")
        kept: npt.NDArray[Any] = digits.endpoint().scores(images)[~broken]
        return kept

    config = ATTACKS.get(name).config(epsilon=5, max_queries=60, num_images=40)
    result, plain = await run(digits, config, infer=infer), await run(digits, config)
    assert result.errors == {kind: result.errors[kind]} and 0 < result.errors[kind] < result.correct.sum()
    assert np.array_equal(result.correct, plain.correct)
    assert not (result.survived & ~plain.survived).any()
    # Nothing changes for the others.
    assert 0 < (result.queries != plain.queries).sum() <= result.errors[kind]


@pytest.mark.parametrize("error", [ServerError, ShortOutput])
async def test_server_that_answers_nothing_any_more_ends_the_attack(digits: Digits, error: Any) -> None:
    endpoint = digits.endpoint()

    async def infer(images: UInt8Array) -> npt.NDArray[Any]:
        if endpoint.num_images > 600:
            raise error("127.0.0.1:1 answered INTERNAL: the context is lost")
        found: npt.NDArray[Any] = await endpoint.infer(images)
        return found

    message = "the context is lost .attack square: [0-9]+ of 160 images were finished"
    with pytest.raises(error, match=message):
        await run(digits, SquareConfig(epsilon=5), infer=infer)


def test_fewer_images_are_among_the_more() -> None:
    chosen = [choose_images(500, SquareConfig(num_images=num, seed=3)) for num in (1, 64, 200, 500)]
    for few, many in zip(chosen, chosen[1:], strict=False):
        assert np.isin(few, many).all() and (np.diff(few) > 0).all()
    assert not np.array_equal(chosen[1], choose_images(500, SquareConfig(num_images=64, seed=4)))


def art_classifier(digits: Digits, counted: list[int]) -> Any:
    from art.estimators.classification import (  # type: ignore[import-untyped]  # ART ships no types
        BlackBoxClassifierNeuralNetwork,
    )

    weights = digits.weights.astype(np.float32)

    def predict(images: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        counted.append(len(images))
        scores: npt.NDArray[np.float32] = images.reshape(len(images), -1) @ weights
        return scores

    return BlackBoxClassifierNeuralNetwork(
        predict, digits.images.shape[1:], 10, channels_first=False, clip_values=(0, 255)
    )


@pytest.mark.slow
@pytest.mark.parametrize(("norm", "order"), [("linf", np.inf), ("l2", 2)])
async def test_hop_skip_jump_comes_as_near_as_art(digits: Digits, norm: Any, order: Any) -> None:
    from art.attacks.evasion import HopSkipJump  # type: ignore[import-untyped]

    rows, counted = np.flatnonzero(digits.correct)[:24], list[int]()
    images, labels = digits.images[rows], digits.labels[rows]
    art = HopSkipJump(art_classifier(digits, counted), norm=order, max_iter=4, verbose=False)
    theirs = art.generate(images.astype(np.float32), np.eye(10)[labels]) - images
    found = np.linalg.norm(theirs.reshape(len(rows), -1), ord=order, axis=1)
    config = HopSkipJumpConfig(norm=norm, epsilon=1, max_queries=sum(counted) // len(rows))
    ours = await attack_endpoint(digits.endpoint().infer, images, labels, config)
    # ART's images are no whole numbers, and where it finds no start it returns the original.
    assert np.median(ours.distances) < 1.1 * np.median(found[found > 0])


@pytest.mark.slow
async def test_square_in_l2_is_no_weaker_than_art(digits: Digits) -> None:
    from art.attacks.evasion import SquareAttack

    rows, counted = np.flatnonzero(digits.correct), list[int]()
    images, labels = digits.images[rows], digits.labels[rows]
    art = SquareAttack(art_classifier(digits, counted), norm=2, eps=600, max_iter=199, p_init=0.8, verbose=False)
    np.random.seed(0)
    with np.errstate(all="ignore"):  # it divides by what is left of the budget
        theirs = art.generate(images.astype(np.float32), labels)
    left = digits.endpoint().scores(np.rint(theirs).astype(np.uint8)).argmax(axis=1) == labels
    config = SquareConfig(norm="l2", epsilon=600, max_queries=200)
    ours = await attack_endpoint(digits.endpoint().infer, images, labels, config)
    assert ours.accuracy["value"] <= left.mean()
    assert ours.num_queries < 0.4 * sum(counted)
