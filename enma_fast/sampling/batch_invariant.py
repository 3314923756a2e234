"""POINTS -> TOKENS -> POINTS for many rows: on the CPU a row's bits depend neither on the others nor on threads.

PyTorch's convolutions and linear layers choose their arithmetic by the number of rows and of threads, and for some
shapes by where in memory a row begins. So rows are coded by one thread each: in blocks of a fixed size where a row is
found to have the same bits at every place of a block, which is so for all presets, and one by one elsewhere. That also
keeps a block's activations in its thread's cache: faster than all rows by all threads (1.2x to 1.6x on two cores).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ..utils.bounds import most_threads

# Rows of a block, by space dimensions.
BLOCKS = {1: 8, 2: 4}
# A row alone is rounded otherwise than one of two.
PAIR = 2

# Values that PyTorch's pointwise loops take at a time: two of the widest vectors.
VECTORS = 32

# (operation, block, shape of a row) -> whether blocks may be used.
_TOGETHER: dict[Hashable, bool] = {}


def map_rows(code: Callable[[Tensor], Tensor], rows: Tensor, *, operation: Hashable, block: int) -> Tensor:
    """Apply an encoder or decoder to rows ``[B, ...]``, without gradients.

    Parameters
    ----------
    code
        Takes ``[b, ...]`` and returns ``[b, ...]``, row by row.
    rows
        ``[B, ...]``; on another device than the CPU they are coded at once.
    operation
        All that decides the arithmetic of ``code`` beside the shape of a row: its config, not its weights. The first
        call for it looks whether blocks may be used.
    block
        Rows of a block.
    """
    if rows.device.type != "cpu":
        with torch.inference_mode():
            return code(rows)
    key = (operation, block, tuple(rows.shape[1:]))
    if key not in _TOGETHER:
        _TOGETHER[key] = _same_in_block(code, rows, block)
    together = _TOGETHER[key]
    whole = len(rows) // block * block if together else 0
    # Splitting no rows gives an empty part.
    parts = [part for part in (*rows[:whole].split(block), *rows[whole:].split(1)) if len(part)]
    workers = _workers(min(torch.get_num_threads(), most_threads()))
    return torch.cat(list(workers.map(lambda part: _code(code, part, pad=together), parts)))


def _same_in_block(code: Callable[[Tensor], Tensor], rows: Tensor, block: int) -> bool:
    """Whether rows of this shape have the same bits in a block, at all of its places, as in the first of a pair."""
    generator = torch.Generator().manual_seed(0)
    trial = torch.randn(block, *rows.shape[1:], generator=generator).to(rows.dtype)
    workers = _workers(min(torch.get_num_threads(), most_threads()))
    together, *alone = workers.map(lambda part: _code(code, part, pad=True), [trial, *trial.split(1)])
    # Bits, not numbers: what is not a number equals nothing, and models of one config share the answer.
    if not torch.equal(*(part.reshape(-1).view(torch.uint8) for part in (together, torch.cat(alone)))):
        return False
    # Few values are rounded otherwise beyond the last whole vector: they may be missed, so there must be none.
    sizes = []
    for part in (trial, trial[:PAIR].clone()):
        with torch.inference_mode(), _PointwiseSizes() as found:
            code(part)
        sizes.append(found.sizes)
    # What has one size in both belongs to the weights.
    return not any(a != b and (a % VECTORS or b % VECTORS) for a, b in zip(*sizes, strict=True))


class _PointwiseSizes(TorchDispatchMode):
    """Collects how many values the pointwise functions inside it give."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Skipping it would import it, which takes a second; nothing here is compiled.
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if torch.Tag.pointwise in func.tags and isinstance(out, Tensor):
            self.sizes.append(out.numel())
        return out


@torch.inference_mode()
def _code(code: Callable[[Tensor], Tensor], part: Tensor, *, pad: bool) -> Tensor:
    if pad and len(part) < PAIR:
        return code(torch.cat([part, part]))[:1]
    # A tensor of its own begins where memory is aligned.
    return code(part.clone())


@cache
def _workers(count: int) -> ThreadPoolExecutor:
    """Threads in which PyTorch's operations have one thread each."""
    ready = threading.Barrier(count + 1)

    def start() -> None:
        torch.set_num_threads(1)
        # A thread takes the number set last by any thread when it first needs it: now.
        torch.get_num_threads()
        ready.wait()

    workers = ThreadPoolExecutor(count, thread_name_prefix="enma_fast_coding", initializer=start)
    for _ in range(count):
        workers.submit(int)
    ready.wait()
    # For threads that start later.
    torch.set_num_threads(count)
    return workers


if hasattr(os, "register_at_fork"):
    # Threads do not live on in a forked child.
    os.register_at_fork(after_in_child=_workers.cache_clear)
