"""Zarr stores that others made, before Zarr opens them: their files, and the codecs that their metadata name.

Zarr builds any codec or filter that is installed and named, and some run code: `pickle` of numcodecs does.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import EnmaError, first_line
from ..utils.text import shown
from ..utils.untrusted import read_bytes

# Codecs of numcodecs that hold numbers and text alone.
_NUMCODECS = {
    "adler32",
    "astype",
    "bitround",
    "blosc",
    "bz2",
    "crc32",
    "crc32c",
    "delta",
    "fixedscaleoffset",
    "fletcher32",
    "gzip",
    "jenkins_lookup3",
    "lz4",
    "lzma",
    "packbits",
    "pcodec",
    "quantize",
    "shuffle",
    "vlen-bytes",
    "vlen-utf8",
    "zfpy",
    "zlib",
    "zstd",
}
_ZARR = {
    "blosc",
    "bytes",
    "crc32c",
    "endian",
    "gzip",
    "sharding_indexed",
    "transpose",
    "vlen-bytes",
    "vlen-utf8",
    "zstd",
}
# Key that names a codec in metadata of version 2 and 3 -> codecs that are read.
_CODECS: dict[str, set[str]] = {"id": _NUMCODECS, "name": _ZARR | {f"numcodecs.{name}" for name in _NUMCODECS}}
# Metadata files, the keys of their codecs, and the key that names one.
_CODEC_KEYS = {
    ".zarray": (("filters", "compressor", "object_codec"), "id"),
    ".zmetadata": (("filters", "compressor", "object_codec"), "id"),
    "zarr.json": (("codecs", "index_codecs", "storage_transformers"), "name"),
}
# Bytes of a metadata file; consolidated metadata of thousands of arrays are smaller.
_MOST_BYTES = 64 << 20


def check_store(path: Path) -> None:
    """Raise `EnmaError` if a Zarr store has a link, a pipe or a device in it, or names a codec that is not known."""
    folders = [path]
    while folders:
        with os.scandir(folders.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    folders.append(Path(entry.path))
                elif not entry.is_file(follow_symlinks=False):
                    raise EnmaError(
                        f"{entry.path}: is a link or no file; copy the store with its files, as cp -rL does"
                    )
                # Some file systems make no difference between large and small letters.
                elif (name := entry.name.lower()) in _CODEC_KEYS:
                    _check_metadata(Path(entry.path), *_CODEC_KEYS[name])


def _check_metadata(path: Path, keys: tuple[str, ...], naming: str) -> None:
    data = read_bytes(path, most=_MOST_BYTES)
    try:
        codecs = list(_codecs(json.loads(data), keys))
    except (RecursionError, ValueError) as error:
        raise EnmaError(f"{path}: is no JSON ({first_line(error)}); copy the store again") from error
    for codec in codecs:
        name = codec.get(naming) if isinstance(codec, dict) else codec
        if not isinstance(name, str) or name not in _CODECS[naming]:
            raise EnmaError(
                f"{path}: asks for the codec {shown(name)}, which may run code; write the store again with one of "
                "blosc, gzip, zstd"
            )


def _codecs(node: Any, keys: tuple[str, ...]) -> Iterator[Any]:
    """Codecs in metadata of an array or a group, also inside other codecs, and of all arrays that are consolidated."""
    if isinstance(node, list):
        for item in node:
            yield from _codecs(item, keys)
    elif isinstance(node, dict):
        for key, value in node.items():
            if key in keys:
                yield from [item for item in (value if isinstance(value, list) else [value]) if item is not None]
            # Attributes are the user's, and name no codec.
            if not (key == "attributes" and "node_type" in node) and not key.endswith(".zattrs"):
                yield from _codecs(value, keys)
