"""Calibration of an ensemble over all trajectories: error and spread, ranks, spread-skill and reliability."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..utils.text import counted
from .forecast import Forecast
from .style import BAND_ALPHA, ENSEMBLE, ERROR, INK, SPREAD, greatest_value

# Share of the steps from frame to frame that are most of them.
_MOSTLY = 0.75


class SpreadErrorBins:
    """Error of the mean as a function of the spread, from any number of batches of points.

    The sums are kept in bins an eighth of an octave wide, so a different split into batches changes only rounding.
    """

    _PER_OCTAVE, _LOWEST, _HIGHEST = 8, -60, 60

    def __init__(self) -> None:
        self._sums = np.zeros((3, (self._HIGHEST - self._LOWEST) * self._PER_OCTAVE))

    def update(self, spread: np.ndarray, error: np.ndarray) -> None:
        """Add points: standard deviation of the members, and mean minus truth; only finite points count."""
        spread, error = np.asarray(spread, np.float64).ravel(), np.asarray(error, np.float64).ravel()
        finite = np.isfinite(spread) & np.isfinite(error)
        spread, error = spread[finite], error[finite]
        octave = np.log2(np.maximum(spread, 2.0**self._LOWEST)) - self._LOWEST
        bins = np.clip((octave * self._PER_OCTAVE).astype(int), 0, self._sums.shape[1] - 1)
        for row, weights in enumerate((np.ones_like(spread), spread**2, error**2)):
            self._sums[row] += np.bincount(bins, weights, minlength=self._sums.shape[1])

    def result(self, num_members: int | None = None) -> dict[str, list[float]]:
        """RMS spread and RMS error in at most 12 groups of about equally many points, by increasing spread.

        A dict with `spread`, `rmse` and `points`. If the number of members K is given, the spread is multiplied by
        `sqrt((K + 1) / K)`, which makes it comparable with the error of their mean (Fortin et al., 2014).
        """
        count, variance, squared = self._sums[:, self._sums[0] > 0]
        if not len(count):
            return {"spread": [], "rmse": [], "points": []}
        middle = np.cumsum(count) - count / 2
        group = np.minimum((middle / count.sum() * 12).astype(int), 11)
        starts = np.flatnonzero(np.diff(group, prepend=-1))
        points, variance, squared = (np.add.reduceat(values, starts) for values in (count, variance, squared))
        factor = 1.0 if num_members is None else (num_members + 1) / num_members
        return {
            "spread": np.sqrt(factor * variance / points).tolist(),
            "rmse": np.sqrt(squared / points).tolist(),
            "points": points.tolist(),
        }


def calibration_panels(forecast: Forecast, scores: dict[str, Any] | None) -> dict[str, Callable[[Any], None]]:
    """Panels of pooled calibration that the scores allow: name -> function that draws it."""
    if not scores:
        return {}
    drawings: dict[str, Callable[[Any], None]] = {}
    if "rank_histogram" in scores:
        drawings["rank histogram"] = lambda axes: _draw_ranks(axes, scores)
    if scores.get("spread_error"):
        drawings["spread and skill"] = lambda axes: _draw_spread_and_skill(axes, forecast, scores["spread_error"])
    if scores.get("reliability"):
        drawings["reliability"] = lambda axes: _draw_reliability(axes, scores)
    return drawings


def draw_error_and_spread(axes: Any, forecast: Forecast, scores: dict[str, Any]) -> None:
    frames = scores["per_frame"]
    error, spread = _as_floats(frames["rmse"]), _as_floats(frames["spread"])
    # The factor makes the spread comparable with the error of a mean of K members (Fortin et al., 2014).
    members = scores["num_members"]
    spread = spread * np.sqrt((members + 1) / members if members else 1)
    axes.plot(forecast.times, error, color=ERROR, marker="o", ms=3, label="error of the mean (RMS)")
    axes.plot(forecast.times, spread, color=SPREAD, marker="s", ms=3, ls="--", label="spread (RMS)")
    ratio = scores["spread_skill"]
    title = "error and spread" if ratio is None else f"spread/error {ratio:.2f}"
    title += f", {counted(scores['num_trajectories'], 'trajectory')}"
    axes.set(title=title, xlabel=forecast.axis_label("time"), ylabel=forecast.label)
    axes.set_ylim(0, 1.3 * greatest_value(error, spread) or 1)
    axes.legend(loc="upper left")
    if _is_jagged(spread, forecast):
        note = f"{forecast.together} frames are decided together,\nthe later ones with more spread"
        axes.text(0.98, 0.04, note, transform=axes.transAxes, ha="right", va="bottom", fontsize=8)


def _is_jagged(spread: np.ndarray, forecast: Forecast) -> bool:
    """True if the spread grows within latent frames and falls from one to the next, in most steps."""
    ends, steps = forecast.ends_of_latents, np.diff(spread)
    if forecast.together < 2 or not ends.any() or ends.all():
        return False
    return bool((steps[ends] < 0).mean() >= _MOSTLY and (steps[~ends] > 0).mean() >= _MOSTLY)


def _draw_ranks(axes: Any, scores: dict[str, Any]) -> None:
    """Draw the rank histogram relative to a flat one, in at most 17 bars."""
    ranks, count = scores["rank_histogram"], scores["num_trajectories"]
    axes.set(xlabel="rank of the truth among the members", ylabel="relative frequency (even: 1)")
    axes.set_title(f"ranks, {counted(count, 'trajectory')}")
    if ranks is None:
        axes.text(0.5, 0.5, "one member has no ranks", transform=axes.transAxes, ha="center")
        return
    frequency, centres, width = grouped_ranks(np.asarray(ranks))
    axes.bar(centres, frequency, width=0.94 * width, color=ENSEMBLE, alpha=0.6)
    axes.axhline(1, color=INK, lw=1, ls="--")
    axes.set_xlim(-0.5, len(ranks) - 0.5)


def _draw_spread_and_skill(axes: Any, forecast: Forecast, bins: dict[str, list[float]]) -> None:
    """Draw the RMS error of groups of points against their spread; on the diagonal the two are equal."""
    spread, error = np.asarray(bins["spread"]), np.asarray(bins["rmse"])
    axes.set(
        xlabel=f"spread of {forecast.label} (RMS of a bin)", ylabel="error of the mean (RMS)", title="spread and skill"
    )
    top = 1.08 * greatest_value(spread, error) or 1
    axes.plot([0, top], [0, top], color=INK, lw=1, ls="--", label="spread = error")
    axes.plot(spread, error, color=ERROR, marker="o", ms=4, lw=1.2, label="grid points, in bins of spread")
    axes.set(xlim=(0, top), ylim=(0, top))
    axes.legend(loc="upper left")


def _draw_reliability(axes: Any, scores: dict[str, Any]) -> None:
    """Draw how often the truth lies in an interval of probability p, against p."""
    nominal, observed = (np.asarray(scores["reliability"][name]) for name in ("nominal", "observed"))
    error = scores.get("rmsce")
    axes.set_title("reliability" if error is None else f"reliability, RMSCE {error:.3f}")
    axes.set(xlabel="probability of the interval", ylabel="share of the truth inside", xlim=(0, 1), ylim=(0, 1))
    axes.plot([0, 1], [0, 1], color=INK, lw=1, ls="--", label="reliable")
    axes.fill_between(nominal, nominal, observed, color=ENSEMBLE, alpha=BAND_ALPHA, lw=0)
    axes.plot(nominal, observed, color=ENSEMBLE, lw=1.8, label="forecast (Gaussian intervals)")
    axes.legend(loc="upper left" if observed.mean() < 0.6 else "lower right")


def grouped_ranks(histogram: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pool neighbouring ranks into at most 17 bars of nearly equal width.

    Returns the frequency relative to that of a flat histogram, and centre and width of each bar in ranks.
    """
    edges = np.unique(np.linspace(0, len(histogram), min(17, len(histogram)) + 1).round().astype(int))
    width = np.diff(edges)
    frequency = np.add.reduceat(histogram, edges[:-1]) * len(histogram) / width
    return frequency, (edges[:-1] + edges[1:] - 1) / 2, width


def _as_floats(values: Sequence[float | None]) -> np.ndarray:
    return np.array([np.nan if value is None else value for value in values], dtype=float)
