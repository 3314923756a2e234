"""Periodic fields in Fourier space.

Shape suffixes: B trajectories, T frames, X points.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

_CONTOUR_POINTS = 32


def translate(u_BTX: np.ndarray, distance_BT: np.ndarray, length: float) -> np.ndarray:
    """Periodic fields carried forward by a distance, ``u(x - distance)``; exact below the highest wave number."""
    num_points = u_BTX.shape[-1]
    k = 2 * np.pi * np.arange(num_points // 2 + 1) / length
    u_hat = np.fft.rfft(u_BTX) * np.exp(-1j * k * distance_BT[..., None])
    return np.fft.irfft(u_hat, n=num_points)


def refine(u: np.ndarray, factor: int, axis: int) -> np.ndarray:
    """Trigonometric interpolation of periodic functions to `factor` times the points of an axis, float64."""
    if factor == 1:
        return u
    num_points = u.shape[axis]
    u_hat = np.moveaxis(np.fft.rfft(u, axis=axis), axis, -1)
    if num_points % 2 == 0:
        # The highest wave stands for its two signs, which are different waves on the finer grid.
        u_hat[..., -1] /= 2
    return np.moveaxis(factor * np.fft.irfft(u_hat, n=factor * num_points), -1, axis)


class ExponentialRungeKutta:
    """Time steps of waves v under v_t = L v + N(v), exact for the linear part and of fourth order in all.

    ETDRK4 of Cox and Matthews (2002). Its coefficients are means over circles around L (Kassam and Trefethen, 2005),
    and complex where waves disperse. `linear` is L in the shape of v, `nonlinear` is N.
    """

    def __init__(self, linear: np.ndarray, nonlinear: Callable[[np.ndarray], np.ndarray], step: float) -> None:
        self.nonlinear = nonlinear
        self.half, self.full = np.exp(step * linear / 2), np.exp(step * linear)
        circle = np.exp(2j * np.pi * (np.arange(_CONTOUR_POINTS) + 0.5) / _CONTOUR_POINTS)
        z = (step * linear)[..., None] + circle
        exp_z, z_3 = np.exp(z), z**3
        self.inner = step * np.mean((np.exp(z / 2) - 1) / z, axis=-1)
        self.first = step * np.mean((-4 - z + exp_z * (4 - 3 * z + z**2)) / z_3, axis=-1)
        self.middle = step * np.mean(2 * (2 + z + exp_z * (z - 2)) / z_3, axis=-1)
        self.last = step * np.mean((-4 - 3 * z - z**2 + exp_z * (4 - z)) / z_3, axis=-1)

    def step(self, v: np.ndarray) -> np.ndarray:
        half_way = self.half * v
        n_v = self.nonlinear(v)
        a = half_way + self.inner * n_v
        n_a = self.nonlinear(a)
        n_b = self.nonlinear(half_way + self.inner * n_a)
        n_c = self.nonlinear(self.half * a + self.inner * (2 * n_b - n_v))
        return self.full * v + self.first * n_v + self.middle * (n_a + n_b) + self.last * n_c
