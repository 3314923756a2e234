"""NetCDF export: xarray reads the values of the store, memory is bounded, and the file follows CF."""

import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5netcdf
import numpy as np
import pytest
import xarray

from enma_fast.errors import EnmaError
from enma_fast.models.checkpoint import PRETRAINED
from enma_fast.store import netcdf
from enma_fast.store.metadata import DIGEST
from enma_fast.store.netcdf import export_netcdf
from enma_fast.store.read import read_forecast
from tests._made import create_store

ROOT = Path(__file__).resolve().parents[2]


def store_of(path: Path, space: tuple[int, ...] = (7,), *, members: bool = True, **changes: Any) -> Path:
    """Write a store with everything a store can hold: 3 trajectories, members 10 to 13, two channels."""
    rng = np.random.default_rng(0)
    samples = changes.pop("samples", rng.normal(size=(3, 4, 5, *space, 2)).astype(np.float32))
    given = {
        "channels": ("u", "v"),
        "times": 0.1 + 0.05 * np.arange(5),
        "coords": [np.linspace(0, 1 + i, n) for i, n in enumerate(space)],
        "trajectories": [3, 8, 11],
        "num_members": 4,
        "first_member": 10,
        "observed": samples[:, 0, :2],
        "observed_times": [0.0, 0.05],
        "truth": samples[:, 1],
        "columns": {"alpha": np.array([0.5, 0.6, 0.7]), "environment": np.array([4, 4, 9])},
        "keep_members": members,
        "statistics": True,
        "quantiles": (0.1, 0.9),
        "thresholds": (0.0, 1.0, 2.0),
        "attributes": {"model": "a model", "seed": 7, "command": "enma-fast forecast fields.h5"},
    }
    with create_store(path, **{**given, **changes}) as store:
        if members:
            store.put(0, samples)
        for b, values in enumerate(samples):
            statistics = {
                "mean": values.mean(0),
                "spread": values.std(0, ddof=1),
                "quantile": np.quantile(values, (0.1, 0.9), axis=0),
                "exceedance": np.stack([(values > threshold).mean(0) for threshold in (0.0, 1.0, 2.0)]),
            }
            store.put_statistics(b, statistics)
    return path


def opened(path: Path) -> xarray.Dataset:
    with xarray.open_dataset(path, engine="h5netcdf") as dataset:
        return dataset.load()


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return store_of(tmp_path / "run.zarr")


@pytest.mark.parametrize("space", [(7,), (4, 3)])
@pytest.mark.parametrize("members", [True, False])
def test_xarray_opens_it_and_it_is_the_store(tmp_path: Path, space: tuple[int, ...], members: bool) -> None:
    store = store_of(tmp_path / "run.zarr", space, members=members)
    calls: list[tuple[int, int]] = []
    out = tmp_path / "new" / "run.nc"
    result = export_netcdf(store, out, progress=lambda *call: calls.append(call))
    expected, found = read_forecast(store), opened(out)
    xarray.testing.assert_equal(found, expected)
    assert {name: found[name].dtype for name in found.variables} == {n: expected[n].dtype for n in expected.variables}
    assert calls == [(1, 3), (2, 3), (3, 3)]
    size = out.stat().st_size
    assert result == {
        "store": str(store),
        "file": str(out),
        "num_trajectories": 3,
        "num_members": 4 * members,
        "bytes": size,
    }
    assert [path.name for path in out.parent.iterdir()] == ["run.nc"]


def test_where_it_came_from_is_kept(tmp_path: Path, run: Path) -> None:
    export_netcdf(run, tmp_path / "run.nc", command="enma-fast export-netcdf run.zarr")
    found, expected = opened(tmp_path / "run.nc"), read_forecast(run)
    assert found.attrs["history"].splitlines() == ["enma-fast forecast fields.h5", "enma-fast export-netcdf run.zarr"]
    assert found.attrs["channels"] == "u, v"
    assert found.attrs["source"] == "enma_fast, model a model"
    # The digest is of the attributes of the store.
    assert DIGEST not in found.attrs
    told = {"history", "channels", DIGEST}
    for name, value in expected.attrs.items():
        if name not in told:
            np.testing.assert_array_equal(found.attrs[name], value, err_msg=name)
    for name in expected.variables:
        kept = {key: value for key, value in expected[name].attrs.items() if key != "axis"}
        assert found[name].attrs == kept, name


def test_names_that_are_not_utf_8_are_escaped(tmp_path: Path) -> None:
    attributes = {"model": "m\udcff", "command": "enma-fast forecast \udcff.h5", "a\udcff": ["b\udcff", "c"]}
    run = store_of(tmp_path / "run.zarr", attributes=attributes)
    export_netcdf(run, tmp_path / "run.nc", command="enma-fast export-netcdf \udcfe")
    found = opened(tmp_path / "run.nc").attrs
    assert found["history"] == "enma-fast forecast \\udcff.h5\nenma-fast export-netcdf \\udcfe"
    assert (found["model"], found["a\\udcff"]) == ("m\\udcff", "b\\udcff, c")


def test_the_same_store_gives_the_same_bytes(tmp_path: Path, run: Path) -> None:
    for name in ("a.nc", "b.nc"):
        export_netcdf(run, tmp_path / name)
    assert (tmp_path / "a.nc").read_bytes() == (tmp_path / "b.nc").read_bytes()


def test_a_selection_is_that_of_xarray(tmp_path: Path, run: Path) -> None:
    out = tmp_path / "run.nc"
    export_netcdf(run, out, trajectories=[11, 3], members=[11, 12])
    found = opened(out)
    expected = read_forecast(run).sel(trajectory=[3, 11], realization=[11, 12])
    xarray.testing.assert_equal(found, expected)
    assert (found.attrs["num_members"], found.attrs["first_member"]) == (2, 11)
    assert found["u_mean"].attrs["comment"].startswith("over all members of the forecast store")
    assert "comment" not in found["u"].attrs


@pytest.mark.each_value
@pytest.mark.parametrize("space", [(7,), (4, 3)])
@pytest.mark.parametrize(("chunk", "block"), [(10, 20), (40, 100), (75, 150)])
def test_blocks_are_bounded_and_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, space: tuple[int, ...], chunk: int, block: int
) -> None:
    store = store_of(tmp_path / "run.zarr", space)
    monkeypatch.setattr(netcdf, "_CHUNK", chunk)
    monkeypatch.setattr(netcdf, "_BLOCK", block)
    read, sizes = netcdf._read, []

    def reading(path: Path, array: Any, places: Any) -> np.ndarray:
        values = read(path, array, places)
        sizes.append(values.size)
        return values

    monkeypatch.setattr(netcdf, "_read", reading)
    export_netcdf(store, tmp_path / "run.nc")
    xarray.testing.assert_equal(opened(tmp_path / "run.nc"), read_forecast(store))
    # Columns and coordinates, of 7 values at most, are read at once.
    assert max(sizes) <= max(block, 7)
    with h5netcdf.File(tmp_path / "run.nc") as file:
        assert np.prod(file.variables["u"].chunks) <= chunk


@pytest.mark.parametrize("sizes", [(1,), (5, 7), (64, 17, 128), (3, 1, 9, 5), (1000, 2, 3)])
@pytest.mark.parametrize("limit", [1, 6, 100, 4096])
def test_parts_are_as_large_as_they_may_be(sizes: tuple[int, ...], limit: int) -> None:
    part = netcdf._parts(sizes, limit)
    assert np.prod(part) <= limit
    cut = [axis for axis in range(len(sizes)) if part[axis] < sizes[axis]]
    if cut:
        last = cut[-1]
        larger = [*part[:last], part[last] + 1, *part[last + 1 :]]
        assert np.prod(larger) > limit
        assert all(size == 1 for size in part[:last])
    block = netcdf._parts(sizes, 16 * limit, part)
    assert np.prod(block) <= 16 * limit
    for size, piece, unit in zip(sizes, block, part, strict=True):
        assert piece == size or piece % unit == 0


def test_only_a_netcdf_file_is_replaced_and_only_when_asked(tmp_path: Path, run: Path) -> None:
    out = tmp_path / "run.nc"
    export_netcdf(run, out, trajectories=[3])
    with pytest.raises(EnmaError, match=r"run\.nc: exists"):
        export_netcdf(run, out)
    assert opened(out).sizes["trajectory"] == 1
    export_netcdf(run, out, force=True)
    assert opened(out).sizes["trajectory"] == 3
    notes = tmp_path / "notes.txt"
    notes.write_text("keep")
    # A field file is HDF5 as well.
    fields = Path(shutil.copy(PRETRAINED / "combined-test-in.h5", tmp_path / "fields.h5"))
    before = fields.read_bytes()
    for other in (notes, tmp_path, fields):
        with pytest.raises(EnmaError, match="exists"):
            export_netcdf(run, other, force=True)
    assert notes.read_text() == "keep"
    assert fields.read_bytes() == before
    with pytest.raises(EnmaError, match=r"a\.nc: .*written"):
        export_netcdf(run, notes / "a.nc")


def test_a_damaged_chunk_leaves_what_was_there(tmp_path: Path, run: Path) -> None:
    out = tmp_path / "run.nc"
    export_netcdf(run, out)
    before = out.read_bytes()
    chunk = min((run / "v").glob("c.2.*"))
    chunk.write_bytes(chunk.read_bytes()[:-3])
    with pytest.raises(EnmaError, match=r"run\.zarr: v cannot"):
        export_netcdf(run, out, force=True)
    assert out.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run.nc", "run.zarr"]


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    store = store_of(tmp_path / "run.zarr", (64, 64))
    code = "import resource, sys\n"
    code += "from enma_fast.store.netcdf import export_netcdf\nfrom enma_fast.errors import EnmaError\n"
    code += "resource.setrlimit(resource.RLIMIT_FSIZE, (60000, 60000))\n"
    code += "try: export_netcdf(*sys.argv[1:])\nexcept EnmaError as error: print(error)"
    command = [sys.executable, "-c", code, str(store), str(tmp_path / "run.nc")]
    # A module that is compiled there would be cut off too.
    environ = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}
    run = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True)
    assert (
        run.stdout == f"{tmp_path / 'run.nc'}: cannot be written (File too large); choose another place or free space\n"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["run.zarr"]


def test_missing_members_stay_missing_and_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    samples = np.ones((3, 4, 5, 7, 2), np.float32)
    samples[1, 2, ..., 0] = np.nan
    with caplog.at_level(logging.WARNING, "enma_fast"):
        export_netcdf(store_of(tmp_path / "run.zarr", samples=samples, statistics=False), tmp_path / "run.nc")
    np.testing.assert_array_equal(opened(tmp_path / "run.nc")["u"], samples[..., 0])
    assert "run.nc: 35 values are missing" in caplog.text


def test_what_is_not_there_is_not_exported(tmp_path: Path, run: Path) -> None:
    with pytest.raises(EnmaError, match=r"run\.zarr: .*trajectory"):
        export_netcdf(run, tmp_path / "run.nc", trajectories=[3, 4])
    with pytest.raises(EnmaError, match=r"run\.zarr: .*realization"):
        export_netcdf(run, tmp_path / "run.nc", members=[0])
    bare = store_of(tmp_path / "bare.zarr", members=False)
    with pytest.raises(EnmaError, match=r"bare\.zarr: .*statistics"):
        export_netcdf(bare, tmp_path / "run.nc", members=[10])
    with pytest.raises(EnmaError, match=r"nowhere: .*folder"):
        export_netcdf(tmp_path / "nowhere", tmp_path / "run.nc")
    assert not (tmp_path / "run.nc").exists()


# CF asks for neither. A standard name is optional (3.3), and `time` would promise seconds since a date, but the checker
# wants it where a dimension is called so. A cell method may name a standard name that is no axis of the variable (7.3).
CHECKER_ONLY = (
    "Coordinate variable 'time' should have standard_name='time', found: 'None'",
    "cell_methods name component realization does not match a dimension, area or auxiliary coordinate",
)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The ioos_sos checker:DeprecationWarning")
@pytest.mark.parametrize("space", [(7,), (4, 3)])
@pytest.mark.parametrize("members", [True, False])
@pytest.mark.parametrize("known", [True, False])
def test_the_ioos_checker_finds_no_violation_of_cf(
    tmp_path: Path, space: tuple[int, ...], members: bool, known: bool
) -> None:
    runner = pytest.importorskip("compliance_checker.suite", reason="needs the CF checker: pip install 'enma-fast[cf]'")
    given: dict[str, Any] = {} if known else {"dimensionless": False, "units": {"u": "K"}}
    path = store_of(tmp_path / "run.zarr", space, members=members, **given)
    export_netcdf(path, tmp_path / "run.nc", command="export")
    runner.CheckSuite.load_all_available_checkers()
    suite = runner.CheckSuite()
    with suite.load_dataset(str(tmp_path / "run.nc")) as dataset:
        assert dataset.Conventions == "CF-1.11"
        ((groups, exceptions),) = suite.run_all(dataset, ["cf:1.11"]).values()
    assert not exceptions
    assert len(groups) > 10
    messages = {message for group in groups for part in (group, *(group.children or ())) for message in part.msgs or ()}
    assert {m for m in messages if not m.endswith(CHECKER_ONLY)} == set()
