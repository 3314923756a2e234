"""Figures of an ensemble forecast: maps, fan chart and calibration as one picture or as panels; a movie.

Drawn off screen (Agg).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import EnmaError
from ..utils.extras import load_extra
from ..utils.files import complete_file
from .calibration import calibration_panels, draw_error_and_spread
from .forecast import Forecast, central_intervals, values_at
from .maps import Maps, map_height
from .style import BAND_ALPHA, ENSEMBLE, INK, STYLE, TRUTH, new_figure

_MOST_MOVIE_FRAMES, _FRAMES_PER_SECOND = 200, 6
REMEDY = "choose another --out"
# Suffix of a movie; all others are pictures.
MOVIE = ".gif"


def forecast_figure(
    forecast: Forecast,
    *,
    scores: dict[str, Any] | None = None,
    title: str = "",
) -> Any:
    """Draw the forecast of one channel of one trajectory, and the calibration of all trajectories; a matplotlib figure.

    The fan chart is at the point of the largest spread in the last frame.

    Parameters
    ----------
    scores : scores as from `enma_fast.score`: `num_members`, `num_trajectories`, `spread_skill`, `rmsce`, `per_frame`
        and, for one panel each, `rank_histogram`, `spread_error` (of `SpreadErrorBins`) and `reliability` (nominal and
        observed coverage)
    title : title of the figure
    """
    matplotlib = load_extra("matplotlib", "plots")
    where = forecast.widest()
    below = calibration_panels(forecast, scores)
    with matplotlib.rc_context(STYLE):
        heights = [min(1.05, 0.3 + 0.75 * map_height(forecast)), 1, 1][: 3 if below else 2]
        figure = new_figure((12, 3.2 * sum(heights)))
        rows = figure.add_gridspec(len(heights), 1, height_ratios=heights)
        Maps(figure, forecast, where).draw(rows[0].subgridspec(1, sum(map(len, forecast.fields()))))
        middle = rows[1].subgridspec(1, 3)
        _draw_fan(figure.add_subplot(middle[0, : 2 if scores else 3]), forecast, where)
        if scores:
            draw_error_and_spread(figure.add_subplot(middle[0, 2]), forecast, scores)
        if below:
            places = rows[2].subgridspec(1, len(below))
            for i, draw in enumerate(below.values()):
                draw(figure.add_subplot(places[0, i]))
        if title:
            figure.suptitle(title, x=0.01, ha="left", fontsize=12)
    return figure


def forecast_panels(forecast: Forecast, *, scores: dict[str, Any] | None = None) -> dict[str, Any]:
    """Draw the panels of `forecast_figure` as separate figures, narrow enough for a telephone; name -> figure."""
    matplotlib = load_extra("matplotlib", "plots")
    where, panels = forecast.widest(), {}
    with matplotlib.rc_context(STYLE):
        rows = [group for group in forecast.fields() if group]
        figure = panels["maps"] = new_figure((5.2, (0.75 + 1.7 * min(map_height(forecast), 1.2)) * len(rows)))
        Maps(figure, forecast, where).draw(figure.add_gridspec(len(rows), max(map(len, rows))), stacked=True)
        drawings: dict[str, Callable[[Any], None]] = {"fan chart": lambda axes: _draw_fan(axes, forecast, where)}
        if scores:
            drawings["error and spread"] = lambda axes: draw_error_and_spread(axes, forecast, scores)
        for label, draw in (drawings | calibration_panels(forecast, scores)).items():
            panels[label] = new_figure((5.2, 3.6))
            draw(panels[label].add_subplot())
    return panels


def require_picture(path: Path) -> None:
    """Raise `EnmaError` for a file that is neither a picture nor a movie by its suffix, before any work is done."""
    kinds = load_extra("matplotlib.backend_bases", "plots").FigureCanvasBase.get_supported_filetypes()
    suffixes = sorted({*kinds, MOVIE.lstrip(".")})
    if path.suffix.lstrip(".") not in suffixes:
        raise EnmaError(f"{path}: unknown kind of picture; end --out in one of {', '.join(suffixes)}")


def save_figure(figure: Any, path: str | Path) -> Path:
    """Write a figure as PNG, PDF or SVG, by its suffix; the file appears complete or not at all."""
    path = Path(path)
    require_picture(path)
    if path.suffix == MOVIE:
        raise EnmaError(f"{path}: a movie has one panel for each field; draw it with save_movie")
    matplotlib = load_extra("matplotlib", "plots")
    with matplotlib.rc_context(STYLE), complete_file(path, remedy=REMEDY) as temporary:
        figure.savefig(temporary, dpi=150)
    return path


def save_movie(forecast: Forecast, path: str | Path, *, title: str = "") -> Path:
    """Write the maps of a two-dimensional field over time as a GIF; it appears complete or not at all.

    At most 200 frames are shown: of more, every second, third, ... one, which is logged. `EnmaError` if the field is
    one-dimensional, or if `path` does not end in .gif or cannot be written.
    """
    path = Path(path)
    matplotlib = load_extra("matplotlib", "plots")
    animation = load_extra("matplotlib.animation", "plots")
    if path.suffix != MOVIE:
        raise EnmaError(f"{path}: a movie is a .gif; end --out in .gif")
    if len(forecast.coords) != 2:
        raise EnmaError(f"{path}: a movie shows a field in two dimensions; end --out in .png for this one on a line")
    groups = forecast.fields()
    panels = sum(map(len, groups))
    step = -(-len(forecast.times) // _MOST_MOVIE_FRAMES)
    if step > 1:
        logging.getLogger("enma_fast").info("movie: %d frames; one in %d is shown", len(forecast.times), step)

    with matplotlib.rc_context(STYLE):
        figure = new_figure((2.9 * panels + 0.4, 1.2 + 2.2 * min(map_height(forecast), 1.5)))
        maps = Maps(figure, forecast, None)
        maps.draw(figure.add_gridspec(1, panels))
        heading = figure.suptitle(title, x=0.01, ha="left", fontsize=11)
        # All frames keep the layout of the first one.
        figure.draw_without_rendering()
        figure.set_layout_engine("none")

        writer = animation.PillowWriter(fps=_FRAMES_PER_SECOND)
        with complete_file(path, remedy=REMEDY) as temporary, writer.saving(figure, temporary, dpi=90):
            for t in range(0, len(forecast.times), step):
                heading.set_text(f"{title}{', ' if title else ''}time {forecast.times[t]:.3g}")
                maps.show(t)
                writer.grab_frame()
    return path


def _draw_fan(axes: Any, forecast: Forecast, where: tuple[int, ...]) -> None:
    """Draw quantile bands at one point, with the truth and the observed frames."""
    times, (seen, seen_times) = forecast.times, forecast.seen
    before = values_at(seen, where)
    # The bands start at the last observed frame, where the members agree.
    start = slice(len(before) - 1, None) if len(before) else slice(0, 0)
    band_times = np.concatenate([seen_times[start], times])

    def opened(values: np.ndarray) -> np.ndarray:
        return np.concatenate([before[start], values])

    levels, quantiles = forecast.quantiles_at(where)
    mean = None if forecast.mean is None else values_at(forecast.mean, where)
    for inside, lower, upper in central_intervals(levels):
        low, high = opened(quantiles[lower]), opened(quantiles[upper])
        axes.fill_between(
            band_times, low, high, color=ENSEMBLE, alpha=BAND_ALPHA, lw=0, label=f"{inside:.0%} of members"
        )
    if not central_intervals(levels) and mean is not None and forecast.spread is not None:
        spread = values_at(forecast.spread, where)
        low, high = opened(mean - spread), opened(mean + spread)
        axes.fill_between(band_times, low, high, color=ENSEMBLE, alpha=BAND_ALPHA, lw=0, label="mean ± spread")
    middle = [quantiles[i] for i, level in enumerate(levels) if abs(level - 0.5) < 1e-6]
    if middle:
        axes.plot(band_times, opened(middle[0]), color=ENSEMBLE, lw=1.5, label="median")
    elif mean is not None:
        axes.plot(band_times, opened(mean), color=ENSEMBLE, lw=1.5, label="mean")
    if forecast.truth is not None:
        line = np.concatenate([before, values_at(forecast.truth, where)])
        axes.plot(np.concatenate([seen_times, times]), line, color=TRUTH, lw=1.2, ls="--", label="truth")
    if len(before):
        if forecast.readings is None:
            axes.plot(seen_times, values_at(forecast.observed_part, where), "o", color=TRUTH, ms=4.5, label="observed")
        axes.axvline((seen_times[-1] + times[0]) / 2, ymax=0.75, color=INK, lw=1, ls="--", alpha=0.6)
    place = ", ".join(f"{axis} = {x[i]:.2f}" for axis, x, i in zip("xy", forecast.coords, where, strict=False))
    what = f"{forecast.num_members} members" if forecast.num_members else "forecast"
    axes.set(title=f"{what} at {place}", xlabel=forecast.axis_label("time"), ylabel=forecast.label)
    axes.margins(x=0.01)
    # Make room for the legend above the curves.
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + 0.27 * (high - low))
    handles = axes.legend(loc="upper left", ncols=3, columnspacing=1.2, handlelength=1.6).legend_handles
    # Each band overlaps the wider ones, but its key in the legend does not: adjust the opacity of the key.
    for depth in range(len(axes.collections)):
        handles[depth].set_alpha(1 - (1 - BAND_ALPHA) ** (depth + 1))
