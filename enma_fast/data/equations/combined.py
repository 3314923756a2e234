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

Solver: exponax's pseudo-spectral convection (256 points, 2/3 dealiasing, float64, JAX on CPU) under ETDRK4,
the exponential fourth-order Runge-Kutta method of Cox and Matthews (2002) with the contour integrals of
Kassam and Trefethen (2005), exact for the linear part. The step is written here because exponax 0.2.0 keeps
only the real part of the coefficients: with dispersion, whose symbol is imaginary, its order falls to one
(beta = 5e-4, gamma = 0.01, 400 steps: relative error 1e-3 to 2e-2; with complex coefficients below 3e-8).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from ...utils.extras import load_extra
from ..equation import Environments, Equation, Values, energy, linspaces, mass
from ..spectral import translate
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
_CONTOUR_POINTS = 32
_LEVELS = 100
_PRODUCTS = linspaces(_LEVELS, alpha=(0.5, 1.0), beta=(5e-4, 0.5), gamma=(0.01, 1.0))


def _in_distribution(numbers: np.ndarray, split: str, seed: int) -> Values:
    return {**_PRODUCTS.values(numbers, split, seed), "delta": np.zeros(len(numbers))}


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
    jax = load_extra("jax", "data")
    coefficients = np.stack([np.asarray(parameters[name], dtype=np.float64) for name in PARAMETERS], axis=1)
    with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]):
        u = _solver(u0.shape[1], steps_per_frame, num_frames)(np.asarray(u0, dtype=np.float64), coefficients)
        u = np.asarray(u)
    return u[:, :, :: u0.shape[1] // NUM_POINTS]


@functools.lru_cache(maxsize=8)
def _solver(num_points: int, steps_per_frame: int, num_frames: int) -> Callable[[np.ndarray, np.ndarray], Any]:
    """Jitted (u0 [B, X], coefficients [B, 4]) -> u [B, num_frames, X]."""
    jax, exponax = load_extra("jax", "data"), load_extra("exponax", "data")
    jnp = jax.numpy
    dt = FRAME_SPACING / steps_per_frame
    circle = np.exp(2j * np.pi * (np.arange(_CONTOUR_POINTS) + 0.5) / _CONTOUR_POINTS)

    def trajectory(u0: Any, coefficients: Any) -> Any:
        alpha, beta, gamma, delta = coefficients
        d_x = exponax.spectral.build_derivative_operator(1, LENGTH, num_points)
        # exponax: N(u) = -scale (u^2)_x / 2 in conservative form, which is -scale u u_x; so scale = alpha.
        convection = exponax.nonlin_fun.ConvectionNonlinearFun(
            1, num_points, derivative_operator=d_x, scale=alpha, conservative=True, dealiasing_fraction=2 / 3
        )
        # TODO: use exponax's stepper when its ETDRK4 keeps complex coefficients.
        linear = dt * (beta * d_x**2 - gamma * d_x**3 - delta * d_x**4)
        half, full = jnp.exp(linear / 2), jnp.exp(linear)
        z = linear[..., None] + circle
        exp_z = jnp.exp(z)
        q = dt * jnp.mean((jnp.exp(z / 2) - 1) / z, axis=-1)
        f_1 = dt * jnp.mean((-4 - z + exp_z * (4 - 3 * z + z**2)) / z**3, axis=-1)
        f_2 = dt * jnp.mean(2 * (2 + z + exp_z * (z - 2)) / z**3, axis=-1)
        f_3 = dt * jnp.mean((-4 - 3 * z - z**2 + exp_z * (4 - z)) / z**3, axis=-1)

        def step(v: Any, _: None) -> tuple[Any, None]:
            n_v = convection(v)
            a = half * v + q * n_v
            n_a = convection(a)
            n_b = convection(half * v + q * n_a)
            n_c = convection(half * a + q * (2 * n_b - n_v))
            return full * v + f_1 * n_v + f_2 * (n_a + n_b) + f_3 * n_c, None

        def frame(v: Any, _: None) -> tuple[Any, Any]:
            v, _ = jax.lax.scan(step, v, None, length=steps_per_frame)
            return v, exponax.ifft(v, num_spatial_dims=1, num_points=num_points)[0]

        _, u = jax.lax.scan(frame, exponax.fft(u0[None], num_spatial_dims=1), None, length=num_frames - 1)
        return jnp.concatenate([u0[None], u])

    return jax.jit(jax.vmap(trajectory))


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
        count=_PRODUCTS.count, ranges={**_PRODUCTS.ranges, "delta": ((0.0, 0.0),)}, values=_in_distribution
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
