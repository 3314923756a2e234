"""The classical alternative to a model of the Combined equation: its parameters fitted to observed frames, and solved.

For each trajectory `scipy.optimize.least_squares` seeks alpha, beta and gamma, within the ranges of the data, with
which the data's own solver goes from the first observed frame through the others. Members are solved with parameters
drawn about the fit: normal, of covariance s^2 (J^T J)^-1 for the residuals' variance s^2 and their derivatives J
(Laplace's approximation), and moved into the ranges.

It is given what a model has to learn, the equation and the ranges, and observations without noise: an upper bound for
data in distribution. Out of distribution, where the equation has one more term, it fits the wrong equation.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import numpy as np
import torch

from enma_fast.data import FieldFile
from enma_fast.data.equations import combined
from enma_fast.data.spectral import refine
from enma_fast.evaluation.metrics import Scores
from enma_fast.utils.extras import load_extra

FITTED = ("alpha", "beta", "gamma")
LOW, HIGH = (np.array([combined.EQUATION.inside.ranges[name][0][side] for name in FITTED]) for side in (0, 1))
# Step of a finite difference, as a share of each range.
STEP = 1e-4


def solve(u_X: np.ndarray, values_K3: np.ndarray, num_frames: int) -> np.ndarray:
    """Trajectories `[K, num_frames, X]` from one frame, one for each row of parameters."""
    columns = {name: values_K3[:, i] for i, name in enumerate(FITTED)} | {"delta": np.zeros(len(values_K3))}
    start = np.repeat(refine(u_X[None].astype(float)), len(values_K3), axis=0)
    return combined.solve(start, columns, num_frames=num_frames)


def fit(observed_LX: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Parameters of a trajectory's first frames `[L, X]`, and a square root of their covariance `[3, 3]`."""
    known: dict[bytes, tuple[np.ndarray, np.ndarray]] = {}

    def both(values_3: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Residuals and their derivatives, from one batch of the solver."""
        if (key := values_3.tobytes()) not in known:
            # Inwards, so that no parameter leaves its range.
            step = np.where(values_3 > (LOW + HIGH) / 2, -STEP, STEP) * (HIGH - LOW)
            batch = np.vstack([values_3, values_3 + np.diag(step)])
            r = (solve(observed_LX[0], batch, len(observed_LX))[:, 1:] - observed_LX[1:]).reshape(len(batch), -1)
            known.clear()
            known[key] = r[0], ((r[1:] - r[0]) / step[:, None]).T
        return known[key]

    found = load_extra("scipy.optimize", "data").least_squares(
        lambda x: both(x)[0], (LOW + HIGH) / 2, jac=lambda x: both(x)[1], bounds=(LOW, HIGH), x_scale=HIGH - LOW
    )
    residuals, derivatives = both(found.x)
    variance = (residuals**2).sum() / (len(residuals) - len(FITTED))
    _, sizes, axes = np.linalg.svd(derivatives, full_matrices=False)
    return found.x, np.sqrt(variance) * axes.T / np.maximum(sizes, np.finfo(float).tiny)


def ensemble(observed_LX: np.ndarray, *, members: int, num_frames: int, seed: int) -> np.ndarray:
    """Members `[K, num_frames, X]` that follow the observed frames of one trajectory."""
    values_3, root_33 = fit(observed_LX)
    normal_K3 = np.random.default_rng(seed).standard_normal((members, len(FITTED)))
    drawn_K3 = np.clip(values_3 + normal_K3 @ root_33.T, LOW, HIGH)
    return solve(observed_LX[-1], drawn_K3, num_frames + 1)[:, 1:]


def measure(data: FieldFile, *, rows: list[int], observed: int, members: int, seed: int) -> dict[str, Any]:
    """Scores and times of ensembles for trajectories `rows`, all frames of the file after the observed ones."""
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
