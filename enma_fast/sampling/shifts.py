"""Members that see a periodic field from different places.

The physics does not know where the ring begins, and a model does: it commutes with shifts by whole tokens only. Member
k therefore sees everything shifted by an amount that depends on k modulo the number of shifts, and its forecast is
shifted back. What a model gets wrong by its place on the ring then differs between members, so their mean errs less
and their spread knows of it. A trajectory is encoded and read once for each shift.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..config import ModelConfig, SamplingConfig
from ..errors import EnmaError


def shift_amounts(config: ModelConfig, settings: SamplingConfig) -> list[tuple[int, ...]]:
    """Grid points by which each shift moves the field forward, by space dimension; the first moves nothing.

    Shift s moves by s (P / S + 1) points for tokens of P points: all amounts differ within a token, and within its
    parts.

    Raises
    ------
    EnmaError
        If no dimension is periodic, or a token has fewer points than there are shifts.
    """
    count, tok = settings.shifts or 1, config.tokenizer
    points = [n // tokens for n, tokens in zip(tok.grid, config.token_grid, strict=True)]
    if count > 1:
        around = [p for p, ring in zip(points, tok.periodic, strict=True) if ring]
        if not around:
            raise EnmaError(f"shifts is {count}; {config.name} has no periodic dimension to shift around: leave it out")
        if count > min(around):
            raise EnmaError(f"shifts is {count}; a token of {config.name} has {min(around)} grid points: use no more")
    return [
        tuple(s * (p // count + 1) * ring for p, ring in zip(points, tok.periodic, strict=True)) for s in range(count)
    ]


def shifted(u: Tensor, amount: tuple[int, ...], *, back: bool = False) -> Tensor:
    """Fields ``[B, T, *grid, c]`` moved forward, or back, around periodic dimensions; exact."""
    if not any(amount):
        return u
    axes = tuple(range(2, 2 + len(amount)))
    return torch.roll(u, tuple(-a if back else a for a in amount), axes)
