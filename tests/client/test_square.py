from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest

from temper.client.robustness.attacks.noise import Noise, NoiseConfig
from temper.client.robustness.attacks.square import Square, SquareConfig, square_sides
from temper.client.robustness.base import Slots, margin
from temper.client.robustness.draws import below, image_keys, random_words


def published_share(p_init: float, iteration: int, num_iterations: int) -> float:
    """Return the share as the authors' table gives it, in units of 10,000 iterations."""
    it = int(iteration / num_iterations * 10_000)
    table = [(10, 1), (50, 2), (200, 4), (500, 8), (1000, 16), (2000, 32), (4000, 64), (6000, 128), (8000, 256)]
    for last, divisor in table:
        if it <= last:
            return p_init / divisor
    return p_init / 512


@pytest.mark.parametrize("max_queries", [1, 2, 100, 5000, 10_000])
def test_sides_follow_the_published_schedule(max_queries: int) -> None:
    sides = square_sides(0.8, max_queries, 224, 224)
    assert len(sides) == max_queries
    for query in range(1, max_queries, max(1, max_queries // 97)):
        share = published_share(0.8, query - 1, max_queries)
        assert sides[query] == max(1, min(223, round(math.sqrt(share * 224 * 224))))


def test_sides_stay_inside_small_and_oblong_images() -> None:
    assert square_sides(0.99, 50, 4, 30).max() == 3
    assert square_sides(0.05, 10_000, 8, 8).min() == 1
    assert square_sides(0.8, 10, 1, 1).tolist() == [1] * 10


def image_shape(images: npt.NDArray[np.uint8]) -> tuple[int, int, int]:
    _, height, width, channels = images.shape
    return height, width, channels


def make_square(images: npt.NDArray[np.uint8], epsilon: float = 10, max_queries: int = 1000) -> Square:
    slots = Slots(len(images), image_shape(images), SquareConfig(epsilon=epsilon, max_queries=max_queries))
    for slot, image in enumerate(images):
        slots.fill(slot, slot, image, 0)
    return Square(slots)


def scores_of(losses: npt.ArrayLike) -> npt.NDArray[np.float32]:
    """Return scores whose margin for class 0 is the loss."""
    column = np.asarray(losses, dtype=np.float32)
    return np.stack([column, np.zeros_like(column)], axis=1)


@pytest.fixture
def images() -> npt.NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (6, 20, 24, 3), dtype=np.uint8)


def test_first_query_paints_vertical_stripes_of_the_whole_budget(images: npt.NDArray[np.uint8]) -> None:
    attack = make_square(images)
    first = attack.propose(np.arange(6))
    up, down = np.minimum(images.astype(int) + 10, 255), np.maximum(images.astype(int) - 10, 0)
    assert ((first == up) | (first == down)).all()
    sign = np.where(first == up, 1, 0)
    assert (sign == sign[:, :1]).all()
    assert 0.4 < sign.mean() < 0.6
    assert len({image.tobytes() for image in sign[:, 0]}) == 6


def test_each_further_query_changes_one_square_and_keeps_it_only_when_the_margin_falls(
    images: npt.NDArray[np.uint8],
) -> None:
    attack, everyone = make_square(images), np.arange(6)
    best = attack.propose(everyone)
    attack.slots.num_queries += 1
    attack.observe(everyone, scores_of([1.0] * 6))
    rng, lowest = np.random.default_rng(1), np.ones(6)
    for query in range(1, 300):
        proposal = attack.propose(everyone)
        side = square_sides(0.8, 1000, 20, 24)[query]
        for slot in everyone:
            rows, columns = np.nonzero((proposal[slot] != best[slot]).any(axis=2))
            assert rows.size, "a query was wasted on the same image"
            assert np.ptp(rows) < side and np.ptp(columns) < side
        losses = rng.normal(lowest, 0.1)
        attack.slots.num_queries += 1
        attack.observe(everyone, scores_of(losses))
        better = losses.astype(np.float32) < lowest.astype(np.float32)
        best[better], lowest[better] = proposal[better], losses[better]
    change = np.abs(best.astype(int) - images.astype(int))
    assert change.max() == 10


def test_squares_reach_every_pixel_including_the_last_row_and_column() -> None:
    attack = make_square(np.full((1, 6, 6, 3), 100, dtype=np.uint8))
    slot, touched = np.array([0]), np.zeros((6, 6), dtype=bool)
    best = attack.propose(slot)
    for query in range(1, 1000):
        attack.slots.num_queries[0] = query
        attack.observe(slot, scores_of([1.0 if query == 1 else 2.0]))
        touched |= (attack.propose(slot) != best)[0].any(axis=2)
    assert touched.all()


def test_draws_are_addressed_by_seed_image_and_counter() -> None:
    indices = np.arange(1000)
    words = random_words(image_keys(7, indices), np.full(1000, 3))
    assert np.array_equal(words[500:501], random_words(image_keys(7, indices[500:501]), np.array([3])))
    assert len(np.unique(words)) == 1000
    assert not np.isin(random_words(image_keys(8, indices), np.full(1000, 3)), words).any()
    bits = np.unpackbits(words.view(np.uint8)).mean()
    assert 0.49 < bits < 0.51


def test_below_is_uniform_and_inside() -> None:
    words = random_words(image_keys(0, np.arange(70_000)), np.zeros(1, dtype=np.int64)) >> np.uint64(32)
    counts = np.bincount(below(words, np.full(70_000, 7)), minlength=7)
    assert len(counts) == 7 and abs(counts / 10_000 - 1).max() < 0.05


def test_noise_fills_the_ball_evenly_and_its_corners_in_turn(images: npt.NDArray[np.uint8]) -> None:
    slots = Slots(6, image_shape(images), NoiseConfig(epsilon=4))
    grey = np.full_like(images[0], 128)
    for slot in range(6):
        slots.fill(slot, slot, grey, 0)
    inside = Noise(slots).propose(np.arange(6)).astype(int) - 128
    slots.num_queries += 1
    corners = Noise(slots).propose(np.arange(6)).astype(int) - 128
    counts = np.bincount(inside.ravel() + 4)
    assert len(counts) == 9 and abs(counts / counts.mean() - 1).max() < 0.2
    assert set(np.unique(corners)) == {-4, 4} and abs(corners.mean()) < 0.4
    slots.num_queries += 1
    assert not np.array_equal(inside, Noise(slots).propose(np.arange(6)).astype(int) - 128)


def test_margin_is_negative_exactly_when_another_class_wins() -> None:
    scores = np.random.default_rng(0).normal(size=(200, 5)).astype(np.float32)
    labels = np.random.default_rng(1).integers(0, 5, 200)
    before = scores.copy()
    assert np.array_equal(margin(scores, labels) < 0, scores.argmax(axis=1) != labels)
    assert np.array_equal(scores, before)
