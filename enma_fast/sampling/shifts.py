"""Shifts of a periodic field: members see the field from different places.

The physics is equivariant to every shift around a periodic domain; a model only to shifts by whole tokens. Member k
therefore sees the field shifted by an amount that depends on k modulo the number of shifts, and its forecast is shifted
back. The part of a model's error that depends on the place then differs between members: the error of their mean
decreases, and their spread includes it. A trajectory is encoded and read once for each shift.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..config import ModelConfig, SamplingConfig
from ..errors import EnmaError


def shift_amounts(config: ModelConfig, settings: SamplingConfig) -> list[tuple[int, ...]]:
    """Grid points by which each shift moves the field forward, by space dimension; the first moves nothing.

    Shift s moves the field by s (P / S + 1) points if a token has P points and there are S shifts, so that all amounts
    differ modulo the points of a token. `EnmaError` if no dimension is periodic, or if a token has fewer points than
    there are shifts.
    """
    count, tok = settings.shifts or 1, config.tokenizer
    points = [n // tokens for n, tokens in zip(tok.grid, config.token_grid, strict=True)]
    if count > 1:
        around = [p for p, ring in zip(points, tok.periodic, strict=True) if ring]
        if not around:
            raise EnmaError(f"shifts is {count}; {config.name} has no periodic dimension: leave it out")
        if count > min(around):
            raise EnmaError(f"shifts is {count}; a token of {config.name} has {min(around)} grid points: use no more")
    return [
        tuple(s * (p // count + 1) * ring for p, ring in zip(points, tok.periodic, strict=True)) for s in range(count)
    ]


def shifted(u: Tensor, amount: tuple[int, ...], *, back: bool = False) -> Tensor:
    """Shift fields ``[B, T, *grid, c]`` forward, or back, around periodic dimensions; exact."""
    if not any(amount):
        return u
    axes = tuple(range(2, 2 + len(amount)))
    return torch.roll(u, tuple(-a if back else a for a in amount), axes)
