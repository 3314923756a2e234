"""How much of each forecast counts: rungs from the simplest up, sized by data that they were not learned from.

    f_0 = r_0,    f_i = f_{i-1} + b_i (r_i - f_{i-1}),    0 <= b_i <= 1

The share b_i is the least-squares one over all blocks. A rung counts only if the shares of the other blocks lessen the
error of each block's forecasts in the sum: one short block sizes by chance.

Legend: R rungs, B trajectories, T frames, W known forecasts, c channels; `*x` space.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol, Self

import torch
from torch import Tensor

_TINY = 1e-20
# A forecast that is further from the truth than so many times its size has left it for good.
_LOST = 1e3


class State(Protocol):
    """What a floor inferred from the windows of trajectories."""

    def __getitem__(self, index: Tensor | slice) -> Self: ...


class Floor(Protocol):
    """A forecast in closed form, that a network adds to.

    `learn` measures training data, `infer` what windows `[B, W, T, *x, c]` of a trajectory or of a companion tell;
    `step` gives the frame after `past [B, P, *x, c]`, `views [B, *x, c, F]` that frame and others that a network may
    read, and `before` a frame before the first one. `draw` gives a member's own coefficients, by `num_draws` standard
    normals. A step reads the last frames of its past, as many as `reads`; `moves` says that fields which are shifted
    along periodic axes have shifted forecasts.
    """

    num_views: int
    reads: int
    moves: bool

    @property
    def num_draws(self) -> int: ...
    @property
    def num_features(self) -> int: ...

    def learn(self, fields: Tensor) -> None: ...
    def infer(self, windows: Tensor, *, own: bool = True) -> Any: ...
    def step(self, past: Tensor, state: Any) -> Tensor: ...
    def views(self, past: Tensor, state: Any) -> Tensor: ...
    def before(self, first: Tensor, state: Any) -> Tensor: ...
    def features(self, state: Any, windows: Tensor) -> Tensor: ...
    def draw(self, state: Any, normals: Tensor) -> Any: ...


def forecaster(floor: Floor, state: Any) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """From past frames to the floor's next frame and all its views, under what it inferred."""

    def forecast(past: Tensor) -> tuple[Tensor, Tensor]:
        views = floor.views(past, state)
        return views[..., 0], views

    return forecast


def roll(floor: Floor, past: Tensor, state: Any, steps: int) -> Tensor:
    """The floor's own frames `[B, steps, *x, c]` after `past [B, P, *x, c]`."""
    made = []
    for _ in range(steps):
        frame = floor.step(past, state)
        made.append(frame)
        past = torch.cat([past[:, 1:], frame[:, None]], 1)
    return torch.stack(made, 1)


def rung_shares(
    rungs: Sequence[Tensor], truth: Tensor, blocks: Tensor, *, weights: Tensor | None = None
) -> list[float]:
    """Share of each rung after the first, of out-of-fold forecasts `[B, ...]` of `truth [B, ...]`.

    `blocks [B]` says which trajectories belong together, and `weights [B]` how much each counts, by default the
    inverse of its energy.
    """
    if weights is None:
        weights = 1 / truth.flatten(1).square().sum(1).clamp_min(_TINY)
    current, shares = rungs[0], []
    for rung in rungs[1:]:
        step, off = (rung - current).flatten(1).double(), (truth - current).flatten(1).double()
        step, lost = _bounded_step(step, off)
        product, square = (step * off).sum(1) * weights, step.square().sum(1) * weights
        share = 0.0 if lost else _share(product.sum(), square.sum())
        gain = 0.0
        for block in blocks.unique():
            inside = blocks == block
            other = _share(product[~inside].sum(), square[~inside].sum())
            gain += float(2 * other * product[inside].sum() - other**2 * square[inside].sum())
        share = share if gain > 0 else 0.0
        shares.append(share)
        current = current + share * (rung - current) if share else current
    return shares


def climbed(rungs: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
    """The forecast of a ladder."""
    made = rungs[0]
    for rung, share in zip(rungs[1:], shares, strict=True):
        if share:
            made = made + share * (rung - made)
    return made


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


def out_of_fold(
    make: Callable[[Tensor], Callable[[Tensor], Tensor]], fields: Tensor, blocks: Tensor, *, known: int
) -> Tensor:
    """Forecasts `[B, T - known, *x, c]` of each block by what was learned from the others.

    `make` learns from fields `[B, T, *x, c]`, and gives a map from the known frames to the forecasts of the rest.
    """
    made = torch.empty_like(fields[:, known:])
    for block in blocks.unique():
        inside = blocks == block
        made[inside] = make(fields[~inside])(fields[inside][:, :known]).to(made.dtype)
    return made


def _share(product: Tensor, square: Tensor) -> float:
    return float((product / square.clamp_min(_TINY)).clamp(0, 1))


def _bounded_step(step: Tensor, off: Tensor) -> tuple[Tensor, bool]:
    """The step of a rung, and whether it leads away for good: then nothing of it counts."""
    finite = bool(torch.isfinite(step).all())
    lost = not finite or bool((step.norm(dim=1) > _LOST * (off.norm(dim=1) + _TINY)).any())
    return (torch.zeros_like(step) if lost else step), lost
