"""Climbing the loss of a surrogate within the budget: the steps of PGD and its kin, and of APGD, in PyTorch.

Inside, images are float32 [n, H, W, 3] on a scale of 0 to 1, as in the papers; what comes out is in units of
uint8, and the harness rounds it. Every image has its own step size and its own random draws, so that which images
stand beside it does not matter.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from temper.client.robustness.base import AttackConfig
from temper.client.robustness.draws import image_keys
from temper.client.robustness.surrogate import Surrogate
from temper.client.scores import Float32Array, Int64Array, UInt8Array
from temper.client.stats import BoolArray

Loss = Callable[[Tensor], Tensor]
"""Takes logits [n, classes], returns what is to grow, [n]."""
_TINY = 1e-12
# The number of the first draw for random defences, far from those of starts and diversity.
_FIRST_DEFENCE = 1 << 32


def climb_steps(
    surrogate: Surrogate,
    images: UInt8Array,
    labels: Int64Array,
    indices: Int64Array,
    turn: int,
    *,
    config: AttackConfig,
    steps: int,
    step_share: float,
    random_start: bool = True,
    momentum: float = 0.0,
    diversity: float = 0.0,
    resize: float = 0.9,
) -> tuple[Float32Array, BoolArray]:
    """Take steps along the gradient of the cross entropy.

    Sources: Goodfellow, Shlens, Szegedy, arXiv:1412.6572 (FGSM); Madry et al., arXiv:1706.06083 (PGD);
    Dong et al., arXiv:1710.06081 (MI-FGSM); Xie et al., arXiv:1803.06978 (input diversity).

    Args:
        surrogate: the network that is climbed.
        images: uint8 [n, H, W, 3].
        labels: int64 [n].
        indices: int64 [n], the images' own random streams.
        turn: which try this is, from 0: another random start.
        config: the budget and the seed.
        steps: how many.
        step_share: size of one as a share of the budget.
        random_start: whether the first try begins somewhere in the ball, as all others do.
        momentum: share of the earlier steps' direction that is kept.
        diversity: share of the steps whose gradient is that of the image made smaller, at a random place on black.
        resize: the smallest such size, as a share of the image's.

    Returns:
        float32 [n, H, W, 3]; and bool [n], true where the first gradient was zero although the surrogate was
        right: nothing to follow.
    """
    ball = _Ball(config.norm, config.ball.reach if config.norm == "linf" else config.epsilon, images, surrogate)
    draws = _Draws(config.seed, indices, turn)
    truth = torch.from_numpy(labels).to(surrogate.device)
    loss = _cross_entropy(truth)
    x = ball.random_point(draws, inside=True) if random_start or turn else ball.centre
    size = step_share * ball.epsilon
    kept = torch.zeros_like(x)
    stuck: BoolArray = np.zeros(len(images), dtype=np.bool_)
    for step in range(steps):
        view = _diversify(draws.random(2 + step, 4), diversity, resize) if diversity else None
        gradient, _, logits = _gradient(surrogate, x, loss, draws, step, view)
        if step == 0:
            stuck = ((gradient == 0).flatten(1).all(1) & (logits.argmax(1) == truth)).cpu().numpy()
        if momentum:
            gradient = _to_one(gradient)
            length = gradient.abs().flatten(1).sum(1)[:, None, None, None]
            gradient = kept = momentum * kept + gradient / (length + _TINY)
        x = ball.project(x + size * ball.direction(gradient))
    return (255 * x).cpu().numpy(), stuck


def climb_auto(
    surrogate: Surrogate,
    images: UInt8Array,
    labels: Int64Array,
    indices: Int64Array,
    turn: int,
    *,
    config: AttackConfig,
    steps: int,
    loss: str,
) -> tuple[Float32Array, BoolArray]:
    """Take the steps of APGD, which halves its step where the loss stops growing.

    As the authors' code does it: the step begins at twice the budget, checkpoints are counted in whole steps.
    What comes back is the last point that the surrogate misjudges, or else the one of the largest loss.

    Source: Croce, Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free
    attacks", ICML 2020, arXiv:2003.01690, algorithm 1 and equation 6 (DLR).

    Args:
        surrogate: as of `climb_steps`.
        images: the same.
        labels: the same.
        indices: the same.
        turn: the same; a targeted loss takes the next likely class at each.
        config: the budget and the seed.
        steps: how many.
        loss: what grows: "ce", the cross entropy; "dlr", the difference of logits ratio; "targeted", the same
            towards one other class.

    Returns:
        As `climb_steps`.
    """
    ball = _Ball(config.norm, config.ball.reach if config.norm == "linf" else config.epsilon, images, surrogate)
    truth = torch.from_numpy(labels).to(surrogate.device)
    draws = _Draws(config.seed, indices, turn)
    x = ball.random_point(draws, inside=False)
    return climb(surrogate, ball, x, _apgd_loss(loss, surrogate, ball.centre, truth, turn), truth, steps, draws)


def climb_between(
    own: Surrogate,
    reference: Surrogate,
    images: UInt8Array,
    labels: Int64Array,
    indices: Int64Array,
    turn: int,
    *,
    config: AttackConfig,
    steps: int,
) -> tuple[Float32Array, BoolArray]:
    """Look for what one network misjudges and another one does not, between their decision boundaries.

    With the margin m of a network, its logit of the true class minus the largest other one, what grows is
    min(m of the reference, -m of its own), which is above 0 where the search has succeeded and nowhere else. So it
    first leads to the network's boundary, and where it crosses the reference's too it leads back. DIVA (Hao et
    al., "A tale of two models: constructing evasive attacks on edge models", MLSys 2022, arXiv:2204.10933) climbs
    the difference of the two networks' probabilities of the true class, which vanishes where both are certain.
    Steps shrink as half a cosine; the networks see what is sent, rounded to uint8, and gradients pass straight
    through. What comes back is the best point of the way.

    Args:
        own: the network that shall be wrong.
        reference: the one that shall be right.
        images: as of `climb_steps`.
        labels: the same.
        indices: the same.
        turn: the same; every turn begins at another random point.
        config: the budget and the seed.
        steps: how many.

    Returns:
        As `climb_steps`.
    """
    ball = _Ball(config.norm, config.ball.reach if config.norm == "linf" else config.epsilon, images, own)
    truth = torch.from_numpy(labels).to(own.device)
    best = x = ball.random_point(_Draws(config.seed, indices, turn), inside=True)
    best_value = torch.full((len(images),), -math.inf, dtype=own.dtype, device=own.device)
    stuck: BoolArray = np.zeros(len(images), dtype=np.bool_)
    for step in range(steps):
        with torch.enable_grad(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            point = x.detach().requires_grad_()
            pixels = 255 * point + ((255 * point).round() - 255 * point).detach()
            value = torch.minimum(_margin(reference.logits(pixels), truth), -_margin(own.logits(pixels), truth))
            (gradient,) = torch.autograd.grad(value.sum(), point)
        if step == 0:
            stuck = ((gradient == 0).flatten(1).all(1) & (value < 0)).cpu().numpy()
        better = value.detach() > best_value
        best_value = torch.where(better, value.detach(), best_value)
        best = torch.where(better[:, None, None, None], x, best)
        size = ball.epsilon * (0.5 * math.cos(0.5 * math.pi * step / steps) ** 2 + 0.01)
        x = ball.project(x + size * ball.direction(gradient))
    return (255 * best).cpu().numpy(), stuck


def climb(
    surrogate: Surrogate, ball: _Ball, x: Tensor, loss: Loss, truth: Tensor, steps: int, draws: _Draws
) -> tuple[Float32Array, BoolArray]:
    """Run APGD from a start; see `climb_auto`."""
    shape = (-1, 1, 1, 1)
    interval, least, shrink = (max(int(share * steps), 1) for share in (0.22, 0.06, 0.03))
    gradient, value, logits = _gradient(surrogate, x, loss, draws, 0)
    stuck: BoolArray = ((gradient == 0).flatten(1).all(1) & (logits.argmax(1) == truth)).cpu().numpy()
    before, found = x, x.clone()
    best, best_gradient, best_value = x.clone(), gradient.clone(), value.clone()
    size = torch.full_like(value, 2 * ball.epsilon)
    checked_value, halved = value.clone(), torch.ones_like(value, dtype=torch.bool)
    growths, since = torch.zeros_like(value), 0
    latest = value
    fooled = torch.zeros_like(halved)
    for step in range(steps):
        moved = x - before
        before = x
        towards = ball.project(x + size.reshape(shape) * ball.direction(gradient)) - x
        share = 0.75 if step else 1.0
        x = ball.project(x + share * towards + (1 - share) * moved)
        gradient, value, logits = _gradient(surrogate, x, loss, draws, step + 1)
        wrong = logits.argmax(1) != truth
        found = torch.where(wrong.reshape(shape), x, found)
        fooled = fooled | wrong
        growths += value > latest
        latest = value
        better = value > best_value
        best = torch.where(better.reshape(shape), x, best)
        best_gradient = torch.where(better.reshape(shape), gradient, best_gradient)
        best_value = torch.where(better, value, best_value)
        since += 1
        if since == interval:
            halved = (growths <= 0.75 * since) | (~halved & (checked_value >= best_value))
            checked_value = best_value.clone()
            size = torch.where(halved, size / 2, size)
            x = torch.where(halved.reshape(shape), best, x)
            gradient = torch.where(halved.reshape(shape), best_gradient, gradient)
            growths, since = torch.zeros_like(growths), 0
            interval = max(interval - shrink, least)
    return (255 * torch.where(fooled.reshape(shape), found, best)).cpu().numpy(), stuck


class _Ball:
    """The budget around images, without the grid."""

    def __init__(self, norm: str, epsilon: float, images: UInt8Array, surrogate: Surrogate) -> None:
        self.norm, self.epsilon = norm, epsilon / 255
        self.centre = torch.from_numpy(images).to(surrogate.device, surrogate.dtype) / 255
        self._low = (self.centre - self.epsilon).clamp(min=0)
        self._high = (self.centre + self.epsilon).clamp(max=1)

    def project(self, x: Tensor) -> Tensor:
        if self.norm == "linf":
            return torch.minimum(torch.maximum(x, self._low), self._high)
        change = x - self.centre
        length = _length(change)
        return (self.centre + change / (length + _TINY) * length.clamp(max=self.epsilon)).clamp(0, 1)

    def direction(self, gradient: Tensor) -> Tensor:
        if self.norm == "linf":
            return gradient.sign()
        gradient = _to_one(gradient)
        return gradient / (_length(gradient) + _TINY)

    def random_point(self, draws: _Draws, *, inside: bool) -> Tensor:
        """Return uniform draws from the ball, or with their largest change, or their length, at its edge."""
        shape = tuple(self.centre.shape[1:])
        if self.norm == "linf":
            change = torch.from_numpy(2 * draws.random(0, math.prod(shape)) - 1).reshape(-1, *shape)
            if not inside:
                change = change / change.abs().flatten(1).amax(1)[:, None, None, None]
        else:
            change = torch.from_numpy(draws.normal(0, math.prod(shape))).reshape(-1, *shape)
            change = change / _length(change)
            if inside:
                change = change * torch.from_numpy(draws.random(1, 1))[:, :, None, None] ** (1 / math.prod(shape))
        return self.project(self.centre + self.epsilon * change.to(self.centre))


class _Draws:
    """The random numbers of images, each from its own stream, whatever stands beside it."""

    def __init__(self, seed: int, indices: Int64Array, turn: int) -> None:
        self._keys, self._turn = image_keys(seed, indices).tolist(), turn

    def random(self, number: int, size: int) -> Float32Array:
        """Return float32 [n, size], 0 to 1, the draw of this number."""
        return np.stack([self._generator(key, number).random(size, dtype=np.float32) for key in self._keys])

    def normal(self, number: int, size: int) -> Float32Array:
        """Return float32 [n, size], standard normal."""
        return np.stack(
            [self._generator(key, number).standard_normal(size, dtype=np.float32) for key in self._keys]
        )

    def _generator(self, key: int, number: int) -> np.random.Generator:
        return np.random.Generator(np.random.Philox(key=key, counter=(self._turn << 128) + (number << 64)))


def _to_one(gradient: Tensor) -> Tensor:
    """Return the gradients with 1 as the largest value of each image's: beside a tiny one no constant is small."""
    largest = gradient.abs().flatten(1).amax(1)[:, None, None, None]
    return gradient / torch.where(largest > 0, largest, 1)


def _length(change: Tensor) -> Tensor:
    """Return the L2 norm of each image, [n, 1, 1, 1]."""
    length: Tensor = change.flatten(1).norm(dim=1)[:, None, None, None]
    return length


def _gradient(
    surrogate: Surrogate,
    x: Tensor,
    loss: Loss,
    draws: _Draws,
    step: int,
    view: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradient of the loss at `x`, the loss [n] and the logits: means over a defence's draws."""
    found = []
    for number in range(surrogate.num_draws):
        chance = None
        if surrogate.draw_size:
            chance = draws.random(_FIRST_DEFENCE + step * surrogate.num_draws + number, surrogate.draw_size)
        # Without TF32, which rounds what convolutions take to ten bits.
        with torch.enable_grad(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            point = x.detach().requires_grad_()
            logits = surrogate.logits(255 * (point if view is None else view(point)), chance)
            value = loss(logits)
            (gradient,) = torch.autograd.grad(value.sum(), point)
        found.append((gradient, value.detach(), logits.detach()))
    gradient, value, logits = (
        parts[0] if len(parts) == 1 else torch.stack(parts).mean(0) for parts in zip(*found, strict=True)
    )
    return gradient, value, logits


def _margin(logits: Tensor, truth: Tensor) -> Tensor:
    """Return the logit of the true class minus the largest other one, [n]."""
    others = logits.scatter(1, truth[:, None], -math.inf).amax(1)
    return logits.gather(1, truth[:, None])[:, 0] - others


def _cross_entropy(truth: Tensor) -> Loss:
    return lambda logits: functional.cross_entropy(logits, truth, reduction="none")


def _apgd_loss(name: str, surrogate: Surrogate, centre: Tensor, truth: Tensor, turn: int) -> Loss:
    if name == "ce":
        return _cross_entropy(truth)
    with torch.no_grad():
        order = surrogate.logits(255 * centre).argsort(1, descending=True)
    rows = torch.arange(len(truth), device=truth.device)
    if name == "dlr":

        def ratio(logits: Tensor) -> Tensor:
            ordered, places = logits.sort(1, descending=True)
            other = torch.where(places[:, 0] == truth, ordered[:, 1], ordered[:, 0])
            return (other - logits[rows, truth]) / (ordered[:, 0] - ordered[:, 2] + _TINY)

        return ratio
    # Where the first guess is another class than the true one, that class comes too.
    others = order[order != truth[:, None]].reshape(len(truth), -1)
    target = others[:, turn % others.shape[1]]

    def targeted(logits: Tensor) -> Tensor:
        ordered = logits.sort(1, descending=True).values
        scale = ordered[:, 0] - 0.5 * (ordered[:, 2] + ordered[:, 3]) + _TINY
        return (logits[rows, target] - logits[rows, truth]) / scale

    return targeted


def _diversify(draws: Float32Array, share: float, smallest: float) -> Callable[[Tensor], Tensor]:
    """Return what makes each image a little smaller, at a random place on black, in a share of the steps."""

    def view(x: Tensor) -> Tensor:
        height, width = x.shape[1:3]
        return torch.stack(
            [
                _shrink(image, smallest + (1 - smallest) * draw[1], draw[2:], height, width)
                if draw[0] < share
                else image
                for image, draw in zip(x, draws, strict=True)
            ]
        )

    return view


def _shrink(image: Tensor, share: float, place: Float32Array, height: int, width: int) -> Tensor:
    size = [max(1, int(side * share)) for side in (height, width)]
    small = functional.interpolate(image.permute(2, 0, 1)[None], size=size, mode="bilinear")[0]
    top, left = (
        int(draw * (side - one + 1)) for draw, side, one in zip(place, (height, width), size, strict=True)
    )
    padded = functional.pad(small, (left, width - size[1] - left, top, height - size[0] - top))
    return padded.permute(1, 2, 0)
