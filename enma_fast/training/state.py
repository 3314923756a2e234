"""The resume point of a run: weights, their average, the state of the optimisers and the recipe, in one file."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import EnmaError
from ..models.checkpoint import load_tensors, read_tensors, write_tensors
from ..utils.dataclass_json import from_json, to_json
from .average import Average
from .config import TrainingConfig

STATE = "state.safetensors"
# Settings that are no more, and their value, as JSON, in records that are read: the default, or any that did nothing.
_RETIRED = {
    "curriculum_steps": r"\d+",
    "fairness": r"1\.0",
    "history_noise": r"\[\s*0\.003,\s*0\.1\s*\]",
    "history_noise_share": r"0\.0",
}


def save_state(
    path: Path,
    module: nn.Module,
    average: Average,
    optimizers: list[torch.optim.Optimizer],
    config: TrainingConfig,
    step: int,
) -> None:
    tensors = {f"model.{k}": v for k, v in module.state_dict().items()}
    tensors |= {f"average.{k}": v for k, v in average.values.items()}
    tensors |= optimizer_tensors(optimizers)
    write_tensors(path, tensors, {"step": str(step), "training": to_json(config)})


def without_retired(text: str) -> str:
    """JSON of an earlier version without the settings that are no more, where they have the value of their default.

    One with another value stays, so that whoever reads the settings refuses it as an unknown key.
    """
    held = "|".join(f'"{name}": {value}' for name, value in _RETIRED.items())
    return re.sub(rf"(?:{held}),\s*", "", text)


def load_state(
    path: Path, module: nn.Module, average: Average, optimizers: list[torch.optim.Optimizer], config: TrainingConfig
) -> int:
    tensors, meta = read_tensors(path)
    # Keys that are newer than the file have the values of their time.
    if from_json(TrainingConfig, without_retired(meta.get("training", "{}")), source=str(path)) != config:
        raise EnmaError(f"{path}: was written by another training config; choose an empty --out or the same settings")
    weights = {k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")}
    load_tensors(module, weights, source=str(path))
    for name, value in average.values.items():
        value.copy_(tensors[f"average.{name}"])
    load_optimizers(optimizers, tensors)
    return int(meta["step"])


def optimizer_tensors(optimizers: Iterable[torch.optim.Optimizer]) -> dict[str, Tensor]:
    """State of the optimisers by names that :func:`load_optimizers` knows."""
    tensors: dict[str, Tensor] = {}
    for i, optimizer in enumerate(optimizers):
        for j, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{i}.{j}.{k}": torch.as_tensor(v) for k, v in state.items()}
    return tensors


def load_optimizers(optimizers: Iterable[torch.optim.Optimizer], tensors: Mapping[str, Tensor]) -> None:
    """Put the state of :func:`optimizer_tensors` back."""
    for i, optimizer in enumerate(optimizers):
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            if key.startswith(f"optimizer.{i}."):
                _, _, j, name = key.split(".")
                state.setdefault(int(j), {})[name] = value
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
