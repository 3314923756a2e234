"""Forecast the trajectories of a field file in one of the three tasks, and score the ensembles.

| task            | the model sees                                      | scored against           |
|-----------------|-----------------------------------------------------|--------------------------|
| `temporal`      | the first `history` frames                          | the frames after them    |
| `initial-value` | frame 0, and another trajectory of its environment  | the frames after frame 0 |
| `generation`    | another trajectory of the environment               | see `score`              |

The other trajectory is the next one of the same environment (`FieldFile.context_for`). The number of a
trajectory in its file is part of its noise key, so a score does not depend on which others are scored with it.

Shape suffixes: B trajectories, K members, T frames, X points.
"""

from __future__ import annotations

import importlib.util
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from .config import ModelConfig
from .data import DEFAULT_GROUPS, EQUATIONS, FieldFile
from .ensemble import forecast
from .errors import EnmaError
from .metrics import Scores
from .model import Model
from .paper import paper_scores, paper_uncertainty

log = logging.getLogger("enma_fast")

TASKS = ("temporal", "initial-value", "generation")
# Errors against a truth, which a generated trajectory does not have.
_NEED_TRUTH = ("rel_l2", "rel_l2_member", "rmse")
# Paper, generation on Combined: the solver is run again from the generated initial condition.
_PAPER_SOLVER_FIDELITY = 0.081
_TOLERANCE = 1e-3


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is forecast for each trajectory of a file. `history` counts for the temporal task only."""

    task: str = "temporal"
    history: int = 3
    members: int = 16
    seed: int = 0
    chunk: int = 256

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise EnmaError(f"task {self.task!r} is unknown; use one of {', '.join(TASKS)}")
        if self.members < 1:
            raise EnmaError(f"members is {self.members}; at least 1 is needed")
        if self.chunk < 1:
            raise EnmaError(f"chunk is {self.chunk}; at least 1 is needed")

    @property
    def observed(self) -> int:
        """Observed frames of the target trajectory."""
        return {"temporal": self.history, "initial-value": 1, "generation": 0}[self.task]


def num_frames(config: ModelConfig, data: FieldFile) -> int:
    """Frames of a trajectory, observed and forecast: the file's, up to the length the model was trained on."""
    return min(len(data.times), config.num_frames)


def check_file(config: ModelConfig, data: FieldFile) -> None:
    """Raise `EnmaError` unless grid, domain, channels and frame spacing of a file are the model's."""
    tok = config.tokenizer
    grid = data.u.shape[2:-1]
    if grid != tok.grid:
        raise EnmaError(f"{data.path}: the grid is {_times(grid)} points; {config.name} expects {_times(tok.grid)}")
    if len(data.channels) != tok.field_channels:
        raise EnmaError(
            f"{data.path}: holds {len(data.channels)} channels ({', '.join(data.channels)}); {config.name} expects "
            f"{tok.field_channels}"
        )
    if data.periodic != tok.periodic:
        raise EnmaError(
            f"{data.path}: boundary_conditions are {_boundaries(data.periodic)}; {config.name} expects "
            f"{_boundaries(tok.periodic)}"
        )
    if not np.allclose(data.lengths, tok.lengths, rtol=_TOLERANCE):
        raise EnmaError(
            f"{data.path}: the domain has size {_times(data.lengths)}; {config.name} expects {_times(tok.lengths)}"
        )
    steps = np.diff(data.times)
    if not np.allclose(steps, config.frame_interval, rtol=_TOLERANCE * len(steps)):
        raise EnmaError(
            f"{data.path}: dimensions/time has frames {steps.mean():.4g} apart; {config.name} expects "
            f"{config.frame_interval:.4g}"
        )


def check_case(config: ModelConfig, data: FieldFile, case: Case) -> None:
    """Raise `EnmaError` unless the file has what the case asks of it."""
    check_file(config, data)
    frames = num_frames(config, data)
    if case.task == "temporal" and case.history < 3:
        raise EnmaError(
            f"history is {case.history}; {config.name} needs at least 3 frames (or use --task initial-value)"
        )
    if case.observed >= frames:
        raise EnmaError(
            f"{data.path}: {frames} frames are too few: with history {case.observed} none is left to forecast"
        )
    if case.task != "temporal":
        data.context_for(0)


def ensembles(
    model: Model, data: FieldFile, case: Case, *, rows: Sequence[int]
) -> Iterator[tuple[list[int], Tensor]]:
    """Forecast trajectories of a file, some at a time.

    Yields
    ------
    rows, samples : trajectory numbers in the file, and `[B, K, T, *x, c]` fp32 without the observed frames
    """
    check_case(model.config, data, case)
    frames = num_frames(model.config, data)
    size = max(1, case.chunk // case.members)
    for first in range(0, len(rows), size):
        part = list(rows[first : first + size])
        context = None
        if case.task != "temporal":
            context = data.u[[data.context_for(i) for i in part], :frames]
        samples = forecast(
            model,
            data.u[part, : case.observed] if case.observed else None,
            context=context,
            num_frames=frames - case.observed,
            num_members=case.members,
            seed=case.seed,
            trajectories=part,
            chunk=case.chunk,
        )
        yield part, samples


def score(
    model: Model,
    data: FieldFile,
    *,
    task: str = "temporal",
    history: int = 3,
    members: int = 16,
    seed: int = 0,
    limit: int | None = None,
    chunk: int = 256,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Score ensemble forecasts of the trajectories of a file.

    A generated trajectory has no truth, so in the task `generation` the errors `rel_l2`, `rel_l2_member` and
    `rmse` are None. The trajectory of the file is instead one draw from the distribution that the members
    should follow, all initial conditions of the environment: against it `crps`, `rmsce`, `rmsce_rank`,
    `spread_skill` and the rank histogram have their usual meaning. `solver_fidelity` says whether members obey the
    equation: the mean over trajectories of the relative L2 distance of the first member from the solution that starts
    at its own first frame, with the true parameters (None if the file is of no known equation, or exponax is missing).

    Parameters
    ----------
    model : from `load_model`
    data : from `enma_fast.read_fields`
    task : "temporal", "initial-value" or "generation"
    history : observed frames of the temporal task
    members : ensemble size
    seed : of the noise
    limit : score the first so many trajectories only
    chunk : rows (trajectories x members) sampled at a time
    progress : called with (trajectories done, trajectories)

    Returns
    -------
    dict
        The same keys for every task, plain data for JSON: those of `metrics.Scores.result`, `rank_histogram`,
        `solver_fidelity`, `seconds_per_member` (wall time of sampling, encoding and decoding), `num_parameters`,
        `num_frames` (forecast), `model`, `dataset`, `split`, `task`, `history` (observed frames) and `seed`.

    Raises
    ------
    EnmaError
        If the file does not fit the model or the task; the line names the file, the field and the mend.
    """
    case = Case(task=task, history=history, members=members, seed=seed, chunk=chunk)
    if limit is not None and limit < 1:
        raise EnmaError(f"limit is {limit}; at least 1 is needed")
    rows = range(min(limit or len(data), len(data)))
    scores, seconds = Scores(), 0.0
    last = num_frames(model.config, data)
    first_members = []
    clock = time.perf_counter()
    for part, samples in ensembles(model, data, case, rows=rows):
        seconds += time.perf_counter() - clock
        scores.update(samples, data.u[part, case.observed : last])
        if task == "generation":
            first_members.append(samples[:, 0].cpu().numpy())
        if progress is not None:
            progress(scores.num_trajectories, len(rows))
        clock = time.perf_counter()
    dataset, split = dataset_split(data.name)
    result = scores.result()
    per_frame = result.pop("per_frame")
    fidelity = None
    if task == "generation":
        result |= dict.fromkeys(_NEED_TRUTH)
        per_frame |= {name: [None] * len(per_frame[name]) for name in _NEED_TRUTH}
        fidelity = solver_fidelity(dataset, data, rows, np.concatenate(first_members))
    return {
        "task": task,
        "dataset": dataset,
        "split": split,
        "model": model.config.name,
        **result,
        "solver_fidelity": fidelity,
        "history": case.observed,
        "num_frames": last - case.observed,
        "seed": seed,
        "seconds_per_member": seconds / (len(rows) * members),
        "num_parameters": sum(p.numel() for p in model.parameters()),
        "rank_histogram": scores.rank_histogram().tolist() if members > 1 else None,
        "per_frame": per_frame,
    }


def solver_fidelity(
    dataset: str, data: FieldFile, rows: Sequence[int], generated: np.ndarray
) -> float | None:
    """Mean relative L2 distance of trajectories `[B, T, X, 1]` from the solution that starts at their first frame.

    None if the solver is not installed, the file is of no equation of this package, or it lacks a parameter.
    """
    problem = EQUATIONS.get(dataset)
    if problem is None or not set(problem.PARAMETERS) <= set(data.parameters):
        return None
    if importlib.util.find_spec("exponax") is None:
        log.warning("solver_fidelity is left out: exponax is not installed (pip install 'enma-fast[data]')")
        return None
    index = list(rows)
    u_BTX = generated[..., 0].astype(np.float64)
    values = {name: data.parameters[name][index] for name in problem.PARAMETERS}
    solved_BTX = problem.solve(refine(u_BTX[:, 0]), values)[:, : u_BTX.shape[1]].astype(np.float64)
    solved_BTX = solved_BTX[..., :: solved_BTX.shape[-1] // u_BTX.shape[-1]]
    distance = np.linalg.norm(u_BTX - solved_BTX, axis=(1, 2)) / np.linalg.norm(solved_BTX, axis=(1, 2))
    mean = float(distance.mean())
    return mean if np.isfinite(mean) else None


def refine(u_BX: np.ndarray) -> np.ndarray:
    """Trigonometric interpolation of periodic functions to twice the points: `[B, X] -> [B, 2 X]`, float64."""
    num_points = u_BX.shape[1]
    u_hat = np.fft.rfft(u_BX)
    if num_points % 2 == 0:
        # The highest wave stands for its two signs, which are different waves on the finer grid.
        u_hat[:, -1] /= 2
    return 2 * np.fft.irfft(u_hat, n=2 * num_points)


def dataset_split(name: str) -> tuple[str, str | None]:
    """Data set and split in a file's `dataset_name`: `"combined-test-in"` is `("combined", "test-in")`."""
    for split in DEFAULT_GROUPS:
        if name.endswith(f"-{split}"):
            return name.removesuffix(f"-{split}"), split
    return name, None


def paper_table(result: dict[str, Any]) -> list[dict[str, Any]]:
    """The paper's figures that a result can be put beside.

    Returns
    -------
    list of dict
        `model`, and those of `rel_l2`, `crps`, `rmsce`, `solver_fidelity` that the paper reports for this data set,
        task and split, in its order; empty if it reports none.
    """
    dataset, task, split = result["dataset"], result["task"], result["split"]
    if task == "generation":
        known = dataset == "combined" and split == "test-in"
        return [{"model": "ENMA", "solver_fidelity": _PAPER_SOLVER_FIDELITY}] if known else []
    try:
        errors = paper_scores(dataset, task, split or "none")
    except EnmaError:
        return []
    calibrated = (dataset, task, split) == ("combined", "temporal", "test-in")
    uncertainty = paper_uncertainty() if calibrated else {}
    return [{"model": name, "rel_l2": value, **uncertainty.get(name, {})} for name, value in errors.items()]


def _times(values: Sequence[float]) -> str:
    return " x ".join(f"{value:.6g}" for value in values)


def _boundaries(periodic: Sequence[bool]) -> str:
    return ", ".join("periodic" if wraps else "open" for wraps in periodic)
