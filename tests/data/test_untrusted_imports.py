"""Files to import reach no other file and run no code; they neither hang nor fill the process that reads them."""

import gzip
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

h5py = pytest.importorskip("h5py", reason="needs the [data] extra")
xr = pytest.importorskip("xarray", reason="needs the [store] extra")

from enma_fast.data import ImportOptions, describe, import_fields, read  # noqa: E402
from enma_fast.errors import EnmaError  # noqa: E402
from enma_fast.utils import untrusted  # noqa: E402

from ._importing import LINE, STEPS  # noqa: E402

# The command with a second for each file.
COMMAND = (
    "import sys; from enma_fast.utils import untrusted; untrusted.SECONDS = int(sys.argv[1]); "
    "from enma_fast.cli import main; sys.exit(main(['data', 'import', sys.argv[2], '--out', sys.argv[3]]))"
)


@pytest.fixture(autouse=True)
def impatient() -> Iterator[None]:
    """A test that waits for a pipe fails; it does not wait for ever."""

    def late(*_: Any) -> None:
        raise TimeoutError("the file is waited for")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def dataset(line: np.ndarray) -> Any:
    coords = {"time": np.arange(line.shape[1]) * 0.5, "x": np.arange(line.shape[2]) * 1.0}
    names = np.array(["calm", "windy", "calm", "storm"], dtype=object)
    return xr.Dataset({"u": (("sample", "time", "x"), line, {"units": "K"}), "environment": ("sample", names)}, coords)


def refusal(path: Path, **options: Any) -> str:
    with pytest.raises(EnmaError) as caught:
        import_fields(path, path.with_name("out.h5"), ImportOptions(**options), force=True)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def hanging(path: Path, line: np.ndarray) -> Iterator[None]:
    """Write files at a path of which at least one makes the libraries of NetCDF run in a circle."""
    dataset(line).to_netcdf(path, engine="h5netcdf")
    whole = path.read_bytes()
    for at in (at for at in range(0, len(whole), 64) if whole[at : at + 4] == b"GCOL"):
        # Zeros in a global heap: an object in it is looked for, for ever.
        for first in (at + 64, at + 128, at):
            path.write_bytes(whole[:first] + bytes(64) + whole[first + 64 :])
            yield


@pytest.mark.slow
def test_a_netcdf_file_that_hangs_its_reader_ends_in_one_line(tmp_path: Path, line: np.ndarray) -> None:
    path = tmp_path / "hangs.nc"
    for _ in hanging(path, line):
        command = [sys.executable, "-c", COMMAND, "1", str(path), str(tmp_path / "out.h5")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=50)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        assert str(path) in done.stderr
        if "does not end" in done.stderr:
            return
    pytest.fail("no such bytes hang these versions of the libraries: find others")


def test_a_hanging_reader_obeys_signals(tmp_path: Path, line: np.ndarray) -> None:
    path = tmp_path / "hangs.nc"
    next(hanging(path, line))
    command = [sys.executable, "-c", COMMAND, "40", str(path), str(tmp_path / "out.h5")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        while not (child := children.read_text().split()):
            time.sleep(0.02)
        # It reads by now.
        time.sleep(1.0)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        process.wait(timeout=20)
        assert time.monotonic() - began < 10
        assert process.returncode != 0
    while (Path("/proc") / child[0]).exists() and "Z" not in (Path("/proc") / child[0] / "stat").read_text().split():
        assert time.monotonic() - began < 15
        time.sleep(0.02)


@pytest.mark.parametrize("ending", ["nc", "zarr", "h5", "npy", "npz"])
def test_pipes_sockets_and_devices_are_refused_at_once(tmp_path: Path, ending: str) -> None:
    pipe, listening, device = (tmp_path / f"{name}.{ending}" for name in ("pipe", "socket", "device"))
    os.mkfifo(pipe)
    device.symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(listening))
        for path in (pipe, listening, device):
            assert refusal(path).startswith(f"{path}: ")
            for reader in (read, describe):
                with pytest.raises(EnmaError, match=f"^{path}: "):
                    reader(path)


def v2(path: Path, *, consolidated: bool = False, **changes: Any) -> Path:
    """A store of version 2, written by hand: text of trajectories, by a codec that would run code."""
    about = {
        "zarr_format": 2,
        "shape": [1],
        "chunks": [1],
        "dtype": "|O",
        "fill_value": None,
        "order": "C",
        "compressor": None,
        "filters": None,
        **changes,
    }
    (path / "name").mkdir(parents=True)
    (path / ".zgroup").write_text('{"zarr_format": 2}')
    if consolidated:
        whole = {"zarr_consolidated_format": 1, "metadata": {".zgroup": {"zarr_format": 2}, "name/.zarray": about}}
        (path / ".zmetadata").write_text(json.dumps(whole))
        about = {**about, "filters": [{"id": "vlen-utf8"}]}
    (path / "name" / ".zarray").write_text(json.dumps(about))
    (path / "name" / ".zattrs").write_text('{"_ARRAY_DIMENSIONS": ["sample"]}')
    # A pickle that makes a folder.
    (path / "name" / "0").write_bytes(f"cos\nmkdir\n(V{path.with_name('ran')}\ntR.".encode())
    return path


PICKLE = [{"id": "vlen-utf8"}, {"id": "pickle"}]
V2 = {
    "a filter": {"filters": PICKLE},
    "another key": {"filters": [{"id": "pickle", "name": "zlib"}]},
    "a compressor": {"filters": PICKLE[:1], "compressor": {"id": "pickle"}},
    "consolidated": {"filters": PICKLE, "consolidated": True},
    "no name": {"filters": [{"id": ["pickle"]}]},
}


@pytest.mark.parametrize("case", V2)
def test_codecs_of_zarr_2_that_run_code_are_refused(tmp_path: Path, case: str) -> None:
    path = v2(tmp_path / "store.zarr", **V2[case])
    said = refusal(path)
    assert said.startswith(f"{path}/")
    assert "pickle" in said
    assert not (tmp_path / "ran").exists()


def with_codec(node: dict[str, Any]) -> None:
    node["codecs"].append({"name": "numcodecs.pickle", "configuration": {}})


def in_a_shard(node: dict[str, Any]) -> None:
    inner = {"chunk_shape": [1, 1, 1], "codecs": [*node["codecs"], "pickle"], "index_codecs": [{"name": "bytes"}]}
    node["codecs"] = [{"name": "sharding_indexed", "configuration": inner}]


def in_a_group(node: dict[str, Any]) -> None:
    array = json.loads(json.dumps(node))
    with_codec(array)
    # Attributes of an array that has this name are no attributes.
    node["consolidated_metadata"] = {"kind": "inline", "must_understand": False, "metadata": {"attributes": array}}


def transformed(node: dict[str, Any]) -> None:
    node["storage_transformers"] = [{"name": "pickle"}]


@pytest.mark.parametrize("change", [with_codec, in_a_shard, in_a_group, transformed])
def test_codecs_of_zarr_3_that_are_not_known_are_refused(tmp_path: Path, line: np.ndarray, change: Any) -> None:
    path = tmp_path / "store.zarr"
    dataset(line).drop_vars("environment").to_zarr(path, consolidated=False, zarr_format=3)
    about = json.loads((path / "u" / "zarr.json").read_text())
    change(about)
    (path / "u" / "zarr.json").write_text(json.dumps(about))
    said = refusal(path)
    assert said.startswith(f"{path / 'u' / 'zarr.json'}: ")
    assert "pickle" in said


@pytest.mark.parametrize("version", [2, 3])
def test_attributes_may_have_the_names_of_codecs(tmp_path: Path, line: np.ndarray, version: int) -> None:
    path, made = tmp_path / "store.zarr", dataset(line)
    made["u"].attrs |= {"filters": ["r", "g"], "codecs": "none", "fill": float("nan")}
    made.to_zarr(path, consolidated=True, zarr_format=version)
    found = read(import_fields(path, tmp_path / "out.h5", ImportOptions()))
    np.testing.assert_array_equal(found.u[..., 0], line)
    assert found.units == {"u": "K"}
    assert found.environment.tolist() == [0, 2, 0, 1]


def test_metadata_that_are_no_json_are_one_line(tmp_path: Path, line: np.ndarray) -> None:
    path = tmp_path / "store.zarr"
    dataset(line).to_zarr(path, consolidated=False, zarr_format=3)
    for text in ("[" * 100_000, "{", "9" * 5000, '{"codecs": 3}', '"\ud800'.encode("utf-8", "surrogatepass")):
        (path / "u" / "zarr.json").write_bytes(text if isinstance(text, bytes) else text.encode())
        assert refusal(path).startswith(f"{path / 'u' / 'zarr.json'}: ")


@pytest.mark.parametrize("kind", ["link", "folder", "pipe"])
def test_stores_with_links_and_pipes_are_refused(tmp_path: Path, line: np.ndarray, kind: str) -> None:
    path = tmp_path / "store.zarr"
    dataset(line).to_zarr(path, consolidated=False, zarr_format=3)
    chunk = path / "u" / "c" / "0" / "0" / "0"
    secret = chunk.rename(tmp_path / "secret")
    if kind == "pipe":
        os.mkfifo(chunk)
    elif kind == "link":
        chunk.symlink_to(secret)
    else:
        chunk.parent.rmdir()
        (tmp_path / "away").mkdir()
        secret.rename(tmp_path / "away" / "0")
        chunk.parent.symlink_to(tmp_path / "away")
    assert refusal(path).startswith(f"{chunk.parent if kind == 'folder' else chunk}: ")


def external_link(file: Any, path: Path) -> None:
    file["u"] = h5py.ExternalLink(str(path), "u")


def virtual(file: Any, path: Path) -> None:
    with h5py.File(path) as other:
        layout = h5py.VirtualLayout(other["u"].shape, other["u"].dtype)
        layout[:] = h5py.VirtualSource(other["u"])
    file.create_virtual_dataset("u", layout)


def external(file: Any, path: Path) -> None:
    file.create_dataset("u", (4, 6, 8), "f4", external=[(str(path), 0, h5py.h5f.UNLIMITED)])


def external_group(file: Any, path: Path) -> None:
    file["more/deep"] = h5py.ExternalLink(str(path), "/")


@pytest.mark.parametrize("ending", ["nc", "h5"])
@pytest.mark.parametrize("make", [external_link, virtual, external, external_group])
def test_hdf5_of_any_name_reaches_no_other_file(tmp_path: Path, line: np.ndarray, make: Any, ending: str) -> None:
    secret = tmp_path / "secret.h5"
    with h5py.File(secret, "w") as file:
        file["u"] = line
    path = tmp_path / f"store.{ending}"
    dataset(line).to_netcdf(path, engine="h5netcdf")
    with h5py.File(path, "r+") as file:
        if make is not external_group:
            del file["u"]
        make(file, secret)
    said = refusal(path, **STEPS)
    assert said.startswith(f"{path}: ")
    assert "more/deep" in said if make is external_group else "'u'" in said


def test_other_formats_are_no_netcdf(tmp_path: Path) -> None:
    for name, data in (("a.nc", b""), ("b.nc", b"GRIB"), ("c.zarr", b"PK\x03\x04"), ("d.nc", b"CDF\x01torn")):
        (tmp_path / name).write_bytes(data)
        assert refusal(tmp_path / name).startswith(f"{tmp_path / name}: ")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Little memory for a child."""
    monkeypatch.setattr(untrusted, "MEMORY", 512 << 20)


def test_a_bomb_in_a_zarr_store_is_refused(tmp_path: Path, line: np.ndarray, small: None) -> None:
    path = tmp_path / "bomb.zarr"
    numcodecs = pytest.importorskip("numcodecs")
    made = dataset(line).drop_vars("environment")
    made.to_zarr(path, consolidated=False, zarr_format=2, encoding={"u": {"compressors": numcodecs.GZip()}})
    member = gzip.compress(bytes(64 << 20), 1)
    (path / "u" / "0.0.0").write_bytes(member * 32)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert refusal(path).startswith(f"{path}: ")
    # In KiB: of two GiB none are in this process.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < before + (256 << 10)


def test_a_bomb_in_an_archive_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: np.ndarray) -> None:
    path = tmp_path / "bomb.npz"
    np.savez_compressed(path, u=np.zeros((4, 6, 1 << 17), np.float32))
    monkeypatch.setattr(untrusted, "memory", lambda: 1 << 23)
    assert refusal(path, axes=LINE, **STEPS).startswith(f"{path}: asks for")
    np.savez_compressed(path, u=line)
    import_fields(path, tmp_path / "out.h5", ImportOptions(axes=LINE, **STEPS))


@pytest.mark.parametrize("kind", ["zarr", "nc", "h5"])
def test_sizes_that_no_machine_holds_are_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"huge.{kind}"
    shape = (1 << 20, 1 << 10, 1 << 10)
    if kind == "zarr":
        group = pytest.importorskip("zarr").open_group(path, mode="w", zarr_format=3)
        group.create_array("u", shape=shape, chunks=(1, 64, 64), dtype="f4", dimension_names=LINE)
    else:
        with h5py.File(path, "w") as file:
            data = file.create_dataset("u", shape, "f4", chunks=(1, 64, 64))
            for axis, (name, size) in enumerate(zip(LINE, shape, strict=True)):
                file.create_dataset(name, (size,), "f4", chunks=True).make_scale(name)
                data.dims[axis].attach_scale(file[name])
    assert refusal(path, axes=LINE, **STEPS).startswith(f"{path}: asks for")


def test_an_array_of_no_width_is_returned(tmp_path: Path) -> None:
    found = untrusted.isolated(tmp_path, lambda more: np.zeros(3, "V0"))
    assert (found.shape, found.dtype.itemsize) == ((3,), 0)
    with pytest.raises(EnmaError, match=rf"^{tmp_path}: .*memory"):
        untrusted.isolated(tmp_path, lambda more: bytes(1 << 45))
