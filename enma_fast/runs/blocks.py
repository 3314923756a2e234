"""The work of a run in blocks: which members are sampled together, and which process samples them.

Shape suffixes: B trajectories, K members.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar, overload

import numpy as np

from ..forecasting.request import ForecastRequest
from ..store.layout import Layout
from ..store.ledger import Ledger

# Seconds between looks at ranges that others work on.
_POLL = 0.2
# A range is taken from the process that holds it when nothing was done for _PATIENCE seconds, and for _LONGER times the
# time of the longest range.
_PATIENCE, _LONGER = 60.0, 5.0

log = logging.getLogger("enma_fast")


@dataclass(frozen=True, kw_only=True)
class Block:
    """Members `k, ..., k_end - 1` of trajectories `b, ..., b_end - 1`: contiguous units of the ledger.

    `num_members` is the ensemble size of the whole run.
    """

    b: int
    b_end: int
    k: int
    k_end: int
    num_members: int

    @property
    def first(self) -> int:
        return self.b * self.num_members + self.k

    @property
    def last(self) -> int:
        return (self.b_end - 1) * self.num_members + self.k_end

    def first_rows(self, most: int) -> Block:
        """Whole trajectories of the block, or members of its first one, of at most this many rows."""
        size = self.k_end - self.k
        b_end = min(self.b_end, self.b + max(1, most // size))
        return replace(self, b_end=b_end, k_end=self.k + min(size, most))

    def part_of(self, request: ForecastRequest, *, chunk: int) -> ForecastRequest:
        """The request for this block."""
        return request.part(slice(self.b, self.b_end), slice(self.k, self.k_end), chunk=chunk)


@dataclass(frozen=True)
class Unit:
    """One unit of the ledger."""

    first: int

    @property
    def last(self) -> int:
        return self.first + 1


# Contiguous units `first, ..., last - 1` of a ledger.
R = TypeVar("R", Block, Unit)


class Blocks(Sequence[Block]):
    """All members in blocks of about a chunk of rows: several whole trajectories, or whole shards of one."""

    def __init__(self, request: ForecastRequest, *, shard: int = 1) -> None:
        chunk, num_members = request.rows, request.num_members
        self._shape = (len(request.trajectories or ()), num_members)
        # Trajectories and members of a block.
        whole = chunk >= 2 * num_members
        self._size = (chunk // num_members, num_members) if whole else (1, max(1, chunk // shard) * shard)
        self._along = tuple(-(-count // size) for count, size in zip(self._shape, self._size, strict=True))

    def __len__(self) -> int:
        return self._along[0] * self._along[1]

    @overload
    def __getitem__(self, index: int) -> Block: ...

    @overload
    def __getitem__(self, index: slice) -> list[Block]: ...

    def __getitem__(self, index: int | slice) -> Block | list[Block]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        b, k = (i * size for i, size in zip(divmod(range(len(self))[index], self._along[1]), self._size, strict=True))
        (B, K), (b_size, k_size) = self._shape, self._size
        return Block(b=b, b_end=min(b + b_size, B), k=k, k_end=min(k + k_size, K), num_members=K)


def missing_parts(block: Block, ledger: Ledger, shard: int) -> Iterator[Block]:
    """Yield the units of a block that are not done, as blocks; of a shard, all where one is not."""
    missing_BK = ~ledger.done(block.first, block.last).reshape(block.b_end - block.b, -1)
    if shard > 1:
        shards = np.logical_or.reduceat(missing_BK, np.arange(0, missing_BK.shape[1], shard), axis=1)
        missing_BK = np.repeat(shards, shard, axis=1)[:, : missing_BK.shape[1]]
    if missing_BK.all():
        yield block
        return
    for b, missing_K in enumerate(missing_BK, start=block.b):
        edges = np.flatnonzero(np.diff(np.concatenate([[0], missing_K, [0]])))
        for start, end in edges.reshape(-1, 2):
            yield Block(
                b=b, b_end=b + 1, k=block.k + int(start), k_end=block.k + int(end), num_members=block.num_members
            )


def warn_of_infinite(block: Block, samples: np.ndarray, layout: Layout) -> None:
    """Name the members `[B, K, T, *x, c]` of a block that are not finite, in a line for each trajectory."""
    finite_BK = np.isfinite(samples).all(axis=tuple(range(2, samples.ndim)))
    for b in np.flatnonzero(~finite_BK.all(axis=1)).tolist():
        numbers = ", ".join(str(layout.first_member + block.k + k) for k in np.flatnonzero(~finite_BK[b]))
        who = f"members {numbers} are" if "," in numbers else f"member {numbers} is"
        log.warning("trajectory %d: its %s not finite", layout.trajectories[block.b + b], who)


def claims(
    ledger: Ledger, ranges: Sequence[R], *, rank: int, num_ranks: int, idle: Callable[[], None] = lambda: None
) -> Iterator[R]:
    """Yield ranges that are not done, one at a time and each claimed; wait for those that others work on.

    Every rank begins at its own part of the list and goes round, so that a slow one is helped. `idle` is called before
    a wait: what this process holds back would keep the others waiting too. A process may be stopped and hold its range
    for ever: where nothing gets done for long, its range is given out without a claim. Both write the same bytes.
    """
    start = rank * len(ranges) // max(1, num_ranks)
    pending: Iterable[int] = itertools.chain(range(start, len(ranges)), range(start))
    count, changed, longest = -1, time.monotonic(), 0.0
    while True:
        done, busy = ledger.done(), []
        for i in pending:
            part = ranges[i]
            if done[part.first : part.last].all():
                continue
            if not ledger.claim(part.first, part.last):
                busy.append(i)
            elif ledger.done(part.first, part.last).all():
                # Another process has done it since.
                ledger.release(part.first, part.last)
            else:
                begun = time.monotonic()
                yield part
                changed = time.monotonic()
                longest = max(longest, changed - begun)
        if not busy:
            return
        idle()
        if ledger.finished():
            return
        now, before, count = time.monotonic(), count, int(ledger.done().sum())
        if count != before:
            changed = now
        elif now - changed > max(_PATIENCE, _LONGER * longest):
            # It writes the same bytes when it goes on.
            said = "%s: a process holds members and has done none for %.0f s; they are sampled here"
            log.warning(said, ledger.path.parent, now - changed)
            yield ranges[busy[0]]
            changed = time.monotonic()
            continue
        time.sleep(_POLL)
        pending = busy
