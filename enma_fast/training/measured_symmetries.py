"""Symmetries that training data show: whether statistics are the same everywhere along an axis, and in a mirror.

Legend: B trajectories, T frames, c channels; `*x` space.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..data import FIRST_FRAME, SERIES, FieldFile
from ..models.drivers import Drivers
from ..models.grid_layers import Edge, pad_grid

# A mean map that varies along an axis by so many times what chance does is no accident.
_BEYOND_CHANCE = 3.0
# Frames that regressions look at, and points of them.
_MOST, _POINTS = 200, 40_000
# A mirror is allowed if a step is explained as well in it, within this share of the error, and of the step.
_WITHIN, _OF_STEP = 0.05, 1e-4
# Most combinations of signs of channels and drivers that are tried.
_TRIED = 64
_TINY = 1e-12


def shift_axes(fields: Tensor, edges: Sequence[Edge], mask: Tensor | None = None) -> list[int]:
    """Periodic axes along which the means of `[B, T, *x, c]` are the same everywhere, of trajectories apart.

    A `mask [*x, c]` has to be the same along them too.
    """
    means = fields[: _MOST * 5].mean(1).double()
    axes = []
    for axis, edge in enumerate(edges):
        if edge is not Edge.PERIODIC or len(means) < 2 or not _stays(mask, torch.roll, 1, axis):
            continue
        others = [1 + other for other in range(len(edges)) if other != axis]
        along = means.mean(others) if others else means
        along = along - along.mean(1, keepdim=True)
        chance = along.var(0).mean(0) / len(along)
        if bool((along.mean(0).square().mean(0) <= _BEYOND_CHANCE * chance + _TINY).all()):
            axes.append(axis)
    return axes


def apart(data: FieldFile) -> np.ndarray:
    """Rows of trajectories that share no frames: of windows of one series those that do not overlap."""
    if FIRST_FRAME not in data.parameters:
        return np.arange(len(data))
    series, first = (data.parameters[name] for name in (SERIES, FIRST_FRAME))
    ends: dict[float, float] = {}
    kept = []
    for row in np.lexsort((first, series)):
        if first[row] >= ends.get(series[row], -np.inf):
            kept.append(row)
            ends[series[row]] = first[row] + data.u.shape[1]
    return np.array(kept)


def mirrors(fields: Tensor, edges: Sequence[Edge], told: Drivers | None = None) -> dict[int, tuple[int, ...]]:
    """Axes whose mirror images could be data too, with the sign that each channel has there, and then each driver.

    A regression of the increments of `[B, T, *x, c]` on the neighbourhood of each point and on products with its own
    values, and with what is told, is fitted to half of the trajectories. It must explain the mirror images of the
    others as well as these.
    """
    if len(fields) < 2:
        return {}
    rows = torch.arange(len(fields)).tensor_split([len(fields) // 2])
    half, of_half = [fields[part] for part in rows], [told and told[part] for part in rows]
    x, y = _samples(half[0], of_half[0], edges)
    gram = x.T @ x
    held = 1e-6 * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    weights = torch.linalg.solve(gram + held, x.T @ y)
    plain = _unexplained(half[1], of_half[1], edges, weights)
    channels, signs_by_axis = fields.shape[-1], {}
    for axis in range(len(edges)):
        if not _stays(None if told is None else told.mask, torch.flip, (axis,)):
            continue
        count = channels + (0 if told is None else len(told.values))
        for signs in itertools.islice(itertools.product((1, -1), repeat=count), _TRIED):
            image = half[1].flip(2 + axis) * fields.new_tensor(signs[:channels])
            of_image = of_half[1] and of_half[1].mirrored(axis, signs[channels:])
            if _unexplained(image, of_image, edges, weights) <= (1 + _WITHIN) * plain + _OF_STEP:
                signs_by_axis[axis] = signs
                break
    return signs_by_axis


def _stays(mask: Tensor | None, move: Callable[..., Tensor], *how: Any) -> bool:
    """Whether a mask is the same after a move."""
    return mask is None or torch.equal(move(mask, *how), mask)


def _samples(fields: Tensor, told: Drivers | None, edges: Sequence[Edge]) -> tuple[Tensor, Tensor]:
    """Neighbourhoods and products `[n, F]`, and increments `[n, c]`, at some points of some frames."""
    count, T = len(fields), fields.shape[1] - 1
    chosen = torch.linspace(0, count * T - 1, min(_MOST, count * T)).long()
    frames, later = (fields[chosen // T, chosen % T + step].double() for step in (0, 1))
    change = later - frames
    if told is not None:
        frames = torch.cat([frames, told[chosen // T].since(chosen % T + 1).at(0).inputs.double()], -1)
    padded, grid = pad_grid(frames, 1, edges), frames.shape[1:-1]
    near = []
    for offset in itertools.product(range(3), repeat=len(grid)):
        index = (slice(None), *(slice(o, o + n) for o, n in zip(offset, grid, strict=True)))
        near.append(padded[index])
    x = torch.stack(near, -1).flatten(-2).flatten(0, -2)
    own = frames.flatten(0, -2)
    features = torch.cat([torch.ones_like(x[:, :1]), x, *(x * own[:, c : c + 1] for c in range(own.shape[1]))], -1)
    chosen = torch.linspace(0, len(x) - 1, min(_POINTS, len(x))).long()
    return features[chosen], change.flatten(0, -2)[chosen]


def _unexplained(fields: Tensor, told: Drivers | None, edges: Sequence[Edge], weights: Tensor) -> float:
    x, y = _samples(fields, told, edges)
    return float(((y - x @ weights).square().mean(0) / y.square().mean(0).clamp_min(_TINY)).mean())
