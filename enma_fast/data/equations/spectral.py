"""Periodic lines in Fourier space.

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
