"""Channels of histories and contexts, in files and arrays, are compared with the model's by name and unit."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import enma_fast
from enma_fast.data import FieldFile
from enma_fast.errors import EnmaError
from enma_fast.forecasting.channels import Channels
from enma_fast.forecasting.file_forecast import FileForecast
from enma_fast.forecasting.request import INITIAL_VALUE, ForecastRequest
from enma_fast.models.checkpoint import available, load_model, save_model
from enma_fast.models.envelope import Envelope

from .._tiny import CONFIGS, between_walls, model, random_model, waves

FEW = {"num_members": 1, "num_frames": 1}
REQUEST = ForecastRequest(num_members=1)
INITIAL = replace(REQUEST, task=INITIAL_VALUE)


def file_of(made, path, channels=("u", "v"), units=None) -> FieldFile:
    """Two trajectories of a model on a plane."""
    tok = made.config.codec
    fields = waves(2, 2, 8, tok).numpy()
    return FieldFile(
        path=Path(path),
        name="waves",
        u=fields if channels[0] != "v" else np.ascontiguousarray(fields[..., ::-1]),
        channels=tuple(channels),
        times=made.config.frame_interval * np.arange(8),
        coords=tuple(np.arange(n) * step for n, step in zip(tok.grid, tok.spacings, strict=True)),
        lengths=tok.lengths,
        periodic=tok.periodic,
        parameters={},
        environment=np.zeros(2, np.int64),
        units=units or {},
    )


def array_of(data: FieldFile, frames: int, trajectory: int = 0) -> xr.Dataset:
    axes = ("time", "x", "y")
    return xr.Dataset(
        {
            name: (axes, data.u[trajectory, :frames, ..., c], {"units": data.units.get(name, "1")})
            for c, name in enumerate(data.channels)
        }
    )


@pytest.fixture
def known(plane):
    """A model that knows names and units of its channels."""
    made = model("plane")
    made.envelope = Envelope.of(file_of(made, "train.h5").u, ("u", "v"), ("m s-1", "K"))
    return made


def test_units_are_kept_in_the_checkpoint(known, tmp_path):
    save_model(known, tmp_path)
    found = Channels.of_model(load_model(tmp_path))
    assert (found.names, found.units) == (("u", "v"), ("m s-1", "K"))
    (tmp_path / "domain.json").write_text(known.envelope.to_json().replace('"K"', '"K", "K"'))
    with pytest.raises(EnmaError, match=r"domain\.json"):
        Envelope.read(tmp_path / "domain.json")


def test_shipped_models_have_the_units_of_their_equations():
    for name in available():
        found = Channels.of_model(load_model(name))
        assert found.names
        assert found.units == ("1",) * len(found.names)


@pytest.mark.parametrize("channels", [("u", "v"), ("a", "b")])
def test_a_context_file_of_channels_in_another_order_is_refused(known, channels):
    data, other = file_of(known, "main.h5", channels), file_of(known, "context.h5", channels[::-1])
    FileForecast(known, data, INITIAL, replace(other, channels=channels)).check()
    with pytest.raises(EnmaError, match=r"context\.h5: its channels are"):
        FileForecast(known, data, INITIAL, other).check()


def test_a_context_file_is_named_as_the_main_one_where_the_model_knows_no_names(plane):
    data = file_of(plane, "main.h5")
    with pytest.raises(EnmaError, match=r"context\.h5: its channels are v, u; main\.h5 expects"):
        FileForecast(plane, data, INITIAL, file_of(plane, "context.h5", ("v", "u"))).check()
    with pytest.raises(EnmaError, match=r"context\.h5 has the channels a, b"):
        FileForecast(plane, data, INITIAL, file_of(plane, "context.h5", ("a", "b"))).check()


@pytest.mark.parametrize("given", ["known", "plane"])
def test_contexts_are_put_in_order(request, given):
    made = request.getfixturevalue(given)
    data, turned = file_of(made, "a.h5"), file_of(made, "b.h5", ("v", "u"))
    first = array_of(data, 1)
    expected = enma_fast.forecast(made, first, context=array_of(data, 8, 1), **FEW).numpy()
    np.testing.assert_array_equal(
        enma_fast.forecast(made, first, context=array_of(turned, 8, 1), **FEW).numpy(), expected
    )
    with pytest.raises(EnmaError, match="context has the channels a, b"):
        enma_fast.forecast(made, first, context=array_of(replace(data, channels=("a", "b")), 8), **FEW)


@pytest.mark.parametrize("argument", ["history", "context"])
def test_units_of_arrays_are_compared(known, caplog, argument):
    data = file_of(known, "a.h5")

    def forecast(units, **options):
        """One of the two inputs has units."""
        caplog.clear()
        given = {"history": array_of(data, 1), "context": array_of(data, 8, 1)}
        for name, unit in units.items():
            given[argument][name].attrs["units"] = unit
        enma_fast.forecast(known, **given, **FEW, **options)
        return caplog.text

    assert not forecast({"u": "metres/second", "v": "kelvin"})
    assert not forecast({})
    said = forecast({"v": "degC"})
    assert argument in said
    assert "v has the unit degC" in said
    assert "is K" in said
    with pytest.raises(EnmaError, match=f"{argument}: u has the unit km/h"):
        forecast({"u": "km/h"}, strict=True)


def test_units_of_files_are_compared(known, caplog):
    data = file_of(known, "main.h5", units={"u": "m/s", "v": "K"})
    other = replace(data, path=Path("context.h5"), units={"u": "m/s", "v": "degC"})
    FileForecast(known, data, INITIAL, data).check()
    assert not caplog.text
    for main, context in ((data, other), (other, data)):
        caplog.clear()
        FileForecast(known, main, INITIAL, context).check()
        assert caplog.text.count("context.h5: v has the unit degC, that of plane is K") == 1
        with pytest.raises(EnmaError, match=r"context\.h5: v has the unit degC"):
            FileForecast(known, main, replace(INITIAL, strict=True), context).check()


def test_contexts_have_the_units_of_the_history_where_the_model_knows_none(plane, caplog):
    data = file_of(plane, "main.h5", units={"v": "K"})
    FileForecast(plane, data, INITIAL, replace(data, path=Path("context.h5"), units={"u": "m", "v": "degC"})).check()
    assert [record.getMessage().count("degC") for record in caplog.records] == [1]


def test_a_unit_is_not_that_of_an_equation_without_one(caplog):
    made = load_model("wave-fast")
    history = enma_fast.data.read(enma_fast.data.shipped_file("wave", "test-in"), select=[0]).u[0, :3, ..., 0]
    for unit, warned in (("1", False), ("cm", True)):
        field = xr.DataArray(history, dims=("time", "x", "y"), name="height", attrs={"units": unit})
        enma_fast.forecast(made, field, **FEW)
        assert ("has the unit cm" in caplog.text) == warned


@pytest.mark.parametrize(
    ("given", "warned"),
    [(("temp", "v"), True), (("v", "T"), False), (("T", "v"), False), (None, False), (("temp",), False)],
)
def test_channels_of_other_names_are_listed(
    caplog: pytest.LogCaptureFixture, given: tuple[str, ...] | None, warned: bool
) -> None:
    Channels(of="a model", names=("T", "v")).places("history", given, None)
    assert [("temp, v" in text, "T, v" in text) for text in caplog.messages] == [(True, True)] * warned
    caplog.clear()
    Channels(of="a model").places("history", given, None)
    assert not caplog.records, "the model does not know its channels"


@pytest.mark.parametrize("axis", [0, 1])
def test_uneven_positions_are_refused_on_open_axes_too(axis):
    made = random_model(between_walls(CONFIGS["plane"]))
    data = file_of(made, "uneven.h5")
    fields = xr.DataArray(data.u[0, :3], dims=("time", "x", "y", "channel"))
    even = dict(zip("xy", data.coords, strict=True))
    name, x = "xy"[axis], data.coords[axis]
    uneven = x**2 / x[-1]
    enma_fast.forecast(made, fields.assign_coords(even), **FEW)
    with pytest.raises(EnmaError, match=f"history: the coordinate {name} is not evenly spaced"):
        enma_fast.forecast(made, fields.assign_coords(even | {name: uneven}), **FEW)
    with pytest.raises(EnmaError, match=f"context: the coordinate {name} is not evenly spaced"):
        enma_fast.forecast(made, fields[:1], context=fields.assign_coords(even | {name: uneven}), **FEW)
    coords = tuple(uneven if i == axis else values for i, values in enumerate(data.coords))
    FileForecast(made, data, REQUEST).check()
    with pytest.raises(EnmaError, match=rf"uneven\.h5: {name} is not evenly spaced"):
        FileForecast(made, replace(data, coords=coords), REQUEST).check()
    # Single precision far from 0 is near enough.
    far = (x + 1000 * x[-1]).astype(np.float32)
    enma_fast.forecast(made, fields.assign_coords(even | {name: far}), **FEW)
