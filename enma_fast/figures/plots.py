"""Figures of an ensemble forecast: maps, fan chart, error and spread, ranks, spread-skill, reliability; a movie.

Drawn off screen (Agg). On a line the maps are space-time maps; in two dimensions they show the last frame, and a movie
all of them.

Shape suffixes: K members, T forecast frames, L observed frames, Q quantile levels; `*x` space.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import EnmaError
from ..utils.extras import load_extra
from ..utils.text import counted

# Quantiles that bound the central 50, 80 and 95 % of the members, and their median.
LEVELS = (0.025, 0.1, 0.25, 0.5, 0.75, 0.9, 0.975)

_INK, _ON_MAP, _ENSEMBLE, _ERROR, _SPREAD = "#333333", "#303030", "#1f6fb4", "#c2452d", "#1f6fb4"
_TRUTH = "#111111"
# Of one band; where bands lie on each other they are darker.
_BAND_ALPHA = 0.25
_TIME = "time (dimensionless)"
_STYLE = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 9,
    "axes.edgecolor": "#888888",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    # A dollar sign in a name is a dollar sign.
    "text.parse_math": False,
    # Text as outlines: a picture looks the same wherever it is opened.
    "svg.fonttype": "path",
}
_MOST_MOVIE_FRAMES = 200


@dataclass(kw_only=True)
class Forecast:
    """One channel of one trajectory: its members, or statistics of them.

    Parameters
    ----------
    times : [T] of the forecast frames, dimensionless
    coords : one array per space dimension, dimensionless
    members : [K, T, *x]; mean, spread and num_members then follow
    mean, spread : [T, *x], where there are no members
    levels, quantiles : [Q] in (0, 1) and [Q, T, *x], without members; lacking a mean the median stands for it
    num_members : K, where it is known
    truth : [T, *x]
    observed, observed_times : [L, *x] and [L], the frames that the model saw
    name : of the channel

    Raises
    ------
    EnmaError
        If shapes do not belong together, space has more than two dimensions, or there is nothing to draw.
    """

    times: np.ndarray
    coords: Sequence[np.ndarray]
    members: np.ndarray | None = None
    mean: np.ndarray | None = None
    spread: np.ndarray | None = None
    levels: Sequence[float] = ()
    quantiles: np.ndarray | None = None
    num_members: int | None = None
    truth: np.ndarray | None = None
    observed: np.ndarray | None = None
    observed_times: np.ndarray | None = None
    name: str = "u"
    centre: str = "mean"

    def __post_init__(self) -> None:
        space = tuple(len(x) for x in self.coords)
        shape = (len(self.times), *space)
        if len(space) not in (1, 2):
            raise EnmaError(f"the field has {len(space)} space dimensions; figures are of one or two")
        for name in ("members", "quantiles", "mean", "spread", "truth"):
            values, stack = getattr(self, name), name in ("members", "quantiles")
            if values is not None and values.shape[stack:] != shape:
                first = {"members": "K, ", "quantiles": "Q, "}.get(name, "")
                raise EnmaError(f"{name} has shape {values.shape}; [{first}{', '.join(map(str, shape))}] is expected")
        if self.members is not None:
            self.num_members = len(self.members)
            self.mean = self.members.mean(0)
            self.spread = self.members.std(0, ddof=1 if self.num_members > 1 else 0)
        middle = [i for i, level in enumerate(self.levels) if abs(level - 0.5) < 1e-6]
        if self.mean is None and self.quantiles is not None and middle:
            self.mean, self.centre = self.quantiles[middle[0]], "median"
        if self.mean is None and self.spread is None:
            raise EnmaError("the forecast holds no members, mean, spread or median: there is nothing to draw")
        if self.observed is None:
            self.observed, self.observed_times = np.empty((0, *space)), np.empty(0)
        self.observed_times = np.asarray(self.observed_times)

    @property
    def seen(self) -> tuple[np.ndarray, np.ndarray]:
        """Observed frames and their times, empty where there are none."""
        assert self.observed is not None
        assert self.observed_times is not None
        return self.observed, self.observed_times

    def widest(self) -> tuple[int, ...]:
        """Grid indices of the place where the spread of the last frame is largest; the middle without a spread."""
        if self.spread is None or not np.isfinite(self.spread[-1]).any():
            return tuple(len(x) // 2 for x in self.coords)
        return tuple(int(i) for i in np.unravel_index(int(np.nanargmax(self.spread[-1])), self.spread.shape[1:]))

    def quantiles_at(self, where: tuple[int, ...]) -> tuple[Sequence[float], np.ndarray]:
        """Levels [Q] and quantiles [Q, T] at one place; of the members where there are any."""
        if self.members is not None:
            return LEVELS, np.quantile(_at(self.members, where), LEVELS, axis=0)
        if self.quantiles is not None:
            return self.levels, _at(self.quantiles, where)
        return (), np.empty((0, len(self.times)))

    def fields(self) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Truth and mean; error of the mean and spread; what there is of them."""
        values = {"truth": self.truth, f"ensemble {self.centre}": self.mean}
        error = None if self.truth is None or self.mean is None else np.abs(self.mean - self.truth)
        others = {f"error of the {self.centre} (absolute)": error, "spread (standard deviation)": self.spread}
        return (
            {label: field for label, field in values.items() if field is not None},
            {label: field for label, field in others.items() if field is not None},
        )


class SpreadErrorBins:
    """Error of the mean where the spread is small and where it is large, from any number of batches.

    Holds sums in bins an eighth of an octave wide, so splitting the points into batches differently changes only
    rounding.
    """

    _PER_OCTAVE, _LOWEST, _HIGHEST = 8, -60, 60

    def __init__(self) -> None:
        self._sums = np.zeros((3, (self._HIGHEST - self._LOWEST) * self._PER_OCTAVE))

    def update(self, spread: np.ndarray, error: np.ndarray) -> None:
        """Add points: standard deviation of the members, and mean less truth. What is not finite is left out."""
        spread, error = np.asarray(spread, np.float64).ravel(), np.asarray(error, np.float64).ravel()
        finite = np.isfinite(spread) & np.isfinite(error)
        spread, error = spread[finite], error[finite]
        octave = np.log2(np.maximum(spread, 2.0**self._LOWEST)) - self._LOWEST
        bins = np.clip((octave * self._PER_OCTAVE).astype(int), 0, self._sums.shape[1] - 1)
        for row, weights in enumerate((np.ones_like(spread), spread**2, error**2)):
            self._sums[row] += np.bincount(bins, weights, minlength=self._sums.shape[1])

    def result(self, num_members: int | None = None, most: int = 12) -> dict[str, list[float]]:
        """RMS spread and RMS error in at most `most` groups of nearly as many points, by growing spread.

        Returns
        -------
        dict with `spread`, `rmse` and `points`. With the number of members K the spread has the factor
        `sqrt((K + 1) / K)` that makes it comparable with the error of their mean (Fortin et al., 2014).
        """
        count, variance, squared = self._sums[:, self._sums[0] > 0]
        if not len(count):
            return {"spread": [], "rmse": [], "points": []}
        middle = np.cumsum(count) - count / 2
        group = np.minimum((middle / count.sum() * most).astype(int), most - 1)
        starts = np.flatnonzero(np.diff(group, prepend=-1))
        points, variance, squared = (np.add.reduceat(values, starts) for values in (count, variance, squared))
        factor = 1.0 if num_members is None else (num_members + 1) / num_members
        return {
            "spread": np.sqrt(factor * variance / points).tolist(),
            "rmse": np.sqrt(squared / points).tolist(),
            "points": points.tolist(),
        }


def forecast_figure(
    forecast: Forecast,
    *,
    point: Sequence[int] | None = None,
    scores: dict[str, Any] | None = None,
    title: str = "",
) -> Any:
    """Draw the forecast of one channel of one trajectory, and the calibration of all trajectories.

    Parameters
    ----------
    point : grid indices of the fan chart; by default where the spread of the last frame is largest
    scores : from `enma_fast.score` or like it: `num_members`, `num_trajectories`, `spread_skill`, `rmsce`, `per_frame`
        and, for one panel each, `rank_histogram`, `spread_error` (of `SpreadErrorBins`) and `reliability` (nominal and
        observed coverage)
    title : of the figure

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    EnmaError
        If the `[plots]` extra is missing.
    """
    matplotlib = load_extra("matplotlib", "plots")
    where = forecast.widest() if point is None else tuple(point)
    below = _calibration(forecast, scores)
    with matplotlib.rc_context(_STYLE):
        heights = [min(1.05, 0.3 + 0.75 * _shape(forecast)), 1, 1][: 3 if below else 2]
        figure = _figure((12, 3.2 * sum(heights)))
        rows = figure.add_gridspec(len(heights), 1, height_ratios=heights)
        _Maps(figure, forecast, where).draw(rows[0].subgridspec(1, sum(map(len, forecast.fields()))))
        middle = rows[1].subgridspec(1, 3)
        _fan(figure.add_subplot(middle[0, : 2 if scores else 3]), forecast, where)
        if scores:
            _error_and_spread(figure.add_subplot(middle[0, 2]), forecast, scores)
        if below:
            places = rows[2].subgridspec(1, len(below))
            for i, draw in enumerate(below.values()):
                draw(figure.add_subplot(places[0, i]))
        if title:
            figure.suptitle(title, x=0.01, ha="left", fontsize=12)
    return figure


def forecast_panels(forecast: Forecast, *, scores: dict[str, Any] | None = None) -> dict[str, Any]:
    """The panels of `forecast_figure` as figures of their own, narrow enough for a telephone, by what they show."""
    matplotlib = load_extra("matplotlib", "plots")
    where, made = forecast.widest(), {}
    with matplotlib.rc_context(_STYLE):
        rows = [group for group in forecast.fields() if group]
        figure = made["maps"] = _figure((5.2, (0.75 + 1.7 * min(_shape(forecast), 1.2)) * len(rows)))
        _Maps(figure, forecast, where).draw(figure.add_gridspec(len(rows), max(map(len, rows))), stacked=True)
        drawings: dict[str, Callable[[Any], None]] = {"fan chart": lambda axes: _fan(axes, forecast, where)}
        if scores:
            drawings["error and spread"] = lambda axes: _error_and_spread(axes, forecast, scores)
        for label, draw in (drawings | _calibration(forecast, scores)).items():
            made[label] = _figure((5.2, 3.6))
            draw(made[label].add_subplot())
    return made


def save_figure(figure: Any, path: str | Path) -> Path:
    """Write a figure as PNG, PDF or SVG (by its suffix): the file appears complete or not at all."""
    path = Path(path)
    kinds = sorted(figure.canvas.get_supported_filetypes())
    if path.suffix.lstrip(".") not in kinds:
        raise EnmaError(f"{path}: unknown kind of picture; end --out in one of {', '.join(kinds)}")
    matplotlib = load_extra("matplotlib", "plots")
    with matplotlib.rc_context(_STYLE):
        return write_whole(path, lambda temporary: figure.savefig(temporary, dpi=150))


def save_movie(forecast: Forecast, path: str | Path, *, title: str = "", frames_per_second: int = 6) -> Path:
    """Write the maps of a field in two dimensions over time as a GIF: it appears complete or not at all.

    Of more than 200 frames only every second, third, ... is shown, which is logged.

    Raises
    ------
    EnmaError
        If the field is on a line, `path` does not end in .gif or cannot be written, or `[plots]` is missing.
    """
    path = Path(path)
    matplotlib = load_extra("matplotlib", "plots")
    animation = load_extra("matplotlib.animation", "plots")
    if path.suffix != ".gif":
        raise EnmaError(f"{path}: a movie is a .gif; end --out in .gif")
    if len(forecast.coords) != 2:
        raise EnmaError(f"{path}: a movie shows a field in two dimensions; end --out in .png for this one on a line")
    groups = forecast.fields()
    panels = sum(map(len, groups))
    step = -(-len(forecast.times) // _MOST_MOVIE_FRAMES)
    if step > 1:
        logging.getLogger("enma_fast").info("movie: %d frames; one in %d is shown", len(forecast.times), step)

    with matplotlib.rc_context(_STYLE):
        figure = _figure((2.9 * panels + 0.4, 1.2 + 2.2 * min(_shape(forecast), 1.5)))
        maps = _Maps(figure, forecast, None)
        maps.draw(figure.add_gridspec(1, panels))
        heading = figure.suptitle(title, x=0.01, ha="left", fontsize=11)
        # The layout of the first frame serves all.
        figure.draw_without_rendering()
        figure.set_layout_engine("none")

        def write(temporary: Path) -> None:
            writer = animation.PillowWriter(fps=frames_per_second)
            with writer.saving(figure, temporary, dpi=90):
                for t in range(0, len(forecast.times), step):
                    heading.set_text(f"{title}{', ' if title else ''}time {forecast.times[t]:.3g}")
                    maps.show(t)
                    writer.grab_frame()

        return write_whole(path, write)


class _Maps:
    """Maps with one scale for fields and one for error and spread."""

    def __init__(self, figure: Any, forecast: Forecast, where: tuple[int, ...] | None) -> None:
        self.figure, self.forecast, self.where = figure, forecast, where
        self.axes: list[Any] = []
        self.images: list[tuple[Any, np.ndarray]] = []

    def draw(self, grid: Any, *, stacked: bool = False) -> None:
        """Truth, mean, error and spread side by side, or (`stacked`) the last two below the first two."""
        seen, _ = self.forecast.seen
        fields, others = self.forecast.fields()
        what = ", ".join(title.split()[0] for title in others)
        # Observed frames have neither error nor spread.
        blank = np.full_like(seen, np.nan)
        self._row(grid, 0, fields, seen, field_scale(*fields.values(), seen), self.forecast.name)
        first = grid.ncols * bool(fields) if stacked else len(fields)
        self._row(grid, first, others, blank, error_scale(*others.values()), f"{what} of {self.forecast.name}")

    def show(self, t: int) -> None:
        """Show another frame of a field in two dimensions."""
        for image, values in self.images:
            image.set_array(values[t].T)

    def _row(
        self,
        grid: Any,
        first: int,
        group: dict[str, np.ndarray],
        before: np.ndarray,
        scale: dict[str, Any],
        label: str,
    ) -> None:
        """Maps of one scale from place `first` of the grid on, and their colour bar."""
        for place, (title, values) in enumerate(group.items(), first):
            row, column = divmod(place, grid.ncols)
            # Two maps on a narrow page leave no room for what stands in brackets.
            shown = title.partition(" (")[0] if grid.nrows > 1 else title
            self._map(grid[row, column], shown, values, before, scale, first=column == 0)
        if group:
            height = min(_shape(self.forecast), 1.0)
            self.figure.colorbar(
                self.images[-1][0], ax=self.axes[-1], label=label, pad=0.02, shrink=height, aspect=25 * height
            )

    def _map(
        self, place: Any, title: str, values: np.ndarray, before: np.ndarray, scale: dict[str, Any], *, first: bool
    ) -> None:
        forecast, shared = self.forecast, self.axes[0] if self.axes else None
        axes = self.figure.add_subplot(place, sharex=shared, sharey=shared)
        self.axes.append(axes)
        axes.spines[:].set_visible(True)
        axes.set_xlabel("x (dimensionless)")
        axes.tick_params(labelleft=first)
        if len(forecast.coords) == 2:
            x, y = forecast.coords
            image = axes.pcolormesh(x, y, values[-1].T, shading="nearest", rasterized=True, **scale)
            self.images.append((image, values))
            axes.set_aspect("equal")
            # One frame of many, unless the figure's title tells which.
            time = f", time {forecast.times[-1]:.3g}" if shared is None and self.where is not None else ""
            axes.set(title=title + time, ylabel="y (dimensionless)" if first else "")
            if self.where is not None:
                axes.plot(x[self.where[0]], y[self.where[1]], "x", color=_ON_MAP, ms=6)
            return
        (x,), (_, seen_times) = forecast.coords, forecast.seen
        every = np.concatenate([seen_times, forecast.times])
        axes.set_facecolor("#e9e9e9")
        joined = np.concatenate([before, values])
        image = axes.pcolormesh(x, every, joined, shading="nearest", rasterized=True, **scale)
        self.images.append((image, values))
        if len(seen_times):
            axes.axhline((seen_times[-1] + forecast.times[0]) / 2, color=_ON_MAP, lw=1, ls="--")
            if np.isnan(before).all():
                axes.text(x.mean(), seen_times.mean(), "observed", ha="center", va="center", fontsize=8)
        if self.where is not None:
            axes.axvline(x[self.where[0]], color=_ON_MAP, lw=0.8, ls=":")
        # Time runs downward, as frames are listed; the first frame is on top.
        step = np.diff(every) if len(every) > 1 else np.ones(1)
        axes.set_ylim(every[-1] + step[-1] / 2, every[0] - step[0] / 2)
        axes.set(title=title, ylabel=_TIME if first else "")


def field_scale(*fields: np.ndarray) -> dict[str, Any]:
    """Colours of fields: zero in the middle if values have both signs, else from the least to the greatest."""
    values = np.concatenate([field[np.isfinite(field)] for field in fields]) if fields else np.empty(0)
    low, high = (float(values.min()), float(values.max())) if values.size else (-1.0, 1.0)
    if low < 0 < high or low == high:
        top = max(abs(low), abs(high)) or 1.0
        return {"cmap": "RdBu_r", "vmin": -top, "vmax": top}
    return {"cmap": "viridis", "vmin": low, "vmax": high}


def error_scale(*fields: np.ndarray) -> dict[str, Any]:
    """Colours of error and spread, from zero."""
    return {"cmap": "magma_r", "vmin": 0.0, "vmax": _greatest(*fields) or 1.0}


def _calibration(forecast: Forecast, scores: dict[str, Any] | None) -> dict[str, Callable[[Any], None]]:
    """The panels of pooled calibration that scores allow: name -> what draws it."""
    if not scores:
        return {}
    drawings: dict[str, Callable[[Any], None]] = {}
    if "rank_histogram" in scores:
        drawings["rank histogram"] = lambda axes: _ranks(axes, scores)
    if scores.get("spread_error"):
        drawings["spread and skill"] = lambda axes: _spread_and_skill(axes, forecast, scores["spread_error"])
    if scores.get("reliability"):
        drawings["reliability"] = lambda axes: _reliability(axes, scores)
    return drawings


def _fan(axes: Any, forecast: Forecast, where: tuple[int, ...]) -> None:
    """Quantile bands at one point, with the truth and the observed frames."""
    times, (seen, seen_times) = forecast.times, forecast.seen
    before = _at(seen, where)
    # The bands start at the last observed frame, where the members agree.
    start = slice(len(before) - 1, None) if len(before) else slice(0, 0)
    band_times = np.concatenate([seen_times[start], times])

    def opened(values: np.ndarray) -> np.ndarray:
        return np.concatenate([before[start], values])

    levels, quantiles = forecast.quantiles_at(where)
    mean = None if forecast.mean is None else _at(forecast.mean, where)
    for inside, lower, upper in central_intervals(levels):
        low, high = opened(quantiles[lower]), opened(quantiles[upper])
        axes.fill_between(
            band_times, low, high, color=_ENSEMBLE, alpha=_BAND_ALPHA, lw=0, label=f"{inside:.0%} of members"
        )
    if not central_intervals(levels) and mean is not None and forecast.spread is not None:
        spread = _at(forecast.spread, where)
        low, high = opened(mean - spread), opened(mean + spread)
        axes.fill_between(band_times, low, high, color=_ENSEMBLE, alpha=_BAND_ALPHA, lw=0, label="mean ± spread")
    middle = [quantiles[i] for i, level in enumerate(levels) if abs(level - 0.5) < 1e-6]
    if middle:
        axes.plot(band_times, opened(middle[0]), color=_ENSEMBLE, lw=1.5, label="median")
    elif mean is not None:
        axes.plot(band_times, opened(mean), color=_ENSEMBLE, lw=1.5, label="mean")
    if forecast.truth is not None:
        line = np.concatenate([before, _at(forecast.truth, where)])
        axes.plot(np.concatenate([seen_times, times]), line, color=_TRUTH, lw=1.2, ls="--", label="truth")
    if len(before):
        axes.plot(seen_times, before, "o", color=_TRUTH, ms=4.5, label="observed")
        axes.axvline((seen_times[-1] + times[0]) / 2, ymax=0.75, color=_INK, lw=1, ls="--", alpha=0.6)
    place = ", ".join(f"{axis} = {x[i]:.2f}" for axis, x, i in zip("xy", forecast.coords, where, strict=False))
    what = f"{forecast.num_members} members" if forecast.num_members else "forecast"
    axes.set(title=f"{what} at {place}", xlabel=_TIME, ylabel=forecast.name)
    axes.margins(x=0.01)
    # Room for the legend above the curves.
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + 0.27 * (high - low))
    handles = axes.legend(loc="upper left", ncols=3, columnspacing=1.2, handlelength=1.6).legend_handles
    # Bands lie on the wider ones; their keys in the legend do not.
    for depth in range(len(axes.collections)):
        handles[depth].set_alpha(1 - (1 - _BAND_ALPHA) ** (depth + 1))


def central_intervals(levels: Sequence[float]) -> list[tuple[float, int, int]]:
    """Central intervals between quantile levels, widest first: probability, index of lower and of upper level."""
    found = []
    for i, low in enumerate(levels):
        for j, high in enumerate(levels):
            if low < high and abs(low + high - 1) < 1e-6:
                found.append((float(high - low), i, j))
    return sorted(found, reverse=True)


def _error_and_spread(axes: Any, forecast: Forecast, scores: dict[str, Any]) -> None:
    frames = scores["per_frame"]
    error, spread = _floats(frames["rmse"]), _floats(frames["spread"])
    # Comparable with the error of a mean of K members (Fortin et al., 2014).
    members = scores["num_members"]
    spread = spread * np.sqrt((members + 1) / members if members else 1)
    axes.plot(forecast.times, error, color=_ERROR, marker="o", ms=3, label="error of the mean (RMS)")
    axes.plot(forecast.times, spread, color=_SPREAD, marker="s", ms=3, ls="--", label="spread (RMS)")
    ratio = scores["spread_skill"]
    label = "" if ratio is None else f", ratio {ratio:.2f}"
    axes.set(title=f"error and spread{label}", xlabel=_TIME, ylabel=forecast.name)
    axes.set_ylim(0, 1.3 * _greatest(error, spread) or 1)
    axes.legend(loc="upper left")


def _ranks(axes: Any, scores: dict[str, Any]) -> None:
    """Rank histogram relative to a flat one, in at most 17 bars."""
    ranks, count = scores["rank_histogram"], scores["num_trajectories"]
    axes.set(xlabel="rank of the truth among the members", ylabel="frequency / flat")
    axes.set_title(f"ranks, {counted(count, 'trajectory')}")
    if ranks is None:
        axes.text(0.5, 0.5, "one member has no ranks", transform=axes.transAxes, ha="center")
        return
    frequency, centres, width = grouped_ranks(np.asarray(ranks))
    axes.bar(centres, frequency, width=0.94 * width, color=_ENSEMBLE, alpha=0.6)
    axes.axhline(1, color=_INK, lw=1, ls="--")
    axes.set_xlim(-0.5, len(ranks) - 0.5)


def _spread_and_skill(axes: Any, forecast: Forecast, bins: dict[str, list[float]]) -> None:
    """RMS error of the points whose spread is small, ..., large; on the diagonal the spread tells the error."""
    spread, error = np.asarray(bins["spread"]), np.asarray(bins["rmse"])
    axes.set(
        xlabel=f"spread of {forecast.name} (RMS of a bin)", ylabel="error of the mean (RMS)", title="spread and skill"
    )
    top = 1.08 * _greatest(spread, error) or 1
    axes.plot([0, top], [0, top], color=_INK, lw=1, ls="--", label="spread = error")
    axes.plot(spread, error, color=_ERROR, marker="o", ms=4, lw=1.2, label="points, by spread")
    axes.set(xlim=(0, top), ylim=(0, top))
    axes.legend(loc="upper left")


def _reliability(axes: Any, scores: dict[str, Any]) -> None:
    """How often the truth lies inside an interval that should hold it with probability p."""
    nominal, observed = (np.asarray(scores["reliability"][name]) for name in ("nominal", "observed"))
    error = scores.get("rmsce")
    axes.set_title("reliability" if error is None else f"reliability, RMSCE {error:.3f}")
    axes.set(xlabel="probability of the interval", ylabel="share of the truth inside", xlim=(0, 1), ylim=(0, 1))
    axes.plot([0, 1], [0, 1], color=_INK, lw=1, ls="--", label="reliable")
    axes.fill_between(nominal, nominal, observed, color=_ENSEMBLE, alpha=_BAND_ALPHA, lw=0)
    axes.plot(nominal, observed, color=_ENSEMBLE, lw=1.8, label="forecast (Gaussian intervals)")
    axes.legend(loc="upper left" if observed.mean() < 0.6 else "lower right")


def grouped_ranks(histogram: np.ndarray, most: int = 17) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pool neighbouring ranks into at most `most` bars of nearly equal width.

    Returns
    -------
    frequency relative to that of a flat histogram, centre and width of each bar, in ranks
    """
    edges = np.unique(np.linspace(0, len(histogram), min(most, len(histogram)) + 1).round().astype(int))
    width = np.diff(edges)
    frequency = np.add.reduceat(histogram, edges[:-1]) * len(histogram) / width
    return frequency, (edges[:-1] + edges[1:] - 1) / 2, width


def _figure(size: tuple[float, float]) -> Any:
    figure = load_extra("matplotlib.figure", "plots").Figure(figsize=size, layout="constrained")
    figure.get_layout_engine().set(h_pad=0.08, w_pad=0.06, hspace=0.06)
    return figure


def write_whole(path: Path, write: Callable[[Path], Any]) -> Path:
    """Write a file beside its place and move it there, so that it appears complete or not at all."""
    temporary = path.with_name(f".{path.stem}.tmp{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        temporary.replace(path)
    except OSError as error:
        raise EnmaError(f"{path}: cannot be written ({error}); choose another --out") from error
    finally:
        # Where there is no folder there is no file, and what is told is the first error.
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
    return path


def _shape(forecast: Forecast) -> float:
    """Height of a map over its width: that of the domain in a plane, 1 for time over space."""
    if len(forecast.coords) == 1:
        return 1.0
    x, y = (float(np.ptp(axis)) for axis in forecast.coords)
    return y / x if x > 0 and y > 0 else 1.0


def _at(values: np.ndarray, where: tuple[int, ...]) -> np.ndarray:
    """Values at one point of space, the last axes."""
    index: Any = (..., *where)
    return np.asarray(values[index])


def _greatest(*fields: np.ndarray) -> float:
    """The greatest finite value, or 0."""
    return max((float(field[np.isfinite(field)].max(initial=0)) for field in fields), default=0.0)


def _floats(values: Sequence[float | None]) -> np.ndarray:
    return np.array([np.nan if value is None else value for value in values], dtype=float)
