"""All files of members and statistics in a store, in one order: channel by channel, members before statistics."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .chunks import checked_file
from .layout import Layout, member_file, statistic_file


@dataclass(frozen=True)
class StoredFile:
    """A file of members or of a statistic, and the units of the ledger that it holds."""

    file: Path
    holds: str
    units: range
    num_bytes: int
    # Chunks in the file, and chunks that it has room for (None: the file is no shard).
    chunks: int = 1
    size: int | None = None

    def problem(self, recorded: int = 0) -> str | None:
        """Describe the damage of the file, or a checksum that is not the recorded one (0: none recorded); else None."""
        wrong, checksum = self._checked()
        if wrong is None and recorded and checksum != recorded:
            return "another file: its checksum is not the one recorded"
        return wrong

    def checksum(self) -> int:
        """Compute the checksum of the file on disk; 0 if it is not whole."""
        return self._checked()[1]

    def _checked(self) -> tuple[str | None, int]:
        return checked_file(self.file, self.num_bytes, chunks=self.chunks, size=self.size)


def files_of(path: Path, layout: Layout) -> Iterator[StoredFile]:
    """Yield the files of the store at `path`; file n has place n among the checksums, as `Layout.place_of_*` says."""
    num_bytes = 4 * int(np.prod(layout.frame_shape))
    B, K, shard = len(layout.trajectories), layout.num_members, layout.shard
    numbers = [int(n) for n in layout.trajectories]
    for c, name in enumerate(layout.channels):
        for b in range(B if layout.keep_members else 0):
            for k in range(0, K, shard):
                end = min(k + shard, K)
                first = layout.first_member + k
                who = f"member {first}" if shard == 1 else f"members {first} to {layout.first_member + end - 1}"
                units = range(b * K + k, b * K + end)
                holds = f"{name} of {who} of trajectory {numbers[b]}"
                size = None if shard == 1 else shard
                yield StoredFile(member_file(path, name, layout, b, k), holds, units, num_bytes, end - k, size)
        before = B * K if layout.keep_members else 0
        for kind, own in layout.kept_statistics().items():
            for b in range(B):
                holds = f"{kind} of {layout.channels[c]} of trajectory {numbers[b]}"
                file = statistic_file(path, name, kind, layout, b)
                yield StoredFile(file, holds, range(before + b, before + b + 1), (own or 1) * num_bytes)
