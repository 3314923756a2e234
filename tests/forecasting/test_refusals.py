"""A refusal names the argument or the option by which the same data can be forecast from."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from enma_fast.data import FieldFile
from enma_fast.errors import EnmaError
from enma_fast.forecasting.api import forecast
from enma_fast.forecasting.file_forecast import FileForecast
from enma_fast.forecasting.request import INITIAL_VALUE, ForecastRequest
from enma_fast.models.covariance import FieldCovariance

from .._tiny import model, waves


@pytest.fixture(scope="module")
def reading_grids():
    made = model("relative")
    tok = made.config.codec
    made.covariance = FieldCovariance.of(waves(6, 2, 8, tok).numpy(), lengths=tok.lengths, periodic=tok.periodic)
    return made


def test_a_refusal_names_the_arguments_of_values_at_other_points(reading_grids):
    tok = reading_grids.config.codec
    half = np.zeros((3, *(n // 2 for n in tok.grid), tok.field_channels), np.float32)
    with pytest.raises(EnmaError, match=r"^history has shape .* points=.* query="):
        forecast(reading_grids, half)
    with pytest.raises(EnmaError, match=r"^context has shape .* context_points=.* query="):
        forecast(reading_grids, np.zeros((1, *tok.grid, tok.field_channels), np.float32), context=half)
    with pytest.raises(EnmaError, match=r"^history has the dims \(time, point, channel\).* points="):
        forecast(reading_grids, xr.DataArray(half.reshape(3, -1, 1), dims=("time", "point", "channel")))
    with pytest.raises(EnmaError, match="give a value for each of `points`"):
        forecast(reading_grids, half.reshape(3, -1, tok.field_channels), points=np.zeros((5, tok.dims)))
    # A model of whole grids has no such arguments.
    with pytest.raises(EnmaError) as refused:
        forecast(model("relative"), half)
    assert "points=" not in str(refused.value)


@pytest.mark.parametrize(
    ("changes", "option"),
    [
        ({"grid": True}, r"\.csv"),
        ({"lengths": (1.0,)}, "--spacing"),
        ({"periodic": (False,)}, "--periodic"),
        ({"times": np.arange(8) * 0.1}, "--dt"),
    ],
)
def test_a_refusal_of_a_file_names_the_option(reading_grids, changes, option):
    tok = reading_grids.config.codec
    data = FieldFile(
        path=Path("fields.h5"),
        name="fields",
        u=waves(2, 1, 8, tok).numpy(),
        channels=("u",),
        times=reading_grids.config.frame_interval * np.arange(8),
        coords=(np.arange(tok.grid[0]) * tok.spacings[0],),
        lengths=tok.lengths,
        periodic=tok.periodic,
        parameters={},
        environment=None,
    )
    FileForecast(reading_grids, data, ForecastRequest()).check()
    if changes.pop("grid", False):
        changes = {"u": data.u[:, :, ::2], "coords": (data.coords[0][::2],)}
    with pytest.raises(EnmaError, match=rf"^fields\.h5: .*{option}"):
        FileForecast(reading_grids, replace(data, **changes), ForecastRequest()).check()
    with pytest.raises(EnmaError, match=r"^fields\.h5: .*--context"):
        FileForecast(reading_grids, data, ForecastRequest(task=INITIAL_VALUE)).check()
