"""An equation that is found in the training data, solved with each trajectory's own coefficients.

    u_t = sum_j c_j F_j(u) + s(x)

The terms F_j are those of a library (`terms`) that the training data need (`equation_search`). The coefficients of a
trajectory are found by Gauss-Newton steps on forecasts of the frames that are known, held by their distribution over
the training trajectories (empirical Bayes). Where these frames stay worse than those of training they are held less,
and linear terms that training never needed are tried; what is still unexplained counts as errors of the frames. What is
left of their uncertainty is what members draw. The steady source s is what all forecasts of a trajectory lack alike.

After Brunton, Proctor and Kutz (2016), PNAS 113, 3932-3937, and Rudy et al. (2017), Science Advances 3, e1602614, with
forecasts in place of derivatives.

Legend: B trajectories, W windows, T frames, c channels, J active terms and others, N frames that are forecast, P terms;
`*x` space.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from .deadline import check_time
from .exponential import Divided, FinerPropagator, Frames, Propagator, gains
from .gauss_newton import DIFFERENCE, EXACT, LEAST, ROUNDING, Fit, Residuals, cost, fit, left, slopes
from .ladder import FloorModule, Inferred, evenly, widening
from .lattice import LatticePropagator
from .terms import Terms

# Most channels of fields, as terms grow with their cube, and fewest points of an axis.
MOST_CHANNELS, LEAST_POINTS = 3, 8
# Steps of a frame before any are chosen, and Gauss-Newton steps.
_STEPS_PER_FRAME, _STEPS = 4, 20
# Turns of a fit of coefficients and of the source, and of a source alone.
_SOURCE_TURNS = 3
# A trajectory is held less while its cost, its misfit and what holds its coefficients, is so many times the misfit of
# most, and so much, by such a factor and so many times.
_DOUBTED, _SURE, _LOOSER, _TURNS = 4.0, 1e-7, 1e-4, 2
# What a fit with more terms, or on a finer grid, has to take the cost to, and deviation of these terms as a share.
_MUCH_BETTER, _BETTER, _UNSURE = 0.5, 0.8, 0.1
# What a step with more terms has to promise before they are fitted, where more than so much is left unexplained. A
# smaller misfit lies in a valley, of which a step says little.
_PROMISING, _UNCLEAR = 0.9, 0.2
# Share of the misfit of training data that is noise, to which power the misfit of a trajectory multiplies it, at least,
# and as how many times that of most it counts at most.
NOISE, _POWER, _MUCH = 0.1, 0.5, 8.0
# Share of the misfit of frames with errors that is noise, by how far coefficients then are from the truth, and share
# of it to which another fit has to take it.
_ERRORS, _FAR_BETTER = 0.03, 0.1
# Most pairs of frames that coefficients are inferred from, more hardly tell more, and the share of the greatest change,
# squared, from which on a pair tells much.
PAIRS, _TELLING = 4, 0.01
# Training trajectories with whose coefficients the search for those of another may begin.
_STARTS = 8
# Residuals beyond this are lost.
LOST = 1e3


@dataclass(frozen=True, eq=False)
class Equations(Inferred):
    """What was inferred from the windows of trajectories.

    Attributes
    ----------
    coefficients : [B, P] in units of the terms, 0 where a term is not active
    root : [B, J, J] a root of the covariance of active terms and, after these, other linear ones
    misfit : [B] share of the mean square of a frame's change that the equation leaves unexplained
    source : [B, c, *K] waves that a steady source adds in a frame, complex; [B, 0] where there is none
    moves : [B, J, c, *K] how it moves with the coefficients of `root`; [B, 0] too
    finer : [B] whether it is solved on half as many points again along each axis
    """

    coefficients: Tensor
    root: Tensor
    misfit: Tensor
    source: Tensor
    moves: Tensor
    finer: Tensor


class EquationSolver(FloorModule):
    """The equation of fields `[*x, c]` on a grid that is periodic along each axis, which `equation_search` finds."""

    active: Tensor
    lattice: Tensor
    forced: Tensor
    steps: Tensor
    unit: Tensor
    change: Tensor
    mean: Tensor
    covariance: Tensor
    starts: Tensor
    growth: Tensor
    noise: Tensor
    usual: Tensor
    most: Tensor
    inflation: Tensor
    power: Tensor
    zero: Tensor
    reads, moves, local, inferences = 1, True, True, 320

    def __init__(self, grid: Sequence[int], channels: int, *, zero: Sequence[float] | None = None) -> None:
        super().__init__()
        self.grid, self.channels = tuple(grid), channels
        self._libraries = tuple(Terms(grid, channels, lattice=lattice) for lattice in (False, True))
        names = self._libraries[0].names
        active = torch.zeros(len(names), dtype=torch.bool)
        for c in range(channels):
            active[[names.index((c, f"lap u{c}")), names.index((c, f"u{c} d0 u{c}"))]] = True
        self.register_buffer("active", active)
        self.register_buffer("lattice", torch.tensor(False))
        # Whether each trajectory has a steady source.
        self.register_buffer("forced", torch.tensor(False))
        # Of the solver, for a frame.
        self.register_buffer("steps", torch.tensor(_STEPS_PER_FRAME))
        # Size of the fields of a term with a coefficient of 1, in units of a frame's change.
        self.register_buffer("unit", torch.ones(len(names), dtype=torch.float64))
        self.register_buffer("change", torch.ones(channels, dtype=torch.float64))
        self.register_buffer("mean", torch.zeros(len(names), dtype=torch.float64))
        self.register_buffer("covariance", torch.eye(len(names), dtype=torch.float64))
        # Coefficients of some training trajectories, from which those of others are searched for.
        self.register_buffer("starts", torch.zeros(_STARTS, len(names), dtype=torch.float64))
        # Most that a wave of each channel grows in a frame, as a logarithm.
        self.register_buffer("growth", torch.full((channels,), 2.0, dtype=torch.float64))
        self.register_buffer("noise", torch.tensor(1e-6, dtype=torch.float64))
        # What is 0 to the terms: that of physical units, for which equations are simple.
        self.register_buffer("zero", torch.zeros(channels) if zero is None else torch.tensor(zero))
        # Usual misfit, and that of most; by how much draws spread more than the noise says, and to which power of the
        # misfit: of own frames, and of another trajectory's.
        self.register_buffer("usual", torch.full((2,), ROUNDING, dtype=torch.float64))
        self.register_buffer("most", torch.full((2,), math.inf, dtype=torch.float64))
        self.register_buffer("inflation", torch.ones(2, dtype=torch.float64))
        self.register_buffer("power", torch.zeros(2, dtype=torch.float64))

    @property
    def terms(self) -> Terms:
        """All terms, with the sort of derivatives that the data have."""
        return self._libraries[int(self.lattice)]

    @cached_property
    def _finer(self) -> Terms:
        """All terms on the grid on which products are taken."""
        grid = self._libraries[0].finer_grid
        spacings = [n / m for n, m in zip(self.grid, grid, strict=True)]
        return Terms(grid, self.channels, lattice=False, spacings=spacings)

    @property
    def counted(self) -> Tensor:
        """The noise of data that a fit counts at least: more than there is where frames are nearly exact."""
        return self.noise.clamp_min(NOISE * EXACT)

    @property
    def chosen(self) -> list[int]:
        """Active terms."""
        places: list[int] = torch.nonzero(self.active)[:, 0].tolist()
        return places

    @property
    def able(self) -> list[int]:
        """Active terms, then the other linear ones."""
        chosen = self.chosen
        return chosen + [j for j in range(self.terms.num_linear) if j not in chosen]

    @torch.no_grad()
    def infer(self, windows: Tensor, *, own: bool = True) -> Equations:
        """What windows `[B, W, T, *x, c]` of at least two frames tell.

        `own` says that they belong to the trajectory that is forecast, not to another one of the same physics.
        """
        pairs, task, active, able = self.pairs(windows), 0 if own else 1, self.chosen, self.able
        doubted = (_DOUBTED * self.most[task]).clamp_min(_SURE)
        prior = torch.linalg.inv(self.covariance[active][:, active])
        held, mean = self.counted * prior, self.mean[None]
        start = self._start(pairs)
        solution, source = self.fitted(pairs, start, active, held, mean, steps=_STEPS)
        fitted, misfit = solution.coefficients, solution.misfit
        root = prior.new_zeros(len(pairs), len(able), len(able))
        root[:, : len(active), : len(active)] = self._root(solution, active, prior, task)

        finer = torch.zeros(len(pairs), dtype=torch.bool, device=pairs.device)

        # Of the fits with all terms, where they were asked for.
        curvature, slope, known = torch.zeros_like(root), torch.zeros_like(root[..., 0]), torch.zeros_like(finer)

        def promises(rows: Tensor, terms: list[int], held_less: Tensor) -> Tensor:
            unclear = misfit[rows] >= _UNCLEAR
            if len(new := rows[unclear & ~known[rows]]):
                residuals, everyone = self.residuals(pairs[new], source[new]), torch.arange(len(new))
                off = residuals(everyone, fitted[new])
                curvature[new], slope[new] = slopes(residuals, everyone, fitted[new], off, able)
                known[new] = True
            places = [able.index(j) for j in terms]
            now = Fit(fitted[rows], misfit[rows], curvature[rows][:, places][..., places])
            then = left(now, slope[rows][:, places], (fitted[rows] - mean)[:, terms], held_less)
            return ~unclear | (then < _PROMISING * cost(misfit[rows], fitted[rows], active, held, mean))

        def again(rows: Tensor, start: Tensor, others: list[int], looser: float, *, on_finer: bool = False) -> None:
            """Fit rows with other terms too, held less, or on the finer grid, and keep what is better."""
            terms = active + others
            wider = (looser * self.counted * torch.eye(len(terms))).to(held)
            wider[: len(active), : len(active)] = looser * held
            if not on_finer:
                kept = promises(rows, terms, wider)
                rows, start = rows[kept], start[kept]
            if not len(rows):
                return
            solution, own_source = self.fitted(pairs[rows], start, terms, wider, mean, steps=_STEPS, finer=on_finer)
            before = cost(misfit[rows], fitted[rows], active, held, mean)
            least = (_BETTER if on_finer else _MUCH_BETTER) * before
            better = cost(solution.misfit, solution.coefficients, active, held, mean) < least
            to, places = rows[better], torch.tensor([able.index(j) for j in terms])
            fitted[to], misfit[to], root[to] = solution.coefficients[better], solution.misfit[better], 0.0
            source[to], finer[to], known[to] = own_source[better], on_finer, False
            root[to[:, None, None], places[:, None], places] = self._root(solution, terms, prior, task)[better]

        def in_doubt() -> Tensor:
            # What a finer grid leaves is of waves that frames do not hold.
            return torch.nonzero((cost(misfit, fitted, active, held, mean) > doubted) & ~finer)[:, 0]

        if len(rows := in_doubt()) and not self.lattice and not self.forced:
            again(rows, fitted[rows], [], 1.0, on_finer=True)
        if len(rows := in_doubt()):
            # One more term explains most of what is new; all of them would fit anything.
            again(rows, start[rows], [], _LOOSER)
            for j in able[len(active) :]:
                again(rows, start[rows], [j], 1.0)
        looser = 1.0
        for _ in range(_TURNS):
            if not len(rows := in_doubt()):
                break
            looser *= _LOOSER
            again(rows, fitted[rows], able[len(active) :], looser)
        for row in torch.nonzero((misfit > doubted) & ~finer)[:, 0].tolist():
            # Frames have errors, unless what training data say of coefficients leaves far more unexplained.
            one, noise = slice(row, row + 1), _ERRORS * misfit[row]
            solution, own_source = self.fitted(pairs[one], start[one], active, noise * prior, mean, steps=_STEPS)
            if misfit[row] < _FAR_BETTER * solution.misfit:
                continue
            fitted[one], misfit[one], source[one], root[one] = solution.coefficients, solution.misfit, own_source, 0.0
            # All floors draw more where misfits are large, which the noise has counted.
            more = widening((misfit[row] / self.usual[task].clamp_min(ROUNDING)).sqrt())
            root[one, : len(active), : len(active)] = self._covering(solution, active, prior, noise, noise) / more
        return Equations(fitted, root, misfit, source, self._moves(pairs, fitted, source), finer)

    def _start(self, pairs: Tensor) -> Tensor:
        """The mean coefficients, or those of a training trajectory that forecast `pairs [B, N, 2, c, *K]` better."""
        residuals, count = self.residuals(pairs), len(pairs)
        rows = torch.arange(count, device=self.mean.device)
        best, least = self.mean.repeat(count, 1), torch.full((count,), math.inf).to(self.mean)
        for start in (self.mean, *self.starts):
            misfit = residuals(rows, start.expand_as(best)).square().mean(1)
            better = misfit < least
            best[better], least[better] = start, misfit[better]
        return best

    def _root(self, solution: Fit, terms: Sequence[int], prior: Tensor, task: int) -> Tensor:
        """A root `[B, J, J]` of the covariance of the fit of these terms, the active ones first.

        Beside the data it counts the `prior` precision of active terms, and for the others a deviation of a tenth.
        """
        usual = self.usual[task].clamp_min(ROUNDING)
        counts = solution.misfit.clamp(usual, _MUCH * self.most[task].clamp_min(usual)) / usual
        # Draws spread more than the noise says, but no more than what is known of the terms.
        more = self.inflation[task] * counts ** self.power[task]
        noise = (self.noise * (solution.misfit.clamp_min(ROUNDING) / usual) ** _POWER * more**2)[:, None, None]
        return self._covering(solution, terms, prior, noise, torch.maximum(noise, self.counted))

    @staticmethod
    def _covering(fit: Fit, terms: Sequence[int], prior: Tensor, noise: Tensor, counted: Tensor) -> Tensor:
        """A root of the covariance of a fit that counts as much noise, `[B, 1, 1]`, as there is, or more."""
        held = torch.diag_embed(1 / (_UNSURE * fit.coefficients[:, list(terms)]).square().clamp_min(EXACT))
        held[:, : len(prior), : len(prior)] = prior
        data = fit.curvature / counted
        off = data * (noise / counted) + held
        off.diagonal(dim1=-2, dim2=-1).mul_(1 + LEAST)
        return torch.linalg.solve(data + held, torch.linalg.cholesky(off))

    def step(self, past: Tensor, state: Equations) -> Tensor:
        """The frame after `past [B, P, *x, c]`, of which the last is read; that frame again where it would be lost."""
        last = past[:, -1]
        fields = last.to(torch.promote_types(last.dtype, torch.float32))
        dtype = torch.complex128 if fields.dtype == torch.float64 else torch.complex64
        forecast = self.frame(self.flow(state, dtype)(self.waves(fields)))
        lost = ~forecast.isfinite().flatten(1).all(1)
        return torch.where(lost.view(-1, *[1] * (forecast.ndim - 1)), fields, forecast).to(last.dtype)

    @property
    def num_features(self) -> int:
        """Numbers F of :meth:`features`."""
        return len(self.mean) + 1

    def features(self, state: Equations, windows: Tensor) -> Tensor:
        """Numbers `[B, F]` of about unit size for a network: coefficients, and the logarithm of the misfit."""
        del windows
        spread = self.covariance.diagonal().sqrt()
        away = torch.where(self.active, (state.coefficients - self.mean) / spread, 0).clamp(-4, 4)
        return torch.cat([away, state.misfit[:, None].clamp_min(EXACT).log() / 4 + 1], 1).float()

    @property
    def num_draws(self) -> int:
        """Standard normals of a draw."""
        return len(self.able)

    def draw(self, state: Equations, normals: Tensor) -> Equations:
        """Coefficients from their posterior, one set for each trajectory, by standard normals `[B, num_draws]`."""
        moved, source = state.coefficients.clone(), state.source
        more = (state.root @ normals.to(state.root)[..., None])[..., 0]
        moved[:, self.able] += more
        if self.forced:
            source = source + (state.moves * more.to(source.dtype).view(*more.shape, *[1] * (source.ndim - 1))).sum(1)
        return replace(state, coefficients=moved, source=source)

    def flow(self, state: Equations, dtype: torch.dtype) -> Frames:
        """From waves `[B, c, *K]` to those a frame later."""

        def part(finer: bool, rows: Tensor) -> Frames:
            return self.propagator(state.coefficients[rows], dtype, state.source[rows], finer=finer)

        return Divided.of(state.finer, part)

    def propagator(self, coefficients: Tensor, dtype: torch.dtype, source: Tensor, *, finer: bool = False) -> Frames:
        """The solver for coefficients `[B, P]` in units of the terms, and sources; there are none on the finer grid."""
        own, steps = coefficients / self.unit, int(self.steps)
        if finer:
            return FinerPropagator(self.terms, Propagator.of(self._finer, own, 2 * steps, dtype, self.growth))
        if self.forced:
            return Propagator.of(self.terms, own, steps, dtype, self.growth, source)
        return LatticePropagator.of(self.terms, own, steps, dtype, self.growth)

    def pairs(self, windows: Tensor) -> Tensor:
        """Waves `[B, N, 2, c, *K]` of a few of the successive frames of windows `[B, W, T, *x, c]`."""
        pairs = _pairs_of(windows).float()
        return self.waves(pairs.flatten(0, 2)).unflatten(0, pairs.shape[:3])

    def waves(self, fields: Tensor) -> Tensor:
        """Waves `[B, c, *K]` of fields `[B, *x, c]`, less what is 0 to the terms."""
        return self.terms.transform(fields - self.zero)

    def frame(self, waves: Tensor) -> Tensor:
        """The fields `[B, *x, c]` of waves."""
        return self.terms.fields(waves) + self.zero

    def fitted(
        self,
        pairs: Tensor,
        start: Tensor,
        active: Sequence[int],
        held: Tensor,
        mean: Tensor,
        *,
        steps: int,
        finer: bool = False,
    ) -> tuple[Fit, Tensor]:
        """A fit of coefficients to `pairs [B, N, 2, c, *K]`, and the sources with these."""
        source = self.source(pairs, start)
        solution = fit(self.residuals(pairs, source, finer=finer), start, active, held, mean, steps=steps)
        if self.forced:
            for _ in range(_SOURCE_TURNS):
                source = self.source(pairs, solution.coefficients, source, turns=1)
                residuals = self.residuals(pairs, source)
                solution = fit(residuals, solution.coefficients, active, held, mean, steps=steps)
        return solution, source

    def source(
        self, pairs: Tensor, coefficients: Tensor, start: Tensor | None = None, *, turns: int = _SOURCE_TURNS
    ) -> Tensor:
        """The steady source of each of `pairs [B, N, 2, c, *K]`, waves `[B, c, *K]`; `[B, 0]` where there is none."""
        if not self.forced:
            return pairs.new_zeros(len(pairs), 0)
        N, values = pairs.shape[1], self.channels * math.prod(self.grid)
        lacking = self._lacking(pairs)
        gain = gains(self.terms, coefficients / self.unit, self.growth)
        source = torch.zeros_like(gain, dtype=torch.complex64) if start is None else start
        for _ in range(turns):
            lacks = lacking(torch.arange(len(pairs)), coefficients, source).unflatten(0, (-1, N))
            usable = lacks.abs().flatten(1).amax(1) < LOST * values
            more = (lacks.to(gain.dtype).mean(1) / gain).to(source.dtype)
            source = source + torch.where(usable.view(-1, *[1] * (gain.ndim - 1)), more, 0)
        return source

    def _moves(self, pairs: Tensor, coefficients: Tensor, source: Tensor) -> Tensor:
        """How sources move with each coefficient that a member draws, `[B, J, c, *K]`."""
        if not self.forced:
            return source
        here, columns = self.source(pairs, coefficients, source, turns=1), []
        for j in self.able:
            moved = coefficients.clone()
            moved[:, j] += DIFFERENCE
            columns.append((self.source(pairs, moved, source, turns=1) - here) / DIFFERENCE)
        return torch.stack(columns, 1)

    def residuals(
        self, pairs: Tensor, source: Tensor | None = None, *, sharing: int | None = None, finer: bool = False
    ) -> Residuals:
        """What forecasts of the later frames of `pairs [B, N, 2, c, *K]` lack, in units of a frame's change.

        Where there are sources, what so many successive pairs lack alike is theirs, and left out.
        """
        N = pairs.shape[1]
        source = self.source(pairs, self.mean.expand(len(pairs), -1), turns=0) if source is None else source
        lacking = self._lacking(pairs, finer=finer)

        def off(rows: Tensor, coefficients: Tensor) -> Tensor:
            check_time()
            lacks = self.terms.fields(self.terms.long(lacking(rows, coefficients, source[rows]))) / self.change
            lacks = lacks.double().nan_to_num(LOST, LOST, -LOST).clamp(-LOST, LOST)
            if self.forced:
                count = sharing or N
                each = lacks.unflatten(0, (-1, count))
                # As large as without the mean that is left out.
                own = (each - each.mean(1, keepdim=True)) * math.sqrt(count / max(count - 1, 1))
                lacks = torch.where(each.abs() < LOST, own, LOST).flatten(0, 1)
            return lacks.unflatten(0, (-1, N)).flatten(1)

        return off

    def _lacking(self, pairs: Tensor, *, finer: bool = False) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        """From rows `[b]`, their coefficients and sources to waves `[b N, c, *K]` that forecasts of pairs lack."""
        before, after = pairs.unbind(2)

        def lacking(rows: Tensor, coefficients: Tensor, source: Tensor) -> Tensor:
            propagator = self.propagator(coefficients, torch.complex64, source, finer=finer)
            return after[rows].flatten(0, 1) - propagator.repeated(pairs.shape[1])(before[rows].flatten(0, 1))

        return lacking


def _pairs_of(windows: Tensor) -> Tensor:
    """Successive frames `[B, N, 2, *x, c]` of windows `[B, W, T, *x, c]`: a few of those between which most changes."""
    pairs = torch.stack([windows[:, :, :-1].flatten(1, 2), windows[:, :, 1:].flatten(1, 2)], 2)
    change = (pairs[:, :, 1] - pairs[:, :, 0]).double().square().flatten(2).sum(2)
    return torch.stack([own[_telling(of_own)] for own, of_own in zip(pairs, change, strict=True)])


def _telling(change: Tensor) -> Tensor:
    """Some of the pairs that have a share of the greatest change `[n]`, evenly spread, or those with the greatest."""
    telling = torch.nonzero(change >= _TELLING * change.max())[:, 0]
    if len(telling) >= PAIRS:
        return telling[evenly(len(telling), PAIRS)]
    return change.argsort(descending=True, stable=True)[:PAIRS].sort().values
