"""Changes as plain data, so that a corpus can keep them: of bytes, of JSON, of HDF5 by its library, of a Zarr store."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st

# Attributes and values as JSON can hold them.
NUMBERS = st.one_of(
    st.sampled_from([0, 1, -1, 2, 3, 7, 2**31, 2**63 - 1, -(2**63), 1e300, -1e300, 1e-300, 0.5]),
    st.integers(-10, 10),
    st.floats(-10, 10),
)
TEXTS = st.one_of(
    st.sampled_from(["", "x", "u", "time", "..", "../../x", "/etc/passwd", "[/red]", "\x1b[31m", "a" * 300, "\u0000"]),
    st.text(max_size=8),
)
VALUES = st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS, st.lists(NUMBERS, max_size=4), st.lists(TEXTS, max_size=3))


def byte_changes() -> st.SearchStrategy[list[Any]]:
    """Damage at a place given as a share of the file."""
    place = st.floats(0, 1, exclude_max=True)
    length = st.sampled_from([1, 2, 4, 8, 64, 512])
    fill = st.sampled_from([0, 1, 0x7F, 0x80, 0xFF])
    return st.one_of(
        st.tuples(st.just("flip"), place, st.integers(0, 7)),
        st.tuples(st.just("fill"), place, length, fill),
        st.tuples(st.just("cut"), place, length),
        st.tuples(st.just("repeat"), place, length),
        st.tuples(st.just("end"), place),
    ).map(list)


BYTES = ("flip", "fill", "cut", "repeat", "end")


def change_file(path: Path, changes: list[list[Any]]) -> None:
    """Apply changes of a field file, those of its bytes last: the library opens whole files only."""
    for change in changes:
        if change[0] not in BYTES:
            change_hdf5(path, change)
    for change in changes:
        if change[0] in BYTES:
            path.write_bytes(change_bytes(path.read_bytes(), change))


def change_bytes(data: bytes, change: list[Any]) -> bytes:
    """Apply one of `byte_changes`."""
    kind, place, *more = change
    at = int(place * len(data))
    if kind == "flip":
        return data[:at] + bytes([data[at] ^ 1 << more[0]]) + data[at + 1 :] if data else data
    if kind == "fill":
        length = min(more[0], len(data) - at)
        return data[:at] + bytes([more[1]] * length) + data[at + length :]
    if kind == "cut":
        return data[:at] + data[at + more[0] :]
    if kind == "repeat":
        return data[: at + more[0]] + data[at:]
    return data[:at]


def json_changes() -> st.SearchStrategy[list[Any]]:
    """A new value, or none, for one entry of a document, by its number among all."""
    key = TEXTS.filter(lambda text: "\0" not in text)
    return st.one_of(
        st.tuples(st.just("set"), st.integers(0, 200), VALUES),
        st.tuples(st.just("drop"), st.integers(0, 200)),
        st.tuples(st.just("add"), st.integers(0, 200), key, VALUES),
        st.tuples(st.just("nest"), st.integers(0, 200), st.sampled_from([1, 50, 5000])),
        st.tuples(st.just("swap"), st.integers(0, 200), st.integers(0, 200)),
    ).map(list)


def change_json(document: Any, change: list[Any]) -> str:
    """Apply one of `json_changes`; the text of the changed document."""
    document = json.loads(json.dumps(document))
    places = list(_places(document))
    if not places:
        return json.dumps(document)
    kind, number, *more = change
    node, key = places[number % len(places)]
    mark = "the nested one"
    if kind == "set":
        node[key] = more[0]
    elif kind == "drop":
        del node[key]
    elif kind == "add" and isinstance(node, dict):
        node[more[0]] = more[1]
    elif kind == "swap":
        other, place = places[more[0] % len(places)]
        node[key], other[place] = json.loads(json.dumps([other[place], node[key]]))
    elif kind == "nest":
        node[key] = mark
        depth = more[0]
        return json.dumps(document).replace(json.dumps(mark), "[" * depth + "]" * depth)
    return json.dumps(document).replace("1e+300", "1e999")


def _places(node: Any) -> Any:
    """Each container and key of a document."""
    for key in list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ():
        yield node, key
        yield from _places(node[key])


FIELDS = ("t0_fields/u", "dimensions/time", "dimensions/x", "scalars/alpha", "scalars/environment")
GROUPS = (
    "/",
    "dimensions",
    "boundary_conditions",
    "boundary_conditions/x_periodic",
    "scalars",
    "t0_fields",
    "t1_fields",
)
NAMES = (
    "n_trajectories",
    "grid_type",
    "dataset_name",
    "simulation_parameters",
    "spatial_dims",
    "field_names",
    "bc_type",
    "associated_dims",
    "dim_varying",
    "time_varying",
    "sample_varying",
    "_FillValue",
)
TYPES = ("f4", "f8", "f2", ">f4", "i4", "u1", "S3", "c8", "bool", "O")


# Arrays of a NetCDF file and names of its attributes, also those of the libraries that write it.
VARIABLES = ("u", "time", "x", "environment", "sample")
CONVENTIONS = (
    "units",
    "calendar",
    "scale_factor",
    "add_offset",
    "valid_range",
    "valid_min",
    "valid_max",
    "_FillValue",
    "missing_value",
    "_Unsigned",
    "bounds",
    "coordinates",
    "dtype",
    "CLASS",
    "NAME",
    "DIMENSION_LIST",
    "REFERENCE_LIST",
    "_Netcdf4Dimid",
    "_Netcdf4Coordinates",
    "_nc3_strict",
)


def hdf5_changes(
    fields: tuple[str, ...] = FIELDS, groups: tuple[str, ...] = GROUPS, names: tuple[str, ...] = NAMES
) -> st.SearchStrategy[list[Any]]:
    """Changes of a file by a writer that means harm, or knows no better."""
    anywhere = st.sampled_from(fields + groups[1:])
    field, name = st.sampled_from(fields), st.sampled_from(names)
    shape = st.lists(st.sampled_from([0, 1, 2, 4, 6, 8, 1000]), max_size=4)
    target = st.sampled_from(["/", "/t0_fields", "/t0_fields/u", "../u", "nothing", "/away/u", "/dimensions/x"])
    return st.one_of(
        st.tuples(st.just("attribute"), st.sampled_from(fields + groups), name, VALUES),
        st.tuples(st.just("no attribute"), st.sampled_from(fields + groups), name),
        st.tuples(st.just("delete"), anywhere),
        st.tuples(st.just("type"), field, st.sampled_from(TYPES)),
        st.tuples(st.just("shape"), field, shape),
        st.tuples(st.just("chunks"), field, st.sampled_from([None, "gzip", "lzf"]), st.booleans()),
        st.tuples(st.just("huge"), field, st.sampled_from([10**6, 10**9, 2**40])),
        st.tuples(st.just("value"), field, NUMBERS),
        st.tuples(st.just("soft"), anywhere, target),
        st.tuples(st.just("hard"), anywhere, anywhere),
        st.tuples(st.just("external link"), anywhere, st.sampled_from(["/etc/passwd", "good.h5", "", "/dev/zero"])),
        st.tuples(st.just("virtual"), field, st.sampled_from([".", "good.h5", "/etc/passwd"])),
        st.tuples(st.just("external storage"), field, st.sampled_from(["/etc/passwd", "/dev/zero", "good.h5"])),
    ).map(list)


def change_hdf5(path: Path, change: list[Any]) -> None:
    """Apply one of `hdf5_changes`, as far as the library lets."""
    import h5py

    kind, key, *more = change
    with h5py.File(path, "r+") as file:
        try:
            _change(h5py, file, kind, key, more)
        except (OSError, RuntimeError, ValueError, TypeError, KeyError, AttributeError, OverflowError, MemoryError):
            return


def _change(h5py: Any, file: Any, kind: str, key: str, more: list[Any]) -> None:
    if kind == "attribute":
        file[key].attrs[more[0]] = h5py.Empty("f4") if more[1] is None else more[1]
        return
    if kind == "no attribute":
        del file[key].attrs[more[0]]
        return
    if kind == "value":
        file[key][(0,) * file[key].ndim] = more[0]
        return
    old = file[key]
    attributes, values = dict(old.attrs), old[()] if isinstance(old, h5py.Dataset) else None
    if kind == "hard":
        other = file[more[0]]
        del file[key]
        file[key] = other
        return
    del file[key]
    if kind == "soft":
        file["away"] = h5py.ExternalLink("/etc/passwd", "/")
        file[key] = h5py.SoftLink(more[0])
    elif kind == "external link":
        file[key] = h5py.ExternalLink(more[0], f"/{key}")
    elif kind == "type":
        file[key] = np.full(values.shape, b"a") if more[0] == "S3" else values.astype(more[0])
    elif kind == "shape":
        file[key] = np.resize(values, more[0])
    elif kind == "chunks":
        file.create_dataset(key, data=values, chunks=True, compression=more[0], shuffle=more[1], fletcher32=more[1])
    elif kind == "huge":
        file.create_dataset(key, (more[0], *values.shape[1:]), values.dtype, chunks=True)
    elif kind == "virtual":
        layout = h5py.VirtualLayout(values.shape, values.dtype)
        layout[:] = h5py.VirtualSource(more[0], key, shape=values.shape)
        file.create_virtual_dataset(key, layout)
    elif kind == "external storage":
        file.create_dataset(key, values.shape, values.dtype, external=[(more[0], 0, h5py.h5f.UNLIMITED)])
    if key in file and kind != "soft":
        file[key].attrs.update(attributes)


CODECS = (
    "pickle",
    "json2",
    "vlen-utf8",
    "blosc",
    "zlib",
    "astype",
    "delta",
    "packbits",
    "categorize",
    "base64",
    "gzip",
)
ENTRIES = (
    "filters",
    "compressor",
    "codecs",
    "storage_transformers",
    "dtype",
    "data_type",
    "shape",
    "chunks",
    "fill_value",
)
INSTEAD = ("link", "pipe", "folder", "absent", "endless")


def store_changes() -> st.SearchStrategy[list[Any]]:
    """Changes of one file of a Zarr store, by its place in the order of the names."""
    place = st.floats(0, 1, exclude_max=True)
    codec = st.sampled_from(CODECS).flatmap(
        lambda name: st.sampled_from([{"id": name}, {"name": name}, {"name": f"numcodecs.{name}", "configuration": {}}])
    )
    entry = st.one_of(VALUES, codec, st.lists(codec, max_size=2))
    return st.one_of(
        st.tuples(st.just("bytes"), place, byte_changes()),
        st.tuples(st.just("json"), place, json_changes()),
        st.tuples(st.just("json"), place, json_changes()),
        st.tuples(st.just("entry"), place, st.sampled_from(ENTRIES), entry),
        st.tuples(st.just("attribute"), place, st.sampled_from(CONVENTIONS[:13]), VALUES),
        st.tuples(st.just("instead"), place, st.sampled_from(INSTEAD)),
    ).map(list)


def change_store(path: Path, change: list[Any]) -> None:
    """Apply one of `store_changes`; those of JSON to a file of metadata."""
    kind, place, *more = change
    files = sorted(file for file in path.rglob("*") if file.is_file() and not file.is_symlink())
    if kind in ("json", "entry", "attribute"):
        files = [file for file in files if file.name in ("zarr.json", ".zarray", ".zattrs", ".zgroup", ".zmetadata")]
    if not files:
        return
    file = files[int(place * len(files))]
    if kind == "bytes":
        file.write_bytes(change_bytes(file.read_bytes(), more[0]))
    elif kind == "instead":
        file.unlink()
        if more[0] == "link":
            file.symlink_to("/etc/passwd")
        elif more[0] == "endless":
            file.symlink_to("/dev/zero")
        elif more[0] == "pipe":
            os.mkfifo(file)
        elif more[0] == "folder":
            file.mkdir()
    else:
        try:
            document = json.loads(file.read_bytes())
        except (ValueError, RecursionError):
            return
        if kind == "json":
            file.write_text(change_json(document, more[0]))
            return
        inside = kind == "attribute" and file.name == "zarr.json" and isinstance(document, dict)
        node = document.setdefault("attributes", {}) if inside else document
        if isinstance(node, dict):
            node[more[0]] = more[1]
            file.write_text(json.dumps(document))
