"""What is known of trajectories beside their fields: shapes, windows, cycles, and files that hold it."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("h5py", reason="needs the [data] extra")

from enma_fast.data import ImportOptions, describe, import_fields, read, write_fields
from enma_fast.data.drivers import cycles_of, driver, joined, prolonged, turns_of, windows_of
from enma_fast.data.importing import imported, windows
from enma_fast.errors import EnmaError

from .._own import advected, save

SIZES = (6, 4, 8)


@pytest.mark.parametrize(
    ("given", "full"),
    [
        ((), (1, 1, 1)),
        ((6,), (6, 1, 1)),
        ((4,), (1, 4, 1)),
        ((8,), (1, 1, 8)),
        ((6, 4), (6, 4, 1)),
        ((6, 8), (6, 1, 8)),
        ((4, 8), (1, 4, 8)),
        ((6, 4, 8), (6, 4, 8)),
        ((1, 4, 1), (1, 4, 1)),
    ],
)
def test_the_shape_says_what_a_driver_varies_over(given: tuple[int, ...], full: tuple[int, ...]) -> None:
    values = np.random.default_rng(0).normal(size=given)
    found = driver("f", values, SIZES)
    assert found.shape == full
    np.testing.assert_array_equal(found.ravel(), values.astype(np.float32).ravel())


def test_a_shape_of_no_driver_or_of_two_is_refused() -> None:
    with pytest.raises(EnmaError, match=r"f.*\[5\].*6.*4.*8"):
        driver("f", np.zeros(5), SIZES)
    with pytest.raises(EnmaError, match=r"\[1, 6, 1\] or \[6, 1, 1\]"):
        driver("f", np.zeros(6), (6, 6, 8))
    with pytest.raises(EnmaError, match=r"f.*real"):
        driver("f", np.array("a"), SIZES)


def test_windows_and_files_keep_what_belongs_to_their_frames() -> None:
    known = {"f": np.arange(2 * 9.0).reshape(2, 9, 1), "s": np.arange(9.0).reshape(1, 9, 1), "p": np.ones((2, 1, 1))}
    found = windows_of(known, np.array([0, 1, 1]), np.array([0, 2, 5]), 3)
    np.testing.assert_array_equal(found["f"][:, :, 0], [[0, 1, 2], [11, 12, 13], [14, 15, 16]])
    np.testing.assert_array_equal(found["s"][:, :, 0], [[0, 1, 2], [2, 3, 4], [5, 6, 7]])
    assert found["p"].shape == (3, 1, 1)
    both = joined([known, {"f": np.zeros((1, 9, 1)), "s": known["s"], "p": np.zeros((1, 1, 1))}], [2, 1])
    assert both["f"].shape == (3, 9, 1)
    # What all files share stays one.
    assert both["s"].shape == (1, 9, 1)
    assert both["p"].ravel().tolist() == [1, 1, 0]


def test_cycles_that_dates_span_are_told_and_go_on() -> None:
    months = np.datetime64("1991-01") + np.arange(36)
    found = cycles_of(months.astype("M8[D]"))
    assert sorted(found) == ["year_cos", "year_sin"]
    np.testing.assert_allclose(found["year_sin"] ** 2 + found["year_cos"] ** 2, 1, atol=1e-6)
    hours = np.datetime64("2020-03-01T00") + np.arange(48)
    assert sorted(cycles_of(hours)) == ["day_cos", "day_sin"]
    with pytest.raises(EnmaError, match="no year"):
        cycles_of(np.datetime64("2020-03-01") + np.arange(40))
    all_hours = turns_of(np.datetime64("2020-03-01T00") + np.arange(60))
    longer = prolonged({name: found[None, :48, None] for name, found in all_hours.items()}, 60)
    for name, values in longer.items():
        np.testing.assert_allclose(values[0, :, 0], all_hours[name], atol=1e-4)


def test_a_file_holds_drivers_of_every_kind(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    known = {
        "nu": np.array([0.25, 0.5, 0.75], np.float32).reshape(3, 1, 1),
        "series": rng.normal(size=(1, 12, 1)).astype(np.float32),
        "each": rng.normal(size=(3, 8, 1)).astype(np.float32),
        "map": rng.normal(size=(1, 1, 16)).astype(np.float32),
        "force": rng.normal(size=(3, 8, 16)).astype(np.float32),
    }
    path = save(tmp_path / "a.h5", advected(3), columns={"nu": known["nu"].ravel()}, known=known)
    data = read(path)
    assert data.channels == ("u",)
    assert set(data.known) == set(known)
    for name, values in known.items():
        # A series may be longer than the fields, for forecasts.
        np.testing.assert_array_equal(data.known[name], values)
    assert describe(path)["known"] == ["nu", "series", "each", "map", "force"]
    again = read(write_fields(tmp_path / "b.h5", data.rows([2, 0]), name="b"))
    np.testing.assert_array_equal(again.known["force"], known["force"][[2, 0]])
    np.testing.assert_array_equal(again.known["nu"].ravel(), [0.75, 0.25])
    np.testing.assert_array_equal(again.known["map"], known["map"])
    assert windows(data, 4, 4).known["each"].shape == (6, 4, 1)


def test_what_a_file_does_not_mark_is_asked_for_by_name(tmp_path: Path) -> None:
    u, v = advected(3), advected(3, seed=1)
    path = save(tmp_path / "a.h5", u, v, columns={"nu": np.arange(3.0)})
    assert read(path).known == {}
    data = read(path, known=["nu", "v"])
    assert data.channels == ("u",)
    np.testing.assert_array_equal(data.known["v"], v)
    assert data.known["nu"].shape == (3, 1, 1)
    with pytest.raises(EnmaError, match=r"'w'.*nu, u, v"):
        read(path, known=["w"])


def dataset(tmp_path: Path, **more: object) -> Path:
    xarray = pytest.importorskip("xarray", reason="needs the [store] extra")
    pytest.importorskip("h5netcdf", reason="needs the [store] extra")
    rng = np.random.default_rng(0)
    variables = {
        "sst": (("time", "lat", "lon"), rng.normal(size=(30, 5, 6))),
        "depth": (("lat", "lon"), rng.normal(size=(5, 6))),
        "wind": (("time",), rng.normal(size=30)),
        "heat": (("lon", "time", "lat"), rng.normal(size=(6, 30, 5))),
        **more,
    }
    coords = {
        "time": np.datetime64("2000-01-15") + (30.4375 * np.arange(30)).astype("m8[D]"),
        "lat": [40, 35, 30, 25, 20],
        "lon": np.arange(6) * 5.0,
    }
    path = tmp_path / "a.nc"
    xarray.Dataset(variables, coords).to_netcdf(path, engine="h5netcdf")
    return path


def test_names_of_axes_say_what_a_variable_varies_over(tmp_path: Path) -> None:
    xarray = pytest.importorskip("xarray", reason="needs the [store] extra")
    path = dataset(tmp_path)
    data = imported(path, ImportOptions(known=("depth", "wind", "heat", "time"), crop={"x": (1, 4), "time": (2, 28)}))
    assert data.channels == ("sst",)
    shapes = {name: values.shape for name, values in data.known.items()}
    assert shapes == {
        "depth": (1, 1, 3, 5),
        "wind": (1, 26, 1, 1),
        "heat": (1, 26, 3, 5),
        "year_sin": (1, 26, 1, 1),
        "year_cos": (1, 26, 1, 1),
    }
    with xarray.open_dataset(path, engine="h5netcdf") as source:
        # Latitudes ascend now.
        expected = source["heat"].transpose("time", "lon", "lat").to_numpy()[2:28, 1:4, ::-1]
        np.testing.assert_allclose(data.known["heat"][0], expected, rtol=1e-6)
        np.testing.assert_allclose(data.known["depth"][0, 0], source["depth"].to_numpy().T[1:4, ::-1], rtol=1e-6)
    with pytest.raises(EnmaError, match="'salt'"):
        imported(path, ImportOptions(known=("salt",)))


def test_arrays_are_told_by_their_names(tmp_path: Path) -> None:
    u = advected(3)
    np.save(tmp_path / "a.npy", u)
    nu, force = np.arange(3.0), np.random.default_rng(0).normal(size=(8, 16)).astype(np.float32)
    axes = {"axes": ("trajectory", "time", "x"), "dt": 0.05, "spacing": (1.0,)}
    data = read(import_fields(tmp_path / "a.npy", tmp_path / "a.h5", known={"nu": nu, "f": force}, **axes))
    np.testing.assert_array_equal(data.known["nu"].ravel(), nu)
    np.testing.assert_array_equal(data.known["f"], force[None])
    np.savez(tmp_path / "b.npz", u=u, nu=nu, f=force)
    again = imported(tmp_path / "b.npz", ImportOptions(known=("f", "nu"), **axes))
    assert again.channels == ("u",)
    np.testing.assert_array_equal(again.known["f"], force[None])


def test_land_is_a_mask_and_other_gaps_are_refused(tmp_path: Path) -> None:
    u = advected(3)
    u[..., 4:7] = np.nan
    path = save(tmp_path / "a.h5", u)
    data = read(path)
    assert data.mask is not None
    assert np.flatnonzero(~data.mask[:, 0]).tolist() == [4, 5, 6]
    assert describe(path)["masked"] == pytest.approx(3 / 16)
    np.testing.assert_allclose(describe(path)["rms"]["u"], np.sqrt(np.nanmean(u**2)), rtol=1e-6)
    u[1, 2, 9] = np.nan
    with pytest.raises(EnmaError, match="NaN"):
        read(save(tmp_path / "b.h5", u))
    np.save(tmp_path / "c.npy", u)
    options = ImportOptions(axes=("trajectory", "time", "x"), dt=0.05, spacing=(1.0,))
    with pytest.raises(EnmaError, match="not in"):
        imported(tmp_path / "c.npy", options)


def test_a_variable_may_be_the_mask(tmp_path: Path) -> None:
    sea = np.ones((5, 6))
    sea[0, :2] = 0
    changing = np.arange(900).reshape(30, 5, 6) // 7 % 2
    path = dataset(tmp_path, sea=(("lat", "lon"), sea), heat=(("time", "lat", "lon"), changing))
    data = read(import_fields(path, tmp_path / "a.h5", fields=("sst",), mask="sea"))
    assert data.known == {}
    assert data.mask is not None
    np.testing.assert_array_equal(data.mask[..., 0], sea.T[:, ::-1] != 0)
    with pytest.raises(EnmaError, match="heat changes"):
        imported(path, ImportOptions(mask="heat"))


def test_frames_to_come_have_drivers_alone(tmp_path: Path) -> None:
    sst = np.random.default_rng(0).normal(size=(30, 5, 6))
    sst[20:] = np.nan
    data = imported(
        dataset(tmp_path, sst=(("time", "lat", "lon"), sst)), ImportOptions(known=("heat",), fields=("sst",))
    )
    assert (data.u.shape[1], len(data.times), data.known["heat"].shape[1]) == (20, 20, 30)
    assert data.mask is None
