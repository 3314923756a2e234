"""Checksums of all files of a forecast store, recorded in the store as each file is written.

A file's own CRC-32C shows that the file is whole. It does not show that the file is in its own place: two members whose
files were swapped pass. So the store has one more file, with four bytes for each of its files: first the members and
statistics in the order of `inventory`, then the files that are written when the store is created. Zero means that no
checksum was recorded. Processes write different files, and so write to different places here.
"""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from ..utils.files import open_file, read_file, write_file

CHECKSUMS = ".checksums"
_MAGIC = b"enmasums"
_DTYPE = np.dtype("<u4")


def write_checksums(store: Path, values: np.ndarray) -> None:
    """Write the file of checksums; `values` is `[n]`, by place."""
    write_file(store / CHECKSUMS, _MAGIC + values.astype(_DTYPE).tobytes())


def read_checksums(store: Path, count: int | None = None) -> np.ndarray:
    """Read the recorded checksums `[n]`; `ValueError` if the file is damaged or does not hold `count` of them."""
    data = read_file(store / CHECKSUMS)
    size = len(data) if count is None else len(_MAGIC) + count * _DTYPE.itemsize
    if len(data) != size or not data.startswith(_MAGIC) or (size - len(_MAGIC)) % _DTYPE.itemsize:
        raise ValueError(f"torn: {len(data)} bytes of {size}")
    return np.frombuffer(data, _DTYPE, offset=len(_MAGIC))


class Recorder:
    """Records checksums in a store; does nothing in a store that was created without them.

    A client of NFS could write its old copy of a page over what other machines recorded there. It does not where the
    file has a lock on a part of it; without `locks` each write is synchronous (see `Ledger`).
    """

    def __init__(self, store: Path, *, locks: bool) -> None:
        try:
            self._file = open_file(store / CHECKSUMS, os.O_RDWR | (0 if locks else os.O_DSYNC))
        except FileNotFoundError:
            self._file = -1
            return
        # A store that is written by one process needs no locks of its file system.
        with suppress(OSError):
            if locks:
                # Beyond the end of any such file, and shared by all processes.
                request = struct.pack("hhqqi", fcntl.F_RDLCK, os.SEEK_SET, 1 << 40, 1, 0)
                fcntl.fcntl(self._file, fcntl.F_OFD_SETLK, request)

    def record(self, first: int, values: Sequence[int]) -> None:
        """Record the checksums of the files at places `first, first + 1, ...`."""
        if self._file >= 0:
            data = np.asarray(values, _DTYPE).tobytes()
            os.pwrite(self._file, data, len(_MAGIC) + first * _DTYPE.itemsize)

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
