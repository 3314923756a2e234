"""Score ensemble forecasts of a field file in one of the tasks (`forecasting.request.TASKS`), as a dict of plain data.

Shape suffixes: B trajectories, T frames, X points.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from ..config import SamplingConfig
from ..data import EQUATIONS, FieldFile, dataset_split
from ..errors import EnmaError
from ..forecasting.file_forecast import FileForecast
from ..forecasting.request import TASKS, ForecastRequest, task_named
from ..forecasting.sink import Sink
from ..models.model import Model
from .paper import SOLVER_FIDELITY, paper_scores, paper_uncertainty
from .solver import solver_fidelity
from .task_scores import FileScores


def score(
    model: Model,
    data: FieldFile,
    *,
    task: str = ForecastRequest.task.name,
    num_history: int = ForecastRequest.num_history,
    num_members: int = ForecastRequest.num_members,
    seed: int = ForecastRequest.seed,
    limit: int | None = None,
    chunk: int | None = ForecastRequest.chunk,
    settings: SamplingConfig | None = None,
    dtype: torch.dtype | str | None = None,
    strict: bool = False,
    points: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Score ensemble forecasts of the trajectories of a file.

    A generated trajectory has no truth, so in the task `generation` the errors, all that begin with `rel_l2` and
    `rmse`, are None. The trajectory of the file is instead one draw from the distribution that the members
    should follow, all initial conditions of the environment: against it `crps`, `rmsce`, `rmsce_rank`,
    `spread_skill` and the rank histogram have their usual meaning, and its RMS is the unit of `crps_relative`.
    `solver_fidelity` says whether members obey the equation. It is the relative L2 distance of the first member from
    the solution that starts at its own first frame, with the true parameters, averaged over trajectories. It is None if
    the file is of no known equation.

    Parameters
    ----------
    model : from `load_model`
    data : from `enma_fast.read_fields`
    task : "temporal", "initial-value" or "generation"
    num_history : observed frames of the temporal task
    num_members : ensemble size
    seed : of the noise
    limit : score the first so many trajectories only
    chunk : rows (trajectories x members) sampled at a time; by default as many as suit the device
    settings : of the sampler; the model's own by default
    dtype : of the sampler's weights, or "auto" (the faster); by default the model's own, and bf16 on a GPU
    strict : refuse observed frames outside the training data; otherwise they are logged as a warning
    points : grid points observed in each frame, others in each (models with interpolation); by default all
    progress : called with (trajectories done, trajectories)

    Returns
    -------
    dict
        The same keys for every task, plain data for JSON:

        * the scores of `metrics.Scores.result`, over all channels together, and under `channels` those of each channel
          by its name (`ChannelScores.result`; None if there is one);
        * `rank_histogram`, `solver_fidelity`, and `physics` (`physics.Physics.result`);
        * `seconds_per_member`, the wall time of sampling, encoding and decoding;
        * `num_outside`, trajectories whose observed frames lie outside the training data (None if the checkpoint has no
          record of that);
        * what was scored: `model`, `num_parameters`, `dataset`, `split`, `task`, `history` (observed frames),
          `num_frames` (forecast), `points` (as asked), `seed`, `sampling` (the settings), `precision` (as requested).

    Raises
    ------
    EnmaError
        If the file does not fit the model or the task; the line names the file, the field and the fix.
    """
    if limit is not None and limit < 1:
        raise EnmaError(f"limit is {limit}; at least 1 is needed")
    request = ForecastRequest(
        task=task_named(task),
        num_history=num_history,
        num_members=num_members,
        trajectories=data.trajectories[:limit],
        seed=seed,
        settings=settings,
        dtype=dtype,
        chunk=chunk,
        strict=strict,
        points=points,
    )
    return score_forecast(FileForecast(model, data, request), progress=progress)


def score_forecast(
    forecast: FileForecast,
    *,
    warn: bool = True,
    progress: Callable[[int, int], None] | None = None,
    sinks: Sequence[Sink] = (),
) -> dict[str, Any]:
    """Score a forecast as `score` does; `sinks` take the members too.

    Without `warn`, trajectories outside the training data are not logged.
    """
    model, data, request = forecast.model, forecast.data, forecast.request
    forecast.check()
    rows, seen, last = forecast.trajectories, forecast.num_observed, forecast.num_total
    if last > len(data.times):
        raise EnmaError(
            f"{data.path}: holds {len(data.times)} frames; to score {last - seen} frames after {seen}, {last} are "
            "needed"
        )
    unlike_training = forecast.outside_training(warn=warn)
    dataset, split = dataset_split(data.name)
    scores = FileScores(forecast)
    seconds = forecast.fill((scores, *sinks), progress=progress)
    fidelity = None
    if not request.task.has_truth:
        fidelity = solver_fidelity(dataset, data, rows, np.stack(scores.first_members))
    return {
        "task": request.task.name,
        "dataset": dataset,
        "split": split,
        "model": model.config.name,
        **scores.result(data.units, has_truth=request.task.has_truth),
        "solver_fidelity": fidelity,
        "num_outside": None if unlike_training is None else len(unlike_training),
        "history": seen,
        "points": request.points,
        "num_frames": last - seen,
        "seed": request.seed,
        "sampling": dataclasses.asdict(request.sampling),
        "precision": request.precision,
        "seconds_per_member": seconds / (len(rows) * request.num_members),
        "num_parameters": sum(p.numel() for p in model.parameters()),
    }


def paper_table(result: dict[str, Any]) -> list[dict[str, Any]]:
    """The paper's scores for the data set, task and split of a result, in its order.

    Each has `model`, and those of `rel_l2`, `crps`, `rmsce`, `solver_fidelity` that the paper reports for them; there
    is none if it reports none, or of other frames, or if the model saw a part of the points.
    """
    if result.get("points") is not None:
        return []
    dataset, task, split = result["dataset"], result["task"], result["split"]
    problem, frames = EQUATIONS.get(dataset), result.get("num_frames")
    if problem is not None and frames is not None and task in TASKS:
        # Errors grow with time, so forecasts of another length, or from other frames, are not comparable.
        observed = TASKS[task].num_observed
        usual = ForecastRequest.num_history if observed is None else observed
        if result["history"] != usual or result["history"] + frames != problem.num_frames:
            return []
    if task == "generation":
        is_reported = dataset == "combined" and split == "test-in"
        return [{"model": "ENMA", "solver_fidelity": SOLVER_FIDELITY}] if is_reported else []
    try:
        errors = paper_scores(dataset, task, split or "none")
    except EnmaError:
        return []
    calibrated = (dataset, task, split) == ("combined", "temporal", "test-in")
    uncertainty = paper_uncertainty() if calibrated else {}
    return [{"model": name, "rel_l2": value, **uncertainty.get(name, {})} for name, value in errors.items()]
