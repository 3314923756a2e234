"""What a figure shows: the arrays in its maps, lines, bands and bars, and what its axes say."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from enma_fast.errors import EnmaError
from enma_fast.metrics import Scores
from enma_fast.plots import forecast_figure, grouped_ranks, save_figure

X = 2 * np.pi * np.arange(16) / 16
TIMES, SEEN_TIMES = 0.05 * np.arange(3, 10), 0.05 * np.arange(3)


@pytest.fixture
def forecast(rng: np.random.Generator) -> dict[str, Any]:
    """Keyword arguments of `forecast_figure` for one trajectory on a line, with 32 members."""
    phase = X - np.concatenate([SEEN_TIMES, TIMES])[:, None]
    field = np.sin(phase)
    noise = rng.normal(size=(32, 7, 16)) * TIMES[:, None]
    noise[:, -1, 5] *= 4
    return {
        "ensemble": field[3:] + noise,
        "truth": field[3:],
        "observed": field[:3],
        "times": TIMES,
        "observed_times": SEEN_TIMES,
        "coords": [X],
    }


def draw(given: dict[str, Any], **options: Any) -> Figure:
    given = {**given, **options}
    return forecast_figure(given.pop("ensemble"), **given)


def scores(given: dict[str, Any]) -> dict[str, Any]:
    pooled = Scores()
    pooled.update(given["ensemble"][None, ..., None], given["truth"][None, ..., None])
    return {**pooled.result(), "rank_histogram": pooled.rank_histogram().tolist()}


def by_title(figure: Figure) -> dict[str, Any]:
    """Axes by the beginning of their title, colour bars by their label."""
    return {(axes.get_title("left") or axes.get_ylabel()): axes for axes in figure.axes}


def map_of(axes: Any) -> np.ma.MaskedArray:
    (mesh,) = axes.collections
    return np.ma.masked_invalid(mesh.get_array())


def test_maps_hold_truth_mean_error_and_spread(forecast: dict[str, Any]) -> None:
    axes = by_title(draw(forecast))
    ensemble, truth, seen = (forecast[name] for name in ("ensemble", "truth", "observed"))
    mean = ensemble.mean(0)
    np.testing.assert_allclose(map_of(axes["truth"]), np.concatenate([seen, truth]))
    np.testing.assert_allclose(map_of(axes["ensemble mean"]), np.concatenate([seen, mean]))
    for title, expected in (
        ("error of the mean (absolute)", np.abs(mean - truth)),
        ("spread (standard deviation)", ensemble.std(0, ddof=1)),
    ):
        shown = map_of(axes[title])
        assert shown.mask[:3].all(), "observed frames have neither error nor spread"
        np.testing.assert_allclose(shown[3:].filled(np.nan), expected)


def test_maps_share_scales_and_mark_the_observed_frames(forecast: dict[str, Any]) -> None:
    axes = by_title(draw(forecast))
    limits = {title: axes[title].collections[0].get_clim() for title in list(axes)[:5] if axes[title].collections}
    assert limits["truth"] == limits["ensemble mean"]
    low, high = limits["truth"]
    assert low == -high, "zero is the middle of the colours"
    assert limits["error of the mean (absolute)"] == limits["spread (standard deviation)"]
    assert limits["error of the mean (absolute)"][0] == 0
    horizontal = [line for line in axes["truth"].lines if len(set(line.get_ydata())) == 1]
    assert horizontal[0].get_ydata()[0] == pytest.approx((SEEN_TIMES[-1] + TIMES[0]) / 2)
    assert axes["truth"].get_ylabel() == "time (dimensionless)"
    assert axes["truth"].get_xlabel() == "x (dimensionless)"
    assert {"u", "error, spread of u"} <= set(axes), "colour bars are labelled"
    bottom, top = axes["truth"].get_ylim()
    assert bottom > top, "time runs downward"


def test_fan_chart_shows_quantiles_truth_and_observations(forecast: dict[str, Any]) -> None:
    figure = draw(forecast, name="height", title="a forecast")
    # Where the spread of the last frame is largest.
    fan = by_title(figure)[f"32 members at x = {X[5]:.2f}"]
    members = forecast["ensemble"][:, :, 5]
    last = forecast["observed"][-1, 5]
    labels = [band.get_label() for band in fan.collections]
    assert labels == ["95% of members", "80% of members", "50% of members"]
    for band, level in zip(fan.collections, (0.95, 0.8, 0.5), strict=True):
        low, high = np.quantile(members, [(1 - level) / 2, (1 + level) / 2], axis=0)
        vertices = band.get_paths()[0].vertices
        for time, bottom, top in zip(TIMES, low, high, strict=True):
            at = vertices[np.isclose(vertices[:, 0], time), 1]
            assert (at.min(), at.max()) == pytest.approx((bottom, top))
        at = vertices[np.isclose(vertices[:, 0], SEEN_TIMES[-1]), 1]
        np.testing.assert_allclose(at, last, err_msg="the fan opens at the last observed frame")
    lines = {line.get_label(): line for line in fan.lines}
    everything = np.concatenate([forecast["observed"], forecast["truth"]])[:, 5]
    np.testing.assert_allclose(lines["truth"].get_xdata(), np.concatenate([SEEN_TIMES, TIMES]))
    np.testing.assert_allclose(lines["truth"].get_ydata(), everything)
    np.testing.assert_allclose(lines["observed"].get_ydata(), everything[:3])
    np.testing.assert_allclose(lines["median"].get_ydata()[1:], np.median(members, axis=0))
    assert (fan.get_xlabel(), fan.get_ylabel()) == ("time (dimensionless)", "height")
    assert {text.get_text() for text in fan.get_legend().get_texts()} == {*labels, "truth", "observed", "median"}
    assert figure.get_suptitle() == "a forecast"


def test_a_chosen_point(forecast: dict[str, Any]) -> None:
    assert f"32 members at x = {X[2]:.2f}" in by_title(draw(forecast, point=(2,)))


def test_calibration_panels(forecast: dict[str, Any]) -> None:
    result = scores(forecast)
    axes = by_title(draw(forecast, scores=result))
    panel = axes[f"error and spread, ratio {result['spread_skill']:.2f}"]
    error, spread = panel.lines
    np.testing.assert_allclose(error.get_ydata(), result["per_frame"]["rmse"])
    ratio = np.array(spread.get_ydata()) / np.array(error.get_ydata())
    np.testing.assert_allclose(
        ratio, result["per_frame"]["spread_skill"], err_msg="the ratio of the lines is the score"
    )
    ranks = axes["ranks, 1 trajectories"]
    heights = [bar.get_height() for bar in ranks.patches]
    np.testing.assert_allclose(heights, grouped_ranks(np.array(result["rank_histogram"]))[0])


def test_without_a_truth_there_is_no_error(forecast: dict[str, Any]) -> None:
    axes = by_title(draw(forecast, truth=None))
    assert "truth" not in axes
    assert not any("error" in title for title in axes)
    fan = axes[f"32 members at x = {X[5]:.2f}"]
    assert "truth" not in [line.get_label() for line in fan.lines]


def test_without_a_history(forecast: dict[str, Any]) -> None:
    axes = by_title(draw(forecast, observed=None, observed_times=None))
    assert map_of(axes["truth"]).shape == (7, 16)
    fan = axes[f"32 members at x = {X[5]:.2f}"]
    assert "observed" not in [line.get_label() for line in fan.lines]
    np.testing.assert_allclose({line.get_label(): line for line in fan.lines}["truth"].get_xdata(), TIMES)


def test_one_member(forecast: dict[str, Any]) -> None:
    given = {**forecast, "ensemble": forecast["ensemble"][:1]}
    result = {**scores(forecast), "num_members": 1, "spread_skill": None, "rank_histogram": None}
    result["per_frame"] = {**result["per_frame"], "spread": [None] * 7}
    axes = by_title(draw(given, scores=result))
    assert map_of(axes["spread (standard deviation)"]).max() == 0
    assert "error and spread" in axes


def test_a_plane_shows_its_last_frame(rng: np.random.Generator) -> None:
    x, y = np.linspace(0, 1, 5), np.linspace(0, 2, 4)
    ensemble, truth = rng.normal(size=(3, 2, 5, 4)), rng.normal(size=(2, 5, 4))
    figure = forecast_figure(ensemble, times=np.array([1.0, 2.0]), coords=[x, y], truth=truth)
    axes = by_title(figure)
    np.testing.assert_allclose(map_of(axes["truth"]), truth[-1].T)
    np.testing.assert_allclose(map_of(axes["ensemble mean"]), ensemble.mean(0)[-1].T)
    assert axes["truth"].get_ylabel() == "y (dimensionless), time 2"
    i, j = np.unravel_index(ensemble.std(0)[-1].argmax(), (5, 4))
    assert f"3 members at x = {x[i]:.2f}, y = {y[j]:.2f}" in axes


@pytest.mark.parametrize("count", [2, 3, 17, 18, 65])
def test_grouped_ranks_keep_the_mass(rng: np.random.Generator, count: int) -> None:
    histogram = rng.dirichlet(np.ones(count))
    frequency, centres, width = grouped_ranks(histogram)
    assert len(frequency) == min(count, 17)
    assert width.sum() == count
    np.testing.assert_allclose((frequency * width / count).sum(), 1)
    np.testing.assert_allclose(
        (frequency * width * centres).sum() / count, (histogram * np.arange(count)).sum(), atol=2
    )
    flat, *_ = grouped_ranks(np.full(count, 1 / count))
    np.testing.assert_allclose(flat, 1)


def test_shapes_that_do_not_belong_together(forecast: dict[str, Any]) -> None:
    with pytest.raises(EnmaError, match=r"ensemble has shape \(32, 7, 16\); \[K, 6, 16\] is expected"):
        draw(forecast, times=TIMES[:6])
    with pytest.raises(EnmaError, match=r"truth has shape \(6, 16\); the ensemble has \(7, 16\)"):
        draw(forecast, truth=forecast["truth"][:6])


def test_a_figure_is_saved_whole_or_not_at_all(
    forecast: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figure = draw(forecast)
    path = save_figure(figure, tmp_path / "new" / "a.png")
    assert path.read_bytes().startswith(b"\x89PNG")
    old = path.read_bytes()
    with pytest.raises(EnmaError, match=r"a\.xyz: unknown kind of picture; end --out in one of .*png"):
        save_figure(figure, tmp_path / "a.xyz")

    def fail(name: Path, **_: Any) -> None:
        Path(name).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(figure, "savefig", fail)
    with pytest.raises(EnmaError, match=r"a\.png: cannot be written \(disk full\)"):
        save_figure(figure, path)
    assert path.read_bytes() == old
    assert [p.name for p in path.parent.iterdir()] == ["a.png"]


def test_drawing_leaves_pyplot_and_the_style_alone() -> None:
    program = """
import sys, matplotlib, numpy as np
from enma_fast.plots import forecast_figure
before = matplotlib.rcParams.copy()
forecast_figure(np.random.default_rng(0).normal(size=(3, 4, 8)), times=np.arange(4.0), coords=[np.arange(8.0)])
assert "matplotlib.pyplot" not in sys.modules
assert matplotlib.rcParams.copy() == before
"""
    subprocess.run([sys.executable, "-c", program], check=True)
