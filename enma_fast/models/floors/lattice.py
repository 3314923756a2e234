"""Classical Runge-Kutta steps of equations whose derivatives are differences of neighbours, on the points of the grid.

They cost less than exponential steps, which transform each product. Trajectories whose linear terms would make them
unstable, or grow faster than a wave may, are left to these. Legend: as in `terms`.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from ...ops._backend import inside, native, native_problem
from .exponential import Divided, Frames, Propagator
from .terms import Terms

# Most that a linear term may change a wave in a step: such steps are stable up to 2.78.
_STABLE = 2.5
_fast: ContextVar[bool] = ContextVar("fast", default=False)


def fast_steps() -> AbstractContextManager[None]:
    """Inside, the extension takes the steps where it can. Forecasts stay outside, since they keep PyTorch's bits."""
    return inside(_fast, True)


@dataclass(frozen=True, eq=False)
class LatticePropagator:
    """Steps of equal length, so many to a frame, for coefficients `[B, P]`; `active` are all terms that count."""

    terms: Terms
    coefficients: Tensor
    steps: int
    active: Sequence[int]

    @classmethod
    def of(cls, terms: Terms, coefficients: Tensor, steps: int, dtype: torch.dtype, growth: Tensor) -> Frames:
        """As of :class:`Propagator`, which moves trajectories that are not stable, and all if terms are not local."""
        active = terms.used(coefficients)
        if not terms.local(active):
            return Propagator.of(terms, coefficients, steps, dtype, growth)
        rates = terms.rates(coefficients)
        slow = rates.real <= growth.view(-1, *[1] * len(terms.grid))
        stable = (slow & (rates.abs() <= _STABLE * steps)).flatten(1).all(1)

        def part(on_points: bool, rows: Tensor) -> Frames:
            own = coefficients[rows]
            return cls(terms, own, steps, active) if on_points else Propagator.of(terms, own, steps, dtype, growth)

        return Divided.of(stable, part)

    def __call__(self, waves: Tensor) -> Tensor:
        """The waves `[B, c, *K]` a frame later."""
        fields = torch.fft.irfftn(waves, s=self.terms.grid, dim=self.terms.axes)
        fits = fields.dtype == torch.float32 and len(self.terms.grid) < 3
        if _fast.get() and fits and native_problem(fields.device) is None:
            own = self.coefficients.float().contiguous()
            fields = native().lattice_steps(fields.contiguous(), own, self.steps, threads=torch.get_num_threads())
        else:
            share, rate = 1 / self.steps, partial(self.terms.rate, coefficients=self.coefficients, active=self.active)
            for _ in range(self.steps):
                k1 = rate(fields)
                k2 = rate(fields + share / 2 * k1)
                k3 = rate(fields + share / 2 * k2)
                k4 = rate(fields + share * k3)
                fields = fields + share / 6 * k1 + share / 3 * k2 + share / 3 * k3 + share / 6 * k4
        return torch.fft.rfftn(fields, dim=self.terms.axes)

    def repeated(self, times: int) -> LatticePropagator:
        """The same for each row so many times."""
        return replace(self, coefficients=self.coefficients.repeat_interleave(times, 0))
