"""The vorticity equation: decaying turbulence of an incompressible fluid on a periodic plane.

    w_t + u . grad w = nu lap w,   u = (psi_y, -psi_x),   lap psi = -w,    (x, y) in [0, pi)^2, t in [0, 2]

The flow starts from waves of random phase after the energy spectrum (paper, section C; k in radians per unit of length)

    E(k) = 4 / (3 sqrt(pi)) (k / k0)^4 exp(-(k / k0)^2) / k0,    k0 = 10,    |w_k|^2 = k E(k) / pi

and decays for 0.4 units of time before frame 0, under its own viscosity. These |w_k|^2 have the spectrum E on a domain
of 2 pi; on this one, whose waves are twice as far apart in both dimensions, the flow has E / 4. Waves along x alone
(k_y = 0) are each the mean of w_k and the conjugate of w_-k, whose phases are drawn apart, as the field is real: they
have half of that power on average.

| parameter | in distribution | out of distribution | source |
|---|---|---|---|
| nu (viscosity) | U(1e-3, 1e-2) | U(1e-5, 1e-4) | paper, section C |

nu lies on a linspace of 100,000 points. The paper gives neither domain, duration nor warm-up: the warm-up is that of
the authors' earlier data (github.com/itsakk/geps), a domain of pi and a duration of 2 fit the paper's figures best
(correlation 0.95 to 0.99 at frame 7). Grid: x_i = i pi / 64 for i = 0..63 in both dimensions, 30 frames from 0 to 2.

Solver: pseudo-spectral with 96 x 96 points, 160 x 160 below a viscosity of 3e-3; the 2/3 rule removes aliases,
viscosity is exact by an integrating factor, and the classical Runge-Kutta method takes the steps. Below 1e-3 it has
256 x 256 points and a filter of the highest waves (Hou and Li, 2007). Frames keep the waves that their grid holds.

Checked (`tests/data/test_vorticity.py`): Taylor-Green vortices decay exactly, to 1e-12; energy falls by 2 nu times
the enstrophy, within 1 %; and at viscosities of 1e-3 and 3e-3 twice the points and time steps change the first five
frames by less than 3 % (relative L2).
"""

from __future__ import annotations

from functools import partial

import numpy as np

from ..equation import Equation, Values, energy, in_batches, linspaces, mass
from ..splits import TRAJECTORIES_PER_GROUP, group_uniforms

LENGTH = np.pi
NUM_POINTS = 64
NUM_FRAMES = 30
FRAME_SPACING = 2 / (NUM_FRAMES - 1)
WARM_UP = 0.4
PEAK = 10.0

_LEVELS = 100_000
# Trajectories at a time.
_BATCH = 4
# Points of the solver per dimension and its steps per frame, by the least viscosity that they serve.
_RESOLUTION = ((3e-3, 96, 4), (1e-3, 160, 6), (0.0, 256, 12))
_FILTERED_BELOW = 1e-3


def initial_conditions(split: str, *, seed: int, group: int) -> np.ndarray:
    """The initial vorticities of one group, before their warm-up, float64 `[TRAJECTORIES_PER_GROUP, 64, 64, 1]`."""
    n = NUM_POINTS
    u = group_uniforms("vorticity", split, seed=seed, group=group, shape=(TRAJECTORIES_PER_GROUP, n, n // 2 + 1))
    k = np.hypot(*_waves(n))
    spectrum = 4 / (3 * np.sqrt(np.pi)) * (k / PEAK) ** 4 * np.exp(-((k / PEAK) ** 2)) / PEAK
    return _fields(n**2 * np.sqrt(k * spectrum / np.pi) * np.exp(2j * np.pi * u), n)[..., None]


def warmed_up(u0: np.ndarray, parameters: Values) -> np.ndarray:
    """Vorticities `[B, 64, 64, 1]` after `WARM_UP` units of time."""
    return integrate(u0, parameters["nu"], num_frames=2, spacing=WARM_UP, steps=WARM_UP / FRAME_SPACING)[:, -1]


def solve(u0: np.ndarray, parameters: Values) -> np.ndarray:
    """Integrate vorticities `[B, 64, 64, 1]`; float64 `[B, NUM_FRAMES, 64, 64, 1]`, frame 0 is `u0`."""
    return integrate(u0, parameters["nu"], num_frames=NUM_FRAMES, spacing=FRAME_SPACING, steps=1)


def integrate(
    u0: np.ndarray, nu: np.ndarray, *, num_frames: int, spacing: float, steps: float, refine: float = 1
) -> np.ndarray:
    """Frames `spacing` apart, with `steps` times the time steps of a frame of the data set between them.

    `refine` multiplies these time steps, and the points of the solver.
    """
    frames = np.empty((len(u0), num_frames, *u0.shape[1:]))
    frames[:, 0] = u0
    # Every viscosity takes the first row that serves it.
    level = np.argmax(np.asarray(nu)[:, None] >= [row[0] for row in _RESOLUTION], axis=1)
    for number, (least, points, per_frame) in enumerate(_RESOLUTION):
        rows = np.flatnonzero(level == number)
        if not rows.size:
            continue
        count = int(np.ceil(per_frame * steps * refine))
        flow = _Flow(round(points * refine), np.asarray(nu)[rows], spacing / count, filtered=least < _FILTERED_BELOW)
        w_hat = _resized(np.fft.rfft2(u0[rows, ..., 0]), flow.points)
        for frame in range(1, num_frames):
            for _ in range(count):
                w_hat = flow.step(w_hat)
            frames[rows, frame, ..., 0] = _fields(_resized(w_hat, NUM_POINTS), NUM_POINTS)
    return frames


class _Flow:
    """Time steps of a batch of flows `[B, n, n / 2 + 1]` in waves, of one size and with a viscosity each.

    Arrays are kept and written into: at these sizes new ones for every operation cost more than the arithmetic.
    """

    def __init__(self, points: int, nu: np.ndarray, step: float, *, filtered: bool) -> None:
        self.points, self.h = points, step
        k_x, k_y = _waves(points)
        k_2 = k_x**2 + k_y**2
        self.inverse = np.divide(1.0, k_2, out=np.zeros_like(k_2), where=k_2 > 0).astype(np.complex128)
        self.half = np.exp(-step / 2 * nu[:, None, None] * k_2)
        largest = 2 * np.pi / LENGTH * points / 3
        kept = (np.abs(k_x) < largest) & (k_y < largest)
        if filtered:
            share = np.maximum(np.abs(k_x), k_y) / largest
            self.half = self.half * np.exp(-18 * share**36)
        self.half = self.half.astype(np.complex128)
        # The velocity of a stream function, and minus the divergence of what it carries.
        self.along_x, self.along_y = np.broadcast_arrays(1j * k_y, -1j * k_x)
        self.minus_x, self.minus_y = -(kept * (1j * k_x)), -(kept * (1j * k_y))
        self._psi, self._waves, self._stage, *self._rates = (np.empty_like(self.half) for _ in range(7))
        self._w, self._u = (np.empty((len(nu), points, points)) for _ in range(2))

    def rate(self, w_hat: np.ndarray, out: np.ndarray) -> np.ndarray:
        """Advection of the vorticity by its own flow, -div(u w), dealiased, written into `out`."""
        size, waves = (self.points,) * 2, self._waves
        psi = np.multiply(self.inverse, w_hat, out=self._psi)
        w = np.fft.irfft2(w_hat, s=size, out=self._w)
        u = np.fft.irfft2(np.multiply(self.along_x, psi, out=waves), s=size, out=self._u)
        np.multiply(self.minus_x, np.fft.rfft2(np.multiply(u, w, out=u), out=waves), out=out)
        u = np.fft.irfft2(np.multiply(self.along_y, psi, out=psi), s=size, out=self._u)
        carried = np.fft.rfft2(np.multiply(u, w, out=u), out=waves)
        return np.add(out, np.multiply(self.minus_y, carried, out=waves), out=out)

    def step(self, w_hat: np.ndarray) -> np.ndarray:
        half, h, stage = self.half, self.h, self._stage
        r_1, r_2, r_3, r_4 = self._rates

        def moved(start: np.ndarray, rate: np.ndarray, by: float) -> np.ndarray:
            return np.add(start, np.multiply(rate, by, out=stage), out=stage)

        half_way = half * w_hat
        self.rate(w_hat, r_1)
        self.rate(np.multiply(half, moved(w_hat, r_1, h / 2), out=stage), r_2)
        self.rate(moved(half_way, r_2, h / 2), r_3)
        self.rate(np.multiply(half, moved(half_way, r_3, h), out=stage), r_4)
        w_hat = np.multiply(half, moved(w_hat, r_1, h / 6))
        r_2 += r_3
        w_hat += np.multiply(r_2, h / 3, out=r_2)
        w_hat *= half
        r_4 *= h / 6
        w_hat += r_4
        return w_hat


def _waves(points: int) -> tuple[np.ndarray, np.ndarray]:
    """Wave numbers in radians per unit of length along both dimensions, as `np.fft.rfft2` orders them."""
    k = 2 * np.pi / LENGTH
    return k * np.fft.fftfreq(points, 1 / points)[:, None], k * np.arange(points // 2 + 1)[None, :]


def _fields(waves: np.ndarray, points: int) -> np.ndarray:
    return np.fft.irfft2(waves, s=(points, points))


def _resized(waves: np.ndarray, points: int) -> np.ndarray:
    """The same fields on another grid, without the waves that one of the two does not hold on both its sides."""
    old = waves.shape[-2]
    keep = (min(old, points) - 1) // 2
    out = np.zeros((*waves.shape[:-2], points, points // 2 + 1), dtype=waves.dtype)
    out[..., : keep + 1, : keep + 1] = waves[..., : keep + 1, : keep + 1]
    out[..., -keep:, : keep + 1] = waves[..., -keep:, : keep + 1]
    return out * (points / old) ** 2


EQUATION = Equation(
    name="vorticity",
    channels={"w": "1"},
    grid=(NUM_POINTS, NUM_POINTS),
    lengths=(LENGTH, LENGTH),
    periodic=(True, True),
    num_frames=NUM_FRAMES,
    frame_spacing=FRAME_SPACING,
    inside=linspaces(_LEVELS, nu=(1e-3, 1e-2)),
    outside=linspaces(_LEVELS, nu=(1e-5, 1e-4)),
    initial_conditions=initial_conditions,
    solve=partial(in_batches, _BATCH, solve),
    spin_up=partial(in_batches, _BATCH, warmed_up),
    quantities=(mass("circulation"), energy("decays", "enstrophy")),
)
