"""The checksum of each file of a forecast, recorded in the store as the file is written.

A file's own CRC-32C tells that it is whole, and not that it is the file that was written there: two members whose
files are swapped pass it. So a store has a file with four bytes for each of its files, in the order of `inventory`,
and then for those that are written when it is made. Zero is what was not recorded. Processes write different files, so
different places here.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..utils.files import open_file, read_file, write_file

CHECKSUMS = ".checksums"
_MAGIC = b"enmasums"
_DTYPE = np.dtype("<u4")


def write_checksums(store: Path, values: np.ndarray) -> None:
    """Make the file anew; `values` [n] by place."""
    write_file(store / CHECKSUMS, _MAGIC + values.astype(_DTYPE).tobytes())


def read_checksums(store: Path, count: int | None = None) -> np.ndarray:
    """The checksums as they were recorded, of `count` files if that is known; `ValueError` if there are others."""
    data = read_file(store / CHECKSUMS)
    size = len(data) if count is None else len(_MAGIC) + count * _DTYPE.itemsize
    if len(data) != size or not data.startswith(_MAGIC) or (size - len(_MAGIC)) % _DTYPE.itemsize:
        raise ValueError(f"torn: {len(data)} bytes of {size}")
    return np.frombuffer(data, _DTYPE, offset=len(_MAGIC))


class Recorder:
    """Records checksums in a store; of a store that was made without them, nothing."""

    def __init__(self, store: Path) -> None:
        try:
            self._file = open_file(store / CHECKSUMS, os.O_WRONLY)
        except FileNotFoundError:
            self._file = -1

    def record(self, first: int, values: Sequence[int]) -> None:
        """Record the checksums of the files at places `first, first + 1, ...`."""
        if self._file >= 0:
            data = np.asarray(values, _DTYPE).tobytes()
            os.pwrite(self._file, data, len(_MAGIC) + first * _DTYPE.itemsize)

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
