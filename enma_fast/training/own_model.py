"""Carry out the plan of a training on the user's own data: its recipe, then scores, card and checkpoint.

RUN/plan.json            recipe, split and floor
RUN/data/                the splits as field files
RUN/checkpoint/          a model from the first minute on, with scores once it is finished
all else                 as a run of the recipe (:mod:`enma_fast.training.run`)
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from ..config import PhysicsConfig
from ..data import FieldFile, ImportOptions, read, write_fields
from ..data.drivers import rows_of
from ..data.importing import imported, with_drivers
from ..data.selection import spread_rows
from ..drawing.training import TrainingCurve
from ..errors import EnmaError
from ..evaluation.baselines import Method, Observations, baselines
from ..evaluation.metrics import Scores
from ..evaluation.metrics.arrays import where_there
from ..evaluation.scoring import score_forecast
from ..forecasting.file_forecast import FileForecast
from ..forecasting.members import sample_fields
from ..forecasting.request import ForecastRequest, task_named
from ..models.checkpoint import IN_RUN, LOG, METRICS, load_model, save_model
from ..models.contexts.physics import PhysicsContext
from ..models.floors.choice import kinds, learn
from ..models.floors.ladder import KNOWN, Floor, roll
from ..models.model import Model
from ..utils.chance import surely_less
from ..utils.devices import can_use
from .card import equation_of, tell_training
from .field_choices import independent, relative_errors
from .loop import RunOptions
from .own_card import SCORED, own_card
from .own_data import TEST, TRAIN, VAL
from .own_plan import (
    DATA,
    EQUATION,
    MINUTES,
    SIMPLE,
    Plan,
    Request,
    make_plan,
    saved_plan,
    training_fields,
    with_floor,
    with_kind,
)
from .ranks import Rank, join_ranks
from .run import Progress, account, data_file, train

# Seconds between saved states, and steps between looks at the loss.
_SAVE_SECONDS, _LOG_EVERY = 60.0, 10
# Test trajectories that are scored at least, and the members of each.
_FEWEST, MEMBERS = 4, 16
# Share of the time for the scores.
_SCORING = 0.05
# Rows of tables are called so, whatever kind of floor the linear one is.
LINEAR = "linear"
# Folder of a model that is the best floor alone, and validation trajectories on which it is compared with the network.
ALONE, _COMPARED = "alone", 48


def train_fields(
    data: Any,
    out: str | Path,
    *,
    minutes: float = MINUTES,
    known: Sequence[str] | Mapping[str, Any] = (),
    plot: str | Path | bool = False,
    device: str = "cpu",
    progress: Progress | None = None,
    **options: Any,
) -> Model:
    """Train a field model on your own data for some minutes, and return it, as `enma-fast train FILE` does.

    Processes that `torchrun` starts share the work, in one run folder that all of them see.

    Parameters
    ----------
    data : file or folder of fields, or fields in memory: what `read_fields` gives, or a Dataset of xarray whose
        variables are the channels
    out : run folder for splits, model, scores and card; the same call goes on with one that was stopped
    known : known inputs: names of parameters, series, maps and fields of the data, or arrays by name. An array has a
        value for each trajectory, each frame, each place, or for several of these in this order.
    plot : picture of loss and validation that is drawn again while it trains; True to show it in a notebook
    device : where the network is trained, "cpu" or "cuda"; plan and scores are made on the CPU, where the model ends
    progress : called with what is done, all of it, and a note
    options : further entries of the request. `size` is "small", or "base" with wider layers. `seed` is that of the
        training. `shift` says whether training may move fields along periodic axes where they look the same. `mask`
        is the name of a field that is 0 where there are no values. `periodic` has the names of the axes that wrap
        around, by default as the data say.

    Raises
    ------
    EnmaError
        If the data cannot be trained on, `out` was begun otherwise, or the device cannot be used.
    """
    if not can_use(device):
        raise EnmaError(f"device {device}: cannot be used here; use cpu")
    out = Path(out)
    source, entries = join_ranks().by_first(lambda: _as_file(data, out, known, options))
    request = Request(minutes=minutes, **entries)
    plan = prepare_own(source, out, request)
    if plot:
        progress = drawn(progress, plan, out, None if plot is True else Path(plot))
    train_own(plan, out, command=request.command(source), device=device, progress=progress)
    return load_model(out)


def _as_file(
    data: Any, out: Path, known: Sequence[str] | Mapping[str, Any], options: Mapping[str, Any]
) -> tuple[Path, dict[str, Any]]:
    """The data as a file or folder, those in memory in a file of the run folder, and what is left to request."""
    data, entries = Path(data) if isinstance(data, str) else data, dict(options)
    arrays, names = (known, ()) if isinstance(known, Mapping) else ({}, tuple(known))
    if not isinstance(data, FieldFile | Path) or (arrays and isinstance(data, Path)):
        facts = {name: entries.pop(name) for name in ("mask", "periodic") if name in entries}
        data, names = imported(data, ImportOptions(known=names, **facts)), ()
    if arrays:
        data = with_drivers(data, arrays)
    if isinstance(data, FieldFile):
        data = write_fields(out / DATA / f"{data.name}.h5", data, name=data.name)
    return data, {**entries, "known": names}


def drawn(progress: Progress | None, plan: Plan, out: Path, picture: Path | None) -> Progress:
    """Progress that also draws the curves of the training to a picture; to a notebook without one."""
    (stage,) = plan.recipe.folders()
    curve = TrainingCurve(out / stage / LOG, picture)

    def tell(done: float, total: float, note: str) -> None:
        curve.refresh()
        if progress is not None:
            progress(done, total, note)

    return tell


def prepare_own(source: Path, out: Path, request: Request) -> Plan:
    """The plan of a run folder, made and written there with the splits, by the first rank, if it is new.

    `EnmaError` as `make_plan`, `saved_plan` and `join_ranks`.
    """
    return join_ranks().by_first(lambda: _prepared(source, out, request))


def _prepared(source: Path, out: Path, request: Request) -> Plan:
    begun = time.monotonic()
    plan = saved_plan(source, out, request)
    if plan is None:
        plan, splits = make_plan(source, request)
        for split, data in splits.items():
            name = f"{plan.recipe.model.dataset}-{split}"
            write_fields(out / DATA / f"{name}.h5", data, name=name)
        (stage,) = plan.recipe.folders()
        plan = with_floor(plan, splits[TRAIN], out / stage, begun=begun)
        plan.save(out)
    return plan


def train_own(
    plan: Plan, out: Path, *, command: str, device: str = "cpu", progress: Progress | None = None
) -> dict[str, Any]:
    """Train on a device, score and write what `prepare_own` planned, from where an earlier call stopped.

    `command`, which makes the run again, is for the card. From the first validation on the folder holds a model that
    can be used. Ranks train together, and the first one scores and writes. Returns the contents of `metrics.json` of
    the checkpoint: `rows` of scores, each with those of other `methods` by name and of single `channels`, the
    `training`, and the `size` of the network's correction and the factors of the `spread`, which were chosen on
    validation data. `EnmaError` if the disk is full.
    """
    done, rank = out / IN_RUN / METRICS, join_ranks()
    metrics: dict[str, Any] | None = rank.by_first(lambda: json.loads(done.read_text()) if done.is_file() else None)
    if metrics is not None:
        return metrics
    try:
        return _trained(plan, out, command, device, progress, rank)
    except OSError as error:
        raise EnmaError(
            f"{out}: cannot be written ({error}); what was written is kept, fix this and repeat the command"
        ) from error


def _trained(plan: Plan, out: Path, command: str, device: str, progress: Progress | None, rank: Rank) -> dict[str, Any]:
    total = 60 * plan.request.minutes
    seconds = 0.0 if plan.right else max(0.0, (1 - _SCORING) * total - plan.seconds)
    options = RunOptions(out=out, device=device, save_seconds=_SAVE_SECONDS, log_every=_LOG_EVERY, seconds=seconds)
    model = train(
        plan.recipe,
        options=options,
        data_dir=out / DATA,
        better=lambda better: save_model(better, out / IN_RUN),
        progress=progress,
    )
    methods: dict[str, Method] = {}
    data_of = partial(data_file, out / DATA, plan.recipe.model.dataset)

    def behind() -> bool:
        if progress is not None:
            progress(1, 1, "scoring")
        assert model is not None
        train_data = read(data_of(TRAIN))
        methods.update(baselines(train_data) | floor_methods(plan, train_data, model))
        best = methods[LINEAR if plan.best == plan.linear else plan.best]
        return _behind(model, plan, best, read(data_of(VAL)))

    alone = rank.by_first(behind)
    if alone:
        model = train(
            with_kind(plan.recipe, plan.best),
            options=replace(options, out=out / ALONE, seconds=0.0),
            data_dir=out / DATA,
            progress=progress,
        )

    def scored() -> dict[str, Any]:
        assert model is not None
        test_data = read(data_of(TEST))
        tell_training(model, data_of(TRAIN))
        tasks = ("temporal", "initial-value") if plan.contexts else ("temporal",)
        step: Any = model.dynamics.step
        metrics = {
            "rows": [_scores(model, test_data, methods, task, _SCORING * total / len(tasks)) for task in tasks],
            "training": account(out, plan.recipe),
            "floor": plan.best if alone else cast(PhysicsConfig, plan.recipe.model.context).floor,
            "alone": alone,
            "equation": equation_of(model, plan.channels),
            "size": float(step.model.size),
            "spread": step.model.spread.tolist(),
        }
        save_model(model, out / IN_RUN, card=own_card(plan, metrics, command), metrics=metrics)
        return metrics

    return rank.by_first(scored)


def _behind(model: Model, plan: Plan, floor: Method, val_data: FieldFile) -> bool:
    """Whether the best floor surely forecasts validation data better than a model that adds to another one.

    A short training may end so.
    """
    if plan.right or plan.best == cast(PhysicsConfig, plan.recipe.model.context).floor:
        return False
    rows = spread_rows(len(val_data), _COMPARED)
    val, codec = torch.from_numpy(val_data.u[rows]), model.codec
    known, frames = rows_of(val_data.known, rows), val.shape[1] - KNOWN
    still = replace(model.config.sampling, temperature=0.0)
    of_model = sample_fields(model, val[:, :KNOWN], known=known, num_members=1, settings=still, warn=False)[:, 0]
    given = Observations(
        history=val[:, :KNOWN].numpy(),
        context=None,
        num_frames=frames,
        num_members=1,
        trajectories=rows.tolist(),
        seed=0,
    )
    forecasts = torch.as_tensor(floor(given))[:, 0]
    errors, others = (relative_errors(codec, each, val[:, KNOWN:]) for each in (forecasts, of_model))
    return surely_less(errors, others, independent(codec, val))


def floor_methods(plan: Plan, train: FieldFile, model: Model | None = None) -> dict[str, Method]:
    """Damped persistence, the best linear floor that was tried, and the equation if it is better.

    They are learned from training data unless the model did.
    """
    config = plan.recipe.model
    codec, own = Model(config).codec, config.context
    codec.take_mask(train.mask)
    fields, environments = training_fields(plan.recipe, train)
    floors = kinds(config.codec)

    def method(floor: Floor) -> Method:
        @torch.no_grad()
        def forecast(given: Observations) -> Tensor:
            assert given.history is not None
            past = codec.standardised(torch.from_numpy(given.history))
            own = given.context is None
            windows = past[:, None, :KNOWN]
            if given.context is not None:
                context = codec.standardised(torch.from_numpy(given.context))
                windows = context.unfold(1, KNOWN, KNOWN).movedim(-1, 2)
            state = floor.infer(windows, own=own)
            if past.shape[1] == 1:
                past = torch.stack([floor.before(past[:, 0], state), past[:, 0]], 1)
            return codec.in_units(roll(floor, past, state, given.num_frames))[:, None]

        return forecast

    def floor_of(kind: str) -> Floor:
        if model is not None and isinstance(own, PhysicsConfig) and kind == own.floor:
            return cast(PhysicsContext, model.dynamics.context).floor
        return learn(floors[kind](), fields, environments)

    named = {SIMPLE[1]: SIMPLE[1], LINEAR: plan.linear}
    if plan.floors and plan.best == EQUATION:
        named[EQUATION] = EQUATION
    return {name: method(floor_of(kind)) for name, kind in named.items() if kind is not None}


def _scores(model: Model, data: FieldFile, methods: dict[str, Method], task: str, seconds: float) -> dict[str, Any]:
    """Scores of a task on some test data, as many as take these seconds, beside those of other methods."""
    # The first one pays for what later ones find in caches.
    score_forecast(_forecast(model, data, task, 1), warn=False)
    begun = time.monotonic()
    score_forecast(_forecast(model, data, task, 1), warn=False)
    count = max(_FEWEST, min(SCORED, int(seconds / max(time.monotonic() - begun, 1e-9))))
    forecast = _forecast(model, data, task, count)
    numbers, means = list(forecast.trajectories), list[Tensor]()

    class Means:
        def add(self, trajectory: int, members: range, values: Tensor) -> None:
            means.append(values.mean(0).cpu())

    row = score_forecast(forecast, warn=False, sinks=[Means()])
    observed, truth = np.split(data.u[numbers], [forecast.num_observed], axis=1)
    contexts = data.u[[data.context_for(number) for number in numbers]] if forecast.request.task.needs_context else None
    given = Observations(
        history=observed,
        context=contexts,
        num_frames=truth.shape[1],
        num_members=1,
        trajectories=numbers,
        seed=0,
    )
    by_method = {name: np.asarray(method(given)) for name, method in methods.items()}

    def errors(forecasts: np.ndarray) -> np.ndarray:
        axes = tuple(range(truth.ndim - 1))
        return np.sqrt(np.nanmean(np.square(forecasts - truth, dtype=np.float64), axis=axes))

    each_method = {"rmse": errors(torch.stack(means).numpy())}
    each_method |= {f"{name}_rmse": errors(forecasts[:, 0]) for name, forecasts in by_method.items()}
    channels = {
        channel: {
            "unit": data.units.get(channel, "1"),
            **{key: float(values[c]) for key, values in each_method.items()},
        }
        for c, channel in enumerate(data.channels)
    }
    kept = {key: value for key, value in row.items() if key not in ("per_frame", "rank_histogram")}
    return {
        **kept,
        "methods": {name: _summary(forecasts, truth) for name, forecasts in by_method.items()},
        "channels": channels,
    }


def _forecast(model: Model, data: FieldFile, task: str, count: int) -> FileForecast:
    numbers = spread_rows(len(data), count).tolist()
    return FileForecast(model, data, ForecastRequest(task=task_named(task), num_members=MEMBERS, trajectories=numbers))


def _summary(forecasts: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Errors of one forecast of each trajectory; its CRPS is the mean of its absolute error."""
    if not (mask := ~np.isnan(truth[0, 0])).all():
        forecasts, truth = where_there(forecasts, mask), where_there(truth, mask)
    scores = Scores()
    scores.update(forecasts, truth)
    result = scores.result()
    return {
        **{key: result[key] for key in ("rel_l2", "rel_l2_median", "rmse")},
        "crps": float(np.abs(forecasts[:, 0] - truth).mean(dtype=np.float64)),
    }
