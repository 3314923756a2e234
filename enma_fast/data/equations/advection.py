"""The Advection equation: a field carried along a periodic line at constant speed.

    u_t + alpha u_x = 0,    x in [0, 1), t in [0, 1]

    u(x, 0) = sum_{i=1..5} A_i f(2 pi l_i x / Lx + phi_i)
    A ~ U(-0.5, 0.5), phi ~ U(0, 2 pi), l in {1, 2, 3}

with f = sin, cos or sin + cos, each for a third of the initial conditions (paper, section C).

| parameter | in distribution | out of distribution | source |
|---|---|---|---|
| alpha | U(-5, 5) | U([-7, -5) and (5, 7]) | paper, section C |

alpha lies on a linspace of a million points (with the 100 points of the other equations there would be fewer
environments than groups). Grid: x_j = j Lx / 128 with the right end point left out, t_i = 0.05 i for
i = 0..19.

Solution: the exact shift u(x, t) = u(x - alpha t, 0), done in Fourier space by the factor exp(-i k alpha
t), which is exact on this grid because the initial condition holds no wave number above 3. No time stepper
is involved.
"""

from __future__ import annotations

import numpy as np

from ..equation import Environments, Equation, Values, energy, linspaces, mass
from ..spectral import translate
from ..splits import TRAJECTORIES_PER_GROUP, group_uniforms

LENGTH = 1.0
NUM_POINTS = 128
NUM_FRAMES = 20
FRAME_SPACING = 0.05
SLOW, FAST = 5.0, 7.0
NUM_TERMS = 5
_LEVELS = 1_000_000


def _out_of_distribution(numbers: np.ndarray, split: str, seed: int) -> Values:
    # Odd ones are negative. The speed 5 itself belongs to the environments in distribution, hence the + 1.
    speed = SLOW + (FAST - SLOW) * (numbers // 2 + 1) / (_LEVELS // 2)
    return {"alpha": np.where(numbers % 2, -speed, speed)}


def initial_conditions(split: str, *, seed: int, group: int) -> np.ndarray:
    """The initial conditions of one group, float64 [TRAJECTORIES_PER_GROUP, NUM_POINTS]."""
    shape = (TRAJECTORIES_PER_GROUP, 3 * NUM_TERMS + 1, 1)
    u = group_uniforms("advection", split, seed=seed, group=group, shape=shape)
    kind, u = np.floor(3 * u[:, 0]), u[:, 1:].reshape(TRAJECTORIES_PER_GROUP, NUM_TERMS, 3, 1)
    amplitude, wave, phase = u[:, :, 0] - 0.5, 1 + np.floor(3 * u[:, :, 1]), 2 * np.pi * u[:, :, 2]
    x = np.arange(NUM_POINTS) * LENGTH / NUM_POINTS
    angle = 2 * np.pi * wave * x / LENGTH + phase
    sine, cosine = np.sum(amplitude * np.sin(angle), axis=1), np.sum(amplitude * np.cos(angle), axis=1)
    return (kind != 1) * sine + (kind != 0) * cosine


def solve(u0: np.ndarray, parameters: dict[str, np.ndarray]) -> np.ndarray:
    """Shift initial conditions [B, X] by alpha t; float64 [B, NUM_FRAMES, X], frame 0 is `u0`."""
    shift_BT = np.multiply.outer(parameters["alpha"], np.arange(NUM_FRAMES) * FRAME_SPACING)
    return translate(u0[:, None], shift_BT, LENGTH)


def scaled(u_BTXc: np.ndarray, parameters: Values, factor_B: np.ndarray) -> tuple[np.ndarray, Values]:
    """Solutions s u: the equation is linear."""
    return factor_B[:, None, None, None] * u_BTXc, parameters


def boosted(u_BTXc: np.ndarray, parameters: Values, speed_B: np.ndarray) -> tuple[np.ndarray, Values]:
    """Solutions u(x - c t, t), and alpha + c: the same field seen from a frame that moves."""
    times_T = np.arange(u_BTXc.shape[1]) * FRAME_SPACING
    moved = translate(u_BTXc[..., 0], speed_B[:, None] * times_T, LENGTH)
    return moved[..., None], {**parameters, "alpha": parameters["alpha"] + speed_B}


EQUATION = Equation(
    name="advection",
    channels={"u": "1"},
    grid=(NUM_POINTS,),
    lengths=(LENGTH,),
    periodic=(True,),
    num_frames=NUM_FRAMES,
    frame_spacing=FRAME_SPACING,
    inside=linspaces(_LEVELS, alpha=(-SLOW, SLOW)),
    outside=Environments(count=_LEVELS, ranges={"alpha": ((-FAST, -SLOW), (SLOW, FAST))}, values=_out_of_distribution),
    initial_conditions=lambda split, *, seed, group: initial_conditions(split, seed=seed, group=group)[..., None],
    solve=lambda u0, parameters: solve(u0[..., 0], parameters)[..., None],
    symmetries={"amplitude": scaled, "boost": boosted},
    quantities=(mass(), energy("conserved")),
)
