"""Verifying a forecast store: the size, CRC-32C and place of each of its files.

`check_store` changes nothing. `mark_damaged` marks damaged members and statistics in the ledger of the store, and lists
its other damaged files; the command that wrote the store then writes these again, and nothing else.
"""

from __future__ import annotations

import itertools
import json
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
    array_problem,
    digest_of,
    is_protected,
    read_json,
    read_metadata,
    read_unchecked_metadata,
    require_format,
)
from .read import damaged_files, read_layout

# Most files of one array that are reported.
_MOST = 1000


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
        noted, found = damaged_files(path), []
    except EnmaError:
        noted, found = [], [Damage(DAMAGED, "cannot be read", "names of damaged files", range(0))]
    found += [replace(damage, marked=damage.file in noted) for damage in _damage_outside_ledger(path, root)]
    try:
        read_metadata(path)
        layout = read_layout(path)
    except EnmaError:
        # The store cannot be opened without its coordinates, which are among the files found damaged.
        if found:
            return found
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
    found += [Damage(CHECKSUMS, problem, "checksums of all files", range(0), CHECKSUMS in noted) for problem in lost]
    if not set(noted) <= {damage.file for damage in found}:
        found.append(Damage(DAMAGED, "names files that are whole", "names of damaged files", range(0)))
    count = layout.num_files()
    for i, part in enumerate(files_of(path, layout)):
        is_marked = bool(marked[part.units.start : part.units.stop].any())
        if done[part.units.start] or is_marked:
            wrong = part.problem(int(recorded[i]) if recorded is not None else 0)
            if recorded is not None and wrong is None and not recorded[i]:
                wrong = "its checksum was not recorded"
            if wrong is not None or is_marked:
                file = str(part.file.relative_to(path))
                found.append(Damage(file, wrong or "marked, and whole", part.holds, part.units, is_marked))
        if progress is not None:
            progress(i + 1, count)
    return found


def mark_damaged(path: str | Path, found: list[Damage]) -> None:
    """Mark damaged files, so that the command that wrote the store repairs them.

    Files are checked once more, since the store may have been repaired or written again after they were found.
    `EnmaError` if a run is writing the store, or it cannot be written.
    """
    path = real_path(path)
    names = {damage.file for damage in found if damage.units}
    with RunLock(path, f"verify {uuid.uuid4().hex}"):
        try:
            with synced(path):
                root = read_unchecked_metadata(path)
                fixed = sorted(damage.file for damage in _damage_outside_ledger(path, root))
                layout = None
                with suppress(EnmaError):
                    layout = read_layout(path)
                recorded, lost = (None, []) if layout is None else _recorded(path, root, layout)
                fixed += [CHECKSUMS for _ in lost]
                if fixed:
                    write_file(path / DAMAGED, json.dumps(fixed).encode())
                else:
                    (path / DAMAGED).unlink(missing_ok=True)
                if layout is not None and names:
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


def _damage_outside_ledger(path: Path, root: dict[str, Any]) -> Iterator[Damage]:
    """Yield damage in the attributes, the metadata of arrays, coordinates, columns, observations and truth."""
    attributes = root["attributes"]
    if is_protected(attributes) and attributes.get(DIGEST) != digest_of(attributes):
        yield Damage(METADATA, "flipped: its attributes have another digest", "attributes of the store", range(0))
    try:
        arrays = dict(root["consolidated_metadata"]["metadata"])
    except (ValueError, KeyError, TypeError):
        # Opening the store reports the problem.
        return
    places, recorded = _places_outside_ledger(root), None
    # A problem in the checksums is reported together with the members.
    with suppress(OSError, ValueError):
        recorded = read_checksums(path)
        recorded = recorded if len(recorded) >= _num_files_outside_ledger(root) else None
    for name, array in sorted(arrays.items()):
        if name_problem(name) is not None:
            continue
        # The store holds the metadata of an array twice.
        file = path / name / METADATA
        try:
            wrong = None if read_json(file) == array else "differs from the metadata of the store"
        except (OSError, ValueError) as error:
            wrong = "missing" if isinstance(error, FileNotFoundError) else "cannot be read"
        if wrong is not None:
            yield Damage(f"{name}/{file.name}", wrong, f"metadata of {name}", range(0))
            continue
        if name in places:
            files = _damaged_chunks(path, name, array, places[name], recorded)
            yield from itertools.islice(files, _MOST)


def _damaged_chunks(
    path: Path, name: str, array: dict[str, Any], first: int, recorded: np.ndarray | None
) -> Iterator[Damage]:
    """Yield the damaged chunk files of an array; `first` is the place of its first file among the checksums."""
    chunk = array["chunk_grid"]["configuration"]["chunk_shape"]
    num_bytes = np.dtype(array["data_type"]).itemsize * int(np.prod(chunk))
    for place, index in enumerate(np.ndindex(*_chunks_along(array)), start=first):
        stored = StoredFile(path / name / chunk_name(*index), name, range(0), num_bytes)
        wrong = stored.problem(0 if recorded is None else int(recorded[place]))
        if wrong is not None:
            yield Damage(f"{name}/{stored.file.name}", wrong, name, range(0))


def _places_outside_ledger(root: dict[str, Any]) -> dict[str, int]:
    """Place among the checksums, counted from the end, of the first file of each array that is written once."""
    try:
        arrays, channels = dict(root["consolidated_metadata"]["metadata"]), list(root["attributes"]["channels"])
    except (ValueError, KeyError, TypeError):
        return {}
    own = {*map(str, channels), *(f"{name}_{kind}" for name in channels for kind in STATISTICS)}
    counts = {
        name: int(np.prod(_chunks_along(array)))
        for name, array in sorted(arrays.items())
        if name not in own and name_problem(name) is None and array_problem(array) is None
    }
    place, found = -sum(counts.values()), {}
    for name, count in counts.items():
        found[name] = place
        place += count
    return found


def _num_files_outside_ledger(root: dict[str, Any]) -> int:
    return -min(_places_outside_ledger(root).values(), default=0)


def _chunks_along(array: dict[str, Any]) -> tuple[int, ...]:
    chunk = array["chunk_grid"]["configuration"]["chunk_shape"]
    return tuple(-(-n // m) for n, m in zip(array["shape"], chunk, strict=True))
