"""The resume point of a stage: weights, their average and the state of the optimisers, in one file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import EnmaError
from ..models.checkpoint import load_tensors, read_tensors, write_tensors
from ..utils.dataclass_json import to_json
from .average import Average

STATE = "state.safetensors"


def save_state(
    path: Path,
    module: nn.Module,
    average: Average,
    optimizers: list[torch.optim.Optimizer],
    stage: Any,
    step: int,
    spent: float,
) -> None:
    tensors = {f"model.{k}": v for k, v in module.state_dict().items()}
    tensors |= {f"average.{k}": v for k, v in average.values.items()}
    tensors |= optimizer_tensors(optimizers)
    write_tensors(path, tensors, {"step": str(step), "spent": repr(spent), "stage": to_json(stage)})


def load_state(
    path: Path, module: nn.Module, average: Average, optimizers: list[torch.optim.Optimizer], stage: Any
) -> tuple[int, float]:
    """The step that was taken last, and the seconds of the stage until then."""
    tensors, meta = read_tensors(path)
    if meta.get("stage") != to_json(stage):
        raise EnmaError(f"{path}: was written by another recipe; choose an empty --out or the same recipe")
    weights = {k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")}
    load_tensors(module, weights, source=str(path))
    for name, value in average.values.items():
        value.copy_(tensors[f"average.{name}"])
    load_optimizers(optimizers, tensors)
    return int(meta["step"]), float(meta.get("spent", 0.0))


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
