"""Physics of forecasts: spectra, and quantities that an equation conserves or lets decay.

    quantity Q(t)    mean over the points of a density that the equation names (`data.equation.Quantity`)
    conserved        violation: RMS over the frames of Q(t) - Q(start)
    decays           violation: sum over the frames of what Q(t) grows by
    spectrum E(k)    power of the waves of length L / k, all directions and channels together; L is the longest period

The start is the last observed frame, or frame 0 of a generated trajectory. All are in units of the amplitude of a
trajectory, the RMS of its observed frames (of the truth where nothing was observed): E and energies over its square. A
dimension with walls, n points from one to the other, is mirrored half a step beyond each, so that its waves are cosines
and its period is that of 2 n points.

Shape suffixes: K members, T frames, L observed frames, c channels; `*x` points, S wave numbers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from ..data import EQUATIONS
from ..data.equation import Quantity
from ..domain import Domain

# Wave numbers with less than this share of the power of the strongest are left out of the error of the spectrum.
_FAINT = 1e-8


class Physics:
    """Spectra and quantities of members and their truth, averaged over members, then trajectories.

    Parameters
    ----------
    equation : name of the equation; one that is not known has spectra and the mean square alone
    domain : of the fields; of a grid alone it is the equation's, or else a cube with walls
    num_channels : c
    """

    def __init__(self, equation: str, domain: Domain | Sequence[int], num_channels: int) -> None:
        problem, grid = EQUATIONS.get(equation), tuple(domain.grid if isinstance(domain, Domain) else domain)
        if problem is not None and (len(problem.grid), len(problem.channels)) != (len(grid), num_channels):
            problem = None
        self.quantities: tuple[Quantity, ...] = () if problem is None else problem.quantities
        if not isinstance(domain, Domain):
            cube = ((1.0,) * len(grid), (False,) * len(grid))
            domain = Domain(grid, *(cube if problem is None else (problem.lengths, problem.periodic)))
        self._dims, self._periodic = len(grid), domain.periodic
        periods = _periods(domain)
        self._shell, self.wave_numbers = _shells(periods)
        # Whether the longest period is that of a mirrored dimension, twice as long as its side.
        self.mirrored = not self._periodic[int(np.argmax([period for _, period in periods]))]
        self.num_trajectories = 0
        # Sums over trajectories, of members and of the truth.
        self._spectra = np.zeros((2, len(self.wave_numbers)))
        self._violations = np.zeros((2, len(self.quantities)))
        self._energy = 0.0

    def add(
        self,
        members: Iterable[np.ndarray],
        truth_TX: np.ndarray,
        observed_LX: np.ndarray | None = None,
        *,
        amplitude: float | None = None,
    ) -> None:
        """Add a trajectory: blocks of its members `[k, T, *x, c]`, the truth, and the observed frames if any.

        A trajectory without values at some places is left out, since waves are of whole grids. The unit is `amplitude`,
        the RMS of what was observed: by default of the observed frames, or else of the truth.
        """
        truth = np.asarray(truth_TX, np.float64)
        seen = None if observed_LX is None or not len(observed_LX) else np.asarray(observed_LX, np.float64)
        if amplitude is None:
            amplitude = float(np.sqrt(np.square(truth if seen is None else seen).mean()))
        if not amplitude > 0:
            return
        last = None if seen is None else seen[-1:]
        spectrum, violations, energy_1T = self._of(truth[None], last, amplitude)
        total, wrong, energy, count = np.zeros_like(spectrum), np.zeros_like(violations), 0.0, 0
        for block in members:
            each, violated, found_kT = self._of(np.asarray(block, np.float64), last, amplitude)
            total, wrong, count = total + each, wrong + violated, count + len(block)
            energy += float(np.abs(found_kT - energy_1T).mean(1).sum())
        self._spectra += total / count, spectrum
        self._violations += wrong / count, violations
        self._energy += energy / count
        self.num_trajectories += 1

    def result(self, *, has_truth: bool = True) -> dict[str, Any] | None:
        """Scores over all trajectories; None without any.

        Returns
        -------
        dict
            `spectrum_error`: mean over wave numbers of |log10(E / E of the truth)|, in decades; `energy_error`: mean
            distance of the mean square of members and truth, relative to the squared amplitude (None where the truth is
            another draw, `has_truth` false); `quantities`: for each `name`, `law`, `violation` of the members, and that
            of the truth, `truth`.
        """
        if not self.num_trajectories:
            return None
        spectrum, expected = self._spectra / self.num_trajectories
        kept = expected >= _FAINT * expected.max()
        # A member without a wave that the truth has is as wrong as the faintest that is counted.
        floor = _FAINT * expected.max()
        error = np.abs(np.log10(np.maximum(spectrum[kept], floor) / expected[kept])).mean()
        members, truth = self._violations / self.num_trajectories
        return {
            "spectrum_error": _finite(error),
            "energy_error": _finite(self._energy / self.num_trajectories) if has_truth else None,
            "quantities": [
                {"name": q.name, "law": q.law, "violation": _finite(members[i]), "truth": _finite(truth[i])}
                for i, q in enumerate(self.quantities)
            ],
        }

    def spectra(self) -> dict[str, list[float]]:
        """Spectra over all trajectories: `wave_number`, `members`, `truth`, without those that are faint."""
        spectrum, expected = self._spectra / max(1, self.num_trajectories)
        kept = expected >= _FAINT * expected.max()
        rows = {"wave_number": self.wave_numbers, "members": spectrum, "truth": expected}
        return {name: values[kept].tolist() for name, values in rows.items()}

    def values(self, fields: np.ndarray) -> np.ndarray:
        """The quantities `[..., Q]` of fields `[..., *x, c]`."""
        axes = tuple(range(-self._dims, 0))
        means = [quantity.density(fields).mean(axis=axes) for quantity in self.quantities]
        return np.stack(means, -1) if means else np.zeros((*fields.shape[: -self._dims - 1], 0))

    def _of(
        self, fields_kTX: np.ndarray, last_1X: np.ndarray | None, amplitude: float
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Sums over k of spectra `[S]` and violations `[Q]`, and mean squares `[k, T]`, in units of the amplitude."""
        values_kTQ = self.values(fields_kTX)
        if last_1X is not None:
            last_k1Q = np.broadcast_to(self.values(last_1X), (len(values_kTQ), 1, len(self.quantities)))
            values_kTQ = np.concatenate([last_k1Q, values_kTQ], 1)
        values_kTQ = values_kTQ / amplitude ** np.array([quantity.degree for quantity in self.quantities], float)
        drift = np.sqrt(np.square(values_kTQ - values_kTQ[:, :1]).sum(1) / max(1, values_kTQ.shape[1] - 1))
        growth = np.maximum(0, np.diff(values_kTQ, axis=1)).sum(1)
        conserved = np.array([quantity.law == "conserved" for quantity in self.quantities], bool)
        squares_kT = np.square(fields_kTX / amplitude).mean(axis=tuple(range(2, fields_kTX.ndim)))
        return self._spectrum(fields_kTX / amplitude), np.where(conserved, drift, growth).sum(0), squares_kT

    def _spectrum(self, fields_kTX: np.ndarray) -> np.ndarray:
        """Power of each shell of wave numbers, added over k and channels and averaged over frames."""
        axes = tuple(range(2, 2 + self._dims))
        for axis, wraps in zip(axes, self._periodic, strict=True):
            if not wraps:
                fields_kTX = np.concatenate([fields_kTX, np.flip(fields_kTX, axis)], axis)
        waves = np.fft.rfftn(fields_kTX, axes=axes)
        power = (np.square(waves.real) + np.square(waves.imag)).mean(1).sum((0, -1))
        # The other half of the last axis has the same power.
        power[..., 1 : (fields_kTX.shape[axes[-1]] + 1) // 2] *= 2
        power = power / math.prod(fields_kTX.shape[2:-1]) ** 2
        count = len(self.wave_numbers)
        return np.bincount(self._shell[..., : power.shape[-1]].ravel(), power.ravel(), minlength=count + 1)[:count]


def _periods(domain: Domain) -> list[tuple[int, float]]:
    """Points and length of the period of each dimension, as it is transformed."""
    # Between walls a length is that of the steps between the points, one less than points.
    ends = zip(domain.grid, domain.lengths, domain.periodic, strict=True)
    return [(n, length) if wraps else (2 * n, 2 * length * n / max(1, n - 1)) for n, length, wraps in ends]


def _shells(periods: Sequence[tuple[int, float]]) -> tuple[np.ndarray, np.ndarray]:
    """Shell of each wave of the transform, and the wave numbers of the shells; those beyond belong to one more."""
    longest = max(side for _, side in periods)
    waves = [np.fft.fftfreq(n, 1 / n) * longest / side for n, side in periods]
    k = np.sqrt(sum(np.square(w) for w in np.meshgrid(*waves, indexing="ij")))
    # The highest shell that all directions hold.
    last = int(min(np.abs(w).max() for w in waves))
    shell = np.minimum(np.rint(k).astype(int), last + 1)
    return shell, np.arange(last + 1)


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
