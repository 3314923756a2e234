"""The stages of training, from data files to a checkpoint folder: their order, and the weights that each starts from.

A run folder holds `run.json` (what was asked for), `log.jsonl`, `state.safetensors` (the resume point), for the
dynamics `latents-train.safetensors` (and `latents-train-<stride>.safetensors`), and at the end `checkpoint/`. The same
call on the same folder resumes.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from ..config import ModelConfig
from ..data import FieldFile, read
from ..data.selection import share_of, spread_rows
from ..errors import EnmaError
from ..forecasting.file_forecast import check_file
from ..forecasting.request import HISTORY
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
from ..utils.dataclass_json import replace
from .checks import check_forecasts, check_stage, check_strides
from .config import VALIDATE_EVERY, TrainingConfig
from .dynamics import DynamicsTask, Latents, encode_all
from .emphasis import odds
from .first_field import check_first
from .first_frame import FirstFrameTask
from .forecasts import ForecastTask
from .head import HeadTask
from .loop import RunOptions, Stage, run
from .presets import Preset, find_preset
from .ranks import Rank, abandon_ranks, join_ranks
from .record import begin_run, finished, summary, with_format
from .symmetries import with_boosts
from .tokenizer import TokenizerTask

log = logging.getLogger("enma_fast")

LATENTS, STRIDED = "latents-train.safetensors", "latents-train-{}.safetensors"
# In the order in which they follow each other.
STAGES = ("tokenizer", "dynamics", "head", "forecasts", "first-frame")
# Held-out trajectories that are reconstructed (by the tokenizer) or rolled out at each validation of a stage.
VALIDATED = {"tokenizer": 200, "dynamics": 48, "head": 48, "forecasts": 120, "first-frame": 120}
_TASKS: dict[str, Callable[..., Stage]] = {
    "head": HeadTask,
    "forecasts": ForecastTask,
    "first-frame": FirstFrameTask,
}
# Names of the weights that a one-pass decoder has beside those of a masked-flow one.
ONE_PASS = ("dynamics.read.", "dynamics.local.", "dynamics.spatial.noise.")
# What draws frame 0, by a flow or by a head of its own.
FIRST = ("dynamics.first.", "dynamics.flow.")


def train(
    stage: str,
    preset: str | Preset,
    *,
    data_dir: Path,
    options: RunOptions,
    tokenizer: str | Path | None = None,
    start: str | Path | None = None,
    model_changes: Mapping[str, Any] | None = None,
    training_changes: Mapping[str, Any] | None = None,
    validated: float = 1.0,
) -> dict[str, Any]:
    """Train a stage of a preset on `<dataset>-train.h5` and validate on `<dataset>-val.h5`.

    `tokenizer` trains the tokenizer, `dynamics` the dynamics on its latent frames, which are computed once, `head` a
    local head and nothing else, `forecasts` whole forecasts, and `first-frame` what draws frame 0 of a one-pass model,
    a flow or a head of its own, and nothing else. The checkpoint of all but the first is a whole model whose tokenizer,
    and its config, are those that were trained before.

    Parameters
    ----------
    stage : one of `STAGES`
    preset : a name of `PRESETS`, or a preset
    data_dir : folder of the data files
    options : how the run is carried out; `options.out` is the run folder
    tokenizer : run folder of the trained tokenizer, or a checkpoint, for the stage `dynamics`, which needs none for a
        lossless one (:attr:`TokenizerConfig.lossless`); for later stages a tokenizer in place of that of `start`
    start : run folder or checkpoint whose weights the training starts from; the first two stages start from random ones
        by default. Parts that the preset's model has and `start` lacks (the noise and the output of a one-pass decoder)
        begin anew.
    model_changes, training_changes : dotted keys of `ModelConfig` and `TrainingConfig` and their new values
    validated : share of the trajectories of `VALIDATED` that validations are of

    Returns
    -------
    dict
        `stage`, `preset`, `out`, `checkpoint` (None if `stop_after` ended the run), `steps`, `num_parameters`,
        `seconds` of training, and the best validation.

    Raises
    ------
    EnmaError
        On an unknown preset or key, missing or unfit data, or a run folder begun with other settings.
    """
    rank, chosen = join_ranks(), find_preset(preset)
    options = with_format(options)
    trained, config = _trained(stage, chosen, tokenizer if stage == "dynamics" else start, model_changes or {})
    training = replace(recipe(chosen, stage), training_changes or {}, source="training config")
    check_stage(stage, training, started=start is not None)
    if options.validate_every is None:
        options = dataclasses.replace(options, validate_every=VALIDATE_EVERY[stage])
    if stage != "tokenizer":
        check_first(config)
    if stage in STAGES[2:] and training.rollout is None:
        raise EnmaError("training config: rollout is null; training on whole forecasts needs its settings")
    if stage in ("dynamics", "forecasts"):
        cut = training.context_share and training.short_context_share
        shown = min(training.shortest_context, config.num_frames) if cut else None
        config = dataclasses.replace(config, shortest_context=shown)
    files = [data_file(data_dir, config.dataset, split) for split in ("train", "val")]
    train = None if stage == "dynamics" else _read(files[0], config)
    val = _read(files[1], config)
    if stage in ("dynamics", "head", "forecasts"):
        check_forecasts(config, val)
    rows = _validated(
        val, share_of(VALIDATED[stage], validated), config, num_history=0 if stage == "tokenizer" else HISTORY
    )
    contexts = None if stage == "tokenizer" else _context_rows(val, rows, trained=training.context_share > 0)
    first = None if start is None else locate(start)
    key = None if tokenizer is None else sha256(locate(tokenizer) / WEIGHTS)
    begin = partial(
        begin_run, options, rank, stage, chosen.model.name, model=config, training=training, files=files, start=first
    )
    data: Any = train
    make: Callable[..., Stage] | None = _TASKS.get(stage)
    if isinstance(trained, Tokenizer):
        if training.scattered_share and trained.interpolation is None:
            raise EnmaError("scattered_share: the tokenizer has no interpolation and sees whole grids; leave it at 0")
        check_strides(training, config, val.u.shape[1])
        begin(tokenizer=key)
        by_stride = {
            stride: _latents(trained, config, files[0], key or "lossless", options, training, rank, stride=stride)
            for stride in {1, *training.strides}
        }
        data, make = by_stride[1], partial(DynamicsTask, by_stride=by_stride)
    if trained is None:
        assert train is not None
        with _seeded(options.seed):
            augmented = with_boosts(train, config.dataset, training, seed=options.seed)
            task: Stage = TokenizerTask(
                config,
                training,
                train=_fields(augmented),
                val=_fields(val, rows),
                odds=odds(augmented, training.emphasis, option="emphasis"),
            )
        assert isinstance(task.module, Tokenizer)
        if first is not None:
            load_tensors(task.module, load_tokenizer(first)[0].state_dict(), source=str(first))
        save = partial(save_tokenizer, task.module, config)
    else:
        with _seeded(options.seed):
            model = Model(config)
        if first is not None:
            inherit(model, trained if isinstance(trained, Model) else load_model(first), source=str(first))
        if isinstance(trained, Tokenizer):
            model.tokenizer.load_state_dict(trained.state_dict())
        elif tokenizer is not None:
            _give_tokenizer(model, tokenizer, same_encoder=stage == "first-frame")
        model.tokenizer.requires_grad_(False)
        model.to(options.device)
        others = None if contexts is None else _fields(val, contexts)
        assert make is not None
        task = make(model, training, train=data, val=_fields(val, rows), val_contexts=others)
        save = partial(save_model, model)
    if not isinstance(trained, Tokenizer):
        begin(tokenizer=key)
    scores = _run(task, options)
    folder = options.out / IN_RUN
    if finished(options, training) and rank.index == 0:
        save(folder)
    if rank.count > 1:
        # Nobody leaves before the checkpoint is on disk.
        dist.barrier()
    done = summary(options.out)
    return {
        "stage": stage,
        "preset": chosen.model.name,
        "out": str(options.out),
        "checkpoint": str(folder) if finished(options, training) else None,
        "steps": done["steps"],
        "seconds": done["seconds"],
        "num_parameters": sum(p.numel() for p in task.module.parameters()),
        "validation": scores,
    }


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Draw initial weights from a seed; the caller's random numbers go on as they were."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def recipe(preset: Preset, stage: str) -> TrainingConfig:
    """The recipe of a stage in a preset."""
    found: TrainingConfig = getattr(preset, recipe_name(stage))
    return found


def recipe_name(stage: str) -> str:
    """The field of a preset that holds the recipe of a stage."""
    return {"forecasts": "forecast", "first-frame": "first_frame"}.get(stage, stage) + "_training"


def _trained(
    stage: str, preset: Preset, checkpoint: str | Path | None, changes: Mapping[str, Any]
) -> tuple[Tokenizer | Model | None, ModelConfig]:
    """The part of the model that earlier stages have trained, and the config of the model with it, changed.

    `EnmaError` if the checkpoint is of other data, or a change is of a tokenizer that is trained already.
    """
    if stage == "tokenizer":
        return None, replace(preset.model, changes, source="model config")
    if stage == "dynamics" and checkpoint is None:
        config = replace(preset.model, changes, source="model config")
        if config.tokenizer.lossless:
            return Tokenizer(config.tokenizer), config
    for key in changes:
        if key.split(".")[0] == "tokenizer":
            raise EnmaError(f"{key}: belongs to the tokenizer's training; change it in `train tokenizer`")
        if key == "shortest_context":
            raise EnmaError(
                "shortest_context: is what the training shows; set it by --train-set shortest_context of `train "
                "dynamics` and `train forecasts`"
            )
    if checkpoint is None:
        raise EnmaError(f"train {stage}: starts from a trained checkpoint; name its run folder")
    source = locate(checkpoint)
    trained: Tokenizer | Model
    if stage == "dynamics":
        (trained, before), kind = load_tokenizer(source), "tokenizer"
    else:
        trained = load_model(source)
        before, kind = trained.config, "model"
    asked = changes.get("dataset", preset.model.dataset)
    if before.dataset != asked:
        raise EnmaError(
            f"{source}: is a {kind} for {before.dataset}; the preset {preset.model.name} is for {asked} (for data of "
            f"another name: --set dataset={before.dataset})"
        )
    # Together, since a patch may fit this tokenizer and not the preset's.
    kept: dict[str, Any] = {"tokenizer": before.tokenizer}
    if stage in ("head", "first-frame"):
        kept |= {"shortest_context": before.shortest_context}
    return trained, replace(preset.model, {**kept, **changes}, source="model config")


def inherit(model: Model, before: Model, *, source: str) -> None:
    """Give a model the weights of another that differs from it in the decoder at most, or in what draws frame 0.

    A one-pass decoder begins with the mean of the flow head's residual target as its output, where there is one, and a
    head of frame 0 that has other sizes begins anew. If any other weight is missing or of another shape, an `EnmaError`
    names `source` and the weight.
    """
    ours = model.state_dict()
    apart = (*ONE_PASS, *FIRST) if model.config.dynamics.first is not None else ONE_PASS
    anew = FIRST if model.config.dynamics.first != before.config.dynamics.first else ()
    tensors = {
        name: t
        for name, t in before.state_dict().items()
        if not name.startswith(anew) and (name in ours or not name.startswith(apart))
    }
    new = {name: t for name, t in ours.items() if name.startswith(apart) and name not in tensors}
    moments = None if before.dynamics.flow is None else before.dynamics.flow.moments
    if "dynamics.read.weight" in new and moments is not None:
        channels = len(new["dynamics.read.weight"])
        new["dynamics.read.weight"] = moments.weight[:channels]
        new["dynamics.read.bias"] = moments.bias[:channels]
    tensors |= new
    load_tensors(model, tensors, source=source)


def _give_tokenizer(model: Model, source: str | Path, *, same_encoder: bool) -> None:
    """Give a model the tokenizer of a run or checkpoint, with the encoder that it has already if `same_encoder`."""
    tokenizer, config = load_tokenizer(source)
    # The weight of the KL divergence is of a training, not of what came out of it.
    same = dataclasses.replace(config.tokenizer, kl_weight=model.config.tokenizer.kl_weight)
    if (config.dataset, same) != (model.config.dataset, model.config.tokenizer):
        raise EnmaError(f"{source}: is a tokenizer for other data or of other sizes than the model's; name one like it")
    before = model.tokenizer.encoder()
    if same_encoder and not all(torch.equal(weight, before[name]) for name, weight in tokenizer.encoder().items()):
        raise EnmaError(
            f"{source}: encodes otherwise than the tokenizer of the model, whose latents its dynamics know; name one "
            "that was trained from it with decoder_only=true, or go on with `train forecasts` first"
        )
    model.tokenizer.load_state_dict(tokenizer.state_dict())


def data_file(folder: Path, dataset: str, split: str) -> Path:
    """`<folder>/<dataset>-<split>.h5`, or an `EnmaError` that says where it may come from."""
    path = folder / f"{dataset}-{split}.h5"
    if not path.is_file():
        if folder.is_dir() and any(folder.iterdir()):
            # A folder of somebody's own data, beside which nothing is to be generated.
            raise EnmaError(f"{path}: no such file; --data is the folder that holds {path.name}")
        raise EnmaError(f"{path}: no such file; make it: enma-fast data generate {dataset} --out {folder}")
    return path


def _run(task: Stage, options: RunOptions) -> dict[str, float]:
    try:
        return run(task, options) or summary(options.out)["validation"]
    except BaseException:
        abandon_ranks()
        raise


def _latents(
    tokenizer: Tokenizer,
    config: ModelConfig,
    file: Path,
    key: str,
    options: RunOptions,
    training: TrainingConfig,
    rank: Rank,
    *,
    stride: int,
) -> Latents:
    """Latents of every `stride`-th frame of the training file, from the run folder if they are there already."""
    path, shift = options.out / (LATENTS if stride == 1 else STRIDED.format(stride)), training.shift
    mark = f"{key}-{sha256(file)}-{'shift' if shift else 'fixed'}"
    if training.encoded_shifts is not None:
        mark += f"-{training.encoded_shifts}"
    if stride > 1:
        mark += f"-stride-{stride}"
    if training.boost:
        mark += f"-boost-{training.boost}-{options.seed}"
    fraction = training.point_fraction if training.scattered_share else None
    if fraction is not None:
        mark += f"-scattered-{fraction[0]}-{fraction[1]}-{options.seed}"
    if rank.index == 0 and not path.exists():
        data = _read(file, config)
        if data.environment is None:
            raise EnmaError(f"{file}: lacks scalars/environment; add one integer per trajectory that names its group")
        data = with_boosts(data, config.dataset, training, seed=options.seed)
        fields = _fields(data)[:, ::stride]
        if stride > 1:
            # At the same place of whole trajectories latent frames are full.
            fields = fields[:, : config.tokenizer.whole_frames(fields.shape[1])]
        log.info("encoding %d trajectories of %d frames", *fields.shape[:2])
        environment = torch.from_numpy(data.environment)
        latents = encode_all(
            tokenizer,
            fields,
            environment,
            shift=shift,
            most_shifts=training.encoded_shifts,
            point_fraction=fraction,
            seed=options.seed,
        )
        latents.save(path, mark)
    if rank.count > 1:
        dist.barrier()
    return Latents.load(path, mark)


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
    mean = np.asarray(0.0 if config.tokenizer.field_mean is None else config.tokenizer.field_mean, np.float32)
    for row in rows:
        if (data.u[row, num_history:] == mean).all():
            raise EnmaError(
                f"{data.path}: trajectory {row} is {np.ravel(mean)[0]:g} throughout, so its relative error is not "
                "defined; leave it out of the validation data"
            )
    return rows
