"""Maps of a forecast: truth and mean on one colour scale, error and spread on another.

On a line the maps are space-time maps, with the observed frames above the forecast; in two dimensions they show one
frame.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..utils.extras import load_extra
from .forecast import Forecast
from .style import ON_MAP, greatest_value

# Colours of a map in a movie: two maps of them, and the greys of letters, fit the 256 colours of a GIF.
_MOVIE_COLOURS = 96
# Share of the greatest value below which the other sign is no sign of its own.
_UNDERSHOOT = 0.02


class Maps:
    """The maps of a figure, with one colour scale for truth and mean and one for error and spread."""

    def __init__(self, figure: Any, forecast: Forecast, where: tuple[int, ...] | None) -> None:
        self.figure, self.forecast, self.where = figure, forecast, where
        self.axes: list[Any] = []
        self.images: list[tuple[Any, np.ndarray]] = []

    def draw(self, grid: Any, *, stacked: bool = False) -> None:
        """Draw truth, mean, error and spread side by side, or (`stacked`) the last two below the first two."""
        seen, _ = self.forecast.seen
        fields, others = self.forecast.fields()
        plane = len(self.forecast.coords) == 2
        # A map of a plane shows no observed frame, and a picture that is no movie the last one alone.
        shown = slice(-1 if plane and self.where is not None else None, None)
        what = ", ".join(title.split()[0] for title in others)
        # Observed frames have neither error nor spread.
        blank = np.full_like(seen, np.nan)
        before = seen if self.forecast.readings is None else self.forecast.readings
        scaled = [field[shown] for field in fields.values()] + ([] if plane else [before])
        self._row(grid, 0, fields, seen, field_scale(*scaled), self.forecast.label)
        first = grid.ncols * bool(fields) if stacked else len(fields)
        scale = error_scale(*(field[shown] for field in others.values()))
        self._row(grid, first, others, blank, scale, f"{what} of {self.forecast.label}")

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
        """Draw the maps of one scale, from cell `first` of the grid on, and their colour bar."""
        if self.where is None:
            colours = load_extra("matplotlib", "plots").colormaps[scale["cmap"]]
            scale = scale | {"cmap": colours.resampled(_MOVIE_COLOURS)}
        for place, (title, values) in enumerate(group.items(), first):
            row, column = divmod(place, grid.ncols)
            # On a narrow page there is no room for the part of a title in brackets.
            shown = title.partition(" (")[0] if grid.nrows > 1 else title
            # The truth has whole frames before it, the mean what the model saw of them.
            observed = before if title == "truth" or np.isnan(before).all() else self.forecast.observed_part
            self._map(grid[row, column], shown, values, observed, scale, leftmost=column == 0)
        if group:
            height = min(map_height(self.forecast), 1.0)
            self.figure.colorbar(
                self.images[-1][0], ax=self.axes[-1], label=label, pad=0.02, shrink=height, aspect=25 * height
            )

    def _map(
        self, place: Any, title: str, values: np.ndarray, before: np.ndarray, scale: dict[str, Any], *, leftmost: bool
    ) -> None:
        forecast, shared = self.forecast, self.axes[0] if self.axes else None
        axes = self.figure.add_subplot(place, sharex=shared, sharey=shared)
        self.axes.append(axes)
        axes.spines[:].set_visible(True)
        axes.set_xlabel(forecast.axis_label("x"))
        axes.tick_params(labelleft=leftmost)
        if len(forecast.coords) == 2:
            x, y = forecast.coords
            image = axes.pcolormesh(x, y, values[-1].T, shading="nearest", rasterized=True, **scale)
            self.images.append((image, values))
            axes.set_aspect("equal")
            # A map shows one of many frames; the title of a movie gives its time.
            time = f", time {forecast.times[-1]:.3g}" if shared is None and self.where is not None else ""
            axes.set(title=title + time, ylabel=forecast.axis_label("y") if leftmost else "")
            if self.where is not None:
                axes.plot(x[self.where[0]], y[self.where[1]], "x", color=ON_MAP, ms=6)
            return
        (x,), (_, seen_times) = forecast.coords, forecast.seen
        every = np.concatenate([seen_times, forecast.times])
        axes.set_facecolor("#e9e9e9")
        joined = np.concatenate([before, values])
        image = axes.pcolormesh(x, every, joined, shading="nearest", rasterized=True, **scale)
        self.images.append((image, values))
        if len(seen_times):
            axes.axhline((seen_times[-1] + forecast.times[0]) / 2, color=ON_MAP, lw=1, ls="--")
            drawn = title.startswith("ensemble") and self._draw_readings(axes, scale)
            if not drawn and np.isnan(before).all():
                axes.text(x.mean(), seen_times.mean(), "observed", ha="center", va="center", fontsize=8)
        if self.where is not None:
            axes.axvline(x[self.where[0]], color=ON_MAP, lw=0.8, ls=":")
        # Time runs downward, as frames are listed; the first frame is on top.
        step = np.diff(every) if len(every) > 1 else np.ones(1)
        axes.set_ylim(every[-1] + step[-1] / 2, every[0] - step[0] / 2)
        axes.set(title=title, ylabel=forecast.axis_label("time") if leftmost else "")

    def _draw_readings(self, axes: Any, scale: dict[str, Any]) -> bool:
        """Draw the readings of a line as points at their places and times; False if there are none."""
        forecast = self.forecast
        if forecast.readings is None or forecast.reading_points is None:
            return False
        _, seen_times = forecast.seen
        when = np.broadcast_to(seen_times[:, None], forecast.readings.shape)
        valid = np.isfinite(forecast.readings)
        x, values = forecast.reading_points[..., 0][valid], forecast.readings[valid]
        axes.scatter(x, when[valid], c=values, marker="|", s=30, rasterized=True, **scale)
        return True


def field_scale(*fields: np.ndarray) -> dict[str, Any]:
    """Colour scale of fields: centred at zero if values have both signs, else from the least to the greatest.

    Both signs are more than an undershoot, of less than `_UNDERSHOOT` of the greatest value.
    """
    values = np.concatenate([field[np.isfinite(field)] for field in fields]) if fields else np.empty(0)
    low, high = (float(values.min()), float(values.max())) if values.size else (-1.0, 1.0)
    if min(-low, high) > _UNDERSHOOT * max(-low, high) or low == high:
        top = max(abs(low), abs(high)) or 1.0
        return {"cmap": "RdBu_r", "vmin": -top, "vmax": top}
    # Next to nothing is shown as nothing.
    return {"cmap": "viridis", "vmin": 0.0 if 0 < low < 1e-6 * high else low, "vmax": high}


def error_scale(*fields: np.ndarray) -> dict[str, Any]:
    """Colour scale of error and spread, from zero."""
    return {"cmap": "magma_r", "vmin": 0.0, "vmax": greatest_value(*fields) or 1.0}


def map_height(forecast: Forecast) -> float:
    """Ratio of height to width of a map: that of the domain in two dimensions, 1 for a space-time map."""
    if len(forecast.coords) == 1:
        return 1.0
    x, y = (float(np.ptp(axis)) for axis in forecast.coords)
    return y / x if x > 0 and y > 0 else 1.0
