"""Periodic fields in Fourier space.

Shape suffixes: B trajectories, T frames, X points.
"""

from __future__ import annotations

import numpy as np


def translate(u_BTX: np.ndarray, distance_BT: np.ndarray, length: float) -> np.ndarray:
    """Periodic fields carried forward by a distance, ``u(x - distance)``; exact below the highest wave number."""
    num_points = u_BTX.shape[-1]
    k = 2 * np.pi * np.arange(num_points // 2 + 1) / length
    u_hat = np.fft.rfft(u_BTX) * np.exp(-1j * k * distance_BT[..., None])
    return np.fft.irfft(u_hat, n=num_points)


def refine(u: np.ndarray, factor: int = 2, axis: int = -1) -> np.ndarray:
    """Trigonometric interpolation of periodic functions to `factor` times the points of an axis, float64."""
    if factor == 1:
        return u
    num_points = u.shape[axis]
    u_hat = np.moveaxis(np.fft.rfft(u, axis=axis), axis, -1)
    if num_points % 2 == 0:
        # The highest wave stands for its two signs, which are different waves on the finer grid.
        u_hat[..., -1] /= 2
    return np.moveaxis(factor * np.fft.irfft(u_hat, n=factor * num_points), -1, axis)
