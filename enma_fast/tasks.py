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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .checkpoint import CONFIG, WEIGHTS, hashes, sha256
from .config import ModelConfig, SamplingConfig
from .data import FieldFile
from .engine import PRECISIONS
from .errors import EnmaError
from .members import CHUNK, Stop, check_size, sample_fields
from .model import Model
from .output import Layout
from .system import versions

TASKS = ("temporal", "initial-value", "generation")
_TOLERANCE = 1e-3


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is forecast for each trajectory of a file, and how.

    `history` counts for the temporal task only. `context` holds the contexts of the other tasks, one for each
    trajectory or one for all; by default they come from the file itself. Without `settings` the sampler takes the
    model's own; `precision` is that of its weights, "fp32" or "bf16", by default the model's.
    """

    task: str = "temporal"
    history: int = 3
    context: FieldFile | None = None
    members: int = 16
    seed: int = 0
    chunk: int = CHUNK
    settings: SamplingConfig | None = None
    precision: str | None = None

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise EnmaError(f"task {self.task!r} is unknown; use one of {', '.join(TASKS)}")
        if self.members < 1:
            raise EnmaError(f"members is {self.members}; at least 1 is needed")
        if self.chunk < 1:
            raise EnmaError(f"chunk is {self.chunk}; at least 1 is needed")
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
    frames = num_frames(config, data)
    if case.task == "temporal" and case.history < 3:
        raise EnmaError(
            f"history is {case.history}; {config.name} needs at least 3 frames (or use --task initial-value)"
        )
    if case.observed >= frames:
        mend = f"use a history of at most {frames - 1}" if frames > 3 else "give a file of more frames"
        raise EnmaError(
            f"{data.path}: {frames} frames are too few: with history {case.observed} none is left to forecast; {mend}"
        )
    check_size(config, num_frames=frames - case.observed, num_members=at_once or case.members)
    if case.context is not None:
        if case.task == "temporal":
            raise EnmaError(
                "context: the temporal task has none; use --task initial-value or generation, or leave it out"
            )
        check_file(config, case.context)
        if len(case.context) not in (1, len(data)):
            raise EnmaError(
                f"{case.context.path}: holds {len(case.context)} contexts; give one, or one for each of the "
                f"{len(data)} trajectories of {data.path}"
            )
    elif case.task != "temporal":
        for i in rows:
            data.context_for(i)


def contexts(config: ModelConfig, data: FieldFile, case: Case, rows: Sequence[int]) -> np.ndarray | None:
    """The contexts `[B, T, *x, c]` of trajectories `rows`; None in the temporal task."""
    if case.task == "temporal":
        return None
    if case.context is None:
        return data.u[[data.context_for(i) for i in rows], : num_frames(config, data)]
    index = list(rows) if len(case.context) > 1 else [0] * len(rows)
    return case.context.u[index, : num_frames(config, case.context)]


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

    Without the observed frames; `members`, `chunk` and the `frames` to forecast are by default all; `stop` as that of
    `forecast`.
    """
    wanted = range(case.members) if members is None else members
    return sample_fields(
        model,
        data.u[list(rows), : case.observed] if case.observed else None,
        context=contexts(model.config, data, case, rows),
        num_frames=frames or num_frames(model.config, data) - case.observed,
        num_members=len(wanted),
        first_member=wanted.start,
        seed=case.seed,
        trajectories=list(rows),
        chunk=chunk or case.chunk,
        settings=case.settings,
        dtype=case.dtype,
        stop=stop,
    )


def ensembles(model: Model, data: FieldFile, case: Case, *, rows: Sequence[int]) -> Iterator[tuple[list[int], Tensor]]:
    """Forecast trajectories of a file, some at a time.

    Yields
    ------
    rows, samples : trajectory numbers in the file, and `[B, K, T, *x, c]` fp32 without the observed frames
    """
    check_case(model.config, data, case, rows)
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
    index, seen, last = list(rows), case.observed, num_frames(config, data)
    columns: dict[str, np.ndarray] = {name: values[index] for name, values in data.parameters.items()}
    if data.environment is not None:
        columns["environment"] = data.environment[index]
    return Layout(
        channels=data.channels,
        times=data.times[seen:last],
        coords=data.coords,
        trajectories=index,
        num_members=case.members,
        observed=data.u[index, :seen] if seen else None,
        observed_times=data.times[:seen],
        # A generated trajectory has no truth.
        truth=None if case.task == "generation" else data.u[index, seen:last],
        columns=columns,
        attributes={
            "task": case.task,
            "observed_frames": seen,
            "seed": case.seed,
            "model": config.name,
            "sampling": _listed(case.settings or config.sampling),
            "precision": case.precision or "model",
            "data_name": data.name,
            **(attributes or {}),
        },
    )


def provenance(
    checkpoint: str | Path, data: FieldFile, case: Case, rows: Sequence[int], command: str
) -> dict[str, Any]:
    """Attributes of a store that say which model, data, versions and command made it.

    Beside the hashes of the files, `input_sha256` is that of all that is taken from them: fields may have been changed
    since they were read.
    """
    files, found = hashes(checkpoint), versions()
    decide = ("enma-fast", "torch", "numpy")
    attributes = {
        "command": command,
        "model_sha256": files[WEIGHTS],
        "config_sha256": files[CONFIG],
        "data_file": data.path.name,
        "data_sha256": _sha256(data.path),
        "input_sha256": _input_sha256(data, case, rows),
        # Those that decide the bits of a result, and the others.
        "versions": ", ".join(f"{name} {found[name]}" for name in decide),
        "further_versions": ", ".join(f"{n} {number}" for n, number in found.items() if number and n not in decide),
    }
    if case.context is not None:
        attributes |= {"context_file": case.context.path.name, "context_sha256": _sha256(case.context.path)}
    return attributes


def _sha256(path: Path) -> str:
    """Of a file; fields need not come from one."""
    return sha256(path) if path.is_file() else "no file"


def _input_sha256(data: FieldFile, case: Case, rows: Sequence[int]) -> str:
    """Fields, contexts and columns of trajectories `rows`, and the times of the frames."""
    digest = hashlib.sha256()
    for i in rows:
        digest.update(data.u[i].tobytes())
        if case.context is not None:
            digest.update(case.context.u[i if len(case.context) > 1 else 0].tobytes())
        elif case.task != "temporal":
            digest.update(data.u[data.context_for(i)].tobytes())
    columns = [data.times, *(values[list(rows)] for _, values in sorted(data.parameters.items()))]
    if data.environment is not None:
        columns.append(data.environment[list(rows)])
    for values in columns:
        digest.update(values.tobytes())
    return digest.hexdigest()


def _listed(settings: SamplingConfig) -> str:
    return ", ".join(f"{name} {value}" for name, value in asdict(settings).items() if value is not None)


def _times(values: Sequence[float]) -> str:
    return " x ".join(f"{value:.6g}" for value in values)


def _boundaries(periodic: Sequence[bool]) -> str:
    return ", ".join("periodic" if wraps else "open" for wraps in periodic)
