"""How the fields of the training data vary in space and time: what is needed to estimate fields from scattered points.

Fields are sums of waves, products of one wave of each dimension: 1, sqrt 2 cos, sqrt 2 sin around a ring, and 1,
sqrt 2 cos between walls. The amplitudes of different waves are taken as uncorrelated, as they are where the statistics
are the same everywhere, and those of one wave tau frames apart have the correlation r^(tau^2), with the r of its
frequency, so that slow waves vary smoothly in time.

Legend: B trajectories, T frames, P points, c channels, d space dimensions, M waves; `*x` space, `*f` frequencies.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from ..errors import EnmaError

# Values of the training data that are looked at at a time.
_AT_ONCE = 1 << 23
# Least correlation of successive frames, and the greatest, short of a wave that never changes.
_CORRELATIONS = (0.0, 1 - 1e-6)


@dataclass(frozen=True, eq=False)
class FieldCovariance:
    """Mean, and variance and correlation in time of the waves, of each channel.

    Attributes
    ----------
    mean : [c], as the others float64
    deviation : [*f, c] standard deviation of the amplitude of one wave of these frequencies: of 0, 1, ... half-turns
        between walls, and turns around a ring
    correlation : [*f, c] of the amplitudes of such a wave in successive frames, 0 to 1
    grid, lengths, periodic : of the fields, as `CodecConfig` has them
    """

    mean: Tensor
    deviation: Tensor
    correlation: Tensor
    grid: tuple[int, ...]
    lengths: tuple[float, ...]
    periodic: tuple[bool, ...]

    def __post_init__(self) -> None:
        if self.mean.ndim != 1 or not all(x.is_floating_point() for x in self.tensors().values()):
            raise EnmaError(f"mean is {list(self.mean.shape)}; [channels] and floating-point numbers are expected")
        shape = (*(n // 2 + 1 if p else n for n, p in zip(self.grid, self.periodic, strict=True)), len(self.mean))
        for name in ("deviation", "correlation"):
            if getattr(self, name).shape != shape:
                raise EnmaError(f"{name} is {list(getattr(self, name).shape)}; {list(shape)} is expected")
        if not all(torch.isfinite(x).all() for x in (self.mean, self.deviation, self.correlation)):
            raise EnmaError("holds a value that is not finite")
        if (self.deviation < 0).any() or (self.correlation < 0).any() or (self.correlation > 1).any():
            raise EnmaError("deviation is below 0, or a correlation not between 0 and 1")

    @classmethod
    def of(cls, fields: np.ndarray, *, lengths: tuple[float, ...], periodic: tuple[bool, ...]) -> FieldCovariance:
        """Statistics of training fields ``[B, T, *x, c]``; some hundred trajectories are enough."""
        grid, channels = fields.shape[2:-1], fields.shape[-1]
        space = tuple(range(2, fields.ndim - 1))
        mean = fields.mean(axis=(0, 1, *space), dtype=np.float64)
        shape = (*(n // 2 + 1 if p else n for n, p in zip(grid, periodic, strict=True)), channels)
        squares, products, before, after = (torch.zeros(shape, dtype=torch.float64) for _ in range(4))
        places = [_frequencies(n, p) for n, p in zip(grid, periodic, strict=True)]
        inverses = [torch.linalg.inv(_on_axis(*axis)) for axis in zip(grid, lengths, periodic, strict=True)]
        size = max(1, _AT_ONCE * len(fields) // fields.size)
        for first in range(0, len(fields), size):
            amplitudes = _amplitudes(torch.from_numpy(fields[first : first + size] - mean), inverses)
            for total, one, other in (
                (squares, amplitudes, amplitudes),
                (products, amplitudes[:, :-1], amplitudes[:, 1:]),
                (before, amplitudes[:, :-1], amplitudes[:, :-1]),
                (after, amplitudes[:, 1:], amplitudes[:, 1:]),
            ):
                total += _by_frequency((one * other).sum((0, 1)), places)
        waves = _by_frequency(torch.ones(*grid, channels, dtype=torch.float64), places)
        deviation = (squares / (waves * len(fields) * fields.shape[1])).sqrt()
        correlation = products / (before * after).sqrt().clamp_min(torch.finfo(torch.float64).tiny)
        # As precise as files hold them.
        mean_c, deviation, correlation = (
            x.float().double() for x in (torch.from_numpy(mean), deviation, correlation.clamp(*_CORRELATIONS))
        )
        return cls(mean_c, deviation, correlation, grid, lengths, periodic)

    def tensors(self) -> dict[str, Tensor]:
        """Its statistics by name, contiguous."""
        return {"mean": self.mean, "deviation": self.deviation, "correlation": self.correlation}

    @property
    def channels(self) -> int:
        """Number of channels."""
        return len(self.mean)

    def waves(self, points_Pd: Tensor) -> Tensor:
        """Values ``[P, M]`` float64 of all waves at points."""
        out = points_Pd.new_ones(len(points_Pd), 1, dtype=torch.float64)
        for axis in range(len(self.grid)):
            out = (out[:, :, None] * _waves(points_Pd[:, axis].double(), *self._axis(axis))[:, None, :]).flatten(1)
        return out

    def on_grid(self, amplitudes_xM: Tensor) -> Tensor:
        """Fields ``[..., *x]`` float64 of amplitudes ``[..., M]``."""
        out = amplitudes_xM.unflatten(-1, self.grid)
        for axis, values in enumerate(self._on_axes, start=out.ndim - len(self.grid)):
            out = torch.movedim(torch.tensordot(values, out, ([1], [axis])), 0, axis)
        return out

    def amplitudes(self, fields: Tensor) -> Tensor:
        """Amplitudes ``[..., *x, c]`` of the waves of fields ``[..., *x, c]`` with their mean, in their precision."""
        return _amplitudes(fields, self._inverses)

    def shares(self, points_Qd: Tensor) -> list[Tensor]:
        """For each dimension ``[Q, n]``: what the values at its grid points contribute to those at points.

        Between the grid points a field is the sum of waves that has its values there.
        """
        return [
            _waves(points_Qd[:, axis].double(), *self._axis(axis)) @ inverse
            for axis, inverse in enumerate(self._inverses)
        ]

    @cached_property
    def by_wave(self) -> tuple[Tensor, Tensor]:
        """Variance of the amplitude of each wave, and its correlation, ``[M, c]``."""
        places = [_frequencies(n, p) for n, p in zip(self.grid, self.periodic, strict=True)]
        deviation, correlation = (x[torch.meshgrid(*places, indexing="ij")] for x in (self.deviation, self.correlation))
        return deviation.square().flatten(0, -2), correlation.flatten(0, -2)

    @cached_property
    def shells(self) -> Tensor:
        """Shell ``[M]`` int64 of each wave: its wave number in units of the least of any dimension, rounded."""
        steps = [(2 if p else 1) / length for length, p in zip(self.lengths, self.periodic, strict=True)]
        axes = [_frequencies(n, p) * step for n, p, step in zip(self.grid, self.periodic, steps, strict=True)]
        squares = sum(x.square() for x in torch.meshgrid(*(x.double() for x in axes), indexing="ij"))
        return (torch.as_tensor(squares).sqrt() / min(steps) + 0.5).long().flatten()

    @cached_property
    def _on_axes(self) -> list[Tensor]:
        """Values ``[n, n]`` of the waves of each dimension at its grid points."""
        return [_on_axis(*self._axis(axis)) for axis in range(len(self.grid))]

    @cached_property
    def _inverses(self) -> list[Tensor]:
        """Amplitudes of the waves of each dimension, of values at its grid points."""
        return [torch.linalg.inv(on_axis) for on_axis in self._on_axes]

    def _axis(self, axis: int) -> tuple[int, float, bool]:
        """Points and length of a dimension, and whether it is a ring."""
        return self.grid[axis], self.lengths[axis], self.periodic[axis]


def at_points(fields: Tensor, shares: list[Tensor]) -> Tensor:
    """Values ``[B, T, Q, c]`` of fields ``[B, T, *x, c]`` at the points of these `FieldCovariance.shares`."""
    out = torch.einsum("qn,...nc->...qc", shares[-1], fields.double())
    for share_Qn in shares[-2::-1]:
        out = torch.einsum("qn,...nqc->...qc", share_Qn, out)
    return out.to(fields.dtype)


def _places(n: int, length: float, ring: bool) -> Tensor:
    """Grid points of a dimension, float64."""
    return torch.arange(n, dtype=torch.float64) * (length / (n if ring else max(1, n - 1)))


def _frequencies(n: int, ring: bool) -> Tensor:
    """Frequency of each wave of a dimension, ``[n]``: cosines, then sines."""
    return torch.cat([torch.arange(n // 2 + 1), torch.arange(1, (n + 1) // 2)]) if ring else torch.arange(n)


def _waves(x: Tensor, n: int, length: float, ring: bool) -> Tensor:
    """Values ``[P, n]`` of the waves of a dimension at places ``[P]``; each has the mean square 1 over its grid."""
    frequency = _frequencies(n, ring)
    angle = (2 if ring else 1) * math.pi / length * x[:, None] * frequency
    sine = torch.arange(n) > n // 2 if ring else torch.zeros(n, dtype=torch.bool)
    # The last cosine of an even ring, and that between walls, are 1 or -1 at all points.
    alone = (frequency == 0) | (frequency == (n / 2 if ring else n - 1))
    return torch.where(sine, angle.sin(), angle.cos()) * torch.where(alone, 1.0, math.sqrt(2)).double()


def _on_axis(n: int, length: float, ring: bool) -> Tensor:
    """Values ``[n, n]`` of the waves of a dimension at its grid points."""
    return _waves(_places(n, length, ring), n, length, ring)


def _amplitudes(fields: Tensor, inverses: list[Tensor]) -> Tensor:
    """Amplitudes of the waves of fields ``[..., *x, c]``, by what gives those of each dimension."""
    for axis, inverse in enumerate(inverses, start=fields.ndim - 1 - len(inverses)):
        fields = torch.movedim(torch.tensordot(inverse.to(fields), fields, ([1], [axis])), 0, axis)
    return fields


def _by_frequency(x: Tensor, places: list[Tensor]) -> Tensor:
    """Sums ``[*f, c]`` over the waves of the same frequencies, of ``[*x, c]``."""
    for axis, index in enumerate(places):
        shape = (*x.shape[:axis], int(index.max()) + 1, *x.shape[axis + 1 :])
        x = x.new_zeros(shape).index_add(axis, index, x)
    return x
