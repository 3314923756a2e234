"""What files say of their values by convention is kept: text, positions that descend, valid ranges, names."""

import hashlib
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

h5py = pytest.importorskip("h5py", reason="needs the [data] extra")
xr = pytest.importorskip("xarray", reason="needs the [store] extra")


from ._importing import LINE, STEPS, N, T, X, imported, refusal  # noqa: E402


def saved(path: Path, made: Any, kind: str) -> Path:
    """An xarray data set as a file of a kind."""
    if kind == "nc":
        made.to_netcdf(path.with_suffix(".nc"), engine="h5netcdf")
        return path.with_suffix(".nc")
    made.to_zarr(path.with_suffix(".zarr"), consolidated=False, zarr_format=int(kind), mode="w")
    return path.with_suffix(".zarr")


KINDS = ("nc", "2", "3")


def with_text(folder: Path, line: np.ndarray, kind: str, name: str, text: np.ndarray) -> Path:
    """A file of a kind with the line and a column of text."""
    path = folder / f"{name}.{kind}"
    if kind in KINDS:
        made = xr.Dataset({"u": (LINE, line, {"units": "m/s"}), name: ("trajectory", text)})
        return saved(path, made, kind)
    if kind == "npz":
        np.savez(path, u=line, **{name: text.astype("U") if text.dtype == object else text})
        return path
    with h5py.File(path, "w") as file:
        file["u"] = line
        file["u"].attrs["units"] = "m/s"
        file[name] = text if text.dtype.kind == "S" else text.astype(h5py.string_dtype())
    return path


@pytest.mark.each_value
@pytest.mark.parametrize("text", [object, "U", "S"])
@pytest.mark.parametrize("kind", [*KINDS, "h5", "npz"])
@pytest.mark.filterwarnings("ignore:The data type")
def test_text_of_any_format_gives_the_same_environments(tmp_path: Path, line: np.ndarray, kind: str, text: Any) -> None:
    names = np.array(["calm", "windy", "calm", "storm"], dtype=text)
    options = {"axes": LINE, **STEPS}
    data = imported(with_text(tmp_path, line, kind, "environment", names), **options)
    assert data.environment.tolist() == [0, 2, 0, 1]
    assert data.units == {"u": "1" if kind == "npz" else "m/s"}
    asked = imported(with_text(tmp_path, line, kind, "wind", names), environment="wind", **options)
    hashes = {name: hashlib.blake2b(name.encode(), digest_size=6).digest() for name in ("calm", "windy", "storm")}
    expected = [int.from_bytes(hashes[name]) for name in ("calm", "windy", "calm", "storm")]
    assert (asked.environment.tolist(), asked.environment_by) == (expected, ("wind",))


@pytest.mark.each_value
@pytest.mark.parametrize("kind", [*KINDS, "npz"])
@pytest.mark.parametrize("missing", [False, True])
def test_a_step_that_is_given_mirrors_no_field(tmp_path: Path, line: np.ndarray, kind: str, missing: bool) -> None:
    x = np.arange(X)[::-1] * 3.0
    if missing:
        x[2] = np.nan
    path = tmp_path / "turned"
    if kind == "npz":
        np.savez(path := path.with_suffix(".npz"), u=line[..., ::-1], x=x, t=np.arange(T))
    else:
        path = saved(path, xr.Dataset({"u": (LINE, line[..., ::-1])}, {"x": x, "time": np.arange(T)}), kind)
    data = imported(path, axes=LINE, spacing=(0.5,))
    np.testing.assert_array_equal(data.u[..., 0], line)
    np.testing.assert_allclose(data.coords[0], 0.5 * np.arange(X))
    part = imported(path, axes=LINE, spacing=(0.5,), crop={"x": (1, 4)})
    np.testing.assert_array_equal(part.u[..., 0], line[..., 1:4])


DATES = np.datetime64("2000-01-01", "ns") + np.arange(T) * np.timedelta64(1, "D")


@pytest.mark.parametrize("times", [np.arange(T) * 1.0, np.arange(T).astype(np.uint8), DATES])
def test_time_never_runs_backwards(tmp_path: Path, line: np.ndarray, times: np.ndarray) -> None:
    made = xr.Dataset({"u": (LINE, line)}, {"time": times[::-1], "x": np.arange(X)})
    for kind in ("nc", "3"):
        assert "time" in refusal(saved(tmp_path / "back", made, kind), dt=0.5)
    # Months that are counted anew each year, or not at all, may be given a step.
    for known in ([3, 4, 1, 2, 3, 4], [0] * T):
        made = xr.Dataset({"u": (LINE, line)}, {"time": known, "x": np.arange(X)})
        np.testing.assert_allclose(imported(saved(tmp_path / "back", made, "nc"), dt=0.5).times, 0.5 * np.arange(T))


@pytest.mark.parametrize(("axis", "other"), [("t", "time"), ("x", "lon"), ("time", "frame")])
def test_positions_that_are_given_twice_are_refused(tmp_path: Path, line: np.ndarray, axis: str, other: str) -> None:
    known = {name: np.arange(9) for name in dict.fromkeys(("x" if axis != "x" else "t", axis, other))}
    np.savez(tmp_path / "twice.npz", u=line, **known)
    with h5py.File(tmp_path / "twice.h5", "w") as file:
        for name, values in (("u", line), *known.items()):
            file[name] = values
    for ending in ("npz", "h5"):
        said = refusal(tmp_path / f"twice.{ending}", axes=LINE)
        assert {axis, other} <= set(said.replace(",", " ").split())


@pytest.mark.parametrize("kind", KINDS)
def test_each_field_has_its_own_positions(tmp_path: Path, line: np.ndarray, kind: str) -> None:
    coords = {"time": np.arange(T), "x": np.arange(X) * 2.0, "lon": np.arange(X) * 5.0}
    fields = {"u": (("time", "x"), line[0]), "v": (("time", "lon"), line[1])}
    path = saved(tmp_path / "two", xr.Dataset(fields, coords), kind)
    assert imported(path, fields=("u",)).coords[0][1] == 2.0
    assert imported(path, fields=("v",)).coords[0][1] == 5.0


VALID = {
    "range": ({"valid_range": np.float32([-9, 9])}, {}),
    "least": ({"valid_min": np.float32(-9)}, {}),
    "most": ({"valid_max": np.float32(9)}, {}),
    "packed": ({"valid_range": np.int16([-900, 900])}, {"scale_factor": 0.01, "dtype": "i2"}),
    "turned": ({"valid_max": np.int16(1000), "valid_min": np.int16(-1000)}, {"scale_factor": -0.009, "dtype": "i2"}),
    "moved": ({"valid_max": np.int16(-100)}, {"scale_factor": 0.01, "add_offset": 10.0, "dtype": "i2"}),
    "unpacked": ({"valid_range": np.float64([-9, 9])}, {"scale_factor": 0.01, "dtype": "i2"}),
}


@pytest.mark.each_value
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", VALID)
def test_values_outside_the_valid_range_are_missing(tmp_path: Path, line: np.ndarray, kind: str, case: str) -> None:
    about, encoding = VALID[case]
    if kind != "nc":
        about = {name: np.asarray(value).tolist() for name, value in about.items()}
        encoding = {name: np.dtype(value) if name == "dtype" else value for name, value in encoding.items()}
    # The ends are valid.
    u = np.round(line, 2) % 2
    u[0, 0, 0], u[1, 1, 1] = -9, 9
    made = xr.Dataset({"u": (LINE, u, about)}, {"time": np.arange(T), "x": np.arange(X)})
    made.u.encoding.update(encoding)
    path = saved(tmp_path / "valid", made, kind)
    np.testing.assert_allclose(imported(path).u[..., 0], u, atol=0.01)
    u[2, 3, 4] = -20 if case == "least" else 20
    path = saved(tmp_path / "valid", made, kind)
    assert "u holds" in refusal(path)
    # Of no moment where it is not kept.
    imported(path, crop={"time": (0, 3)})


def test_valid_ranges_of_plain_hdf5_and_of_columns(tmp_path: Path, line: np.ndarray) -> None:
    with h5py.File(tmp_path / "valid.h5", "w") as file:
        file["u"] = line
        file["u"].attrs["valid_max"] = np.float32(line.max() - 0.01)
    assert "u holds" in refusal(tmp_path / "valid.h5", axes=LINE, **STEPS)
    with h5py.File(tmp_path / "valid.h5", "r+") as file:
        file["u"].attrs["valid_max"] = np.float32(line.max())
    imported(tmp_path / "valid.h5", axes=LINE, **STEPS)
    made = xr.Dataset({"u": (LINE, line)}, {"time": np.arange(T), "x": np.arange(X)})
    made["nu"] = ("trajectory", np.array([1, 2, 99, 1]), {"valid_max": 10})
    path = saved(tmp_path / "valid", made, "nc")
    assert "nu is" in refusal(path, environment="nu")
    assert not imported(path).parameters


def test_flags_without_a_sign_have_valid_ranges(tmp_path: Path, line: np.ndarray) -> None:
    values = np.arange(N * T * X).reshape(line.shape).astype(np.uint8)
    about = {"_Unsigned": "true", "valid_range": np.int8([0, -1])}
    made = xr.Dataset({"u": (LINE, values.view(np.int8), about)}, {"time": np.arange(T), "x": np.arange(X)})
    np.testing.assert_array_equal(imported(saved(tmp_path / "flags", made, "nc")).u[..., 0], values)


@pytest.mark.parametrize(
    ("time", "x", "scale"),
    [
        (np.arange(T), [0, 1, 2, np.inf, 4, 5, 6, 7], 1.0),
        ([0, np.inf, -np.inf, 1, 2, 3], np.arange(X), 1.0),
        (np.arange(T), np.zeros(X), 1.0),
        (np.arange(T), np.linspace(-1.7e308, 1.7e308, X), 1.0),
        (np.arange(T), np.arange(X), 1e300),
        (np.arange(T), np.arange(X), np.inf),
    ],
)
def test_a_refusal_is_one_line_without_warnings(
    tmp_path: Path, line: np.ndarray, time: Any, x: Any, scale: float
) -> None:
    with np.errstate(all="ignore"):
        made = xr.Dataset({"u": (LINE, line * scale)}, {"time": np.array(time, float), "x": np.array(x, float)})
    np.savez(tmp_path / "odd.npz", u=made.u, time=made.time, x=made.x)
    path = saved(tmp_path / "odd", made, "nc")
    with warnings.catch_warnings(), np.errstate(all="warn"):
        warnings.simplefilter("error")
        refusal(path)
        refusal(tmp_path / "odd.npz", axes=LINE)


@pytest.mark.parametrize("name", [".", "a/b", "../../p", "__p", "a\nb"])
def test_columns_are_refused_by_names_that_cannot_be_stored(tmp_path: Path, line: np.ndarray, name: str) -> None:
    with h5py.File(tmp_path / "names.h5", "w") as file:
        file["u"] = line
    path = tmp_path / "names.npz"
    np.savez(path, **{"u": line, name: np.arange(N) * 1.0})
    assert "parameter" in refusal(path, axes=LINE, **STEPS)


@pytest.mark.parametrize("unit", ["K\nerror: no", "\x1b[31mK", "m" * 100_000])
def test_units_that_are_no_short_text_are_left_out(
    tmp_path: Path, line: np.ndarray, unit: str, caplog: pytest.LogCaptureFixture
) -> None:
    made = xr.Dataset({"u": (LINE, line, {"units": unit})}, {"time": np.arange(T), "x": np.arange(X)})
    path = saved(tmp_path / "units", made, "3")
    assert imported(path).units == {"u": "1"}
    assert [record.getMessage().isprintable() for record in caplog.records] == [True]
