"""Masked values and the numbers that stand for missing ones are no observations, for every reader."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from enma_fast import forecast
from enma_fast.errors import EnmaError

from .._tiny import model, waves

xr = pytest.importorskip("xarray", reason="needs the [store] extra")

FILL = -9999.0


@pytest.fixture(scope="module")
def line():
    return model("relative")


@pytest.fixture(scope="module")
def fields(line):
    return waves(1, 2, 3, line.config.codec).numpy()


@pytest.fixture
def holed(fields):
    """The same with two values missing."""
    made = fields.copy()
    made[1, 2, 3, 0] = made[1, 2, 4, 0] = FILL
    return made


def refused(line: Any, history: Any, **keywords: Any) -> str:
    with pytest.raises(EnmaError) as caught:
        forecast(line, history, num_members=1, num_frames=1, **keywords)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_masked_array_of_numpy_is_refused(line, fields, holed):
    masked = np.ma.masked_equal(holed, FILL)
    assert refused(line, masked) == (
        "history is masked, 2 of 192 values are missing, first at (1, 2, 3, 0); "
        "fill them, for example by interpolation, or leave them out"
    )
    assert refused(line, fields[:, :1], context=masked).startswith("context is masked, 2 of 192 values are missing")
    # Nothing is missing where the mask hides nothing.
    for mask in (np.ma.nomask, np.zeros(fields.shape, bool)):
        found = forecast(line, np.ma.array(fields, mask=mask), num_members=1, num_frames=1).numpy()
        np.testing.assert_array_equal(found, forecast(line, fields, num_members=1, num_frames=1).numpy())


def test_xarray_with_missing_values_is_refused(line, holed):
    dims = ("trajectory", "time", "x", "channel")
    masked = xr.DataArray(np.ma.masked_equal(holed, FILL), dims=dims)
    assert "not finite, first in trajectory 1, frame 2" in refused(line, masked)
    for name in ("_FillValue", "missing_value"):
        raw = xr.DataArray(holed, dims=dims, attrs={name: np.float32(FILL)})
        said = "history holds -9999.0, the number of a missing value, first at (1, 2, 3, 0)"
        assert refused(line, raw).startswith(said)
        assert refused(line, raw.isel(channel=0).to_dataset(name="u")).startswith(said.replace(", 0)", ")"))


def test_netcdf_files_with_fill_values_are_refused(line, holed, tmp_path: Path):
    netcdf = pytest.importorskip("netCDF4")
    with netcdf.Dataset(tmp_path / "a.nc", "w") as file:
        for name, size in zip(("trajectory", "time", "x", "channel"), holed.shape, strict=True):
            file.createDimension(name, size)
        for name, options in (("filled", {"fill_value": FILL}), ("unwritten", {})):
            variable = file.createVariable(name, "f4", ("trajectory", "time", "x", "channel"), **options)
            variable.set_auto_mask(False)
            variable[:] = (
                np.where(holed == FILL, netcdf.default_fillvals["f4"], holed) if name == "unwritten" else holed
            )
    with netcdf.Dataset(tmp_path / "a.nc") as file:
        for name in ("filled", "unwritten"):
            variable = file[name]
            assert refused(line, variable).startswith("history is masked, 2 of 192 values are missing")
            assert refused(line, variable[:]).startswith("history is masked, 2 of 192 values are missing")
            variable.set_auto_mask(False)
            assert "the number of a missing" in refused(line, variable)
    for options in ({}, {"mask_and_scale": False}):
        with xr.open_dataset(tmp_path / "a.nc", engine="netcdf4", **options) as opened:
            for name in ("filled", "unwritten"):
                assert ("not finite" if name == "filled" and not options else "the number of a missing") in refused(
                    line, opened[name]
                )


def test_a_masked_coordinate_is_refused():
    points = model("points")
    given = np.ma.masked_less(np.linspace(0, 1, 5)[:, None], 0.2)
    with pytest.raises(EnmaError, match="query is masked, 1 of 5 values are missing"):
        forecast(points, waves(1, 1, 3, points.config.codec).numpy(), query=given)
