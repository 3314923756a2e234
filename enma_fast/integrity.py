"""Whether a forecast store holds what was written: each file's size and CRC-32C, one after the other.

What is damaged is noted as missing in the store's ledger, or in a list of its own where it was written when the store
was made, so that the command that made the store makes that anew and nothing else.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .chunks import chunk_name, problem, settled, write_file
from .errors import EnmaError
from .identity import layout_at
from .ledger import Ledger, RunLock, write_ledger
from .output import DAMAGED, LEDGER, STATISTICS, Layout, member_file, statistic_file


@dataclass(frozen=True)
class Damage:
    """A damaged file: its path in the store, what is wrong, what it holds, and the units of the ledger it stands for.

    Without units it belongs to what is written once, when a store is made.
    """

    file: str
    problem: str
    holds: str
    units: range


def check_store(path: str | Path, *, progress: Callable[[int, int], None] | None = None) -> list[Damage]:
    """Damaged files of a forecast store; of an unfinished one, among those that are noted as done.

    Parameters
    ----------
    path : folder of the store
    progress : called with (files checked, files)

    Raises
    ------
    EnmaError
        If there is no forecast store, or its metadata cannot be read.
    """
    path = Path(path)
    found = list(_fixed(path))
    try:
        layout = layout_at(path)
    except EnmaError:
        # A store does not open without its coordinates; they are named.
        if found:
            return found
        raise
    done = np.ones(layout.num_units, bool)
    # A run may end, and its ledger go, meanwhile.
    with suppress(FileNotFoundError):
        ledger = Ledger(path / LEDGER, layout.num_units)
        done = ledger.done()
        ledger.close()
    count = layout.num_files()
    for i, part in enumerate(_files(path, layout)):
        if done[part.units.start]:
            wrong = part.problem()
            if wrong is not None:
                found.append(Damage(str(part.file.relative_to(path)), wrong, part.holds, part.units))
        if progress is not None:
            progress(i + 1, count)
    return found


def mark_missing(path: str | Path, found: list[Damage]) -> None:
    """Note what is damaged, so that the command that made the store mends it.

    Files are looked at once more: the store may have been mended, or begun anew, since they were found.

    Raises
    ------
    EnmaError
        If a run is writing the store, or it cannot be written.
    """
    path = Path(path)
    names = {damage.file for damage in found if damage.units}
    with RunLock(path, f"verify {uuid.uuid4().hex}"):
        try:
            with settled(path):
                fixed = sorted(damage.file for damage in _fixed(path))
                if fixed:
                    write_file(path / DAMAGED, json.dumps(fixed).encode())
                else:
                    (path / DAMAGED).unlink(missing_ok=True)
                if names:
                    layout = layout_at(path)
                    parts = [part for part in _files(path, layout) if str(part.file.relative_to(path)) in names]
                    units = sorted({unit for part in parts if part.problem() is not None for unit in part.units})
                    _unmark(path / LEDGER, units, layout.num_units)
        except OSError as error:
            raise EnmaError(f"{path}: cannot be written ({error}); copy it to where it can") from error


def _unmark(path: Path, units: list[int], num_units: int) -> None:
    if not units:
        return
    try:
        ledger = Ledger(path, num_units)
    except FileNotFoundError:
        done = np.ones(num_units, bool)
        done[units] = False
        write_ledger(path, done)
        return
    ledger.mark(units, done=False)
    ledger.close()


@dataclass(frozen=True)
class _File:
    """A file of members or of a statistic, with its units of the ledger."""

    file: Path
    holds: str
    units: range
    num_bytes: int
    # Chunks in it, and place for chunks (None: no shard).
    chunks: int = 1
    size: int | None = None

    def problem(self) -> str | None:
        return problem(self.file, self.num_bytes, chunks=self.chunks, size=self.size)


def _files(path: Path, layout: Layout) -> Iterator[_File]:
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
                yield _File(member_file(path, name, layout, b, k), holds, units, num_bytes, end - k, size)
        before = B * K if layout.keep_members else 0
        for kind, own in layout.kept_statistics().items():
            for b in range(B):
                holds = f"{kind} of {layout.channels[c]} of trajectory {numbers[b]}"
                file = statistic_file(path, name, kind, layout, b)
                yield _File(file, holds, range(before + b, before + b + 1), (own or 1) * num_bytes)


def _fixed(path: Path) -> Iterator[Damage]:
    """Damage of the metadata of arrays, and of coordinates, columns, observations and truth."""
    try:
        root = json.loads((path / "zarr.json").read_bytes())
        arrays, channels = root["consolidated_metadata"]["metadata"], root["attributes"]["channels"]
    except (OSError, ValueError, KeyError, TypeError):
        # Opening the store says what is wrong.
        return
    own = {*channels, *(f"{name}_{kind}" for name in channels for kind in STATISTICS)}
    for name, array in sorted(arrays.items()):
        # An array's metadata are in the store twice.
        file = path / name / "zarr.json"
        try:
            wrong = None if json.loads(file.read_bytes()) == array else "differs from the metadata of the store"
        except (OSError, ValueError) as error:
            wrong = "missing" if isinstance(error, FileNotFoundError) else "cannot be read"
        if wrong is not None:
            yield Damage(f"{name}/{file.name}", wrong, f"metadata of {name}", range(0))
            continue
        if name in own or [codec["name"] for codec in array["codecs"]] != ["bytes", "crc32c"]:
            continue
        chunk = array["chunk_grid"]["configuration"]["chunk_shape"]
        num_bytes = np.dtype(array["data_type"]).itemsize * int(np.prod(chunk))
        for index in np.ndindex(*(-(-n // m) for n, m in zip(array["shape"], chunk, strict=True))):
            file = path / name / chunk_name(*index)
            wrong = problem(file, num_bytes)
            if wrong is not None:
                yield Damage(f"{name}/{file.name}", wrong, name, range(0))
