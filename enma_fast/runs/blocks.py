"""The work of a run in pieces: which members are sampled together, and who samples them.

Shape suffixes: B trajectories, K members.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar, overload

import numpy as np

from ..store.ledger import Ledger

# Seconds between looks at pieces that others work on.
_POLL = 0.2
# A piece is taken from who holds it when nothing was done for so many seconds, and so many times the longest piece.
_PATIENCE, _LONGER = 60.0, 5.0

log = logging.getLogger("enma_fast")


class Piece(Protocol):
    """Contiguous units `first, ..., last - 1` of a ledger."""

    @property
    def first(self) -> int: ...

    @property
    def last(self) -> int: ...


P = TypeVar("P", bound=Piece)


@dataclass(frozen=True, kw_only=True)
class Block:
    """Members `k, ..., k_end - 1` of trajectories `b, ..., b_end - 1`: contiguous units of the ledger."""

    b: int
    b_end: int
    k: int
    k_end: int
    members: int

    @property
    def first(self) -> int:
        return self.b * self.members + self.k

    @property
    def last(self) -> int:
        return (self.b_end - 1) * self.members + self.k_end


@dataclass(frozen=True)
class Unit:
    """One unit of the ledger."""

    first: int

    @property
    def last(self) -> int:
        return self.first + 1


class Cut(Sequence[Block]):
    """All members in blocks of about a chunk of rows: several whole trajectories, or whole shards of one."""

    def __init__(self, trajectories: int, members: int, *, chunk: int, shard: int = 1) -> None:
        self._shape = (trajectories, members)
        # Trajectories and members of a block.
        self._size = (chunk // members, members) if chunk >= 2 * members else (1, max(1, chunk // shard) * shard)
        self._along = tuple(-(-whole // size) for whole, size in zip(self._shape, self._size, strict=True))

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
        return Block(b=b, b_end=min(b + b_size, B), k=k, k_end=min(k + k_size, K), members=K)


def missing_parts(block: Block, ledger: Ledger, shard: int = 1) -> Iterator[Block]:
    """The units of a block that are not done, as blocks; of a shard, all where one is not."""
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
            yield Block(b=b, b_end=b + 1, k=block.k + int(start), k_end=block.k + int(end), members=block.members)


def claims(
    ledger: Ledger, pieces: Sequence[P], *, rank: int, num_ranks: int, idle: Callable[[], None] = lambda: None
) -> Iterator[P]:
    """Pieces that are not done, one at a time and each claimed; waits for those that others work on.

    Every rank begins at its own part of the list and goes round, so that a slow one is helped. `idle` is called before
    a wait: what this process holds back would keep the others waiting too. A process may be stopped and hold its piece
    for ever: where nothing gets done for long, its piece is given out without a claim. Both write the same bytes.
    """
    start = rank * len(pieces) // max(1, num_ranks)
    pending: Iterable[int] = itertools.chain(range(start, len(pieces)), range(start))
    count, changed, longest = -1, time.monotonic(), 0.0
    while True:
        done, busy = ledger.done(), []
        for i in pending:
            piece = pieces[i]
            if done[piece.first : piece.last].all():
                continue
            if not ledger.claim(piece.first, piece.last):
                busy.append(i)
            elif ledger.done(piece.first, piece.last).all():
                # Another process has done it since.
                ledger.release(piece.first, piece.last)
            else:
                begun = time.monotonic()
                yield piece
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
            # What it writes when it goes on has the same bytes.
            said = "%s: a process holds members and has done none for %.0f s; they are sampled here"
            log.warning(said, ledger.path.parent, now - changed)
            yield pieces[busy[0]]
            changed = time.monotonic()
            continue
        time.sleep(_POLL)
        pending = busy
