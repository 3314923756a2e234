"""Carry out the plan of a training on the user's own data: its stages, then scores, card and checkpoint.

RUN/plan.json            model, recipes, split and time
RUN/data/                the splits as field files
RUN/tokenizer, dynamics, head, forecasts/   runs of the recipes that the plan has, each resumed where it stopped
RUN/checkpoint/          the model, with card and metrics
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
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
from ..models.checkpoint import IN_RUN, MANIFEST, METRICS, load_model, save_model
from ..models.model import Model
from ..utils.launch import detect
from .card import tell_training
from .lineage import account
from .loop import RunOptions
from .own_card import own_card
from .own_data import TEST, TRAIN, VAL
from .own_plan import DATA, DYNAMICS_CHANGES, MEMBERS, SCORED, Plan, Request, make_plan, saved_plan, shares
from .own_sampling import JUDGED, choose_sampling
from .recipes import data_file, recipe, train
from .record import read_record

log = logging.getLogger("enma_fast")

# Seconds between saved states, and steps between looks at the loss.
_SAVE_SECONDS, _LOG_EVERY = 60.0, 10

# Called with the seconds of work that are done and that there are, by the plan, and a note.
Progress = Callable[[float, float, str], None]


def prepare_own(source: Path, out: Path, request: Request) -> Plan:
    """The plan of a run folder, made and written there with the splits if it is new.

    `EnmaError` as `make_plan` and `saved_plan`, or under a launcher of several processes.
    """
    if detect().num_ranks > 1:
        raise EnmaError("train FILE is one process; on several train stage by stage: enma-fast train tokenizer, ...")
    plan = saved_plan(source, out, request)
    if plan is None:
        plan, splits = make_plan(source, request)
        for split, data in splits.items():
            name = f"{plan.preset.model.dataset}-{split}"
            write_fields(out / DATA / f"{name}.h5", data, name=name)
        plan.save(out)
    return plan


def train_own(plan: Plan, out: Path, *, command: str, progress: Progress | None = None) -> dict[str, Any]:
    """Train, score and write what `prepare_own` planned, from where an earlier call stopped.

    `command`, which makes the run again, is for the card. Returns the contents of `metrics.json` of the checkpoint:
    `rows` of scores, each with those of the baselines by name and of single `channels`, the `training`, and of the
    `sampling` the `shifts` and the `temperature`.
    """
    total = sum(plan.seconds.values())
    done = plan.seconds["preparing"]
    for stage in shares(plan.preset):
        if not (out / stage / IN_RUN / MANIFEST).is_file():
            _train(stage, plan, out, progress, done, total)
        done += plan.seconds[stage]
    if (out / IN_RUN / MANIFEST).is_file():
        found: dict[str, Any] = json.loads((out / IN_RUN / METRICS).read_text())
        return found
    if progress is not None:
        progress(done, total, "scoring")
    model = load_model(out / "forecasts")
    dataset = plan.preset.model.dataset
    tell_training(model, data_file(out / DATA, dataset, TRAIN))
    train_data, held, test_data = (read(data_file(out / DATA, dataset, split)) for split in (TRAIN, VAL, TEST))
    if plan.preset.forecast_training.shift:
        choose_sampling(model, held, judged=share_of(JUDGED, plan.measured))
    methods, scored = baselines(train_data), share_of(SCORED, plan.measured)
    tasks = ("temporal", "initial-value") if plan.contexts else ("temporal",)
    found = {
        "rows": [_scores(model, test_data, methods, task, scored) for task in tasks],
        "training": {stage: account(out / stage, read_record(out / stage), command) for stage in shares(plan.preset)},
        "sampling": {name: getattr(model.config.sampling, name) for name in ("shifts", "temperature")},
    }
    save_model(model, out / IN_RUN, card=own_card(plan, found, command), metrics=found)
    return found


def _train(stage: str, plan: Plan, out: Path, progress: Progress | None, before: float, total: float) -> None:
    """Train a stage, or go on with it."""
    training = recipe(plan.preset, stage)
    windows = f" in windows of {training.window} frames" if training.window else ""
    log.info("%s: %d steps of %d trajectories%s", stage, training.steps, training.batch, windows)

    def seen(done: int, steps: int, values: dict[str, float]) -> None:
        if progress is not None:
            held = values.get("validation")
            note = f"{stage} {done}/{steps}  loss {values['loss']:.3g}"
            note += "" if held is None else f"  validation {held:.3g}"
            progress(before + plan.seconds[stage] * done / steps, total, note)

    options = RunOptions(
        out=out / stage,
        seed=plan.request.seed,
        save_seconds=_SAVE_SECONDS,
        log_every=min(_LOG_EVERY, training.steps),
        validate_every=-(-training.steps // plan.validations),
        progress=seen,
    )
    stages = list(shares(plan.preset))
    more: dict[str, Any] = {}
    if stage == "dynamics":
        more["model_changes"] = DYNAMICS_CHANGES
    if before_it := stages[: stages.index(stage)]:
        more["tokenizer" if stage == "dynamics" else "start"] = out / before_it[-1]
    train(stage, plan.preset, data_dir=out / DATA, options=options, validated=plan.measured, **more)


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
