"""What a floor is: its forecasts, how far they are from the truth, and what share of a correction counts.

Legend: B trajectories, P past frames, T frames, W windows or known forecasts, c channels; `*x` space.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn

# Frames that are observed, at least one more than a step reads.
KNOWN = 3
_TINY = 1e-20
# A forecast that is further from the truth than so many times its size has left it for good.
_LOST = 1e3
# To which power the misfit of a trajectory multiplies what members draw, and how much more than usual, or less, it
# counts.
_POWER, _MISFIT = 0.5, 8.0


@dataclass(frozen=True, eq=False)
class Inferred:
    """What a floor infers from the windows of trajectories: tensors whose first axis counts these."""

    def __getitem__(self, index: Tensor | slice) -> Self:
        return type(self)(*(getattr(self, f.name)[index] for f in fields(self)))

    @classmethod
    def join(cls, parts: Sequence[Self]) -> Self:
        return cls(*(torch.cat([getattr(part, f.name) for part in parts]) for f in fields(cls)))


class Floor(Protocol):
    """A forecast in closed form, that a network adds to.

    `learn` measures training data, of which `environments [B]` says which share their physics. `infer` says what
    windows `[B, W, T, *x, c]` of a trajectory or of a companion tell. `step` gives the frame after
    `past [B, P, *x, c]`, `views [B, *x, c, F]` that frame and others that a network may read, `before` a frame before
    the first one, and `draw` a member's own coefficients, by `num_draws` standard normals.

    A step reads the last frames of its past, as many as `reads`. `moves` says that fields which are shifted
    along periodic axes have shifted forecasts, and `local` that it knows the distance of points and not their number.
    To learn it infers from about so many trajectories as `inferences`.
    """

    num_views: int
    reads: int
    moves: bool
    local: bool
    inferences: int

    @property
    def num_draws(self) -> int: ...
    @property
    def num_features(self) -> int: ...

    def learn(self, fields: Tensor, *, environments: Tensor | None = None) -> None: ...
    def infer(self, windows: Tensor, *, own: bool = True) -> Any: ...
    def step(self, past: Tensor, state: Any) -> Tensor: ...
    def views(self, past: Tensor, state: Any) -> Tensor: ...
    def before(self, first: Tensor, state: Any) -> Tensor: ...
    def features(self, state: Any, windows: Tensor) -> Tensor: ...
    def draw(self, state: Any, normals: Tensor) -> Any: ...


class FloorModule(nn.Module, Floor):
    """A floor of one view, whose first frame stands for the frame before it too, unless it says otherwise."""

    num_views = 1

    def before(self, first: Tensor, state: Any) -> Tensor:
        """What stands for the frame before `first [B, *x, c]`."""
        del state
        return first

    def views(self, past: Tensor, state: Any) -> Tensor:
        """The frame after `past`, `[B, *x, c, 1]`."""
        return self.step(past, state)[..., None]


def forecaster(floor: Floor, state: Any) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """From past frames to the floor's next frame and all its views, under what it inferred."""

    def forecast(past: Tensor) -> tuple[Tensor, Tensor]:
        views = floor.views(past, state)
        return views[..., 0], views

    return forecast


def roll(floor: Floor, past: Tensor, state: Any, steps: int) -> Tensor:
    """The floor's own frames `[B, steps, *x, c]` after `past [B, P, *x, c]`."""
    frames = []
    for _ in range(steps):
        frame = floor.step(past, state)
        frames.append(frame)
        past = torch.cat([past[:, 1:], frame[:, None]], 1)
    return torch.stack(frames, 1)


def known_share(correction: Tensor, off: Tensor) -> Tensor:
    """The share of a network's correction that is best for frames that are known, `[B]` from 0 to 1, least squares.

    `correction [B, W, ...]` is what it adds to the floor's forecasts of such frames, and `off` is what they lack.
    """
    product = (correction * off).flatten(1).sum(1)
    return (product / (correction.square().flatten(1).sum(1) + _TINY)).clamp(0, 1)


def forecast_error(floor: Floor, windows: Tensor, frames: Tensor, *, own: bool = True, known: int = 1) -> float:
    """Mean relative error of a floor's forecasts of `frames [B, T, *x, c]` after the first `known` ones.

    Infinite if one of them is lost.
    """
    state = floor.infer(windows, own=own)
    past = frames[:, :known]
    if known == 1:
        past = torch.stack([floor.before(frames[:, 0], state), frames[:, 0]], 1)
    truth = frames[:, known:]
    off = (roll(floor, past, state, truth.shape[1]) - truth).flatten(1).norm(dim=1)
    relative = off / truth.flatten(1).norm(dim=1).clamp_min(_TINY)
    mean = float(relative.mean())
    return mean if math.isfinite(mean) and float(relative.max()) < _LOST else math.inf


def evenly(length: int, count: int) -> Tensor:
    """So many of the numbers below a length, evenly spread; all of them where there are no more."""
    return torch.linspace(0, length - 1, min(count, length)).round().long()


def widening(misfit: Tensor) -> Tensor:
    """What multiplies the draws of members where misfits, root mean squares `[B]`, are so many times the usual one."""
    return misfit.clamp(1 / _MISFIT, _MISFIT) ** _POWER
