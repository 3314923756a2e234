"""The contents of a folder, for comparison, and archives of arrays that are damaged."""

import io
import struct
import zipfile
from pathlib import Path

# What a reader of zip files raises for each: RuntimeError, NotImplementedError, zlib.error, LZMAError, OSError,
# BadZipFile twice, and EOFError.
DAMAGES = ("encrypted", "unknown method", "no deflate", "no lzma", "no bzip2", "cut", "changed", "empty")
# Numbers of methods of compression, and the beginning of data that they cannot be.
_METHODS = {
    "unknown method": (99, b""),
    "no deflate": (8, b"\x07"),
    "no lzma": (14, b"\x09\x04\x05\x00" + b"\xff" * 5),
    "no bzip2": (12, b"no"),
}


def contents(folder: Path) -> dict[str, bytes]:
    """All files below a folder, hidden ones too."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def damaged(archive: bytes, damage: str) -> bytes:
    """A .npz file whose first array is not compressed, with one of `DAMAGES`."""
    data, entry = bytearray(archive), archive.index(b"PK\x01\x02")
    first = 30 + sum(struct.unpack("<2H", data[26:30]))
    if damage in _METHODS:
        data[entry + 10], start = _METHODS[damage]
        data[first : first + len(start)] = start
    elif damage == "encrypted":
        data[entry + 8] |= 1
    elif damage == "changed":
        # A bit of the last value of the array.
        data[archive.index(b"PK", 4) - 1] ^= 1
    else:
        del data[-30 if damage == "cut" else 0 :]
    return bytes(data)


def with_text(archive: bytes) -> bytes:
    """A .npz file with one more entry, which is no array."""
    data = io.BytesIO(archive)
    with zipfile.ZipFile(data, "a") as file:
        file.writestr("notes.txt", "no array")
    return data.getvalue()
