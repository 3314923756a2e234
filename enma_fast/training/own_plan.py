"""The plan of a training on the user's own data: split, recipe and floor.

The plan is made once and kept in `plan.json` of the run folder, so that the same command resumes the same training.
"""

from __future__ import annotations

import dataclasses
import hashlib
import shlex
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..config import BlocksConfig, KnownInput
from ..data import FIRST_FRAME, SERIES, SPACING_TOLERANCE, FieldFile, ImportOptions, is_even
from ..data.selection import spread_rows
from ..errors import EnmaError
from ..models.checkpoint import sha256, write_tensors
from ..models.floors.choice import choose
from ..models.grid_layers import Edge
from ..models.model import Model
from ..utils.dataclass_json import from_json, to_json
from ..utils.files import write_atomic
from ..utils.names import SPACE
from .field_stage import FLOOR
from .measured_symmetries import apart, shift_axes
from .own_data import (
    TRAIN,
    distinct_frames,
    environment_sizes,
    has_contexts,
    load_splits,
    name_of,
    split_files,
)
from .own_recipe import derived_recipe
from .recipes import Recipe

# In the run folder: the plan, and the splits.
PLAN, DATA = "plan.json", "data"
# Minutes by default, and the most.
MINUTES, _MOST_MINUTES = 10.0, 365 * 24 * 60
# Share of the time in which kinds of floors are tried.
_CHOOSING = 0.25
# Blocks of time that are forecast one after the other, and windows of each.
_FOLDS, _FOLDED = 4, 16
# Trajectories whose moments are taken at a time.
_AT_ONCE = 64
# Floors that are not the linear model of a data set.
SIMPLE, EQUATION = ("persistence", "damped persistence"), "equation"


@dataclass(frozen=True, kw_only=True)
class Request:
    """The request of a user, beside the data: size, time, seed, and whether fields may be shifted.

    `known` names the drivers that the model is told, `mask` the field that is 0 where there are no values, and
    `periodic` the axes that wrap around, if the data do not say so.
    """

    size: str = "small"
    minutes: float = MINUTES
    seed: int = 0
    shift: bool = True
    known: tuple[str, ...] = ()
    mask: str | None = None
    periodic: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if not 0 < self.minutes <= _MOST_MINUTES:
            raise EnmaError(
                f"minutes is {self.minutes:g}; a number above 0 is needed, at most {_MOST_MINUTES} (a year)"
            )

    def command(self, source: Path) -> str:
        """The command that makes the same run of these data."""
        options = ["--size", self.size, "--minutes", f"{self.minutes:g}", "--seed", str(self.seed)]
        options += [] if self.shift else ["--no-shift"]
        options += [word for name in self.known for word in ("--known", name)]
        options += [] if self.mask is None else ["--mask", self.mask]
        options += [] if self.periodic is None else ["--periodic", ",".join(self.periodic) or "none"]
        return shlex.join(["enma-fast", "train", source.name, "--out", "RUN", *options])


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A training to carry out.

    Attributes
    ----------
    recipe : model and stage
    contexts : True if forecasts from one frame and a context are trained
    trajectories, environments : of each split
    frames : different ones of each split; windows that overlap share some
    num_parameters : of the model
    floors : mean relative error of each floor that was tried; empty before
    right : whether the floor errs so little that no network is trained
    seconds : that were spent on the plan
    """

    request: Request
    recipe: Recipe
    data: dict[str, str]
    contexts: bool
    channels: tuple[str, ...]
    trajectories: dict[str, int]
    environments: dict[str, int]
    frames: dict[str, int]
    num_parameters: int
    floors: dict[str, float] = dataclasses.field(default_factory=dict)
    right: bool = False
    seconds: float = 0.0

    @property
    def linear(self) -> str | None:
        """The best linear floor of those that were tried."""
        tried = {name: error for name, error in self.floors.items() if name not in (*SIMPLE, EQUATION)}
        return min(tried, key=lambda name: tried[name]) if tried else None

    @property
    def best(self) -> str:
        """The floor with the least error of those that were tried."""
        return min(self.floors, key=lambda name: self.floors[name])

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
        if out.exists() and (not out.is_dir() or {entry.name for entry in out.iterdir()} - {DATA, "field"}):
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
    for name, saved in dataclasses.asdict(plan.request).items():
        asked = getattr(request, name)
        if saved != asked:
            raise EnmaError(
                f"{path}: this run was begun with {name} {saved}, not {asked}; choose another --out or the same options"
            )
    if plan.data != _hashes(source):
        raise EnmaError(f"{path}: this run was begun with other data than {source}; choose another --out")
    return plan


def make_plan(source: Path, request: Request) -> tuple[Plan, dict[str, FieldFile]]:
    """Derive model and stage from the data, before a floor is chosen; also returns the splits.

    `EnmaError` if the data cannot be trained on.
    """
    splits = load_splits(source, ImportOptions(known=request.known, mask=request.mask, periodic=request.periodic))
    frames, train = distinct_frames(splits), splits[TRAIN]
    steps = np.diff(train.times)
    if len(steps) and not np.allclose(steps, steps.mean(), rtol=SPACING_TOLERANCE, atol=0.0):
        raise EnmaError(f"{source}: its times are not evenly spaced; import it with --dt, or interpolate")
    for axis, x in zip(SPACE, train.coords, strict=False):
        if not is_even(x):
            raise EnmaError(f"{source}: its {axis} is not evenly spaced; import it with --spacing, or interpolate")
    mean, scale = ([float(f"{value:.7g}") for value in row] for row in _moments(train.u))
    codec = BlocksConfig(
        grid=train.u.shape[2:-1],
        lengths=train.lengths,
        periodic=train.periodic,
        field_channels=len(scale),
        field_mean=tuple(mean),
        field_scale=tuple(scale),
        masked=train.mask is not None,
        block=1,
        frames=1,
    )
    recipe = derived_recipe(
        name_of(source),
        codec,
        size=request.size,
        num_frames=train.u.shape[1],
        frame_interval=float(steps.mean()) if len(steps) else 1.0,
        shift=request.shift,
        seed=request.seed,
        known=tuple(
            KnownInput(name=name, in_time=values.shape[1] > 1, in_space=max(values.shape[2:]) > 1)
            for name, values in train.known.items()
        ),
    )
    plan = Plan(
        request=request,
        recipe=recipe,
        data=_hashes(source),
        contexts=has_contexts(splits),
        channels=train.channels,
        trajectories={split: len(data) for split, data in splits.items()},
        environments={split: len(environment_sizes(data)) for split, data in splits.items()},
        frames=frames,
        num_parameters=sum(p.numel() for p in Model(recipe.model).parameters()),
    )
    return plan, splits


def with_floor(plan: Plan, train: FieldFile, folder: Path, *, begun: float) -> Plan:
    """The plan with the floor that forecasts the training data best, which is written to the folder of the stage.

    `begun` is when the plan was, by `time.monotonic`.
    """
    fields, environments = training_fields(plan.recipe, train)
    edges, mask = Edge.of(train.periodic), None if train.mask is None else torch.from_numpy(train.mask)
    shifted = bool(plan.recipe.stage[0].augment and shift_axes(fields[torch.from_numpy(apart(train))], edges, mask))
    choice = choose(
        fields,
        plan.recipe.model.codec,
        environments=environments,
        folds=window_folds(train),
        shifted=shifted,
        seconds=60 * _CHOOSING * plan.request.minutes,
    )
    recipe, floor = with_kind(plan.recipe, choice.name), choice.floor
    assert isinstance(floor, torch.nn.Module)
    write_tensors(folder / FLOOR, floor.state_dict())
    return dataclasses.replace(
        plan,
        recipe=recipe,
        num_parameters=sum(p.numel() for p in Model(recipe.model).parameters()),
        floors={kind: float(np.mean(errors)) for kind, errors in choice.errors.items() if np.isfinite(errors).all()},
        right=choice.right,
        seconds=time.monotonic() - begun,
    )


def with_kind(recipe: Recipe, floor: str) -> Recipe:
    """The recipe of a model with this kind of floor."""
    context = dataclasses.replace(recipe.model.context, floor=floor)  # type: ignore[call-arg]
    return dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, context=context))


def window_folds(data: FieldFile) -> list[tuple[Tensor, Tensor]] | None:
    """Rows of windows that share no frames with those of a block of time, and rows of the block; None of others."""
    if FIRST_FRAME not in data.parameters:
        return None
    series, first = (np.asarray(data.parameters[name]) for name in (SERIES, FIRST_FRAME))
    folds = []
    for block in np.array_split(np.lexsort((first, series)), _FOLDS):
        near = [(series == series[row]) & (abs(first - first[row]) < data.u.shape[1]) for row in block]
        rest = np.flatnonzero(~np.any(near, axis=0))
        if len(block) and len(rest):
            folds.append((torch.from_numpy(rest), torch.from_numpy(block[spread_rows(len(block), _FOLDED)])))
    return folds or None


def training_fields(recipe: Recipe, train: FieldFile) -> tuple[Tensor, Tensor | None]:
    """Standardised training fields `[B, T, *x, c]`, and their environments, if some have companions."""
    assert train.environment is not None
    codec = Model(recipe.model).codec
    codec.take_mask(train.mask)
    fields = codec.standardised(torch.from_numpy(train.u))
    environments = torch.from_numpy(train.environment)
    return fields, environments if len(environments.unique()) < len(environments) else None


def _moments(u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each channel in fp64, without a copy of all fields ``[n, T, *grid, c]``."""
    axes = tuple(range(u.ndim - 1))
    share = 1 - np.isnan(u[0, 0]).mean(axis=tuple(range(u.ndim - 3)))
    if (share == 1).all():
        mean = u.mean(axis=axes, dtype=np.float64)
    else:
        mean = np.nanmean(u, axis=axes, dtype=np.float64)
    squares = [np.nansum(np.square(part - mean), axis=axes) for part in np.array_split(u, -(-len(u) // _AT_ONCE))]
    return mean, np.sqrt(sum(squares) / (u.size / u.shape[-1]) / share)


def _hashes(source: Path) -> dict[str, str]:
    return {path.name: _hash(path) for path in split_files(source)}


def _hash(path: Path) -> str:
    """SHA-256 of a file, or of the names and hashes of those of a folder."""
    if path.is_file():
        return sha256(path)
    files = (file for file in sorted(path.rglob("*")) if file.is_file())
    listed = "".join(f"{file.relative_to(path)} {sha256(file)}\n" for file in files)
    return hashlib.sha256(listed.encode()).hexdigest()
