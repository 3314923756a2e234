"""A linear propagator around periodic domains, in closed form from the frames that are observed.

Each wave k is multiplied by its own complex number in a step. Successive frames tell it by their cross-spectrum C and
spectrum S, where they have energy. Elsewhere a law holds it, a polynomial of the wave numbers,

    log m(k) = sum_a c_a (i k)^a,    |a| <= order
    M(k) = (C(k) + e m(k)) / (S(k) + e),    |M| <= 1

whose coefficients c are themselves held by their mean and covariance over the training trajectories (empirical
Bayes). Where the law fits frames worse than it does those of training, e is less. No equation is used: advection,
diffusion and dispersion are laws of first, second and third order. Frames of few waves may tell a displacement only up
to some of their lengths: members then have one of several laws.

Legend: B trajectories, W windows, T frames, c channels, K waves (flattened), J coefficients, M other laws;
`*x` space.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .ladder import FloorModule, Inferred

# Wave numbers are divided by this, so that coefficients of different orders have similar sizes.
_WAVE_UNIT = 8.0
# Most that a wave may decay in a step, as a logarithm, and grow while the law is fitted.
_DECAY, _GROWTH = 20.0, 0.05
_TINY = 1e-12
# Trajectories whose laws are fitted at a time hold about so many numbers.
_AT_ONCE = 1 << 24
# Share of energy below which a law counts as right.
_RIGHT = 1e-6
# Gauss-Newton steps of a law, least variance of a coefficient, and frames of a window for training.
_STEPS, _LEAST_VARIANCE, _WINDOW = 8, 1e-4, 3
# Noise of a step relative to the energy of a field, and how much laws hold multipliers: what `learn` chooses from.
_NOISES = (1e-8, 1e-6, 1e-5, 1e-4)
_HOLDS = (1e-4, 1e-2, 1.0, 1e2)
# Training trajectories that are forecast to choose.
_TRIALS, _DRAWS = 200, 4
# Lowest waves whose measured multipliers a network is told.
_LOWEST = 12
# Frames of the parts that long series are cut into.
_LONG = 20
# Most displacements that are tried for other laws, share of the greatest correlation that frames have there, how far
# they are apart at least in what a step gives, and share of energy that another wave has which tells them apart.
_OTHERS, _ALIKE, _APART, _TELLING = 4, 0.9, 1.0, 1e-7


@dataclass(frozen=True, eq=False)
class _Spectra(Inferred):
    """Cross-spectrum of successive frames, spectrum of the earlier and of the later ones, `[B, c, K]` each."""

    cross: Tensor
    power: Tensor
    after: Tensor


@dataclass(frozen=True, eq=False)
class Waves(Inferred):
    """What was inferred from the windows of trajectories.

    Attributes
    ----------
    law : [B, c, J] coefficients
    root : [B, c, J, J] a root of their posterior covariance, for noise of size 1
    multiplier : [B, c, K] complex, by which a step multiplies each wave
    lawful : [B, c, K] complex, the law's alone
    held : [B, c, K] share of the law in the multipliers
    spread : [B, c, K] standard deviation of the multipliers, given the law
    residual : [B, c] logarithm of the share of the energy of a step that the law leaves unexplained
    others : [B, c, M, J] coefficients of laws that are as right
    likely : [B, c, M] probability of the law and of the others before each of these; 1 if there are none
    """

    law: Tensor
    root: Tensor
    multiplier: Tensor
    lawful: Tensor
    held: Tensor
    spread: Tensor
    residual: Tensor
    others: Tensor
    likely: Tensor


class SpectralFloor(FloorModule):
    """The propagator of fields `[*x, c]` on a grid that is periodic along each axis.

    :meth:`learn` finds the distribution of the coefficients over training data; :meth:`infer` is then closed form.
    """

    mean: Tensor
    law_mean: Tensor
    law_covariance: Tensor
    noise: Tensor
    hold: Tensor
    inflation: Tensor
    typical: Tensor
    _basis: Tensor
    _count: Tensor
    _order: Tensor
    num_views, reads, moves, local, inferences = 2, 1, True, False, 400

    def __init__(self, grid: Sequence[int], channels: int, *, order: int = 3) -> None:
        super().__init__()
        self.grid, self.channels, self.order = tuple(grid), channels, order
        dims = len(self.grid)
        # Places of the correlation.
        self._fine = tuple(2 * n for n in self.grid) if dims == 1 else self.grid
        numbers = [torch.fft.fftfreq(n, 1 / n) for n in self.grid[:-1]]
        numbers.append(torch.fft.rfftfreq(self.grid[-1], 1 / self.grid[-1]))
        k_Kd = torch.stack(torch.meshgrid(*numbers, indexing="ij"), -1).reshape(-1, dims).double()
        powers = sorted((a for a in itertools.product(range(order + 1), repeat=dims) if sum(a) <= order), key=sum)
        real, imaginary = [], []
        for a in powers:
            value = (k_Kd / _WAVE_UNIT).pow(torch.tensor(a)).prod(-1) * (-1) ** (sum(a) // 2)
            real.append(torch.zeros_like(value) if sum(a) % 2 else value)
            imaginary.append(value if sum(a) % 2 else torch.zeros_like(value))
        J = len(powers)
        # Index of the coefficient that carries fields along each axis.
        self._first = [powers.index(tuple(int(i == axis) for i in range(dims))) for axis in range(dims)]
        count = torch.full((len(k_Kd),), 2.0, dtype=torch.float64)
        last = k_Kd[:, -1]
        count[(last == 0) | (2 * last == self.grid[-1])] = 1
        self.register_buffer("_basis", torch.stack([torch.stack(real, -1), torch.stack(imaginary, -1)]), False)
        self.register_buffer("_count", count, False)
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("law_mean", torch.zeros(channels, J, dtype=torch.float64))
        self.register_buffer("law_covariance", torch.eye(J, dtype=torch.float64).repeat(channels, 1, 1))
        self.register_buffer("noise", torch.tensor(1e-5, dtype=torch.float64))
        # How much the law holds the multipliers of a trajectory's own frames, and those of another's.
        self.register_buffer("hold", torch.tensor([1e-2, 1.0], dtype=torch.float64))
        # By how much draws spread more than the noise says, of own frames and of another trajectory's.
        self.register_buffer("inflation", torch.ones(2, dtype=torch.float64))
        # Share of the energy of a step that laws usually get wrong.
        self.register_buffer("typical", torch.full((2, channels), _RIGHT, dtype=torch.float64))
        self.register_buffer("_order", torch.argsort(k_Kd.square().sum(-1), stable=True), False)

    def infer(self, windows: Tensor, *, own: bool = True) -> Waves:
        """What windows `[B, W, T, *x, c]` of at least two frames tell.

        `own` says that they belong to the trajectory that is forecast, not to another one of the same physics.
        """
        spectra, task = self._spectra(windows), 0 if own else 1
        law, hessian = self._laws(spectra)
        # A law holds frames less that it fits worse than most of the training data.
        share = self.typical[task] / self._misfit(spectra, law).clamp_min(_RIGHT)
        hold = self.hold[task] * share.clamp(max=1).square()[..., None]
        waves = self._waves(spectra, law, hessian, hold, self.inflation[task])
        others, likely = self._others(spectra, law, hessian)
        return replace(waves, others=others, likely=likely)

    def step(self, past: Tensor, waves: Waves) -> Tensor:
        """The frame after `past [B, P, *x, c]`, of which the last is read."""
        return self._multiplied(past[:, -1], waves.multiplier)

    def views(self, past: Tensor, waves: Waves) -> Tensor:
        """The frame after `past`, by the multipliers and by their law: `[B, *x, c, 2]`."""
        return torch.stack([self._multiplied(past[:, -1], m) for m in (waves.multiplier, waves.lawful)], -1)

    @property
    def num_features(self) -> int:
        """Numbers F of :meth:`features`."""
        return self.channels * (self.law_mean.shape[1] + 1 + 4 * min(_LOWEST, len(self._count)))

    def features(self, waves: Waves, windows: Tensor) -> Tensor:
        """Numbers `[B, F]` of about unit size for a network: law, residual, and the lowest measured multipliers."""
        spread = self.law_covariance.diagonal(dim1=-2, dim2=-1).sqrt()
        law = ((waves.law - self.law_mean) / spread).clamp(-4, 4)
        spectra, near = self._spectra(windows), self._order[:_LOWEST]
        cross, power = spectra.cross[..., near], spectra.power[..., near]
        gain = cross / (power + 1e-3 * power.mean(-1, keepdim=True) + _TINY)
        share = power / (power.sum(-1, keepdim=True) + _TINY)
        parts = [law, waves.residual[..., None] / 4 + 1, gain.real, gain.imag, share, (power + 1e-6).log() / 4]
        return torch.cat(parts, -1).flatten(1).float()

    @property
    def num_draws(self) -> int:
        """Standard normals of a draw."""
        return self.channels * (self.law_mean.shape[1] + 2 * len(self._count) + 2)

    def draw(self, waves: Waves, normals: Tensor) -> Waves:
        """Coefficients from their posterior, one set for each trajectory, by standard normals `[B, num_draws]`."""
        J, K = self.law_mean.shape[1], len(self._count)
        for_law, real, imaginary, pick = normals.double().unflatten(1, (self.channels, -1)).split([J, K, K, 2], -1)
        # Evenly between 0 and 1, whatever multiplies normals; 0 where that is 0.
        even = torch.atan2(*pick.abs().unbind(-1)) * (2 / math.pi)
        which = (even[..., None] > waves.likely).sum(-1)[..., None, None].expand(-1, -1, 1, J)
        law = torch.cat([waves.law[:, :, None], waves.others], 2).gather(2, which)[:, :, 0]
        law = law + (waves.root @ for_law[..., None])[..., 0]
        lawful = _bounded(self._multipliers(law))
        off = torch.complex(real, imaginary) * (waves.spread / math.sqrt(2))
        moved = waves.multiplier.to(torch.complex128) + waves.held * (lawful - waves.lawful.to(torch.complex128)) + off
        multiplier, lawful = _bounded(moved).to(torch.complex64), lawful.to(torch.complex64)
        return replace(waves, law=law, multiplier=multiplier, lawful=lawful)

    @torch.no_grad()
    def learn(self, fields: Tensor, *, environments: Tensor | None = None) -> None:
        """Find the distribution of the laws over training trajectories `[B, T, *x, c]`.

        How much laws are held is chosen by forecasts: of trajectories after their first frames, and, where
        `environments [B]` says which share their physics, from another one.
        """
        self.mean.copy_(fields.mean(tuple(range(fields.ndim - 1))))
        if fields.shape[1] >= 2 * _LONG:
            # A long series tells as much as several short ones.
            fields = fields.unfold(1, _LONG, _LONG).movedim(-1, 2).flatten(0, 1)
            environments = None
        spectra, J = self._spectra(fields[:, None]), self.law_mean.shape[1]
        free = _LEAST_VARIANCE * 1e-2 * torch.eye(J, dtype=torch.float64).repeat(self.channels, 1, 1)
        self._describe(spectra, self._fitted(spectra, free, torch.zeros_like(self.law_mean))[0])
        self._describe(spectra, self._laws(spectra)[0])
        self._choose(fields, environments)

    def _describe(self, spectra: _Spectra, law: Tensor) -> None:
        misfit = self._misfit(spectra, law)
        for c in range(self.channels):
            self.law_mean[c], self.law_covariance[c] = _typical(law[:, c], misfit[:, c])

    def _choose(self, fields: Tensor, environments: Tensor | None) -> None:
        """The noise and the holds with which training trajectories are forecast best."""
        chosen = torch.linspace(0, len(fields) - 1, min(_TRIALS, len(fields))).long()
        truth = fields[chosen]
        tasks = [(truth[:, None, :_WINDOW], truth[:, _WINDOW - 1 :])]
        if environments is not None:
            others = companions(environments, chosen)
            pairs = chosen[others >= 0], others[others >= 0]
            if len(pairs[0]):
                tasks.append((fields[pairs[1]][:, None], fields[pairs[0]]))
        best = [(math.inf, 0.0, 0.0)] * len(tasks)
        for task, (windows, frames) in enumerate(tasks):
            spectra = self._spectra(windows)
            for noise in _NOISES if task == 0 else (best[0][1],):
                self.noise.fill_(noise)
                laws, one = self._laws(spectra), self.hold.new_ones(())
                for hold in _HOLDS:
                    waves = self._waves(spectra, *laws, hold * one, one)
                    best[task] = min(best[task], (self._error(frames, waves), noise, hold))
        self.noise.fill_(best[0][1])
        for task, (windows, frames) in enumerate(tasks):
            self.hold[task] = best[task][2]
            spectra = self._spectra(windows)
            misfit = self._misfit(spectra, self._laws(spectra)[0])
            self.typical[task] = misfit.median(0).values.clamp_min(_RIGHT)
            self.inflation[task] = self._inflation(windows, frames, own=task == 0)
        if len(tasks) == 1:
            for values in (self.hold, self.typical, self.inflation):
                values[1] = values[0]

    def _inflation(self, windows: Tensor, frames: Tensor, *, own: bool) -> float:
        """Error of forecasts of the last frame over the spread of draws."""
        waves, steps = self.infer(windows, own=own), frames.shape[1] - 1
        generator = torch.Generator().manual_seed(0)
        forecasts = [self._power(waves, steps, frames[:, 0])]
        for _ in range(_DRAWS):
            drawn = self.draw(waves, torch.randn(len(frames), self.num_draws, generator=generator))
            forecasts.append(self._power(drawn, steps, frames[:, 0]))
        error = (forecasts[0] - frames[:, -1]).square().flatten(1).mean(1)
        spread = torch.stack([m - forecasts[0] for m in forecasts[1:]]).square().mean(0).flatten(1).mean(1)
        # The median, as a forecast by one of several laws says nothing of a law's.
        return float((error / spread.clamp_min(_TINY)).sqrt().median().clamp(1e-6, 1e3))

    def _power(self, waves: Waves, steps: int, first: Tensor) -> Tensor:
        """The frame so many steps after `first [B, *x, c]`."""
        return self._multiplied(first, waves.multiplier**steps)

    def _error(self, frames: Tensor, waves: Waves) -> float:
        """Mean relative error of forecasts of all frames `[B, T, *x, c]` after the first."""
        last, square = frames[:, 0], frames.new_zeros(len(frames))
        for t in range(1, frames.shape[1]):
            last = self._multiplied(last, waves.multiplier)
            square += (last - frames[:, t]).square().flatten(1).sum(1)
        size = (frames[:, 1:] - self.mean).square().flatten(1).sum(1)
        return float((square / size.clamp_min(_TINY)).sqrt().mean())

    def _spectra(self, windows: Tensor) -> _Spectra:
        u = (windows - self.mean).movedim(-1, 1).double()
        waves = torch.fft.rfftn(u, dim=tuple(range(-len(self.grid), 0)), norm="ortho").flatten(4)
        before, after = waves[:, :, :, :-1], waves[:, :, :, 1:]
        products = (before.conj() * after, before.abs().square(), after.abs().square())
        return _Spectra(*(product.sum((2, 3)) * self._count for product in products))

    def _laws(self, spectra: _Spectra) -> tuple[Tensor, Tensor]:
        return self._fitted(spectra, self._prior, self.law_mean)

    @property
    def _prior(self) -> Tensor:
        """What holds laws to their mean, `[c, J, J]`."""
        return self.noise * torch.linalg.inv(self.law_covariance)

    def _fitted(self, spectra: _Spectra, prior: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
        """Laws `[B, c, J]` and the curvature of their misfit, trajectories in parts."""
        size = max(1, _AT_ONCE // (self.channels * self._basis[0].numel()))
        parts = [spectra[first : first + size] for first in range(0, len(spectra.power), size)]
        laws, curvatures = zip(*(self._fit(part, prior, mean) for part in parts), strict=True)
        return torch.cat(laws), torch.cat(curvatures)

    def _fit(self, spectra: _Spectra, prior: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
        """The better law, and its curvature, from two starts: the mean, and as frames correlate most."""
        carried = self._carried(self._correlation(spectra).flatten(2).argmax(-1), mean)
        law, hessian, cost = self._descended(spectra, prior, mean, mean.expand_as(carried))
        other, of_other, less = self._descended(spectra, prior, mean, carried)
        better = (less < cost)[..., None]
        return torch.where(better, other, law), torch.where(better[..., None], of_other, hessian)

    def _descended(self, s: _Spectra, prior: Tensor, mean: Tensor, law: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gauss-Newton steps on sum_k w |C / S - m|^2 + (c - mean)' prior (c - mean): law, curvature and cost."""
        weight = s.power / (s.power.sum(-1, keepdim=True) + _TINY)
        target, hessian = s.cross / (s.power + _TINY), prior
        for _ in range(_STEPS):
            m = self._multipliers(law)
            off = target / (m + _TINY) - 1
            off = torch.where(off.abs() > 1, off / (off.abs() + _TINY), off)
            sized = (weight * m.abs().square())[..., None]
            re, im = self._basis
            hessian = (re * sized).mT @ re + (im * sized).mT @ im + prior
            slope = ((re * sized).mT @ off.real[..., None] + (im * sized).mT @ off.imag[..., None])[..., 0]
            slope = slope + (prior @ (mean - law)[..., None])[..., 0]
            law = law + torch.linalg.solve(hessian, slope)
        return law, hessian, self._misfit(s, law) + _form(prior, law - mean)

    def _others(self, spectra: _Spectra, law: Tensor, hessian: Tensor) -> tuple[Tensor, Tensor]:
        """Laws that are right too, where frames correlate about as much at other displacements."""
        correlation, misfit = self._correlation(spectra), self._misfit(spectra, law)
        axes = tuple(range(2, correlation.ndim))
        peak = correlation >= _ALIKE * correlation.amax(axes, keepdim=True)
        for axis in axes:
            peak &= (correlation > correlation.roll(1, axis)) & (correlation >= correlation.roll(-1, axis))
        peak = peak.flatten(2)
        others, odds = law[:, :, None].repeat(1, 1, _OTHERS, 1), torch.zeros(*law.shape[:2], _OTHERS).to(law)
        rows = torch.nonzero(((peak.sum(2) > 1) & (misfit < _TELLING)).any(1))[:, 0]
        spectra, law, mean, prior = spectra[rows], law[rows], self.law_mean, self._prior
        cost = misfit[rows] + _form(prior, law - mean)
        far, tried = self._away(peak[rows]).sort(stable=True)
        for m in range(_OTHERS if len(rows) else 0):
            other, _, its = self._descended(spectra, prior, mean, self._carried(tried[..., m], mean))
            alike = (self._misfit(spectra, other) < _TELLING) & far[..., m].isfinite()
            alike &= _form(hessian[rows], other - law) > _APART
            others[rows, :, m], odds[rows, :, m] = other, ((cost - its) / (2 * self.noise)).exp() * alike
        before = torch.cat([torch.ones_like(odds[..., :1]), odds], -1).cumsum(-1)
        return others, before[..., :-1] / before[..., -1:]

    def _away(self, peak: Tensor) -> Tensor:
        """How far displacements of places in `peak [B, c, X]` are from the mean; infinite elsewhere."""
        places = torch.arange(peak.shape[2])[:, None].expand(-1, self.channels)
        away = self._carried(places, self.law_mean) - self.law_mean
        size = (away.square() / self.law_covariance.diagonal(dim1=1, dim2=2)).sum(-1).T
        return torch.where(peak, size, torch.full_like(size, math.inf))

    def _correlation(self, spectra: _Spectra) -> Tensor:
        """Correlation `[B, c, *x]` of successive frames, on twice as many points of a line."""
        waves = (spectra.cross / self._count).unflatten(-1, (*self.grid[:-1], -1))
        return torch.fft.irfftn(waves, s=self._fine, dim=tuple(range(-len(self.grid), 0)))

    def _carried(self, place: Tensor, mean: Tensor) -> Tensor:
        """`mean [c, J]` with the displacements of places `[B, c]` of the correlation."""
        law = mean.expand(*place.shape, -1).clone()
        for axis in reversed(range(len(self.grid))):
            n = self._fine[axis]
            shift = place % n
            place = place // n
            turns = torch.where(shift > n // 2, shift - n, shift).double() / n
            law[..., self._first[axis]] = -2 * math.pi * turns * _WAVE_UNIT
        return law

    def _multipliers(self, law: Tensor) -> Tensor:
        re, im = self._basis
        return torch.exp(torch.complex((law @ re.T).clamp(-_DECAY, _GROWTH), law @ im.T))

    def _misfit(self, s: _Spectra, law: Tensor) -> Tensor:
        """Share of the energy that a law's step gets wrong, beyond what any multiplier does, `[B, c]`."""
        off = (s.cross / (s.power + _TINY) - _bounded(self._multipliers(law))).abs().square()
        return (s.power * off).sum(-1) / (s.power.sum(-1) + _TINY)

    def _waves(self, spectra: _Spectra, law: Tensor, hessian: Tensor, hold: Tensor, inflation: Tensor) -> Waves:
        cross, power, after = spectra.cross, spectra.power, spectra.after
        lawful = _bounded(self._multipliers(law))
        total = power.sum(-1, keepdim=True)
        held = hold * power.mean(-1, keepdim=True) + _TINY
        multiplier = _bounded((cross + held * lawful) / (power + held))
        noise = self.noise * inflation.square()
        root = torch.linalg.cholesky(noise * torch.linalg.inv(hessian))
        spread = (noise * total / (power + held)).sqrt()
        left = after - 2 * (cross.conj() * lawful).real + power * lawful.abs().square()
        residual = (left.sum(-1) / (after.sum(-1) + _TINY)).clamp_min(1e-8).log()
        multiplier, lawful = multiplier.to(torch.complex64), lawful.to(torch.complex64)
        share, others, likely = held / (power + held), law[:, :, None], torch.ones_like(power[..., :1])
        return Waves(law, root, multiplier, lawful, share, spread, residual, others, likely)

    def _multiplied(self, last: Tensor, multiplier: Tensor) -> Tensor:
        axes = tuple(range(1, 1 + len(self.grid)))
        waves = torch.fft.rfftn((last - self.mean).float(), dim=axes)
        multiplier = multiplier.movedim(1, -1).unflatten(1, waves.shape[1:-1])
        moved = torch.fft.irfftn(waves * multiplier, s=self.grid, dim=axes) + self.mean
        return moved.to(last.dtype)


def _form(matrix: Tensor, x: Tensor) -> Tensor:
    """x' matrix x of vectors `[..., J]`."""
    return (x * (matrix @ x[..., None])[..., 0]).sum(-1)


def _bounded(multiplier: Tensor) -> Tensor:
    """Multipliers of size at most 1."""
    return multiplier / multiplier.abs().clamp_min(1)


def _typical(law: Tensor, misfit: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and covariance of laws `[B, J]`, of those that fit better than most and lie near their median."""
    law = law[misfit <= misfit.median().clamp_min(_RIGHT)]
    centre = law.median(0).values
    width = 1.48 * (law - centre).abs().median(0).values + 1e-3
    near = ((law - centre).abs() < 4 * width).all(1)
    law = law[near] if near.sum() > 2 * law.shape[1] else law
    if len(law) < 2:
        return law[0], torch.eye(law.shape[1], dtype=law.dtype)
    return law.mean(0), torch.cov(law.T) + _LEAST_VARIANCE * torch.eye(law.shape[1], dtype=law.dtype)


def companions(environments: Tensor, chosen: Tensor) -> Tensor:
    """Another trajectory of the environment of each of the chosen ones; -1 where there is none."""
    partners = []
    for i in chosen.tolist():
        same = torch.nonzero(environments == environments[i])[:, 0]
        same = same[same != i]
        partners.append(int(same[i % len(same)]) if len(same) else -1)
    return torch.tensor(partners)
