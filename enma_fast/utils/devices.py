"""Tensors from one device to another."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor


def can_use(device: str) -> bool:
    """Whether this is a CPU, or a GPU that is there."""
    try:
        usable = torch.device(device).type in ("cpu", "cuda")
        torch.empty(0, device=device if usable else "meta")
    except (RuntimeError, AssertionError):
        return False
    return usable


def use_own_gpu() -> None:
    """Make the GPU of this process the current one: those that torchrun starts on a machine get one each."""
    if torch.cuda.is_available() and (local := os.environ.get("LOCAL_RANK")):
        torch.cuda.set_device(int(local) % torch.cuda.device_count())


def num_chosen(count: int, index: Any) -> int:
    """How many of so many rows an index takes: a slice, a list or a tensor on any device."""
    return len(torch.arange(count, device=index.device if isinstance(index, Tensor) else None)[index])


def to_device(x: Tensor, device: torch.device) -> Tensor:
    """`x` on a device; to a GPU by way of pinned memory, so that the host does not wait for the copy."""
    if device.type != "cuda" or x.is_cuda:
        return x.to(device)
    return x.pin_memory().to(device, non_blocking=True)
