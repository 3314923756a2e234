"""Fields of other people's files become field files, or are refused in one line with the fix."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

h5py = pytest.importorskip("h5py", reason="needs the [data] extra")

from enma_fast.data import FieldFile, ImportOptions, import_fields, read, write  # noqa: E402
from enma_fast.errors import EnmaError  # noqa: E402

from ._importing import LINE, STEPS, N, T, X, Y  # noqa: E402


@pytest.fixture
def plane(rng: np.random.Generator) -> np.ndarray:
    """Fields `[N, T, X, Y, 2]`."""
    return rng.normal(size=(N, T, X, Y, 2)).astype(np.float32)


@pytest.fixture
def imported(tmp_path: Path) -> Callable[..., FieldFile]:
    """Import a file and read what was written."""

    def run(source: Path, **options: Any) -> FieldFile:
        return read(import_fields(source, tmp_path / "out.h5", ImportOptions(**options), force=True))

    return run


@pytest.fixture
def refusal(tmp_path: Path) -> Callable[..., str]:
    """The one line that refuses an import, which leaves no file."""

    def run(source: Path, **options: Any) -> str:
        with pytest.raises(EnmaError) as caught:
            import_fields(source, tmp_path / "refused.h5", ImportOptions(**options))
        assert not (tmp_path / "refused.h5").exists()
        return str(caught.value)

    return run


def saved(path: Path, values: np.ndarray) -> Path:
    np.save(path, values)
    return path


def dataset(plane: np.ndarray) -> Any:
    """The plane as climate data has it: latitudes that descend, one variable for each channel, dates."""
    xr = pytest.importorskip("xarray", reason="needs the [store] extra")
    dims = ("sample", "time", "lat", "lon")
    fields = {
        name: (dims, plane[..., c].transpose(0, 1, 3, 2)[:, :, ::-1].copy(), {"units": unit})
        for c, (name, unit) in enumerate((("sst", "K"), ("salinity", "g/kg")))
    }
    coords = {
        "time": np.datetime64("2000-01-01", "ns") + np.arange(T) * np.timedelta64(6, "h"),
        "lat": np.linspace(40.0, 20.0, Y),
        "lon": np.arange(X) * 2.5,
    }
    return xr.Dataset(fields, coords)


def test_an_array_needs_its_axes_and_steps(
    tmp_path: Path, line: np.ndarray, imported: Callable, refusal: Callable
) -> None:
    path = saved(tmp_path / "waves.npy", line)
    assert "--axes" in refusal(path)
    assert "--dt" in refusal(path, axes=LINE)
    data = imported(path, axes=LINE, periodic=("x",), channels=("height",), units={"height": "m"}, **STEPS)
    np.testing.assert_array_equal(data.u[..., 0], line)
    assert (data.channels, data.units, data.periodic) == (("height",), {"height": "m"}, (True,))
    np.testing.assert_allclose(data.times, 0.05 * np.arange(T), rtol=1e-6)
    assert data.lengths == pytest.approx((0.8,))
    assert data.environment.tolist() == [0, 1, 2, 3]


def test_axes_may_stand_in_any_order(tmp_path: Path, plane: np.ndarray, imported: Callable) -> None:
    path = saved(tmp_path / "plane.npy", plane.transpose(4, 3, 0, 2, 1))
    data = imported(path, axes=("channel", "y", "trajectory", "x", "time"), dt=0.5, spacing=(0.1, 0.2))
    np.testing.assert_array_equal(data.u, plane)
    assert data.lengths == pytest.approx((0.7, 0.8))
    assert data.channels == ("u_0", "u_1")


def test_npz_has_coordinates_environments_and_parameters_by_name(
    tmp_path: Path, line: np.ndarray, imported: Callable, refusal: Callable
) -> None:
    path = tmp_path / "waves.npz"
    named = {"x": np.linspace(1, 3, X), "t": np.arange(T) * 0.2, "speed": np.array([0.5, 0.5, 0.25, 0.25])}
    np.savez(path, h=line, v=2 * line, **named)
    data = imported(path, axes=LINE, fields=("v", "h"), environment="speed")
    np.testing.assert_array_equal(data.u, np.stack([2 * line, line], -1))
    assert data.channels == ("v", "h")
    assert data.environment.tolist() == [1, 1, 0, 0]
    np.testing.assert_allclose(data.coords[0], named["x"], rtol=1e-6)
    np.testing.assert_allclose(imported(path, axes=LINE).parameters["speed"], named["speed"])
    assert "'nu'" in refusal(path, axes=LINE, environment="nu")
    assert "'w'" in refusal(path, axes=LINE, fields=("w",))


@pytest.mark.parametrize("kind", ["nc", "zarr", "memory"])
def test_xarray_says_everything(tmp_path: Path, plane: np.ndarray, kind: str, imported: Callable) -> None:
    path, made = tmp_path / f"sea.{kind}", dataset(plane)
    if kind == "nc":
        made.to_netcdf(path, engine="h5netcdf")
    elif kind == "zarr":
        made.to_zarr(path, consolidated=False)
    data = imported(made if kind == "memory" else path, fields=("sst", "salinity"))
    np.testing.assert_array_equal(data.u, plane)
    assert data.units == {"sst": "K", "salinity": "g/kg"}
    np.testing.assert_allclose(data.times, 0.25 * np.arange(T))
    np.testing.assert_allclose(data.coords[1], np.linspace(20, 40, Y))


def test_one_array_of_xarray_and_what_is_none(plane: np.ndarray, imported: Callable, refusal: Callable) -> None:
    data = imported(dataset(plane).sst, periodic=("x",))
    np.testing.assert_array_equal(data.u, plane[..., :1])
    assert (data.channels, data.periodic) == (("sst",), (True, False))
    assert "'wind'" in refusal(dataset(plane), fields=("wind",))
    assert "ndarray" in refusal(plane)


@pytest.mark.parametrize(("calendar", "days"), [("360_day", 360.0), ("noleap", 365.0), ("standard", 365.25)])
def test_dates_of_any_calendar_become_days(
    tmp_path: Path, plane: np.ndarray, calendar: str, days: float, imported: Callable
) -> None:
    xr, cftime = (pytest.importorskip(name, reason="needs the [store] extra") for name in ("xarray", "cftime"))
    # Years from 1600 on lie outside those of datetime64 in nanoseconds.
    numbers = days * np.arange(T) + 0.5
    dates = cftime.num2date(numbers, "days since 1600-06-01", calendar=calendar)
    made = dataset(plane).assign_coords(time=xr.CFTimeIndex(dates))
    made.to_netcdf(tmp_path / "years.nc", engine="h5netcdf")
    data = imported(tmp_path / "years.nc")
    np.testing.assert_allclose(data.times, days * np.arange(T))
    np.testing.assert_array_equal(data.u, plane)


def test_a_part_of_the_places_is_kept(tmp_path: Path, plane: np.ndarray, imported: Callable, refusal: Callable) -> None:
    plane[:, :, :2] = np.nan
    path = saved(tmp_path / "plane.npy", plane)
    options = {"axes": ("trajectory", "time", "x", "y", "channel"), "dt": 0.5, "spacing": (0.1, 0.2)}
    data = imported(path, crop={"x": (2, X), "time": (1, 5), "y": (0, Y)}, **options)
    np.testing.assert_array_equal(data.u, plane[:, 1:5, 2:])
    np.testing.assert_allclose(data.coords[0], 0.1 * np.arange(2, X))
    np.testing.assert_allclose(data.times, 0.5 * np.arange(1, 5))
    assert data.lengths == pytest.approx((0.5, 0.8))
    ring = imported(path, crop={"x": (2, X)}, periodic=("x",), **options)
    assert (ring.periodic, ring.lengths) == ((True, False), pytest.approx((0.6, 0.8)))
    assert "'z'" in refusal(path, crop={"z": (0, 2)}, **options)
    named = imported(path, crop={"lon": (2, X), "t": (1, 5), "lat": (0, Y)}, **options)
    assert np.array_equal(named.u, data.u)
    twice = refusal(path, crop={"x": (0, 2), "lon": (0, 2)}, **options)
    assert twice.endswith("crop names x twice, the second time as lon; name each axis once")
    for first, end in ((0, X + 1), (3, 4), (5, 2), (-1, 4)):
        said = refusal(path, crop={"x": (first, end)}, **options)
        assert f"crop keeps {first}:{end}" in said


def test_a_part_of_a_ring_is_open(tmp_path: Path, line: np.ndarray, imported: Callable) -> None:
    path = write(
        tmp_path / "ring.h5",
        name="ring",
        times=0.1 * np.arange(T),
        coords=[np.arange(X) / X],
        periodic=[True],
        scalars={"environment": np.arange(N)},
        t0_fields={"u": line},
    )
    assert imported(path, crop={"x": (0, X)}).periodic == (True,)
    data = imported(path, crop={"x": (0, 5)})
    assert (data.periodic, data.lengths) == ((False,), pytest.approx((0.5,)))


def test_missing_values_and_units_of_netcdf(tmp_path: Path, plane: np.ndarray, refusal: Callable) -> None:
    made = dataset(plane)
    made["sst"][2, 3, 0, 0] = np.nan
    made.to_netcdf(tmp_path / "sea.nc", engine="h5netcdf")
    assert "sst holds 1" in refusal(tmp_path / "sea.nc")
    assert "not degC" in refusal(tmp_path / "sea.nc", units={"sst": "degC"})


@pytest.mark.parametrize("fill", [-999.0, 1e20, -32768.0])
def test_numbers_that_stand_for_missing_values_are_refused(
    tmp_path: Path, line: np.ndarray, fill: float, imported: Callable, refusal: Callable
) -> None:
    land = np.arange(X) < 2
    path = saved(tmp_path / "sea.npy", np.where(land, fill, line))
    rest = line[..., ~land]
    said = (
        f"u is {fill:g} at {2 * N * T} places, first at trajectory 0, frame 0, and elsewhere from {rest.min():g} to "
        f"{rest.max():g}: that number stands for missing values; fill them"
    )
    options = {"axes": LINE, **STEPS}
    assert said in refusal(path, **options)
    assert imported(path, **options, crop={"x": (2, X)}).u.shape == (N, T, X - 2, 1)
    # These are no fields with holes: two values alone, the same number among others of its size, and other numbers.
    near = np.where(land, fill, fill * (1 + 0.9 * line / np.abs(line).max()))
    for values in (np.where(land, fill, np.ones_like(line)), near, np.where(land, 123 * fill, line)):
        assert imported(saved(tmp_path / "full.npy", values), **options).u.shape == (N, T, X, 1)


def test_the_wells_layout_is_kept(tmp_path: Path, line: np.ndarray, imported: Callable) -> None:
    path = write(
        tmp_path / "well.h5",
        name="waves",
        times=0.1 * np.arange(T),
        coords=[np.arange(X) / X],
        periodic=[True],
        scalars={"environment": [3, 3, 5, 5], "nu": [1.0, 1.0, 2.0, 2.0]},
        t0_fields={"u": line},
        units={"u": "m/s"},
    )
    data = imported(path)
    np.testing.assert_array_equal(data.u[..., 0], line)
    assert (data.units, data.periodic, data.lengths) == ({"u": "m/s"}, (True,), (1.0,))
    assert data.environment.tolist() == [3, 3, 5, 5]
    assert data.parameters["nu"].tolist() == [1, 1, 2, 2]
    with h5py.File(path, "a") as file:
        del file["scalars/environment"]
        file["scalars"].attrs["field_names"] = ["nu"]
    assert imported(path, environment="nu").environment.tolist() == [0, 0, 1, 1]


def test_pdebench_lines_and_planes(tmp_path: Path, line: np.ndarray, plane: np.ndarray, imported: Callable) -> None:
    axes = {"x": (np.arange(X) + 0.5) / X, "y": (np.arange(Y) + 0.5) / Y, "t": np.arange(T + 1) * 0.1}
    with h5py.File(tmp_path / "line.h5", "w") as file:
        file["tensor"] = line
        file["x-coordinate"], file["t-coordinate"] = axes["x"], axes["t"]
    with h5py.File(tmp_path / "fluid.h5", "w") as file:
        file["Vx"], file["density"] = plane[..., 0], plane[..., 1]
        for axis, values in axes.items():
            file[f"{axis}-coordinate"] = values
    with h5py.File(tmp_path / "runs.h5", "w") as file:
        for i, run in enumerate(plane):
            file[f"{i:04d}/data"] = run
            for axis, values in axes.items():
                file[f"{i:04d}/grid/{axis}"] = values[:T] if axis == "t" else values
    (tmp_path / "fluid.h5").rename(tmp_path / "1D_CFD_Shock_trans_Train.h5")
    assert imported(tmp_path / "1D_CFD_Shock_trans_Train.h5").periodic == (False, False)
    (tmp_path / "1D_CFD_Shock_trans_Train.h5").rename(tmp_path / "fluid.h5")
    data = imported(tmp_path / "line.h5")
    np.testing.assert_array_equal(data.u[..., 0], line)
    assert (data.periodic, data.environment.tolist()) == ((True,), [0] * N)
    for name, channels, wraps in (("fluid", ("Vx", "density"), True), ("runs", ("u_0", "u_1"), False)):
        data = imported(tmp_path / f"{name}.h5")
        np.testing.assert_array_equal(data.u, plane)
        assert (data.channels, data.periodic) == (channels, (wraps, wraps))


def test_hdf5_with_arrays_at_its_root(tmp_path: Path, plane: np.ndarray, imported: Callable) -> None:
    with h5py.File(tmp_path / "disco.h5", "w") as file:
        file["trajectories"], file["env_id"] = plane.transpose(0, 1, 4, 2, 3), [7, 7, 2, 2]
    data = imported(tmp_path / "disco.h5", axes=("trajectory", "time", "channel", "x", "y"), **STEPS)
    np.testing.assert_array_equal(data.u, plane)
    assert data.environment.tolist() == [1, 1, 0, 0]


def test_attributes_of_hdf5_arrays_count(
    tmp_path: Path, line: np.ndarray, imported: Callable, refusal: Callable
) -> None:
    def save(**attributes: object) -> Path:
        with h5py.File(tmp_path / "sst.h5", "w") as file:
            file["sst"] = line
            file["sst"].attrs.update(attributes)
        return tmp_path / "sst.h5"

    assert imported(save(units="K", _FillValue=-9999.0), axes=LINE, **STEPS).units == {"sst": "K"}
    line[1, 2, 3] = -9999
    assert "sst holds -9999.0" in refusal(save(_FillValue=-9999.0), axes=LINE, **STEPS)
    path = save(units="K")
    with h5py.File(path, "a") as file:
        file["height"] = np.array([1.0, -9999.0, 2.0, 3.0])
        file["height"].attrs["_FillValue"] = -9999.0
    line[1, 2, 3] = 0
    path = save(units="K")
    with h5py.File(path, "a") as file:
        file["height"] = np.array([1.0, -9999.0, 2.0, 3.0])
        file["height"].attrs["_FillValue"] = -9999.0
    assert not imported(path, axes=LINE, **STEPS).parameters
    assert "scale_factor" in refusal(save(scale_factor=0.1), axes=LINE, **STEPS)
    with h5py.File(tmp_path / "u.h5", "w") as file:
        file["u"], file["x"] = line, np.arange(X)
    assert "axes of u" in refusal(tmp_path / "u.h5")


def test_one_series_is_cut_into_windows(
    tmp_path: Path, line: np.ndarray, imported: Callable, refusal: Callable
) -> None:
    path = saved(tmp_path / "series.npy", line[0])
    options = {"axes": ("time", "x"), **STEPS}
    data = imported(path, window=3, stride=1, **options)
    np.testing.assert_array_equal(data.u[1, :, :, 0], line[0, 1:4])
    assert data.parameters["first_frame"].tolist() == [0, 1, 2, 3]
    assert len(np.unique(data.environment)) == 4
    assert "--window" in refusal(path, window=7, **options)
    assert refusal(path, window=0, **options).startswith("window is 0")
    assert refusal(path, window=3, stride=0, **options).startswith("stride is 0")


def test_windows_keep_the_environments_of_their_trajectories(
    tmp_path: Path, line: np.ndarray, imported: Callable
) -> None:
    path = tmp_path / "waves.npz"
    np.savez(path, u=line, nu=[0.1, 0.1, 0.3, 0.3])
    data = imported(path, axes=LINE, environment="nu", window=3, **STEPS)
    assert data.environment.tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    assert data.parameters["series"].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert len(np.unique(imported(path, axes=LINE, window=3, **STEPS).environment)) == 8
    overlapping = imported(path, axes=LINE, environment="nu", window=4, stride=2, **STEPS)
    assert len(np.unique(overlapping.environment)) == len(overlapping) == 8


def test_the_chosen_column_is_the_environment(tmp_path: Path, line: np.ndarray, imported: Callable) -> None:
    path = tmp_path / "waves.npz"
    np.savez(path, u=line, environment=np.arange(4) / 8, nu=[1, 1, 2, 2], height=[0.5, np.nan, 1, 2])
    data = imported(path, axes=LINE, environment="nu", **STEPS)
    assert data.environment.tolist() == [0, 0, 1, 1]
    # The column stays a parameter; one with a missing value is none.
    assert {name: values.tolist() for name, values in data.parameters.items()} == {"nu": [1, 1, 2, 2]}
    assert imported(path, axes=LINE, **STEPS).environment.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(("axis", "axes"), [("sample", ()), ("case", LINE)])
def test_columns_along_other_axes_are_no_parameters(
    axis: str, axes: tuple[str, ...], tmp_path: Path, line: np.ndarray, imported: Callable, refusal: Callable
) -> None:
    xr = pytest.importorskip("xarray", reason="needs the [store] extra")
    # As many points as trajectories.
    variables = {"u": ((axis, "time", "x"), line[..., :N]), "nu": (axis, np.arange(N)), "area": ("x", np.ones(N))}
    made = xr.Dataset(variables, {"time": np.arange(T), "x": np.arange(N)})
    made.to_netcdf(path := tmp_path / "line.nc", engine="h5netcdf")
    assert list(imported(path, axes=axes).parameters) == ["nu"]
    assert "'area'" in refusal(path, axes=axes, environment="area")


def test_positions_follow_their_axis_by_whatever_name(
    tmp_path: Path, rng: np.random.Generator, imported: Callable, refusal: Callable
) -> None:
    xr = pytest.importorskip("xarray", reason="needs the [store] extra")
    fields = rng.normal(size=(N, T, 8, 8)).astype(np.float32)
    coords = {"valid_time": 6.0 * np.arange(T), "lat": np.linspace(70, 0, 8), "lon": 100.0 + np.arange(8)}
    made = xr.Dataset({"u": (("sample", *coords), fields)}, coords)
    made.to_netcdf(tmp_path / "era.nc", engine="h5netcdf")
    data = imported(tmp_path / "era.nc", axes=("trajectory", "time", "x", "y"))
    np.testing.assert_array_equal(data.u[..., 0], fields[:, :, ::-1])
    np.testing.assert_allclose(data.coords[0], coords["lat"][::-1], rtol=1e-6)
    np.testing.assert_allclose(data.coords[1], coords["lon"], rtol=1e-6)
    np.testing.assert_allclose(data.times, coords["valid_time"])
    section = made.rename(lat="x", lon="z")
    section.to_netcdf(tmp_path / "section.nc", engine="h5netcdf")
    assert "u has" in refusal(tmp_path / "section.nc")
    data = imported(tmp_path / "section.nc", axes=("trajectory", "time", "x", "y"))
    np.testing.assert_allclose(data.coords[1], coords["lon"], rtol=1e-6)


def test_large_positions_years_and_months_stay_even(tmp_path: Path, line: np.ndarray, imported: Callable) -> None:
    path = tmp_path / "waves.npz"
    days = np.cumsum([0, 365, 365, 365, 366, 365])
    np.savez(path, u=line, x=5e6 + 0.25 * np.arange(X), t=2000 + np.arange(T) / 365)
    data = imported(path, axes=LINE)
    np.testing.assert_allclose(np.diff(data.coords[0]), 0.25, rtol=1e-9)
    np.testing.assert_allclose(np.diff(data.times), 1 / 365, rtol=1e-6)
    np.savez(path, u=line, x=np.arange(X), t=days)
    np.testing.assert_allclose(np.diff(imported(path, axes=LINE).times), days[-1] / 5, rtol=1e-6)
    months = np.datetime64("1999-12-15") + np.cumsum([0, 31, 31, 29, 31, 30])
    np.savez(path, u=line, x=np.arange(X), t=months.astype("datetime64[ns]"))
    np.testing.assert_allclose(imported(path, axes=LINE).times, 152 / 5 * np.arange(T), rtol=1e-6)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"x": np.r_[0.0, 2.0, 1.0, np.arange(3.0, X)]}, "in order"),
        ({"x": np.r_[0.0, 1.0, 1.0, np.arange(2.0, X - 1)]}, "repeated"),
        ({"time": np.r_[0.0, np.arange(2.0, T + 1)]}, "time"),
        ({"x": np.cos(np.linspace(np.pi, 0, X))}, "x has steps"),
        ({"x": np.arange(3.0)}, "x has 3 positions"),
        ({"time": np.arange(2.0 * T)}, f"time has {2 * T}"),
        ({"time": np.arange(T + 1.0)}, f"time has {T + 1}"),
        (
            {
                "u": np.where(np.arange(X) == 2, np.float32(9.969209968386869e36), 1.0)[None, None]
                .repeat(N, 0)
                .repeat(T, 1)
            },
            "u holds",
        ),
        ({"u": np.full((N, T, X), 1j)}, "dtype complex128"),
        ({"v": np.ones((N, T, X + 1))}, "fields differ"),
    ],
)
def test_bad_positions_and_fields(tmp_path: Path, line: np.ndarray, change: dict, said: str, refusal: Callable) -> None:
    arrays = {"u": line, "x": np.arange(X) * 1.0, "time": np.arange(T) * 1.0, **change}
    np.savez(tmp_path / "bad.npz", **arrays)
    assert said in refusal(tmp_path / "bad.npz", axes=LINE)


@pytest.mark.parametrize("name", [".", "", "a/b", "../../p", "a\\b", "line\nbreak"])
def test_columns_that_cannot_be_arrays_are_refused(
    tmp_path: Path, line: np.ndarray, name: str, refusal: Callable
) -> None:
    np.savez(tmp_path / "bad.npz", **{"u": line, name: np.arange(N) * 1.0})
    said = refusal(tmp_path / "bad.npz", axes=LINE, fields=("u",), **STEPS)
    assert "bad.npz" in said
    assert ascii(name) in said
    assert not list(tmp_path.glob("*.h5"))


def test_bad_sources_and_options(tmp_path: Path, line: np.ndarray, refusal: Callable) -> None:
    path = saved(tmp_path / "waves.npy", line)
    assert "such file" in refusal(tmp_path / "none.npy")
    (tmp_path / "notes.txt").write_text("u")
    assert "kind" in refusal(tmp_path / "notes.txt")
    (tmp_path / "torn.npy").write_bytes(path.read_bytes()[:300])
    assert "NumPy's" in refusal(tmp_path / "torn.npy")
    (tmp_path / "torn.nc").write_bytes(b"\x89HDF\r\n\x1a\n torn")
    assert "torn.nc:" in refusal(tmp_path / "torn.nc")
    assert "--axes names 2" in refusal(path, axes=("time", "x"))
    assert "axis once" in refusal(path, axes=("time", "height"))
    assert "each of x" in refusal(path, axes=LINE, dt=1.0, spacing=(1.0, 2.0))
    assert "'y'" in refusal(path, axes=LINE, periodic=("y",), **STEPS)
    assert "dt is" in refusal(path, axes=LINE, dt=0.0)
    np.save(tmp_path / "pickled.npy", np.array([{}], dtype=object), allow_pickle=True)
    assert "NumPy's" in refusal(tmp_path / "pickled.npy")
