"""The record of a run, `run.json`: what was asked for, and what a command that resumes it has to agree with."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from ..config import ModelConfig
from ..errors import EnmaError
from ..models.checkpoint import LOG, WEIGHTS, read_tensors, sha256
from ..utils.dataclass_json import from_json, to_json
from ..utils.files import write_atomic
from ..utils.system import machine, versions
from .config import TrainingConfig
from .loop import BEST, RunOptions, in_bf16
from .ranks import Rank
from .state import STATE, without_retired

RUN = "run.json"
# Entries of the record in which a resumed run has to agree with the one that began the folder.
_FIXED = ("stage", "model", "training", "seed", "data", "tokenizer", "start")


def finished(options: RunOptions, training: TrainingConfig) -> bool:
    """True if a run ends by its own number of steps, and not by `stop_after`."""
    return options.stop_after is None or options.stop_after >= training.steps


def summary(folder: Path) -> dict[str, Any]:
    """Steps, training seconds (validation and pauses left out) and best validation of a run, from its files."""
    path, record = folder / LOG, read_record(folder)
    entries = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    batch, step, seconds = record["training"]["batch"], 0, 0.0
    validation: dict[str, float] = {}
    for entry in entries:
        if "validation" not in entry:
            seconds += batch * (entry["step"] - step) / entry["per_second"]
            step = entry["step"]
    if (folder / BEST).is_file():
        validation = json.loads(read_tensors(folder / BEST)[1]["scores"])
    return {"steps": step, "seconds": seconds, "validation": validation}


def read_record(folder: Path) -> dict[str, Any]:
    """`run.json` of a run folder."""
    path = folder / RUN
    try:
        record = json.loads(without_retired(path.read_text()))
    except FileNotFoundError:
        raise EnmaError(f"{path}: no such file; give the --out folder of a training run") from None
    except ValueError:
        raise EnmaError(f"{path}: is not JSON; begin the run again in an empty folder") from None
    if isinstance(record, dict):
        # Runs of earlier versions all started from random weights.
        record.setdefault("start", None)
    if not isinstance(record, dict) or not {*_FIXED, "preset"} <= set(record):
        raise EnmaError(f"{path}: is not the record of a run; begin it again in an empty folder")
    return record


def with_format(options: RunOptions) -> RunOptions:
    """The options with bf16 or fp32 in place of `auto`: that of the run which is resumed, or else the faster one."""
    # Every rank asks, since the first one answers all.
    fastest = "bf16" if in_bf16(options) else "fp32"
    # Earlier versions recorded `auto` itself.
    begun = read_record(options.out)["precision"] if (options.out / STATE).exists() else "auto"
    if begun != "auto" and options.precision not in ("auto", begun):
        raise EnmaError(
            f"precision is {options.precision}: {options.out} was begun in {begun}; leave it at auto, or choose an "
            "empty --out"
        )
    return dataclasses.replace(options, precision=fastest if begun == "auto" else begun)


def begin_run(
    options: RunOptions,
    rank: Rank,
    stage: str,
    preset: str,
    *,
    model: ModelConfig,
    training: TrainingConfig,
    files: list[Path],
    tokenizer: str | None = None,
    start: Path | None = None,
) -> None:
    """Write the record of a new run, or hold one that has a state to resume to the record that is there."""
    record = {
        "stage": stage,
        "preset": preset,
        "model": json.loads(to_json(model)),
        "training": json.loads(to_json(training)),
        "seed": options.seed,
        "data": {file.name: sha256(file) for file in files},
        "tokenizer": tokenizer,
        "start": None if start is None else sha256(start / WEIGHTS),
        "precision": options.precision,
        "compile": options.compile,
        "device": options.device,
        "ranks": rank.count,
        "machine": machine(),
        "versions": versions(),
    }
    path = options.out / RUN
    if (options.out / STATE).exists():
        known = read_record(options.out)
        for key, config in (("model", model), ("training", training)):
            # Keys that are newer than the file have the values of their time.
            known[key] = json.loads(to_json(from_json(type(config), json.dumps(known[key]), source=f"{path}: {key}")))
        for key in _FIXED:
            where = _first_difference(known[key], record[key], key)
            if where is not None:
                raise EnmaError(f"{path}: {where}; choose an empty --out or the same settings")
        return
    if rank.index == 0:
        try:
            write_atomic(path, (json.dumps(record, indent=1) + "\n").encode())
        except OSError as error:
            raise EnmaError(f"{options.out}: cannot be written ({error.strerror}); choose another --out") from error


def _first_difference(old: Any, new: Any, name: str) -> str | None:
    """Where two records differ; a key that one of them lacks is as good as null."""
    if isinstance(old, dict) and isinstance(new, dict):
        found = (_first_difference(old.get(key), new.get(key), f"{name}.{key}") for key in [*old, *new])
        return next((where for where in found if where is not None), None)
    return None if old == new else f"this run was begun with {name} {old}, not {new}"
