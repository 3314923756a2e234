"""Forecasts come in the kind of array that was given, with its labels."""

import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import xarray as xr

import enma_fast
from enma_fast.errors import EnmaError
from enma_fast.forecasting.api import forecast, stream
from enma_fast.forecasting.members import sample_fields
from enma_fast.models.codecs.interpolation import grid_points
from enma_fast.models.envelope import Envelope

from .._labelled import INTERVAL, LINE_DIMS, NUMBERS, TIMES, labelled
from .._tiny import model, waves


def sampled(made, history, **options):
    return sample_fields(made, history.to_numpy(), num_members=3, trajectories=NUMBERS, **options).numpy()


@pytest.mark.parametrize("batched", [True, False])
def test_numpy_and_torch_come_back_as_they_went_in(plane, batched):
    fields = waves(2, 1, 3, plane.config.codec)
    fields = fields if batched else fields[0]
    expected = sample_fields(plane, fields, num_members=3)
    from_torch = forecast(plane, fields, num_members=3)
    assert torch.equal(from_torch.values, expected)
    assert from_torch.torch() is from_torch.values
    from_torch.values.requires_grad_().square().sum().backward()
    from_numpy = forecast(plane, fields.numpy(), num_members=3)
    assert type(from_numpy.values) is np.ndarray
    np.testing.assert_array_equal(from_numpy.values, expected.detach())
    for ensemble in (from_numpy, from_torch):
        np.testing.assert_array_equal(np.asarray(ensemble), from_numpy.values)
        np.testing.assert_array_equal(ensemble.numpy(), from_numpy.values)
        assert torch.equal(ensemble.torch().detach(), expected.detach())
        assert np.asarray(ensemble, np.float64).dtype == np.float64
        assert ensemble.times is None
        assert ensemble.trajectories == ((0, 1) if batched else (0,))
        assert ensemble.members == (0, 1, 2)
        assert len(ensemble) == ensemble.num_members == 3


@pytest.mark.parametrize("strange", ["big-endian", "backwards", "read-only", "half"])
def test_numpy_arrays_of_any_make(line, strange):
    fields = waves(2, 1, 3, line.config.codec).numpy()
    if strange == "half":
        fields = fields.astype(np.float16).astype(np.float32)
    expected = forecast(line, fields).values
    if strange == "big-endian":
        fields = fields.astype(">f4")
    elif strange == "backwards":
        fields = fields[::-1].copy()[::-1]
    elif strange == "read-only":
        fields.flags.writeable = False
    else:
        fields = fields.astype(np.float16)
    np.testing.assert_array_equal(forecast(line, fields).values, expected)


@pytest.mark.parametrize("name", ["line", "plane"])
@pytest.mark.parametrize("kind", ["dataarray", "dataset"])
@pytest.mark.parametrize("turned", [False, True])
def test_xarray_comes_back_with_its_coordinates(request, name, kind, turned):
    made = request.getfixturevalue(name)
    history = labelled(made, 3)
    expected = sampled(made, history)
    given = history.to_dataset("channel") if kind == "dataset" else history
    given = given.transpose(*reversed(history.dims), missing_dims="ignore") if turned else given
    ensemble = forecast(made, given, num_members=3)
    values = ensemble.values
    dims = ("trajectory", "realization", *history.dims[1:])
    if kind == "dataset":
        assert list(values) == list(history["channel"].to_numpy())
        values = values.to_dataarray("channel").transpose(*dims)
    assert values.dims == dims
    np.testing.assert_array_equal(values, expected)
    np.testing.assert_array_equal(ensemble.numpy(), expected)
    np.testing.assert_allclose(values["time"], TIMES[3:], rtol=1e-12)
    np.testing.assert_allclose(ensemble.times, TIMES[3:], rtol=1e-12)
    np.testing.assert_array_equal(values["x"], history["x"])
    assert values["x"].attrs == {"units": "km"}
    np.testing.assert_array_equal(values["trajectory"], NUMBERS)
    np.testing.assert_array_equal(values["realization"], [0, 1, 2])
    assert values["realization"].attrs["standard_name"] == "realization"
    assert ensemble.trajectories == tuple(NUMBERS)


def test_one_trajectory_and_one_channel_need_no_dimension(line):
    history = labelled(line, 3).isel(trajectory=1, channel=0, drop=False).drop_vars("channel")
    ensemble = forecast(line, history, num_members=3)
    assert ensemble.values.dims == ("realization", "time", "x")
    assert ensemble.values.name == "wave"
    # Its number is that of the coordinate: the noise is the same as among others.
    assert ensemble.trajectories == (9,)
    assert ensemble.values["trajectory"].item() == 9
    whole = forecast(line, labelled(line, 3), num_members=3)
    np.testing.assert_allclose(ensemble.numpy(), whole.numpy()[1], atol=1e-5)
    alone = ensemble.to_xarray()["wave"]
    xr.testing.assert_allclose(alone.variable, whole.to_xarray()["p"].sel(trajectory=9).variable, atol=1e-5)
    assert alone.attrs == {"long_name": "forecast of wave", "units": "1"}
    # Numbers that are given come first.
    other = forecast(line, history, num_members=3, trajectories=[4])
    assert other.trajectories == (4,)
    assert not np.array_equal(other.numpy(), ensemble.numpy())


def test_what_has_no_coordinates_gets_none(line):
    history = labelled(line, 3)
    bare = xr.DataArray(history.to_numpy(), dims=LINE_DIMS)
    ensemble = forecast(line, bare, num_members=3)
    np.testing.assert_array_equal(ensemble.values, sample_fields(line, history.to_numpy(), num_members=3))
    assert ensemble.times is None
    assert set(ensemble.values.coords) == {"trajectory", "realization"}
    assert list(ensemble.to_xarray()) == ["u"]


@pytest.mark.parametrize("observed", [0, 1])
def test_a_context_in_xarray(plane, observed):
    fields = labelled(plane, 8)
    history, context = fields.isel(time=slice(observed)), fields + 0.1
    expected = sample_fields(
        plane,
        history.to_numpy() if observed else None,
        context=context.to_numpy(),
        num_members=2,
        trajectories=NUMBERS,
    )
    # Channels are told apart by their names.
    turned = context.isel(channel=[1, 0]) if observed else context
    for other in (turned, turned.to_dataset("channel")):
        given = (history,) if observed else ()
        ensemble = forecast(plane, *given, context=other, num_members=2)
        np.testing.assert_array_equal(ensemble.numpy(), expected)
        # A generated trajectory starts where the context does.
        np.testing.assert_allclose(ensemble.times, TIMES[observed:], rtol=1e-12)
    # The kind is the history's.
    mixed = forecast(plane, torch.tensor(history.to_numpy()) if observed else None, context=context, num_members=2)
    assert isinstance(mixed.values, torch.Tensor if observed else xr.DataArray)


def test_scattered_points_and_queries():
    made = model("points")
    options = made.config.codec
    where = grid_points(options)[[3, 17, 8, 30, 21]]
    history = labelled(made, 3).isel(x=[3, 17, 8, 30, 21]).rename(x="point")
    ensemble = forecast(made, history, points=where, query=where[:2], num_members=3)
    np.testing.assert_array_equal(ensemble.numpy(), sampled(made, history, points=where, query=where[:2]))
    assert ensemble.values.dims == ("trajectory", "realization", "time", "point", "channel")
    np.testing.assert_array_equal(ensemble.values["x"], where[:2, 0])
    assert ensemble.values["x"].dims == ("point",)
    gridded = forecast(made, history, points=where, num_members=3)
    assert gridded.values.dims == ("trajectory", "realization", "time", "x", "channel")
    np.testing.assert_array_equal(gridded.numpy(), sampled(made, history, points=where))


@pytest.mark.parametrize("kind", ["numpy", "torch", "dataarray", "dataset"])
def test_a_stream_yields_the_kind_that_was_given(line, kind):
    history = labelled(line, 3)
    given = {
        "numpy": history.to_numpy(),
        "torch": torch.tensor(history.to_numpy()),
        "dataarray": history,
        "dataset": history.to_dataset("channel"),
    }[kind]
    expected = sampled(line, history)
    options = {"num_members": 3, "trajectories": NUMBERS}
    seen = []
    frames = list(stream(line, given, **options, stop=lambda number, frame: seen.append((number, frame))))
    assert [number for number, _ in seen] == [0, 1, 2, 3, 4]
    for t, frame in enumerate(frames):
        assert type(frame) is type(given)
        assert type(seen[t][1]) is type(given)
        plain = frame["p"].to_numpy()[..., None] if kind == "dataset" else np.asarray(frame)
        np.testing.assert_allclose(plain, expected[:, :, t], atol=1e-5)
        if kind in ("dataarray", "dataset"):
            assert frame["time"].item() == pytest.approx(TIMES[3 + t])
            assert frame["realization"].to_numpy().tolist() == [0, 1, 2]
            assert frame["trajectory"].to_numpy().tolist() == NUMBERS
    if kind == "torch":
        assert not frames[0].is_inference()


def test_a_selected_member_is_the_one_sampled_alone(line):
    history = labelled(line, 3)
    whole = forecast(line, history, num_members=3, first_member=5)
    assert whole.members == (5, 6, 7)
    alone = forecast(line, history.isel(trajectory=[1]), num_members=1, first_member=7)
    xr.testing.assert_allclose(whole.sel(member=7, trajectory=[9]).values, alone.values, atol=1e-5)


H = LINE_DIMS
BAD = {
    "list": (
        lambda h: {"history": h.to_numpy().tolist()},
        "history is a list; give an array of numpy, torch or xarray",
    ),
    "integers": (lambda h: {"history": h.to_numpy().astype(int)}, "history has dtype int64; floating point"),
    "sparse": (lambda h: {"history": torch.tensor(h.to_numpy()).to_sparse()}, "history is a sparse tensor; give a"),
    "meta": (lambda h: {"history": torch.tensor(h.to_numpy(), device="meta")}, "history is a meta tensor; give a"),
    "strings": (lambda h: {"history": h.to_numpy().astype(str)}, "history has dtype <U32; floating point"),
    "unknown dim": (
        lambda h: {"history": h.rename(x="lon")},
        r"history has the dims \(trajectory, time, lon, channel\); expected are trajectory, time, x, channel, of which "
        r"trajectory and channel may be left out; rename those that are called otherwise: .rename\({'lon': 'x'}\)",
    ),
    "unknown dim of a variable": (
        lambda h: {"history": h.rename(x="longitude", time="frame").to_dataset("channel")},
        r"history: .* may be left out; rename those that are called otherwise: "
        r".rename\({'frame': 'time', 'longitude': 'x'}\)",
    ),
    "missing dim": (
        lambda h: {"history": h.isel(time=0)},
        r"history has the dims \(trajectory, x, channel\); expected",
    ),
    "variable": (
        lambda h: {"history": h.to_dataset("channel").assign(alpha=("trajectory", [0.0, 1.0]))},
        r"history: the variable alpha has the dims \(trajectory\); expected are trajectory, time, x, of which "
        "trajectory may be left out; select the channels from the Dataset",
    ),
    "uneven": (
        lambda h: {
            "history": xr.Dataset(
                {"p": h[..., 0].drop_vars("channel"), "q": h[0, ..., 0].drop_vars(["channel", "trajectory"])}
            )
        },
        "history holds variables of different dims",
    ),
    "empty": (lambda h: {"history": xr.Dataset()}, "history is a Dataset without variables"),
    "channels": (
        lambda h: {"history": xr.Dataset({"p": h[..., 0].drop_vars("channel"), "q": h[..., 0].drop_vars("channel")})},
        "history has 2 channels; the model 'relative' expects 1",
    ),
    "spacing": (
        lambda h: {"history": h.assign_coords(time=[0.0, 0.1, 0.2])},
        r"history: the coordinate time has frames 0\.1 apart; the model expects 0\.05",
    ),
    "dates": (
        lambda h: {"history": h.assign_coords(time=np.array([0, 1, 2], "datetime64[s]"))},
        r"history: the coordinate time has dtype datetime64\[s\]; numbers are expected",
    ),
    "context": (
        lambda h: {"context": h.assign_coords(channel=["other"])},
        "context has the channels other; expected p",
    ),
    "numbers": (lambda h: {"trajectories": []}, "trajectories names 0 numbers; the input holds 2"),
    "nan": (lambda h: {"history": h.where(h.x > 0)}, "history holds a value that is not finite, first in trajectory 0"),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("run", [forecast, stream])
def test_bad_fields_are_named_before_anything_is_sampled(line, name, run):
    change, said = BAD[name]
    history = labelled(line, 3)
    # A stream too is refused when it is asked for, not at its first frame.
    with pytest.raises(EnmaError, match=f"^{said}"):
        run(line, **{"history": history} | change(history))


def test_a_time_axis_in_single_precision_is_near_enough(line):
    times = (1000 + INTERVAL * np.arange(3)).astype(np.float32)
    assert forecast(line, labelled(line, 3).assign_coords(time=times)).times[0] == pytest.approx(1000.15, abs=1e-4)


def test_a_lazy_dimension_order_costs_no_channel(plane):
    """Channels of a Dataset are in its order, which is the model's."""
    history = labelled(plane, 3).to_dataset("channel")
    turned = forecast(plane, history[["q", "p"]])
    straight = forecast(plane, history)
    assert list(turned.values) == ["q", "p"]
    assert not np.array_equal(turned.values["p"], straight.values["p"])


@pytest.mark.parametrize("page", ["README.md", "docs/tutorials/first-forecast.ipynb"])
def test_the_first_example_forecasts_and_shows_what_the_page_says(page, tmp_path, monkeypatch, capsys):
    root = Path(__file__).parents[2]
    text = (root / page).read_text(encoding="utf-8")
    if page.endswith(".ipynb"):
        cell = next(cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code")
        code, promised = "".join(cell["source"]), "".join(cell["outputs"][0]["text"]) + "\n"
    else:
        section = text.partition("## A forecast")[2].partition("\n## ")[0]
        (code,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
        (promised,) = re.findall(r"```text\n(.*?)```", section, re.DOTALL)
    fields = enma_fast.read_fields(root / "enma_fast/pretrained/combined-test-in.h5", select=[0])
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(code, names)
    found = SimpleNamespace(**names)
    assert found.ensemble.values.shape == (64, 17, 128, 1)
    np.testing.assert_array_equal(found.history, fields.u[0, :3])
    # It is a forecast: nearer to the truth than the last observed frame is.
    truth = fields.u[0, 3:]
    assert np.linalg.norm(found.ensemble.mean() - truth) < 0.3 * np.linalg.norm(fields.u[0, 2] - truth)
    # Another processor rounds otherwise.
    shown, number = capsys.readouterr().out, re.compile(r"-?\d+\.?\d*")
    assert number.sub("#", shown) == number.sub("#", promised)
    values = [[float(value) for value in number.findall(text)] for text in (shown, promised)]
    np.testing.assert_allclose(*values, rtol=0.03)
    assert (tmp_path / "forecast.png").read_bytes().startswith(b"\x89PNG")


def test_channels_of_other_names_are_warned_of_and_arrays_are_not(caplog):
    made = model("plane")
    history = labelled(made, 3)
    made.envelope = Envelope.of(waves(6, 2, 8, made.config.codec).numpy(), channels=("u", "v"))
    dataset = history.to_dataset("channel")
    first, second = dataset.data_vars
    plain = forecast(made, history.to_numpy(), num_members=2, trajectories=NUMBERS)
    assert "channels" not in caplog.text
    caplog.clear()
    renamed = forecast(made, dataset.rename({first: "temp"}), num_members=2)
    np.testing.assert_array_equal(renamed.numpy(), plain.numpy())
    assert f"history: its channels are temp, {second}, those of the model u, v;" in caplog.text


@pytest.mark.parametrize(("dataset", "units"), [("advection", {"units": "1"}), ("sea", {})])
def test_time_and_space_have_a_unit_where_the_equation_says_so(dataset, units):
    made = model("relative")
    made.config = replace(made.config, dataset=dataset)
    history = labelled(made, 3)
    for name in ("time", "x"):
        history[name].attrs.clear()
    values = forecast(made, history, num_members=2).values
    assert values["time"].attrs == {"long_name": "time", "axis": "T", **units}
    assert values["x"].attrs == {"long_name": "position along x", "axis": "X", **units}
