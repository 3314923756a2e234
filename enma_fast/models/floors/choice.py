"""Which floor a data set has: each kind is learned from some of its trajectories, and forecasts the others.

Legend: B trajectories, T frames, c channels; `*x` space.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..grid_layers import Edge
from .dataset import DampedPersistence, InverseModel, Persistence
from .ladder import Floor, forecast_error
from .spectral import SpectralFloor, companions
from .stencil import StencilFloor

# Share of the environments that are forecast, at most so many trajectories, and frames of a forecast.
_HELD, _MOST, _HORIZON = 0.2, 60, 16
# Trajectories that a kind is learned from, as many environments as have about so many.
_ENOUGH = 300
# A floor takes the place of a simpler one if its error is less by this share, and is right if it errs by so little.
_BETTER, _RIGHT = 0.02, 3e-3
# A network adds to a floor that errs by less than this share of persistence, and to persistence otherwise.
_WORTH = 0.5
# Frames that are observed, at least one more than a step reads.
KNOWN = 3
# Points of an axis that a second difference needs.
_LEAST_POINTS = 5


@dataclass(frozen=True, eq=False)
class Choice:
    """The floor of a data set, learned from enough of it.

    Attributes
    ----------
    name, floor : its kind, and itself
    errors : mean relative error of each kind on trajectories that it did not see, of forecasts after three frames and,
        where environments are known, after one frame with another trajectory
    right : whether it errs so little that a network has nothing to add
    worth : whether a network learns better on top of it than of persistence
    """

    name: str
    floor: Floor
    errors: dict[str, tuple[float, ...]]
    right: bool
    worth: bool


def kinds(
    grid: Sequence[int], edges: Sequence[Edge], channels: int, *, spacings: Sequence[float] | None = None
) -> dict[str, Callable[[], Floor]]:
    """The kinds of floors of a grid, the simplest first."""
    made: dict[str, Callable[[], Floor]] = {
        "persistence": Persistence,
        "damped persistence": lambda: DampedPersistence(grid, channels),
        "linear inverse model": lambda: InverseModel(grid, channels),
    }
    if all(edge is Edge.PERIODIC for edge in edges):
        made["waves"] = lambda: SpectralFloor(grid, channels)
    if min(grid) >= _LEAST_POINTS:
        for order, name in ((1, "diffusion"), (2, "vibration")):
            made[name] = lambda order=order: StencilFloor(  # type: ignore[misc]
                grid, edges, channels, order=order, spacings=spacings
            )
    return made


def choose(
    fields: Tensor,
    *,
    edges: Sequence[Edge],
    environments: Tensor | None = None,
    spacings: Sequence[float] | None = None,
    seconds: float = float("inf"),
) -> Choice:
    """The floor with which trajectories `[B, T, *x, c]` of four frames or more are forecast best.

    `environments [B]` says which trajectories share their physics. Kinds are tried, the simplest first, until so many
    seconds of this process are spent.
    """
    grid, channels = fields.shape[2:-1], fields.shape[-1]
    started = time.process_time()
    training, learned_groups, held, groups = _split(fields, environments)
    training, _ = _some(training, learned_groups)
    errors: dict[str, tuple[float, ...]] = {}
    best, made = "persistence", kinds(grid, edges, channels, spacings=spacings)
    for name, make in made.items():
        if errors and time.process_time() - started > seconds:
            break
        floor = _learned(make(), training, None)
        errors[name] = _errors(floor, held, groups)
        if sum(errors[name]) < (1 - _BETTER) * sum(errors[best]):
            best = name
    right = max(errors[best]) < _RIGHT
    worth = sum(errors[best]) < _WORTH * sum(errors["persistence"])
    floor = _learned(made[best](), *_some(fields, environments))
    return Choice(best, floor, errors, right, worth)


def _learned(floor: Floor, fields: Tensor, environments: Tensor | None) -> Floor:
    if isinstance(floor, SpectralFloor):
        floor.learn(fields, environments=environments)
    else:
        floor.learn(fields)
    return floor


def _some(fields: Tensor, environments: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Trajectories of evenly spread environments, enough to learn a floor from, and their environments."""
    if len(fields) <= _ENOUGH:
        return fields, environments
    groups = torch.arange(len(fields)) if environments is None else environments
    names = groups.unique()
    count = max(1, round(_ENOUGH * len(names) / len(fields)))
    chosen = torch.isin(groups, names[torch.linspace(0, len(names) - 1, count).long()])
    return fields[chosen], None if environments is None else environments[chosen]


def _split(fields: Tensor, environments: Tensor | None) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
    """Trajectories to learn from and those that are held back, each with their environments."""
    B, T = fields.shape[:2]
    if B == 1:
        # The end of a single series, cut into forecasts.
        first = T - max(KNOWN + 1, int(_HELD * T))
        frames = min(KNOWN + _HORIZON, T - first)
        held = fields[0, first:].unfold(0, frames, frames).movedim(-1, 1)
        return fields[:, :first] if first > KNOWN else fields, None, held[:_MOST], None
    groups = torch.arange(B) if environments is None else environments
    names = groups.unique()
    last = names[len(names) - max(1, int(_HELD * len(names))) :]
    inside = torch.isin(groups, last) if len(names) > 1 else torch.arange(B) >= B - max(1, int(_HELD * B))
    held = fields[inside][:_MOST, : KNOWN + _HORIZON]
    if environments is None:
        return fields[~inside], None, held, None
    return fields[~inside], groups[~inside], held, groups[inside][:_MOST]


def _errors(floor: Floor, held: Tensor, groups: Tensor | None) -> tuple[float, ...]:
    errors = [forecast_error(floor, held[:, None, :KNOWN], held, known=KNOWN)]
    if groups is not None:
        others = companions(groups, torch.arange(len(held)))
        mine = torch.nonzero(others >= 0)[:, 0]
        if len(mine):
            windows = held[others[mine]].unfold(1, KNOWN, KNOWN).movedim(-1, 2)
            errors.append(forecast_error(floor, windows, held[mine], own=False))
    return tuple(errors)
