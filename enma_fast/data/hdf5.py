"""Open and create HDF5 files; every failure is an `EnmaError` of one line."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from ..errors import EnmaError, first_line
from ..utils.extras import load_extra
from ..utils.files import complete_file
from ..utils.text import shown
from ..utils.untrusted import Limits, isolated, open_regular

# Entries of an attribute.
_MOST_NAMES = 256
# Other files that `enma-fast data import` reads.
_IMPORTED = (".npy", ".npz", ".nc", ".nc4", ".cdf")


def import_first(path: Path) -> str:
    """What to do with a file of fields in another layout."""
    return f"import it first: enma-fast data import {path} --out {path.stem}.h5"


def read_file(path: Path, work: Callable[[Any, Limits], Any]) -> Any:
    """Call `work(file, limits)` on an `h5py.File` open for reading, with the limits of `utils.untrusted.isolated`.

    HDF5 itself crashes or hangs on some damaged files, so it reads in a child process. `EnmaError` from `work`, if the
    file cannot be read as HDF5, or if anything in it lies in another file.
    """
    # Import once here, not in each child.
    load_extra("h5py", "data")
    with open_regular(path):
        pass
    return isolated(path, lambda more: read_here(path, lambda file: work(file, more)))


def read_here(path: Path, work: Callable[[Any], Any]) -> Any:
    """As `read_file`, in this process, which has to be a child of `isolated`."""
    h5py = load_extra("h5py", "data")
    try:
        if not h5py.is_hdf5(path):
            remedy = (
                import_first(path)
                if path.suffix.lower() in _IMPORTED
                else "give a field file in The Well's HDF5 layout"
            )
            raise EnmaError(f"{path}: is not an HDF5 file; {remedy}")
        with h5py.File(path, "r") as file:
            _require_self_contained(h5py, file)
            return work(file)
    except EnmaError:
        raise
    except MemoryError as error:
        # A damaged size requests terabytes.
        raise EnmaError(
            f"{path}: asks for more memory than there is ({error}); select fewer trajectories, or if it should fit, "
            "the file is damaged, copy it again"
        ) from error
    except (OSError, RuntimeError, LookupError, ValueError, TypeError, ArithmeticError) as error:
        # Damaged files raise nearly any error of h5py or NumPy.
        said = (str(error.args[0]) if error.args else type(error).__name__).splitlines() or [type(error).__name__]
        raise EnmaError(
            f"{path}: cannot be read as HDF5 ({said[0]}); the file is truncated or damaged, copy it again"
        ) from error


def _require_self_contained(h5py: Any, file: Any) -> None:
    """Raise `EnmaError` for a link or a dataset anywhere in the file whose values lie in another file."""
    # Nothing may be raised while the library visits them.
    links: list[tuple[bytes, int]] = []
    file.id.links.visit(lambda name, link: links.append((name, link.type)), info=True)
    for name, kind in links:
        what = None
        if kind not in (h5py.h5l.TYPE_HARD, h5py.h5l.TYPE_SOFT):
            what = "a link out of the file"
        elif kind == h5py.h5l.TYPE_HARD and isinstance(dataset := file[name], h5py.Dataset):
            if dataset.is_virtual:
                what = "a virtual dataset, whose values lie in other files"
            elif dataset.external:
                what = "a dataset with external storage, whose values lie in other files"
        if what is not None:
            where = shown(name.decode(errors="replace"))
            raise EnmaError(f"{file.filename}: {where} is {what}; write the values into this one")


@contextmanager
def create_file(path: Path) -> Iterator[Any]:
    """Yield a new `h5py.File`; when the block succeeds, it is synced to disk and moved to `path`.

    An `OSError` or `RuntimeError` of the block, which h5py raises on a full disk, becomes an `EnmaError` of the file.
    So a block that does more than write has to raise an `EnmaError` of its own for what else fails.
    """
    h5py = load_extra("h5py", "data")
    remedy = "choose another folder or free space"
    complete = complete_file(path, remedy=remedy, errors=(OSError, RuntimeError))
    with complete as temporary, h5py.File(temporary, "w") as file:
        yield file


def get(parent: Any, key: str, kind: str) -> Any:
    """The group or dataset `key` (`kind` says which) of a group, or an `EnmaError` that names it."""
    h5py = load_extra("h5py", "data")
    wanted = h5py.Group if kind == "group" else h5py.Dataset
    where = f"{parent.name.strip('/')}/{key}".lstrip("/")
    link = None if "/" in key else parent.get(key, getlink=True)
    if link is None:
        raise EnmaError(f"{parent.file.filename}: lacks the {kind} '{where}'; write it as The Well's layout does")
    try:
        value = parent[key]
    except (LookupError, OSError, RuntimeError):
        if not isinstance(link, h5py.SoftLink):
            raise
        raise EnmaError(
            f"{parent.file.filename}: '{where}' is a link to nothing; write the values in its place"
        ) from None
    if not isinstance(value, wanted):
        raise EnmaError(f"{parent.file.filename}: '{where}' is not a {kind}; write it as The Well's layout does")
    return value


def attribute(parent: Any, key: str, **default: Any) -> Any:
    """The attribute `key` of a group or dataset; without it the default, or else an `EnmaError` that names it."""
    where = f"{parent.name.strip('/')}@{key}"
    if key not in parent.attrs:
        if default:
            return default["default"]
        raise EnmaError(f"{parent.file.filename}: lacks the attribute '{where}'; write it as The Well's layout does")
    try:
        return parent.attrs[key]
    except Exception as error:
        # NumPy has no equivalent of some types.
        raise EnmaError(
            f"{parent.file.filename}: the attribute '{where}' cannot be read ({first_line(error)}); "
            "write it as The Well's layout does"
        ) from error


def text(parent: Any, key: str) -> str:
    """The attribute `key` as str; h5py gives bytes for strings of fixed length."""
    texts = names(parent, key)
    if len(texts) != 1:
        _refuse(parent, key, "one text")
    return texts[0]


def names(parent: Any, key: str) -> list[str]:
    """The attribute `key` as a list of str; h5py gives str or bytes, and floats for an empty list."""
    value = attribute(parent, key)
    if not isinstance(value, str | bytes | np.ndarray):
        _refuse(parent, key, "text")
    values = np.atleast_1d(value).ravel().tolist() if isinstance(value, np.ndarray) else [value]
    if len(values) > _MOST_NAMES or not all(isinstance(name, str | bytes) for name in values):
        _refuse(parent, key, f"text, at most {_MOST_NAMES} names")
    try:
        return [name.decode() if isinstance(name, bytes) else name for name in values]
    except UnicodeDecodeError:
        _refuse(parent, key, "text in UTF-8")


def number(parent: Any, key: str, *, most: int) -> int:
    """The attribute `key` as a whole number from 0 to `most`."""
    value = attribute(parent, key)
    if not isinstance(value, np.ndarray | np.generic) or value.size != 1 or value.dtype.kind not in "iuf":
        _refuse(parent, key, "one whole number")
    scalar = value.item() if isinstance(value, np.generic) else value.ravel().tolist()[0]
    if not 0 <= scalar <= most or scalar != int(scalar):
        _refuse(parent, key, f"a whole number, at most {most}, and not {scalar}")
    return int(scalar)


def flags(parent: Any, key: str, *, default: list[bool]) -> tuple[bool, ...]:
    """The attribute `key` as booleans."""
    value = np.asarray(attribute(parent, key, default=default))
    if value.dtype.kind not in "biu" or value.size > _MOST_NAMES:
        _refuse(parent, key, "true or false")
    return tuple(bool(flag) for flag in value.ravel().tolist())


def flag(parent: Any, key: str, *, default: bool) -> bool:
    """The attribute `key` as a boolean."""
    entries = flags(parent, key, default=[default])
    if len(entries) != 1:
        _refuse(parent, key, "true or false")
    return entries[0]


def _refuse(parent: Any, key: str, wanted: str) -> NoReturn:
    where = f"{parent.name.strip('/')}@{key}"
    raise EnmaError(f"{parent.file.filename}: the attribute '{where}' has to be {wanted}; write it as The Well does")
