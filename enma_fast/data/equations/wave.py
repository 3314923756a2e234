"""The damped wave equation: displacements of a plane that start at rest.

    w_tt = c^2 lap w - k w_t,    (x, y) in [0, 63/64]^2, t in [0, 0.005]

    w(x, 0) = sum_i exp(-|x - x_i|^2 / (2 s_i^2)),  2 to 4 terms, s ~ U(0.025, 0.1), x_i ~ U([0, 1)^2),  w_t(x, 0) = 0

| parameter | in distribution | out of distribution | source |
|---|---|---|---|
| c (speed) | U(100, 500) | U(500, 550) | paper, section C |
| k (damping) | U(0, 50) | U(50, 60) | paper, section C |

The values lie on 100-point linspaces. Grid: x_i = i / 64 for i = 0..63 in both dimensions, 30 frames from 0 to 0.005;
frame 0 is the initial condition.

Solver: that of the authors' earlier data (APHYNITY, arXiv 2010.04456), which reproduces the paper's figures
(correlation 0.97 to 1) where reflecting, fixed and periodic walls do not: second derivatives by the 5-point stencil of
fourth order along each dimension, set to 0 in the two outer rows or columns. So the four corners of 2 x 2 points keep
their initial value. Time steps by the classical Runge-Kutta method, 16 for each frame (stable up to 2.4e-5).
"""

from __future__ import annotations

from functools import partial

import numpy as np

from ..equation import Equation, Values, in_batches, linspaces
from ..splits import TRAJECTORIES_PER_GROUP, group_uniforms

NUM_POINTS = 64
SPACING = 1 / 64
NUM_FRAMES = 30
DURATION = 0.005
FRAME_SPACING = DURATION / (NUM_FRAMES - 1)
WIDTH = (0.025, 0.1)
MOST_TERMS = 4

_STEPS_PER_FRAME = 16
# Trajectories at a time.
_BATCH = 4


def initial_conditions(split: str, *, seed: int, group: int) -> np.ndarray:
    """The initial displacements of one group, float64 `[TRAJECTORIES_PER_GROUP, 64, 64, 1]`."""
    shape = (TRAJECTORIES_PER_GROUP, 3 * MOST_TERMS + 1)
    u = group_uniforms("wave", split, seed=seed, group=group, shape=shape)
    count, u = 2 + np.floor(3 * u[:, 0]), u[:, 1:].reshape(TRAJECTORIES_PER_GROUP, MOST_TERMS, 3)
    used = np.arange(MOST_TERMS) < count[:, None]
    width = (WIDTH[0] + (WIDTH[1] - WIDTH[0]) * u[:, :, 0])[..., None]
    x = np.arange(NUM_POINTS) * SPACING
    along_x, along_y = (np.exp(-((x - u[:, :, axis, None]) ** 2) / (2 * width**2)) for axis in (1, 2))
    return np.einsum("bi,bix,biy->bxy", used.astype(np.float64), along_x, along_y)[..., None]


def solve(u0: np.ndarray, parameters: Values, *, steps_per_frame: int = _STEPS_PER_FRAME) -> np.ndarray:
    """Integrate displacements `[B, 64, 64, 1]` from rest; float64 `[B, NUM_FRAMES, 64, 64, 1]`, frame 0 is `u0`."""
    speed, damping = (np.asarray(parameters[name], dtype=np.float64)[:, None, None] for name in ("c", "k"))
    frames = np.empty((u0.shape[0], NUM_FRAMES, *u0.shape[1:]))
    frames[:, 0] = u0
    w = np.ascontiguousarray(u0[..., 0], dtype=np.float64)
    velocity = np.zeros_like(w)
    h = FRAME_SPACING / steps_per_frame
    for frame in range(1, NUM_FRAMES):
        for _ in range(steps_per_frame):
            w, velocity = _step(w, velocity, h, speed**2, damping)
        frames[:, frame, ..., 0] = w
    return frames


def _step(
    w: np.ndarray, velocity: np.ndarray, h: float, speed_2: np.ndarray, damping: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    def force(displacement: np.ndarray, moving: np.ndarray) -> np.ndarray:
        return speed_2 * _laplacian(displacement) - damping * moving

    # The k of the displacement are velocities, those of the velocity are forces.
    f_1 = force(w, velocity)
    v_2 = velocity + h / 2 * f_1
    f_2 = force(w + h / 2 * velocity, v_2)
    v_3 = velocity + h / 2 * f_2
    f_3 = force(w + h / 2 * v_2, v_3)
    v_4 = velocity + h * f_3
    f_4 = force(w + h * v_3, v_4)
    return w + h / 6 * (velocity + 2 * (v_2 + v_3) + v_4), velocity + h / 6 * (f_1 + 2 * (f_2 + f_3) + f_4)


def _laplacian(w: np.ndarray) -> np.ndarray:
    """The sum of both second derivatives, each 0 in its two outer rows or columns."""
    out = np.zeros_like(w)
    inner = -30 * w[..., 2:-2, :]
    inner += 16 * (w[..., 1:-3, :] + w[..., 3:-1, :])
    inner -= w[..., :-4, :] + w[..., 4:, :]
    out[..., 2:-2, :] += inner
    inner = -30 * w[..., 2:-2]
    inner += 16 * (w[..., 1:-3] + w[..., 3:-1])
    inner -= w[..., :-4] + w[..., 4:]
    out[..., 2:-2] += inner
    out /= 12 * SPACING**2
    return out


EQUATION = Equation(
    name="wave",
    channels={"w": "1"},
    grid=(NUM_POINTS, NUM_POINTS),
    lengths=((NUM_POINTS - 1) * SPACING, (NUM_POINTS - 1) * SPACING),
    periodic=(False, False),
    num_frames=NUM_FRAMES,
    frame_spacing=FRAME_SPACING,
    inside=linspaces(100, c=(100.0, 500.0), k=(0.0, 50.0)),
    outside=linspaces(100, c=(500.0, 550.0), k=(50.0, 60.0)),
    initial_conditions=initial_conditions,
    solve=partial(in_batches, _BATCH, solve),
)
