"""Which floor a data set has: each kind is learned from some of its trajectories, and forecasts the others.

Legend: B trajectories, T frames, c channels; `*x` space.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...config import CodecConfig
from ...utils.chance import surely_less
from ..grid_layers import Edge
from .dataset import DampedPersistence, InverseModel, MultiModelMean, ObservedMean, Persistence
from .deadline import OutOfTimeError, within
from .equation import LEAST_POINTS, MOST_CHANNELS
from .equation_search import EquationFloor
from .ladder import KNOWN, Floor, forecast_error
from .spectral import SpectralFloor, companions
from .stencil import StencilFloor

# Share of the environments that are forecast, at most so many trajectories, and frames of a forecast.
_HELD, _MOST, _HORIZON = 0.2, 60, 16
# Trajectories that a kind is learned from, as many environments as have about so many, or about so many values.
_ENOUGH, _MOST_VALUES, _FEWEST = 300, 20_000_000, 20
# Values of the trajectories that are forecast, about, and trajectories of which the time is taken: one where that takes
# so many seconds. By the factor the estimated time may be too long.
_MOST_HELD, _FEW, _SLOW, _UNSURE = 1_000_000, 8, 0.2, 2
# A floor takes the place of a simpler one if its error is less by this share: one that shifts with fields, or another.
# It is right if it errs by so little.
_BETTER, _SLIGHTLY, _RIGHT = 0.01, 0.003, 3e-3
# Where fields may be shifted, a floor has to err by less than this share of persistence to take its place.
_WORTH = 0.25
# The better of these is taken for a series, unless another floor that knows places, or none, is surely better.
_HEDGES = ("damped persistence", "multi-model mean")
# Points of an axis that a second difference needs, and numbers of a frame up to which a floor takes little memory.
_LEAST_POINTS, _SMALL = 5, 1 << 24


@dataclass(frozen=True, eq=False)
class Choice:
    """The floor of a data set, learned from enough of it.

    Attributes
    ----------
    name, floor : its kind, and itself: what a network adds to
    best : the kind with the least error
    errors : mean relative error of each kind on trajectories that it did not see, of forecasts after three frames and,
        where environments are known, after one frame with another trajectory
    right : whether it errs so little that a network has nothing to add
    """

    name: str
    floor: Floor
    best: str
    errors: dict[str, tuple[float, ...]]
    right: bool


def kinds(codec: CodecConfig) -> dict[str, Callable[[], Floor]]:
    """The kinds of floors of the fields of a codec, the simplest first.

    Those of masked fields, which are 0 where they have no values, are laws of single points or of principal
    components, which stay 0 there.
    """
    grid, channels = codec.grid, codec.field_channels
    makers: dict[str, Callable[[], Floor]] = {
        "persistence": Persistence,
        _HEDGES[0]: lambda: DampedPersistence(grid, channels),
        "observed mean": lambda: ObservedMean(grid, channels),
        _HEDGES[1]: lambda: MultiModelMean(grid, channels),
        "linear inverse model": lambda: InverseModel(grid, channels),
    }
    if not codec.masked:
        makers |= _of_whole_grids(codec)
    # Arithmetic on the meta device, which checkpoints are checked on, would import the whole of torch.compile.
    if math.prod(grid) * channels > _SMALL:
        return makers
    return {name: _on_cpu(make) for name, make in makers.items()}


def _on_cpu(make: Callable[[], Floor]) -> Callable[[], Floor]:
    def made() -> Floor:
        with torch.device("cpu"):
            return make()

    return made


def _of_whole_grids(codec: CodecConfig) -> dict[str, Callable[[], Floor]]:
    grid, channels, edges, ring = codec.grid, codec.field_channels, Edge.of(codec.periodic), all(codec.periodic)
    makers: dict[str, Callable[[], Floor]] = {}
    if ring:
        makers["waves"] = lambda: SpectralFloor(grid, channels)
    if min(grid) >= _LEAST_POINTS:
        for order, name in ((2, "vibration"), (1, "diffusion")):
            makers[name] = lambda order=order: StencilFloor(  # type: ignore[misc]
                grid, edges, channels, order=order, spacings=codec.spacings
            )
    if ring and channels <= MOST_CHANNELS and min(grid) >= LEAST_POINTS:
        makers["equation"] = lambda: EquationFloor(grid, channels, zero=codec.zero)
    return makers


def choose(
    fields: Tensor,
    codec: CodecConfig,
    *,
    environments: Tensor | None = None,
    folds: Sequence[tuple[Tensor, Tensor]] | None = None,
    shifted: bool = False,
    seconds: float = float("inf"),
) -> Choice:
    """The floor with which trajectories `[B, T, *x, c]` of a codec, of four frames or more, are forecast best.

    `environments [B]` says which trajectories share their physics. `folds` are rows to learn from and rows to forecast,
    where trajectories share frames; by default the last environments are forecast. Such folds are few, and the best of
    the floors that know places may be so by chance: then damped persistence or the mean of two others is taken. Where
    shifted fields could be data too, which teaches a network more than most floors do, a floor has to shift with them
    and to be much better than persistence, unless it is right. Kinds are tried, the simplest first, until one is right.
    Those are left out that would take far more than what is left of so many seconds of this process, or do take more.
    """
    started = time.process_time()
    if folds is None:
        training, training_groups, held, groups = _split(fields, environments)
        splits = [(*_some(training, training_groups), held, groups)]
    else:
        splits = [(*_some(fields[a], None), _few(fields[b]), None) for a, b in folds]
    errors: dict[str, tuple[float, ...]] = {}
    of_folds: dict[str, Tensor] = {}
    best, taken = "persistence", "persistence"
    makers = kinds(codec)
    for name, make in makers.items():
        floor = make()
        left = seconds - (time.process_time() - started) if errors else float("inf")
        if len(splits) * _seconds(floor, splits[0][2], contexts=splits[0][3] is not None) > _UNSURE * left:
            continue
        try:
            with within(left):
                by_split = [
                    _errors(learn(floor, training, training_groups), held, groups)
                    for training, training_groups, held, groups in splits
                ]
        except OutOfTimeError:
            continue
        of_folds[name] = torch.tensor([sum(parts) for parts in by_split])
        errors[name] = tuple(sum(parts) / len(parts) for parts in zip(*by_split, strict=True))
        if sum(errors[name]) < (1 - (_BETTER if floor.moves else _SLIGHTLY)) * sum(errors[best]):
            best = name
            if not shifted or (floor.moves and sum(errors[name]) < _WORTH * sum(errors["persistence"])):
                taken = name
        if max(errors[best]) < _RIGHT:
            # What it has learned from most trajectories is right too.
            return Choice(name, floor if folds is None else learn(floor, fields, environments), name, errors, True)
    hedges = [name for name in _HEDGES if math.isfinite(sum(errors.get(name, (math.inf,))))]
    if folds and hedges and not shifted and not (makers[taken]().moves and taken != "persistence"):
        hedge = min(hedges, key=lambda name: sum(errors[name]))
        if not surely_less(of_folds[taken], of_folds[hedge], len(folds)):
            taken = hedge
    return Choice(taken, learn(makers[taken](), fields, environments), best, errors, False)


def learn(floor: Floor, fields: Tensor, environments: Tensor | None) -> Floor:
    """Teach a floor trajectories `[B, T, *x, c]`, of as many environments as are enough; returns it."""
    fields, environments = _some(fields, environments)
    floor.learn(fields, environments=environments)
    return floor


def _some(fields: Tensor, environments: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Trajectories of evenly spread environments, enough to learn a floor from, and their environments."""
    enough = min(_ENOUGH, max(_FEWEST, _MOST_VALUES // fields[0].numel()))
    if len(fields) <= enough:
        return fields, environments
    groups = torch.arange(len(fields)) if environments is None else environments
    names = groups.unique()
    count = max(1, round(enough * len(names) / len(fields)))
    chosen = torch.isin(groups, names[torch.linspace(0, len(names) - 1, count).long()])
    return fields[chosen], None if environments is None else environments[chosen]


def _split(fields: Tensor, environments: Tensor | None) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
    """Trajectories to learn from and those that are held back, each with their environments."""
    B = len(fields)
    groups = torch.arange(B) if environments is None else environments
    names = groups.unique()
    last = names[len(names) - max(1, int(_HELD * len(names))) :]
    inside = torch.isin(groups, last) if len(names) > 1 else torch.arange(B) >= B - max(1, int(_HELD * B))
    held = _few(fields[inside])
    if environments is None:
        return fields[~inside], None, held, None
    return fields[~inside], groups[~inside], held, groups[inside][: len(held)]


def _few(held: Tensor) -> Tensor:
    """Trajectories that are forecast, and as many of their frames: fewer of large grids."""
    held = held[:, : KNOWN + _HORIZON]
    return held[: min(_MOST, max(_FEW, _MOST_HELD // held[0].numel()))]


def _seconds(floor: Floor, held: Tensor, *, contexts: bool) -> float:
    """About how long it takes to learn a kind and to forecast held trajectories, by one step of a few of them."""
    clock = time.process_time
    few, begun = held[:1, :KNOWN], clock()
    state = floor.infer(few[:, None])
    inferring = clock() - begun
    if inferring < _SLOW:
        few, begun = held[:_FEW, :KNOWN], clock()
        state = floor.infer(few[:, None])
        inferring = clock() - begun
    begun = clock()
    floor.step(few, state)
    stepping = clock() - begun
    # Contexts have several windows.
    each, tasks = (6, 2) if contexts else (1, 1)
    inferences, steps = each * len(held) + floor.inferences, tasks * _HORIZON * len(held)
    return (inferences * inferring + steps * stepping) / len(few)


def _errors(floor: Floor, held: Tensor, groups: Tensor | None) -> tuple[float, ...]:
    errors = [forecast_error(floor, held[:, None, :KNOWN], held, known=KNOWN)]
    if groups is not None:
        others = companions(groups, torch.arange(len(held)))
        mine = torch.nonzero(others >= 0)[:, 0]
        if len(mine):
            windows = held[others[mine]].unfold(1, KNOWN, KNOWN).movedim(-1, 2)
            errors.append(forecast_error(floor, windows, held[mine], own=False))
    return tuple(errors)
