"""The moving average of a network's weights over the steps of its training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import nn


class Average:
    """An exponential moving average of all that a network keeps in floating point.

    The running statistics of batch normalisation are averaged as the weights are: those of the latest steps belong
    to other weights. Early on the decay is smaller, (1 + n) / (10 + n) after n steps, so that what the network
    started from is forgotten in a short training too.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        """Starts from the network as it is.

        Args:
            network: It may be on any device, and is not changed.
            decay: Share of the average that a step leaves, 0 to less than 1.
        """
        self._network = network
        self._decay = decay
        self._num_steps = 0
        self._values = {name: value.detach().clone() for name, value in network.state_dict().items()}

    @torch.no_grad()
    def update(self) -> None:
        """Takes the network after a step."""
        self._num_steps += 1
        decay = min(self._decay, (1 + self._num_steps) / (10 + self._num_steps))
        for name, value in self._network.state_dict().items():
            if value.is_floating_point():
                self._values[name].lerp_(value, 1 - decay)
            else:
                self._values[name].copy_(value)

    def load_into_network(self) -> None:
        """Gives the network the averages."""
        self._network.load_state_dict(self._values)

    @contextmanager
    def in_network(self) -> Iterator[None]:
        """Gives the network the averages for a while."""
        own = {name: value.detach().clone() for name, value in self._network.state_dict().items()}
        self.load_into_network()
        try:
            yield
        finally:
            self._network.load_state_dict(own)

    def state_dict(self) -> dict[str, Any]:
        """Returns what a checkpoint needs."""
        return {"num_steps": self._num_steps, "values": self._values}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a checkpoint."""
        self._num_steps, self._values = state["num_steps"], state["values"]
