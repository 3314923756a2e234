"""Shifts of a periodic field, and mirror images of one between walls: members see the field from different places.

The physics is equivariant to every shift around a periodic domain; a model only to shifts by whole tokens. Member k
therefore sees the field shifted by an amount that depends on k modulo the number of shifts, and its forecast is shifted
back. The part of a model's error that depends on the place then differs between members: the error of their mean
decreases, and their spread includes it. A trajectory is encoded and read once for each shift.

Between walls a field cannot be shifted, but mirrored: there shift 1 mirrors it along the first dimension, shift 2 along
the second, and shift 3 along both. It is for scalar fields on an even grid, and for physics that is the same in a
mirror: a component of a vector field would also have to change its sign.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..config import ModelConfig, SamplingConfig
from ..errors import EnmaError


def shift_amounts(config: ModelConfig, settings: SamplingConfig) -> list[tuple[int, ...]]:
    """Grid points by which each shift moves the field forward, by space dimension; the first moves nothing.

    Shift s moves the field by s (P / S + 1) points if a token has P points and there are S shifts, so that all amounts
    differ modulo the points of a token. Where no dimension is periodic, 1 stands for a dimension that is mirrored.
    `EnmaError` if a token has fewer points than there are shifts, or a domain between walls fewer mirror images.
    """
    count, tok = settings.shifts or 1, config.tokenizer
    if not any(tok.periodic):
        if count > 2**tok.dims:
            raise EnmaError(
                f"shifts is {count}; a field of {config.name}, between walls, is seen as it is and mirrored, in "
                f"{2**tok.dims} ways: use no more"
            )
        return [tuple(s >> axis & 1 for axis in range(tok.dims)) for s in range(count)]
    points = [n // tokens for n, tokens in zip(tok.grid, config.token_grid, strict=True)]
    around = min(p for p, ring in zip(points, tok.periodic, strict=True) if ring)
    if count > 1 and count > around:
        raise EnmaError(f"shifts is {count}; a token of {config.name} has {around} grid points: use no more")
    return [
        tuple(s * (p // count + 1) * ring for p, ring in zip(points, tok.periodic, strict=True)) for s in range(count)
    ]


def shifted(u: Tensor, amount: tuple[int, ...], periodic: tuple[bool, ...], *, back: bool = False) -> Tensor:
    """Shift fields ``[B, T, *grid, c]`` forward, or back, around periodic dimensions, or mirror them; exact."""
    if not any(amount):
        return u
    if not any(periodic):
        return u.flip([2 + axis for axis, mirrored in enumerate(amount) if mirrored])
    axes = tuple(range(2, 2 + len(amount)))
    return torch.roll(u, tuple(-a if back else a for a in amount), axes)
