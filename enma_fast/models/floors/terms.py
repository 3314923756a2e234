"""Terms that an equation of fields on periodic grids may have, and their values in Fourier space.

    u_t = L u + N(u)

L is linear and acts on each channel alone: 1, the first derivatives, the Laplacian and its square, and the third
derivative on a line. N has what couples channels, products of two and of three channels, products of a channel and of
a derivative, and on a plane what a flow carries whose vorticity is a channel. Derivatives are exact for waves, or the
differences of neighbours that a code on the same grid takes.

Legend: B trajectories, c channels, F factors, J linear terms of a channel, K waves (`*K` along each axis), Q other
terms; `*x` space. Coefficients are per frame, and lengths in eighths of a wave of two points.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# Unit of wave numbers, in radians per point: low waves of usual grids are of order 1.
WAVE = math.pi / 8
_NYQUIST = 1e-9
# From which share of the highest wave on waves count less, and how sharply.
_SHORT, _SHARPNESS = 0.5, 8

# A channel under an operator: "" none, "d0" a derivative along an axis, "lap" the Laplacian, and "p0" that derivative
# of the potential whose Laplacian is minus the channel.
Factor = tuple[int, str]


@dataclass(frozen=True)
class Term:
    """Products of factors that are added to the change of a channel, each with its sign."""

    channel: int
    products: tuple[tuple[int, tuple[Factor, ...]], ...]

    @property
    def name(self) -> str:
        return " ".join(
            ("- " if sign < 0 else "") + (" ".join(map(_spelled, factors)) or "1") for sign, factors in self.products
        )


def _spelled(factor: Factor) -> str:
    channel, operator = factor
    return f"{operator} u{channel}" if operator else f"u{channel}"


class Terms:
    """All terms of fields `[B, *x, c]` on a grid; `lattice` says whether derivatives are differences of neighbours.

    `spacings` are the distances of points, one for each axis, in those of the data.
    """

    def __init__(
        self, grid: Sequence[int], channels: int, *, lattice: bool, spacings: Sequence[float] | None = None
    ) -> None:
        self.grid, self.channels, self.lattice = tuple(grid), channels, lattice
        self.axes = tuple(range(-len(self.grid), 0))
        numbers = [torch.fft.fftfreq(n, dtype=torch.float64) for n in self.grid[:-1]]
        numbers.append(torch.fft.rfftfreq(self.grid[-1], dtype=torch.float64))
        k = torch.meshgrid(*(2 * math.pi * f for f in numbers), indexing="ij")
        highest = [a.abs() > math.pi - _NYQUIST for a in k]
        k = tuple(a / h for a, h in zip(k, spacings or [1.0] * len(k), strict=True))
        first = [torch.sin(a) if lattice else a.masked_fill(high, 0.0) for a, high in zip(k, highest, strict=True)]
        second = sum(2 - 2 * torch.cos(a) if lattice else a * a for a in k) / WAVE**2
        slopes = [1j * a / WAVE for a in first]
        assert isinstance(second, Tensor)
        inverse = torch.where(second > 0, 1 / second.clamp_min(_NYQUIST), 0.0)
        one = torch.ones_like(second) + 0j
        operators = {"": one, "lap": -second + 0j}
        for axis, slope in enumerate(slopes):
            operators |= {f"d{axis}": slope, f"p{axis}": inverse * slope}
        linear = {"1": one} | {f"d{axis}": slope for axis, slope in enumerate(slopes)} | {"lap": -second + 0j}
        if len(self.grid) == 1:
            linear["d0 lap"] = -slopes[0] * second
        linear["lap lap"] = second.square() + 0j
        self.linear_names = tuple(linear)
        each = itertools.product(range(channels), ("" if name == "1" else name for name in linear))
        self._linear = [Term(c, ((1, ((c, op),)),)) for c, op in each]
        self.others = tuple(_others(channels, len(self.grid)))
        # Products of waves are free of aliases on half as many points again; codes on the same grid have theirs.
        self.finer_grid = self.grid if lattice else tuple(3 * n // 2 + (3 * n // 2) % 2 for n in self.grid)
        gain = math.prod(fine / n for fine, n in zip(self.finer_grid, self.grid, strict=True))
        # The highest wave of an even grid has no derivative, and no phase that products could tell.
        told = (~torch.stack(highest).any(0)).double()
        self._constants = {"linear": torch.stack(list(linear.values())), "finer": told * gain, "coarser": told / gain}
        # Short waves of products lack partners that a grid does not hold. They tell little of an equation.
        high = torch.stack([a.abs() for a in k]).square().sum(0).sqrt() / (_SHORT * math.pi)
        self._constants["long"] = torch.ones_like(high) if lattice else 1 / (1 + high**_SHARPNESS)
        self._constants |= operators
        self._copies: dict[tuple[str, torch.dtype, torch.device], Tensor] = {}
        # Where the waves of a grid are among those of the finer one: pairs of slices.
        halves = [
            ((slice(0, (n + 1) // 2),) * 2, (slice((n + 1) // 2, n), slice(fine - n // 2, fine)))
            for n, fine in zip(self.grid[:-1], self.finer_grid[:-1], strict=True)
        ]
        last = slice(0, self.grid[-1] // 2 + 1)
        self._places: list[tuple[Any, Any]] = [
            ((..., *(coarse for coarse, _ in each), last), (..., *(among for _, among in each), last))
            for each in itertools.product(*halves)
        ]

    @property
    def num_linear(self) -> int:
        """Linear terms of all channels; these are the first."""
        return self.channels * len(self.linear_names)

    @property
    def num(self) -> int:
        return self.num_linear + len(self.others)

    @property
    def names(self) -> list[tuple[int, str]]:
        """Channel whose change each term is of, and what it is."""
        each = itertools.product(range(self.channels), self.linear_names)
        linear = [(c, f"u{c}" if name == "1" else f"{name} u{c}") for c, name in each]
        return linear + [(term.channel, term.name) for term in self.others]

    def transform(self, fields: Tensor) -> Tensor:
        """`[B, *x, c]` to `[B, c, *K]`."""
        return torch.fft.rfftn(fields.movedim(-1, 1), dim=self.axes)

    def fields(self, waves: Tensor) -> Tensor:
        """`[B, c, *K]` to `[B, *x, c]`."""
        return torch.fft.irfftn(waves, s=self.grid, dim=self.axes).movedim(1, -1)

    def long(self, waves: Tensor) -> Tensor:
        """The part of waves `[B, c, *K]` by which an equation is told."""
        return waves * self._constant("long", waves)

    def rates(self, coefficients: Tensor) -> Tensor:
        """Rates `[B, c, *K]` of waves under the linear terms, of all coefficients `[B, P]`, float64."""
        each = coefficients[:, : self.num_linear].unflatten(1, (self.channels, -1)).to(torch.complex128)
        return torch.tensordot(each, self._constant("linear", each), 1)

    def change(self, waves: Tensor, coefficients: Tensor, active: Sequence[int]) -> Tensor:
        """What the other terms add to waves `[B, c, *K]`, by all coefficients `[B, P]`; only active ones are made."""
        used = [self.others[j - self.num_linear] for j in active]
        factors = sorted({f for term in used for _, product in term.products for f in product})
        at = dict(zip(factors, self._values(waves, factors).unbind(1), strict=True)) if factors else {}
        total = waves.real.new_zeros(len(waves), self.channels, *self.finer_grid)
        products: dict[tuple[tuple[int, tuple[Factor, ...]], ...], Tensor | float] = {}
        for j, term in zip(active, used, strict=True):
            if term.products not in products:
                products[term.products] = self._product(term, at)
            coefficient = coefficients[:, j].to(total.dtype).view(-1, *[1] * len(self.grid))
            total[:, term.channel] += coefficient * products[term.products]
        return self._coarse(total)

    def used(self, coefficients: Tensor) -> list[int]:
        """Terms with coefficients `[B, P]` that are not all 0."""
        return [int(j) for j in torch.nonzero((coefficients != 0).any(0))]

    def local(self, active: Sequence[int]) -> bool:
        """Whether a point changes by its neighbours alone under active terms, of which not all are linear."""
        others = [self.others[j - self.num_linear] for j in active if j >= self.num_linear]
        factors = (factor for term in others for _, product in term.products for factor in product)
        return self.lattice and bool(others) and not any(op.startswith("p") for _, op in factors)

    def rate(self, fields: Tensor, coefficients: Tensor, active: Sequence[int]) -> Tensor:
        """The change of fields `[B, c, *x]` in a frame by active terms, which are all local."""
        at: dict[Factor, Tensor] = {}

        def value(factor: Factor) -> Tensor:
            if factor not in at:
                c, op = factor
                operator, _, rest = op.partition(" ")
                at[factor] = self._difference(value((c, rest)), operator) if op else fields[:, c]
            return at[factor]

        total = torch.zeros_like(fields)
        for j in active:
            term = self._linear[j] if j < self.num_linear else self.others[j - self.num_linear]
            for _, product in term.products:
                for factor in product:
                    value(factor)
            coefficient = coefficients[:, j].to(total.dtype).view(-1, *[1] * len(self.grid))
            total[:, term.channel] += coefficient * self._product(term, at)
        return total

    def _difference(self, fields: Tensor, op: str) -> Tensor:
        """What an operator makes of fields `[B, *x]`, by differences of neighbours."""
        if op == "lap":
            around = sum(fields.roll(shift, axis) for axis in self.axes for shift in (1, -1))
            return (around - 2 * len(self.grid) * fields) / WAVE**2
        axis = self.axes[int(op[1:])]
        return (fields.roll(-1, axis) - fields.roll(1, axis)) / (2 * WAVE)

    def values(self, fields: Tensor) -> Tensor:
        """All terms of fields `[B, *x, c]` with coefficients of 1, `[P, B, *x]`."""
        waves = self.transform(fields)
        terms = [
            torch.fft.irfftn(waves[:, c] * symbol, s=self.grid, dim=self.axes)
            for c in range(self.channels)
            for symbol in self._constant("linear", waves)
        ]
        factors = sorted({f for term in self.others for _, product in term.products for f in product})
        at = dict(zip(factors, self._values(waves, factors).unbind(1), strict=True))
        for term in self.others:
            value = self._product(term, at)
            if not isinstance(value, Tensor):
                terms.append(torch.full_like(terms[0], value))
                continue
            terms.append(torch.fft.irfftn(self._coarse(value[:, None])[:, 0], s=self.grid, dim=self.axes))
        return torch.stack(terms)

    def _values(self, waves: Tensor, factors: Sequence[Factor]) -> Tensor:
        """Factors on the points where products are taken, `[B, F, *x]`."""
        each = torch.stack([waves[:, c] * self._constant(op, waves) if op else waves[:, c] for c, op in factors], 1)
        return torch.fft.irfftn(self.on_finer(each), s=self.finer_grid, dim=self.axes)

    def _coarse(self, values: Tensor) -> Tensor:
        """Waves `[B, c, *K]` of values `[B, c, *x]` on the points where products are taken."""
        return self.on_coarser(torch.fft.rfftn(values, dim=self.axes))

    def on_finer(self, waves: Tensor) -> Tensor:
        """Waves `[B, c, *K]` among those of the grid on which products are taken."""
        if self.finer_grid == self.grid:
            return waves
        waves = waves * self._constant("finer", waves)
        finer_waves = waves.new_zeros(*waves.shape[:2], *self.finer_grid[:-1], self.finer_grid[-1] // 2 + 1)
        for coarse, among in self._places:
            finer_waves[among] = waves[coarse]
        return finer_waves

    def on_coarser(self, waves: Tensor) -> Tensor:
        """The waves `[B, c, *K]` of the own grid among those of the grid on which products are taken."""
        if self.finer_grid == self.grid:
            return waves
        coarser = self._constant("coarser", waves)
        own_waves = waves.new_empty(*waves.shape[:2], *coarser.shape)
        for coarse, among in self._places:
            own_waves[coarse] = waves[among]
        return own_waves * coarser

    def _constant(self, name: str, like: Tensor) -> Tensor:
        """A constant in the precision and on the device of waves."""
        key = name, like.dtype, like.device
        if key not in self._copies:
            self._copies[key] = self._constants[name].to(like.device, like.dtype)
        return self._copies[key]

    @staticmethod
    def _product(term: Term, at: dict[Factor, Tensor]) -> Tensor | float:
        total: Tensor | float = 0.0
        for sign, factors in term.products:
            value: Tensor | float = float(sign)
            for i, factor in enumerate(factors):
                value = at[factor] if i == 0 and sign > 0 else value * at[factor]
            total = value if isinstance(total, float) else total + value
        return total


def _others(channels: int, dims: int) -> Iterable[Term]:
    """Terms that are not linear, or couple channels, for the change of each channel."""
    plain = [((c, ""),) for c in range(channels)]
    for c in range(channels):
        yield Term(c, ((1, ()),))
        for d in range(channels):
            if d != c:
                yield from (Term(c, ((1, ((d, op),)),)) for op in ("", "lap", *(f"d{a}" for a in range(dims))))
        for degree in (2, 3):
            for factors in itertools.combinations_with_replacement(plain, degree):
                yield Term(c, ((1, tuple(f for (f,) in factors)),))
        for i, j in itertools.product(range(channels), repeat=2):
            yield from (Term(c, ((1, ((i, ""), (j, f"d{axis}"))),)) for axis in range(dims))
            if dims == 2:
                # u . grad of channel j, where channel i is the vorticity of u.
                yield Term(c, ((1, ((i, "p1"), (j, "d0"))), (-1, ((i, "p0"), (j, "d1")))))
