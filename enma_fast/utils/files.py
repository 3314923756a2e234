"""Safe file operations: create, replace, open and remove files and folders without following foreign links.

Somebody who may write beside a store, or who wrote the store, may have put a link, a pipe or a device where a run
creates a file. So a file is always new (`O_EXCL`), in a folder that is held open by a descriptor; no link is followed
(`O_NOFOLLOW`); and only regular files with a single name are opened. Only the path that a user gives may contain links.
"""

from __future__ import annotations

import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from errno import EINVAL, EISDIR, EMLINK
from pathlib import Path

from ..errors import EnmaError

_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
# `O_NONBLOCK`: opening a pipe would wait for its other end.
_CAREFUL = os.O_CLOEXEC | os.O_NONBLOCK


@contextmanager
def open_folder(path: str | Path, *, follow: bool = False) -> Iterator[int]:
    """Yield a descriptor of a folder; `OSError` for a link to one, unless `follow`."""
    file = os.open(path, _FOLDER if follow else _FOLDER | os.O_NOFOLLOW)
    try:
        yield file
    finally:
        os.close(file)


def open_file(path: str | Path, flags: int) -> int:
    """Open a regular file that has no second name and return its descriptor; `OSError` for anything else."""
    file = os.open(path, flags | os.O_NOFOLLOW | _CAREFUL, 0o644)
    try:
        state = os.fstat(file)
        if not stat.S_ISREG(state.st_mode):
            raise OSError(EINVAL, "is not a regular file; remove it", str(path))
        if state.st_nlink > 1 and flags & (os.O_WRONLY | os.O_RDWR):
            # Writing would change the file under its other name too.
            raise OSError(EMLINK, "is a file with two names; remove it, or copy it", str(path))
    except BaseException:
        os.close(file)
        raise
    return file


def read_file(path: str | Path, *, most: int | None = None) -> bytes:
    """Read a regular file; `OSError` for anything else, such as a pipe, and for more than `most` bytes."""
    file = os.open(path, os.O_RDONLY | _CAREFUL)
    try:
        state = os.fstat(file)
        if stat.S_ISDIR(state.st_mode):
            raise OSError(EISDIR, os.strerror(EISDIR), str(path))
        if not stat.S_ISREG(state.st_mode):
            raise OSError(EINVAL, "is not a regular file", str(path))
        if most is not None and state.st_size > most:
            raise OSError(EINVAL, f"has {state.st_size} bytes; at most {most} are read", str(path))
        with os.fdopen(file, "rb", closefd=False) as stream:
            return stream.read()
    finally:
        os.close(file)


def write_file(path: str | Path, data: bytes) -> None:
    """Write a file that appears complete and replaces an old one; a link to its folder is not followed.

    A process that is killed leaves a temporary file, which `remove_temporaries` removes.
    """
    parent, name = os.path.split(path)
    with open_folder(parent or ".") as folder:
        try:
            _replace(name, data, folder)
        except FileNotFoundError:
            # Where there are no locks, the process that finishes a store may have taken it for one that was left.
            _replace(name, data, folder)


def _replace(name: str, data: bytes, folder: int, *, durable: bool = False) -> None:
    """Write a file in an open folder under a name of its own, then move it to its place."""
    temporary = f".{name}.{secrets.token_hex(4)}.tmp"
    file = os.open(temporary, _NEW, 0o644, dir_fd=folder)
    try:
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(file, view) :]
            if durable:
                # Others may read it, whatever this process hides of its files.
                os.fchmod(file, 0o644)
                os.fsync(file)
        finally:
            os.close(file)
        os.rename(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
    except BaseException:
        # On a full disk an incomplete file would take room from complete ones.
        with suppress(OSError):
            os.unlink(temporary, dir_fd=folder)
        raise


def remove_temporaries(path: Path) -> None:
    """Remove what killed processes have left of `write_file` in a folder; `OSError` if it cannot be listed."""
    with open_folder(path) as folder, os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(".") and entry.name.endswith(".tmp"):
                with suppress(OSError):
                    os.unlink(entry.name, dir_fd=folder)


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file durably: a reader sees the old bytes or all of the new ones (write, fsync, rename, fsync)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open_folder(path.parent, follow=True) as folder:
        try:
            _replace(path.name, data, folder, durable=True)
        except OSError as error:
            if error.errno is not None:
                # The error of a full disk names no file, others the temporary one.
                error.filename = str(path)
            raise
        os.fsync(folder)


@contextmanager
def complete_file(path: Path, *, remedy: str, errors: tuple[type[Exception], ...] = (OSError,)) -> Iterator[Path]:
    """Yield a temporary file, which is moved to `path` when the block succeeds and it is on the disk.

    One of `errors` becomes an `EnmaError` that ends in `remedy`; then no file and no new folder is left.
    """
    # Process numbers repeat among the containers that share a volume.
    temporary = path.with_name(f".{path.stem}.{secrets.token_hex(4)}.tmp{path.suffix}")
    parents: list[Path] = []
    is_own = False
    try:
        parents = make_parents(path)
        os.close(os.open(temporary, _NEW, 0o644))
        is_own = True
        yield temporary
        _sync(temporary)
        os.replace(temporary, path)
        _sync(path.parent)
    except errors as error:
        # HDF5 adds its own names, flags and offsets to the message of the system.
        reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else error
        raise EnmaError(f"{path}: cannot be written ({reason}); {remedy}") from error
    finally:
        if is_own:
            remove(temporary)
        remove_empty(parents)


def _sync(path: Path) -> None:
    """Wait until a file or a folder is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def make_folder(path: str | Path, *, follow: bool = False) -> None:
    """Create a folder; a link to its parent is not followed, unless `follow`."""
    parent, name = os.path.split(path)
    with open_folder(parent or ".", follow=follow) as folder:
        os.mkdir(name, dir_fd=folder)


def move(source: Path, target: Path) -> None:
    """Rename a file or folder; it replaces a file or a link at `target`, and the link is not followed."""
    os.replace(source, target)


def move_into(source: Path, target: Path) -> None:
    """Rename a file into a folder; a link to the folder is not followed."""
    with open_folder(target.parent) as folder:
        os.replace(source, target.name, dst_dir_fd=folder)


def remove(path: Path) -> None:
    """Remove a file, a link (not its target), or a folder with its contents; errors are ignored."""
    try:
        is_folder = stat.S_ISDIR(os.lstat(path).st_mode)
    except OSError:
        return
    if is_folder:
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def make_parents(path: Path) -> list[Path]:
    """Create the folders above a path; returns the new ones, innermost first."""
    new = []
    for parent in path.absolute().parents:
        if parent.exists():
            break
        new.append(parent)
    path.parent.mkdir(parents=True, exist_ok=True)
    return new


def remove_empty(folders: list[Path]) -> None:
    """Remove the folders that are empty; errors are ignored."""
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()
