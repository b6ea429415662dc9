"""Exponential moving average of what a run trains; Lightning's own would copy the frozen tower too."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from training.network.model import Network


class TrainedAverage:
    """Average of `network.trained_state()`, batch statistics included, in float32.

    The decay rises with the steps taken, min(decay, (1 + n) / (10 + n)), so that the first steps are soon forgotten.
    """

    def __init__(self, network: Network, decay: float) -> None:
        self.decay = decay
        self.steps = 0
        self.state = {name: tensor.detach().clone() for name, tensor in network.trained_state().items()}
        self._current: list[Tensor] | None = None

    @torch.no_grad()
    def update(self, network: Network) -> None:
        """Take in the network's weights after a step. A decay of 0 just copies them."""
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        if self._current is None:  # collecting it takes as long as a small step
            current = network.trained_state()
            self._current = [current[name] for name in self.state]
        torch._foreach_lerp_(list(self.state.values()), self._current, 1 - decay)

    def copy_into(self, network: Network) -> None:
        """Give the network the averaged weights."""
        _copy_into(network.trained_state(), self.state)

    @contextmanager
    def applied(self, network: Network) -> Iterator[None]:
        """Within it, the network has the averaged weights."""
        current = network.trained_state()
        kept = {name: tensor.detach().clone() for name, tensor in current.items()}
        _copy_into(current, self.state)
        try:
            yield
        finally:
            _copy_into(current, kept)

    def to(self, device: torch.device) -> None:
        """Move the average to the network's device, where both stay."""
        self._current = None
        self.state = {name: tensor.to(device) for name, tensor in self.state.items()}


@torch.no_grad()
def _copy_into(target: dict[str, Tensor], source: dict[str, Tensor]) -> None:
    for name, tensor in target.items():
        tensor.copy_(source[name])
