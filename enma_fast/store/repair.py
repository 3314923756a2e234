"""Repairing a store: the metadata, coordinates, observations and truth that are marked as damaged are written again.

Members and statistics that are damaged are marked in the ledger, and sampled again.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..utils.files import make_folder, move_into, remove
from .checksums import CHECKSUMS, read_checksums, write_checksums
from .chunks import synced
from .create import empty_store, write_metadata
from .inventory import files_of
from .layout import DAMAGED, Layout
from .location import real_path
from .metadata import read_metadata
from .read import damaged_files


def repair(path: Path, layout: Layout) -> None:
    """Write again the files that are listed as damaged, and no others; `layout` has the hashes of its files."""
    path, names = real_path(path), damaged_files(path)
    if not names:
        return
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with empty_store(temporary, layout):
            pass
        root, fresh = read_metadata(path), read_metadata(temporary)
        with synced(path):
            if root["consolidated_metadata"] != fresh["consolidated_metadata"]:
                write_metadata(path, {**fresh, "attributes": root["attributes"]})
            for file in sorted(temporary.rglob("*")):
                name = file.relative_to(temporary)
                if str(name) in names and name != Path(CHECKSUMS) and file.is_file():
                    if len(name.parts) > 1 and not (path / name.parent).is_dir():
                        make_folder(path / name.parent)
                    move_into(file, path / name)
            if CHECKSUMS in names:
                # Checksums of the files as they are: a file that was swapped earlier is not noticed.
                values = [file.checksum() for file in files_of(path, layout)]
                write_checksums(path, np.array([*values, *read_checksums(temporary)[len(values) :]], np.uint32))
        (path / DAMAGED).unlink()
    finally:
        remove(temporary)
