"""The classical alternative to a model of a 1-D equation: its parameters fitted to observed frames, and solved.

For each trajectory `scipy.optimize.least_squares` seeks the parameters with which the data's own solver goes from the
first observed frame through the others. Members are solved with parameters drawn about the fit: normal, of covariance
s^2 (J^T J)^-1 for the residuals' variance s^2 and their derivatives J (Laplace's approximation), and moved into the
bounds.

| equation  | fitted             | bounds                  | first guess                                        |
|-----------|--------------------|-------------------------|----------------------------------------------------|
| Combined  | alpha, beta, gamma | those of the data       | their middle                                       |
| Advection | alpha              | -10 to 10, beyond which | the best of 401 speeds: the residual has as many   |
|           |                    | two frames do not tell  | minima as the field has waves                      |

It is given what a model has to learn, the equation, and observations without noise: an upper bound for data in
distribution. Out of distribution the Combined equation has one more term, and it fits the wrong equation.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from enma_fast.data import FieldFile
from enma_fast.data.equations import advection, combined
from enma_fast.data.spectral import refine
from enma_fast.evaluation.metrics import Scores
from enma_fast.utils.extras import load_extra

# Step of a finite difference, as a share of each range.
STEP = 1e-4


@dataclass(frozen=True, eq=False)
class Problem:
    """An equation whose parameters are fitted.

    Attributes
    ----------
    fitted : names of n parameters
    low, high : their bounds, `[n]`
    guesses : `[S, n]`, of which the best is where the search begins
    solve : (one frame `[X]`, parameters `[K, n]`, frames) -> trajectories `[K, frames, X]`
    """

    fitted: tuple[str, ...]
    low: np.ndarray
    high: np.ndarray
    guesses: np.ndarray
    solve: Callable[[np.ndarray, np.ndarray, int], np.ndarray]


FITTED = ("alpha", "beta", "gamma")


def _combined(u_X: np.ndarray, values_K3: np.ndarray, num_frames: int) -> np.ndarray:
    columns = {name: values_K3[:, i] for i, name in enumerate(FITTED)} | {"delta": np.zeros(len(values_K3))}
    start = np.repeat(refine(u_X[None].astype(float), 2, -1), len(values_K3), axis=0)
    return combined.solve(start, columns, num_frames=num_frames)


def _advection(u_X: np.ndarray, values_K1: np.ndarray, num_frames: int) -> np.ndarray:
    return advection.solve(np.repeat(u_X[None].astype(float), len(values_K1), axis=0), {"alpha": values_K1[:, 0]})[
        :, :num_frames
    ]


def _problem(solve: Callable[..., np.ndarray], guesses: int | None = None, **bounds: tuple[float, float]) -> Problem:
    low, high = (np.array([pair[side] for pair in bounds.values()]) for side in (0, 1))
    first = (low + high)[None] / 2 if guesses is None else np.linspace(low, high, guesses)
    return Problem(tuple(bounds), low, high, first, solve)


COMBINED = _problem(_combined, **{name: combined.EQUATION.inside.ranges[name][0] for name in FITTED})
PROBLEMS = {"combined": COMBINED, "advection": _problem(_advection, 401, alpha=(-10.0, 10.0))}


def fit(observed_LX: np.ndarray, problem: Problem = COMBINED) -> tuple[np.ndarray, np.ndarray]:
    """Parameters `[n]` of a trajectory's first frames `[L, X]`, and a square root of their covariance `[n, n]`."""
    low, high = problem.low, problem.high
    known: dict[bytes, tuple[np.ndarray, np.ndarray]] = {}

    def residuals(values_Kn: np.ndarray) -> np.ndarray:
        solved = problem.solve(observed_LX[0], values_Kn, len(observed_LX))[:, 1:]
        return (solved - observed_LX[1:]).reshape(len(values_Kn), -1)

    def both(values_n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Residuals and their derivatives, from one batch of the solver."""
        if (key := values_n.tobytes()) not in known:
            # Inwards, so that no parameter leaves its range.
            step = np.where(values_n > (low + high) / 2, -STEP, STEP) * (high - low)
            r = residuals(np.vstack([values_n, values_n + np.diag(step)]))
            known.clear()
            known[key] = r[0], ((r[1:] - r[0]) / step[:, None]).T
        return known[key]

    guess = problem.guesses[0]
    if len(problem.guesses) > 1:
        guess = problem.guesses[np.square(residuals(problem.guesses)).sum(1).argmin()]
    found = load_extra("scipy.optimize", "baselines").least_squares(
        lambda x: both(x)[0], guess, jac=lambda x: both(x)[1], bounds=(low, high), x_scale=high - low
    )
    left, derivatives = both(found.x)
    variance = (left**2).sum() / (len(left) - len(problem.fitted))
    _, sizes, axes = np.linalg.svd(derivatives, full_matrices=False)
    return found.x, np.sqrt(variance) * axes.T / np.maximum(sizes, np.finfo(float).tiny)


def ensemble(
    observed_LX: np.ndarray,
    *,
    members: int,
    num_frames: int,
    seed: int,
    problem: Problem = COMBINED,
    context_TX: np.ndarray | None = None,
) -> np.ndarray:
    """Members `[K, num_frames, X]` that follow the observed frames of one trajectory.

    The parameters are those of the observed frames, or of another trajectory `context_TX` of the same physics.
    """
    values_n, root_nn = fit(observed_LX if context_TX is None else context_TX, problem)
    normal_Kn = np.random.default_rng(seed).standard_normal((members, len(problem.fitted)))
    drawn_Kn = np.clip(values_n + normal_Kn @ root_nn.T, problem.low, problem.high)
    return problem.solve(observed_LX[-1], drawn_Kn, num_frames + 1)[:, 1:]


def measure(data: FieldFile, *, rows: list[int], observed: int, members: int, seed: int) -> dict[str, Any]:
    """Scores and times of ensembles for Combined trajectories `rows`: all frames after the observed ones."""
    scores, seconds, last = Scores(), [], len(data.times)
    for i, row in enumerate([rows[0], *rows]):
        clock = time.perf_counter()
        members_KTX = ensemble(
            data.u[row, :observed, :, 0], members=members, num_frames=last - observed, seed=seed + row
        )
        # The first one compiles the solver.
        if i > 0:
            seconds.append(time.perf_counter() - clock)
            samples = torch.from_numpy(members_KTX[None, ..., None].astype(np.float32))
            scores.update(samples, data.u[[row], observed:last])
    result = scores.result()
    each = [s / members for s in seconds]
    return {
        "name": "fitted solver",
        "seconds_per_member": statistics.median(each),
        "seconds_min": min(each),
        "seconds_max": max(each),
        "seconds_per_forecast": statistics.median(seconds),
        **{key: result[key] for key in ("rel_l2", "crps", "spread_skill")},
    }
