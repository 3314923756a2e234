"""What an ensemble shows of itself: the numbers of its summary, and the arrays of its picture."""

import re
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from enma_fast.errors import EnmaError
from enma_fast.forecasting import ensemble as module
from enma_fast.forecasting.ensemble import Ensemble

from .test_ensemble import KINDS, ensemble_of


@pytest.fixture
def drawings(monkeypatch):
    """What `plot` draws: the forecast and the title of each picture."""
    made = []

    def draw(forecast, *, title):
        made.append(SimpleNamespace(forecast=forecast, title=title))
        return real(forecast, title=title)

    real = module.forecast_figure
    monkeypatch.setattr(module, "forecast_figure", draw)
    return made


def observed(frames, kind):
    """Frames `[B, L, *x, c]` in the kind of array of an ensemble, dimensions turned round where they have names."""
    wide = ensemble_of(frames[:, None], kind, start=0.5)
    if kind in ("numpy", "torch"):
        return wide.values[:, 0]
    turned = wide.values.isel(realization=0, drop=True)
    return turned.transpose(*reversed(turned.dims)) if kind == "dataarray" else turned[["b", "a"]]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batched", [True, False])
def test_a_summary_has_the_numbers_of_numpy(rng, kind, batched):
    data = rng.normal(size=(2, 7, 3, 5, 2)).astype(np.float32) * np.array([1.0, 100.0], np.float32)
    data = data if batched else data[0]
    text = ensemble_of(data, kind, batched=batched, units=("1", "K")).summary()
    head, *lines = text.splitlines()
    assert head == f"7 members, {'2 trajectories, ' if batched else ''}3 frames at times 2 to 3, 5 points"
    for c, (name, line) in enumerate(zip(("a", "b (K)"), lines, strict=True)):
        one = data[..., c].astype(np.float64)
        members = int(batched)
        mean, spread = one.mean(members), one.std(members, ddof=1)
        frames = np.moveaxis(spread, members, 0)
        rms = [np.sqrt((x**2).mean()) for x in (mean, spread, frames[0], frames[-1])]
        assert line.startswith(f"{name}: ")
        numbers = re.findall(r"-?\d+\.?\d*(?:e[+-]\d+)?", line.removeprefix(name))
        np.testing.assert_allclose([float(x) for x in numbers], [*rms, one.min(), one.max()], rtol=5e-3)


def test_a_summary_of_one_member_has_no_spread_and_of_stopped_members_leaves_them_out(rng):
    data = rng.normal(size=(3, 4, 5, 2)).astype(np.float32)
    assert "spread" not in ensemble_of(data, batched=False).sel(member=[1]).summary()
    data[1, 2:] = np.nan
    text = ensemble_of(data, batched=False).summary()
    assert "nan" not in text
    assert "- in the last" in text


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("space", [(6,), (4, 5)])
def test_a_plot_shows_the_trajectory_and_channel_that_are_asked_for(rng, kind, space, drawings, tmp_path):
    whole = rng.normal(size=(2, 5, *space, 2)).astype(np.float32)
    data = rng.normal(size=(2, 4, 3, *space, 2)).astype(np.float32)
    names = ("x", "y")[: len(space)]
    labels = {
        "space": names,
        "coords": {name: ((name,), np.arange(n) / n) for name, n in zip(names, space, strict=True)},
    }
    ensemble = ensemble_of(data, kind, trajectories=(3, 8), units=("1", "K"), **labels)
    history, truth = whole[:, :2], whole[:, 2:]
    if len(space) == 1:
        labels = {}
        history, truth = observed(history, kind), observed(truth, kind)
    path = ensemble.plot(tmp_path / "a.png", trajectory=8, channel="b", history=history, truth=truth)
    assert path.read_bytes().startswith(b"\x89PNG")
    (drawn,) = drawings
    forecast = drawn.forecast
    np.testing.assert_array_equal(forecast.members, data[1, ..., 1])
    np.testing.assert_array_equal(forecast.observed, whole[1, :2, ..., 1])
    np.testing.assert_array_equal(forecast.truth, whole[1, 2:, ..., 1])
    np.testing.assert_allclose(forecast.times, [2.0, 2.5, 3.0])
    np.testing.assert_allclose(forecast.observed_times, [1.0, 1.5])
    np.testing.assert_array_equal(forecast.coords[-1], np.arange(space[-1]) / space[-1])
    assert forecast.label == "b (K)"
    assert "trajectory 8" in drawn.title


def test_a_plot_of_plain_arrays_numbers_frames_and_points(rng, drawings, tmp_path):
    ensemble = ensemble_of(rng.normal(size=(4, 3, 6, 1)), batched=False, channels=None, coords={}, start=None)
    ensemble.plot(tmp_path / "a.svg")
    ensemble.plot(tmp_path / "b.png", history=rng.normal(size=(2, 6, 1)), title="mine")
    alone, after = (drawn.forecast for drawn in drawings)
    np.testing.assert_allclose(alone.times, [0, 0.5, 1.0])
    np.testing.assert_allclose(after.times, [1.0, 1.5, 2.0])
    np.testing.assert_allclose(after.observed_times, [0, 0.5])
    assert (alone.axis_label("x"), alone.label) == ("x (grid point)", "u")
    assert [drawn.title for drawn in drawings] == ["4 members", "mine"]


def test_what_cannot_be_plotted_is_named(rng, tmp_path):
    ensemble = ensemble_of(rng.normal(size=(2, 4, 3, 6, 2)), trajectories=(3, 8))
    frames = rng.normal(size=(3, 6, 2))
    for named, given in (
        ("trajectory 5", {"trajectory": 5}),
        ("channel 'c'", {"channel": "c"}),
        ("channel 2", {"channel": 2}),
        ("history", {"history": frames[:, :4]}),
        ("history", {"history": np.stack([frames] * 3)}),
        ("truth", {"truth": frames[:2]}),
    ):
        with pytest.raises(EnmaError, match=named):
            ensemble.plot(tmp_path / "a.png", **given)
    with pytest.raises(EnmaError, match=r"a\.xyz"):
        ensemble.plot(tmp_path / "a.xyz")
    points = Ensemble(ensemble.data, replace(ensemble.labels, space=("point",), coords={}))
    with pytest.raises(EnmaError, match="query"):
        points.plot(tmp_path / "a.png")
    assert not list(tmp_path.iterdir())


def test_without_matplotlib_a_plot_names_the_extra(rng, tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(EnmaError, match=r"enma-fast\[plots\]"):
        ensemble_of(rng.normal(size=(4, 3, 6, 2)), batched=False).plot(tmp_path / "a.png")
