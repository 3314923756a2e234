"""Classical Runge-Kutta steps of equations whose derivatives are differences of neighbours, on the points of the grid.

They take a tenth of the time of exponential steps, which transform each product. Trajectories whose linear terms would
make them unstable, or grow faster than a wave may, are left to these. Legend: as in `terms`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .exponential import Propagator
from .terms import Terms

# Most that a linear term may change a wave in a step: such steps are stable up to 2.78.
_STABLE = 2.5


@dataclass(frozen=True, eq=False)
class LatticePropagator:
    """Steps of equal length, so many to a frame, for coefficients `[B, P]`; `stable [B]` are not left to `rest`."""

    terms: Terms
    coefficients: Tensor
    steps: int
    active: Sequence[int]
    stable: Tensor
    rest: Propagator | None

    @classmethod
    def of(
        cls, terms: Terms, coefficients: Tensor, steps: int, dtype: torch.dtype, growth: Tensor
    ) -> LatticePropagator | Propagator:
        """As of :class:`Propagator`, which it is where terms are not local or no trajectory is stable."""
        active = [j for j in range(terms.num_linear, terms.num) if bool((coefficients[:, j] != 0).any())]
        if not active or not terms.local(active):
            return Propagator.of(terms, coefficients, steps, dtype, growth)
        rates = terms.rates(coefficients)
        slow = rates.real <= growth.view(-1, *[1] * len(terms.grid))
        stable = (slow & (rates.abs() <= _STABLE * steps)).flatten(1).all(1)
        if not stable.any():
            return Propagator.of(terms, coefficients, steps, dtype, growth)
        rest = None if stable.all() else Propagator.of(terms, coefficients[~stable], steps, dtype, growth)
        return cls(terms, coefficients, steps, active, stable, rest)

    def __call__(self, waves: Tensor) -> Tensor:
        """The waves `[B, c, *K]` a frame later."""
        if self.rest is None:
            return self._moved(waves, self.coefficients)
        made = torch.empty_like(waves)
        made[self.stable] = self._moved(waves[self.stable], self.coefficients[self.stable])
        made[~self.stable] = self.rest(waves[~self.stable])
        return made

    def repeated(self, times: int) -> LatticePropagator:
        """The same for each row so many times."""
        return replace(
            self,
            coefficients=self.coefficients.repeat_interleave(times, 0),
            stable=self.stable.repeat_interleave(times),
            rest=None if self.rest is None else self.rest.repeated(times),
        )

    def _moved(self, waves: Tensor, coefficients: Tensor) -> Tensor:
        fields = torch.fft.irfftn(waves, s=self.terms.grid, dim=self.terms.axes)
        share = 1 / self.steps

        def rate(of: Tensor) -> Tensor:
            return self.terms.rate(of, coefficients, self.active)

        for _ in range(self.steps):
            k1 = rate(fields)
            k2 = rate(fields + share / 2 * k1)
            k3 = rate(fields + share / 2 * k2)
            k4 = rate(fields + share * k3)
            fields = fields + share / 6 * k1 + share / 3 * k2 + share / 3 * k3 + share / 6 * k4
        return torch.fft.rfftn(fields, dim=self.terms.axes)
