"""The three tasks on a field file: what the model sees of each trajectory, and the forecasts that follow.

| task            | the model sees                                      | it forecasts             |
|-----------------|-----------------------------------------------------|--------------------------|
| `temporal`      | the first `history` frames                          | the frames after them    |
| `initial-value` | frame 0, and another trajectory of its environment  | the frames after frame 0 |
| `generation`    | another trajectory of the environment               | all frames               |

The other trajectory is the next one of the same environment (`FieldFile.context_for`), or of a file of contexts. The
number of a trajectory in its file is part of its noise key, so its members do not depend on which others are forecast.

Shape suffixes: B trajectories, K members, T frames.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..config import ModelConfig, SamplingConfig
from ..data import FieldFile
from ..errors import EnmaError
from ..models.checkpoint import CONFIG, WEIGHTS, hashes, sha256
from ..models.model import Model
from ..sampling.engine import PRECISIONS
from ..sampling.settings import chosen_sampling
from ..store.layout import Layout
from ..utils.bounds import MOST_FRAMES, whole_number
from ..utils.names import check_names
from ..utils.system import versions
from .api import CHUNK, Stop, sample_fields
from .ensemble import later
from .request import LEAST_SEED, MOST_MEMBERS, MOST_SEED, check_size, outside, say_outside, warn_if_long

log = logging.getLogger("enma_fast")

TASKS = ("temporal", "initial-value", "generation")
_TOLERANCE = 1e-3
# Trajectories that are held beside the file at a time, to see whether they are like those of the training.
_LOOKED_AT = 256


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is forecast for each trajectory of a file, and how.

    `history` counts for the temporal task only. `frames` are those to forecast: by default those of the file after the
    observed ones, up to the length that the model was trained on, or up to that length where the file holds no more.
    `context` holds the contexts of the other tasks, one for each trajectory or one for all; by default they come from
    the file itself. Members are `first_member, ..., first_member + members - 1`. Without `settings` the sampler takes
    the model's own; `precision` is that of its weights, "fp32" or "bf16", by default the model's.
    """

    task: str = "temporal"
    history: int = 3
    frames: int | None = None
    context: FieldFile | None = None
    members: int = 16
    first_member: int = 0
    seed: int = 0
    chunk: int = CHUNK
    settings: SamplingConfig | None = None
    precision: str | None = None

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise EnmaError(f"task {self.task!r} is unknown; use one of {', '.join(TASKS)}")
        bounds: dict[str, tuple[int | None, int | None]] = {
            "members": (1, None),
            "first_member": (0, None),
            "chunk": (1, None),
            "history": (None, None),
            "seed": (LEAST_SEED, MOST_SEED),
        }
        for name, (least, most) in (bounds if self.frames is None else {**bounds, "frames": (1, MOST_FRAMES)}).items():
            object.__setattr__(self, name, whole_number(name, getattr(self, name), least=least, most=most))
        if self.first_member + self.members > MOST_MEMBERS:
            raise EnmaError(
                f"members end at {self.first_member + self.members - 1}; {MOST_MEMBERS - 1} is the last one"
            )
        if self.precision is not None and self.precision not in PRECISIONS:
            raise EnmaError(f"precision {self.precision!r} is unknown; use one of {', '.join(PRECISIONS)}")

    @property
    def dtype(self) -> torch.dtype | None:
        """Of the sampler's weights, by default the model's."""
        return None if self.precision is None else PRECISIONS[self.precision]

    @property
    def observed(self) -> int:
        """Observed frames of the target trajectory."""
        return {"temporal": self.history, "initial-value": 1, "generation": 0}[self.task]


def num_frames(config: ModelConfig, data: FieldFile, case: Case) -> int:
    """Frames to forecast."""
    if case.frames is not None:
        return case.frames
    there = min(len(data.times), config.num_frames) - case.observed
    # A frame alone is a beginning, whatever is made of it.
    return there if there > 0 and len(data.times) > 1 else config.num_frames - case.observed


def has_truth(config: ModelConfig, data: FieldFile, case: Case) -> bool:
    """Whether the file holds all frames to forecast; a generated trajectory has no truth."""
    return case.task != "generation" and case.observed + num_frames(config, data, case) <= len(data.times)


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
    if not np.allclose(steps, config.frame_interval, rtol=_TOLERANCE):
        raise EnmaError(
            f"{data.path}: dimensions/time has frames {steps.mean():.4g} apart; {config.name} expects "
            f"{config.frame_interval:.4g}"
        )


def check_case(
    config: ModelConfig, data: FieldFile, case: Case, rows: Sequence[int] = (0,), *, at_once: int | None = None
) -> None:
    """Raise `EnmaError` unless the file has what the case asks of it for trajectories `rows`.

    `at_once` members are in memory at a time, by default all.
    """
    check_file(config, data)
    frames = num_frames(config, data, case)
    if case.task == "temporal" and case.history < 3:
        raise EnmaError(
            f"history is {case.history}; {config.name} needs at least 3 frames (or use --task initial-value)"
        )
    if case.observed > len(data.times):
        raise EnmaError(
            f"{data.path}: holds {len(data.times)} frames, history asks for {case.observed}; use a shorter one, or "
            "give a file of more frames"
        )
    if frames < 1:
        raise EnmaError(
            f"history is {case.observed}: of the {config.num_frames} frames that {config.name} was trained on none is "
            "left to forecast; use a shorter one, or say how many frames"
        )
    warn_if_long(config, case.observed + frames)
    check_size(config, num_frames=frames, num_members=at_once or case.members)
    if case.context is not None:
        if case.task == "temporal":
            raise EnmaError(
                "context: the temporal task has none; use --task initial-value or generation, or leave it out"
            )
        check_file(config, case.context)
        if len(case.context.times) > config.num_frames:
            log.warning(
                "%s: of its %d frames the first %d are used, as in training",
                case.context.path,
                len(case.context.times),
                config.num_frames,
            )
        if case.context.num_trajectories not in (1, data.num_trajectories):
            raise EnmaError(
                f"{case.context.path}: holds {case.context.num_trajectories} contexts; give one, or one for each of "
                f"the {data.num_trajectories} trajectories of {data.path}"
            )
    elif case.task != "temporal":
        for i in rows:
            data.context_for(i)


def warn_of_own_contexts(data: FieldFile, case: Case, rows: Sequence[int]) -> None:
    """Say which trajectories have a context that begins with their own first frame."""
    if case.task != "initial-value":
        return
    source, index = _contexts(data, case, rows)
    first = zip(rows, data.places(rows), index, strict=True)
    own = [row for row, place, other in first if np.array_equal(data.u[place, 0], source.u[other, 0])]
    if own:
        several = f" (and those of {len(own) - 1} more)" if len(own) > 1 else ""
        log.warning(
            "the context of trajectory %d%s begins with the frame that is observed, so it shows what is to be "
            "forecast; without --context it is another trajectory of the same environment",
            own[0],
            several,
        )


def outside_training(
    model: Model, data: FieldFile, case: Case, rows: Sequence[int], *, strict: bool = False, warn: bool = True
) -> list[int] | None:
    """Numbers of the trajectories whose observed frames, or context, lie outside what the model was trained on.

    They are said, unless `warn` is false, and with `strict` refused. None where the checkpoint does not say what that
    is.
    """
    if model.domain is None:
        return None
    reasons: list[str] = []
    for first in range(0, len(rows), _LOOKED_AT):
        part = rows[first : first + _LOOKED_AT]
        seen = data.u[data.places(part), : case.observed] if case.observed else None
        reasons += outside(model, seen, contexts(model.config, data, case, part))
    if warn or strict:
        say_outside(model, rows, reasons, strict=strict, where=f"{data.path}: ")
    return [int(number) for number, reason in zip(rows, reasons, strict=True) if reason]


def contexts(config: ModelConfig, data: FieldFile, case: Case, rows: Sequence[int]) -> np.ndarray | None:
    """The contexts `[B, T, *x, c]` of trajectories `rows`; None in the temporal task."""
    if case.task == "temporal":
        return None
    source, index = _contexts(data, case, rows)
    return source.u[index, : config.num_frames]


def _contexts(data: FieldFile, case: Case, rows: Sequence[int]) -> tuple[FieldFile, list[int]]:
    """Where the contexts of trajectories `rows` are."""
    if case.context is None:
        return data, data.places([data.context_for(i) for i in rows])
    alone = case.context.num_trajectories == 1
    return case.context, [0] * len(rows) if alone else case.context.places(rows)


def forecast_rows(
    model: Model,
    data: FieldFile,
    case: Case,
    *,
    rows: Sequence[int],
    members: range | None = None,
    chunk: int | None = None,
    frames: int | None = None,
    stop: Stop | None = None,
) -> Tensor:
    """Forecast trajectories `rows` of a file, which `check_case` has passed: `[B, K, T, *x, c]` fp32.

    Without the observed frames; `members` (numbered from the first of the case), `chunk` and `frames` are by default
    all; `stop` as that of `forecast`.
    """
    wanted = range(case.members) if members is None else members
    return sample_fields(
        model,
        data.u[data.places(rows), : case.observed] if case.observed else None,
        context=contexts(model.config, data, case, rows),
        num_frames=frames or num_frames(model.config, data, case),
        num_members=len(wanted),
        first_member=case.first_member + wanted.start,
        seed=case.seed,
        trajectories=list(rows),
        chunk=chunk or case.chunk,
        settings=case.settings,
        dtype=case.dtype,
        stop=stop,
        # `check_case` has.
        warn=False,
    )


def ensembles(model: Model, data: FieldFile, case: Case, *, rows: Sequence[int]) -> Iterator[tuple[list[int], Tensor]]:
    """Forecast trajectories of a file, some at a time.

    Yields
    ------
    rows, samples : trajectory numbers in the file, and `[B, K, T, *x, c]` fp32 without the observed frames
    """
    check_case(model.config, data, case, rows)
    yield from sampled(model, data, case, rows=rows)


def sampled(model: Model, data: FieldFile, case: Case, *, rows: Sequence[int]) -> Iterator[tuple[list[int], Tensor]]:
    """As `ensembles`, of what `check_case` has passed."""
    size = max(1, case.chunk // case.members)
    for first in range(0, len(rows), size):
        part = list(rows[first : first + size])
        yield part, forecast_rows(model, data, case, rows=part)


def layout_of(
    config: ModelConfig,
    data: FieldFile,
    case: Case,
    *,
    rows: Sequence[int],
    attributes: Mapping[str, Any] | None = None,
) -> Layout:
    """The layout of a store of forecasts of trajectories `rows` of a file, with what was seen and the truth."""
    # They become folders of the store.
    check_names(data.channels, kind="field", where=data.path)
    check_names(data.parameters, kind="parameter", where=data.path)
    index, seen = data.places(rows), case.observed
    last = seen + num_frames(config, data, case)
    columns: dict[str, np.ndarray] = {name: values[index] for name, values in data.parameters.items()}
    if data.environment is not None:
        columns["environment"] = data.environment[index]
    return Layout(
        channels=data.channels,
        times=_frame_times(config, data, last)[seen:],
        coords=data.coords,
        trajectories=list(rows),
        num_members=case.members,
        first_member=case.first_member,
        observed=data.u[index, :seen] if seen else None,
        observed_times=data.times[:seen],
        truth=data.u[index, seen:last] if has_truth(config, data, case) else None,
        columns=columns,
        attributes={
            "task": case.task,
            "observed_frames": seen,
            "seed": case.seed,
            "model": config.name,
            "sampling": _listed(config, case.settings),
            "precision": case.precision or "model",
            "data_name": data.name,
            **(attributes or {}),
        },
    )


def _frame_times(config: ModelConfig, data: FieldFile, count: int) -> np.ndarray:
    """Of so many frames, those of the file and the model's interval after them."""
    beyond = np.arange(1, max(0, count - len(data.times)) + 1)
    return np.append(data.times, later(float(data.times[-1]), beyond, interval=config.frame_interval))[:count]


def provenance(
    checkpoint: str | Path, data: FieldFile, case: Case, rows: Sequence[int], command: str
) -> dict[str, Any]:
    """Attributes of a store that say which model, data, versions and command made it.

    `input_sha256` is of all that is taken from the files.
    """
    files, found = hashes(checkpoint), versions()
    decide = ("enma-fast", "torch", "numpy")
    attributes = {
        "command": command,
        "model_sha256": files[WEIGHTS],
        "config_sha256": files[CONFIG],
        "data_file": data.path.name,
        "input_sha256": _input_sha256(data, case, rows),
        # Those that decide the bits of a result, and the others.
        "versions": ", ".join(f"{name} {found[name]}" for name in decide),
        "further_versions": ", ".join(f"{n} {number}" for n, number in found.items() if number and n not in decide),
    }
    if case.context is not None:
        attributes["context_file"] = case.context.path.name
    return attributes


def file_hashes(data: FieldFile, case: Case) -> dict[str, str]:
    """Further such attributes, by which people find the files again; large files take a while."""
    files = {"data_sha256": data.path} | ({} if case.context is None else {"context_sha256": case.context.path})
    # Fields need not come from a file.
    return {name: sha256(path) if path.is_file() else "no file" for name, path in files.items()}


def _input_sha256(data: FieldFile, case: Case, rows: Sequence[int]) -> str:
    """Fields, contexts and columns of trajectories `rows`, and the times of the frames."""
    digest = hashlib.sha256()
    places = data.places(rows)
    source, index = (data, places) if case.task == "temporal" else _contexts(data, case, rows)
    for place, other in zip(places, index, strict=True):
        digest.update(data.u[place].tobytes())
        if case.task != "temporal":
            digest.update(source.u[other].tobytes())
    columns = [data.times, *(values[places] for _, values in sorted(data.parameters.items()))]
    if data.environment is not None:
        columns.append(data.environment[places])
    for values in columns:
        digest.update(values.tobytes())
    return digest.hexdigest()


def _listed(config: ModelConfig, settings: SamplingConfig | None) -> str:
    chosen = chosen_sampling(config, settings)
    words = [f"{name} {value}" for name, value in asdict(chosen).items() if value is not None]
    return ", ".join(["one-pass"] * (config.dynamics.decoder == "one-pass") + words)


def _times(values: Sequence[float]) -> str:
    return " x ".join(f"{value:.6g}" for value in values)


def _boundaries(periodic: Sequence[bool]) -> str:
    return ", ".join("periodic" if wraps else "open" for wraps in periodic)
