"""Carry out a recipe: its stages one after the other, from data files to a checkpoint, and on from where a run stopped.

RUN/recipe.toml, run.json      what is trained, and on which data and machine
RUN/data/                      the data, where none are given
RUN/<stage>/                   `log.jsonl`, `state.safetensors` (the resume point), and at its end `checkpoint/`
RUN/checkpoint/                the model, with its card

The same call on the same folder resumes.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..config import ModelConfig
from ..data import EQUATIONS, FieldFile, generate, read
from ..data.drivers import rows_of
from ..data.selection import spread_rows
from ..errors import EnmaError
from ..forecasting.file_forecast import check_file
from ..forecasting.request import HISTORY
from ..models.checkpoint import (
    IN_RUN,
    LOG,
    MANIFEST,
    RECIPE,
    WEIGHTS,
    load_model,
    locate,
    read_tensors,
    save_model,
    sha256,
)
from ..models.model import Model
from ..utils.files import write_atomic
from ..utils.system import commit, machine, versions
from .inherit import inherit
from .loop import BEST, RunOptions, in_bf16, run
from .ranks import Rank, abandon_ranks, join_ranks
from .recipes import Recipe, to_toml
from .stage import Material, Stage

log = logging.getLogger("enma_fast")

RUN, DATA = "run.json", "data"
# Entries of the record in which a run that goes on agrees with the one that began the folder.
_FIXED = ("recipe", "data", "start")

# Called with the work that is done and that there is, and a note.
Progress = Callable[[float, float, str], None]


def train(
    recipe: Recipe,
    *,
    options: RunOptions,
    data_dir: Path | None = None,
    start: str | Path | None = None,
    better: Callable[[Model], None] | None = None,
    progress: Progress | None = None,
) -> Model | None:
    """Train the stages of a recipe on `<dataset>-train.h5` and validate on `<dataset>-val.h5`.

    Parameters
    ----------
    recipe : model and stages
    options : how the run is carried out; `options.out` is the run folder, and the seed that of the recipe
    data_dir : folder of the data files; by default they are generated in the run folder
    start : checkpoint whose weights the first stage begins with, in place of random ones
    better : called with the model whenever it has the best weights so far
    progress : called with (steps done, steps, note)

    Returns
    -------
    Model or None
        The trained model, on every rank; None if `options.stop_after` steps ended the run before.

    Raises
    ------
    EnmaError
        On missing or unfit data, or a run folder begun with another recipe or data.
    """
    rank, out = join_ranks(), options.out
    options = dataclasses.replace(options, precision=rank.by_first(lambda: chosen_format(options)), seed=recipe.seed)
    if data_dir is None:
        data_dir = rank.by_first(lambda: generated(recipe, out / DATA, ("train", "val")))
    files = [data_file(data_dir, recipe.model.dataset, split) for split in ("train", "val")]
    val = _read(files[1], recipe.model)
    begin = partial(begin_run, options, rank.count, recipe, files=files, start=None if start is None else locate(start))
    rank.by_first(begin)
    stages = recipe.folders()
    total, steps = sum(stage.steps for stage in stages.values()), 0
    config, before = recipe.model, start
    for name, stage in stages.items():
        # What contexts earlier stages have shown stays true until another stage shows some.
        config = stage.config(dataclasses.replace(recipe.model, shortest_context=config.shortest_context))
        folder = out / name
        if not rank.from_first((folder / IN_RUN / MANIFEST).is_file()):
            left = None if options.stop_after is None else options.stop_after - steps
            if left is not None and left <= 0:
                return None
            with _seeded(recipe.seed):
                model = Model(config)
            each = dataclasses.replace(
                options,
                out=folder,
                stop_after=left,
                better=partial(better, model) if better else None,
                progress=partial(_tell, progress, name, steps, total - stage.steps) if progress else None,
            )
            if before is not None:
                inherit(model, load_model(before), source=str(before))
            _train(stage, model, each, rank, train=files[0], val=val)
            if left is not None and left < stage.steps:
                return None
        before, steps = folder, steps + stage.steps
    assert before is not None
    return load_model(before)


def _train(stage: Stage, model: Model, options: RunOptions, rank: Rank, *, train: Path, val: FieldFile) -> None:
    """Train a stage of a model, or go on with it; its checkpoint is written at its end."""
    if stage.forecasts and (frames := val.u.shape[1]) != model.config.num_frames:
        raise EnmaError(
            f"{val.path}: trajectories have {frames} frames and the model's num_frames is {model.config.num_frames}; "
            "change it in the recipe"
        )
    begun = time.monotonic(), time.process_time()
    model.requires_grad_(False).to(options.device)
    rows = _validated(val, stage.validated, model.config, HISTORY if stage.forecasts else 0)
    contexts = _context_rows(val, rows, trained=stage.context_share > 0)
    options.out.mkdir(parents=True, exist_ok=True)
    with _seeded(options.seed):
        task = stage.task(
            model,
            Material(
                train=lambda: _read(train, model.config),
                val=_fields(val, rows),
                val_contexts=None if contexts is None else _fields(val, contexts),
                val_known=rows_of(val.known, rows),
                val_context_known={} if contexts is None else rows_of(val.known, contexts),
                folder=options.out,
                seconds=options.seconds,
                seed=options.seed,
                rank=rank,
            ),
        )
    log.info("%s: %s", options.out.name, stage.amount if options.seconds is None else f"{options.seconds:.0f} s")
    try:
        run(task, options)
    except BaseException:
        abandon_ranks()
        raise
    if options.stop_after is None or options.stop_after >= stage.steps:
        task.finish()
        rank.by_first(lambda: _finish(stage, model, options.out, *begun))


def _finish(stage: Stage, model: Model, folder: Path, clock: float, cpu: float) -> None:
    """Write the checkpoint of a stage, and into its log what it took since this process began it."""
    seconds = {"seconds": time.monotonic() - clock, "cpu_seconds": time.process_time() - cpu}
    with (folder / LOG).open("a") as file:
        file.write(json.dumps({"step": stage.steps, **seconds}) + "\n")
    save_model(model, folder / IN_RUN)


def _tell(
    progress: Progress,
    name: str,
    before: int,
    others: int,
    done: int,
    steps: int,
    values: dict[str, float],
) -> None:
    held = f"  validation {values['validation']:.3g}" if "validation" in values else ""
    rate = f"  {values['per_second']:.0f} trajectories/s"
    progress(before + done, others + steps, f"{name} {done}/{steps}  loss {values['loss']:.3g}{held}{rate}")


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Draw initial weights from a seed; the caller's random numbers go on as they were."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def begin_run(options: RunOptions, ranks: int, recipe: Recipe, *, files: list[Path], start: Path | None) -> None:
    """Write recipe and record of a new run, or hold one that goes on to the record that is there."""
    record = {
        "recipe": to_toml(recipe),
        "data": {file.name: sha256(file) for file in files},
        "start": None if start is None else sha256(start / WEIGHTS),
        "precision": options.precision,
        "compile": options.compile,
        "device": options.device,
        "ranks": ranks,
        "machine": machine(),
        "versions": versions(),
        "commit": commit(),
    }
    path = options.out / RUN
    # One that has computed nothing yet binds nobody.
    if path.is_file() and any(entry for name in recipe.folders() for entry in (options.out / name).glob("*")):
        on_disk = read_record(options.out)
        for key in _FIXED:
            if on_disk[key] != record[key]:
                raise EnmaError(
                    f"{path}: this run was begun with {_difference(on_disk[key], record[key], key)}; choose an empty "
                    "--out, or go on with the same"
                )
        return
    try:
        write_atomic(options.out / RECIPE, to_toml(recipe).encode())
        write_atomic(path, (json.dumps(record, indent=1) + "\n").encode())
    except OSError as error:
        raise EnmaError(f"{options.out}: cannot be written ({error.strerror}); choose another --out") from error


def _difference(old: Any, new: Any, name: str) -> str:
    """Where the records of two runs differ: the first line of a recipe, or the entry."""
    if not (isinstance(old, str) and isinstance(new, str)):
        return f"other {name} ({old}, not {new})"
    lines = old.splitlines(), new.splitlines()
    place = next((i for i, (a, b) in enumerate(zip(*lines, strict=False)) if a != b), min(map(len, lines)))
    one, other = (repr("".join(part[place : place + 1])) for part in lines)
    return f"another {name}: {one}, not {other}"


def read_record(folder: Path) -> dict[str, Any]:
    """`run.json` of a run folder."""
    path = folder / RUN
    try:
        record = json.loads(path.read_text())
    except FileNotFoundError:
        raise EnmaError(f"{path}: no such file; give the --out folder of a training run") from None
    except ValueError:
        raise EnmaError(f"{path}: is not JSON; begin the run again in an empty folder") from None
    if not isinstance(record, dict) or not {*_FIXED, "precision"} <= set(record):
        raise EnmaError(f"{path}: is not the record of a run; begin it again in an empty folder")
    return record


def chosen_format(options: RunOptions) -> str:
    """bf16 or fp32 in place of `auto`: that of the run which goes on, or else the faster one."""
    begun: str | None = read_record(options.out)["precision"] if (options.out / RUN).exists() else None
    if begun is not None and options.precision not in ("auto", begun):
        raise EnmaError(
            f"precision is {options.precision}: {options.out} was begun in {begun}; leave it at auto, or choose an "
            "empty --out"
        )
    return begun or ("bf16" if in_bf16(options) else "fp32")


def account(folder: Path, recipe: Recipe) -> dict[str, Any]:
    """How a finished run was trained, for card and metrics: its record, and what each stage took."""
    record = read_record(folder)
    stages = {name: {**summary(folder / name, stage), "kind": stage.kind} for name, stage in recipe.folders().items()}
    return {**record, "seed": recipe.seed, "stages": stages}


def summary(folder: Path, stage: Stage) -> dict[str, Any]:
    """Steps, trajectories, seconds and best validation of a stage, from its files.

    Seconds are those of the steps. If there were none they are those of the whole stage, and so are `cpu_seconds`.
    """
    path = folder / LOG
    entries = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    step, seconds, cpu = 0, 0.0, {}
    for entry in entries:
        if "cpu_seconds" in entry:
            if not step:
                seconds, cpu = entry["seconds"], {"cpu_seconds": entry["cpu_seconds"]}
        elif "validation" not in entry:
            seconds += stage.batch * (entry["step"] - step) / entry["per_second"]
            step = entry["step"]
    best = folder / BEST
    validation = json.loads(read_tensors(best)[1]["scores"]) if best.is_file() else {}
    return {"steps": step, "trajectories": step * stage.batch, "seconds": seconds, **cpu, "validation": validation}


def data_file(folder: Path, dataset: str, split: str) -> Path:
    """`<folder>/<dataset>-<split>.h5`, or an `EnmaError` that says where it may come from."""
    path = folder / f"{dataset}-{split}.h5"
    if not path.is_file():
        if folder.is_dir() and any(folder.iterdir()):
            # A folder of somebody's own data, beside which nothing is to be generated.
            raise EnmaError(f"{path}: no such file; --data is the folder that holds {path.name}")
        raise EnmaError(f"{path}: no such file; make it: enma-fast data generate {dataset} --out {folder}")
    return path


def generated(recipe: Recipe, folder: Path, splits: Sequence[str]) -> Path:
    """The folder of some data of a recipe, which are made there unless they are there."""
    dataset = recipe.model.dataset
    if dataset not in EQUATIONS:
        raise EnmaError(f"{dataset}: no equation of this name makes the data; give their folder by --data")
    for split in splits:
        generate(dataset, split, groups=recipe.data.get(split), out_dir=folder)
    return folder


def _read(path: Path, config: ModelConfig) -> FieldFile:
    data = read(path)
    check_file(config, data)
    return data


def _fields(data: FieldFile, rows: np.ndarray | None = None) -> Tensor:
    return torch.from_numpy(data.u if rows is None else data.u[rows])


def _context_rows(data: FieldFile, rows: np.ndarray, *, trained: bool) -> np.ndarray | None:
    """Numbers of the contexts of trajectories; None where none has one, or one lacks it and none is trained."""
    if data.environment is not None:
        sizes = np.unique(data.environment, return_counts=True)[1]
        if sizes.max() == 1 or (not trained and sizes.min() == 1):
            return None
    return np.array([data.context_for(int(i)) for i in rows])


def _validated(data: FieldFile, count: int, config: ModelConfig, num_history: int) -> np.ndarray:
    """Up to `count` trajectories spread evenly over a file.

    Refuses one that is the mean of the training data in all frames after `num_history`: relative errors divide by 0.
    """
    rows = spread_rows(len(data), count)
    mean = np.asarray(0.0 if config.codec.field_mean is None else config.codec.field_mean, np.float32)
    for row in rows:
        if (data.u[row, num_history:] == mean).all():
            raise EnmaError(
                f"{data.path}: trajectory {row} is {np.ravel(mean)[0]:g} throughout, so its relative error is not "
                "defined; leave it out of the validation data"
            )
    return rows
