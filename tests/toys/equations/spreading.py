"""Waves on a ring that travel and decay: u_t + c u_x = nu u_xx, solved wave by wave."""

import numpy as np

from enma_fast.data.equation import Equation, linspaces
from enma_fast.data.splits import TRAJECTORIES_PER_GROUP, group_uniforms

POINTS, FRAMES, SPACING = 16, 8, 0.1
X = np.arange(POINTS) * 2 * np.pi / POINTS
WAVES = np.arange(POINTS // 2 + 1)


def initial_conditions(split, *, seed, group):
    draws = group_uniforms("spreading", split, seed=seed, group=group, shape=(TRAJECTORIES_PER_GROUP, 2, 3))
    phases = X + 2 * np.pi * draws[:, 0, :, None]
    return (draws[:, 1, :, None] * np.sin(np.array([1, 2, 3])[:, None] * phases)).sum(1)[..., None]


def solve(u0, parameters):
    rate = -1j * WAVES * parameters["c"][:, None] - WAVES**2 * parameters["nu"][:, None]
    times = SPACING * np.arange(FRAMES)
    moved = np.fft.rfft(u0[..., 0])[:, None] * np.exp(rate[:, None] * times[:, None])
    return np.fft.irfft(moved, POINTS)[..., None]


EQUATION = Equation(
    name="spreading",
    channels={"u": "1"},
    grid=(POINTS,),
    lengths=(2 * np.pi,),
    periodic=(True,),
    num_frames=FRAMES,
    frame_spacing=SPACING,
    inside=linspaces(4, c=(0.5, 1.0), nu=(0.05, 0.1)),
    outside=linspaces(2, c=(1.2, 1.5), nu=(0.01, 0.02)),
    initial_conditions=initial_conditions,
    solve=solve,
)
