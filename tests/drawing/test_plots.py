"""Contents of the figures: the arrays in maps, lines, bands and bars, and the labels of the axes."""

import itertools
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from enma_fast.drawing.calibration import SpreadErrorBins, grouped_ranks
from enma_fast.drawing.forecast import LEVELS, Forecast, central_intervals
from enma_fast.drawing.maps import Maps, error_scale, field_scale
from enma_fast.drawing.plots import forecast_figure, forecast_panels, save_figure, save_movie
from enma_fast.drawing.style import new_figure
from enma_fast.errors import EnmaError
from enma_fast.evaluation.metrics import Scores

X = 2 * np.pi * np.arange(16) / 16
TIMES, SEEN_TIMES = 0.05 * np.arange(3, 10), 0.05 * np.arange(3)


@pytest.fixture
def forecast(rng: np.random.Generator) -> dict[str, Any]:
    """Keyword arguments of `Forecast` for one trajectory on a line, with 32 members."""
    phase = X - np.concatenate([SEEN_TIMES, TIMES])[:, None]
    field = np.sin(phase)
    noise = rng.normal(size=(32, 7, 16)) * TIMES[:, None]
    noise[:, -1, 5] *= 4
    return {
        "members": field[3:] + noise,
        "truth": field[3:],
        "observed": field[:3],
        "times": TIMES,
        "observed_times": SEEN_TIMES,
        "coords": [X],
    }


def draw(given: dict[str, Any], **options: Any) -> Figure:
    """A figure; options of `Forecast`, and of `forecast_figure`."""
    given = {**given, **options}
    drawing = {name: given.pop(name) for name in ("point", "scores", "title") if name in given}
    return forecast_figure(Forecast(**given), **drawing)


def scores(given: dict[str, Any]) -> dict[str, Any]:
    pooled = Scores()
    pooled.update(given["members"][None, ..., None], given["truth"][None, ..., None])
    bins = SpreadErrorBins()
    bins.update(given["members"].std(0, ddof=1), given["members"].mean(0) - given["truth"])
    nominal, observed = pooled.reliability()
    return {
        **pooled.result(),
        "rank_histogram": pooled.rank_histogram().tolist(),
        "spread_error": bins.result(pooled.num_members),
        "reliability": {"nominal": nominal.tolist(), "observed": observed.tolist()},
    }


def by_title(figure: Figure) -> dict[str, Any]:
    """Axes by the beginning of their title, colour bars by their label."""
    return {(axes.get_title("left") or axes.get_ylabel()): axes for axes in figure.axes}


def map_of(axes: Any) -> np.ma.MaskedArray:
    (mesh,) = axes.collections
    return np.ma.masked_invalid(mesh.get_array())


def test_maps_hold_truth_mean_error_and_spread(forecast: dict[str, Any]) -> None:
    axes = by_title(draw(forecast))
    ensemble, truth, seen = (forecast[name] for name in ("members", "truth", "observed"))
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
    figure = draw(forecast, name=r"$\frac$", title="a forecast")
    # The point is the one of the largest spread in the last frame.
    fan = by_title(figure)[f"32 members at x = {X[5]:.2f}"]
    members = forecast["members"][:, :, 5]
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
    assert (fan.get_xlabel(), fan.get_ylabel()) == ("time (dimensionless)", r"$\frac$")
    assert {text.get_text() for text in fan.get_legend().get_texts()} == {*labels, "truth", "observed", "median"}
    assert figure.get_suptitle() == "a forecast"


def test_calibration_panels(forecast: dict[str, Any]) -> None:
    result = scores(forecast)
    axes = by_title(draw(forecast, scores=result))
    panel = axes[f"spread/error {result['spread_skill']:.2f}, 1 trajectory"]
    error, spread = panel.lines
    np.testing.assert_allclose(error.get_ydata(), result["per_frame"]["rmse"])
    ratio = np.array(spread.get_ydata()) / np.array(error.get_ydata())
    np.testing.assert_allclose(
        ratio, result["per_frame"]["spread_skill"], err_msg="the ratio of the lines is the score"
    )
    ranks = axes["ranks, 1 trajectory"]
    heights = [bar.get_height() for bar in ranks.patches]
    np.testing.assert_allclose(heights, grouped_ranks(np.array(result["rank_histogram"]))[0])
    diagonal, curve = axes["spread and skill"].lines
    assert list(diagonal.get_xdata()) == list(diagonal.get_ydata())
    np.testing.assert_allclose(curve.get_xdata(), result["spread_error"]["spread"])
    np.testing.assert_allclose(curve.get_ydata(), result["spread_error"]["rmse"])
    diagonal, curve = axes[f"reliability, RMSCE {result['rmsce']:.3f}"].lines
    assert list(diagonal.get_xdata()) == list(diagonal.get_ydata())
    np.testing.assert_allclose(curve.get_xdata(), np.linspace(0, 1, 100))
    np.testing.assert_allclose(curve.get_ydata(), result["reliability"]["observed"])
    ratio = np.abs(curve.get_ydata() - curve.get_xdata())
    assert np.sqrt((ratio**2).mean()) == pytest.approx(result["rmsce"]), "what is drawn is what is scored"


def test_scores_without_members_have_no_ranks(forecast: dict[str, Any]) -> None:
    result = scores(forecast)
    del result["rank_histogram"]
    titles = by_title(draw(forecast, scores={**result, "num_members": None, "spread_skill": None}))
    assert not any(title.startswith("ranks") for title in titles)
    np.testing.assert_allclose(
        titles["error and spread, 1 trajectory"].lines[1].get_ydata(), result["per_frame"]["spread"]
    )


def test_statistics_alone_are_drawn_as_the_members_are(forecast: dict[str, Any]) -> None:
    members = forecast["members"]
    given = {name: values for name, values in forecast.items() if name != "members"}
    statistics = {
        "mean": members.mean(0),
        "spread": members.std(0, ddof=1),
        "levels": LEVELS,
        "quantiles": np.quantile(members, LEVELS, axis=0),
        "num_members": 32,
    }
    ours, theirs = by_title(draw(given, **statistics)), by_title(draw(forecast))
    assert set(ours) == set(theirs)
    for title in ("truth", "ensemble mean", "error of the mean (absolute)", "spread (standard deviation)"):
        np.testing.assert_allclose(map_of(ours[title]), map_of(theirs[title]))
    fan = f"32 members at x = {X[5]:.2f}"
    for one, other in zip(ours[fan].collections, theirs[fan].collections, strict=True):
        np.testing.assert_allclose(one.get_paths()[0].vertices, other.get_paths()[0].vertices)
    for one, other in zip(ours[fan].lines, theirs[fan].lines, strict=True):
        np.testing.assert_allclose(one.get_ydata(), other.get_ydata())


def test_few_statistics_are_drawn_as_far_as_they_go(forecast: dict[str, Any]) -> None:
    given = {name: values for name, values in forecast.items() if name != "members"}
    members = forecast["members"]
    mean, spread = members.mean(0), members.std(0, ddof=1)
    axes = by_title(draw(given, mean=mean, spread=spread))
    (band,) = axes[f"forecast at x = {X[5]:.2f}"].collections
    assert band.get_label() == "mean ± spread"
    at = band.get_paths()[0].vertices
    at = at[np.isclose(at[:, 0], TIMES[3]), 1]
    assert (at.min(), at.max()) == pytest.approx((mean[3, 5] - spread[3, 5], mean[3, 5] + spread[3, 5]))
    # Without a mean the median is the centre of the maps; without a spread the fan is in the middle of the line.
    axes = by_title(draw(given, levels=[0.5], quantiles=np.median(members, axis=0)[None]))
    assert {"ensemble median", "error of the median (absolute)", f"forecast at x = {X[8]:.2f}"} <= set(axes)
    axes = by_title(draw({**given, "truth": None}, spread=spread))
    assert {"spread (standard deviation)", "spread of u"} <= set(axes)
    with pytest.raises(EnmaError, match="members"):
        draw(given, levels=[0.1], quantiles=mean[None])


def test_missing_values_leave_gaps(forecast: dict[str, Any]) -> None:
    forecast["members"][3, 2:, 5] = np.nan
    axes = by_title(draw(forecast))
    assert map_of(axes["ensemble mean"]).mask.sum() == 5
    low, high = axes["ensemble mean"].collections[0].get_clim()
    assert np.isfinite([low, high]).all()
    forecast["members"][:] = np.nan
    draw(forecast)


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
    given = {**forecast, "members": forecast["members"][:1]}
    result = {**scores(forecast), "num_members": 1, "spread_skill": None, "rank_histogram": None}
    result["per_frame"] = {**result["per_frame"], "spread": [None] * 7}
    axes = by_title(draw(given, scores=result))
    assert map_of(axes["spread (standard deviation)"]).max() == 0
    assert "error and spread, 1 trajectory" in axes


def test_a_plane_shows_its_last_frame(rng: np.random.Generator) -> None:
    x, y = np.linspace(0, 1, 5), np.linspace(0, 2, 4)
    ensemble, truth = rng.normal(size=(3, 2, 5, 4)), rng.normal(size=(2, 5, 4))
    figure = draw({"members": ensemble, "times": np.array([1.0, 2.0]), "coords": [x, y], "truth": truth})
    axes = by_title(figure)
    np.testing.assert_allclose(map_of(axes["truth, time 2"]), truth[-1].T)
    np.testing.assert_allclose(map_of(axes["ensemble mean"]), ensemble.mean(0)[-1].T)
    assert axes["truth, time 2"].get_ylabel() == "y (dimensionless)"
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
    with pytest.raises(EnmaError, match="members"):
        draw(forecast, times=TIMES[:6])
    with pytest.raises(EnmaError, match="truth"):
        draw(forecast, truth=forecast["truth"][:6])
    with pytest.raises(EnmaError, match="space dimensions"):
        Forecast(members=np.zeros((2, 1, 2, 2, 2)), times=np.zeros(1), coords=[np.arange(2)] * 3)


def test_panels_are_the_figure_in_pieces(forecast: dict[str, Any]) -> None:
    result = scores(forecast)
    panels = forecast_panels(Forecast(**forecast), scores=result)
    names = ["maps", "fan chart", "error and spread", "rank histogram", "spread and skill", "reliability"]
    assert list(panels) == names
    whole = by_title(draw(forecast, scores=result))
    pieces = {title: axes for figure in panels.values() for title, axes in by_title(figure).items()}
    assert {title.partition(" (")[0] for title in whole} == {title.partition(" (")[0] for title in pieces}
    np.testing.assert_array_equal(map_of(pieces["error of the mean"]), map_of(whole["error of the mean (absolute)"]))
    assert list(forecast_panels(Forecast(**{**forecast, "truth": None}))) == ["maps", "fan chart"]


def test_bins_hold_every_point_once_in_any_partition(rng: np.random.Generator) -> None:
    spread = np.exp(rng.normal(size=(40, 50)))
    error = spread * rng.normal(size=(40, 50))
    whole, parts = SpreadErrorBins(), SpreadErrorBins()
    whole.update(spread, error)
    for rows in np.split(np.arange(40), [1, 7, 30]):
        parts.update(spread[rows], error[rows])
    bins = whole.result()
    for name, values in parts.result().items():
        np.testing.assert_allclose(values, bins[name], rtol=1e-12)
    points, rms, rmse = (np.array(bins[name]) for name in ("points", "spread", "rmse"))
    assert points.sum() == 2000
    assert len(points) == 12
    assert points.max() < 2 * 2000 / 12
    assert (np.diff(rms) > 0).all()
    assert (points * rms**2).sum() == pytest.approx((spread**2).sum())
    assert (points * rmse**2).sum() == pytest.approx((error**2).sum())
    np.testing.assert_allclose(rmse, rms, rtol=0.25, err_msg="the error was drawn with the spread as its scale")
    np.testing.assert_allclose(np.array(whole.result(3)["spread"]) / rms, np.sqrt(4 / 3))


def test_bins_of_odd_points() -> None:
    bins = SpreadErrorBins()
    assert bins.result() == {"spread": [], "rmse": [], "points": []}
    bins.update(np.array([0.0, 0.0, np.nan, 1.0]), np.array([3.0, 4.0, 1.0, np.inf]))
    assert bins.result() == {"spread": [0.0], "rmse": [pytest.approx(12.5**0.5)], "points": [2.0]}


def test_scales() -> None:
    assert field_scale(np.array([-1.0, 3.0, np.nan])) == {"cmap": "RdBu_r", "vmin": -3, "vmax": 3}
    # An undershoot is no sign of its own.
    assert field_scale(np.array([-0.01, 3.0])) == {"cmap": "viridis", "vmin": -0.01, "vmax": 3}
    assert field_scale(np.array([2.0]), np.array([5.0])) == {"cmap": "viridis", "vmin": 2, "vmax": 5}
    for flat in (np.zeros(3), np.full(3, np.nan)):
        assert field_scale(flat)["vmin"] < field_scale(flat)["vmax"]
        assert error_scale(flat) == {"cmap": "magma_r", "vmin": 0, "vmax": 1}


def test_central_intervals_are_pairs_of_levels() -> None:
    found = central_intervals([0.5, 0.9, 0.1, 0.3, 0.25, 0.75])
    assert [(round(inside, 6), low, high) for inside, low, high in found] == [(0.8, 2, 1), (0.5, 4, 5)]


@pytest.fixture
def plane(rng: np.random.Generator) -> Forecast:
    """Twelve frames in a plane, each brighter than the one before."""
    x, y = np.linspace(0, 1, 6), np.linspace(0, 2, 5)
    truth = np.arange(12.0)[:, None, None] + rng.random((12, 6, 5))
    return Forecast(members=truth + rng.normal(size=(4, 12, 6, 5)), truth=truth, times=np.arange(12.0), coords=[x, y])


def pictures_of(movie: Any) -> list[np.ndarray]:
    """The frames of a movie in shades of grey."""
    pictures = []
    for t in range(movie.n_frames):
        movie.seek(t)
        pictures.append(np.asarray(movie.convert("L"), float))
    return pictures


@pytest.mark.slow
def test_a_movie_has_a_picture_of_every_frame(plane: Forecast, tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    path = save_movie(plane, tmp_path / "new" / "a.gif", title="a forecast")
    with image.open(path) as movie:
        assert movie.n_frames == 12
        pictures = pictures_of(movie)
    assert all(np.abs(a - b).max() > 50 for a, b in itertools.pairwise(pictures))
    assert [p.name for p in path.parent.iterdir()] == ["a.gif"]


def test_what_cannot_be_a_movie(plane: Forecast, forecast: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(EnmaError, match=r"a\.png: .*--out"):
        save_movie(plane, tmp_path / "a.png")
    with pytest.raises(EnmaError, match="--out"):
        save_movie(Forecast(**forecast), tmp_path / "a.gif")
    (tmp_path / "file").write_text("")
    with pytest.raises(EnmaError, match=r"a\.gif: .*written"):
        save_movie(plane, tmp_path / "file" / "a.gif")


def test_a_long_movie_is_thinned(
    plane: Forecast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    image = pytest.importorskip("PIL.Image")
    monkeypatch.setattr("enma_fast.drawing.plots._MOST_MOVIE_FRAMES", 5)
    with caplog.at_level("INFO", logger="enma_fast"), image.open(save_movie(plane, tmp_path / "a.gif")) as movie:
        assert movie.n_frames == 4
        pictures = pictures_of(movie)
    assert all(np.abs(a - b).max() > 50 for a, b in itertools.pairwise(pictures))
    assert "12 frames; one in 3 is shown" in caplog.text


def test_a_figure_is_saved_whole_or_not_at_all(
    forecast: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figure = draw(forecast)
    path = save_figure(figure, tmp_path / "new" / "a.png")
    assert path.read_bytes().startswith(b"\x89PNG")
    old = path.read_bytes()
    with pytest.raises(EnmaError, match=r"a\.xyz: unknown"):
        save_figure(figure, tmp_path / "a.xyz")

    def fail(name: Path, **_: Any) -> None:
        Path(name).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(figure, "savefig", fail)
    with pytest.raises(EnmaError, match=r"a\.png: .*written"):
        save_figure(figure, path)
    assert path.read_bytes() == old
    assert [p.name for p in path.parent.iterdir()] == ["a.png"]


def test_drawing_leaves_pyplot_and_the_style_alone() -> None:
    program = """
import sys, matplotlib, numpy as np
from enma_fast.drawing.forecast import Forecast
from enma_fast.drawing.plots import forecast_figure, forecast_panels
before = matplotlib.rcParams.copy()
members = np.random.default_rng(0).normal(size=(3, 4, 8))
forecast = Forecast(members=members, times=np.arange(4.0), coords=[np.arange(8.0)])
forecast_figure(forecast)
forecast_panels(forecast)
assert "matplotlib.pyplot" not in sys.modules
assert matplotlib.rcParams.copy() == before
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_plane_is_coloured_by_the_frame_that_it_shows(plane: Forecast) -> None:
    """A great value of an observed or an earlier frame, which the picture does not show, leaves the scale alone."""
    assert plane.truth is not None
    truth = np.full_like(plane.truth, 0.5)
    truth[0], truth[-1, 0, 0] = 9.0, 2.0
    observed = np.full((1, *truth.shape[1:]), 50.0)
    forecast = Forecast(
        times=plane.times, coords=plane.coords, mean=0.5 * truth, truth=truth, observed=observed, observed_times=[0.0]
    )
    image = forecast_figure(forecast).axes[0].collections[0]
    assert image.norm.vmax == 2.0
    # A movie shows all forecast frames on one scale, in few enough colours for a GIF.
    figure = new_figure((8, 3))
    maps = Maps(figure, forecast, None)
    maps.draw(figure.add_gridspec(1, 3))
    assert maps.images[0][0].norm.vmax == 9.0
    assert maps.images[0][0].cmap.N + maps.images[-1][0].cmap.N < 256
