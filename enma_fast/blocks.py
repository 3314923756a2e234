"""The work of a run in pieces: which members are sampled together, and who samples them.

Shape suffixes: B trajectories, K members.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np

from .ledger import Ledger

# Seconds between looks at pieces that others work on.
_POLL = 0.2


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


def cut(trajectories: int, members: int, *, chunk: int, shard: int = 1) -> list[Block]:
    """All members in blocks of about a chunk of rows: several whole trajectories, or whole shards of one."""
    if chunk >= 2 * members:
        size = chunk // members
        return [
            Block(b=b, b_end=min(b + size, trajectories), k=0, k_end=members, members=members)
            for b in range(0, trajectories, size)
        ]
    size = max(1, chunk // shard) * shard
    return [
        Block(b=b, b_end=b + 1, k=k, k_end=min(k + size, members), members=members)
        for b in range(trajectories)
        for k in range(0, members, size)
    ]


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
    a wait: what this process holds back would keep the others waiting too.
    """
    start = rank * len(pieces) // max(1, num_ranks)
    pending = [*pieces[start:], *pieces[:start]]
    while pending:
        done, busy = ledger.done(), []
        for piece in pending:
            if done[piece.first : piece.last].all():
                continue
            if not ledger.claim(piece.first, piece.last):
                busy.append(piece)
            elif ledger.done(piece.first, piece.last).all():
                # Another process has done it since.
                ledger.release(piece.first, piece.last)
            else:
                yield piece
        if busy:
            idle()
            if ledger.finished():
                return
            time.sleep(_POLL)
        pending = busy
