"""A share of a run that is fixed beforehand: for file systems that give no locks between machines.

Rank r of n takes the ranges r, r + n, ...: no process claims anything, and none takes over from another. Rank 0 makes
the store and the others wait for it. The process that sees that all is done finishes it; if two do, they write the same
bytes.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..errors import EnmaError
from ..store.layout import LEDGER
from ..store.ledger import Ledger
from ..store.location import remove_unwritten
from ..utils.launch import Launch
from .blocks import R

# Seconds that other ranks wait for the store, and between two looks.
_WAIT, _POLL = 600.0, 0.1
# File systems and options by which locks are not seen by other machines.
_LOCAL = {
    "nfs": ("nolock", "local_lock=all", "local_lock=flock", "local_lock=posix"),
    "nfs4": ("nolock", "local_lock=all", "local_lock=flock", "local_lock=posix"),
    "lustre": ("localflock",),
    "cifs": ("nobrl",),
    "smb3": ("nobrl",),
    "ocfs2": ("localflocks",),
    "gfs2": ("localflocks",),
}
_NEVER = ("fuse.sshfs", "9p")
_MOUNTS = Path("/proc/self/mountinfo")


class StaticShare:
    """Stands in for `ledger.RunLock` where there are no locks."""

    def __init__(self, target: Path, launch: Launch) -> None:
        self.first = launch.rank == 0
        self._target = target

    def __enter__(self) -> StaticShare:
        last = time.monotonic() + _WAIT
        while not self.first and not self._target.exists():
            if time.monotonic() > last:
                raise EnmaError(f"{self._target}: rank 0 has not made it in {_WAIT:.0f} s; start it with the others")
            time.sleep(_POLL)
        return self

    def share(self) -> None:
        """Others look for the store, which is there."""

    def __exit__(self, *error: object) -> None:
        """Nothing is held; a store that is complete keeps nothing of processes that were killed."""
        if not (self._target / LEDGER).exists():
            remove_unwritten(self._target)


def shares(ledger: Ledger, ranges: Sequence[R], *, rank: int, num_ranks: int) -> Iterator[R]:
    """Yield the ranges of a rank that are not done."""
    done = ledger.done()
    for i in range(rank, len(ranges), num_ranks):
        if not done[ranges[i].first : ranges[i].last].all():
            yield ranges[i]


def require_shared_locks(target: Path, launch: Launch) -> None:
    """Raise `EnmaError` if this launch is on several machines and its file system keeps locks from the others."""
    if launch.num_ranks <= launch.num_local:
        return
    mount = _mount(target)
    if mount is None:
        return
    kind, options = mount
    local = [option for option in _LOCAL.get(kind, ()) if option in options]
    if local or kind in _NEVER:
        how = f"mounted with {local[0]}" if local else "a file system without shared locks"
        raise EnmaError(
            f"{target}: is on {kind}, {how}, so other machines do not see who writes what; mount it with locks, choose "
            "another --out, or give each process a fixed share: --static"
        )


def _mount(path: Path) -> tuple[str, set[str]] | None:
    """Kind and options of the file system that holds a path, or will."""
    real = os.path.realpath(path)
    best, mount = -1, None
    try:
        lines = os.fsdecode(_MOUNTS.read_bytes()).split("\n")
    except OSError:
        return None
    for line in lines:
        before, _, after = line.partition(" - ")
        fields, kind = before.split(" "), after.split(" ")
        if len(fields) < 6 or len(kind) < 2:
            continue
        point = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), fields[4])
        inside = real == point or real.startswith(point.rstrip("/") + "/")
        # The later of two mounts at one point hides the earlier.
        if inside and len(point) >= best:
            best, mount = len(point), (kind[0], {*fields[5].split(","), *(kind[2] if len(kind) > 2 else "").split(",")})
    return mount
