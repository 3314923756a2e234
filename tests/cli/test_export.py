"""`enma-fast export-netcdf`."""

from collections.abc import Callable
from pathlib import Path

import pytest
import xarray

from enma_fast.store.read import read_forecast


@pytest.fixture(scope="module")
def store(tiny: Path, test_in: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A forecast of trajectories 2, 3 and 4, written by the command."""
    from enma_fast.cli import main

    path = tmp_path_factory.mktemp("stores") / "run.zarr"
    options = ("--out", path, "-c", tiny, "--members", 4, "--select", "2:5")
    assert main([str(argument) for argument in ("forecast", test_in, *options)]) == 0
    return path


def opened(path: Path) -> xarray.Dataset:
    with xarray.open_dataset(path, engine="h5netcdf") as dataset:
        return dataset.load()


def test_the_file_is_the_store(enma: Callable, store: Path, tmp_path: Path) -> None:
    out = tmp_path / "run.nc"
    result = enma("export-netcdf", store, "--out", out, "--json").json
    assert result == {
        "store": str(store),
        "file": str(out),
        "num_trajectories": 3,
        "num_members": 4,
        "bytes": out.stat().st_size,
    }
    found = opened(out)
    xarray.testing.assert_equal(found, read_forecast(store))
    assert found.attrs["history"].splitlines()[-1] == "enma-fast export-netcdf run.zarr --out run.nc"
    run = enma("export-netcdf", store, "--out", out, "--force")
    assert run.out.startswith(f"{out}: 3 trajectories, 4 members, ")


@pytest.mark.parametrize(
    ("options", "trajectories", "members"),
    [
        (("--select", "3:"), [3, 4], [0, 1, 2, 3]),
        (("--select", "4", "--members", ":2"), [4], [0, 1]),
        (("--select", "0:3", "--members", "1:3"), [2], [1, 2]),
    ],
)
def test_a_selection_goes_by_the_numbers_of_the_store(
    enma: Callable, store: Path, tmp_path: Path, options: tuple, trajectories: list[int], members: list[int]
) -> None:
    out = tmp_path / "run.nc"
    assert enma("export-netcdf", store, "--out", out, *options, "--json").json["num_members"] == len(members)
    found = opened(out)
    xarray.testing.assert_equal(found, read_forecast(store).sel(trajectory=trajectories, realization=members))
    assert found.attrs["history"].endswith(f" --out run.nc {' '.join(options)}")


def test_bad_input_is_one_line(enma: Callable, store: Path, test_in: Path, tmp_path: Path) -> None:
    out = tmp_path / "run.nc"

    def error(*options: object, store: Path = store) -> str:
        return str(enma("export-netcdf", store, "--out", out, *options, "--json").error())

    assert error("--select", "7:9") == "--select '7:9': names no trajectory of the store; it holds 2 to 4"
    assert error("--members", "4:") == "--members '4:': names no realization of the store; it holds 0 to 3"
    assert error("--select", "a:b") == "--select 'a:b': write A:B, for example 0:10, or one number"
    assert error(store=test_in) == f"{test_in}: is not a Zarr store; give one written by `enma-fast forecast`"
    assert not out.exists()
    out.write_text("notes")
    assert error("--force") == f"{out}: exists and is not a NetCDF file; choose another --out"
    assert out.read_text() == "notes"
