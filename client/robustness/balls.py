"""The balls that an attack must stay in, on the uint8 grid: what is sent never leaves them, by not one bit.

All lengths are in units of 1/255, the steps of the grid, and over all H*W*3 values of one image.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from temper.client.errors import ClientError
from temper.client.scores import Int64Array, UInt8Array

Norm = Literal["linf", "l2"]
Float64Array = npt.NDArray[np.float64]

# The cut values are found anew in every round; a few rounds find all. Fewer leave the point inside the ball.
_MAX_ROUNDS = 32


class Ball(ABC):
    """All images within `epsilon` of an original.

    Attributes:
        epsilon: the radius.
        reach: the largest change of one value, 1 to 255.
    """

    def __init__(self, epsilon: float) -> None:
        """Take the radius, which the subclass has checked."""
        self.epsilon = epsilon
        self.reach = min(math.floor(epsilon), 255)

    def write_bounds(self, images: UInt8Array, low: UInt8Array, high: UInt8Array) -> None:
        """Write the ends of what each value of uint8 images may be, without leaving uint8."""
        np.maximum(images, self.reach, out=low)
        low -= np.uint8(self.reach)
        np.minimum(images, 255 - self.reach, out=high)
        high += np.uint8(self.reach)

    @abstractmethod
    def pull(
        self,
        proposal: npt.NDArray[Any],
        original: UInt8Array,
        low: UInt8Array,
        high: UInt8Array,
        out: UInt8Array,
    ) -> None:
        """Write the nearest images of the grid in this ball, more or less.

        Args:
            proposal: [H, W, 3] of finite numbers; may be `out` itself.
            original: uint8 [H, W, 3], the centre.
            low: uint8 [H, W, 3], as `write_bounds` writes it.
            high: the same.
            out: uint8 [H, W, 3].
        """

    @abstractmethod
    def distance(self, image: UInt8Array, original: UInt8Array) -> float:
        """Return how far an image, uint8 [H, W, 3], is from its original in this norm, in units of 1/255."""

    @abstractmethod
    def holds(self, image: UInt8Array, original: UInt8Array) -> bool:
        """Tell whether an image is in the ball around its original: exactly, without a rounding."""


class LinfBall(Ball):
    """No value changes by more than `epsilon`; the grid is integer, so its floor is what counts."""

    def __init__(self, epsilon: float) -> None:
        """Take the radius.

        Raises:
            ValueError: it is not 1 to 255.
        """
        if not 1 <= epsilon <= 255:
            raise ValueError(
                f"epsilon: got {epsilon:g}, expected 1 to 255 (units of 1/255 on the uint8 image: 8/255 is 8)"
            )
        super().__init__(epsilon)

    def pull(
        self,
        proposal: npt.NDArray[Any],
        original: UInt8Array,
        low: UInt8Array,
        high: UInt8Array,
        out: UInt8Array,
    ) -> None:
        """Round and clip."""
        if proposal.dtype == np.uint8:
            np.maximum(proposal, low, out=out)
            np.minimum(out, high, out=out)
        else:
            out[:] = np.clip(_rounded(proposal), low, high)

    def distance(self, image: UInt8Array, original: UInt8Array) -> float:
        """Return the largest change of one value."""
        return float((np.maximum(image, original) - np.minimum(image, original)).max())

    def holds(self, image: UInt8Array, original: UInt8Array) -> bool:
        """Compare the largest change."""
        return self.distance(image, original) <= self.reach


class L2Ball(Ball):
    """The squared changes of all values of an image add up to no more than `epsilon` squared."""

    def __init__(self, epsilon: float) -> None:
        """Take the radius; how large it can be at most, 255 * sqrt(H * W * 3), depends on the image.

        Raises:
            ValueError: it is below one step of the grid, or without an end.
        """
        if not 1 <= epsilon < math.inf:
            raise ValueError(
                f"epsilon: got {epsilon:g}, expected at least 1, and finite "
                "(units of 1/255 over the whole image: a distance of 2 on values of 0 to 1 is 510)"
            )
        super().__init__(epsilon)
        self._square = epsilon * epsilon
        self._limit = math.floor(Fraction(epsilon) ** 2)  # what whole numbers may add up to, without a rounding

    def pull(
        self,
        proposal: npt.NDArray[Any],
        original: UInt8Array,
        low: UInt8Array,
        high: UInt8Array,
        out: UInt8Array,
    ) -> None:
        """Project onto the ball, round, and take single steps back where they cost least until it is inside."""
        start = original.ravel()
        change = proposal.astype(np.float64).ravel() - start
        up = change > 0
        room = np.where(up, 255 - start, start).astype(np.float64)
        steps = self._step_back(self._project(np.abs(change), room))
        out[:] = (start + np.where(up, steps, -steps)).reshape(out.shape)

    def distance(self, image: UInt8Array, original: UInt8Array) -> float:
        """Return the root of the sum of squares."""
        return math.sqrt(_squares(image, original))

    def holds(self, image: UInt8Array, original: UInt8Array) -> bool:
        """Compare whole numbers."""
        return _squares(image, original) <= self._limit

    def _project(self, size: Float64Array, room: Float64Array) -> Float64Array:
        """Return the changes' sizes at the nearest point in the ball that keeps every value in its room.

        It need not be on the grid. It is min(t * size, room) for the one t that meets the radius, which is found
        from below: t grows as values are cut.
        """
        wanted = np.minimum(size, room)
        if wanted @ wanted <= self._square:
            return wanted
        free, left, t = room > 0, self._square, 0.0
        for _ in range(_MAX_ROUNDS):
            largest = size[free].max()
            t = max(t, math.sqrt(left) / (largest * np.linalg.norm(size[free] / largest)))  # no square overflows
            cut = t * size >= room
            if not (cut & free).any():
                break
            free, left = ~cut, self._square - room[cut] @ room[cut]
            if left <= 0 or not size[free].any():
                break
        projected: Float64Array = np.minimum(t * size, room)
        return projected

    def _step_back(self, wanted: Float64Array) -> Int64Array:
        """Round sizes so that their squares add up to no more than the limit."""
        steps: Int64Array = np.rint(wanted).astype(np.int64)
        while (excess := int(steps @ steps) - self._limit) > 0:
            moving = np.flatnonzero(steps)
            gain = 2 * steps[moving] - 1  # what one step less takes off the sum
            cost = 1 - 2 * (steps[moving] - wanted[moving])  # what it adds to the squared distance
            # Sorting 16-bit numbers takes a tenth of the time, and tells costs apart to 1/16384.
            order = np.argsort((cost / gain * 2**14).clip(max=2**16 - 1).astype(np.uint16), kind="stable")
            num_needed = int(np.searchsorted(np.cumsum(gain[order]), excess)) + 1
            steps[moving[order[:num_needed]]] -= 1
        return steps


class _AllImages(LinfBall):
    """What every image lies in, so that one which is whole already is left alone."""

    def write_bounds(self, images: UInt8Array, low: UInt8Array, high: UInt8Array) -> None:
        """Write the ends of uint8."""
        low[...], high[...] = 0, 255

    def pull(
        self,
        proposal: npt.NDArray[Any],
        original: UInt8Array,
        low: UInt8Array,
        high: UInt8Array,
        out: UInt8Array,
    ) -> None:
        """Round, and clip to uint8."""
        if proposal.dtype == np.uint8:
            out[...] = proposal
        else:
            super().pull(proposal, original, low, high, out)


BALLS: dict[Norm, type[Ball]] = {"linf": LinfBall, "l2": L2Ball}
EVERYTHING: Ball = _AllImages(255)
"""All images."""


def to_pixels(
    ball: Ball,
    proposals: npt.NDArray[Any],
    originals: Sequence[UInt8Array],
    lows: Sequence[UInt8Array],
    highs: Sequence[UInt8Array],
) -> UInt8Array:
    """Round proposals to the grid and pull them into their budgets, image by image.

    Args:
        ball: the budget.
        proposals: [n, H, W, 3] of any number type, in units of uint8; overwritten when it is uint8.
        originals: n arrays uint8 [H, W, 3], what each was made from.
        lows: n arrays uint8 [H, W, 3], the least value of each pixel, as `Ball.write_bounds` writes them.
        highs: the greatest.

    Returns:
        uint8 [n, H, W, 3], what may be sent.

    Raises:
        ClientError: a proposal is no image of this size, or holds NaN or an infinity.
    """
    expected = [len(originals), *originals[0].shape]
    if list(proposals.shape) != expected or proposals.dtype.kind not in "uif" or proposals.dtype.itemsize > 8:
        raise ClientError(
            f"proposals: got {proposals.dtype} {list(proposals.shape)}, expected numbers {expected}; "
            "mend the attack"
        )
    pixels: UInt8Array = proposals if proposals.dtype == np.uint8 else np.empty(expected, dtype=np.uint8)
    # Image by image, because one image fits the cache and a whole batch does not.
    for image, proposal, original, low, high in zip(pixels, proposals, originals, lows, highs, strict=True):
        if proposal.dtype.kind == "f" and not np.isfinite(proposal).all():
            raise ClientError("proposals: got NaN or an infinity, expected finite numbers; mend the attack")
        ball.pull(proposal, original, low, high, out=image)
    return pixels


def _squares(image: UInt8Array, original: UInt8Array) -> int:
    change = np.subtract(image, original, dtype=np.int32).ravel()
    return int(np.einsum("i,i->", change, change, dtype=np.int64))


def _rounded(proposal: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return np.rint(proposal) if proposal.dtype.kind == "f" else proposal
