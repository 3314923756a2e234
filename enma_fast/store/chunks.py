"""Chunk files of Zarr v3 arrays: encoding, checking, and waiting until they are on the disk.

A chunk is raw little-endian values and their CRC-32C. A shard is its chunks one after another, then an index of their
offsets and lengths with a CRC-32C of its own (Zarr's `sharding_indexed`). Zarr reads both. It could write both too, but
writing them here takes a tenth of the time, and reports when a file has reached the disk.
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
# Index entry of a chunk that the shard does not hold.
_ABSENT = (2**64 - 1, 2**64 - 1)


def encode_chunk(values: np.ndarray) -> bytes:
    """Encode one chunk as the bytes of its file."""
    data = np.ascontiguousarray(values, values.dtype.newbyteorder("<")).tobytes()
    return data + _CRC.pack(_crc32c(data))


def encode_shard(chunks: Sequence[np.ndarray], size: int) -> bytes:
    """Encode the first chunks of a shard, which has room for `size`, as the bytes of its file."""
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
    """Build the `zarr.json` of an array in chunks, and perhaps in shards; Zarr takes six times as long."""
    little = {"name": "bytes", "configuration": {"endian": "little"}}
    # A single byte has no endianness.
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
    """File name of a chunk, in the folder of its array."""
    return ".".join(map(str, ("c", *index)))


def checksum(data: bytes, num_bytes: int, chunks: int = 1) -> int:
    """The checksum of a file that is known to be whole, from the CRC-32C of each of its chunks; never 0."""
    step = num_bytes + _CRC.size
    return _crc32c(b"".join(data[(i + 1) * step - _CRC.size : (i + 1) * step] for i in range(chunks))) or 1


def checked_file(path: Path, num_bytes: int, *, chunks: int, size: int | None) -> tuple[str | None, int]:
    """Read a file; returns its damage as `chunk_problem` does, and its checksum, 0 if it is not whole.

    A file that cannot be read is damaged too.
    """
    try:
        data = read_file(path)
    except FileNotFoundError:
        return "missing", 0
    except OSError as error:
        return f"cannot be read ({error.strerror})", 0
    wrong = chunk_problem(data, num_bytes, chunks=chunks, size=size)
    return wrong, checksum(data, num_bytes, chunks) if wrong is None else 0


def chunk_problem(data: bytes, num_bytes: int, *, chunks: int, size: int | None) -> str | None:
    """Describe the damage in the bytes of a chunk file; None if they are whole.

    `num_bytes` are those of the values of one chunk, `chunks` the chunks that the shard holds, and `size` those that it
    has room for (None for a file of one chunk).
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
    """Waits until everything that was written to the file system of a folder since it was made is on the disk.

    One `syncfs` serves many files; an fsync for each file takes ten times as long. On Linux before 5.8 `syncfs` does
    not report that writing back has failed.
    """

    def __init__(self, folder: Path) -> None:
        # The system reports a failure only through descriptors that were open when it happened.
        self._folder, self._file = folder, os.open(folder, os.O_RDONLY)
        self._syncfs = getattr(ctypes.CDLL(None, use_errno=True), "syncfs", None)

    def sync(self) -> None:
        """Wait for the disk; `OSError` if something could not be written."""
        if self._syncfs is None:
            os.sync()
        elif self._syncfs(self._file):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(self._folder))

    def close(self) -> None:
        os.close(self._file)


@contextmanager
def synced(folder: Path) -> Iterator[None]:
    """Context in which files are written; on leaving it they are on the disk."""
    disk = DiskSync(folder)
    try:
        yield
        disk.sync()
    finally:
        disk.close()


def _crc32c(data: bytes) -> int:
    return int(load_extra("google_crc32c", "store").value(data))
