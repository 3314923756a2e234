"""The Combined equation: convection, diffusion and dispersion on a periodic line.

    u_t = -alpha u u_x + beta u_xx - gamma u_xxx - delta u_xxxx,    x in [0, 2 pi), t in [0, 1]

    u(x, 0) = sum_{i=1..5} A_i sin(2 pi l_i x / Lx + phi_i)
    A ~ U(-0.5, 0.5), phi ~ U(0, 2 pi), l in {1, 2, 3}

| parameter | in distribution | out of distribution | source |
|---|---|---|---|
| alpha | U(0.5, 1) | same | fitted to the paper's figures (its text has 0.3-0.5) |
| beta | U(5e-4, 0.5) | same | paper, section C |
| gamma | U(0.01, 1) | same | paper, section C |
| delta | 0 | U(0.5, 1) | paper, section C |

The figures also need alpha u u_x; the text's alpha (u^2)_x, twice that, does not reproduce them. The values
lie on 100-point linspaces, as in the figures.

Grid: x_j = j Lx / 128 with the right end point left out, t_i = 0.05 i for i = 0..19; frame 0 is the initial
condition.

Solver: pseudo-spectral (256 points, 2/3 dealiasing, float64) under ETDRK4, exact for the linear part.

Checked (`tests/data/test_combined.py`): exact solutions of the linear part and before the inviscid shock, the order of
the method with dispersion, another method, and exponax without dispersion, which agrees to 1e-12.
"""

from __future__ import annotations

import numpy as np

from ..equation import Environments, Equation, Values, energy, linspaces, mass
from ..spectral import ExponentialRungeKutta, translate
from ..splits import TRAJECTORIES_PER_GROUP, group_uniforms

LENGTH = 2 * np.pi
NUM_POINTS = 128
NUM_FRAMES = 20
FRAME_SPACING = 0.05
PARAMETERS = ("alpha", "beta", "gamma", "delta")
DELTA = (0.5, 1.0)
NUM_TERMS = 5

_SOLVER_POINTS = 256
_STEPS_PER_FRAME = 20
_LEVELS = 100
_PRODUCTS = linspaces(_LEVELS, alpha=(0.5, 1.0), beta=(5e-4, 0.5), gamma=(0.01, 1.0))


def _out_of_distribution(numbers: np.ndarray, split: str, seed: int) -> Values:
    groups = range(len(numbers))
    u_G1 = [group_uniforms("combined-delta", split, seed=seed, group=g, shape=(1,)) for g in groups]
    level_G = np.floor(_LEVELS * np.concatenate(u_G1))
    low, high = DELTA
    return {**_PRODUCTS.values(numbers, split, seed), "delta": low + (high - low) * level_G / (_LEVELS - 1)}


def initial_conditions(split: str, *, seed: int, group: int, num_points: int = _SOLVER_POINTS) -> np.ndarray:
    """The initial conditions of one group, float64 [TRAJECTORIES_PER_GROUP, num_points]."""
    u = group_uniforms("combined", split, seed=seed, group=group, shape=(TRAJECTORIES_PER_GROUP, NUM_TERMS, 3, 1))
    amplitude, wave, phase = u[:, :, 0] - 0.5, 1 + np.floor(3 * u[:, :, 1]), 2 * np.pi * u[:, :, 2]
    x = np.arange(num_points) * LENGTH / num_points
    return np.sum(amplitude * np.sin(2 * np.pi * wave * x / LENGTH + phase), axis=1)


def solve(
    u0: np.ndarray,
    parameters: dict[str, np.ndarray],
    *,
    steps_per_frame: int = _STEPS_PER_FRAME,
    num_frames: int = NUM_FRAMES,
) -> np.ndarray:
    """Integrate initial conditions `[B, X]`, X a multiple of `NUM_POINTS`, with parameters name -> [B].

    Float64 `[B, num_frames, NUM_POINTS]`; frame 0 is `u0` on the kept points.
    """
    alpha, beta, gamma, delta = (np.asarray(parameters[name], dtype=np.float64)[:, None] for name in PARAMETERS)
    u0 = np.asarray(u0, dtype=np.float64)
    num_points = u0.shape[1]
    i_k = 2j * np.pi / LENGTH * np.arange(num_points // 2 + 1)
    # Waves below two thirds of the highest: the square of such waves has no aliases among them.
    kept = num_points // 3
    flux = -alpha / 2 * i_k[:kept]

    def convection(v: np.ndarray) -> np.ndarray:
        """-alpha u u_x as -(alpha / 2) (u^2)_x."""
        u = np.fft.irfft(v[:, :kept], n=num_points)
        out = np.zeros_like(v)
        np.multiply(flux, np.fft.rfft(np.square(u, out=u))[:, :kept], out=out[:, :kept])
        return out

    linear = beta * i_k**2 - gamma * i_k**3 - delta * i_k**4
    flow = ExponentialRungeKutta(linear, convection, FRAME_SPACING / steps_per_frame)
    v, frames = np.fft.rfft(u0), np.empty((len(u0), num_frames, NUM_POINTS))
    stride = num_points // NUM_POINTS
    frames[:, 0] = u0[:, ::stride]
    for frame in range(1, num_frames):
        for _ in range(steps_per_frame):
            v = flow.step(v)
        frames[:, frame] = np.fft.irfft(v, n=num_points)[:, ::stride]
    return frames


def scaled(u_BTXc: np.ndarray, parameters: Values, factor_B: np.ndarray) -> tuple[np.ndarray, Values]:
    """Solutions s u and their parameters: alpha u u_x becomes alpha / s (s u) (s u)_x / s, the rest is linear."""
    return factor_B[:, None, None, None] * u_BTXc, {**parameters, "alpha": parameters["alpha"] / factor_B}


def boosted(u_BTXc: np.ndarray, parameters: Values, speed_B: np.ndarray) -> tuple[np.ndarray, Values]:
    """Solutions u(x - alpha c t, t) + c: the mean flow c carries everything along (Galilean invariance)."""
    times_T = np.arange(u_BTXc.shape[1]) * FRAME_SPACING
    travelled_BT = (parameters["alpha"] * speed_B)[:, None] * times_T
    moved = translate(u_BTXc[..., 0], travelled_BT, LENGTH) + speed_B[:, None, None]
    return moved[..., None], parameters


EQUATION = Equation(
    name="combined",
    channels={"u": "1"},
    grid=(NUM_POINTS,),
    lengths=(LENGTH,),
    periodic=(True,),
    num_frames=NUM_FRAMES,
    frame_spacing=FRAME_SPACING,
    inside=Environments(
        count=_PRODUCTS.count,
        ranges={**_PRODUCTS.ranges, "delta": ((0.0, 0.0),)},
        values=lambda numbers, *drawn: {**_PRODUCTS.values(numbers, *drawn), "delta": np.zeros(len(numbers))},
    ),
    outside=Environments(
        count=_PRODUCTS.count, ranges={**_PRODUCTS.ranges, "delta": (DELTA,)}, values=_out_of_distribution
    ),
    initial_conditions=lambda split, *, seed, group: initial_conditions(split, seed=seed, group=group)[..., None],
    solve=lambda u0, parameters: solve(u0[..., 0], parameters)[..., None],
    solver_grid=(_SOLVER_POINTS,),
    symmetries={"amplitude": scaled, "boost": boosted},
    quantities=(mass(), energy("decays")),
)
