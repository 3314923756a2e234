"""A field file reaches no other file, and neither hangs nor crashes nor fills the process that reads it."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

h5py = pytest.importorskip("h5py", reason="needs the [data] extra")

from enma_fast.data import (  # noqa: E402
    ImportOptions,
    describe,
    fields,
    import_fields,
    read,
    read_readings,
    write,
)
from enma_fast.errors import EnmaError  # noqa: E402
from enma_fast.utils import untrusted  # noqa: E402

from .._files import DAMAGES, damaged, with_text  # noqa: E402

SHAPE = (6, 4, 8)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that hangs is found in a second."""
    monkeypatch.setattr(untrusted, "SECONDS", 1)


def instead_of_u(make: Callable[[Any], None]) -> Callable[[Any], None]:
    """Put something in place of the field."""

    def change(file: Any) -> None:
        file["kept"] = file["t0_fields/u"]
        del file["t0_fields/u"]
        make(file)

    return change


def virtual(file: Any) -> None:
    layout = h5py.VirtualLayout(SHAPE, np.float32)
    layout[:] = h5py.VirtualSource(".", "t0_fields/u", shape=SHAPE)
    file["t0_fields"].create_virtual_dataset("u", layout)


def external(file: Any) -> None:
    file["t0_fields"].create_dataset("u", SHAPE, "f4", external=[("/etc/passwd", 0, 4 * 6 * 4 * 8)])


def link(target: Any) -> Callable[[Any], None]:
    def make(file: Any) -> None:
        file["t0_fields"]["u"] = target

    return make


def through_another(file: Any) -> None:
    file["away"] = h5py.ExternalLink("/etc/passwd", "/")
    file["t0_fields"]["u"] = h5py.SoftLink("/away/u")


OUTSIDE = {
    "a virtual dataset of itself": (virtual, "t0_fields/u"),
    "external storage": (external, "t0_fields/u"),
    "an external link": (link(h5py.ExternalLink("/etc/passwd", "/u")), "t0_fields/u"),
    "a soft link through another": (through_another, "away"),
    "a soft link to itself": (link(h5py.SoftLink("/t0_fields/u")), "t0_fields/u"),
    "a soft link to nothing": (link(h5py.SoftLink("/nothing")), "t0_fields/u"),
}


@pytest.mark.parametrize("name", OUTSIDE)
def test_values_come_from_the_file_itself(name: str, edit: Callable) -> None:
    make, named = OUTSIDE[name]
    path = edit(instead_of_u(make))
    for reader in (read, describe):
        with pytest.raises(EnmaError, match=f"'{named}' is a") as caught:
            reader(path)
        assert str(caught.value).startswith(f"{path}: ")


def test_a_group_behind_an_external_link_is_refused(edit: Callable, tmp_path: Path) -> None:
    def change(file: Any) -> None:
        del file["t0_fields"]
        file["t0_fields"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "/t0_fields")

    with pytest.raises(EnmaError, match="'t0_fields'"):
        read(edit(change))


@pytest.mark.parametrize("target", ["/kept", "../kept", "v"])
def test_a_soft_link_inside_the_file_is_followed(edit: Callable, field_path: Path, target: str) -> None:
    expected = read(field_path).u

    def make(file: Any) -> None:
        file["t0_fields/v"] = file["kept"]
        file["t0_fields/u"] = h5py.SoftLink(target)

    path = edit(instead_of_u(make))
    if target == "../kept":
        # HDF5 knows no folder above.
        with pytest.raises(EnmaError, match="link"):
            read(path)
    else:
        np.testing.assert_array_equal(read(path).u, expected)


def test_zeroed_bytes_that_hang_the_library_end_in_one_line(field_path: Path) -> None:
    whole = field_path.read_bytes()
    # A global heap: the library looks for an object in it for ever.
    starts = [at + 16 for at in range(0, len(whole), 8) if whole[at : at + 4] == b"GCOL"]
    assert starts
    hung = 0
    for start in starts:
        for first in range(start - start % 64, start + 192, 64):
            field_path.write_bytes(whole[:first] + bytes(64) + whole[first + 64 :])
            clock = time.monotonic()
            try:
                describe(field_path)
            except EnmaError as error:
                hung += "not end" in str(error)
            assert time.monotonic() - clock < 60
            if hung:
                return
    pytest.fail("no such bytes hang this version of the library: find others")


def test_a_crash_of_the_library_is_one_line(field_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fields, "_read_rows", lambda *_: os.kill(os.getpid(), 11))
    with pytest.raises(EnmaError, match=r"good\.h5: .*library"):
        read(field_path)
    monkeypatch.setattr(fields, "_read_rows", lambda *_: os.kill(os.getpid(), 9))
    with pytest.raises(EnmaError, match=r"good\.h5: .*reader"):
        read(field_path)


def test_sizes_beyond_the_machine_are_refused_before_they_are_read(edit: Callable) -> None:
    def change(file: Any) -> None:
        del file["t0_fields/u"]
        file["t0_fields"].create_dataset("u", (10**9, 4, 8), "f4", chunks=(1, 4, 8))
        file.attrs["n_trajectories"] = 10**9
        for key in ("environment", "alpha"):
            del file[f"scalars/{key}"]
        file["scalars"].attrs["field_names"] = []

    path = edit(change)
    with pytest.raises(EnmaError, match="more memory"):
        read(path)
    assert read(path, select=[0, 1]).u.shape == (2, 4, 8, 1)


def test_pipes_are_no_tables_of_readings(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.csv")
    (tmp_path / "folder.csv").mkdir()
    for path in (tmp_path / "pipe.csv", tmp_path / "folder.csv", Path("/dev/zero")):
        with pytest.raises(EnmaError, match=rf"^{path}: .*file"):
            read_readings(path, lengths=(1.0,), num_channels=1, needed_by="points")


def test_pipes_and_devices_are_no_field_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.h5")
    (tmp_path / "loop.h5").symlink_to("loop.h5")
    for name, message in (("pipe.h5", "is not a file"), ("loop.h5", "cannot be opened \\(Too many levels")):
        with pytest.raises(EnmaError, match=message):
            read(tmp_path / name)
    for name in ("/dev/zero", "/proc/self/status", "/proc/self"):
        with pytest.raises(EnmaError, match="not a"):
            read(name)


def importing(path: Path) -> str:
    """The one line that refuses to import a file."""
    with pytest.raises(EnmaError) as caught:
        import_fields(path, path.with_name("out.h5"), ImportOptions(axes=("trajectory", "time", "x")))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_archives_of_arrays_are_one_line(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, u=np.zeros(SHAPE))
    path.write_bytes(damaged(path.read_bytes(), damage))
    said = importing(path)
    assert said.startswith(f"{path}: cannot be read as NumPy's (")
    assert said.endswith("); save it again by np.save")


def test_archives_of_other_things_and_pipes_are_no_arrays(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, u=np.zeros(SHAPE))
    path.write_bytes(with_text(path.read_bytes()))
    assert "cannot be read as NumPy's (notes.txt in it is no array)" in importing(path)
    for name in ("pipe.npz", "pipe.npy"):
        os.mkfifo(tmp_path / name)
        assert importing(tmp_path / name).endswith("is not a file; check the path")


ODD = {
    "a compound": np.zeros((), [("a", "f4"), ("b", "i4")]),
    "an opaque": np.void(b"abc"),
    "numbers for text": np.arange(3),
    "an empty one": h5py.Empty("f4"),
    "a matrix": np.zeros((2, 2)),
    "a boolean": True,
    "a complex number": 1j,
    "an infinity": np.inf,
    "no UTF-8": np.bytes_(b"\xff\xfe"),
    "long": "x" * 40_000,
    "many": np.array([b"x"] * 1000),
}
PLACES = {
    "grid_type": "/",
    "dataset_name": "/",
    "n_trajectories": "/",
    "simulation_parameters": "/",
    "spatial_dims": "dimensions",
    "bc_type": "boundary_conditions/x_periodic",
    "associated_dims": "boundary_conditions/x_periodic",
    "field_names": "t0_fields",
    "dim_varying": "t0_fields/u",
    "time_varying": "t0_fields/u",
    "sample_varying": "scalars/alpha",
    "_FillValue": "t0_fields/u",
}


@pytest.mark.parametrize("attribute", PLACES)
def test_attributes_of_odd_types_are_one_line(attribute: str, field_path: Path) -> None:
    good = field_path.read_bytes()
    expected = read(field_path)
    for name, value in ODD.items():
        field_path.write_bytes(good)
        with h5py.File(field_path, "r+") as file:
            try:
                file[PLACES[attribute]].attrs[attribute] = value
            except (OSError, RuntimeError, ValueError, TypeError):
                # Too long for an attribute.
                continue
        try:
            found = read(field_path)
        except EnmaError as error:
            line = str(error)
            assert line.startswith(f"{field_path}: "), (name, line)
            assert "\n" not in line
        else:
            np.testing.assert_array_equal(found.u, expected.u)


def test_missing_values_of_netcdf_are_refused(edit: Callable) -> None:
    def change(file: Any) -> None:
        file["t0_fields/u"][4, 2, 5] = -9999
        file["t0_fields/u"].attrs["_FillValue"] = np.float32(-9999)

    with pytest.raises(EnmaError, match="t0_fields/u"):
        read(edit(change))

    def unwritten(file: Any) -> None:
        del file["t0_fields/u"].attrs["_FillValue"]
        file["t0_fields/u"][4, 2, 5] = 9.969209968386869e36

    with pytest.raises(EnmaError, match="t0_fields/u"):
        read(edit(unwritten))


def test_masked_values_are_not_written(tmp_path: Path) -> None:
    u = np.ma.masked_less(np.arange(64.0).reshape(2, 4, 8), 3)
    with pytest.raises(EnmaError, match="t0_fields/u"):
        write(
            tmp_path / "a.h5",
            name="a",
            times=np.arange(4),
            coords=[np.arange(8)],
            periodic=[True],
            scalars={"alpha": np.zeros(2)},
            t0_fields={"u": u},
        )
    assert not list(tmp_path.iterdir())


def test_the_child_may_read_what_the_machine_holds_and_gives_it_back_to_the_bit(tmp_path: Path) -> None:
    value = {"a": np.arange(7, dtype=np.int64)[::2], "b": [1, (2.5, None), {"c": "\udcff", "d": np.zeros((0, 3))}]}
    before = set(children())
    found = untrusted.isolated(tmp_path, lambda more: value)
    np.testing.assert_array_equal(found["a"], value["a"])
    assert found["a"].dtype == np.int64
    found["a"][0] = 5
    assert found["b"][:1] == [1]
    assert found["b"][1] == (2.5, None)
    assert found["b"][2]["c"] == "\udcff"
    assert found["b"][2]["d"].shape == (0, 3)
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        untrusted.isolated(tmp_path, lambda more: 1 // 0)
    assert set(children()) <= before


def children() -> list[int]:
    """Process identifiers of this process's children that have not been waited for."""
    listed = Path(f"/proc/self/task/{os.getpid()}/children")
    return [int(pid) for pid in listed.read_text().split()] if listed.exists() else []


def test_nothing_reads_hdf5_but_by_the_one_module() -> None:
    package = Path(untrusted.__file__).parents[1]
    found = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        if re.search(r"h5py\.File\(|h5netcdf\.File\(.*\"r\"", path.read_text())
    }
    assert found == {"data/hdf5.py"}


def test_files_are_read_where_children_are_not_waited_for(field_path: Path) -> None:
    """A job wrapper may ignore SIGCHLD, and a program inherits that."""
    code = "import signal, sys; signal.signal(signal.SIGCHLD, signal.SIG_IGN)\n"
    code += "from enma_fast.data import read; print(len(read(sys.argv[1])))"
    done = subprocess.run([sys.executable, "-c", code, str(field_path)], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"{len(read(field_path))}\n"), done.stderr
