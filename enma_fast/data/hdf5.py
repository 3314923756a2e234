"""Opening and creating HDF5 files so that whatever is wrong with one is a single clear line."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import EnmaError
from ..extras import load_extra


@contextmanager
def open_file(path: Path) -> Iterator[Any]:
    """Yield the `h5py.File`, open for reading; failures of HDF5 in the block become `EnmaError`."""
    h5py = load_extra("h5py", "data")
    if not path.is_file():
        raise EnmaError(f"{path}: {'is not a file' if path.exists() else 'no such file'}; check the path")
    if not h5py.is_hdf5(path):
        raise EnmaError(f"{path}: is not an HDF5 file; give a field file in The Well's HDF5 layout")
    try:
        with h5py.File(path, "r") as file:
            yield file
    except EnmaError:
        raise
    except MemoryError as error:
        # A damaged size asks for terabytes.
        raise EnmaError(
            f"{path}: asks for more memory than there is ({error}); select fewer trajectories, or if it should fit, "
            "the file is damaged, copy or generate it again"
        ) from error
    except (OSError, RuntimeError, KeyError, ValueError) as error:
        reason = (str(error.args[0]) if error.args else type(error).__name__).splitlines()[0]
        raise EnmaError(
            f"{path}: cannot be read as HDF5 ({reason}); the file is truncated or damaged, copy or generate it again"
        ) from error


@contextmanager
def create_file(path: Path) -> Iterator[Any]:
    """Yield a new `h5py.File`; only when the block succeeds is it synced to disk and moved to `path`."""
    h5py = load_extra("h5py", "data")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with h5py.File(temporary, "w") as file:
                yield file
            with open(temporary, "rb+") as synced:
                os.fsync(synced.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        # HDF5 adds its own names, flags and offsets to what the system said.
        reason = os.strerror(error.errno) if error.errno else error
        raise EnmaError(f"{path}: cannot be written ({reason}); choose another folder or free space") from error


def get(parent: Any, key: str, kind: str) -> Any:
    """The group or dataset `key` (`kind` says which) of a group, or an `EnmaError` that names it."""
    h5py = load_extra("h5py", "data")
    wanted = h5py.Group if kind == "group" else h5py.Dataset
    where = f"{parent.name.strip('/')}/{key}".lstrip("/")
    if key not in parent:
        raise EnmaError(f"{parent.file.filename}: lacks the {kind} '{where}'; write it as The Well's layout does")
    value = parent[key]
    if not isinstance(value, wanted):
        raise EnmaError(f"{parent.file.filename}: '{where}' is not a {kind}; write it as The Well's layout does")
    return value


def attribute(parent: Any, key: str) -> Any:
    """The attribute `key` of a group, or an `EnmaError` that names it."""
    if key not in parent.attrs:
        where = f"{parent.name.strip('/')}@{key}"
        raise EnmaError(f"{parent.file.filename}: lacks the attribute '{where}'; write it as The Well's layout does")
    return parent.attrs[key]


def text(parent: Any, key: str) -> str:
    """The attribute `key` as str; h5py gives bytes for strings of fixed length."""
    value = attribute(parent, key)
    return value.decode() if isinstance(value, bytes) else str(value)


def names(parent: Any, key: str) -> list[str]:
    """The attribute `key` as a list of str; h5py gives str or bytes, and floats for an empty list."""
    return [
        value.decode() if isinstance(value, bytes) else str(value) for value in np.atleast_1d(attribute(parent, key))
    ]
