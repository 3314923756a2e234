"""The Gray-Scott equations: two species that react and diffuse on a periodic plane.

    u_t = D_u lap u - u v^2 + F (1 - u)
    v_t = D_v lap v + u v^2 - (F + k) v,    (x, y) in [0, 64)^2, t in [0, 950]

At t = 0 u = 0.95 and v = 0.05, but u = 0 and v = 1 in four squares of 3 x 3 points at random places.

| parameter | in distribution | out of distribution | source |
|---|---|---|---|
| F (feed rate) | U(0.023, 0.045) | U(0.045, 0.0467) | paper, section C |
| k (kill rate) | U(0.059, 0.064) | U(0.057, 0.059) | paper, section C |
| D_u, D_v | 0.204, 0.102 | same | paper, section C, with the two exchanged |

With the diffusivities as the paper prints them patterns die out; exchanged, and with 50 units of time between frames,
the equations reproduce the paper's figure (correlation 0.96 to 0.99). F and k lie on 100-point linspaces.

Grid: x_i = 2 i for i = 0..31 in both dimensions, t_n = 50 n for n = 0..19; frame 0 is the initial condition.

Solver: method of lines as in the authors' earlier data, the 5-point Laplacian on the grid of the frames, under the
classical Runge-Kutta method with time steps of 1 (the diffusion is stable up to 6.8).
"""

from __future__ import annotations

from functools import partial

import numpy as np

from ..equation import Equation, Quantity, Values, in_batches, linspaces
from ..splits import TRAJECTORIES_PER_GROUP, group_uniforms

NUM_POINTS = 32
SPACING = 2.0
NUM_FRAMES = 20
FRAME_SPACING = 50.0
DIFFUSION = (0.204, 0.102)
NUM_SQUARES, SQUARE = 4, 3

_STEPS_PER_FRAME = 50
# Trajectories at a time.
_BATCH = 8


def initial_conditions(split: str, *, seed: int, group: int) -> np.ndarray:
    """The initial conditions of one group, float64 `[TRAJECTORIES_PER_GROUP, 32, 32, 2]`."""
    shape = (TRAJECTORIES_PER_GROUP, NUM_SQUARES, 2)
    corner = np.floor(NUM_POINTS * group_uniforms("gray_scott", split, seed=seed, group=group, shape=shape)).astype(int)
    i = (corner[..., None] + np.arange(SQUARE)) % NUM_POINTS
    fields = np.empty((TRAJECTORIES_PER_GROUP, NUM_POINTS, NUM_POINTS, 2))
    fields[...] = 0.95, 0.05
    row = np.arange(TRAJECTORIES_PER_GROUP)[:, None, None, None]
    fields[row, i[:, :, 0, :, None], i[:, :, 1, None, :]] = 0.0, 1.0
    return fields


def outside(fields: np.ndarray) -> np.ndarray:
    """How far concentrations lie below 0, or that of u above 1, where the reaction cannot take them."""
    u, v = fields[..., 0], fields[..., 1]
    return np.maximum(0, -u) + np.maximum(0, u - 1) + np.maximum(0, -v)


def solve(u0: np.ndarray, parameters: Values, *, steps_per_frame: int = _STEPS_PER_FRAME) -> np.ndarray:
    """Integrate initial conditions `[B, 32, 32, 2]`; float64 `[B, NUM_FRAMES, 32, 32, 2]`, frame 0 is `u0`."""
    feed, kill = (np.asarray(parameters[name], dtype=np.float64)[:, None, None] for name in ("F", "k"))
    frames = np.empty((u0.shape[0], NUM_FRAMES, *u0.shape[1:]))
    frames[:, 0] = u0
    h = FRAME_SPACING / steps_per_frame
    y = np.ascontiguousarray(np.moveaxis(u0, -1, 0), dtype=np.float64)
    for frame in range(1, NUM_FRAMES):
        for _ in range(steps_per_frame):
            y = _step(y, h, feed, kill)
        frames[:, frame] = np.moveaxis(y, 0, -1)
    return frames


def _step(y: np.ndarray, h: float, feed: np.ndarray, kill: np.ndarray) -> np.ndarray:
    k_1 = _rate(y, feed, kill)
    k_2 = _rate(y + h / 2 * k_1, feed, kill)
    k_3 = _rate(y + h / 2 * k_2, feed, kill)
    k_4 = _rate(y + h * k_3, feed, kill)
    return y + h / 6 * (k_1 + 2 * (k_2 + k_3) + k_4)


def _rate(y: np.ndarray, feed: np.ndarray, kill: np.ndarray) -> np.ndarray:
    """Time derivatives of u and v, `[2, B, X, Y]`."""
    u, v = y
    reaction = u * v * v
    rate = _laplacian(y)
    rate[0] *= DIFFUSION[0]
    rate[1] *= DIFFUSION[1]
    rate[0] += feed * (1 - u) - reaction
    rate[1] += reaction - (feed + kill) * v
    return rate


def _laplacian(y: np.ndarray) -> np.ndarray:
    """The 5-point Laplacian around both periodic dimensions, the last two."""
    out = -4 * y
    out[..., 1:, :] += y[..., :-1, :]
    out[..., 0, :] += y[..., -1, :]
    out[..., :-1, :] += y[..., 1:, :]
    out[..., -1, :] += y[..., 0, :]
    out[..., 1:] += y[..., :-1]
    out[..., 0] += y[..., -1]
    out[..., :-1] += y[..., 1:]
    out[..., -1] += y[..., 0]
    out /= SPACING**2
    return out


EQUATION = Equation(
    name="gray_scott",
    channels={"u": "1", "v": "1"},
    grid=(NUM_POINTS, NUM_POINTS),
    lengths=(NUM_POINTS * SPACING, NUM_POINTS * SPACING),
    periodic=(True, True),
    num_frames=NUM_FRAMES,
    frame_spacing=FRAME_SPACING,
    inside=linspaces(100, F=(0.023, 0.045), k=(0.059, 0.064)),
    outside=linspaces(100, F=(0.045, 0.0467), k=(0.057, 0.059)),
    initial_conditions=initial_conditions,
    solve=partial(in_batches, _BATCH, solve),
    # It starts at 0 and stays there.
    quantities=(Quantity(name="outside the range", density=outside, law="conserved"),),
)
