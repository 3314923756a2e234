"""Imports of what users have: single cases, climate files, components, environments by value, and large files."""

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

h5py = pytest.importorskip("h5py", reason="needs the [data] extra")

from enma_fast.data import write  # noqa: E402
from enma_fast.store.metadata import STATISTICS  # noqa: E402
from enma_fast.utils.names import ENDS  # noqa: E402

from ._importing import LINE, STEPS, N, T, X, Y, imported, refusal  # noqa: E402


@pytest.fixture
def pair(rng: np.random.Generator) -> np.ndarray:
    """Fields of two components, `[N, T, X, 2]`."""
    return rng.normal(size=(N, T, X, 2)).astype(np.float32)


def arrays(path: Path, **values: Any) -> Path:
    np.savez(path, **values)
    return path


def netcdf(path: Path, variables: dict[str, Any], coords: dict[str, Any] | None = None) -> Path:
    xr = pytest.importorskip("xarray", reason="needs the [store] extra")
    xr.Dataset(variables, coords).to_netcdf(path, engine="h5netcdf")
    return path


def test_one_frame_needs_dt(tmp_path: Path, line: np.ndarray) -> None:
    path = arrays(tmp_path / "case.npz", u=line[:1, :1], t=[0.3], x=np.arange(X))
    assert "--dt" in refusal(path, axes=LINE)
    data = imported(path, axes=LINE, dt=0.2)
    np.testing.assert_array_equal(data.u[..., 0], line[:1, :1])
    assert data.times.tolist() == [0.0]


def test_constant_channels_are_noted(tmp_path: Path, pair: np.ndarray, caplog: pytest.LogCaptureFixture) -> None:
    pair[..., 1] = 3
    np.save(path := tmp_path / "pair.npy", pair)
    options = {"axes": (*LINE, "channel"), **STEPS}
    assert imported(path, **options).channels == ("u_0", "u_1")
    advice = "u_1 is 3 everywhere; training refuses it unless it varies in other files, so leave it out: --fields u_0"
    assert caplog.messages[-1].endswith(advice)
    # The advice works.
    data = imported(path, fields=("u_0",), **options)
    np.testing.assert_array_equal(data.u, pair[..., :1])
    np.testing.assert_array_equal(imported(path, fields=("u_1", "u_0"), **options).u, pair[..., ::-1])
    assert "'u_2'" in refusal(path, fields=("u_2",), **options)
    assert "names u_0 twice" in refusal(path, fields=("u_0", "u_0"), **options)


def test_components_of_known_layouts(tmp_path: Path, pair: np.ndarray) -> None:
    path = write(
        tmp_path / "well.h5",
        name="flow",
        times=np.arange(T),
        coords=[np.arange(X)],
        periodic=[False],
        scalars={"environment": np.arange(N)},
        t0_fields={"p": pair[..., 0]},
        t1_fields={"v": pair},
        units={"v": "m/s"},
    )
    data = imported(path, fields=("v_1", "p"))
    np.testing.assert_array_equal(data.u, pair[..., ::-1])
    assert (data.channels, data.units) == (("v_1", "p"), {"v_1": "m/s", "p": "1"})
    assert "'w'" in refusal(path, fields=("w",))


def test_a_wrong_field_lists_all_others(tmp_path: Path, line: np.ndarray) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["h"], file["v"] = line, line
    assert "'w'" in refusal(tmp_path / "a.h5", axes=LINE, fields=("h", "w"), **STEPS)
    path = netcdf(tmp_path / "a.nc", {"h": (LINE, line), "v": (LINE, line)})
    assert "'w'" in refusal(path, fields=("w",), **STEPS)


def test_climate_files_have_bounds_and_static_fields(
    tmp_path: Path, line: np.ndarray, caplog: pytest.LogCaptureFixture
) -> None:
    lat = np.linspace(10.0, 50.0, X)
    variables = {
        "t2m": (("time", "lat", "lon"), line.transpose(1, 2, 0)),
        "lat_bnds": (("lat", "bnds"), np.stack([lat - 1, lat + 1], -1)),
        "time_bnds": (("time", "bnds"), np.zeros((T, 2))),
        "orog": (("lat", "lon"), line[:, 0].T),
    }
    coords = {
        "time": ("time", np.arange(T) * 1.0, {"bounds": "time_bnds"}),
        "lat": ("lat", lat, {"bounds": "lat_bnds"}),
        "lon": np.arange(N) * 1.0,
    }
    path = netcdf(tmp_path / "air.nc", variables, coords)
    data = imported(path)
    assert data.channels == ("t2m",)
    np.testing.assert_array_equal(data.u[0, ..., 0], line.transpose(1, 0, 2))
    assert any(text.endswith("without an axis of time, so left out: orog") for text in caplog.messages)
    assert "orog" in refusal(path, fields=("t2m", "orog"))


def test_levels_name_their_channels(tmp_path: Path, pair: np.ndarray) -> None:
    variables = {name: (("time", "level", "x"), pair[0].transpose(0, 2, 1)) for name in ("t", "q")}
    path = netcdf(tmp_path / "levels.nc", variables, {"time": np.arange(T), "level": [850.0, 500.0]})
    options = {"axes": ("time", "channel", "x"), "spacing": (1.0,)}
    assert imported(path, **options).channels == ("t_850", "t_500", "q_850", "q_500")
    assert imported(path, fields=("q_500",), **options).channels == ("q_500",)
    variables = {"t": variables["t"]}
    dates = np.array(["2000-01-01", "2000-01-02"], "datetime64[ns]")
    for levels in ([1.23456e-100, 1.23457e-100], dates):
        path = netcdf(tmp_path / "long.nc", variables, {"time": np.arange(T), "level": levels})
        assert imported(path, **options).channels == ("t_0", "t_1")
    path = netcdf(tmp_path / "text.nc", variables, {"time": np.arange(T), "level": ["low", "high"]})
    assert imported(path, **options).channels == ("low", "high")


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ({"x": "u"}, "channel x"),
        ({"environment": "u"}, "channel environment"),
        ({"trajectory": "u"}, "channel trajectory"),
        ({"u": "u", "u_mean": "u"}, "named u_mean"),
        ({"u": "u", "u_truth": "u"}, "named u_truth"),
        ({"u": "u", "realization": "nu"}, "parameter realization"),
        ({"u": "u", "u_mean": "nu"}, "--channels"),
    ],
)
def test_names_that_no_forecast_could_have(tmp_path: Path, line: np.ndarray, names: dict, said: str) -> None:
    each = {"u": line, "nu": np.arange(N) * 1.0}
    fields = {name: each[of] for name, of in names.items()}
    path = write(
        tmp_path / "names.h5",
        name="names",
        times=np.arange(T),
        coords=[np.arange(X)],
        periodic=[False],
        scalars={"environment": np.arange(N), **{name: v for name, v in fields.items() if v.ndim == 1}},
        t0_fields={name: v for name, v in fields.items() if v.ndim > 1},
    )
    assert said in refusal(path)
    assert {f"_{kind}" for kind in STATISTICS} <= set(ENDS)


def test_environments_by_several_columns_and_text(tmp_path: Path, line: np.ndarray) -> None:
    scenario = ["low", "high", "low", "low"]
    path = arrays(tmp_path / "a.npz", u=line, nu=[1, 1, 1, 2], forcing=[5, 6, 5, 5], scenario=scenario)
    data = imported(path, axes=LINE, environment="nu, forcing", **STEPS)
    assert data.environment.tolist() == [0, 1, 0, 2]
    assert (data.environment_by, sorted(data.parameters)) == (("nu", "forcing"), ["forcing", "nu"])
    text = imported(path, axes=LINE, environment="scenario", **STEPS)
    assert (text.environment[0] == text.environment[[2, 3]]).all()
    assert text.environment[0] != text.environment[1]
    variables = {"u": (("sample", "time", "x"), line[::-1]), "scenario": ("sample", scenario[::-1])}
    again = imported(netcdf(tmp_path / "a.nc", variables), environment="scenario", **STEPS)
    # The number of a text is the same in every file.
    np.testing.assert_array_equal(again.environment, text.environment[::-1])
    assert "'mu'" in refusal(path, axes=LINE, environment="nu,mu", **STEPS)


def test_a_missing_environment_is_refused(tmp_path: Path, line: np.ndarray) -> None:
    path = arrays(tmp_path / "a.npz", u=line, nu=[1, np.nan, 1, np.nan])
    said = refusal(path, axes=LINE, environment="nu", **STEPS)
    assert "nu is" in said


def test_the_axis_of_trajectories_may_be_a_parameter(tmp_path: Path, line: np.ndarray) -> None:
    viscosity = [0.5, 0.25, 0.125, 1.0]
    path = netcdf(tmp_path / "a.nc", {"u": (("viscosity", "time", "x"), line)}, {"viscosity": viscosity})
    data = imported(path, axes=LINE, environment="viscosity", **STEPS)
    assert data.environment.tolist() == [2, 1, 0, 3]
    assert data.parameters["viscosity"].tolist() == viscosity
    # Numbers of trajectories are none.
    path = netcdf(tmp_path / "b.nc", {"u": (("realization", "time", "x"), line)}, {"realization": np.arange(N)})
    assert not imported(path, **STEPS).parameters


@pytest.mark.parametrize("kind", ["npy", "nc"])
def test_a_part_of_a_large_file_is_read_alone(tmp_path: Path, rng: np.random.Generator, kind: str) -> None:
    whole = rng.normal(size=(40, 256, 256)).astype(np.float32)
    path, axes = tmp_path / f"large.{kind}", ("time", "x", "y")
    if kind == "npy":
        np.save(path, whole)
    else:
        netcdf(path, {"u": (axes, whole[:, ::-1])}, {"x": np.arange(256.0)[::-1], "y": np.arange(256.0)})
    options = {"axes": axes, "dt": 1.0, "crop": {"x": (0, 8), "y": (8, 24), "time": (2, 12)}}
    options |= {"spacing": (1.0,)} if kind == "npy" else {}
    # What is imported by the way is none of it.
    imported(path, **options)
    tracemalloc.start()
    try:
        data = imported(path, **options)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    np.testing.assert_array_equal(data.u[0, ..., 0], whole[2:12, :8, 8:24])
    assert peak < whole.nbytes / 3


def test_runs_are_in_the_order_of_their_numbers(tmp_path: Path, rng: np.random.Generator) -> None:
    runs = rng.normal(size=(12, T, X, Y, 1)).astype(np.float32)
    with h5py.File(tmp_path / "runs.h5", "w") as file:
        for i, run in enumerate(runs):
            file[f"{i}/data"] = run
            for axis, size in zip("txy", run.shape, strict=False):
                file[f"{i}/grid/{axis}"] = np.arange(size) * 1.0
    np.testing.assert_array_equal(imported(tmp_path / "runs.h5").u, runs)


def test_values_that_float32_cannot_hold(tmp_path: Path, line: np.ndarray) -> None:
    wide = line.astype(np.float64)
    path = tmp_path / "wide.npy"

    def said(values: np.ndarray) -> str:
        np.save(path, values)
        return refusal(path, axes=LINE, **STEPS)

    beyond = np.where(wide == wide.max(), 1e40, wide)
    assert said(beyond).endswith("u reaches 1e+40, and float32 ends at 3.4e+38; give it in larger units")
    assert "about 101325, which float32 rounds away; subtract the mean first" in said(101325 + 0.02 * np.sin(wide))
    assert "about 1e+09, which float32 rounds away; subtract the mean first" in said(1e9 + wide)
    assert "about 1e+09, which float32 rounds away" in said(10**9 + np.rint(3 * wide).astype(np.int64))
    assert "1 missing or infinite values" in said(np.where(wide == wide.max(), np.inf, wide))
    for values in (300 + wide, np.rint(9 * wide).astype(np.int16)):
        np.save(path, values)
        assert imported(path, axes=LINE, **STEPS).u.dtype == np.float32


@pytest.mark.parametrize(("mark", "missing"), [(np.int16(-99), True), (-99.0, True), (-99.5, False), (1e20, False)])
def test_whole_numbers_may_be_missing(tmp_path: Path, mark: Any, missing: bool) -> None:
    """Integers stand for missing values too, but only for those that they can hold."""
    values = np.arange(N * T * X, dtype=np.int16).reshape(N, T, X)
    values[1, 2, 3] = -99
    with h5py.File(tmp_path / "counts.h5", "w") as file:
        file["n"] = values
        file["n"].attrs["_FillValue"] = mark
    if missing:
        said = refusal(tmp_path / "counts.h5", axes=LINE, **STEPS)
        assert "n holds -99" in said
    else:
        np.testing.assert_array_equal(imported(tmp_path / "counts.h5", axes=LINE, **STEPS).u[..., 0], values)


def test_axes_of_one_place_are_none_of_space(tmp_path: Path, line: np.ndarray) -> None:
    dims, coords = ("sample", "time", "z", "lat", "lon"), {"time": np.arange(T), "lon": np.arange(X)}
    path = netcdf(tmp_path / "section.nc", {"u": (dims, line[:, :, None, None])}, coords | {"lat": [0.0], "z": [10.0]})
    data = imported(path)
    np.testing.assert_array_equal(data.u[..., 0], line)
    assert len(data.coords) == 1
    np.testing.assert_array_equal(imported(path, axes=("trajectory", "time", "z", "y", "x")).u, data.u)
    # A field of one place alone is none.
    assert "x has 1" in refusal(arrays(tmp_path / "place.npz", u=line[..., :1], x=[0.0], t=np.arange(T)), axes=LINE)


def test_spans_of_time_become_days(tmp_path: Path, line: np.ndarray) -> None:
    spans = np.arange(T) * np.timedelta64(6, "h")
    data = imported(arrays(tmp_path / "spans.npz", u=line, t=spans, x=np.arange(X)), axes=LINE)
    np.testing.assert_array_equal(data.times, 0.25 * np.arange(T))
    assert imported(netcdf(tmp_path / "spans.nc", {"u": (LINE, line)}, {"time": spans, "x": np.arange(X)})).times[
        1
    ] == pytest.approx(0.25)
    spans[2] = np.timedelta64("NaT")
    path = arrays(tmp_path / "spans.npz", u=line, t=spans, x=np.arange(X))
    assert "time" in refusal(path, axes=LINE)


def test_months_of_the_usual_calendar_are_counted(
    tmp_path: Path, line: np.ndarray, caplog: pytest.LogCaptureFixture
) -> None:
    """They have no one length, so xarray makes no dates of them."""
    time = ("time", np.arange(T), {"units": "months since 1990-01-01"})
    path = netcdf(tmp_path / "months.nc", {"u": (LINE, line)}, {"time": time, "x": np.arange(X)})
    data = imported(path)
    np.testing.assert_array_equal(data.times, np.arange(T))
    assert caplog.messages == [
        f"{path}: 'months since 1990-01-01' of time are no dates, and are taken as plain numbers"
    ]


def test_a_ring_with_a_place_given_twice_is_noted(
    tmp_path: Path, rng: np.random.Generator, caplog: pytest.LogCaptureFixture
) -> None:
    angle = np.linspace(0, 2 * np.pi, X + 1)
    phase = rng.normal(size=(N, T, 1))
    path = arrays(tmp_path / "ring.npz", u=np.sin(angle + phase), x=angle, t=np.arange(T))
    imported(path, axes=LINE)
    assert not caplog.messages
    assert imported(path, axes=LINE, periodic=("x",)).lengths == pytest.approx((2 * np.pi * (X + 1) / X,))
    said = f"x is periodic, and its last place has the values of the first; leave it out: --crop x=0:{X} --periodic x"
    assert caplog.messages == [f"{path}: {said}"]
    assert imported(path, axes=LINE, periodic=("x",), crop={"x": (0, X)}).lengths == pytest.approx((2 * np.pi,))
    # Fields between cells that are alike in a mirror have equal ends, and no place twice.
    middle = (np.arange(X) + 0.5) / X
    even = np.cos(2 * np.pi * middle) * phase
    imported(arrays(tmp_path / "even.npz", u=even, x=middle, t=np.arange(T)), axes=LINE, periodic=("x",))
    assert len(caplog.messages) == 1


def test_arrays_in_groups_are_said_to_be_there(tmp_path: Path, line: np.ndarray) -> None:
    with h5py.File(tmp_path / "tasks.h5", "w") as file:
        file["tasks/u"], file["scales/time"] = line, np.arange(T)
    said = "has no arrays at its root, only the groups scales, tasks; copy the arrays of one to the root of a file"
    assert said in refusal(tmp_path / "tasks.h5", axes=LINE)


@pytest.mark.parametrize("shape", [(0, T, X), (N, 0, X), (N, T, 0)])
def test_fields_without_values_are_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    said = refusal(
        arrays(tmp_path / "none.npz", u=np.zeros(shape), x=np.arange(shape[2]), t=np.arange(shape[1])), axes=LINE
    )
    assert "u has" in said


def test_fields_that_are_no_real_numbers_are_named_with_their_type(tmp_path: Path, line: np.ndarray) -> None:
    with h5py.File(tmp_path / "waves.h5", "w") as file:
        file["psi"], file["t"], file["x"] = line.astype(np.complex64), np.arange(T), np.arange(X)
    said = "has no field of two axes or more that are real numbers; it holds psi (complex64), time, x"
    assert refusal(tmp_path / "waves.h5", axes=LINE).endswith(said)
    assert "'psi'" in refusal(tmp_path / "waves.h5", fields=("psi",))
    path = netcdf(tmp_path / "ice.nc", {"ice": (LINE, line > 0)}, {"time": np.arange(T), "x": np.arange(X)})
    assert "real numbers" in refusal(path)


def test_trajectories_of_different_lengths_are_no_array(tmp_path: Path, line: np.ndarray) -> None:
    ragged = np.empty(2, dtype=object)
    ragged[:] = [line[0], line[1, :4]]
    np.save(tmp_path / "ragged.npy", ragged)
    for path in (tmp_path / "ragged.npy", arrays(tmp_path / "ragged.npz", u=ragged)):
        assert "one shape" in refusal(path, axes=LINE)
