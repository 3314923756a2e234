"""The path of a store: whether a store may be created or replaced there, and whether the disk has room for it."""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

from ..errors import EnmaError
from ..utils.files import move, read_file, remove, remove_temporaries
from .metadata import FORMAT, METADATA

# Endings of files of other formats, as which a folder of Zarr does not open.
_OTHER_FORMATS = (".nc", ".nc4", ".h5", ".hdf5")


def check_place(path: Path) -> None:
    """Raise `EnmaError` unless a folder can be created at `path`; the attempt leaves no trace."""
    if path.suffix.lower() in _OTHER_FORMATS:
        raise EnmaError(
            f"{path}: a forecast is a Zarr folder; end --out in .zarr (enma-fast export-netcdf makes NetCDF of it)"
        )
    path = real_path(path).absolute()
    folder = next(parent for parent in path.parents if parent.exists())
    if not folder.is_dir():
        raise EnmaError(f"{path}: {folder} is a file; choose another --out")
    try:
        os.rmdir(tempfile.mkdtemp(prefix=f".{path.name}.", dir=folder))
    except OSError as error:
        raise EnmaError(f"{path}: cannot be written ({error}); choose another --out") from error


def require_replaceable(path: Path, *, force: bool) -> None:
    """Raise `EnmaError` unless `path` is free or, with `force`, holds a forecast store."""
    if not path.exists():
        return
    if not is_store(path):
        raise EnmaError(f"{path}: exists and is not a forecast store; choose another --out, or remove it")
    if not force:
        raise EnmaError(f"{path}: exists; choose another --out, or replace it with --force")


def is_store(path: Path) -> bool:
    """True if there is a forecast store at `path`, even a damaged one."""
    metadata = path / METADATA
    return metadata.is_file() and f'"{FORMAT}"'.encode() in read_file(metadata)


def remove_leftovers(path: Path) -> None:
    """Remove what a killed process left beside the store; call it with the lock of the store.

    An old store that has no other place any more is put back.
    """
    path = real_path(path)
    old = path.with_name(f".{path.name}.old")
    if not path.exists() and not old.is_symlink() and is_store(old):
        move(old, path)
    for left in (old, old.with_suffix(".tmp")):
        remove(left)


def remove_unwritten(path: Path) -> None:
    """Remove files that killed processes left half written in a store; call it when no other process writes there."""
    path = real_path(path)
    with suppress(OSError):
        if is_store(path):
            inner = [Path(entry) for entry in os.scandir(path) if entry.is_dir(follow_symlinks=False)]
            for folder in (path, *inner):
                remove_temporaries(folder)


def real_path(path: str | Path) -> Path:
    """Follow a link at `path`, so that its target is replaced and not the link."""
    path = Path(path)
    return Path(os.path.realpath(path)) if path.is_symlink() else path


def check_disk(path: Path, size: int, files: int) -> None:
    """Raise `EnmaError` unless the disk of `path` has room for `size` bytes in `files` files."""
    place = real_path(path).absolute()
    folder = next(p for p in (place, *place.parents) if p.exists())
    free = shutil.disk_usage(folder).free
    if size > free:
        raise EnmaError(
            f"{path}: needs {_gigabytes(size)}, {_gigabytes(free)} are free; use fewer members, "
            "--statistics-only, or another --out"
        )
    inodes = _free_inodes(folder)
    if inodes is not None and files > inodes:
        raise EnmaError(f"{path}: needs {files:,} files, {inodes:,} can be made; put members together: --shard")


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e9:.2g} GB"


def _free_inodes(folder: Path) -> int | None:
    """Number of files that can still be created; None if the file system sets no limit."""
    limits = os.statvfs(folder)
    return limits.f_favail if limits.f_files else None
