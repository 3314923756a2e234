"""Floors that are the same for all trajectories of a data set: persistence, damped persistence, linear inverse model.

Legend: B trajectories, P past frames, T frames, c channels, E principal components; `*x` space.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

# Ridges of the linear inverse model, relative to the variance of its components, and blocks that they are chosen over.
_RIDGES = (1e-6, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
_BLOCKS = 5
_TINY = 1e-12


@dataclass(frozen=True, eq=False)
class Nothing:
    """What is inferred from the windows of trajectories by a floor that is the same for all."""

    count: int

    def __getitem__(self, index: Tensor | slice) -> Nothing:
        return Nothing(len(torch.arange(self.count)[index]))

    @classmethod
    def join(cls, parts: Sequence[Nothing]) -> Nothing:
        return cls(sum(part.count for part in parts))


class _SameForAll(nn.Module):
    """What these floors share: nothing is inferred, nothing is drawn, and the frame before the first is the first."""

    num_views, num_draws, num_features, reads = 1, 0, 0, 1
    moves = False

    def infer(self, windows: Tensor, *, own: bool = True) -> Nothing:
        del own
        return Nothing(len(windows))

    def step(self, past: Tensor, state: Nothing) -> Tensor:
        """The frame after `past [B, P, *x, c]`."""
        raise NotImplementedError

    def before(self, first: Tensor, state: Nothing) -> Tensor:
        del state
        return first

    def views(self, past: Tensor, state: Nothing) -> Tensor:
        return self.step(past, state)[..., None]

    def features(self, state: Nothing, windows: Tensor) -> Tensor:
        del state
        return windows.new_zeros(len(windows), 0)

    def draw(self, state: Nothing, normals: Tensor) -> Nothing:
        del normals
        return state


class Persistence(_SameForAll):
    """The last frame stays."""

    moves = True

    def learn(self, fields: Tensor) -> None:
        """Nothing is learned."""

    def step(self, past: Tensor, state: Nothing) -> Tensor:
        return past[:, -1]


class DampedPersistence(_SameForAll):
    """Each point returns to its mean over the training data at its channel's rate: m + r (u - m), r from 0 to 1."""

    mean: Tensor
    rate: Tensor

    def __init__(self, grid: Sequence[int], channels: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(*grid, channels))
        self.register_buffer("rate", torch.ones(channels))

    @torch.no_grad()
    def learn(self, fields: Tensor) -> None:
        """Means and rates of training trajectories `[B, T, *x, c]`."""
        self.mean.copy_(fields.mean((0, 1)))
        off = fields - self.mean
        axes = tuple(range(off.ndim - 1))
        products = (off[:, 1:] * off[:, :-1]).sum(axes)
        self.rate.copy_((products / off[:, :-1].square().sum(axes).clamp_min(_TINY)).clamp(0, 1))

    def step(self, past: Tensor, state: Nothing) -> Tensor:
        return self.mean + self.rate * (past[:, -1] - self.mean)


class InverseModel(_SameForAll):
    """Linear regression of the next frame's principal components on those of the last `lags` frames.

    What the components leave out of a frame decays at the rate of damped persistence.
    """

    basis: Tensor
    scale: Tensor
    weights: Tensor

    def __init__(self, grid: Sequence[int], channels: int, *, components: int = 30, lags: int = 2) -> None:
        super().__init__()
        self.damped = DampedPersistence(grid, channels)
        self.lags = self.reads = lags
        self.shape = (*grid, channels)
        size = self.damped.mean.numel()
        E = min(components, size)
        self.register_buffer("scale", torch.ones(channels))
        self.register_buffer("basis", torch.zeros(size, E))
        self.register_buffer("weights", torch.zeros(lags * E, E))

    @torch.no_grad()
    def learn(self, fields: Tensor) -> None:
        """Components and weights of training trajectories `[B, T, *x, c]` of more than `lags` frames.

        The ridge is chosen over blocks of trajectories.
        """
        self.damped.learn(fields)
        off = fields - self.damped.mean
        self.scale.copy_(off.square().mean(tuple(range(off.ndim - 1))).sqrt().clamp_min(_TINY))
        rows = (off / self.scale).flatten(0, 1).flatten(1)
        E = min(self.basis.shape[1], *rows.shape)
        # Randomised: as good as exact for the leading components, and affordable for large grids.
        state = torch.random.get_rng_state()
        torch.manual_seed(0)
        _, _, vectors = torch.svd_lowrank(rows, q=min(E + 8, *rows.shape), niter=4)
        torch.random.set_rng_state(state)
        self.basis.zero_()[:, :E] = vectors[:, :E]
        z = (rows @ self.basis).unflatten(0, fields.shape[:2])
        T = z.shape[1] - self.lags
        x = torch.cat([z[:, lag : lag + T] for lag in reversed(range(self.lags))], -1).double()
        y = z[:, self.lags :].double()
        parts = torch.arange(len(x)) * min(_BLOCKS, len(x)) // len(x)
        blocks = parts[:, None].expand(-1, T)
        x, y, blocks = x.flatten(0, 1), y.flatten(0, 1), blocks.flatten()
        errors = [sum(self._missed(x, y, blocks, b, ridge) for b in blocks.unique()) for ridge in _RIDGES]
        best = _RIDGES[min(range(len(_RIDGES)), key=errors.__getitem__)]
        self.weights.copy_(_ridge(x, y, best))

    def step(self, past: Tensor, state: Nothing) -> Tensor:
        frames = past[:, -self.lags :]
        if frames.shape[1] < self.lags:
            frames = torch.cat([frames[:, :1]] * (self.lags - frames.shape[1]) + [frames], 1)
        z = ((frames - self.damped.mean) / self.scale).flatten(2) @ self.basis
        made = z.flip(1).flatten(1) @ self.weights
        rest = self.damped.step(past, state) - self.damped.mean
        kept = (rest / self.scale).flatten(1) @ self.basis
        moved = (made - kept) @ self.basis.T
        return self.damped.mean + rest + moved.unflatten(1, self.shape) * self.scale

    @staticmethod
    def _missed(x: Tensor, y: Tensor, blocks: Tensor, block: Tensor, ridge: float) -> float:
        """Squared error in a block of the regression on all others."""
        inside = blocks == block
        weights = _ridge(x[~inside], y[~inside], ridge)
        return float((y[inside] - x[inside] @ weights).square().sum())


def _ridge(x: Tensor, y: Tensor, ridge: float) -> Tensor:
    """Weights of the ridge regression of `y [n, E]` on `x [n, F]`."""
    gram = x.T @ x
    held = ridge * gram.diagonal().mean().clamp_min(_TINY)
    return torch.linalg.solve(gram + held * torch.eye(len(gram), dtype=x.dtype), x.T @ y)
