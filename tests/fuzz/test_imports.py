"""NetCDF files, Zarr stores and archives of arrays with changes: `data import` writes finite values, or says one line.

`corpus.json` keeps the changes that once ended otherwise, and a few that are near them.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

st = pytest.importorskip("hypothesis.strategies")
pytest.importorskip("h5py", reason="needs the [data] extra")
xr = pytest.importorskip("xarray", reason="needs the [store] extra")

from hypothesis import seed  # noqa: E402

from enma_fast.data import read  # noqa: E402

from ._changes import CONVENTIONS, VARIABLES, byte_changes, change_store, hdf5_changes, store_changes  # noqa: E402
from ._runner import Runner  # noqa: E402
from .test_inputs import FEW, MANY, ROUNDS, case  # noqa: E402

CORPUS = json.loads(Path(__file__).with_name("corpus.json").read_text())["imports"]
NETCDF, CLASSIC, ARRAYS, ZARR_2, ZARR_3 = "good.nc", "classic.nc", "good.npz", "good2.zarr", "good3.zarr"
OPTIONS = {ARRAYS: ("--axes", "trajectory,time,x")}
RUNS = {NETCDF: 3, ZARR_2: 3, ZARR_3: 3, CLASSIC: 1, ARRAYS: 1}


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One small data set in each format."""
    folder = tmp_path_factory.mktemp("imports")
    u = np.random.default_rng(0).normal(size=(4, 6, 8)).astype(np.float32)
    names = np.array(["calm", "windy", "calm", "storm"], dtype=object)
    coords = {"time": np.arange(6) * 0.5, "x": np.arange(8) * 1.0}
    made = xr.Dataset({"u": (("sample", "time", "x"), u, {"units": "K", "valid_min": -99.0})}, coords)
    with_text = made.assign(environment=("sample", names))
    with_text.to_netcdf(folder / NETCDF, engine="h5netcdf", encoding={"u": {"zlib": True, "chunksizes": (2, 3, 8)}})
    made.to_netcdf(folder / CLASSIC, engine="scipy")
    with_text.to_zarr(folder / ZARR_2, consolidated=True, zarr_format=2)
    with_text.to_zarr(folder / ZARR_3, consolidated=False, zarr_format=3)
    np.savez_compressed(folder / ARRAYS, u=u, environment=names.astype("U"), **coords)
    return folder


def check_import(runner: Runner, folder: Path, name: str, changes: list[list[Any]]) -> None:
    """`data import` of a changed source."""
    good, path, out = folder / name, folder / f"changed{Path(name).suffix}", folder / "out.h5"
    if good.is_dir():
        shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(good, path)
        for change in changes:
            change_store(path, change)
    else:
        shutil.copy(good, path)
        if not runner.change(path, changes):
            return
    found = runner.run(f"import {name}", "data", "import", path, "--out", out, "--force", *OPTIONS.get(name, ()))
    if found is None:
        return
    data = read(out)
    assert np.isfinite(data.u).all()
    assert list(data.u.shape) == [found["trajectories"], found["frames"], *found["points"], len(found["channels"])]
    assert all(np.isfinite(values).all() and (np.diff(values) > 0).all() for values in (data.times, *data.coords))


NETCDF_CHANGES = st.one_of(byte_changes(), byte_changes(), hdf5_changes(VARIABLES, ("/",), CONVENTIONS))
CHANGES = {NETCDF: NETCDF_CHANGES, CLASSIC: byte_changes(), ARRAYS: byte_changes()}


def changes_of(name: str) -> Any:
    return st.lists(CHANGES.get(name, store_changes()), min_size=1, max_size=3)


@pytest.mark.parametrize("name", RUNS)
def test_imports_without_a_change_are_accepted(name: str, runner: Runner, sources: Path) -> None:
    accepted = f"import {name}: accepted"
    before = runner.counts[accepted]
    check_import(runner, sources, name, [])
    assert runner.counts[accepted] == before + 1


@pytest.mark.parametrize("number", range(len(CORPUS)))
def test_imports_that_were_once_broken(number: int, runner: Runner, sources: Path) -> None:
    check_import(runner, sources, *CORPUS[number])


@pytest.mark.parametrize("name", RUNS)
def test_imports(name: str, runner: Runner, sources: Path) -> None:
    @case(FEW // 2, changes_of(name))
    def check(changes: list) -> None:
        check_import(runner, sources, name, changes)

    check()


@pytest.mark.long
@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("number", range(ROUNDS))
def test_many_imports(number: int, name: str, runner: Runner, sources: Path) -> None:
    @seed(number)
    @case(MANY * RUNS[name] // 3, changes_of(name))
    def check(changes: list) -> None:
        check_import(runner, sources, name, changes)

    check()
