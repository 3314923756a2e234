"""Training of the networks for so many CPU seconds, and what they share.

Shape suffixes: B trajectories, T frames, c channels; `*x` points.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from enma_fast.config import ModelConfig
from enma_fast.data import FieldFile, count, read
from enma_fast.errors import EnmaError
from enma_fast.evaluation.baselines import Method
from enma_fast.models.checkpoint import read_tensors, write_tensors
from enma_fast.models.model import Model
from enma_fast.training.augment import random_shifts, roll
from enma_fast.training.average import Average
from enma_fast.training.loop import begin_step, end_step, fast_bf16, step_generator
from enma_fast.training.optim import build, learning_rate
from enma_fast.training.recipes import RECIPES
from enma_fast.training.rollouts import environments
from enma_fast.training.stage import Optimizer, Stage
from enma_fast.training.state import load_optimizers, optimizer_tensors
from enma_fast.training.subnormals import flush_subnormals
from enma_fast.utils.dataclass_json import to_json
from enma_fast.utils.system import keep_freed_memory

# Heads, and widths to choose from, of the transformers.
HEADS, WIDTHS = 6, range(48, 481, 24)
# Share of a model's parameters by which a baseline may have more or fewer.
MARGIN = 0.2
# Bytes of training data that are in memory.
_MOST_BYTES = 2_000_000_000
# Seconds between saved states.
SAVE_SECONDS = 300.0
# Steps of the schedule of the learning rate, whatever the number of steps taken.
_SCHEDULE = 1000
# Share of the batches that have a context.
_CONTEXT_SHARE = 0.5


class Network(Protocol):
    """A baseline that is trained.

    Attributes
    ----------
    module : the weights that training changes
    config : batch, optimiser and learning rates
    deterministic : it gives one member
    tasks : names of the tasks that it can do
    mixed : it multiplies matrices in bf16 where that is faster, as the models of the library do
    """

    module: nn.Module
    config: Stage
    deterministic: bool
    tasks: tuple[str, ...]
    mixed: bool

    def loss(self, u_BTxc: Tensor, context_BTxc: Tensor | None, share: float, generator: torch.Generator) -> Tensor:
        """Loss of a batch after a share of the training; contexts are other trajectories of the same physics."""

    def forecast(self) -> Method:
        """The trained network as a method."""


@dataclass(frozen=True)
class Trained:
    """Result of a training."""

    steps: int
    cpu_seconds: float
    losses: list[float]


@flush_subnormals()
def train(
    network: Network,
    data: FieldFile,
    *,
    seconds: float,
    seed: int,
    state: Path | None = None,
    save_seconds: float = SAVE_SECONDS,
) -> Trained:
    """Train for so many CPU seconds of all threads; the weights at the end are their running average.

    The learning rate follows its schedule over the seconds, so a busy machine changes only how many steps are taken.
    A step that would go beyond them, were it as long as the longest before it, is not begun.
    With `state` the training is saved in that file every `save_seconds` and at its end, and goes on from there.

    Raises
    ------
    EnmaError
        If the file is of another training, or the data have no environments.
    """
    keep_freed_memory()
    config, module = network.config, network.module
    in_bf16 = network.mixed and fast_bf16("cpu")
    optimizers = build(module, config.optimizer, dtype=torch.bfloat16 if in_bf16 else torch.float32)
    average = Average(module, config.optimizer.ema_decay)
    u = torch.from_numpy(data.u)
    if data.environment is None:
        raise EnmaError(f"{data.path}: lacks scalars/environment, which finds contexts; add it")
    groups = environments(torch.from_numpy(data.environment))
    params = [p for p in module.parameters() if p.requires_grad]
    about = json.dumps(
        {
            "network": type(network).__name__,
            "parameters": num_parameters(module),
            "data": data.name,
            "seconds": seconds,
            "seed": seed,
            "bf16": in_bf16,
            "config": to_json(config),
        }
    )
    losses: list[float] = []
    begin, saved = time.process_time(), time.monotonic()
    if state is not None and state.exists():
        tensors, notes = read_tensors(state)
        if notes.get("about") != about:
            raise EnmaError(f"{state}: is of another training ({notes.get('about')}); give another file")
        with torch.no_grad():
            for name, p in module.named_parameters():
                p.copy_(tensors[f"model.{name}"])
        for name, value in average.values.items():
            value.copy_(tensors[f"average.{name}"])
        load_optimizers(optimizers, tensors)
        losses, begin = json.loads(notes["losses"]), begin - float(notes["spent"])

    def save() -> None:
        if state is None:
            return
        tensors = {f"model.{name}": p for name, p in module.named_parameters()} | optimizer_tensors(optimizers)
        tensors |= {f"average.{name}": value for name, value in average.values.items()}
        notes = {"about": about, "losses": json.dumps(losses), "spent": str(time.process_time() - begin)}
        write_tensors(state, tensors, notes)

    module.train()
    spent, longest = time.process_time() - begin, 0.0
    while spent < seconds - longest:
        step, share, before = len(losses), spent / seconds, spent
        generator = step_generator(seed, step)
        begin_step(optimizers, learning_rate(int(_SCHEDULE * share), config.optimizer, _SCHEDULE))
        paired = "initial-value" in network.tasks and torch.rand((), generator=generator).item() < _CONTEXT_SHARE
        chosen = groups[torch.randint(len(groups), (config.batch,), generator=generator)]
        order = torch.rand(chosen.shape, generator=generator).argsort(-1)[:, :2]
        both = [
            roll(u[rows], random_shifts(tuple(u.shape[2:-1]), data.periodic, len(rows), generator))
            for rows in chosen.gather(1, order).T[: 1 + paired]
        ]
        with torch.autocast("cpu", torch.bfloat16, enabled=in_bf16):
            loss = network.loss(both[0], both[1] if paired else None, share, generator)
        loss.backward()
        end_step(params, optimizers)
        average.update(module, step)
        losses.append(loss.item())
        if time.monotonic() - saved > save_seconds:
            save()
            saved = time.monotonic()
        spent = time.process_time() - begin
        longest = max(longest, spent - before)
    save()
    average.put(module)
    module.eval()
    return Trained(len(losses), time.process_time() - begin, losses)


def training_data(folder: Path, equation: str) -> FieldFile:
    """The training file of an equation, or whole environments evenly spread over it where it is too large."""
    path = folder / f"{equation}-train.h5"
    if not path.is_file():
        raise EnmaError(f"{path}: no such file; make it by enma-fast data generate {equation} --split train")
    first = read(path, select=[0])
    size = 10
    step = max(1, -(-count(path) * first.u.nbytes // _MOST_BYTES))
    if step == 1:
        return read(path)
    starts = np.arange(0, count(path), step * size)
    return read(path, select=(starts[:, None] + np.arange(size)).ravel())


def relative_error(forecast_BTxc: Tensor, truth_BTxc: Tensor) -> Tensor:
    """Mean over the batch of the relative L2 error, the score of the tables."""
    error = (forecast_BTxc - truth_BTxc).flatten(1).norm(dim=1)
    return (error / truth_BTxc.flatten(1).norm(dim=1).clamp_min(1e-6)).mean()


def reference(equation: str) -> ModelConfig:
    """The model of this library that a baseline stands beside."""
    names = [f"{equation.replace('_', dash)}-{size}" for size in ("fast", "small") for dash in ("_", "-")]
    name = next((name for name in names if name in RECIPES), None)
    if name is None:
        raise EnmaError(f"{equation}: there is no preset {' or '.join(dict.fromkeys(names))} to compare with")
    return RECIPES[name].model


def of_size(make: Callable[[int], nn.Module], widths: range, config: ModelConfig) -> nn.Module:
    """The module whose number of parameters is nearest to that of a model; it grows with the width.

    Raises
    ------
    EnmaError
        If it differs by more than `MARGIN`.
    """
    target = num_parameters(Model(config))
    sizes: dict[int, int] = {}
    low, high = 0, len(widths) - 1
    while low <= high:
        middle = (low + high) // 2
        size = sizes[widths[middle]] = num_parameters(make(widths[middle]))
        low, high = (middle + 1, high) if size < target else (low, middle - 1)
    width = min(sizes, key=lambda each: abs(sizes[each] - target))
    if abs(sizes[width] - target) > MARGIN * target:
        raise EnmaError(
            f"{config.name} has {target:,} parameters, the nearest baseline {sizes[width]:,}; give it other widths"
        )
    return make(width)


def schedule(*, batch: int, **optimizer: Any) -> Stage:
    """Batch and optimiser of a baseline, whose learning rate has the schedule of so many steps."""
    return Stage(kind="baseline", steps=_SCHEDULE, batch=batch, optimizer=Optimizer(**optimizer))


def batched(config: Stage, data: FieldFile, *, planes: int) -> Stage:
    """The config with so many trajectories of a plane in a batch, so that ten minutes hold some hundred steps."""
    return config if len(data.u.shape[2:-1]) == 1 else dataclasses.replace(config, batch=planes)


def num_parameters(module: nn.Module) -> int:
    return sum(p.numel() * (2 if p.is_complex() else 1) for p in module.parameters())
