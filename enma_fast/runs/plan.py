"""The plan of a run: what is to be sampled, and the disk, memory and time that it takes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..store.layout import Layout
from .block_sampler import BlockSampler
from .blocks import Blocks
from .statistics import bytes_needed

# With more chunks than this, half a chunk of work to measure the time of all is worth it.
_MANY_CHUNKS = 32


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The work of a run; sizes in bytes, time in seconds (None where it was not measured)."""

    trajectories: int
    members: int
    frames: int
    members_missing: int
    chunk: int
    blocks: int
    ranks: int
    disk: int
    files: int
    memory: dict[str, int]
    seconds: float | None


def disk_needed(layout: Layout, missing: int) -> tuple[int, int]:
    """Bytes and files that the missing members take."""
    rows = len(layout.trajectories) * layout.num_members
    return int(layout.num_bytes() * missing / rows), layout.num_files() * missing // rows


def make_plan(
    sampler: BlockSampler, layout: Layout, blocks: Blocks, *, missing: int, num_ranks: int, measure: bool | None
) -> Plan:
    """The plan of a run of which `missing` members are left to sample.

    With `measure` a few frames are sampled, by default where many chunks are missing.
    """
    if measure is None:
        measure = missing > _MANY_CHUNKS * sampler.chunk
    memory, seconds = sampler.measure(blocks[0]) if measure and missing else ({}, None)
    frame = 4 * int(np.prod(layout.frame_shape)) * len(layout.channels)
    rows = len(layout.trajectories) * layout.num_members
    # Two blocks wait to be written while one is sampled.
    memory["fields"] = 3 * frame * min(max(sampler.chunk, layout.shard), rows)
    if layout.statistics:
        shape = (*layout.frame_shape, len(layout.channels))
        memory["statistics"] = bytes_needed(shape, layout.quantiles, layout.thresholds, saved=not layout.keep_members)
    disk, files = disk_needed(layout, missing)
    return Plan(
        trajectories=len(layout.trajectories),
        members=layout.num_members,
        frames=layout.frame_shape[0],
        members_missing=missing,
        chunk=sampler.chunk,
        blocks=len(blocks),
        ranks=num_ranks,
        disk=disk,
        files=files,
        memory=memory,
        seconds=None if seconds is None else seconds * missing / min(num_ranks, len(blocks)),
    )
