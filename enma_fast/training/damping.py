"""Trajectories under a damping that their equation lacks: an augmentation for physics beyond that of the data.

A solution whose waves are multiplied by ``exp(-d |k|^p t)`` solves the equation with the term ``-d (-lap)^(p/2) u``
added: exactly where the equation is linear with constant coefficients, nearly where its other terms are small. What a
model can learn from it is to carry on the damping of each wave that it has seen.

Legend: B trajectories, T frames, S points of the grid, flattened over its dimensions, c channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..data import FieldFile
from ..errors import EnmaError
from .config import RolloutConfig


def check_damping(options: RolloutConfig, data: FieldFile) -> None:
    """Raise `EnmaError` where a damping is asked for of a domain with walls, on which waves are none of the fields'."""
    if options.damped_share and not all(data.periodic):
        raise EnmaError(f"rollout.damped_share is for a periodic domain; {data.path} has walls: leave it at 0")


def draw_damping(options: RolloutConfig, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Orders p and rates d ``[B]`` of a batch; the rate is 0 for all but about ``damped_share`` of it."""
    order, most = torch.tensor(options.damping, dtype=torch.float64).unbind(1)
    kind = torch.randint(len(order), (count,), generator=generator)
    rate = torch.rand(count, generator=generator, dtype=torch.float64) * most[kind]
    return order[kind], rate * (torch.rand(count, generator=generator) < options.damped_share)


def damped(u: Tensor, order_B: Tensor, rate_B: Tensor, *, times: Tensor, lengths: Sequence[float]) -> Tensor:
    """Periodic fields ``[B, T, *grid, c]`` with the wave k multiplied by ``exp(-rate |k|^order (t - times[0]))``.

    Wave numbers are ``2 pi n / length``; those of the mean, 0, are damped by order 0 alone.
    """
    grid = u.shape[2:-1]
    axes = tuple(range(2, 2 + len(grid)))
    k2 = torch.zeros((1,) * len(grid), dtype=torch.float64)
    for i, (points, length) in enumerate(zip(grid, lengths, strict=True)):
        last = i == len(grid) - 1
        n = (torch.fft.rfftfreq if last else torch.fft.fftfreq)(points, 1 / points, dtype=torch.float64)
        k2 = k2 + (2 * torch.pi * n / length).square().reshape([-1 if j == i else 1 for j in range(len(grid))])
    k_S = k2.sqrt().flatten()
    exponent = rate_B[:, None, None] * (times - times[0])[:, None] * k_S ** order_B[:, None, None]
    gain = torch.exp(-exponent).reshape(*u.shape[:2], *k2.shape, 1)
    return torch.fft.irfftn(torch.fft.rfftn(u.double(), dim=axes) * gain, s=grid, dim=axes).to(u.dtype)
