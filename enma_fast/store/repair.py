"""Repairing a store: metadata, coordinates, observations, truth and checksums that are damaged are written again.

Members and statistics that are damaged are marked in the ledger, and sampled again.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import numpy as np

from ..utils.files import make_folder, move_into, read_file, remove
from .checksums import CHECKSUMS, read_checksums, write_checksums
from .chunks import synced
from .create import empty_store, write_metadata
from .inventory import files_of
from .layout import DAMAGED, Layout
from .location import real_path
from .metadata import METADATA, read_metadata
from .read import damaged_files


def repair(path: Path, layout: Layout) -> None:
    """Write again what is damaged in a store that has a list of damaged files; `layout` has the hashes of its files.

    All files outside the ledger are compared with what they should hold, not only those listed: a store without the
    list counts as whole, and a file may have been damaged after the list was made.
    """
    path, names = real_path(path), damaged_files(path)
    if not names:
        return
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with empty_store(temporary, layout):
            pass
        root, fresh = read_metadata(path), read_metadata(temporary)
        with synced(path):
            if METADATA in names:
                move_into(temporary / METADATA, path / METADATA)
            elif root["consolidated_metadata"] != fresh["consolidated_metadata"]:
                write_metadata(path, {**fresh, "attributes": root["attributes"]})
            for file in sorted(temporary.glob("*/*")):
                target = path / file.relative_to(temporary)
                with suppress(OSError):
                    if read_file(file) == read_file(target):
                        continue
                if not target.parent.is_dir():
                    make_folder(target.parent)
                move_into(file, target)
            if CHECKSUMS in names or (path / CHECKSUMS).exists():
                _repair_checksums(path, layout, read_checksums(temporary))
        (path / DAMAGED).unlink()
    finally:
        remove(temporary)


def _repair_checksums(path: Path, layout: Layout, fresh: np.ndarray) -> None:
    """Record the checksums of the files outside the ledger, which are `fresh`; those of the others are kept.

    Where these are lost, they are made from the files as they are: a file that was swapped earlier is not noticed.
    """
    count, recorded = layout.num_files(), None
    with suppress(OSError, ValueError):
        recorded = read_checksums(path, len(fresh))
    sampled = [file.checksum() for file in files_of(path, layout)] if recorded is None else recorded[:count]
    values = np.array([*sampled, *fresh[count:]], np.uint32)
    if recorded is None or not np.array_equal(values, recorded):
        write_checksums(path, values)
