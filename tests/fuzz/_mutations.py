"""Changes of a forecast store as data, so that a case that broke something can be kept."""

import copy
import json
import os
import shutil
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from enma_fast.store.metadata import DIGEST, METADATA, digest_of

Mutation = dict[str, Any]

# Values that may stand anywhere in JSON.
VALUES: list[Any] = [
    None,
    True,
    False,
    0,
    1,
    -1,
    2,
    3,
    17,
    1 << 31,
    1 << 40,
    1 << 63,
    10**30,
    0.5,
    -0.0,
    1e308,
    float("inf"),
    float("nan"),
    "",
    "u",
    "x",
    "..",
    "../../outside/u",
    "/proc/self/mem",
    "a\n\x1b[31mb",
    "[/red]",
    "\ud800",
    "é" * 300,
    "NaN",
    [],
    [0],
    [1, 1],
    [[[]]],
    [None],
    ["u", "u"],
    ["../u"],
    {},
    {"a": {}},
    {"name": "crc32c"},
    {"name": "numcodecs.pickle"},
    [{"name": "bytes"}, {"name": "gzip", "configuration": {"level": 1}}],
    {"configuration": {"chunk_shape": [1 << 40]}},
    "float64",
    "variable_length_bytes",
    "r8",
    "sharding_indexed",
    "group",
    "array",
    1 << 20,
]
KEYS = [
    "zarr_format",
    "node_type",
    "filters",
    "compressor",
    "extra",
    "..",
    "units",
    "_FillValue",
    "scale_factor",
    "coordinates",
]
TARGETS = ["zero", "pipe", "folder", "loop", "nothing", "outside", "inside", "empty"]

_number = st.integers(0, 1 << 16)
_edits = st.fixed_dictionaries(
    {
        "how": st.sampled_from(["set", "set", "delete", "add", "copy", "rename"]),
        "path": st.lists(_number, max_size=6),
        "value": st.integers(0, len(VALUES) - 1),
        "key": st.integers(0, len(KEYS) - 1),
    }
)
MUTATIONS: st.SearchStrategy[Mutation] = st.one_of(
    st.fixed_dictionaries(
        {
            "kind": st.just("json"),
            "file": _number,
            "edits": st.lists(_edits, min_size=1, max_size=3),
            "digest": st.booleans(),
        }
    ),
    st.fixed_dictionaries(
        {"kind": st.just("flip"), "file": _number, "bits": st.lists(_number, min_size=1, max_size=4)}
    ),
    st.fixed_dictionaries({"kind": st.just("size"), "file": _number, "by": st.integers(-64, 64)}),
    st.fixed_dictionaries({"kind": st.just("bytes"), "file": _number, "data": st.binary(max_size=64), "at": _number}),
    st.fixed_dictionaries({"kind": st.just("swap"), "file": _number, "other": _number}),
    st.fixed_dictionaries({"kind": st.just("put"), "file": _number, "target": st.sampled_from(TARGETS)}),
    st.fixed_dictionaries({"kind": st.just("ledger"), "states": st.binary(max_size=12), "fit": st.integers(-2, 4)}),
    st.fixed_dictionaries(
        {"kind": st.just("damaged"), "value": st.integers(0, len(VALUES) - 1), "names": st.lists(_number, max_size=3)}
    ),
    st.fixed_dictionaries(
        {"kind": st.just("beside"), "name": st.sampled_from(["lock", "tmp", "old"]), "target": st.sampled_from(TARGETS)}
    ),
)


def apply(store: Path, mutation: Mutation) -> None:
    """Change a store; where there is nothing to change, nothing happens."""
    files = sorted(path for path in store.rglob("*") if path.is_file() and not path.is_symlink())
    if not files:
        return
    # Metadata and what is hidden are few, and matter most.
    files += [path for path in files if path.name.startswith(".") or path.name == METADATA] * 2
    file = files[mutation.get("file", 0) % len(files)]
    kind = mutation["kind"]
    if kind == "json":
        _edit(store, mutation)
    elif kind == "swap":
        other = files[mutation["other"] % len(files)]
        data = file.read_bytes()
        file.write_bytes(other.read_bytes())
        other.write_bytes(data)
    elif kind == "put":
        _put(file, mutation["target"], store)
    elif kind == "beside":
        _put(store.with_name(f".{store.name}.{mutation['name']}"), mutation["target"], store)
    elif kind == "ledger":
        header = b"enmaunit" + mutation["fit"].to_bytes(8, "little", signed=True)
        (store / ".unfinished").write_bytes(header + mutation["states"])
    elif kind == "damaged":
        names = [str(files[n % len(files)].relative_to(store)) for n in mutation["names"]]
        (store / ".damaged").write_text(json.dumps(names or VALUES[mutation["value"]]))
    else:
        data = bytearray(file.read_bytes())
        if kind == "flip" and data:
            for bit in mutation["bits"]:
                data[bit // 8 % len(data)] ^= 1 << bit % 8
        elif kind == "size":
            data = data[: mutation["by"]] if mutation["by"] < 0 else data + bytes(mutation["by"])
        elif kind == "bytes":
            at = mutation["at"] % (len(data) + 1)
            data[at : at + len(mutation["data"])] = mutation["data"]
        file.write_bytes(data)


def _edit(store: Path, mutation: Mutation) -> None:
    metadata = sorted(store.rglob(METADATA))
    # The metadata of the whole store are those that are read, so they are chosen more often.
    file = (metadata + [store / METADATA] * len(metadata))[mutation["file"] % (2 * len(metadata) or 1)]
    try:
        root = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return
    for edit in mutation["edits"]:
        _change(root, edit)
    if (
        mutation["digest"]
        and isinstance(root, dict)
        and isinstance(root.get("attributes"), dict)
        and file.parent == store
    ):
        root["attributes"][DIGEST] = digest_of(root["attributes"])
    file.write_text(json.dumps(root))


def _change(node: Any, edit: Mutation) -> None:
    parent, key = None, None
    for step in edit["path"]:
        if not isinstance(node, dict | list) or not node:
            break
        keys = sorted(node) if isinstance(node, dict) else range(len(node))
        parent, key = node, keys[step % len(keys)]
        node = parent[key]
    # A copy: later edits may reach into it.
    value = copy.deepcopy(VALUES[edit["value"]])
    if parent is None:
        return
    if edit["how"] == "delete":
        del parent[key]
    elif edit["how"] == "add" and isinstance(parent, dict):
        parent[KEYS[edit["key"]]] = value
    elif edit["how"] == "copy" and isinstance(parent, list):
        parent.append(copy.deepcopy(parent[key]))
    elif edit["how"] == "rename" and isinstance(parent, dict):
        parent[str(value)] = parent.pop(key)
    else:
        parent[key] = value


def _put(path: Path, target: str, store: Path) -> None:
    """Something else in the place of a file."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    outside = store.parent / "outside"
    links = {
        "zero": Path("/dev/zero"),
        "loop": path,
        "nothing": store.parent / "nothing",
        "outside": outside if path.suffix in (".tmp", ".old") else outside / "file",
        "inside": store / METADATA,
    }
    if target == "pipe":
        os.mkfifo(path)
    elif target == "folder":
        path.mkdir()
    elif target == "empty":
        path.touch()
    else:
        path.symlink_to(links[target])
