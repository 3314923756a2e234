"""Chunk files of Zarr v3 arrays, written durably and checked one by one.

A chunk is raw little-endian values and their CRC-32C; a shard of N chunks is these one after another, then an index of
N offsets and lengths with its own CRC-32C (Zarr's `sharding_indexed`). Zarr reads and could write both; writing here
takes a tenth of the time and knows when a file has reached the disk.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ..utils.extras import load_extra
from ..utils.files import read_file

_CRC = struct.Struct("<I")
_ENTRY = struct.Struct("<QQ")
# Of a chunk that a shard does not hold.
_ABSENT = (2**64 - 1, 2**64 - 1)


def encode_chunk(values: np.ndarray) -> bytes:
    """One chunk as the bytes of its file."""
    data = np.ascontiguousarray(values, values.dtype.newbyteorder("<")).tobytes()
    return data + _CRC.pack(_crc32c(data))


def encode_shard(chunks: Sequence[np.ndarray], size: int) -> bytes:
    """The first chunks of a shard of `size` as the bytes of its file."""
    encoded = [encode_chunk(values) for values in chunks]
    entries, offset = [], 0
    for data in encoded:
        entries.append((offset, len(data)))
        offset += len(data)
    entries += [_ABSENT] * (size - len(encoded))
    index = b"".join(_ENTRY.pack(*entry) for entry in entries)
    return b"".join([*encoded, index, _CRC.pack(_crc32c(index))])


def array_metadata(
    dtype: np.dtype[Any],
    shape: Sequence[int],
    chunk: Sequence[int],
    shard: Sequence[int] | None,
    dims: Sequence[str],
    attributes: Mapping[str, str],
) -> dict[str, Any]:
    """The `zarr.json` of an array of such chunks (in such shards); Zarr takes six times as long to make it."""
    little = {"name": "bytes", "configuration": {"endian": "little"}}
    # A byte has no order.
    codecs: list[dict[str, Any]] = [little if dtype.itemsize > 1 else {"name": "bytes"}, {"name": "crc32c"}]
    outer = chunk
    if shard is not None:
        index = [little, {"name": "crc32c"}]
        inner = {"chunk_shape": list(chunk), "codecs": codecs, "index_codecs": index, "index_location": "end"}
        codecs, outer = [{"name": "sharding_indexed", "configuration": inner}], shard
    return {
        "shape": list(shape),
        "data_type": dtype.name,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(outer)}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
        "fill_value": {"f": "NaN", "b": False}.get(dtype.kind, 0),
        "codecs": codecs,
        "attributes": dict(attributes),
        "dimension_names": list(dims),
        "zarr_format": 3,
        "node_type": "array",
        "storage_transformers": [],
    }


def chunk_name(*index: int) -> str:
    """Name of the file of a chunk, in the folder of its array."""
    return ".".join(map(str, ("c", *index)))


def checksum(data: bytes, num_bytes: int, chunks: int = 1) -> int:
    """The checksum of a whole file by those of its chunks; never 0."""
    step = num_bytes + _CRC.size
    return _crc32c(b"".join(data[(i + 1) * step - _CRC.size : (i + 1) * step] for i in range(chunks))) or 1


def file_problem(path: Path, num_bytes: int, *, chunks: int = 1, size: int | None = None) -> str | None:
    """`chunk_problem` of a file, or that it cannot be read."""
    try:
        data = read_file(path)
    except FileNotFoundError:
        return "missing"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    return chunk_problem(data, num_bytes, chunks=chunks, size=size)


def chunk_problem(data: bytes, num_bytes: int, *, chunks: int = 1, size: int | None = None) -> str | None:
    """Why the bytes of a chunk file are not whole, None if they are.

    Parameters
    ----------
    num_bytes : of the values of one chunk
    chunks : that a shard holds
    size : chunks that a shard has place for; None for a file of one chunk
    """
    whole = chunks * (num_bytes + _CRC.size)
    expected = whole if size is None else whole + size * _ENTRY.size + _CRC.size
    if len(data) != expected:
        return f"torn: {len(data)} bytes of {expected}"
    parts = [data[i * (num_bytes + _CRC.size) : (i + 1) * (num_bytes + _CRC.size)] for i in range(chunks)]
    if size is not None:
        parts.append(data[whole:])
    if any(_crc32c(part[: -_CRC.size]) != _CRC.unpack(part[-_CRC.size :])[0] for part in parts):
        return "flipped: its CRC-32C differs"
    return None


class DiskSync:
    """Waits until what is written to the file system of a folder, from now on, is on the disk.

    One wait for many files: an fsync for each takes ten times as long. Linux before 5.8 does not report from `syncfs`
    that writing back has failed.
    """

    def __init__(self, folder: Path) -> None:
        # A failure is reported to those only who had something open when it came.
        self._folder, self._file = folder, os.open(folder, os.O_RDONLY)
        self._syncfs = getattr(ctypes.CDLL(None, use_errno=True), "syncfs", None)

    def sync(self) -> None:
        """Wait; `OSError` if something could not be written."""
        if self._syncfs is None:
            os.sync()
        elif self._syncfs(self._file):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(self._folder))

    def close(self) -> None:
        os.close(self._file)


@contextmanager
def synced(folder: Path) -> Iterator[None]:
    """What is written to the file system of a folder inside the block is on the disk after it."""
    disk = DiskSync(folder)
    try:
        yield
        disk.sync()
    finally:
        disk.close()


def _crc32c(data: bytes) -> int:
    return int(load_extra("google_crc32c", "store").value(data))
