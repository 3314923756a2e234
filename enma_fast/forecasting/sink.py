"""Where the members of a forecast go: a store, statistics, scores, or a destination of one's own."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Sink(Protocol):
    """Takes the members of a forecast as they are sampled, such as a store or scores."""

    def add(self, trajectory: int, members: range, values: Tensor) -> None:
        """Take `values` ``[k, T, *x, c]`` of `members`, on the device of the model; both are places of the request."""
