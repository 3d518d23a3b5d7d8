"""The chains that may replace a convolution: what each costs and loses, and its weights.

With H the second moment of the gradients at the outputs and C the outputs' covariance, replacing the outputs y by
M y changes the logits by tr(H (1 - M) C (1 - M)^T) per position, to second order. The best M of rank r projects
onto the first r eigenvectors of H^(1/2) C H^(1/2); what it loses is the sum of the other eigenvalues. They are the
squared singular values of H^(1/2) W C_x^(1/2): the weights, seen through the data.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import nn

from temper.builder.compress.moments import Moments

# Directions that never occurred get this share of the average one, so that roots can be inverted.
_RIDGE = 1e-3


@dataclass(frozen=True)
class Choice:
    """One chain that a convolution may become."""

    ranks: tuple[int, ...]
    """One for SVD, input and output rank for Tucker-2."""
    flops: int
    """2 x multiply-adds for one image."""
    energy: float
    """Share of the squared singular values that is kept, 0 to 1."""
    loss: float
    """Expected squared change of the logits; comparable between layers."""


@dataclass(frozen=True)
class _Basis:
    """Directions of channels, the one that matters most first."""

    values: torch.Tensor
    """How much each matters, falling, [channels]."""
    down: torch.Tensor
    """[channels, channels]: the first rows are what to compute."""
    up: torch.Tensor
    """[channels, channels]: the first columns bring it back."""

    def tails(self) -> list[float]:
        """Returns for every rank, 0 first, the share of the values beyond it."""
        kept = torch.cumsum(self.values, 0) / self.values.sum().clamp(min=1e-300)
        return [1.0, *(float(value) for value in (1 - kept).clamp(min=0))]


class Decomposition:
    """The chains of one convolution."""

    def __init__(self, conv: nn.Module, moments: Moments) -> None:
        """Takes a convolution.

        Args:
            conv: A Conv2d of one group, on any device.
            moments: Its own.
        """
        assert isinstance(conv, nn.Conv2d), "only those are decomposed"
        self._conv = conv
        self._moments = moments
        self._weight = conv.weight.detach().double().cpu()

    def list_choices(self, flops: int, method: Literal["svd", "tucker"], multiple: int) -> list[Choice]:
        """Lists the chains that need fewer FLOPs and fewer weights than the convolution.

        Args:
            flops: Of the convolution, for one image.
            method: `tucker` counts for kernels larger than 1 x 1.
            multiple: Ranks are multiples of this.
        """
        if method == "tucker" and math.prod(self._conv.kernel_size) > 1:
            return self._tucker_choices(flops, multiple)
        tails = self._outputs.tails()
        num_out, *patch = self._weight.shape
        per_rank = 2 * self._moments.output_positions * (math.prod(patch) + num_out)
        return [
            Choice((rank,), rank * per_rank, 1 - tails[rank], self._whole * tails[rank])
            for rank in range(multiple, num_out, multiple)
            if rank * per_rank < flops  # its weights are in the same proportion
        ]

    def build_chain(self, ranks: tuple[int, ...]) -> nn.Sequential:
        """Returns the chain with the given ranks (one for SVD, two for Tucker-2), on the layer's device."""
        rank_out = ranks[-1]
        core = torch.einsum("ro,oikl->rikl", self._outputs.down[:rank_out], self._weight)
        layers: list[nn.Conv2d] = []
        if len(ranks) == 2:
            core = torch.einsum("rikl,is->rskl", core, self._inputs.up[:, : ranks[0]])
            layers.append(_conv(self._inputs.down[: ranks[0], :, None, None]))
        middle, conv = _conv(core), self._conv
        middle.stride, middle.padding, middle.dilation = conv.stride, conv.padding, conv.dilation
        last = _conv(self._outputs.up[:, :rank_out, None, None], conv.bias)
        return nn.Sequential(*layers, middle, last).to(conv.weight.device)

    def _tucker_choices(self, flops: int, multiple: int) -> list[Choice]:
        tails_out, tails_in, positions = self._outputs.tails(), self._inputs.tails(), self._moments
        num_out, num_in, *kernel = self._weight.shape
        choices = []
        for rank_in in range(multiple, num_in, multiple):
            for rank_out in range(multiple, num_out, multiple):
                first, others = num_in * rank_in, (math.prod(kernel) * rank_in + num_out) * rank_out
                # The first convolution runs before the stride, on more positions.
                cost = 2 * (positions.input_positions * first + positions.output_positions * others)
                lost = min(1.0, tails_out[rank_out] + tails_in[rank_in])
                if cost < flops and first + others < self._weight.numel():
                    choices.append(Choice((rank_in, rank_out), cost, 1 - lost, self._whole * lost))
        return choices

    @property
    def _whole(self) -> float:
        """What the logits would change by without the layer."""
        return float(self._outputs.values.sum()) * self._moments.output_positions

    @cached_property
    def _outputs(self) -> _Basis:
        root, inverse = _roots(self._moments.gradients)
        values, vectors = _eigh(root @ self._moments.outputs @ root)
        return _Basis(values, vectors.T @ root, inverse @ vectors)

    @cached_property
    def _inputs(self) -> _Basis:
        """Directions of the input channels, as if neighbouring pixels were independent."""
        root, inverse = _roots(self._moments.inputs)
        felt = torch.einsum("po,oikl->ipkl", _roots(self._moments.gradients)[0], self._weight).flatten(1)
        values, vectors = _eigh(root @ (felt @ felt.T) @ root)
        return _Basis(values, vectors.T @ inverse, root @ vectors)


def _conv(weight: torch.Tensor, bias: torch.Tensor | None = None) -> nn.Conv2d:
    height, width = weight.shape[2:]
    conv = nn.Conv2d(weight.shape[1], weight.shape[0], (height, width), bias=bias is not None)
    with torch.no_grad():
        conv.weight.copy_(weight)
        if conv.bias is not None and bias is not None:
            conv.bias.copy_(bias)
    return conv


def _roots(moment: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the symmetric square root and its inverse."""
    values, vectors = torch.linalg.eigh(moment)
    values = values.clamp(min=0) + _RIDGE * values.mean().clamp(min=1e-30)
    return vectors @ torch.diag(values.sqrt()) @ vectors.T, vectors @ torch.diag(values.rsqrt()) @ vectors.T


def _eigh(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns eigenvalues, falling and not negative, and their vectors as columns."""
    values, vectors = torch.linalg.eigh(matrix)
    return values.flip(0).clamp(min=0), vectors.flip(1)
