"""The Advection equation: a field carried along a periodic line at constant speed.

    u_t + alpha u_x = 0,    x in [0, 1), t in [0, 1]

    u(x, 0) = sum_{i=1..5} A_i f(2 pi l_i x / Lx + phi_i)
    A ~ U(-0.5, 0.5), phi ~ U(0, 2 pi), l in {1, 2, 3}

with f = sin, cos or sin + cos, each for a third of the initial conditions (paper, section C).

| parameter | in distribution | out of distribution | source |
|---|---|---|---|
| alpha | U(-5, 5) | U([-7, -5) and (5, 7]) | paper, section C |

alpha lies on a linspace of `GRID_SIZE` points (with the 100 points of the other equations there would be
fewer environments than groups). Grid: x_j = j Lx / 128 with the right end point left out, t_i = 0.05 i for
i = 0..19.

Solution: the exact shift u(x, t) = u(x - alpha t, 0), done in Fourier space by the factor exp(-i k alpha
t), which is exact on this grid because the initial condition holds no wave number above 3. No time stepper
is involved.
"""

from __future__ import annotations

import numpy as np

from ..splits import GRID_SIZE, TRAJECTORIES_PER_GROUP, group_uniforms
from .spectral import translate

LENGTH = 1.0
NUM_POINTS = 128
NUM_FRAMES = 20
FRAME_SPACING = 0.05
PARAMETERS = ("alpha",)
RANGES = {"alpha": (-5.0, 5.0)}
OUT_OF_RANGE = (5.0, 7.0)
NUM_TERMS = 5


def parameters(cells: np.ndarray, split: str, *, seed: int) -> dict[str, np.ndarray]:
    """PDE parameters of grid cells, float64 [groups] each. `seed` is not used: the cells say it all."""
    if split == "test-out":
        # Odd cells are negative. The speed 5 itself belongs to the in-distribution grid, hence the + 1.
        low, high = OUT_OF_RANGE
        speed = low + (high - low) * (cells // 2 + 1) / (GRID_SIZE // 2)
        return {"alpha": np.where(cells % 2, -speed, speed)}
    low, high = RANGES["alpha"]
    return {"alpha": low + (high - low) * cells / (GRID_SIZE - 1)}


def initial_conditions(split: str, *, seed: int, group: int, num_points: int = NUM_POINTS) -> np.ndarray:
    """The initial conditions of one group, float64 [TRAJECTORIES_PER_GROUP, num_points]."""
    shape = (TRAJECTORIES_PER_GROUP, 3 * NUM_TERMS + 1, 1)
    u = group_uniforms("advection", split, seed=seed, group=group, shape=shape)
    kind, u = np.floor(3 * u[:, 0]), u[:, 1:].reshape(TRAJECTORIES_PER_GROUP, NUM_TERMS, 3, 1)
    amplitude, wave, phase = u[:, :, 0] - 0.5, 1 + np.floor(3 * u[:, :, 1]), 2 * np.pi * u[:, :, 2]
    x = np.arange(num_points) * LENGTH / num_points
    angle = 2 * np.pi * wave * x / LENGTH + phase
    sine, cosine = np.sum(amplitude * np.sin(angle), axis=1), np.sum(amplitude * np.cos(angle), axis=1)
    return (kind != 1) * sine + (kind != 0) * cosine


def solve(u0: np.ndarray, parameters: dict[str, np.ndarray]) -> np.ndarray:
    """Shift initial conditions [B, X] by alpha t; float64 [B, NUM_FRAMES, X], frame 0 is `u0`."""
    shift_BT = np.multiply.outer(parameters["alpha"], np.arange(NUM_FRAMES) * FRAME_SPACING)
    return translate(u0[:, None], shift_BT, LENGTH)


def scaled(
    u_BTX: np.ndarray, parameters: dict[str, np.ndarray], factor_B: np.ndarray
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Solutions s u: the equation is linear."""
    return factor_B[:, None, None] * u_BTX, parameters


def boosted(
    u_BTX: np.ndarray, parameters: dict[str, np.ndarray], speed_B: np.ndarray
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Solutions u(x - c t, t), and alpha + c: the same field seen from a frame that moves."""
    times_T = np.arange(u_BTX.shape[1]) * FRAME_SPACING
    moved = translate(u_BTX, speed_B[:, None] * times_T, LENGTH)
    return moved, {**parameters, "alpha": parameters["alpha"] + speed_B}


# Maps from solutions to solutions, by the name of the training setting that draws their amount.
SYMMETRIES = {"amplitude": scaled, "boost": boosted}
