"""Figures of an ensemble forecast: maps, a fan chart at a point, error and spread over time, rank histogram.

Drawn off screen (Agg). On a line the maps are space-time maps; in two dimensions they show the last frame.

Shape suffixes: K members, T forecast frames, L observed frames; `*x` space.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .errors import EnmaError
from .extras import load_extra

# Central intervals of the fan chart, widest first.
_INTERVALS = ((0.95, "#d5e4f2"), (0.8, "#a9c9e5"), (0.5, "#6fa4d3"))
_INK, _TRUTH, _ENSEMBLE, _ERROR, _SPREAD = "#333333", "#111111", "#1f6fb4", "#c2452d", "#1f6fb4"
_STYLE = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 9,
    "axes.edgecolor": "#888888",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.edgecolor": "none",
    "legend.framealpha": 0.85,
    "legend.fontsize": 8,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
}


def forecast_figure(
    ensemble: np.ndarray,
    *,
    times: np.ndarray,
    coords: Sequence[np.ndarray],
    observed: np.ndarray | None = None,
    observed_times: np.ndarray | None = None,
    truth: np.ndarray | None = None,
    point: Sequence[int] | None = None,
    scores: dict[str, Any] | None = None,
    name: str = "u",
    title: str = "",
) -> Any:
    """Draw the forecast of one channel of one trajectory.

    Parameters
    ----------
    ensemble : [K, T, *x]
    times : [T] of the forecast frames, dimensionless
    coords : one array per space dimension, dimensionless
    observed, observed_times : [L, *x] and [L], the frames that the model saw
    truth : [T, *x]; without it there are no error panels
    point : grid indices of the fan chart; by default where the spread of the last frame is largest
    scores : from `enma_fast.score` or like it, with `per_frame` and `rank_histogram`: two panels more
    name, title : of the channel, of the figure

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    EnmaError
        If shapes do not belong together, or the `[plots]` extra is missing.
    """
    matplotlib = load_extra("matplotlib", "plots")
    figures = load_extra("matplotlib.figure", "plots")
    num_members, space = len(ensemble), ensemble.shape[2:]
    if ensemble.shape[1:] != (len(times), *(len(x) for x in coords)) or len(space) not in (1, 2):
        raise EnmaError(
            f"ensemble has shape {ensemble.shape}; [K, {len(times)}, "
            f"{', '.join(str(len(x)) for x in coords)}] is expected, on a line or in a plane"
        )
    if truth is not None and truth.shape != ensemble.shape[1:]:
        raise EnmaError(f"truth has shape {truth.shape}; the ensemble has {ensemble.shape[1:]}")
    seen = np.empty((0, *space)) if observed is None else observed
    seen_times = np.empty(0) if observed_times is None else np.asarray(observed_times)
    mean, spread = ensemble.mean(0), ensemble.std(0, ddof=1 if num_members > 1 else 0)
    where = _widest(spread[-1]) if point is None else tuple(point)

    with matplotlib.rc_context(_STYLE):
        figure = figures.Figure(figsize=(12, 6.6 if scores or truth is not None else 6.2), layout="constrained")
        figure.get_layout_engine().set(h_pad=0.08, w_pad=0.06, hspace=0.06)
        top, bottom = figure.add_gridspec(2, 1, height_ratios=(1.05, 1))
        maps = _Maps(figure, top, times, coords, seen, seen_times, name, where)
        maps.draw(mean, spread, truth)
        panels = bottom.subgridspec(1, 4 if scores else 1)
        fan = figure.add_subplot(panels[0, :2] if scores else panels[0, 0])
        _fan(fan, ensemble, times, coords, seen, seen_times, truth, where, name)
        if scores:
            _error_and_spread(figure.add_subplot(panels[0, 2]), times, scores, name)
            _ranks(figure.add_subplot(panels[0, 3]), scores)
        if title:
            figure.suptitle(title, x=0.01, ha="left", fontsize=12)
    return figure


def save_figure(figure: Any, path: str | Path) -> Path:
    """Write a figure as PNG, PDF or SVG (by its suffix): the file appears complete or not at all."""
    path = Path(path)
    kinds = sorted(figure.canvas.get_supported_filetypes())
    if path.suffix.lstrip(".") not in kinds:
        raise EnmaError(f"{path}: unknown kind of picture; end --out in one of {', '.join(kinds)}")
    temporary = path.with_name(f".{path.stem}.tmp{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(temporary, dpi=150)
        temporary.replace(path)
    except OSError as error:
        raise EnmaError(f"{path}: cannot be written ({error}); choose another --out") from error
    finally:
        temporary.unlink(missing_ok=True)
    return path


class _Maps:
    """A row of maps with one scale for fields and one for error and spread."""

    def __init__(
        self,
        figure: Any,
        place: Any,
        times: np.ndarray,
        coords: Sequence[np.ndarray],
        seen: np.ndarray,
        seen_times: np.ndarray,
        name: str,
        where: tuple[int, ...],
    ) -> None:
        self.figure, self.place, self.name, self.where = figure, place, name, where
        self.times, self.coords, self.seen, self.seen_times = times, coords, seen, seen_times
        self.axes: list[Any] = []

    def draw(self, mean: np.ndarray, spread: np.ndarray, truth: np.ndarray | None) -> None:
        """Truth, mean, error and spread; without a truth, mean and spread."""
        fields = {"ensemble mean": mean}
        others = {"spread (standard deviation)": spread}
        if truth is not None:
            fields = {"truth": truth} | fields
            others = {"error of the mean (absolute)": np.abs(mean - truth)} | others
        panels = self.place.subgridspec(1, len(fields) + len(others))
        top = max(float(np.abs(values).max()) for values in (*fields.values(), self.seen) if values.size)
        high = max(float(values.max()) for values in others.values())
        images = []
        for label, values in fields.items():
            joined = np.concatenate([self.seen, values])
            images.append(self._map(panels, label, joined, cmap="RdBu_r", vmin=-top, vmax=top))
        self._colorbar(images[-1], self.name)
        # Observed frames have neither error nor spread.
        blank = np.full_like(self.seen, np.nan)
        for label, values in others.items():
            joined = np.concatenate([blank, values])
            images.append(self._map(panels, label, joined, cmap="magma_r", vmin=0, vmax=high))
        self._colorbar(images[-1], f"{'spread' if truth is None else 'error, spread'} of {self.name}")

    def _map(self, panels: Any, label: str, field: np.ndarray, **scale: Any) -> Any:
        i = len(self.axes)
        axes = self.figure.add_subplot(panels[0, i], sharex=self.axes[0] if i else None)
        self.axes.append(axes)
        axes.spines[:].set_visible(True)
        axes.set_xlabel("x (dimensionless)")
        axes.tick_params(labelleft=i == 0)
        if len(self.coords) == 2:
            x, y = self.coords
            image = axes.pcolormesh(x, y, field[-1].T, shading="nearest", rasterized=True, **scale)
            axes.plot(x[self.where[0]], y[self.where[1]], "x", color=_INK, ms=6)
            axes.set_aspect("equal")
            axes.set(title=label, ylabel=f"y (dimensionless), time {self.times[-1]:.3g}" if i == 0 else "")
            return image
        (x,) = self.coords
        every = np.concatenate([self.seen_times, self.times])
        axes.set_facecolor("#e9e9e9")
        image = axes.pcolormesh(x, every, field, shading="nearest", rasterized=True, **scale)
        if len(self.seen_times):
            axes.axhline((self.seen_times[-1] + self.times[0]) / 2, color=_INK, lw=1, ls="--")
            if np.isnan(field[0]).all():
                axes.text(x.mean(), self.seen_times.mean(), "observed", ha="center", va="center", fontsize=8)
        axes.axvline(x[self.where[0]], color=_INK, lw=0.8, ls=":")
        # Time runs downward, as frames are listed; the first frame is on top.
        axes.set_ylim(every[-1] + (every[-1] - every[-2]) / 2, every[0] - (every[1] - every[0]) / 2)
        axes.set(title=label, ylabel="time (dimensionless)" if i == 0 else "")
        return image

    def _colorbar(self, image: Any, label: str) -> None:
        self.figure.colorbar(image, ax=self.axes[-1], label=label, pad=0.02, aspect=25)


def _fan(
    axes: Any,
    ensemble: np.ndarray,
    times: np.ndarray,
    coords: Sequence[np.ndarray],
    seen: np.ndarray,
    seen_times: np.ndarray,
    truth: np.ndarray | None,
    where: tuple[int, ...],
    name: str,
) -> None:
    """Quantile bands of the members at one point, with the truth and the observed frames."""
    members_KT, before = _at(ensemble, where), _at(seen, where)
    # The bands start at the last observed frame, where the members agree.
    start = slice(len(before) - 1, None) if len(before) else slice(0, 0)
    band_times = np.concatenate([seen_times[start], times])
    joined = np.concatenate([np.broadcast_to(before[start], (len(members_KT), len(before[start]))), members_KT], axis=1)
    for level, color in _INTERVALS:
        low, high = np.quantile(joined, [(1 - level) / 2, (1 + level) / 2], axis=0)
        axes.fill_between(band_times, low, high, color=color, lw=0, label=f"{level:.0%} of members")
    axes.plot(band_times, np.median(joined, axis=0), color=_ENSEMBLE, lw=1.5, label="median")
    if truth is not None:
        line = np.concatenate([before, _at(truth, where)])
        axes.plot(np.concatenate([seen_times, times]), line, color=_TRUTH, lw=1.2, ls="--", label="truth")
    if len(before):
        axes.plot(seen_times, before, "o", color=_TRUTH, ms=4.5, label="observed")
        axes.axvline((seen_times[-1] + times[0]) / 2, color=_INK, lw=1, ls="--", alpha=0.6)
    place = ", ".join(f"{axis} = {x[i]:.2f}" for axis, x, i in zip("xy", coords, where, strict=False))
    axes.set(title=f"{len(members_KT)} members at {place}", xlabel="time (dimensionless)", ylabel=name)
    axes.margins(x=0.01)
    # Room for the legend above the curves.
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + 0.22 * (high - low))
    axes.legend(loc="upper left", ncols=3, columnspacing=1.2, handlelength=1.6)


def _error_and_spread(axes: Any, times: np.ndarray, scores: dict[str, Any], name: str) -> None:
    frames = scores["per_frame"]
    error, spread = _floats(frames["rmse"]), _floats(frames["spread"])
    # Comparable with the error of a mean of K members (Fortin et al., 2014).
    spread = spread * np.sqrt((scores["num_members"] + 1) / scores["num_members"])
    axes.plot(times, error, color=_ERROR, marker="o", ms=3, label="error of the mean (RMS)")
    axes.plot(times, spread, color=_SPREAD, marker="s", ms=3, ls="--", label="spread (RMS)")
    ratio = scores["spread_skill"]
    label = "" if ratio is None else f", ratio {ratio:.2f}"
    axes.set(title=f"error and spread{label}", xlabel="time (dimensionless)", ylabel=name)
    axes.set_ylim(0, 1.3 * max(np.nanmax(error), np.nanmax(np.nan_to_num(spread))))
    axes.legend(loc="upper left")


def _ranks(axes: Any, scores: dict[str, Any]) -> None:
    """Rank histogram relative to a flat one, in at most 17 bars."""
    ranks = scores["rank_histogram"]
    axes.set(xlabel="rank of the truth among the members", ylabel="frequency / flat")
    axes.set_title(f"ranks, {scores['num_trajectories']} trajectories")
    if ranks is None:
        axes.text(0.5, 0.5, "one member has no ranks", transform=axes.transAxes, ha="center")
        return
    frequency, centres, width = grouped_ranks(np.asarray(ranks))
    axes.bar(centres, frequency, width=width, color=_ENSEMBLE, alpha=0.6, edgecolor="white")
    axes.axhline(1, color=_INK, lw=1, ls="--")
    axes.set_xlim(-0.5, len(ranks) - 0.5)


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


def _at(values: np.ndarray, where: tuple[int, ...]) -> np.ndarray:
    """Values at one point of space, the last axes."""
    index: Any = (..., *where)
    return np.asarray(values[index])


def _widest(spread: np.ndarray) -> tuple[int, ...]:
    return tuple(int(i) for i in np.unravel_index(int(spread.argmax()), spread.shape))


def _floats(values: Sequence[float | None]) -> np.ndarray:
    return np.array([np.nan if value is None else value for value in values], dtype=float)
