"""The metadata of a forecast store, checked before Zarr opens it: only metadata that enma_fast writes are accepted.

Whoever wrote the store wrote its metadata. Zarr would build any codec or filter that they name, some of which run code,
and allocate memory of any size. So the metadata of each array must equal those that `chunks.array_metadata` builds, its
name must be a plain one, its axes must be those of a forecast, and a chunk must fit the memory.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shlex
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from ..errors import EnmaError, first_line
from ..utils.files import read_file
from ..utils.names import SPACE, check_names
from ..utils.system import memory
from ..utils.text import shown
from .chunks import array_metadata

FORMAT = "enma_fast_forecast"
FORMAT_VERSION = 1
METADATA = "zarr.json"
DIGEST = "attributes_sha256"
# The axis of readings at scattered points.
READINGS = "observed_point"
# Statistic -> its own axis, long name and CF cell method (CF has none for the last two).
STATISTICS = {
    "mean": (None, "ensemble mean of {}", "realization: mean"),
    "spread": (None, "ensemble standard deviation of {}", "realization: standard_deviation"),
    "quantile": ("quantile", "ensemble quantile of {}", ""),
    "exceedance": ("threshold", "share of members whose {} is above the threshold", ""),
}
# Levels of nesting that an attribute may have.
_DEPTH = 4
# Largest metadata in bytes, longest axis, largest number of any kind, and most members of all trajectories.
_MOST, _LONGEST_AXIS, _LARGEST, _MOST_UNITS = 1 << 26, 1 << 25, 1 << 40, 1 << 31
_DTYPES = ("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float32", "float64")
_ROOT = {"attributes", "zarr_format", "consolidated_metadata", "node_type"}
# Attributes that every store has, and those that most have.
_KINDS: dict[str, type] = {"num_members": int, "first_member": int, "shard": int, "keeps": str}
_OTHERS: dict[str, type] = {
    "observed_frames": int,
    "observed_points": int,
    "command": str,
    "history": str,
    "model": str,
    "task": str,
    "precision": str,
    "seed": int,
}


def read_metadata(path: Path) -> dict[str, Any]:
    """Read and check the metadata of the store at `path`; its attributes are under `attributes`.

    `EnmaError` if there is no forecast store of this version, or its metadata hold something that enma_fast does not
    write.
    """
    root = read_unchecked_metadata(path)
    require_format(path, root["attributes"])
    _check(path, root)
    return root


def read_unchecked_metadata(path: Path) -> dict[str, Any]:
    """Read the metadata of the store at `path` without checking more than that there are attributes."""
    if not (path / METADATA).is_file():
        state = "is not a Zarr store" if path.exists() else "no such folder"
        raise EnmaError(f"{path}: {state}; give one written by `enma-fast forecast`")
    try:
        root = read_json(path / METADATA)
        if not isinstance(root["attributes"], dict):
            raise ValueError("its attributes are no object")
        return dict(root)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EnmaError(
            f"{path}: cannot be read as Zarr ({first_line(error)}); remove it and forecast again"
        ) from error


def repeated(path: Path, attributes: Mapping[str, Any]) -> str:
    """The command that wrote a store, as it is given to continue or repair it."""
    command = attributes.get("command") or "the command that wrote it"
    # The demo is told the folder that holds its store.
    place = path.parent if str(command).startswith("enma-fast demo") else path
    return f"{command} --out {shlex.quote(str(place))}"


def read_json(file: Path) -> Any:
    """Read a JSON file; `ValueError` if it is not JSON or is nested too deeply."""
    try:
        return json.loads(read_file(file, most=_MOST))
    except RecursionError:
        raise ValueError("nested too deeply") from None


def require_format(path: Path, attributes: Mapping[str, Any]) -> None:
    version = attributes.get(FORMAT)
    if version is None:
        raise EnmaError(f"{path}: lacks the attribute {FORMAT}; give a store written by `enma-fast forecast`")
    if version != FORMAT_VERSION or isinstance(version, bool):
        raise EnmaError(f"{path}: {FORMAT} is {shown(version)}; this version of enma_fast reads {FORMAT_VERSION}")


def digest_of(attributes: Mapping[str, Any]) -> str:
    """SHA-256 of all attributes of a store except the digest itself."""
    own = {name: value for name, value in attributes.items() if name != DIGEST}
    return hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()


def is_protected(attributes: Mapping[str, Any]) -> bool:
    """True if a store has a digest of its attributes and checksums of its files; older stores do not.

    An attribute whose name differs from the digest's in one or two letters counts as a damaged digest.
    """
    return DIGEST in attributes or any(
        len(name) == len(DIGEST) and sum(a != b for a, b in zip(name, DIGEST, strict=True)) <= 2 for name in attributes
    )


def require_files(path: Path, name: str) -> None:
    """Raise `EnmaError` if an array folder holds a pipe, a device, or a link to one, since reading it could hang."""
    try:
        with os.scandir(path / name) as entries:
            odd = [e.name for e in entries if not e.is_file(follow_symlinks=False) and not _is_plain(e.path)]
    except OSError:
        # The error is reported when the array is read.
        return
    if odd:
        raise EnmaError(f"{path}: {name}/{odd[0]!r} is neither a file nor a folder; remove it")


def _is_plain(path: str) -> bool:
    try:
        mode = os.stat(path).st_mode
    except OSError:
        # A link to nothing reads as missing.
        return True
    return stat.S_ISREG(mode) or stat.S_ISDIR(mode)


def _check(path: Path, root: Mapping[str, Any]) -> None:
    """Raise `EnmaError` unless the metadata are such as a run writes."""

    def refuse(what: str) -> NoReturn:
        raise EnmaError(f"{path}: {what}, which enma_fast does not write; get the store from its source again")

    version = root.get("zarr_format")
    if set(root) != _ROOT or root["node_type"] != "group" or not (_is_int(version) and version == 3):
        refuse("its metadata are not those of a group of Zarr v3")
    _check_attributes(root["attributes"], refuse)
    consolidated = root["consolidated_metadata"]
    if not isinstance(consolidated, dict) or {**consolidated, "metadata": None} != _CONSOLIDATED:
        refuse("its metadata are not consolidated")
    arrays = consolidated["metadata"]
    if not isinstance(arrays, dict):
        refuse("its metadata are not consolidated")
    for kind, names in (("channel", root["attributes"]["channels"]), ("array", arrays)):
        check_names(names, kind=kind, where=path)
    sizes: dict[str, int] = {}
    for name, array in arrays.items():
        wrong = array_problem(array)
        if wrong is not None:
            refuse(f"the metadata of {name} {wrong}")
        for axis, size in zip(array["dimension_names"], array["shape"], strict=True):
            if sizes.setdefault(axis, size) != size:
                refuse(f"{axis} has {sizes[axis]} values and, in {name}, {size}")
    _check_variables(root["attributes"], arrays, sizes, refuse)
    for name in arrays:
        require_files(path, name)


_CONSOLIDATED = {"kind": "inline", "must_understand": False, "metadata": None}


def _check_attributes(attributes: Mapping[str, Any], refuse: Any) -> None:
    for name, kind in {**_KINDS, **_OTHERS}.items():
        if name in attributes or name in _KINDS:
            value = attributes.get(name)
            if not isinstance(value, kind) or isinstance(value, bool):
                refuse(f"its attribute {name} is {shown(value)}")
            if isinstance(value, int) and name != "seed" and not 0 <= value < _LARGEST:
                refuse(f"its attribute {name} is {shown(value)}")
    channels = attributes.get("channels")
    if not isinstance(channels, list) or not channels or len(set(map(str, channels))) < len(channels):
        refuse(f"its attribute channels is {shown(channels)}")
    for name in ("quantiles", "thresholds"):
        values = attributes.get(name)
        if not isinstance(values, list) or not all(_is_number(value) for value in values):
            refuse(f"its attribute {name} is {shown(values)}")
    for name, value in attributes.items():
        if not _is_flat(value):
            refuse(f"its attribute {shown(name)} is {shown(value)}")
    keeps = attributes["keeps"].split(", ")
    if not set(keeps) <= {"members", *STATISTICS} or attributes["num_members"] < 1 or attributes["shard"] < 1:
        refuse("its attributes keeps, num_members and shard are of no forecast")


def array_problem(array: Any) -> str | None:
    """Describe how the metadata of an array differ from those that enma_fast writes; None if they do not."""
    try:
        shape, dims, attributes = array["shape"], array["dimension_names"], array["attributes"]
        outer = array["chunk_grid"]["configuration"]["chunk_shape"]
        codec, dtype = array["codecs"][0], array["data_type"]
        inner = codec["configuration"]["chunk_shape"] if codec["name"] == "sharding_indexed" else None
    except (KeyError, IndexError, TypeError):
        return "are not those of an array of Zarr v3"
    chunk, shard = (outer, None) if inner is None else (inner, outer)
    if dtype not in _DTYPES:
        return f"have the type {shown(dtype)}"
    if not isinstance(shape, list) or not shape:
        return f"have the shape {shown(shape)}"
    if not all(isinstance(values, list) and len(values) == len(shape) for values in (dims, outer, chunk)):
        return "have a name, a size and a size of chunks not for each axis"
    if not all(_is_int(n) and 1 <= n < _LARGEST for n in (*shape, *outer, *chunk)):
        return f"have the shape {shown(shape)} in chunks of {shown(outer)}"
    if not isinstance(attributes, dict) or not all(isinstance(text, str) for text in (*dims, *attributes.values())):
        return "have attributes that are no text"
    if len(shape) == 1 and (outer != shape or shape[0] > _LONGEST_AXIS):
        return f"have the shape {shown(shape)} in chunks of {shown(outer)}"
    if array != array_metadata(np.dtype(dtype), shape, chunk, shard, dims, attributes):
        return "have other codecs, or other keys"
    if math.prod(outer) * np.dtype(dtype).itemsize > memory():
        return f"have chunks of the shape {shown(outer)}, larger than the memory"
    return None


def _check_variables(attributes: Mapping[str, Any], arrays: Any, sizes: Mapping[str, int], refuse: Any) -> None:
    """Check that the store has the variables of a forecast, with the right axes, and a coordinate for each axis."""
    channels, keeps = attributes["channels"], attributes["keeps"].split(", ")
    frames = ("time", *(axis for axis in SPACE if axis in sizes))
    expected: dict[str, tuple[str, ...]] = {"trajectory": ("trajectory",), **{name: (name,) for name in sizes}}
    optional: dict[str, tuple[str, ...]] = {}
    seen_at = frames[1:]
    if READINGS in sizes:
        seen_at = (READINGS,)
        expected |= {f"{axis}_observed": ("trajectory", "observed_time", *seen_at) for axis in frames[1:]}
    for name in channels:
        if "members" in keeps:
            expected[name] = ("trajectory", "realization", *frames)
        for kind in (kind for kind in keeps if kind in STATISTICS):
            own = STATISTICS[kind][0]
            expected[f"{name}_{kind}"] = ("trajectory", *(() if own is None else (own,)), *frames)
        optional[f"{name}_observed"] = ("trajectory", "observed_time", *seen_at)
        optional[f"{name}_truth"] = ("trajectory", *frames)
    for name, dims in {**{name: dims for name, dims in optional.items() if name in arrays}, **expected}.items():
        if name not in arrays or tuple(arrays[name]["dimension_names"]) != dims:
            refuse(f"it has no {name} along {', '.join(dims)}")
    for name in arrays.keys() - expected.keys() - optional.keys():
        if arrays[name]["dimension_names"] != ["trajectory"]:
            refuse(f"its {name} is along {', '.join(arrays[name]['dimension_names'])}")
    for name in ("trajectory", "realization"):
        if name in arrays and not arrays[name]["data_type"].startswith("int"):
            refuse(f"its {name} are no whole numbers")
    if sizes["trajectory"] * attributes["num_members"] > _MOST_UNITS:
        refuse(f"it holds {sizes['trajectory']} trajectories of {attributes['num_members']} members")
    if "members" in keeps and sizes["realization"] != attributes["num_members"]:
        refuse(f"it holds {sizes['realization']} members, and {attributes['num_members']} by its attributes")
    for name, array in arrays.items():
        shape, chunk = array["shape"], array["chunk_grid"]["configuration"]["chunk_shape"]
        if len(shape) > 1 and chunk != [1, attributes["shard"] if name in channels else shape[1], *shape[2:]]:
            refuse(f"its {name} of the shape {shown(shape)} is in files of {shown(chunk)}")


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return _is_int(value) or (isinstance(value, float) and math.isfinite(value))


def _is_flat(value: Any, depth: int = 0) -> bool:
    """True if a value is text, a number, or a few levels of these."""
    if isinstance(value, dict | list) and depth < _DEPTH:
        return all(_is_flat(item, depth + 1) for item in (value.values() if isinstance(value, dict) else value))
    return value is None or isinstance(value, str | bool) or _is_number(value)
