"""Labels of observed fields in xarray: kept where it holds for a forecast, refused where it contradicts the model."""

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from enma_fast.errors import EnmaError
from enma_fast.forecasting.api import forecast
from enma_fast.forecasting.members import sample_fields
from enma_fast.models.codecs.interpolation import grid_points

from .._labelled import INTERVAL, labelled
from .._tiny import model


def further(history):
    """With units, and coordinates that a simulation would give."""
    return history.assign_attrs(units="m s-1").assign_coords(
        viscosity=("trajectory", [0.1, 0.4], {"units": "m2 s-1"}),
        run=5,
        wall=("x", np.arange(history.sizes["x"]) > 20),
        step=("time", np.arange(history.sizes["time"])),
    )


@pytest.mark.parametrize("kind", ["dataarray", "dataset"])
def test_units_and_further_coordinates_are_kept(line, kind):
    history = further(labelled(line, 3))
    if kind == "dataset":
        history = history.to_dataset("channel")
        history["p"].attrs["units"] = "m s-1"
    ensemble = forecast(line, history, num_members=3)
    for made, axis in (
        (ensemble.values, "realization"),
        (ensemble.mean(), None),
        (ensemble.quantile([0.1]), "quantile"),
    ):
        one = made["p"] if kind == "dataset" else made
        assert one.attrs["units"] == "m s-1"
        assert one["viscosity"].to_numpy().tolist() == [0.1, 0.4]
        assert one["viscosity"].attrs == {"units": "m2 s-1"}
        assert one["run"].item() == 5
        assert one["wall"].dims == ("x",)
        # A coordinate along the observed frames does not hold for the forecast ones.
        assert "step" not in one.coords
        assert axis is None or axis in one.dims
    share = ensemble.exceedance(0.0)
    assert (share["p"] if kind == "dataset" else share).attrs["units"] == "1"
    selected = ensemble.sel(trajectory=9).values
    assert selected["viscosity"].item() == 0.4
    assert ensemble.sel(trajectory=[9]).values["viscosity"].to_numpy().tolist() == [0.4]
    assert selected["trajectory"].item() == 9


def test_coordinates_that_cannot_be_kept_are_left_out(line):
    """Those of the observed points, those of several levels, and those with the name of a channel."""
    made = model("points")
    options = made.config.codec
    places = [3, 17, 8, 30, 21]
    where = grid_points(options)[places]
    history = labelled(made, 3).isel(x=places).rename(x="point").drop_vars("point")
    history = history.assign_coords(x=("point", where[:, 0].numpy()), station=("point", list("abcde")), depth=2.0)
    for query in (where.flip(0), where[:2], None):
        values = forecast(made, history, points=where, query=query, num_members=2).values
        assert "station" not in values.coords
        assert values["depth"].item() == 2.0
        if query is not None:
            np.testing.assert_array_equal(values["x"], query[:, 0])
        else:
            assert "x" not in values.coords
    history = labelled(line, 3)
    index = xr.Coordinates.from_pandas_multiindex(
        pd.MultiIndex.from_tuples([(1, 2), (3, 4)], names=["re", "pr"]), "trajectory"
    )
    values = (
        forecast(line, history.drop_vars("trajectory").assign_coords(index), num_members=2).sel(trajectory=1).values
    )
    assert values["trajectory"].item() == 1
    clash = history.assign_coords(p=("trajectory", [0.5, 0.7]))
    assert set(forecast(line, clash, num_members=2).to_xarray().data_vars) == {"p"}


def test_a_generated_trajectory_has_the_times_of_its_context(line):
    times = np.linspace(1 / 3, 1 / 3 + 7 * INTERVAL, 8)
    context = labelled(line, 8).assign_coords(time=times)
    ensemble = forecast(line, None, context=context, num_members=2, num_frames=10)
    np.testing.assert_array_equal(ensemble.times[:8], times)
    np.testing.assert_allclose(np.diff(ensemble.times), INTERVAL, rtol=1e-9)
    assert context.sel(time=ensemble.values["time"][:8]).sizes["time"] == 8


def test_points_that_contradict_each_other_are_refused():
    made = model("points")
    options = made.config.codec
    places = [3, 17, 8, 30, 21]
    where = grid_points(options)[places]
    history = labelled(made, 3).isel(x=places).rename(x="point").drop_vars("point")
    history = history.assign_coords(x=("point", where[:, 0].numpy()))
    for given in (where, where.numpy(), where.numpy().astype(np.float64)):
        forecast(made, history, points=given, num_members=1)
    with pytest.raises(EnmaError, match=r"^history: its coordinate x "):
        forecast(made, history, points=where.flip(0), num_members=1)
    with pytest.raises(EnmaError, match=r"query is no array of numbers \(.*\); \[points, 1\] is expected"):
        forecast(made, history, points=where, query=[["a"]], num_members=1)
    rows = xr.DataArray(where.numpy(), dims=("point", "axis"))
    np.testing.assert_array_equal(
        forecast(made, history, points=rows, num_members=1).numpy(),
        forecast(made, history, points=where, num_members=1).numpy(),
    )


@pytest.mark.parametrize("kind", ["dataarray", "dataset"])
def test_a_stop_goes_by_the_names_of_its_mask(line, kind):
    history = labelled(line, 3)
    history = history.to_dataset("channel") if kind == "dataset" else history.isel(channel=0, drop=True)

    def stop(number, frame, turned=False):
        mask = frame.max("x") > 0
        mask = mask & (mask["realization"] == 1) & (mask["trajectory"] == 9)
        return mask.transpose("realization", "trajectory") if turned else mask

    # Two of each, so that only the names tell the axes apart.
    straight = forecast(line, history, num_members=2, stop=stop).numpy()
    turned = forecast(line, history, num_members=2, stop=lambda number, frame: stop(number, frame, True)).numpy()
    np.testing.assert_array_equal(straight, turned)
    assert np.isnan(straight).any((2, 3, 4)).tolist() == [[False, False], [False, True]]
    with pytest.raises(EnmaError, match=r"stop returned the dims \(realization\); expected are trajectory,"):
        forecast(line, history, num_members=2, stop=lambda number, frame: (frame > 0).any(["x", "trajectory"]))


def test_time_is_one_axis_that_increases(line):
    history = labelled(line, 3)
    for wrong, message in (
        (history.isel(time=[2, 1, 0]), r"history: the coordinate time must increase; sort it: \.sortby\('time'\)"),
        (history.assign_coords(time=[np.nan] * 3), "history: the coordinate time must increase"),
        (
            history.drop_vars("time").assign_coords(time=(("trajectory", "time"), np.ones((2, 3)))),
            "the coordinate time has 2 dimensions; 1 is expected",
        ),
    ):
        with pytest.raises(EnmaError, match=message):
            forecast(line, wrong, num_members=1)


def test_a_context_is_as_long_as_in_training(line, caplog):
    fields = xr.concat([labelled(line, 8)] * 2, "time").drop_vars("time")
    history = fields.isel(time=slice(1))
    expected = forecast(line, history, context=fields.isel(time=slice(8)), num_members=2).numpy()
    assert caplog.text == ""
    np.testing.assert_array_equal(forecast(line, history, context=fields, num_members=2).numpy(), expected)
    assert "context: of its 16 frames the first 8 are used, as in training" in caplog.text


def test_trajectories_may_have_names(line):
    history = labelled(line, 3).assign_coords(trajectory=["calm", "storm"])
    ensemble = forecast(line, history, num_members=3)
    assert ensemble.trajectories == (0, 1)
    assert ensemble.values["trajectory"].to_numpy().tolist() == ["calm", "storm"]
    for one in (1, "storm"):
        assert ensemble.sel(trajectory=one).values["trajectory"].item() == "storm"
        assert ensemble.sel(trajectory=one).trajectories == (1,)
    assert ensemble.sel(trajectory=["storm", "calm"]).values["trajectory"].to_numpy().tolist() == ["storm", "calm"]
    with pytest.raises(EnmaError, match="trajectory rain is not in this ensemble; there are calm, storm"):
        ensemble.sel(trajectory="rain")
    np.testing.assert_array_equal(ensemble.numpy(), sample_fields(line, history.to_numpy(), num_members=3))


def test_positions_have_to_be_those_of_the_model(line, plane):
    """A grid that runs backwards, or is of another domain, would be forecast without complaint."""
    history, length = labelled(line, 3), 2 * np.pi
    x = history["x"].to_numpy()
    for wrong, message in (
        (history.isel(x=slice(None, None, -1)), r"history: the coordinate x must increase; sort it: \.sortby\('x'\)"),
        (
            history.assign_coords(x=x / length),
            r"history: the coordinate x spans 1; the model expects a domain of 6\.28319",
        ),
        (history.assign_coords(x=np.arange(32)), r"history: the coordinate x spans 32; the model expects"),
        (history.assign_coords(x=[f"{p}" for p in x]), r"history: the coordinate x has dtype <U\d+; numbers"),
        (history.assign_coords(x=x**2 / x[-1]), r"history: the coordinate x is not evenly spaced"),
    ):
        with pytest.raises(EnmaError, match=message):
            forecast(line, wrong, num_members=1)
        with pytest.raises(EnmaError, match=message.replace("history", "context")):
            forecast(line, history, context=wrong, num_members=1)
    # The axis may begin anywhere, and single precision is near enough.
    forecast(line, history.assign_coords(x=(x + 40).astype(np.float32)), num_members=1)
    # The second axis of this model is open: its positions may be those of cells, or end where the domain does.
    history = labelled(plane, 3)
    forecast(plane, history.assign_coords(y=np.linspace(0, 1, 8)), num_members=1)
    with pytest.raises(EnmaError, match=r"the coordinate y spans 2; the model expects a domain of 1 "):
        forecast(plane, history.assign_coords(y=2 * history["y"]), num_members=1)


def test_one_context_serves_all(line):
    fields = labelled(line, 8)
    history, context = fields.isel(time=slice(1)), fields.isel(trajectory=[1])
    expected = forecast(line, history, context=context.isel(trajectory=[0, 0]), num_members=2).numpy()
    for one in (context, context.isel(trajectory=0)):
        np.testing.assert_allclose(forecast(line, history, context=one, num_members=2).numpy(), expected, atol=1e-5)
    with pytest.raises(
        EnmaError, match="history holds 2 trajectories and context 3; give one context for each, or one"
    ):
        forecast(line, history, context=xr.concat([fields, context], "trajectory"), num_members=2)


def test_times_are_the_decimals_they_stand_for(line):
    history = labelled(line, 3)
    history = history.assign_coords(time=(0.05 * np.arange(3)).astype(np.float32))
    values = forecast(line, history, num_members=1).values
    assert values["time"].to_numpy().tolist() == [0.15, 0.2, 0.25, 0.3, 0.35]
    assert values.sel(time=0.3).sizes["realization"] == 1
