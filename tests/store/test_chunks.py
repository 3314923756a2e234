"""Chunk files have the bytes that Zarr would write, and damage in them is found."""

import ctypes
import errno
import json
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import zarr
from zarr.codecs import Crc32cCodec

from enma_fast.store.chunks import DiskSync, array_metadata, checked_file, checksum, encode_chunk, encode_shard, synced
from enma_fast.utils.files import write_file


def array(folder: Path, shard: int) -> zarr.Array:
    return zarr.create_array(
        folder / "u",
        shape=(5, 3, 4),
        chunks=(1, 3, 4),
        shards=(shard, 3, 4) if shard > 1 else None,
        dtype="float32",
        fill_value=np.nan,
        filters=None,
        compressors=[Crc32cCodec()],
        chunk_key_encoding={"name": "default", "separator": "."},
    )


@pytest.mark.parametrize("shard", [1, 2, 3, 5])
def test_zarr_reads_it_and_writes_the_same_values(tmp_path: Path, rng: np.random.Generator, shard: int) -> None:
    values = rng.normal(size=(5, 3, 4)).astype(np.float32)
    made = array(tmp_path, shard)
    for i in range(0, 5, shard):
        part = list(values[i : i + shard])
        data = encode_chunk(part[0]) if shard == 1 else encode_shard(part, shard)
        write_file(tmp_path / "u" / f"c.{i // shard}.0.0", data)
    np.testing.assert_array_equal(made[...], values)
    np.testing.assert_array_equal(made[3], values[3])
    if shard == 1:
        ours = (tmp_path / "u" / "c.2.0.0").read_bytes()
        made[2] = values[2]
        assert (tmp_path / "u" / "c.2.0.0").read_bytes() == ours
    assert sorted(p.name for p in (tmp_path / "u").iterdir() if p.name.startswith(".")) == []


def test_any_order_of_axes_and_bytes_is_written_alike(rng: np.random.Generator) -> None:
    values = rng.normal(size=(6, 4)).astype(np.float32)
    expected = encode_chunk(values)
    assert encode_chunk(np.asfortranarray(values)) == expected
    assert encode_chunk(values.astype(">f4")) == expected
    assert encode_chunk(np.repeat(values, 2, axis=1)[:, ::2]) == expected
    assert expected[:-4] == values.tobytes()


@pytest.mark.parametrize("size", [None, 3])
def test_damage_is_seen(tmp_path: Path, rng: np.random.Generator, size: int | None) -> None:
    chunks = [rng.normal(size=(3, 4)).astype(np.float32) for _ in range(1 if size is None else 2)]
    path, options = tmp_path / "c", {"num_bytes": 48, "chunks": len(chunks), "size": size}
    assert checked_file(path, **options) == ("missing", 0)
    data = encode_chunk(chunks[0]) if size is None else encode_shard(chunks, size)
    path.write_bytes(data)
    assert checked_file(path, **options) == (None, checksum(data, 48, len(chunks)))
    for i in range(len(data)):
        flipped = bytearray(data)
        flipped[i] ^= 1 << i % 8
        path.write_bytes(flipped)
        assert checked_file(path, **options) == ("flipped: its CRC-32C differs", 0), i
    for torn in (data[:-1], b"", data + b"\0"):
        path.write_bytes(torn)
        assert checked_file(path, **options) == (f"torn: {len(torn)} bytes of {len(data)}", 0)
    path.unlink()
    path.mkdir()
    assert checked_file(path, **options) == ("cannot be read (Is a directory)", 0)


def test_a_file_that_could_not_be_written_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "c"
    write_file(path, b"old")

    def full(file: int, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("enma_fast.store.chunks.os.write", full)
    with pytest.raises(OSError, match="No space"):
        write_file(path, b"new")
    assert path.read_bytes() == b"old"


def test_the_disk_of_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        DiskSync(tmp_path / "nowhere")


def test_what_did_not_reach_the_disk_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the system, at the wait; what was asked is open since before anything was written."""
    asked = []

    def syncfs(file: int) -> int:
        asked.append(os.fstat(file).st_ino)
        ctypes.set_errno(errno.EIO)
        return -1

    monkeypatch.setattr(ctypes, "CDLL", lambda name, use_errno: SimpleNamespace(syncfs=syncfs))
    with pytest.raises(OSError, match="Input/output error") as caught, synced(tmp_path):
        (tmp_path / "file").touch()
    assert caught.value.errno == errno.EIO
    assert asked == [tmp_path.stat().st_ino]


@pytest.mark.parametrize("dtype", ["float32", "float64", "int64", "uint8", "bool"])
@pytest.mark.parametrize("shard", [None, (1, 4, 5)])
def test_the_metadata_of_an_array_are_those_that_zarr_makes(dtype: str, shard: tuple[int, ...] | None) -> None:
    chunk, attributes = (1, 1, 5) if shard else (1, 2, 5), {"long_name": "x", "units": "m"}
    made = zarr.create_array(
        zarr.storage.MemoryStore(files := {}),
        shape=(3, 8, 5),
        chunks=chunk,
        shards=shard,
        dtype=dtype,
        fill_value=np.nan if dtype.startswith("float") else 0,
        filters=None,
        compressors=[Crc32cCodec()],
        chunk_key_encoding={"name": "default", "separator": "."},
        dimension_names=["a", "b", "c"],
        attributes=attributes,
        zarr_format=3,
    )
    own = array_metadata(np.dtype(dtype), (3, 8, 5), chunk, shard, ("a", "b", "c"), attributes)
    assert made.shape == (3, 8, 5)
    assert json.dumps(own, indent=2).encode() == files["zarr.json"].to_bytes()
