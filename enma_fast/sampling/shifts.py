"""Shifts of a periodic field, and mirror images of one between walls: members see the field from different places.

The physics is equivariant to every shift around a periodic domain; a model only to shifts by whole tokens. Member k
therefore sees the field shifted by an amount that depends on k modulo the number of shifts, and its forecast is shifted
back. The part of a model's error that depends on the place then differs between members: the error of their mean
decreases, and their spread includes it. A trajectory is encoded and read once for each shift.

Between walls a field cannot be shifted, but mirrored: there shift 1 mirrors it along the first dimension, shift 2 along
the second, and shift 3 along both. On a square, whose dimensions have the same points, length and tokens, shifts 4 to 7
are shifts 0 to 3 with the dimensions exchanged. It is for scalar fields on an even grid, and for physics that is the
same in a mirror, and from the fifth shift on the same along both dimensions: a component of a vector field would also
have to change its sign.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..config import ModelConfig, SamplingConfig
from ..errors import EnmaError


@dataclass(frozen=True)
class View:
    """How members see a field: moved forward by so many grid points along each dimension, or between walls mirrored.

    There ``amount`` is 1 for a dimension that is mirrored; then both dimensions are ``exchanged``, or not.
    """

    amount: tuple[int, ...]
    exchanged: bool = False

    @property
    def moves(self) -> bool:
        """Whether anything is elsewhere than in the field."""
        return self.exchanged or any(self.amount)


def views(config: ModelConfig, settings: SamplingConfig) -> list[View]:
    """The view of each shift; the first is the field as it is.

    Shift s moves the field by s times a step: of a token of P points and S shifts the least one above P / S whose
    first S multiples differ modulo P. `EnmaError` if a token has fewer points than there are shifts, or a domain
    between walls fewer views.
    """
    count, tok = 1 if settings.shifts is None else settings.shifts, config.codec
    if not any(tok.periodic):
        ways = mirrors(config)
        if count > len(ways):
            raise EnmaError(
                f"shifts is {count}; a field of {config.name}, between walls, is seen as it is, mirrored and, on a "
                f"square, with its dimensions exchanged, in {len(ways)} ways: use no more"
            )
        return ways[:count]
    around = points_around(config)
    if count > 1 and count > around:
        raise EnmaError(f"shifts is {count}; a token of {config.name} has {around} grid points: use no more")
    steps = [_step(p, count) if ring else 0 for p, ring in zip(_points(config), tok.periodic, strict=True)]
    return [View(tuple(s * step for step in steps)) for s in range(count)]


def points_around(config: ModelConfig) -> int:
    """Grid points of a token along a periodic dimension, of which there is one at least: the most shifts of a field."""
    return min(p for p, ring in zip(_points(config), config.codec.periodic, strict=True) if ring)


def _points(config: ModelConfig) -> list[int]:
    return [n // tokens for n, tokens in zip(config.codec.grid, config.token_grid, strict=True)]


def mirrors(config: ModelConfig) -> list[View]:
    """All views of a field between walls; the first is the field as it is."""
    tok = config.codec
    square = tok.dims == 2 and all(len(set(axes)) == 1 for axes in (tok.grid, tok.lengths, config.token_grid))
    return [
        View(tuple(s >> axis & 1 for axis in range(tok.dims)), exchanged=exchanged)
        for exchanged in (False, True)[: 1 + square]
        for s in range(2**tok.dims)
    ]


def _step(points: int, count: int) -> int:
    step = points // count + 1
    while points // math.gcd(step, points) < count:
        step += 1
    return step


def shifted(u: Tensor, view: View, periodic: tuple[bool, ...], *, back: bool = False) -> Tensor:
    """Fields ``[B, T, *grid, c]`` as a view shows them, or back; exact."""
    if not view.moves:
        return u
    axes = tuple(range(2, 2 + len(view.amount)))
    if any(periodic):
        return torch.roll(u, tuple(-a if back else a for a in view.amount), axes)
    u = u.transpose(*axes) if view.exchanged and back else u
    u = u.flip([axis for axis, mirrored in zip(axes, view.amount, strict=True) if mirrored])
    return u.transpose(*axes).contiguous() if view.exchanged and not back else u
