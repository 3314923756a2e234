"""The search for the equation of training data: its terms, and the distribution of their coefficients.

Least squares on Simpson's rule over three frames finds terms where frames change smoothly. Where they are too far apart
for it Gauss-Newton steps on forecasts of a frame begin with all terms. Then terms are left out that no trajectory
misses.

Legend: B trajectories, T frames, c channels, J active terms, N frames that are forecast, P terms; `*x` space.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .equation import LOST, NOISE, PAIRS, Equations, EquationSolver
from .gauss_newton import EXACT, ROUNDING, TINY, Fit, fit, missed, score
from .ladder import evenly, widening
from .lattice import fast_steps
from .spectral import companions

# Trajectories that terms are chosen on, and for the distribution of coefficients.
_CHOOSING, _LEARNING = 12, 96
# About how many values of fields are forecast at a time while terms are chosen, and fewest trajectories for it.
_VALUES, _FEWEST = 60_000, 4
# Most terms of a library that are all fitted by forecasts, diffusion to begin with, and Gauss-Newton steps.
_MOST_TERMS, _DIFFUSION, _STEPS, _FIRST_STEPS = 24, 0.1, 6, 12
# Steps of the solver for a frame while terms are chosen, at least and at most.
_FIRST, _LEAST, _MOST = 4, 2, 32
# By which share of the misfit twice as many may change forecasts, beside a share of a frame's change, squared, and how
# many of the forecasts.
_FINE_ENOUGH, _CLOSE, _MOST_PAIRS = 0.05, 1e-9, 0.9
# How much a term is missed that is left out, and how much more by least squares, as mean logarithms of the misfit.
_MISSED, _SURELY = 0.05, 0.1
# And a steady source.
_SOURCE = 1.0
# Mean logarithms of misfits that are small enough not to try other derivatives, which is about the least, and not to
# try all terms.
_RIGHT, _NEAR = math.log(1.2e-7), math.log(1e-4)
# How much the mean holds the coefficients of single trajectories, and of least squares.
_HELD, _RIDGE = 1e-6, 1e-9
# Misfit of trajectories whose coefficients count, and by which share of their mean they vary at least.
_GOOD, _LEAST_SPREAD = 0.1, 1e-3
# Draws to measure their spread, windows of another trajectory, and how many times any data forecasts are at most.
_DRAWS, _WINDOWS, _LOST = 4, 4, 10.0
# No wave grows faster than so many times the fastest one of the training data.
_GROWING = 1.1
# Bounds of the ratio of error and spread, and of the power of the misfit with which it grows; logarithms of misfits are
# that much apart where the power says something.
_INFLATION, _POWERS, _SAME = (1e-3, 1e3), (-0.5, 1.5), 0.5


@dataclass(frozen=True, eq=False)
class _Start:
    """Where Gauss-Newton steps begin: mean coefficients `[1, P]`, active terms, and how well these fit."""

    lattice: bool
    coefficients: Tensor
    active: list[int]
    score: float


class EquationFloor(EquationSolver):
    """A floor that finds the equation of its training data."""

    @torch.no_grad()
    def learn(self, fields: Tensor, *, environments: Tensor | None = None) -> None:
        """Find terms, and the distribution of their coefficients over training trajectories `[B, T, *x, c]`."""
        with fast_steps():
            find(self, fields)
            describe(self, fields, environments)


def find(floor: EquationSolver, fields: Tensor) -> None:
    """Find the terms of training trajectories `[B, T, *x, c]`."""
    rows = evenly(len(fields), max(_FEWEST, min(_CHOOSING, _VALUES // (PAIRS * fields[0, 0].numel()))))
    few = fields[rows].double()
    floor.change.copy_((few[:, 1:] - few[:, :-1]).square().mean(tuple(range(few.ndim - 1))).sqrt().clamp_min(TINY))
    best, buffers = math.inf, dict(floor.named_buffers())
    for forced in (False, True) if few.shape[1] > PAIRS else (False,):
        if best < _NEAR:
            break
        floor.forced.fill_(forced)
        for start in _starts(floor, few):
            if best < (_NEAR if start.score == math.inf else _RIGHT):
                break
            _use(floor, few, start.lattice)
            reached = _select(floor, few, start, best)
            if reached < best - (_SOURCE if forced and not buffers["forced"] else _MISSED):
                best, buffers = reached, {name: buffer.clone() for name, buffer in floor.named_buffers()}
    for name, buffer in buffers.items():
        getattr(floor, name).copy_(buffer)


def _starts(floor: EquationSolver, fields: Tensor) -> list[_Start]:
    """Where to begin for fields `[B, T, *x, c]`, the best first."""
    starts = sorted((_by_quadrature(floor, fields, lattice) for lattice in (False, True)), key=lambda s: s.score)
    # Where there may be sources too, this would take the longest by far.
    if floor.terms.num <= _MOST_TERMS and not floor.forced:
        starts += [_by_forecasts(floor, fields, lattice) for lattice in (False, True)]
    return starts


def _use(floor: EquationSolver, fields: Tensor, lattice: bool) -> None:
    """Take derivatives of this sort, and measure the terms of fields `[B, T, *x, c]`."""
    floor.lattice.fill_(lattice)
    values = floor.terms.values(fields.flatten(0, 1) - floor.zero).flatten(1).square().mean(1).sqrt()
    floor.unit.copy_((values / floor.change[_targets(floor)]).clamp_min(EXACT))


def _targets(floor: EquationSolver) -> Tensor:
    """The channel `[P]` whose change each term is of."""
    return torch.tensor([c for c, _ in floor.terms.names])


def _by_quadrature(floor: EquationSolver, fields: Tensor, lattice: bool) -> _Start:
    """Least squares on Simpson's rule over three frames of `[B, T, *x, c]`, where these change smoothly."""
    _use(floor, fields, lattice)
    B, T = fields.shape[:2]
    targets = _targets(floor)
    size = (floor.unit * floor.change[targets]).view(-1, *[1] * (fields.ndim - 1))
    values = floor.terms.values(fields.flatten(0, 1) - floor.zero).unflatten(1, (B, T)) / size
    rise = (fields[:, 2:] - fields[:, :-2]) / floor.change
    bend = (fields[:, 2:] - 2 * fields[:, 1:-1] + fields[:, :-2]) / floor.change
    curved = bend.flatten(2).square().sum(2) / rise.flatten(2).square().sum(2).clamp_min(TINY)
    # The smoother half of each trajectory.
    smooth = torch.arange(B)[:, None], curved.argsort(1)[:, : (T - 1) // 2]
    coefficients, active, total = fields.new_zeros(1, len(targets)), [], 0.0
    for channel in range(floor.channels):
        own = torch.nonzero(targets == channel)[:, 0]
        sums = (values[own][:, :, :-2] + 4 * values[own][:, :, 1:-1] + values[own][:, :, 2:]) / 3
        columns, target = torch.stack([each[smooth] for each in sums], -1), rise[..., channel][smooth]
        if floor.forced:
            columns, target = columns - columns.mean(1, keepdim=True), target - target.mean(1, keepdim=True)
        kept, mean, left = _least_squares(columns.flatten(1, -2), target.flatten(1))
        coefficients[0, own[kept]] = mean
        active += own[kept].tolist()
        total += score(left)
    return _Start(lattice, coefficients, sorted(active), total)


def _least_squares(columns: Tensor, target: Tensor) -> tuple[list[int], Tensor, Tensor]:
    """Columns of `[B, n, Q]` that `target [B, n]` needs, their median coefficients, and the misfit `[B]` with them."""
    n = target.shape[1]
    gram, product = columns.mT @ columns / n, (columns.mT @ target[..., None])[..., 0] / n
    square, kept = target.square().mean(1), list(range(columns.shape[2]))
    while True:
        own = gram[:, kept][:, :, kept] + _RIDGE * torch.eye(len(kept)).to(gram)
        x = torch.linalg.solve(own, product[:, kept])
        left = (square - (x * product[:, kept]).sum(1)).clamp_min(EXACT)
        rise = missed(x, own, left)
        if len(kept) == 1 or float(rise.min()) > _SURELY:
            return kept, x.median(0).values, left
        kept.pop(int(rise.argmin()))


def _by_forecasts(floor: EquationSolver, fields: Tensor, lattice: bool) -> _Start:
    """All terms, and diffusion to begin with."""
    _use(floor, fields, lattice)
    start = fields.new_zeros(1, floor.terms.num)
    for j, (c, name) in enumerate(floor.terms.names):
        if name == f"lap u{c}":
            start[0, j] = _DIFFUSION * floor.unit[j]
    return _Start(lattice, start, list(range(floor.terms.num)), math.inf)


def _select(floor: EquationSolver, fields: Tensor, start: _Start, best: float) -> float:
    """Choose among the terms of a start for `fields [B, T, *x, c]`; the mean logarithm of the misfit.

    None is left out where they are not better than the best.
    """
    active, pairs = start.active, floor.pairs(fields[:, None])
    together = pairs.flatten(0, 1)[None]
    floor.steps.fill_(_FIRST)
    while int(floor.steps) < _MOST and float(_off(floor, together, start.coefficients).abs().max()) >= LOST:
        floor.steps.mul_(2)
    none = torch.zeros(len(active), len(active), dtype=torch.float64)
    residuals = floor.residuals(together, sharing=pairs.shape[1])
    first_fit = fit(residuals, start.coefficients, active, none, start.coefficients, steps=_FIRST_STEPS)
    mean, of_mean = first_fit.coefficients, first_fit.curvature
    solution = _each(floor, pairs, mean.repeat(len(pairs), 1), mean, active, of_mean)
    _refine(floor, pairs, solution.coefficients)
    solution = _each(floor, pairs, solution.coefficients, mean, active, solution.curvature)
    while len(active) > 1 and score(solution.misfit) < best:
        fewer = _fewer(floor, pairs, solution, active)
        if fewer is None:
            break
        solution, active = fewer
    floor.steps.fill_(_LEAST)
    _refine(floor, pairs, solution.coefficients)
    floor.active.zero_()[active] = True
    floor.mean.copy_(solution.coefficients.mean(0))
    return score(solution.misfit)


def _fewer(floor: EquationSolver, pairs: Tensor, solution: Fit, active: list[int]) -> tuple[Fit, list[int]] | None:
    """A fit without the terms that are missed least; none where all are missed."""
    rise = missed(solution.coefficients[:, active], solution.curvature, solution.misfit)
    order = rise.argsort()
    count = max(1, min(int((rise[order].cumsum(0) < _MISSED).sum()), len(active) // 3))
    while True:
        gone = order[:count].tolist()
        places = [i for i in range(len(active)) if i not in gone]
        rest = [active[i] for i in places]
        start = torch.zeros_like(solution.coefficients)
        start[:, rest] = solution.coefficients[:, rest]
        curvature = solution.curvature[:, places][:, :, places]
        smaller = _each(floor, pairs, start, start.mean(0, keepdim=True), rest, curvature)
        if score(smaller.misfit) - score(solution.misfit) < _MISSED:
            return smaller, rest
        if count == 1:
            return None
        count = max(1, count // 3)


def _each(
    floor: EquationSolver, pairs: Tensor, start: Tensor, mean: Tensor, active: list[int], curvature: Tensor
) -> Fit:
    """Fit each trajectory alone, held a little by the mean `[1, P]` in units of the mean curvature."""
    held = _HELD * torch.diag(curvature.diagonal(dim1=-2, dim2=-1).mean(0) + TINY)
    return floor.fitted(pairs, start, active, held, mean, steps=_STEPS)[0]


def _refine(floor: EquationSolver, pairs: Tensor, coefficients: Tensor) -> None:
    """As many steps of a frame as forecasts of `pairs [B, N, 2, c, *K]` need."""
    while int(floor.steps) < _MOST:
        coarse = _off(floor, pairs, coefficients)
        floor.steps.mul_(2)
        moved = (_off(floor, pairs, coefficients) - coarse).square().unflatten(1, (pairs.shape[1], -1)).mean(2)
        off = coarse.square().unflatten(1, (pairs.shape[1], -1)).mean(2)
        if (moved < _FINE_ENOUGH * off + _CLOSE).double().mean() >= _MOST_PAIRS:
            floor.steps.div_(2, rounding_mode="floor")
            return


def _off(floor: EquationSolver, pairs: Tensor, coefficients: Tensor) -> Tensor:
    return floor.residuals(pairs, floor.source(pairs, coefficients))(torch.arange(len(pairs)), coefficients)


def describe(floor: EquationSolver, fields: Tensor, environments: Tensor | None) -> None:
    """Measure the distribution of the coefficients over trajectories `[B, T, *x, c]`, misfits and draws."""
    most = 4 * _VALUES // (PAIRS * fields[0, 0].numel())
    rows, tested = _halves(len(fields), max(2 * _FEWEST, min(_LEARNING, most)))
    pairs, active, mean = floor.pairs(fields[rows, None]), floor.chosen, floor.mean[None].clone()
    none = torch.zeros(len(active), len(active), dtype=torch.float64)
    first_fit = fit(floor.residuals(pairs[:2]), mean.expand(len(pairs[:2]), -1), active, none, mean, steps=1)
    solution = _each(floor, pairs, mean.repeat(len(rows), 1), mean, active, first_fit.curvature)
    misfit = solution.misfit
    good = solution.coefficients[misfit <= torch.maximum(10 * misfit.median(), misfit.new_tensor(_GOOD))]
    floor.mean.copy_(good.mean(0))
    floor.starts.copy_(_far_apart(good / good.std(0).clamp_min(TINY), good, len(floor.starts)))
    floor.covariance.copy_(torch.eye(len(floor.mean)))
    least = (_LEAST_SPREAD * good.abs().mean(0)[active]).square()
    near = torch.cov(good[:, active].T).reshape(len(active), len(active)) if len(good) > 2 else 0
    floor.covariance[torch.tensor(active)[:, None], torch.tensor(active)] = near + torch.diag(least + EXACT)
    floor.noise.fill_(NOISE * float(misfit.median().clamp_min(ROUNDING)))
    rates = floor.terms.rates(good / floor.unit).real.flatten(2).amax(2).median(0).values
    floor.growth.copy_(_GROWING * rates.clamp_min(0))
    floor.most.fill_(math.inf)
    floor.usual.fill_(ROUNDING)
    floor.inflation.fill_(1.0)
    floor.power.fill_(0.0)
    _steady(floor, fields[evenly(len(fields), max(_FEWEST, _VALUES // fields[0, 0].numel()))])
    for task, (windows, frames) in enumerate(_tasks(fields, tested, environments)):
        # Noise depends on the usual misfit.
        misfit = floor.infer(windows, own=task == 0).misfit.clamp_min(ROUNDING)
        floor.usual[task:], floor.most[task:] = misfit.median(), misfit.quantile(0.9)
        floor.power[task:], floor.inflation[task:] = _widening(floor, frames, floor.infer(windows, own=task == 0), task)


def _steady(floor: EquationSolver, fields: Tensor) -> None:
    """As many steps of a frame as forecasts and draws of whole trajectories `[B, T, *x, c]` need to stay bounded."""
    most = _LOST * fields.abs().max()
    while int(floor.steps) < _MOST:
        state, generator = floor.infer(fields[:, None, :3]), torch.Generator().manual_seed(0)
        drawn = floor.draw(state, torch.randn(len(fields), floor.num_draws, generator=generator))
        if all(bool((_rolled(floor, fields[:, 2:], one).abs() < most).all()) for one in (state, drawn)):
            return
        floor.steps.mul_(2)


def _far_apart(places: Tensor, coefficients: Tensor, count: int) -> Tensor:
    """So many of coefficients `[B, P]`, each time that which is furthest from those that are taken; some repeatedly."""
    taken = [0]
    for _ in range(count - 1):
        taken.append(int(torch.cdist(places, places[taken]).amin(1).argmax()))
    return coefficients[taken]


def _tasks(fields: Tensor, rows: Tensor, environments: Tensor | None) -> list[tuple[Tensor, Tensor]]:
    """Windows and what is forecast of trajectories in these rows: of own frames, and of another trajectory's."""
    truth = fields[rows]
    tasks = [(truth[:, None, :3], truth[:, 2:])]
    others = torch.full_like(rows, -1) if environments is None else companions(environments, rows)
    if bool((others >= 0).any()):
        starts = evenly(fields.shape[1] - 2, _WINDOWS).tolist()
        windows = fields[others[others >= 0]]
        tasks.append((torch.stack([windows[:, t : t + 3] for t in starts], 1), truth[others >= 0]))
    return tasks


def _widening(floor: EquationSolver, frames: Tensor, state: Equations, task: int) -> tuple[float, float]:
    """To which power of the misfit, and by how much, draws spread more where that makes it their error.

    The error is that of forecasts of `frames [B, T, *x, c]` after the first.
    """
    generator = torch.Generator().manual_seed(0)
    mean = _rolled(floor, frames, state)
    error = (mean - frames[:, 1:]).square().flatten(1).mean(1)
    apart = torch.zeros_like(error)
    for _ in range(_DRAWS):
        drawn = floor.draw(state, torch.randn(len(frames), floor.num_draws, generator=generator))
        apart += (_rolled(floor, frames, drawn) - mean).square().flatten(1).mean(1) / _DRAWS
    ratio = (error.clamp_min(TINY) / apart.clamp_min(TINY)).log().double() / 2
    misfit = state.misfit.clamp_min(ROUNDING) / floor.usual[task]
    # A part is that of all floors.
    ratio, misfit = ratio - widening(misfit.sqrt()).log(), misfit.clamp_min(1).log()
    ratio, misfit = ratio[ratio.isfinite()], misfit[ratio.isfinite()]
    if not len(ratio):
        return 0.0, 1.0
    off = misfit - misfit.mean()
    slope = (off * ratio).sum() / (off.square().sum() + len(off) * _SAME**2)
    power = float(slope.clamp(*_POWERS))
    return power, float((ratio - power * misfit).median().exp().clamp(*_INFLATION))


def _rolled(floor: EquationSolver, frames: Tensor, state: Equations) -> Tensor:
    """Forecasts of all frames `[B, T, *x, c]` after the first."""
    flow = floor.flow(state, torch.complex64)
    waves, forecasts = floor.waves(frames[:, 0].float()), []
    for _ in range(frames.shape[1] - 1):
        waves = flow(waves)
        forecasts.append(floor.frame(waves))
    return torch.stack(forecasts, 1)


def _halves(length: int, count: int) -> tuple[Tensor, Tensor]:
    """Twice so many of the numbers below a length, evenly spread, where there are as many; else the same twice."""
    if length < 2 * count:
        return (evenly(length, count),) * 2
    both = evenly(length, 2 * count)
    return both[::2], both[1::2]
