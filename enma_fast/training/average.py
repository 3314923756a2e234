"""The weights that a run gives: a moving average of those of its steps, and a share of those that it started from."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Average:
    """Exponential moving average of the weights; the decay warms up as (1 + s) / (10 + s).

    What a run gives is this average, of which ``start_share`` is replaced by the weights that the module has here.
    """

    def __init__(self, module: nn.Module, decay: float, start_share: float = 0.0) -> None:
        self.decay, self.start_share = decay, start_share
        self.values = _trainable(module)
        self.start = _trainable(module) if start_share else {}

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Move towards the current weights."""
        weight = 1 - min(self.decay, (1 + step) / (10 + step))
        current = [p.detach() for p in module.parameters() if p.requires_grad]
        torch._foreach_lerp_(list(self.values.values()), current, weight)

    def put(self, module: nn.Module) -> None:
        """Give the module the weights of the result."""
        for name, p in module.named_parameters():
            if p.requires_grad:
                value = self.values[name]
                p.data = torch.lerp(value, self.start[name], self.start_share) if self.start else value.clone()

    @contextmanager
    def applied(self, module: nn.Module) -> Iterator[None]:
        """The module has the weights of the result meanwhile."""
        current = {name: p.data for name, p in module.named_parameters()}
        self.put(module)
        try:
            yield
        finally:
            for name, p in module.named_parameters():
                p.data = current[name]


def _trainable(module: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in module.named_parameters() if p.requires_grad}
