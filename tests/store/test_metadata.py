"""Metadata of a store are untrusted: only those that a run writes are opened."""

import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from enma_fast.cli import main
from enma_fast.errors import EnmaError
from enma_fast.store.layout import Layout
from enma_fast.store.metadata import DIGEST, METADATA, digest_of, read_metadata
from enma_fast.store.read import read_forecast
from enma_fast.store.verify import check_store
from enma_fast.utils.names import MOST_BYTES, check_names
from tests._made import create_store

Root = dict[str, Any]


@pytest.fixture
def store(tmp_path: Path) -> Path:
    layout = Layout(
        channels=("u",),
        times=np.arange(5.0),
        coords=[np.arange(7.0)],
        trajectories=[4, 7],
        num_members=3,
        columns={"alpha": np.array([0.5, 0.7])},
        truth=np.ones((2, 5, 7, 1), np.float32),
        attributes={"command": "enma-fast forecast", "observed_frames": 3, "task": "temporal", "seed": 1},
    )
    with create_store(tmp_path / "run.zarr", layout) as made:
        made.put(0, np.ones((2, 3, 5, 7, 1), np.float32))
    return tmp_path / "run.zarr"


@pytest.fixture(autouse=True)
def in_time() -> Iterator[None]:
    """Nothing waits for ever."""
    signal.alarm(600)
    yield
    signal.alarm(0)


def changed(store: Path, change: Callable[[Root], Any]) -> None:
    """The metadata of a store as somebody else would have made them, with the digest that belongs to them."""
    root = json.loads((store / METADATA).read_text())
    change(root)
    if isinstance(root.get("attributes"), dict):
        root["attributes"][DIGEST] = digest_of(root["attributes"])
    (store / METADATA).write_text(json.dumps(root))


def refused(store: Path, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> str:
    """The one line that every command that opens a store ends with."""
    out = tmp_path / "out"
    commands = (
        ("verify", store),
        ("score", store),
        ("report", store, "--out", out.with_suffix(".html")),
        ("plot", store, "--out", out.with_suffix(".png")),
        ("export-netcdf", store, "--out", out.with_suffix(".nc")),
    )
    said = set()
    for command in commands:
        status = main([str(argument) for argument in command])
        told = capfd.readouterr().err
        assert (status, told.count("\n")) == (2, 1), (command, told)
        said.add(told)
    assert list(tmp_path.glob("out*")) == []
    return " ".join(said)


def arrays(root: Root) -> Root:
    return root["consolidated_metadata"]["metadata"]


def test_a_store_that_would_run_code_is_refused_before_it_is_opened(
    store: Path, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """An array of Zarr v2 in the metadata of all, whose filter unpickles what its chunk holds."""
    proof = tmp_path / "proof"
    # A pickle, protocol 0, of a call of os.mkdir.
    payload = f"cos\nmkdir\n(V{proof}\ntR.".encode()
    old = {
        "zarr_format": 2,
        "shape": [2],
        "chunks": [2],
        "dtype": "|O",
        "compressor": None,
        "filters": [{"id": "pickle"}],
        "fill_value": None,
        "order": "C",
        "node_type": "array",
        "attributes": {"_ARRAY_DIMENSIONS": ["trajectory"]},
        "dimension_names": ["trajectory"],
    }
    for name in ("alpha", "trajectory"):
        changed(store, lambda root, name=name: arrays(root).update({name: old}))
        (store / name / "0").write_bytes(payload)
    told = refused(store, capfd, tmp_path)
    assert "not write" in told
    assert not proof.exists()


CODEC = {"name": "numcodecs.pickle", "configuration": {}}
CHANGES: dict[str, Callable[[Root], Any]] = {
    "another codec": lambda root: arrays(root)["u"]["codecs"].append(CODEC),
    "codecs of a shard": lambda root: arrays(root)["u"].update(
        codecs=[{"name": "sharding_indexed", "configuration": {"chunk_shape": [1, 1, 5, 7], "codecs": [CODEC]}}]
    ),
    "no codec": lambda root: arrays(root)["time"].update(codecs=[]),
    "a group in the group": lambda root: arrays(root).update(
        alpha={"zarr_format": 3, "node_type": "group", "attributes": {}}
    ),
    "a type of its own": lambda root: arrays(root)["alpha"].update(data_type="variable_length_bytes"),
    "a transformer": lambda root: arrays(root)["u"].update(storage_transformers=[{"name": "x"}]),
    "a large chunk": lambda root: arrays(root)["u_truth"].update(shape=[2, 1 << 39, 7]),
    "a long axis": lambda root: [arrays(root)["time"].update(shape=[1 << 39])],
    "a negative size": lambda root: arrays(root)["x"].update(shape=[-7]),
    "another key": lambda root: root.update(extra=1),
    "another version of zarr": lambda root: root.update(zarr_format=2),
    "no consolidated metadata": lambda root: root.pop("consolidated_metadata"),
    "consolidated by another": lambda root: root["consolidated_metadata"].update(kind="other"),
    "a path as a name": lambda root: arrays(root).update({"../x": arrays(root)["alpha"]}),
    "a lost coordinate": lambda root: arrays(root).pop("time"),
    "a lost variable": lambda root: arrays(root).pop("u"),
    "axes of another order": lambda root: arrays(root)["u"]["dimension_names"].reverse(),
    "pairs in place of attributes": lambda root: root.update(attributes=[["enma_fast_forecast", 1], [5, 6]]),
    "arrays that are a list": lambda root: root["consolidated_metadata"].update(metadata=[[1, {}], ["u", {}]]),
    "trajectories that are no numbers": lambda root: arrays(root)["trajectory"].update(
        data_type="float64", fill_value="NaN"
    ),
    "a truth in other chunks": lambda root: arrays(root)["u_truth"]["chunk_grid"]["configuration"].update(
        chunk_shape=[1, 1, 7]
    ),
    "attributes that are no text": lambda root: arrays(root)["u"]["attributes"].update(long_name=[1]),
    **{
        f"{key} of {name} is {value!r}": lambda root, name=name, key=key, value=value: arrays(root)[name].update(
            {key: value}
        )
        for name in ("u", "time")
        for key, values in {
            "shape": [5, None, [], "57", {"5": 7}, [True], [0], [[5]]],
            "attributes": [[], None, 3, "text", [["long_name", "u"]]],
            "dimension_names": [None, "time", [5], {"time": 1}],
            "codecs": [None, {}, [[]], [None]],
            "chunk_grid": [None, [], {"configuration": []}],
        }.items()
        for value in values
    },
    **{
        f"chunks of {name} of {value!r}": lambda root, name=name, value=value: arrays(root)[name]["chunk_grid"].update(
            configuration={"chunk_shape": value}
        )
        for name in ("u", "time")
        for value in (0, None, [], [0], [1, 1, 5], [1, 1, 0, 7], "1157", {"5": 5})
    },
    **{
        f"{name} {value!r}"[:50]: lambda root, name=name, value=value: root["attributes"].update({name: value})
        for name, values in {
            "channels": ["u", [], [1], None, ["../u"], [["u"]], {"u": 1}, ["u", "u"]],
            "num_members": ["3", None, -1, 2.5, True, 1 << 80, 4],
            "first_member": [[], "0", -1],
            "shard": [0, "1", 2, None],
            "keeps": [[], "nothing", 3, "members, median"],
            "quantiles": ["a", [None], [[0.5]], float("nan")],
            "thresholds": [{}, [float("inf")]],
            "command": [3, ["a"]],
            "observed_frames": ["three", 1.5, -1],
            "task": [1],
            "model": [{}],
            "precision": [["fp32"], {}, 32, None],
            "seed": [{"a": 1}, [[1]]],
        }.items()
        for value in values
    },
}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda root: arrays(root).pop("x_observed"),
            "x_observed",
        ),
        (lambda root: arrays(root).pop("observed_point"), "observed_point"),
        (
            lambda root: arrays(root)["u_observed"].update(dimension_names=["trajectory", "observed_time", "x"]),
            "u_observed",
        ),
    ],
)
def test_readings_have_their_points(tmp_path: Path, change: Callable[[Root], Any], said: str) -> None:
    path = tmp_path / "run.zarr"
    with create_store(
        path,
        channels=("u",),
        times=np.arange(5.0),
        coords=[np.arange(7.0)],
        trajectories=[4],
        num_members=1,
        observed=np.ones((1, 2, 7, 1)),
        observed_times=[0.0, 1.0],
        observed_coords=np.ones((1, 2, 7, 1)),
    ) as made:
        made.put(0, np.ones((1, 1, 5, 7, 1)))
    read_metadata(path)
    changed(path, change)
    with pytest.raises(EnmaError, match=r"run\.zarr: .*enma_fast"):
        read_metadata(path)


@pytest.mark.parametrize("change", CHANGES)
def test_metadata_that_no_run_writes_are_refused(store: Path, change: str) -> None:
    changed(store, CHANGES[change])
    with pytest.raises(EnmaError, match=r"run\.zarr: "):
        read_metadata(store)


@pytest.mark.parametrize("change", list(CHANGES)[::15])
def test_a_command_refuses_such_metadata_in_one_line(
    store: Path, capfd: pytest.CaptureFixture[str], change: str
) -> None:
    assert read_forecast(store)["u"].shape == (2, 3, 5, 7)
    changed(store, CHANGES[change])
    assert main(["verify", str(store)]) == main(["score", str(store)]) == 2
    assert capfd.readouterr().err.count("\n") == 2


@pytest.mark.parametrize(
    "content", [b"[" * 100_000, b'{"attributes": ' * 5000, b'{"attributes": {"a": 1e999}}', b"9" * 10_000, b"\xff"]
)
def test_json_that_breaks_a_parser_is_one_line(
    store: Path, capfd: pytest.CaptureFixture[str], tmp_path: Path, content: bytes
) -> None:
    (store / METADATA).write_bytes(content)
    assert str(store) in refused(store, capfd, tmp_path)


@pytest.mark.parametrize("file", [METADATA, "u/c.0.0.0.0", "time/c.0", "u/zarr.json", ".checksums", ".unfinished"])
@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_a_pipe_or_a_device_in_a_store_is_not_waited_for(
    store: Path, capfd: pytest.CaptureFixture[str], file: str, kind: str
) -> None:
    (store / file).unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(store / file)
    else:
        (store / file).symlink_to("/dev/zero")
    assert main(["verify", str(store)]) == 2
    assert capfd.readouterr().err.count("\n") == 1
    if not file.startswith(".") and file != "u/zarr.json":
        assert main(["score", str(store)]) == 2


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("", "is empty"),
        ("..", "a dot"),
        (".hidden", "a dot"),
        ("__x", "two underscores"),
        ("a/b", "separator"),
        ("../../x", "separator"),
        ("/etc/x", "separator"),
        ("a\\b", "separator"),
        ("a\nb", "control character"),
        ("a\x1b[31m", "control character"),
        ("a\u202eb", "control character"),
        ("\ud800", "control character"),
        ("x" * (MOST_BYTES + 1), "129 bytes"),
        (7, "text"),
        (b"u", "text"),
    ],
)
def test_a_name_that_could_be_a_path_is_refused_with_the_file(name: object, why: str) -> None:
    with pytest.raises(EnmaError, match=r"^data\.h5: parameter") as caught:
        check_names([name], kind="parameter", where="data.h5")
    assert why in str(caught.value)
    assert str(caught.value).isprintable()
    check_names(["u", "alpha_1", "π", "wind speed", "a.b", "x" * MOST_BYTES], kind="parameter")


def test_a_name_that_is_taken_is_refused() -> None:
    common = {"channels": ("u",), "times": [0.0], "coords": [np.arange(2.0)], "trajectories": [0], "num_members": 1}
    for name in ("u", "time", "x", "u_truth", "zarr.json", "realization"):
        with pytest.raises(EnmaError, match=f"{name!r} is"):
            Layout(**common, columns={name: np.zeros(1)})
    Layout(**common, columns={"y": np.zeros(1), "quantile": np.zeros(1)})


def noticed(store: Path) -> bool:
    """True if a check of the store finds damage, or refuses the store in one line."""
    try:
        return check_store(store) != []
    except EnmaError as error:
        return "\n" not in str(error)


def test_every_flipped_bit_of_the_metadata_is_noticed(store: Path, rng: np.random.Generator) -> None:
    whole = (store / METADATA).read_bytes()
    assert check_store(store) == []
    for bit in rng.choice(8 * len(whole), 400, replace=False):
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        (store / METADATA).write_bytes(data)
        assert noticed(store), (bit, bytes(data[bit // 8 - 20 : bit // 8 + 20]))
