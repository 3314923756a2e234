"""Verifying a forecast store: the size, CRC-32C and place of each of its files.

`check_store` changes nothing. `mark_damaged` marks damaged members and statistics in the ledger of the store, and lists
its other damaged files; the command that wrote the store then writes these again, and nothing else.
"""

from __future__ import annotations

import json
import math
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import EnmaError, first_line
from ..utils.files import write_file
from ..utils.names import name_problem
from .checksums import CHECKSUMS, read_checksums
from .chunks import chunk_name, synced
from .inventory import StoredFile, files_of
from .layout import DAMAGED, LEDGER, Layout
from .ledger import DAMAGED as DAMAGED_UNIT
from .ledger import Ledger, RunLock, write_ledger
from .location import real_path
from .metadata import (
    DIGEST,
    METADATA,
    STATISTICS,
    digest_of,
    is_protected,
    read_json,
    read_metadata,
    read_unchecked_metadata,
    require_format,
)
from .read import damaged_files, read_layout


@dataclass(frozen=True)
class Damage:
    """A damaged file: its path in the store, the problem, its contents, and its units of the ledger.

    A file without units is written once, when the store is created. If it is `marked`, the command that wrote the store
    writes it again.
    """

    file: str
    problem: str
    holds: str
    units: range
    marked: bool = False


def check_store(path: str | Path, *, progress: Callable[[int, int], None] | None = None) -> list[Damage]:
    """Find the damaged files of a forecast store; in an unfinished one, only files that are done are checked.

    Parameters
    ----------
    path : folder of the store
    progress : called with (files checked, files)

    Raises
    ------
    EnmaError
        If there is no forecast store at `path`, or its metadata cannot be read.
    """
    path = Path(path)
    root = read_unchecked_metadata(path)
    require_format(path, root["attributes"])
    try:
        noted, damages = damaged_files(path), []
    except EnmaError:
        noted, damages = [], [Damage(DAMAGED, "cannot be read", "names of damaged files", range(0))]
    damages += [replace(damage, marked=damage.file in noted) for damage in _damaged_metadata(path, root)]
    try:
        root = read_metadata(path)
        layout = read_layout(path, root)
    except EnmaError:
        # No run has written such metadata, and none can repair them; what other files hold is not known.
        if damages:
            return damages
        raise
    done = np.ones(layout.num_units, bool)
    marked = np.zeros(layout.num_units, bool)
    # A run may end in the meantime and remove its ledger.
    with suppress(FileNotFoundError):
        ledger = Ledger(path / LEDGER, layout.num_units)
        done, marked = ledger.done(), ledger.damaged()
        ledger.close()
    # After the ledger: a run that is under way records a checksum before it marks the unit.
    recorded, lost = _recorded(path, root, layout)
    outside = [*_damaged_outside_ledger(path, root, recorded)]
    outside += [Damage(CHECKSUMS, problem, "checksums of all files", range(0)) for problem in lost]
    damages += [replace(damage, marked=damage.file in noted) for damage in outside]
    if not set(noted) <= {damage.file for damage in damages}:
        damages.append(Damage(DAMAGED, "names files that are whole", "names of damaged files", range(0)))
    count = layout.num_files()
    for i, part in enumerate(files_of(path, layout)):
        is_marked = bool(marked[part.units.start : part.units.stop].any())
        if done[part.units.start] or is_marked:
            wrong = part.problem(int(recorded[i]) if recorded is not None else 0)
            if recorded is not None and wrong is None and not recorded[i]:
                wrong = "its checksum was not recorded"
            if wrong is not None or is_marked:
                file = str(part.file.relative_to(path))
                damages.append(Damage(file, wrong or "marked, and whole", part.holds, part.units, is_marked))
        if progress is not None:
            progress(i + 1, count)
    return damages


def mark_damaged(path: str | Path, damages: list[Damage]) -> None:
    """Mark damaged files, so that the command that wrote the store repairs them.

    Files are checked once more, since the store may have been repaired or written again after they were found.
    `EnmaError` if a run is writing the store, if it cannot be written, or if its metadata are such as no run writes.
    """
    path = real_path(path)
    names = {damage.file for damage in damages if damage.units}
    with RunLock(path, f"verify {uuid.uuid4().hex}"):
        try:
            with synced(path):
                root = read_metadata(path)
                layout = read_layout(path, root)
                recorded, lost = _recorded(path, root, layout)
                outside = [*_damaged_metadata(path, root), *_damaged_outside_ledger(path, root, recorded)]
                fixed = sorted(damage.file for damage in outside) + [CHECKSUMS for _ in lost]
                if fixed:
                    write_file(path / DAMAGED, json.dumps(fixed).encode())
                else:
                    (path / DAMAGED).unlink(missing_ok=True)
                if names:
                    _mark_units(path, layout, names, recorded)
        except OSError as error:
            raise EnmaError(f"{path}: cannot be written ({error}); copy it to where it can") from error


def _mark_units(path: Path, layout: Layout, names: set[str], recorded: np.ndarray | None) -> None:
    units: set[int] = set()
    for i, part in enumerate(files_of(path, layout)):
        if str(part.file.relative_to(path)) in names:
            own = 0 if recorded is None else int(recorded[i])
            if part.problem(own) is not None or (recorded is not None and not own):
                units |= set(part.units)
    if not units:
        return
    try:
        ledger = Ledger(path / LEDGER, layout.num_units)
    except FileNotFoundError:
        states = np.ones(layout.num_units, np.uint8)
        states[sorted(units)] = DAMAGED_UNIT
        write_ledger(path / LEDGER, states)
        return
    ledger.mark(sorted(units), done=False)
    ledger.close()


def _recorded(path: Path, root: dict[str, Any], layout: Layout) -> tuple[np.ndarray | None, list[str]]:
    """The recorded checksums of all files, None if there are none; and the problems in reading them."""
    try:
        return read_checksums(path, layout.num_files() + _num_files_outside_ledger(root)), []
    except FileNotFoundError:
        return None, ["missing"] if is_protected(root["attributes"]) else []
    except (OSError, ValueError) as error:
        return None, [first_line(error)]


def _damaged_metadata(path: Path, root: dict[str, Any]) -> Iterator[Damage]:
    """Yield damage in the attributes of the store and in the metadata of its arrays."""
    attributes = root["attributes"]
    if is_protected(attributes) and attributes.get(DIGEST) != digest_of(attributes):
        yield Damage(METADATA, "flipped: its attributes have another digest", "attributes of the store", range(0))
    try:
        arrays = sorted(root["consolidated_metadata"]["metadata"].items())
    except (KeyError, TypeError, AttributeError):
        # Opening the store reports the problem.
        return
    for name, array in arrays:
        if name_problem(name) is not None:
            continue
        # The store holds the metadata of an array twice.
        try:
            wrong = None if read_json(path / name / METADATA) == array else "differs from the metadata of the store"
        except (OSError, ValueError) as error:
            wrong = "missing" if isinstance(error, FileNotFoundError) else "cannot be read"
        if wrong is not None:
            yield Damage(f"{name}/{METADATA}", wrong, f"metadata of {name}", range(0))


def _damaged_outside_ledger(path: Path, root: dict[str, Any], recorded: np.ndarray | None) -> Iterator[Damage]:
    """Yield the damaged files of coordinates, columns, observations and truth; `root` has been checked."""
    arrays = root["consolidated_metadata"]["metadata"]
    place = -_num_files_outside_ledger(root)
    for name in _names_outside_ledger(root):
        chunk = arrays[name]["chunk_grid"]["configuration"]["chunk_shape"]
        num_bytes = np.dtype(arrays[name]["data_type"]).itemsize * int(np.prod(chunk))
        for index in np.ndindex(*_chunks_along(arrays[name])):
            stored = StoredFile(path / name / chunk_name(*index), name, range(0), num_bytes)
            wrong = stored.problem(0 if recorded is None else int(recorded[place]))
            if wrong is not None:
                yield Damage(f"{name}/{stored.file.name}", wrong, name, range(0))
            place += 1


def _names_outside_ledger(root: dict[str, Any]) -> list[str]:
    """Names of the arrays that are written once, in the order of their checksums."""
    channels = root["attributes"]["channels"]
    own = {*channels, *(f"{name}_{kind}" for name in channels for kind in STATISTICS)}
    return sorted(root["consolidated_metadata"]["metadata"].keys() - own)


def _num_files_outside_ledger(root: dict[str, Any]) -> int:
    arrays = root["consolidated_metadata"]["metadata"]
    return sum(math.prod(_chunks_along(arrays[name])) for name in _names_outside_ledger(root))


def _chunks_along(array: dict[str, Any]) -> tuple[int, ...]:
    chunk = array["chunk_grid"]["configuration"]["chunk_shape"]
    return tuple(-(-n // m) for n, m in zip(array["shape"], chunk, strict=True))
