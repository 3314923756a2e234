"""The plan of a training on the user's own data: model, recipes, split, and steps of each stage from measured times.

The plan is made once and kept in `plan.json` of the run folder, so that the same command resumes the same training.
"""

from __future__ import annotations

import dataclasses
import math
import resource
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ..data import SPACING_TOLERANCE, FieldFile, is_even
from ..errors import EnmaError
from ..models.checkpoint import sha256
from ..models.model import Model
from ..utils.dataclass_json import from_json, to_json
from ..utils.files import write_atomic
from ..utils.names import SPACE
from .augment import Shift, found
from .dynamics import DynamicsStage
from .head import HeadStage
from .latents import encode_all, sub_token_shifts
from .loop import RunOptions, run
from .own_data import (
    SPLITS,
    TRAIN,
    VAL,
    distinct_frames,
    environment_sizes,
    has_contexts,
    load_splits,
    name_of,
    split_files,
)
from .own_recipe import derived_recipe
from .own_sampling import JUDGED, JUDGING_MEMBERS, TRIED, several_views
from .ranks import ALONE
from .recipes import Recipe
from .stage import Material, Task

# In the run folder: the plan, and the splits.
PLAN, DATA = "plan.json", "data"
# Shares of the time that is left for steps: of codec, dynamics and forecasts, or behind a lossless codec of dynamics,
# local head and forecasts, where the head does most.
_SHARES, _HEAD_SHARES = (0.3, 0.25, 0.45), (0.1, 0.55, 0.35)
# The most validations of a stage, and its fewest steps.
VALIDATIONS, FEWEST_STEPS = 4, 10
# Share of the minutes that validations may take, of which each stage has one at least, and that encoding all
# trajectories may take at more than one shift.
_VALIDATING = _ENCODING = 0.2
# Share of the minutes that one validation of each stage and the scores may take together.
_MEASURING = 0.4
# Steps that are timed, trajectories that they are timed on, and trajectories that a validation is timed on.
_TIMED, _SAMPLE, _TIMED_VALIDATED = 3, 64, 8
# Trajectories whose moments are taken at a time.
_AT_ONCE = 64
# Test trajectories that are scored, and the members of each; the members that a validation samples.
SCORED, MEMBERS, _VALIDATED_MEMBERS = 64, 16, 8
_MOST_MINUTES = 365 * 24 * 60


@dataclass(frozen=True, kw_only=True)
class Request:
    """The request of a user, beside the data: size, time, seed, and whether the physics is the same everywhere."""

    size: str = "small"
    minutes: float | None = None
    seed: int = 0
    shift: bool = True

    def __post_init__(self) -> None:
        if self.minutes is not None and not 0 < self.minutes <= _MOST_MINUTES:
            raise EnmaError(
                f"minutes is {self.minutes:g}; a number above 0 is needed, at most {_MOST_MINUTES} (a year)"
            )


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A training to carry out.

    Attributes
    ----------
    recipe : model, and stages with their steps
    contexts : True if forecasts from one frame and a context are trained
    trajectories, environments : of each split
    frames : different ones of each split; windows that overlap share some
    seconds : estimates for each stage and for what comes before and after
    validations : of each stage
    measured : share of the held-out trajectories, of those that are usual, that validations and scores are of
    num_parameters, memory : of the model, and bytes of the process with the training data and latents
    """

    request: Request
    recipe: Recipe
    data: dict[str, str]
    contexts: bool
    channels: tuple[str, ...]
    trajectories: dict[str, int]
    environments: dict[str, int]
    seconds: dict[str, float]
    num_parameters: int
    memory: int
    validations: int = VALIDATIONS
    frames: dict[str, int] = dataclasses.field(default_factory=dict)
    measured: float = 1.0

    def save(self, out: Path) -> None:
        """Write `plan.json`."""
        write_atomic(out / PLAN, to_json(self).encode())


def saved_plan(source: Path, out: Path, request: Request) -> Plan | None:
    """The plan of a run folder, None in an empty one.

    `EnmaError` if the folder was begun with another request, other data or a version of enma_fast whose plans have
    other fields, or holds something else.
    """
    path = out / PLAN
    if not path.is_file():
        # A run that was stopped before its plan was written has begun with the splits.
        if out.exists() and (not out.is_dir() or {entry.name for entry in out.iterdir()} - {DATA}):
            raise EnmaError(f"{out}: exists and is no run of `enma-fast train`; choose another --out")
        return None
    try:
        plan = from_json(Plan, path.read_bytes().decode(), source="")
    except (EnmaError, UnicodeDecodeError) as error:
        where = str(error).removeprefix(": ").split(";")[0]
        raise EnmaError(
            f"{path}: this run was begun with another version of enma_fast, or its plan is damaged ({where}); finish "
            "it with that version, or choose another --out to begin again"
        ) from None
    for name, known in dataclasses.asdict(plan.request).items():
        asked = getattr(request, name)
        if known != asked:
            raise EnmaError(
                f"{path}: this run was begun with {name} {known}, not {asked}; choose another --out or the same options"
            )
    if plan.data != _hashes(source):
        raise EnmaError(f"{path}: this run was begun with other data than {source}; choose another --out")
    return plan


def shares(recipe: Recipe) -> dict[str, float]:
    """The stages of a training in their order, with their shares of the time for steps."""
    alone = any(isinstance(stage, HeadStage) for stage in recipe.stage)
    return dict(zip(recipe.folders(), _HEAD_SHARES if alone else _SHARES, strict=True))


def make_plan(source: Path, request: Request) -> tuple[Plan, dict[str, FieldFile]]:
    """Derive model and recipes from the data and time a few steps of each stage; also returns the splits.

    `EnmaError` if the data cannot be trained on, or the minutes are too few.
    """
    began = time.monotonic()
    splits = load_splits(source)
    frames = distinct_frames(splits)
    train, contexts = splits[TRAIN], has_contexts(splits)
    steps = np.diff(train.times)
    if len(steps) and not np.allclose(steps, steps.mean(), rtol=SPACING_TOLERANCE, atol=0.0):
        raise EnmaError(f"{source}: its times are not evenly spaced; import it with --dt, or interpolate")
    for axis, x in zip(SPACE, train.coords, strict=False):
        if not is_even(x):
            raise EnmaError(f"{source}: its {axis} is not evenly spaced; import it with --spacing, or interpolate")
    mean, scale = ([float(f"{value:.7g}") for value in row] for row in _moments(train.u))
    recipe = derived_recipe(
        name_of(source),
        size=request.size,
        grid=train.u.shape[2:-1],
        lengths=train.lengths,
        periodic=train.periodic,
        mean=mean,
        scale=scale,
        num_frames=train.u.shape[1],
        frame_interval=float(steps.mean()) if len(steps) else 1.0,
        shift=request.shift,
        contexts=contexts,
        seed=request.seed,
    )
    tasks, encoding = _tasks(recipe, splits, contexts)
    each: dict[str, float] = {}
    validation: dict[str, float] = {}
    held = len(splits[VAL])
    timed = min(_TIMED_VALIDATED, held)
    for stage, task in tasks.items():
        each[stage] = _step_seconds(task)
        task.module.eval()
        clock = time.monotonic()
        task.validate(ALONE)
        validation[stage] = (time.monotonic() - clock) * min(task.stage.validated, held) / timed
    scored = min(SCORED, len(splits[SPLITS[-1]])) * MEMBERS / _VALIDATED_MEMBERS
    if moves(recipe) and several_views(recipe.model) is not None:
        # Validations are of both tasks, and temperatures are tried in one.
        scored += TRIED * min(JUDGED, held) * JUDGING_MEMBERS / _VALIDATED_MEMBERS / (1 + contexts)
    recipe = _encoded_at(recipe, affordable_shifts(recipe, request.minutes, encoding))
    *_, last = tasks
    other = {
        "preparing": encoding * len(_shifts(recipe)),
        "scoring": 1.3 * scored * validation[last] / min(tasks[last].stage.validated, held),
    }
    measured = affordable_share(request.minutes, sum(validation.values()) + other["scoring"])
    validation = {stage: measured * seconds for stage, seconds in validation.items()}
    other["scoring"] *= measured
    validations = affordable_validations(request.minutes, sum(validation.values()))
    fixed = time.monotonic() - began + sum(other.values()) + validations * sum(validation.values())
    recipe = _with_steps(recipe, request, each, fixed)
    plan = Plan(
        request=request,
        recipe=recipe,
        data=_hashes(source),
        contexts=contexts,
        channels=train.channels,
        trajectories={split: len(data) for split, data in splits.items()},
        environments={split: len(environment_sizes(data)) for split, data in splits.items()},
        seconds={
            **{
                name: stage.steps * each[name] + validations * validation[name]
                for name, stage in recipe.folders().items()
            },
            **other,
        },
        validations=validations,
        num_parameters=sum(p.numel() for p in Model(recipe.model).parameters()),
        memory=_memory(recipe, len(train)),
        frames=frames,
        measured=measured,
    )
    return plan, splits


def _moments(u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each channel in fp64, without a copy of all fields ``[n, T, *grid, c]``."""
    axes = tuple(range(u.ndim - 1))
    mean = u.mean(axis=axes, dtype=np.float64)
    squares = [np.square(part - mean).sum(axis=axes) for part in np.array_split(u, -(-len(u) // _AT_ONCE))]
    return mean, np.sqrt(sum(squares) / (u.size / u.shape[-1]))


def moves(recipe: Recipe) -> bool:
    """True if the training moves the fields, whose physics is the same at every place."""
    return found(recipe.stage[-1].augment, Shift) is not None


def _tasks(recipe: Recipe, splits: Mapping[str, FieldFile], contexts: bool) -> tuple[dict[str, Task], float]:
    """The stages on a few trajectories, as the recipe makes them, and the seconds to encode all of them once."""
    train, val = splits[TRAIN], splits[VAL]
    rows = np.arange(min(_SAMPLE, len(train)))
    fields, held = torch.from_numpy(train.u[rows]), torch.from_numpy(val.u)
    # Each of them serves as the context of any other.
    environment = np.zeros(len(rows), np.int64) if contexts else rows
    sample = dataclasses.replace(train, u=train.u[rows], environment=environment)
    others = held.roll(1, 0)[:_TIMED_VALIDATED] if contexts else None
    tasks: dict[str, Task] = {}
    with torch.random.fork_rng(devices=[]), tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        codec = Model(recipe.model).codec
        clock = time.monotonic()
        encode_all(codec, fields, torch.from_numpy(environment), shift=False)
        encoding = (time.monotonic() - clock) * len(train) / len(rows)
        given = Material(
            train=lambda: sample,
            val=held[:_TIMED_VALIDATED],
            val_contexts=others,
            folder=Path(folder),
            seed=recipe.seed,
            tell=lambda *_: None,
        )
        for name, stage in _encoded_at(recipe, 1).folders().items():
            model = Model(stage.config(recipe.model)).requires_grad_(False)
            tasks[name] = stage.task(model, given)
    return tasks, encoding


def _encoded_at(recipe: Recipe, shifts: int | None) -> Recipe:
    """The recipe with trajectories encoded at so many shifts."""
    stages = (
        dataclasses.replace(stage, encoded_shifts=shifts) if isinstance(stage, DynamicsStage) else stage
        for stage in recipe.stage
    )
    return dataclasses.replace(recipe, stage=tuple(stages))


def _step_seconds(task: Task) -> float:
    """Seconds of a step, the first one left out."""
    rates: list[float] = []

    def seen(done: int, total: int, values: dict[str, float]) -> None:
        rates.append(values["per_second"])

    with tempfile.TemporaryDirectory() as folder:
        run(task, RunOptions(out=Path(folder), stop_after=1 + _TIMED, log_every=1, progress=seen))
    return float(task.stage.batch * sum(1 / rate for rate in rates[1:]) / _TIMED)


def affordable_share(minutes: float | None, seconds: float) -> float:
    """The share of the usual trajectories to measure on, where one validation of all stages and scores take `seconds`.

    A tenth at least.
    """
    return 1.0 if minutes is None else max(0.1, min(1.0, 60 * minutes * _MEASURING / seconds))


def affordable_validations(minutes: float | None, seconds: float) -> int:
    """How often each stage is validated within so many minutes, where one validation of all stages takes `seconds`."""
    if minutes is None:
        return VALIDATIONS
    return max(1, min(VALIDATIONS, int(60 * minutes * _VALIDATING / seconds)))


def _shifts(recipe: Recipe) -> list[tuple[int, ...]]:
    """The shifts that trajectories are encoded at."""
    stage = recipe.first(DynamicsStage)
    moved = found(stage.augment, Shift) is not None
    return sub_token_shifts(recipe.model.codec, shift=moved, most=stage.encoded_shifts)


def affordable_shifts(recipe: Recipe, minutes: float | None, seconds: float) -> int | None:
    """At how many shifts trajectories are encoded in so many minutes, where one takes `seconds`; None for all."""
    if minutes is None:
        return None
    most = max(1, int(60 * minutes * _ENCODING / seconds))
    return None if most >= len(_shifts(recipe)) else most


def _with_steps(recipe: Recipe, request: Request, each: Mapping[str, float], fixed: float) -> Recipe:
    """The recipe with the steps of each stage that the minutes allow beside fixed seconds, and warm-ups to match."""
    if request.minutes is None:
        return recipe
    parts = shares(recipe)
    needed = max(fixed + FEWEST_STEPS * each[stage] / share for stage, share in parts.items()) / 60
    if request.minutes < needed:
        raise EnmaError(
            f"minutes is {request.minutes:g}: that leaves fewer than {FEWEST_STEPS} steps for a stage of this model on "
            f"this machine; give {math.ceil(needed + 0.5)} or more (the work beside the steps takes {fixed:.3g} s, and "
            f"a step {', '.join(f'{each[stage]:.2g} s ({stage})' for stage in parts)})"
        )
    stages = []
    for name, stage in recipe.folders().items():
        steps = int((60 * request.minutes - fixed) * parts[name] / each[name])
        warmup = min(stage.optimizer.warmup_steps, steps // 10)
        optimizer = dataclasses.replace(stage.optimizer, warmup_steps=warmup)
        stages.append(dataclasses.replace(stage, steps=steps, optimizer=optimizer))
    return dataclasses.replace(recipe, stage=tuple(stages))


def _memory(recipe: Recipe, trajectories: int) -> int:
    """Bytes of this process at its peak, which has taken steps of every stage, and of the latents of all data."""
    unit = 1 if sys.platform == "darwin" else 1024
    tokenizer = recipe.model.codec
    latents = tokenizer.latent_frames(recipe.model.num_frames) * math.prod(tokenizer.token_grid)
    shifts = len(_shifts(recipe))
    # Latents are in half precision, and there twice while they are written and read back.
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss + (
        4 * trajectories * shifts * latents * tokenizer.latent_channels
    )


def _hashes(source: Path) -> dict[str, str]:
    return {path.name: sha256(path) for path in split_files(source)}
