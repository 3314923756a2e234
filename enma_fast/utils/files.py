"""Safe files: how a run makes, replaces, opens and removes files and folders, its own and nobody else's.

Whoever may write beside a store, or made the store, may have put a link, a pipe or a device where a run makes a file.
So a file is made anew (`O_EXCL`) in a folder that is held open by a descriptor, no link is followed (`O_NOFOLLOW`), and
what is opened is a regular file of one name. Only the path that a user gives may lead through links.
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

_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
# A pipe would wait for its other end.
_CAREFUL = os.O_CLOEXEC | os.O_NONBLOCK
# Times that another process may take the place of a file that is not yet whole.
_ATTEMPTS = 4


@contextmanager
def open_folder(path: str | Path, *, follow: bool = False) -> Iterator[int]:
    """A descriptor of a folder; a link to one is none, unless it is followed."""
    file = os.open(path, _FOLDER if follow else _FOLDER | os.O_NOFOLLOW)
    try:
        yield file
    finally:
        os.close(file)


def open_file(path: str | Path, flags: int, mode: int = 0o644) -> int:
    """A descriptor of a regular file that has no other name; `OSError` for anything else that is there."""
    file = os.open(path, flags | os.O_NOFOLLOW | _CAREFUL, mode)
    try:
        state = os.fstat(file)
        if not stat.S_ISREG(state.st_mode):
            raise OSError(EINVAL, "is no regular file; remove it", str(path))
        if state.st_nlink > 1 and flags & (os.O_WRONLY | os.O_RDWR):
            # Writing would change the file of another name too.
            raise OSError(EMLINK, "is a file of two names; remove it, or copy it", str(path))
    except BaseException:
        os.close(file)
        raise
    return file


def read_file(path: str | Path, *, most: int | None = None) -> bytes:
    """The bytes of a regular file; `OSError` for anything else, such as a pipe, and for more bytes than `most`."""
    file = os.open(path, os.O_RDONLY | _CAREFUL)
    try:
        state = os.fstat(file)
        if stat.S_ISDIR(state.st_mode):
            raise OSError(EISDIR, os.strerror(EISDIR), str(path))
        if not stat.S_ISREG(state.st_mode):
            raise OSError(EINVAL, "is no regular file", str(path))
        if most is not None and state.st_size > most:
            raise OSError(EINVAL, f"has {state.st_size} bytes, {most} are the most", str(path))
        with os.fdopen(file, "rb", closefd=False) as stream:
            return stream.read()
    finally:
        os.close(file)


def write_file(path: str | Path, data: bytes) -> None:
    """Write a file that appears whole, and replaces what is there; its folder is none that a link leads to."""
    parent, name = os.path.split(path)
    temporary = temporary_name(name)
    with open_folder(parent or ".") as folder:
        for attempt in range(_ATTEMPTS):
            _make(temporary, data, folder)
            try:
                os.rename(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
                return
            except FileNotFoundError:
                # Another process has begun the same file meanwhile: they write the same bytes.
                if attempt == _ATTEMPTS - 1:
                    raise
    raise AssertionError("unreachable")


def temporary_name(name: str) -> str:
    """Name of the part that `write_file`, if it was killed, has left of a file of this name."""
    return f".{name}.tmp"


def _make(name: str, data: bytes, folder: int) -> None:
    """A new file in an open folder; what a killed process left of it goes."""
    for attempt in range(_ATTEMPTS):
        try:
            file = os.open(name, _NEW, 0o644, dir_fd=folder)
            break
        except FileExistsError:
            if attempt == _ATTEMPTS - 1:
                raise
            with suppress(FileNotFoundError):
                os.unlink(name, dir_fd=folder)
    else:
        raise AssertionError("unreachable")
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(file, view) :]
    except OSError:
        # On a full disk it takes room from what is whole.
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=folder)
        raise
    finally:
        os.close(file)


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file so that a reader sees the old bytes or all of the new ones: temp file, fsync, rename, fsync."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open_folder(path.parent, follow=True) as folder:
        name = f".{path.name}.{secrets.token_hex(4)}"
        try:
            file = os.open(name, _NEW, 0o644, dir_fd=folder)
            try:
                os.fchmod(file, 0o644)
                with os.fdopen(file, "wb", closefd=False) as stream:
                    stream.write(data)
                    stream.flush()
                    os.fsync(file)
            finally:
                os.close(file)
            os.replace(name, path.name, src_dir_fd=folder, dst_dir_fd=folder)
        except BaseException as error:
            with suppress(FileNotFoundError):
                os.unlink(name, dir_fd=folder)
            if isinstance(error, OSError) and error.errno is not None and error.filename in (None, name):
                # A full disk does not say which file it was.
                error.filename = str(path)
            raise
        os.fsync(folder)


def make_folder(path: str | Path, *, follow: bool = False) -> None:
    """Make a folder that is not there; its parent is none that a link leads to, unless it is followed."""
    parent, name = os.path.split(path)
    with open_folder(parent or ".", follow=follow) as folder:
        os.mkdir(name, dir_fd=folder)


def move(source: Path, target: Path) -> None:
    """Rename a file or folder, in place of what is there; a link that is there is replaced, not followed."""
    os.replace(source, target)


def move_into(source: Path, target: Path) -> None:
    """Rename a file to one in a folder that no link leads to."""
    with open_folder(target.parent) as folder:
        os.replace(source, target.name, dst_dir_fd=folder)


def remove(path: Path) -> None:
    """Remove a file, a link and not where it leads, or a folder with all that is in it, as far as that can be done."""
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
    """Make the folders above a path; returns those that were not there, innermost first."""
    made = []
    for parent in path.absolute().parents:
        if parent.exists():
            break
        made.append(parent)
    path.parent.mkdir(parents=True, exist_ok=True)
    return made


def remove_empty(folders: list[Path]) -> None:
    """Remove folders that hold nothing, as far as that can be done."""
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()
