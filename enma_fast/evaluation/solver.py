"""Solver fidelity: the distance of generated trajectories from the solutions that start at their first frames.

Shape suffixes: B trajectories, T frames, c channels; `*x` points.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np

from ..data import EQUATIONS, SPACING_TOLERANCE, FieldFile
from ..data.equation import Equation
from ..data.spectral import refine
from ..errors import EnmaError, first_line

log = logging.getLogger("enma_fast")


def solver_fidelity(dataset: str, data: FieldFile, rows: Sequence[int], generated: np.ndarray) -> float | None:
    """Mean relative L2 distance of trajectories from the solutions that start at their first frames; no unit.

    `generated` is `[B, T, *x, c]` from the first frame on, with the parameters of the trajectories of the field file
    `data` with the numbers `rows`, and its grid, domain and frame spacing. None if there is no equation of the name
    `dataset`, the file lacks a parameter of it or is of another grid, domain or frame spacing, a solution blows up, or
    the solver fails, which is logged as a warning.
    """
    equation = EQUATIONS.get(dataset)
    if equation is None or not _is_of(equation, data, generated):
        return None
    index = data.places(rows)
    values = {name: data.parameters[name][index] for name in equation.parameters}
    try:
        mean = _distance(equation, values, generated.astype(np.float64))
    except Exception as error:
        # Solvers of users raise anything; the other scores do not depend on them.
        said = error if isinstance(error, EnmaError) else f"the solver of {dataset} fails ({first_line(error)})"
        log.warning("solver_fidelity is left out: %s", said)
        return None
    return mean if np.isfinite(mean) else None


def _distance(equation: Equation, values: dict[str, np.ndarray], u_BTxc: np.ndarray) -> float:
    """Mean relative L2 distance of trajectories `[B, T, *x, c]` from those that the solver makes of their beginnings.

    It is not finite where a solution blows up.
    """
    start_Bxc = u_BTxc[:, 0]
    for axis, (points, fine) in enumerate(zip(u_BTxc.shape[2:-1], equation.solver_grid, strict=True), 1):
        start_Bxc = refine(start_Bxc, fine // points, axis)
    strides = (full // points for full, points in zip(equation.grid, u_BTxc.shape[2:-1], strict=True))
    with np.errstate(all="ignore"):
        solved = equation.solve(start_Bxc, values)[:, : u_BTxc.shape[1]].astype(np.float64)
        solved = solved[:, :, *(slice(None, None, stride) for stride in strides)]
        return float((_norm(u_BTxc - solved) / _norm(solved)).mean())


def _norm(u: np.ndarray) -> np.ndarray:
    """L2 norm of each trajectory, [B]."""
    return np.asarray(np.sqrt(np.square(u).sum(tuple(range(1, u.ndim)))))


def _is_of(equation: Equation, data: FieldFile, generated: np.ndarray) -> bool:
    """True if a file has the equation's domain, frame spacing and parameters, and points that its grid contains."""
    points, domain = generated.shape[2:-1], equation.domain
    return (
        set(equation.parameters) <= set(data.parameters)
        and tuple(equation.channels) == data.channels
        and domain.periodic == data.periodic
        and data.domain.same_size(domain)
        and all(
            full % size == 0 if wraps else full == size
            for full, size, wraps in zip(domain.grid, points, domain.periodic, strict=True)
        )
        and generated.shape[1] <= equation.num_frames
        and np.allclose(np.diff(data.times), equation.frame_spacing, rtol=SPACING_TOLERANCE)
    )
