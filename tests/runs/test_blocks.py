"""Blocks of a run, and the part of each that is missing."""

from pathlib import Path

import numpy as np
import pytest

from enma_fast.forecasting.request import ForecastRequest
from enma_fast.runs.blocks import Block, Blocks, missing_parts
from enma_fast.store.ledger import Ledger, write_ledger


def blocks_of(num_trajectories: int, num_members: int, *, chunk: int, shard: int = 1) -> Blocks:
    request = ForecastRequest(trajectories=range(num_trajectories), num_members=num_members, chunk=chunk)
    return Blocks(request, shard=shard)


@pytest.mark.parametrize(
    ("blocks", "expected"),
    [
        (
            blocks_of(2, 5, chunk=2),
            [(0, 1, 0, 2), (0, 1, 2, 4), (0, 1, 4, 5), (1, 2, 0, 2), (1, 2, 2, 4), (1, 2, 4, 5)],
        ),
        (blocks_of(5, 3, chunk=7), [(0, 2, 0, 3), (2, 4, 0, 3), (4, 5, 0, 3)]),
        (blocks_of(1, 5, chunk=3, shard=2), [(0, 1, 0, 2), (0, 1, 2, 4), (0, 1, 4, 5)]),
        (blocks_of(1, 5, chunk=1, shard=4), [(0, 1, 0, 4), (0, 1, 4, 5)]),
    ],
)
def test_a_run_is_cut_into_blocks(blocks: Blocks, expected: list[tuple[int, ...]]) -> None:
    assert [(block.b, block.b_end, block.k, block.k_end) for block in blocks] == expected
    assert (len(blocks), blocks[-1], blocks[1:]) == (len(expected), list(blocks)[-1], list(blocks)[1:])
    assert sum(block.last - block.first for block in blocks) == blocks[-1].last
    with pytest.raises(IndexError):
        blocks[len(blocks)]


def test_a_huge_run_is_cut_at_once() -> None:
    blocks = blocks_of(1000, 2**32, chunk=64)
    assert len(blocks) == 1000 * 2**26
    assert (blocks[2**26].b, blocks[2**26].k, blocks[-1].last) == (1, 0, 1000 * 2**32)


def test_the_missing_of_a_block_are_blocks(tmp_path: Path) -> None:
    write_ledger(tmp_path / "x", np.zeros(12, bool))
    ledger = Ledger(tmp_path / "x", 12)
    block = Block(b=0, b_end=3, k=0, k_end=4, num_members=4)
    assert list(missing_parts(block, ledger, 1)) == [block]
    ledger.mark([0, 1, 5, 8, 9, 10, 11])
    found = [(part.b, part.k, part.k_end) for part in missing_parts(block, ledger, 1)]
    assert found == [(0, 2, 4), (1, 0, 1), (1, 2, 4)]
    ledger.mark(range(12))
    assert list(missing_parts(block, ledger, 1)) == []
