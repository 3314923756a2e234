"""Carry out the plan of a training on the user's own data: its recipe, then scores, card and checkpoint.

RUN/plan.json            recipe, split and time
RUN/data/                the splits as field files
all else                 as a run of the recipe (:mod:`enma_fast.training.run`)
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..data import FieldFile, read, write_fields
from ..data.selection import share_of, spread_rows
from ..errors import EnmaError
from ..evaluation.baselines import Method, Observations, baselines
from ..evaluation.metrics import Scores
from ..evaluation.scoring import score_forecast
from ..forecasting.file_forecast import FileForecast
from ..forecasting.request import ForecastRequest, task_named
from ..models.checkpoint import IN_RUN, MANIFEST, METRICS, save_model
from ..models.model import Model
from ..utils.launch import detect
from .card import tell_training
from .loop import RunOptions
from .own_card import own_card
from .own_data import TEST, TRAIN, VAL
from .own_plan import DATA, MEMBERS, SCORED, Plan, Request, make_plan, moves, saved_plan
from .own_sampling import JUDGED, choose_sampling
from .run import Progress, account, data_file, train

# Seconds between saved states, and steps between looks at the loss.
_SAVE_SECONDS, _LOG_EVERY = 60.0, 10


def prepare_own(source: Path, out: Path, request: Request) -> Plan:
    """The plan of a run folder, made and written there with the splits if it is new.

    `EnmaError` as `make_plan` and `saved_plan`, or under a launcher of several processes.
    """
    if detect().num_ranks > 1:
        raise EnmaError(
            "train FILE is one process; on several train the recipe that it writes: enma-fast train RUN/recipe.toml "
            "--data RUN/data --out OTHER"
        )
    plan = saved_plan(source, out, request)
    if plan is None:
        plan, splits = make_plan(source, request)
        for split, data in splits.items():
            name = f"{plan.recipe.model.dataset}-{split}"
            write_fields(out / DATA / f"{name}.h5", data, name=name)
        plan.save(out)
    return plan


def train_own(plan: Plan, out: Path, *, command: str, progress: Progress | None = None) -> dict[str, Any]:
    """Train, score and write what `prepare_own` planned, from where an earlier call stopped.

    `command`, which makes the run again, is for the card. Returns the contents of `metrics.json` of the checkpoint:
    `rows` of scores, each with those of the baselines by name and of single `channels`, the `training`, and of the
    `sampling` the `shifts` and the `temperature`.
    """
    if (out / IN_RUN / MANIFEST).is_file():
        found: dict[str, Any] = json.loads((out / IN_RUN / METRICS).read_text())
        return found
    total, before = sum(plan.seconds.values()), plan.seconds["preparing"]

    def seen(done: float, _: float, note: str) -> None:
        if progress is not None:
            progress(before + done, total, note)

    stages = plan.recipe.folders()
    model = train(
        plan.recipe,
        options=RunOptions(out=out, save_seconds=_SAVE_SECONDS, log_every=_LOG_EVERY),
        data_dir=out / DATA,
        weights={name: plan.seconds[name] for name in stages},
        validations=plan.validations,
        validated=plan.measured,
        progress=seen,
    )
    assert model is not None
    seen(total - before - plan.seconds["scoring"], total, "scoring")
    dataset = plan.recipe.model.dataset
    tell_training(model, data_file(out / DATA, dataset, TRAIN))
    train_data, held, test_data = (read(data_file(out / DATA, dataset, split)) for split in (TRAIN, VAL, TEST))
    if moves(plan.recipe):
        choose_sampling(model, held, judged=share_of(JUDGED, plan.measured))
    methods, scored = baselines(train_data), share_of(SCORED, plan.measured)
    tasks = ("temporal", "initial-value") if plan.contexts else ("temporal",)
    found = {
        "rows": [_scores(model, test_data, methods, task, scored) for task in tasks],
        "training": account(out, plan.recipe),
        "sampling": {name: getattr(model.config.sampling, name) for name in ("shifts", "temperature")},
    }
    save_model(model, out / IN_RUN, card=own_card(plan, found, command), metrics=found)
    return found


def _scores(model: Model, data: FieldFile, methods: dict[str, Method], task: str, scored: int) -> dict[str, Any]:
    """Scores of a task on some test data, beside those of the baselines, which forecast from the same frames."""
    numbers = spread_rows(len(data), scored).tolist()
    request = ForecastRequest(task=task_named(task), num_members=MEMBERS, trajectories=numbers)
    forecast = FileForecast(model, data, request)
    means: list[Tensor] = []

    class Means:
        def add(self, trajectory: int, members: range, values: Tensor) -> None:
            means.append(values.mean(0).cpu())

    row = score_forecast(forecast, warn=False, sinks=[Means()])
    observed, truth = np.split(data.u[numbers], [forecast.num_observed], axis=1)
    given = Observations(
        history=observed, context=None, num_frames=truth.shape[1], num_members=1, trajectories=numbers, seed=0
    )
    made = {name: np.asarray(method(given)) for name, method in methods.items()}

    def errors(forecasts: np.ndarray) -> np.ndarray:
        axes = tuple(range(truth.ndim - 1))
        return np.sqrt(np.square(forecasts - truth, dtype=np.float64).mean(axis=axes))

    each = {"rmse": errors(torch.stack(means).numpy())}
    each |= {f"{name}_rmse": errors(forecasts[:, 0]) for name, forecasts in made.items()}
    channels = {
        channel: {"unit": data.units.get(channel, "1"), **{key: float(values[c]) for key, values in each.items()}}
        for c, channel in enumerate(data.channels)
    }
    kept = {key: value for key, value in row.items() if key not in ("per_frame", "rank_histogram")}
    return {**kept, **{name: _summary(forecasts, truth) for name, forecasts in made.items()}, "channels": channels}


def _summary(forecasts: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    scores = Scores()
    scores.update(forecasts, truth)
    found = scores.result()
    return {key: found[key] for key in ("rel_l2", "rel_l2_median", "rmse")}
