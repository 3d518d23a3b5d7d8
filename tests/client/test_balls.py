"""What is sent is in the budget, exactly, whatever an attack proposes; and it is near what the attack meant."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from temper.client.errors import ClientError
from temper.client.robustness.balls import BALLS, Ball, LinfBall, Norm, to_pixels

SHAPE = (8, 10, 3)
SIZE = math.prod(SHAPE)
RNG = np.random.default_rng(0)

IMAGES = {
    "random": RNG.integers(0, 256, SHAPE),
    "black": np.zeros(SHAPE),
    "white": np.full(SHAPE, 255),
    "grey": np.full(SHAPE, 128),
    "black and white": RNG.choice([0, 255], SHAPE),
}
# What is added to the image, for each type of number that can hold it.
CHANGES = {
    "none": np.zeros(SHAPE),
    "half steps": np.full(SHAPE, 0.5),
    "just over half steps": np.full(SHAPE, 0.5000001) * RNG.choice([-1, 1], SHAPE),
    "one value": np.where(np.arange(SIZE).reshape(SHAPE) == 17, 400.0, 0.0),
    "small": RNG.normal(0, 0.7, SHAPE),
    "medium": RNG.normal(0, 20, SHAPE),
    "up": np.abs(RNG.normal(0, 300, SHAPE)),
    "of all sizes": 10 ** RNG.uniform(-9, 4, SHAPE) * RNG.choice([-1, 1], SHAPE),
    "huge": RNG.choice([-1.0, 1.0], SHAPE) * 1e15,
    "beyond float32": RNG.normal(0, 1, SHAPE) * 1e300,
    "one beyond the others": np.where(np.arange(SIZE).reshape(SHAPE) == 5, 1e300, 3.0),
}
DTYPES: tuple[type, ...] = (np.uint8, np.int8, np.int16, np.int64, np.uint64, np.float16, np.float32, np.float64)
EPSILONS: dict[Norm, tuple[float, ...]] = {
    "linf": (1, 1.99, 8, 254.5, 255),
    "l2": (1, math.nextafter(2, 0), math.sqrt(3), 15.5, 60, 255, 1000.3, 255 * math.sqrt(SIZE), 1e300),
}
CASES = [(norm, epsilon) for norm, epsilons in EPSILONS.items() for epsilon in epsilons]


def pull(ball: Ball, original: npt.NDArray[np.uint8], proposal: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    low, high = np.empty_like(original), np.empty_like(original)
    ball.write_bounds(original, low, high)
    pulled: npt.NDArray[np.uint8] = to_pixels(ball, proposal[None].copy(), [original], [low], [high])[0]
    return pulled


def is_inside(norm: str, epsilon: float, original: npt.NDArray[np.uint8], sent: npt.NDArray[np.uint8]) -> bool:
    change = [
        abs(one - other) for one, other in zip(sent.ravel().tolist(), original.ravel().tolist(), strict=True)
    ]
    original = original.astype(np.float64)
    if norm == "linf":
        return bool(max(change) <= Fraction(epsilon))
    return bool(sum(value * value for value in change) <= Fraction(epsilon) ** 2)


def as_type(values: npt.NDArray[np.float64], dtype: Any) -> npt.NDArray[Any]:
    """As near as the type comes, and finite."""
    if issubclass(dtype, np.floating):
        return np.clip(values, np.finfo(dtype).min, np.finfo(dtype).max).astype(dtype)
    limits = np.iinfo(dtype)
    highest = limits.max if limits.bits < 64 else np.nextafter(float(limits.max), 0)
    return np.clip(np.rint(values), limits.min, highest).astype(dtype)


@pytest.mark.parametrize(("norm", "epsilon"), CASES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_sent_is_inside_and_near_what_was_meant(norm: Norm, epsilon: float, dtype: type) -> None:
    ball = BALLS[norm](epsilon)
    for image, values in IMAGES.items():
        original = values.astype(np.uint8)
        for name, change in CHANGES.items():
            proposal = as_type(values + change, dtype)
            sent = pull(ball, original, proposal)
            assert sent.dtype == np.uint8 and sent.shape == SHAPE
            assert is_inside(norm, epsilon, original, sent), (image, name)
            meant = project(norm, epsilon, original, proposal.astype(np.float64))
            towards = original + np.trunc(meant - original)  # rounding all towards the image would do, too
            assert distance(sent, meant) <= distance(towards, meant) + 2 + 1e-6, (image, name)
            assert np.abs(sent - meant).max() < 1.5 + 1e-6, (image, name)
            assert np.array_equal(pull(ball, original, sent), sent), "what is inside stays as it is"


def distance(one: npt.NDArray[Any], other: npt.NDArray[Any]) -> float:
    return float(((one - other) ** 2).sum())


def project(
    norm: Norm, epsilon: float, original: npt.NDArray[np.uint8], proposal: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """The nearest point of the ball and of the values 0 to 255, by bisection."""
    original = original.astype(np.float64)
    if norm == "linf":
        return np.clip(
            proposal, np.maximum(original - np.floor(epsilon), 0), np.minimum(original + epsilon // 1, 255)
        )
    change = proposal - original
    low, high = -1080.0, 0.0

    def at(exponent: float) -> npt.NDArray[np.float64]:
        moved: npt.NDArray[np.float64] = np.clip(original + 2.0**exponent * change, 0, 255)
        return moved

    if math.sqrt(distance(at(0), original)) <= epsilon:
        return at(0)
    for _ in range(64):
        middle = (low + high) / 2
        low, high = (middle, high) if distance(at(middle), original) <= epsilon**2 else (low, middle)
    return at(low)


@pytest.mark.parametrize("epsilon", [1, 10, 200, 255])
def test_bounds_equal_wide_arithmetic(epsilon: int) -> None:
    values = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    low, high = np.empty_like(values), np.empty_like(values)
    LinfBall(epsilon).write_bounds(values, low, high)
    assert np.array_equal(low, np.clip(values.astype(int) - epsilon, 0, 255))
    assert np.array_equal(high, np.clip(values.astype(int) + epsilon, 0, 255))


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32, np.float64])
def test_linf_rounds_and_clips(dtype: type) -> None:
    original = RNG.integers(0, 256, SHAPE).astype(np.uint8)
    wild: npt.NDArray[Any] = RNG.uniform(0 if dtype == np.uint8 else -300, 255, SHAPE).astype(dtype)
    sent = pull(LinfBall(5), original, wild)
    wide = original.astype(int)
    low, high = np.maximum(wide - 5, 0), np.minimum(wide + 5, 255)
    assert np.array_equal(sent, np.clip(np.rint(wild.astype(np.float64)), low, high))


@pytest.mark.parametrize("norm", BALLS)
@pytest.mark.parametrize(
    ("proposal", "message"),
    [
        (np.full(SHAPE, np.nan), "proposals: got NaN or an infinity, expected finite numbers; mend the attack"),
        (np.full(SHAPE, -np.inf, np.float32), "proposals: got NaN or an infinity"),
        (np.zeros((8, 10)), r"proposals: got float64 \[1, 8, 10\], expected numbers \[1, 8, 10, 3\]"),
        (np.zeros((1, 1, 3), np.uint8), r"proposals: got uint8 \[1, 1, 1, 3\], expected numbers"),
        (np.zeros(SHAPE, np.complex64), r"proposals: got complex64 \[1, 8, 10, 3\], expected numbers"),
        (np.zeros(SHAPE, np.longdouble), r"proposals: got float128 \[1, 8, 10, 3\], expected numbers"),
    ],
)
def test_what_is_no_image_is_refused(norm: Norm, proposal: npt.NDArray[Any], message: str) -> None:
    with pytest.raises(ClientError, match=message):
        pull(BALLS[norm](8), np.zeros(SHAPE, np.uint8), proposal)
