"""Floors whose numbers are those of a data set: persistence, damped, observed mean, inverse model, a mean of two.

Legend: B trajectories, P past frames, T frames, c channels, E principal components; `*x` space.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...utils.devices import num_chosen
from .ladder import KNOWN, FloorModule, Inferred

# Components and ridges of the linear inverse model, these relative to the variance of the components, blocks that they
# are chosen over, and frames of the forecasts that choose.
_COMPONENTS, _RIDGES = (5, 10, 30), (1e-6, 1e-4, 1e-3, 1e-2, 1e-1, 0.3, 1.0, 3.0, 10.0)
_BLOCKS, _HORIZON = 5, 16
_TINY = 1e-12
# Rates at which fields return to an observed mean, and what holds its weights.
_RATES, _HELD = torch.linspace(0, 0.98, 50, dtype=torch.float64), 1e-9


@dataclass(frozen=True, eq=False)
class Nothing:
    """What is inferred from the windows of trajectories by a floor that is the same for all."""

    count: int

    def __getitem__(self, index: Tensor | slice) -> Nothing:
        return Nothing(num_chosen(self.count, index))

    @classmethod
    def join(cls, parts: Sequence[Nothing]) -> Nothing:
        return cls(sum(part.count for part in parts))


class _WithoutDraws(FloorModule):
    """What these floors share: nothing is drawn."""

    num_draws, num_features, reads = 0, 0, 1
    moves, local, inferences = False, False, 0

    def infer(self, windows: Tensor, *, own: bool = True) -> Any:
        del own
        return Nothing(len(windows))

    def features(self, state: Any, windows: Tensor) -> Tensor:
        del state
        return windows.new_zeros(len(windows), 0)

    def draw(self, state: Any, normals: Tensor) -> Any:
        del normals
        return state


class Persistence(_WithoutDraws):
    """The last frame stays."""

    moves, local = True, True

    def learn(self, fields: Tensor, *, environments: Tensor | None = None) -> None:
        """Nothing is learned."""

    def step(self, past: Tensor, state: Any) -> Tensor:
        return past[:, -1]


class DampedPersistence(_WithoutDraws):
    """Each point returns to its mean over the training data at its channel's rate: m + r (u - m), r from 0 to 1."""

    mean: Tensor
    rate: Tensor

    def __init__(self, grid: Sequence[int], channels: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(*grid, channels))
        self.register_buffer("rate", torch.ones(channels))

    @torch.no_grad()
    def learn(self, fields: Tensor, *, environments: Tensor | None = None) -> None:
        """Means and rates of training trajectories `[B, T, *x, c]`."""
        self.mean.copy_(fields.mean((0, 1)))
        off = fields - self.mean
        axes = tuple(range(off.ndim - 1))
        products = (off[:, 1:] * off[:, :-1]).sum(axes)
        self.rate.copy_((products / off[:, :-1].square().sum(axes).clamp_min(_TINY)).clamp(0, 1))

    def step(self, past: Tensor, state: Any) -> Tensor:
        return self.mean + self.rate * (past[:, -1] - self.mean)


@dataclass(frozen=True, eq=False)
class Returning(Inferred):
    """Fields `target [B, *x, c]` that trajectories return to, and the share `rate [B, c]` of the rest that stays."""

    target: Tensor
    rate: Tensor


class ObservedMean(DampedPersistence):
    """Each point returns to what its observed frames tell: `f + r (u - f)`.

    `f = m + a (o - m) + b s + d`, where m is the mean over the training data, o the mean of the observed frames, and s
    the average of `o - m` over all points. `r`, `a`, `b` and `d` of a channel are those whose forecasts of training
    trajectories have the least mean square error. Beside a context it is damped persistence. Points without values,
    which are 0 in all training frames, stay 0.
    """

    there: Tensor
    weights: Tensor
    returning: Tensor

    def __init__(self, grid: Sequence[int], channels: int) -> None:
        super().__init__(grid, channels)
        self.register_buffer("there", torch.ones(*grid, channels))
        self.register_buffer("weights", torch.zeros(3, channels))
        self.register_buffer("returning", torch.ones(channels))

    @torch.no_grad()
    def learn(self, fields: Tensor, *, environments: Tensor | None = None) -> None:
        """Means, rates and weights of training trajectories `[B, T, *x, c]` of more than three frames."""
        super().learn(fields)
        self.there.copy_((fields != 0).flatten(0, 1).any(0))
        told = self._told(fields[:, :KNOWN]).double().flatten(1, -2)
        gram = torch.einsum("jnc,lnc->cjl", told, told)
        held = _HELD * gram.diagonal(dim1=1, dim2=2).mean(1) + _TINY
        gram = gram + held[:, None, None] * torch.eye(len(told), dtype=gram.dtype)
        frames = (fields[:, KNOWN - 1 :] - self.mean).movedim(1, 0).double().flatten(1, -2)
        products = torch.einsum("jnc,knc->kcj", told, frames)
        squares, with_last = frames.square().sum(1), (frames * frames[0]).sum(1)
        least = torch.full_like(self.rate, math.inf, dtype=torch.float64)
        for rate in _RATES:
            kept = rate ** torch.arange(1, len(frames), dtype=rate.dtype)[:, None]
            gone = (1 - kept)[..., None]
            right = (gone * (products[1:] - kept[..., None] * products[0])).sum(0)
            weights = torch.linalg.solve(gone.square().sum() * gram, right)
            error = (squares[1:] - 2 * kept * with_last[1:] + kept.square() * squares[0]).sum(0)
            error -= (weights * right).sum(1)
            better = error < least
            least[better], self.returning[better] = error[better], rate.to(self.rate)
            self.weights[:, better] = weights[better].T.to(self.weights)

    def _told(self, frames: Tensor) -> Tensor:
        """What observed frames `[B, T, *x, c]` tell of those to come, `[3, B, *x, c]`, less the mean of training."""
        own = frames.mean(1) - self.mean
        axes, mask = tuple(range(1, own.ndim - 1)), self.there.expand_as(own)
        everywhere = (own * mask).sum(axes, keepdim=True) / mask.sum(axes, keepdim=True).clamp_min(1)
        return torch.stack([own, everywhere * mask, mask])

    def infer(self, windows: Tensor, *, own: bool = True) -> Returning:
        """What windows `[B, W, T, *x, c]` of a trajectory tell."""
        if not own:
            return Returning(self.mean.expand(len(windows), *self.mean.shape), self.rate.expand(len(windows), -1))
        told = self._told(windows.flatten(1, 2))
        shape = len(told), *[1] * (told.ndim - 2), -1
        target = self.mean + (self.weights.view(shape) * told).sum(0)
        return Returning(target, self.returning.expand(len(windows), -1))

    def step(self, past: Tensor, state: Returning) -> Tensor:
        rate = state.rate.view(len(past), *[1] * (past.ndim - 3), -1)
        return state.target + rate * (past[:, -1] - state.target)


class InverseModel(_WithoutDraws):
    """Damped persistence, and a linear regression of what it misses on the principal components of the last frames.

    The number of components and the ridge are those whose forecasts of many frames are best, so few data leave damped
    persistence nearly as it is.
    """

    basis: Tensor
    scale: Tensor
    weights: Tensor

    def __init__(self, grid: Sequence[int], channels: int, *, lags: int = 2) -> None:
        super().__init__()
        self.damped = DampedPersistence(grid, channels)
        self.lags = self.reads = lags
        self.shape = (*grid, channels)
        size = self.damped.mean.numel()
        E = min(_COMPONENTS[-1], size)
        self.register_buffer("scale", torch.ones(channels))
        self.register_buffer("basis", torch.zeros(size, E))
        self.register_buffer("weights", torch.zeros(lags * E, E))

    @torch.no_grad()
    def learn(self, fields: Tensor, *, environments: Tensor | None = None) -> None:
        """Components and weights of training trajectories `[B, T, *x, c]` of more than `lags` frames.

        Blocks of trajectories choose; windows of a series that reach into a block tell nothing of it.
        """
        self.damped.learn(fields)
        off = fields - self.damped.mean
        self.scale.copy_(off.square().mean(tuple(range(off.ndim - 1))).sqrt().clamp_min(_TINY))
        rows = (off / self.scale).flatten(0, 1).flatten(1)
        E = min(self.basis.shape[1], *rows.shape)
        # Randomised: as good as exact for the leading components, and affordable for large grids.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            _, _, vectors = torch.svd_lowrank(rows, q=min(E + 8, *rows.shape), niter=4)
        self.basis.zero_()[:, :E] = vectors[:, :E]
        z = (rows @ self.basis).unflatten(0, fields.shape[:2]).double()
        rates = self.damped.rate.expand(self.shape).flatten()
        damped = (self.basis.T @ (rates[:, None] * self.basis)).double()
        count, near = min(_BLOCKS, len(z)), _overlap(fields)
        errors = {(number, ridge): 0.0 for number in _COMPONENTS for ridge in _RIDGES}
        for block in torch.arange(len(z)).tensor_split(count):
            rest = torch.ones(len(z), dtype=torch.bool)
            rest[max(0, int(block[0]) - near) : int(block[-1]) + 1 + near] = False
            if count > 1 and bool(rest.any()):
                mean = z[rest].mean((0, 1))
                moments, held = self._moments(z[rest] - mean, damped), z[block] - mean
                for number, ridge in errors:
                    errors[number, ridge] += self._missed(held, damped, self._ridge(*moments, number, ridge))
        best = min(errors, key=lambda which: errors[which] if math.isfinite(errors[which]) else math.inf)
        self.weights.copy_(self._ridge(*self._moments(z, damped), *best))

    def step(self, past: Tensor, state: Any) -> Tensor:
        frames = past[:, -self.lags :]
        if frames.shape[1] < self.lags:
            frames = torch.cat([frames[:, :1]] * (self.lags - frames.shape[1]) + [frames], 1)
        z = ((frames - self.damped.mean) / self.scale).flatten(2) @ self.basis
        moved = z.flip(1).flatten(1) @ self.weights @ self.basis.T
        return self.damped.step(past, state) + moved.unflatten(1, self.shape) * self.scale

    def _moments(self, z: Tensor, damped: Tensor) -> tuple[Tensor, Tensor]:
        """Products of the components `[B, T, E]` of past frames, and with what damped persistence misses."""
        T = z.shape[1] - self.lags
        x = torch.cat([z[:, lag : lag + T] for lag in reversed(range(self.lags))], -1).flatten(0, 1)
        y = (z[:, self.lags :] - z[:, self.lags - 1 : -1] @ damped).flatten(0, 1)
        return x.T @ x, x.T @ y

    def _ridge(self, gram: Tensor, products: Tensor, number: int, ridge: float) -> Tensor:
        """Weights of the ridge regression of so many components, from its products; those of the others are 0."""
        E = self.basis.shape[1]
        inside = torch.arange(self.lags * E) % E < number
        few, weights = gram[inside][:, inside], torch.zeros_like(products)
        held = ridge * few.diagonal().mean().clamp_min(_TINY) * torch.eye(len(few), dtype=few.dtype)
        weights[inside, :number] = torch.linalg.solve(few + held, products[inside, :number])
        return weights

    def _missed(self, z: Tensor, damped: Tensor, weights: Tensor) -> float:
        """Sum over trajectories of the relative error of the components of forecasts after the first frames."""
        past, off = z[:, : self.lags], []
        truth = z[:, self.lags : self.lags + _HORIZON]
        for frame in truth.unbind(1):
            forecast = past[:, -1] @ damped + past.flip(1).flatten(1) @ weights
            off.append(forecast - frame)
            past = torch.cat([past[:, 1:], forecast[:, None]], 1)
        sizes = truth.flatten(1).norm(dim=1).clamp_min(_TINY)
        return float((torch.cat(off, 1).norm(dim=1) / sizes).sum())


class MultiModelMean(_WithoutDraws):
    """The mean of the forecasts of `ObservedMean` and `InverseModel`, of which few data cannot tell the better one."""

    def __init__(self, grid: Sequence[int], channels: int) -> None:
        super().__init__()
        self.observed, self.inverse = ObservedMean(grid, channels), InverseModel(grid, channels)
        self.reads = self.inverse.reads

    def learn(self, fields: Tensor, *, environments: Tensor | None = None) -> None:
        """Both, from training trajectories `[B, T, *x, c]` of more than three frames."""
        self.observed.learn(fields)
        self.inverse.learn(fields)

    def infer(self, windows: Tensor, *, own: bool = True) -> Returning:
        """What windows `[B, W, T, *x, c]` of a trajectory tell the observed mean."""
        return self.observed.infer(windows, own=own)

    def step(self, past: Tensor, state: Returning) -> Tensor:
        return (self.observed.step(past, state) + self.inverse.step(past, state)) / 2


def _overlap(fields: Tensor) -> int:
    """How many rows on, at most, trajectories `[B, T, *x, c]` may share frames, as windows of a series do."""
    B, T = fields.shape[:2]
    shifts = range(1, min(T, B))
    return T if any(torch.equal(fields[1, 0], fields[0, by]) for by in shifts) else 0
