"""The second difference along all axes of a grid, and functions of it.

A = sum over axes of w D, where D is the five-point second difference of fourth order. In the two rows next to a wall it
is a mixture of two kinds: of fields that are even beyond the wall (nothing flows through it), and of fields that are
odd (the wall holds them at 0). No share of either leaves the rows as they are. The eigenvalues of A are not above 0.

Legend: N rows (fields of one channel), L Chebyshev polynomials; `*x` space.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ..grid_layers import Edge

_INSIDE = (-1 / 12, 16 / 12, -30 / 12, 16 / 12, -1 / 12)
# The largest size of an eigenvalue of one axis, and the rows next to a wall and the points that they reach.
LARGEST = 16 / 3
ROWS, _REACH = 2, 4
# Shares of the even and the odd kind in each row next to a wall, to begin a search from.
WALLS = {"even": (1.0, 0.0), "odd": (0.0, 1.0), "still": (0.0, 0.0)}
# Coefficients below this share of the greatest one change no value of a field.
_LEAST = 1e-10


def wall_rows(shares: Tensor) -> Tensor:
    """Weights `[rows, reach]` of the rows next to a wall, of shares `[rows, 2]` of the even and of the odd kind."""
    rows = shares.new_zeros(2, ROWS, _REACH)
    for i in range(ROWS):
        for j, weight in zip(range(i - 2, i + 3), _INSIDE, strict=True):
            if j >= 0:
                rows[:, i, j] += weight
                continue
            # Even about the wall, half a point outside; odd about the point outside.
            rows[0, i, -1 - j] += weight
            if j < -1:
                rows[1, i, -2 - j] -= weight
    return torch.einsum("rk,krj->rj", shares, rows)


def matrix(n: int, edge: Edge, shares: Tensor) -> Tensor:
    """The second difference `[n, n]` along an axis of at least 5 points."""
    entries = shares.new_zeros(n, n)
    place = torch.arange(n, device=entries.device)
    if edge is Edge.PERIODIC:
        for offset, weight in zip(range(-2, 3), _INSIDE, strict=True):
            entries[place, (place + offset) % n] += weight
        return entries
    inner = place[ROWS : n - ROWS]
    for offset, weight in zip(range(-2, 3), _INSIDE, strict=True):
        entries[inner, inner + offset] = weight
    top = F.pad(wall_rows(shares), (0, n - _REACH))
    return torch.cat([top, entries[ROWS : n - ROWS], top.flip(0, 1)])


def difference(matrices: Sequence[Tensor], rows: Tensor) -> Tensor:
    """The sum of what matrices do to rows `[..., *x]` along their axes."""
    dims = len(matrices)
    total = rows @ matrices[-1].T
    for axis, along in enumerate(matrices[:-1], start=-dims):
        total = total + (rows.movedim(axis, -1) @ along.T).movedim(-1, axis)
    return total


def polynomials(matrices: Sequence[Tensor], rows: Tensor, count: int) -> Tensor:
    """The first Chebyshev polynomials of 1 + A of rows `[..., *x]`, `[..., L, points]`; A scaled to [-2, 0]."""
    dims = len(matrices)
    terms = [rows, rows + difference(matrices, rows)]
    while len(terms) < count:
        terms.append(2 * (terms[-1] + difference(matrices, terms[-1])) - terms[-2])
    return torch.stack(terms, -1 - dims).flatten(-dims)


def applied(matrices: Sequence[Tensor], rows: Tensor, terms: Tensor) -> Tensor:
    """The function of 1 + A with Chebyshev coefficients `terms [N, L]`, of rows `[N, *x]`; A scaled to [-2, 0]."""
    size = terms.detach().abs().amax(0)
    used = int(torch.nonzero(size > _LEAST * size.max()).max()) + 1 if bool(size.max() > 0) else 1
    shape = (-1, *(1,) * len(matrices))
    later = before = torch.zeros_like(rows)
    for j in range(used - 1, 0, -1):
        later, before = terms[:, j].view(shape) * rows + 2 * (later + difference(matrices, later)) - before, later
    return terms[:, 0].view(shape) * rows + later + difference(matrices, later) - before
