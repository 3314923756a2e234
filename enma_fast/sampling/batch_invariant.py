"""Batch-invariant encoding and decoding by PyTorch: on the CPU a row's bits depend neither on others nor on threads.

Forecasts take it where `models/native_codec` does not serve: query points, no extension.

PyTorch's convolutions and linear layers choose their arithmetic by the number of rows and threads, and for some shapes
by the address of a row in memory. So each row is computed by a single thread: in blocks of a fixed size if a row has
the same bits at every place of a block, which holds for all presets, and otherwise one by one. The activations of a
block also stay in the cache of its thread: this is faster than all threads on all rows (1.2x to 1.6x on two cores).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ..ops._backend import plain
from ..utils.bounds import most_threads

if TYPE_CHECKING:
    from ..ops.recordings import Recordings
    from .ladder import Ladder

_Given = TypeVar("_Given")
_Made = TypeVar("_Made")

# Number of space dimensions -> rows of a block.
BLOCKS = {1: 8, 2: 4, 3: 2}
# A single row is rounded differently from one of two, so it is computed twice.
PAIR = 2

# Values that PyTorch's pointwise loops process at a time: two of the widest vectors.
VECTORS = 32

# (operation, block, shape of a row) -> True if blocks may be used.
_IN_BLOCKS: dict[Hashable, bool] = {}


def map_rows(
    function: Callable[[Tensor], Tensor],
    rows: Tensor,
    *,
    operation: Hashable,
    block: int,
    recordings: Recordings | None = None,
    ladder: Ladder | None = None,
) -> Tensor:
    """Apply an encoder or decoder to rows ``[B, ...]`` with batch-invariant bits, without gradients.

    ``function`` maps ``[b, ...]`` to ``[b, ...]``, each row by itself. ``operation`` is everything beside the shape of
    a row that determines its arithmetic: its config, but not its weights; the first call for an operation tests whether
    blocks of ``block`` rows may be used. On devices other than the CPU all rows are computed at once, in one call,
    as the ``ladder`` says; from ``recordings``, where ``function`` reads weights and rows alone.
    """
    if rows.device.type != "cpu":

        def computed(rung: str) -> Tensor:
            if rung == "graph" and recordings is not None:
                out = recordings((operation, tuple(rows.shape), rows.dtype), lambda given: function(given[0]), [rows])
                assert out is not None
                return out
            with plain(rung == "reference"):
                return function(rows)

        with torch.inference_mode():
            return computed("static") if ladder is None else ladder.climb(computed)
    key = (operation, block, tuple(rows.shape[1:]))
    if key not in _IN_BLOCKS:
        _IN_BLOCKS[key] = _same_in_block(function, rows, block)
    in_blocks = _IN_BLOCKS[key]
    whole = len(rows) // block * block if in_blocks else 0
    # Splitting zero rows gives one empty part.
    parts = [part for part in (*rows[:whole].split(block), *rows[whole:].split(1)) if len(part)]
    return torch.cat(map_alone(lambda part: _apply(function, part, pad=in_blocks), parts))


def map_alone(function: Callable[[_Given], _Made], parts: Sequence[_Given]) -> list[_Made]:
    """Apply a function to parts, each by one thread alone."""
    threads = min(torch.get_num_threads(), most_threads())
    # A thread that is alone needs no other.
    apply = map if threads == 1 else _workers(threads).map
    return list(apply(function, parts))


def _same_in_block(function: Callable[[Tensor], Tensor], rows: Tensor, block: int) -> bool:
    """True if rows of this shape have the same bits at all places of a block as at the first place of a pair."""
    generator = torch.Generator().manual_seed(0)
    trial = torch.randn(block, *rows.shape[1:], generator=generator).to(rows.dtype)
    workers = _workers(min(torch.get_num_threads(), most_threads()))
    together, *alone = workers.map(lambda part: _apply(function, part, pad=True), [trial, *trial.split(1)])
    # Bits are compared, since NaN equals nothing, and since models of one config share the answer.
    if not torch.equal(*(part.reshape(-1).view(torch.uint8) for part in (together, torch.cat(alone)))):
        return False
    # Beyond the last whole vector a few values are rounded differently; a trial may miss them, so there must be none.
    sizes = []
    for part in (trial, trial[:PAIR].clone()):
        with torch.inference_mode(), _PointwiseSizes() as mode:
            function(part)
        sizes.append(mode.sizes)
    # Operations of the same size in both act on weights.
    return not any(a != b and (a % VECTORS or b % VECTORS) for a, b in zip(*sizes, strict=True))


class _PointwiseSizes(TorchDispatchMode):
    """Records the number of values of each pointwise operation inside it."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # True would import dynamo, which takes a second; nothing here is compiled.
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if torch.Tag.pointwise in func.tags and isinstance(out, Tensor):
            self.sizes.append(out.numel())
        return out


@torch.inference_mode()
def _apply(function: Callable[[Tensor], Tensor], part: Tensor, *, pad: bool) -> Tensor:
    if pad and len(part) < PAIR:
        return function(torch.cat([part, part]))[:1]
    # A copy starts at an aligned address.
    return function(part.clone())


@cache
def _workers(count: int) -> ThreadPoolExecutor:
    """A pool of threads in each of which PyTorch uses that thread alone."""
    ready = threading.Barrier(count + 1)

    def start() -> None:
        torch.set_num_threads(1)
        # A thread adopts the number that any thread has set last when it first asks for it: now.
        torch.get_num_threads()
        ready.wait()

    workers = ThreadPoolExecutor(count, thread_name_prefix="enma_fast_rows", initializer=start)
    for _ in range(count):
        workers.submit(int)
    ready.wait()
    # The number that later threads adopt.
    torch.set_num_threads(count)
    return workers


if hasattr(os, "register_at_fork"):
    # Threads do not exist in a forked child.
    os.register_at_fork(after_in_child=_workers.cache_clear)
