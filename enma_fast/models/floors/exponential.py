"""Exponential Runge-Kutta steps of fourth order: linear terms are exact, the others may be stiff.

Cox and Matthews (2002), J. Comput. Phys. 176, 430-455. Legend: as in `terms`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from .terms import Terms

# Most that a wave may decay in a frame, as a logarithm.
_DECAY = 60.0
# Sizes below which functions are summed as series, of so many terms.
_NEAR, _TERMS = 1.0, 18


class Frames(Protocol):
    """From waves `[B, c, *K]` to those a frame later; `repeated` is the same for each row so many times."""

    def __call__(self, waves: Tensor) -> Tensor: ...
    def repeated(self, times: int) -> Frames: ...


@dataclass(frozen=True, eq=False)
class Divided:
    """Several ways to the next frame, each for the rows of its mask `[B]`."""

    parts: Sequence[tuple[Tensor, Frames]]

    @classmethod
    def of(cls, which: Tensor, make: Callable[[bool, Tensor], Frames]) -> Frames:
        """What `make` makes of the rows where `which [B]` is false and of those where it is true."""
        masks = [(value, which == value) for value in (False, True)]
        parts = [(mask, make(value, mask)) for value, mask in masks if mask.any()]
        return parts[0][1] if len(parts) == 1 else cls(parts)

    def __call__(self, waves: Tensor) -> Tensor:
        """The waves `[B, c, *K]` a frame later."""
        next_waves = torch.empty_like(waves)
        for mask, part in self.parts:
            next_waves[mask] = part(waves[mask])
        return next_waves

    def repeated(self, times: int) -> Divided:
        """The same for each row so many times."""
        return Divided([(mask.repeat_interleave(times), part.repeated(times)) for mask, part in self.parts])


@dataclass(frozen=True, eq=False)
class Propagator:
    """Steps of equal length, so many to a frame: factors `[B, c, *K]` for coefficients `[B, P]`.

    A steady source adds waves `[B, c, *K]` a frame.
    """

    terms: Terms
    coefficients: Tensor
    steps: int
    active: Sequence[int]
    whole: Tensor
    half: Tensor
    inner: Tensor
    weights: tuple[Tensor, Tensor, Tensor]
    source: Tensor | None

    @classmethod
    def of(
        cls,
        terms: Terms,
        coefficients: Tensor,
        steps: int,
        dtype: torch.dtype,
        growth: Tensor,
        source: Tensor | None = None,
    ) -> Propagator:
        """Of the linear terms waves of a channel grow no faster than `growth [c]`, a logarithm."""
        z = _bounded(terms, coefficients, growth) / steps
        one, two, three = _phi(z)
        weights = (one - 3 * two + 4 * three, 2 * (two - 2 * three), 4 * three - two)
        active = [j for j in terms.used(coefficients) if j >= terms.num_linear]
        whole, half, inner = (f.to(dtype) for f in (z.exp(), (z / 2).exp(), _phi(z / 2)[0] / (2 * steps)))
        first, middle, last = ((w / steps).to(dtype) for w in weights)
        source = None if source is None else source.to(dtype)
        return cls(terms, coefficients, steps, active, whole, half, inner, (first, middle, last), source)

    def __call__(self, waves: Tensor) -> Tensor:
        """The waves `[B, c, *K]` a frame later; there may be so many times more rows as each set of coefficients."""
        if not self.active and self.source is None:
            return waves * self.whole**self.steps
        first, middle, last = self.weights

        def change(of: Tensor) -> Tensor:
            increment = self.terms.change(of, self.coefficients, self.active)
            return increment if self.source is None else increment + self.source

        for _ in range(self.steps):
            n0 = change(waves)
            a = self.half * waves + self.inner * n0
            n1 = change(a)
            n2 = change(self.half * waves + self.inner * n1)
            n3 = change(self.half * a + self.inner * (2 * n2 - n0))
            waves = self.whole * waves + first * n0 + middle * (n1 + n2) + last * n3
        return waves

    def repeated(self, times: int) -> Propagator:
        """The same for each row so many times."""
        each = partial(torch.repeat_interleave, repeats=times, dim=0)
        coefficients, whole, half, inner = map(each, (self.coefficients, self.whole, self.half, self.inner))
        first, middle, last = map(each, self.weights)
        source = None if self.source is None else each(self.source)
        factors = whole, half, inner, (first, middle, last)
        return Propagator(self.terms, coefficients, self.steps, self.active, *factors, source)


@dataclass(frozen=True, eq=False)
class FinerPropagator:
    """Steps on the finer grid on which products of `terms` are taken, where the waves of a grid are too few."""

    terms: Terms
    finer: Propagator

    def __call__(self, waves: Tensor) -> Tensor:
        """The waves `[B, c, *K]` a frame later."""
        return self.terms.on_coarser(self.finer(self.terms.on_finer(waves)))

    def repeated(self, times: int) -> FinerPropagator:
        """The same for each row so many times."""
        return replace(self, finer=self.finer.repeated(times))


def gains(terms: Terms, coefficients: Tensor, growth: Tensor) -> Tensor:
    """What a steady source of 1 adds to waves `[B, c, *K]` in a frame by the linear terms alone."""
    return _phi(_bounded(terms, coefficients, growth))[0]


def _bounded(terms: Terms, coefficients: Tensor, growth: Tensor) -> Tensor:
    """Rates `[B, c, *K]` of waves for a frame, within bounds."""
    rates = terms.rates(coefficients)
    most = growth.view(-1, *[1] * len(terms.grid))
    return torch.complex(torch.minimum(rates.real.clamp_min(-_DECAY), most), rates.imag)


def _phi(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """phi_n(z) = (phi_{n-1}(z) - 1 / (n-1)!) / z for n = 1, 2, 3, and phi_0(z) = exp(z)."""
    near = z.abs() < _NEAR
    small, large = torch.where(near, z, 0), torch.where(near, 1, z)
    one = (large.exp() - 1) / large
    two = (one - 1) / large
    three = (two - 0.5) / large
    series = []
    for n in (1, 2, 3):
        total = torch.zeros_like(z)
        for k in reversed(range(_TERMS)):
            total = total * small + 1 / math.factorial(k + n)
        series.append(total)
    first, second, third = (torch.where(near, s, f) for s, f in zip(series, (one, two, three), strict=True))
    return first, second, third
