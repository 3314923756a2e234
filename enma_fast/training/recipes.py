"""The trainings, from data files to a checkpoint folder.

A run folder holds `run.json` (what was asked for), `log.jsonl`, `state.safetensors` (the resume point), for the
dynamics `latents-train.safetensors`, and at the end `checkpoint/`. The same call on the same folder resumes.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from ..config import ModelConfig, TrainingConfig
from ..data import FieldFile, read
from ..errors import EnmaError
from ..forecasting.file_forecast import check_file
from ..models.checkpoint import (
    IN_RUN,
    WEIGHTS,
    load_model,
    load_tensors,
    load_tokenizer,
    locate,
    save_model,
    save_tokenizer,
    sha256,
)
from ..models.model import Model
from ..models.tokenizer import Tokenizer
from ..presets import Preset, find_preset
from ..utils.dataclass_json import replace
from .dynamics import HISTORY, DynamicsTask, Latents, encode_all
from .first_frame import FirstFrameTask
from .forecasts import ForecastTask
from .loop import Rank, RunOptions, Task, abandon_ranks, join_ranks, run
from .record import begin, summary
from .tokenizer import TokenizerTask

log = logging.getLogger("enma_fast")

CHECKPOINT, LATENTS = IN_RUN, "latents-train.safetensors"
# Held-out trajectories that are reconstructed, and that are rolled out, at each validation.
TOKENIZER_VALIDATION, DYNAMICS_VALIDATION, FORECAST_VALIDATION = 200, 48, 120
# What a one-pass decoder has beside a masked-flow one.
ONE_PASS = ("dynamics.read.", "dynamics.spatial.noise.")


def train_tokenizer(
    preset: str | Preset,
    *,
    data_dir: Path,
    options: RunOptions,
    model_changes: Mapping[str, Any] | None = None,
    training_changes: Mapping[str, Any] | None = None,
    start: str | Path | None = None,
) -> dict[str, Any]:
    """Train a preset's tokenizer on `<dataset>-train.h5` and validate on `<dataset>-val.h5`.

    Parameters
    ----------
    preset : a name of `PRESETS`, or a preset
    data_dir : folder of the data files
    options : how the run is carried out; `options.out` is the run folder
    model_changes, training_changes : dotted keys of `ModelConfig` and `TrainingConfig` and their new values
    start : run folder or checkpoint whose weights the training starts from; by default it starts from random ones

    Returns
    -------
    dict
        `stage`, `preset`, `out`, `checkpoint` (None if `stop_after` ended the run), `steps`, `num_parameters`,
        `seconds` of training, and the last validation.

    Raises
    ------
    EnmaError
        On an unknown preset or key, missing or unfit data, or a run folder begun with other settings.
    """
    rank = join_ranks()
    chosen = find_preset(preset)
    config = replace(chosen.model, model_changes or {}, source="model config")
    training = replace(chosen.tokenizer_training, training_changes or {}, source="training config")
    files = [data_file(data_dir, config.dataset, split) for split in ("train", "val")]
    train, val = (_read(file, config) for file in files)
    first = None if start is None else locate(start)
    begin(
        options,
        rank,
        stage="tokenizer",
        preset=chosen.model.name,
        model=config,
        training=training,
        files=files,
        start=first,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        task = TokenizerTask(
            config, training, train=_fields(train), val=_fields(val, _validated(val, TOKENIZER_VALIDATION, config))
        )
    assert isinstance(task.module, Tokenizer)
    if first is not None:
        load_tensors(task.module, load_tokenizer(first)[0].state_dict(), source=str(first))
    scores = _run(task, options)
    folder = options.out / CHECKPOINT
    if finished(options, training) and rank.index == 0:
        save_tokenizer(task.module, config, folder)
    return _end(task, options, rank, "tokenizer", chosen.model.name, scores)


def train_dynamics(
    preset: str | Preset,
    *,
    tokenizer: str | Path,
    data_dir: Path,
    options: RunOptions,
    model_changes: Mapping[str, Any] | None = None,
    training_changes: Mapping[str, Any] | None = None,
    start: str | Path | None = None,
) -> dict[str, Any]:
    """Train a preset's dynamics on the latent frames of a trained tokenizer, which are computed once.

    Parameters and errors are those of `train_tokenizer`; `tokenizer` is its run folder, or any checkpoint. The
    tokenizer's own config replaces the preset's. The checkpoint is a whole model with averaged weights.
    """
    rank = join_ranks()
    chosen = find_preset(preset)
    _keep_tokenizer(model_changes or {})
    source = locate(tokenizer)
    trained, theirs = load_tokenizer(source)
    config = _config_with(theirs, chosen, model_changes or {}, source=f"{source}: is a tokenizer")
    training = replace(chosen.dynamics_training, training_changes or {}, source="training config")
    files = [data_file(data_dir, config.dataset, split) for split in ("train", "val")]
    val = _read(files[1], config)
    rows = _validated(val, DYNAMICS_VALIDATION, config, num_history=HISTORY)
    contexts = _context_rows(val, rows)
    key = sha256(source / WEIGHTS)
    first = None if start is None else locate(start)
    begin(
        options,
        rank,
        stage="dynamics",
        preset=chosen.model.name,
        model=config,
        training=training,
        files=files,
        tokenizer=key,
        start=first,
    )
    latents = _latents(trained, config, files[0], key, options.out / LATENTS, training.shift, rank)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        model = Model(config)
    if first is not None:
        inherit(model, load_model(first), source=str(first))
    model.tokenizer.load_state_dict(trained.state_dict())
    model.to(options.device)
    task = DynamicsTask(
        model,
        training,
        train=latents,
        val=_fields(val, rows),
        val_contexts=None if contexts is None else _fields(val, contexts),
    )
    scores = _run(task, options)
    if finished(options, training) and rank.index == 0:
        save_model(model, options.out / CHECKPOINT)
    return _end(task, options, rank, "dynamics", chosen.model.name, scores)


def train_forecasts(
    preset: str | Preset,
    *,
    start: str | Path,
    data_dir: Path,
    options: RunOptions,
    stage: str = "forecasts",
    model_changes: Mapping[str, Any] | None = None,
    training_changes: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Train a preset on whole forecasts, from the weights of finished dynamics.

    Parameters and errors are those of `train_tokenizer`; `start` is a run folder of the dynamics, of this stage or any
    whole checkpoint, whose tokenizer stays as it is. What the preset's model has and `start` lacks (the noise and the
    output of a one-pass decoder) begins anew. The checkpoint is the whole model with the averaged weights of the best
    validation. The stage "first-frame" trains the flow that draws frame 0 of a one-pass model, and nothing else.
    """
    rank = join_ranks()
    chosen = find_preset(preset)
    _keep_tokenizer(model_changes or {})
    source = locate(start)
    before = load_model(source)
    config = _config_with(before.config, chosen, model_changes or {}, source=f"{source}: is a model")
    recipe = chosen.forecast_training if stage == "forecasts" else chosen.first_frame_training
    training = replace(recipe, training_changes or {}, source="training config")
    if training.rollout is None:
        raise EnmaError("training config: rollout is null; training on whole forecasts needs its settings")
    files = [data_file(data_dir, config.dataset, split) for split in ("train", "val")]
    train, val = (_read(file, config) for file in files)
    rows = _validated(val, FORECAST_VALIDATION, config, num_history=HISTORY)
    contexts = _context_rows(val, rows)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        model = Model(config)
    inherit(model, before, source=str(source))
    model.tokenizer.requires_grad_(False)
    model.to(options.device)
    make = ForecastTask if stage == "forecasts" else FirstFrameTask
    task = make(
        model,
        training,
        train=train,
        val=_fields(val, rows),
        val_contexts=None if contexts is None else _fields(val, contexts),
    )
    name = chosen.model.name
    begin(options, rank, stage=stage, preset=name, model=config, training=training, files=files, start=source)
    scores = _run(task, options)
    if finished(options, training) and rank.index == 0:
        save_model(model, options.out / CHECKPOINT)
    return _end(task, options, rank, stage, name, scores)


def _keep_tokenizer(changes: Mapping[str, Any]) -> None:
    """Refuse changes of a tokenizer that is trained already."""
    for key in changes:
        if key.split(".")[0] == "tokenizer":
            raise EnmaError(f"{key}: belongs to the tokenizer's training; change it in `train tokenizer`")


def _config_with(trained: ModelConfig, preset: Preset, changes: Mapping[str, Any], *, source: str) -> ModelConfig:
    """The preset's model config with the tokenizer of another, and changed; `EnmaError` for one of other data."""
    if trained.dataset != preset.model.dataset:
        raise EnmaError(f"{source} for {trained.dataset}; the preset {preset.model.name} is for {preset.model.dataset}")
    return replace(dataclasses.replace(preset.model, tokenizer=trained.tokenizer), changes, source="model config")


def inherit(model: Model, before: Model, *, source: str) -> None:
    """Give a model the weights of another that differs from it in the decoder at most.

    A one-pass decoder begins with the mean of the flow head's residual target as its output, where there is one.

    Raises
    ------
    EnmaError
        If any other weight is missing or of another shape; names `source` and the weight.
    """
    tensors = dict(before.state_dict())
    read = model.dynamics.read
    if read is not None and before.dynamics.read is None:
        moments = before.dynamics.flow.moments
        new = {name: t for name, t in model.state_dict().items() if name.startswith(ONE_PASS)}
        if moments is not None:
            channels = read.out_features
            new["dynamics.read.weight"] = moments.weight[:channels]
            new["dynamics.read.bias"] = moments.bias[:channels]
        tensors |= new
    elif read is None:
        tensors = {name: t for name, t in tensors.items() if not name.startswith(ONE_PASS)}
    load_tensors(model, tensors, source=source)


def data_file(folder: Path, dataset: str, split: str) -> Path:
    """`<folder>/<dataset>-<split>.h5`, or an `EnmaError` that says where it may come from."""
    path = folder / f"{dataset}-{split}.h5"
    if not path.is_file():
        if folder.is_dir() and any(folder.iterdir()):
            # A folder of somebody's own data, beside which nothing is to be generated.
            raise EnmaError(f"{path}: no such file; --data is the folder that holds {path.name}")
        raise EnmaError(f"{path}: no such file; make it: enma-fast data generate {dataset} --out {folder}")
    return path


def finished(options: RunOptions, training: TrainingConfig) -> bool:
    """Whether a run ends by its own number of steps, and not by `stop_after`."""
    return options.stop_after is None or options.stop_after >= training.steps


def _run(task: Task, options: RunOptions) -> dict[str, float]:
    try:
        return run(task, options) or summary(options.out)["validation"]
    except BaseException:
        abandon_ranks()
        raise


def _end(
    task: Task, options: RunOptions, rank: Rank, stage: str, preset: str, scores: dict[str, float]
) -> dict[str, Any]:
    if rank.count > 1:
        # Nobody leaves before the checkpoint is on disk.
        dist.barrier()
    done = summary(options.out)
    return {
        "stage": stage,
        "preset": preset,
        "out": str(options.out),
        "checkpoint": str(options.out / CHECKPOINT) if finished(options, task.config) else None,
        "steps": done["steps"],
        "seconds": done["seconds"],
        "num_parameters": sum(p.numel() for p in task.module.parameters()),
        "validation": scores,
    }


def _latents(
    tokenizer: Tokenizer, config: ModelConfig, file: Path, key: str, path: Path, shift: bool, rank: Rank
) -> Latents:
    """Latent frames of the training file, from the run folder if they are there already."""
    mark = f"{key}-{sha256(file)}-{'shift' if shift else 'fixed'}"
    if rank.index == 0 and not path.exists():
        data = _read(file, config)
        if data.environment is None:
            raise EnmaError(f"{file}: lacks scalars/environment; add one integer per trajectory that names its group")
        log.info("encoding %d trajectories", len(data))
        encode_all(tokenizer, _fields(data), torch.from_numpy(data.environment), shift=shift).save(path, mark)
    if rank.count > 1:
        dist.barrier()
    return Latents.load(path, mark)


def _read(path: Path, config: ModelConfig) -> FieldFile:
    data = read(path)
    check_file(config, data)
    return data


def _fields(data: FieldFile, rows: np.ndarray | None = None) -> Tensor:
    return torch.from_numpy(data.u if rows is None else data.u[rows])


def _context_rows(data: FieldFile, rows: np.ndarray) -> np.ndarray | None:
    """Numbers of the contexts of trajectories; None where every trajectory is of an environment of its own."""
    if data.environment is not None and len(np.unique(data.environment)) == len(data):
        return None
    return np.array([data.context_for(int(i)) for i in rows])


def _validated(data: FieldFile, count: int, config: ModelConfig, num_history: int = 0) -> np.ndarray:
    """Up to `count` trajectories spread evenly over a file, so that many environments are among them.

    Refuses one that is the mean of the training data in all frames after `num_history`: relative errors divide by 0.
    """
    count = min(count, len(data))
    rows = np.arange(count) * len(data) // count
    mean = np.asarray(0.0 if config.tokenizer.field_mean is None else config.tokenizer.field_mean, np.float32)
    for row in rows:
        if (data.u[row, num_history:] == mean).all():
            raise EnmaError(
                f"{data.path}: trajectory {row} is {np.ravel(mean)[0]:g} throughout, so its relative error is not "
                "defined; leave it out of the validation data"
            )
    return rows
