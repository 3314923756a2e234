"""The weights that a run gives: a moving average of those of its steps."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


class Average:
    """Exponential moving average of the weights; the decay warms up as (1 + s) / (10 + s)."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.values = {name: p.detach().clone() for name, p in module.named_parameters() if p.requires_grad}

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
                p.data = self.values[name].clone()

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
