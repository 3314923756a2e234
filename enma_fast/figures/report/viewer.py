"""Data of the viewer in a report: thinned to a bounded size, and encoded for the script of the page.

Shape suffixes: T frames, Q quantile levels; `*x` space.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...drawing.forecast import LEVELS, Forecast, central_intervals
from ...drawing.maps import error_scale, field_scale
from ...drawing.style import labelled
from ...errors import EnmaError
from ...utils.extras import load_extra
from .reader import StoreReader

# Largest size of the data in the page, in bytes, and the sizes to which trajectories, space and time are thinned.
VIEWER_BYTES = 3_000_000
MANY_TRAJECTORIES = 24
_FEW_TRAJECTORIES = 6
_FINE_GRID = {1: 256, 2: 64}
_MANY_FRAMES = 50
_MOST_CHANNELS = 3


@dataclass(kw_only=True)
class Thinning:
    """Selection of a store that the viewer shows, so that the page stays small.

    Attributes
    ----------
    places : indices of trajectories in the store
    channels : number of channels, from the first on
    space, time : steps between points of an axis, and between frames
    levels : levels of the quantiles
    notes : sentences on the data that are left out
    """

    places: list[int]
    channels: int
    space: int
    time: int
    levels: list[float]
    notes: list[str]

    @classmethod
    def choose(cls, reader: StoreReader, most_bytes: int = VIEWER_BYTES) -> Thinning:
        """Leave out trajectories, then grid points, then frames, until the data have at most `most_bytes` bytes."""
        dims, frames = len(reader.coords), len(reader.times)
        if dims > 2:
            raise EnmaError(f"{reader.path}: the field has {dims} space dimensions; a report shows one or two")
        has_members = reader.channels[0] in reader.dataset
        levels = list(LEVELS) if has_members else _shown_levels(reader.levels)
        channels = min(len(reader.channels), _MOST_CHANNELS)
        # 1-D: float32 profiles of truth, mean, spread and each level, and of the last observed frame; 2-D: one byte for
        # each of four maps. Base64 turns three bytes into four.
        each_frame, once = (4 * (3 + len(levels)), 4) if dims == 1 else (4, 0)
        count, space, time = min(len(reader), MANY_TRAJECTORIES), 1, 1
        longest = max(len(x) for x in reader.coords)

        def size() -> float:
            points = float(np.prod([-(-len(x) // space) for x in reader.coords]))
            return count * channels * (4 / 3 * points * (each_frame * -(-frames // time) + once) + 100 * frames)

        while size() > most_bytes:
            if count > _FEW_TRAJECTORIES:
                count -= 1
            elif longest // (space + 1) >= _FINE_GRID[dims]:
                space += 1
            elif frames // (time + 1) >= _MANY_FRAMES:
                time += 1
            elif count > 1:
                count -= 1
            elif space < longest:
                space += 1
            elif time < frames:
                time += 1
            else:
                break
        notes = []
        if count < len(reader):
            notes.append(f"{count} of {len(reader)} trajectories are shown, spread over the store.")
        if channels < len(reader.channels):
            notes.append(f"The first {channels} of {len(reader.channels)} channels are shown.")
        if space > 1:
            notes.append(f"One point in {space} along each axis is shown.")
        if time > 1:
            notes.append(f"One frame in {time} is shown.")
        places = [i * len(reader) // count for i in range(count)]
        return cls(places=places, channels=channels, space=space, time=time, levels=levels, notes=notes)

    def encode(self, forecast: Forecast) -> dict[str, Any]:
        """Encode one channel of one trajectory as base64: float32 profiles, or one byte per point of a map."""
        spread, truth, mean = forecast.spread, forecast.truth, forecast.mean
        error = None if truth is None or mean is None else mean - truth
        encoded: dict[str, Any] = {"rmse": self._rms(error), "spread_rms": self._rms(spread)}
        if len(forecast.coords) == 2:
            fields, others = forecast.fields()
            maps = [(title, values, field_scale(*fields.values())) for title, values in fields.items()]
            maps += [(title, values, error_scale(*others.values())) for title, values in others.items()]
            return {**encoded, "maps": [self._map(*each) for each in maps]}
        if forecast.members is not None:
            quantiles: np.ndarray | None = np.quantile(forecast.members, self.levels, axis=0)
        elif forecast.quantiles is not None and self.levels:
            quantiles = forecast.quantiles[[list(forecast.levels).index(level) for level in self.levels]]
        else:
            quantiles = None
        arrays = {"truth": truth, "mean": mean, "spread": spread, "quantiles": quantiles}
        encoded |= {name: _floats(self._thin(values)) for name, values in arrays.items() if values is not None}
        observed, _ = forecast.seen
        if len(observed) and forecast.readings is None:
            encoded["observed"] = _floats(observed[-1, :: self.space])
        return encoded

    def document(self, reader: StoreReader, series: list[list[dict[str, Any]]]) -> dict[str, Any]:
        """All data of the viewer, from the encoded series of each trajectory and channel."""
        bands = [
            {"label": f"{inside:.0%} of members", "low": low, "high": high}
            for inside, low, high in central_intervals(self.levels)
        ]
        document: dict[str, Any] = {
            "dims": len(reader.coords),
            "times": reader.times[:: self.time].tolist(),
            "coords": [x[:: self.space].tolist() for x in reader.coords],
            "channels": reader.channels[: self.channels],
            "labels": [reader.label(c) for c in range(self.channels)],
            "x": labelled("x", reader.axis_units.get("x")),
            "trajectories": [reader.numbers[place] for place in self.places],
            "levels": self.levels,
            "bands": bands,
            "median": next((i for i, level in enumerate(self.levels) if abs(level - 0.5) < 1e-6), None),
            "centre": "mean" if f"{reader.channels[0]}_mean" in reader.dataset or not reader.levels else "median",
            "series": series,
        }
        if len(reader.coords) == 2:
            maps = load_extra("matplotlib", "plots").colormaps
            names = ("RdBu_r", "viridis", "magma_r")
            document["colours"] = {
                name: _bytes(maps[name](np.linspace(0, 1, 255), bytes=True)[:, :3]) for name in names
            }
        return document

    def _thin(self, values: np.ndarray) -> np.ndarray:
        """Thin frames and points of `[..., T, x]`."""
        return values[..., :: self.time, :: self.space]

    def _map(self, title: str, values: np.ndarray, scale: dict[str, Any]) -> dict[str, Any]:
        shown = values[:: self.time, :: self.space, :: self.space]
        low, high = scale["vmin"], scale["vmax"]
        level = np.clip((shown.astype(np.float64) - low) / (high - low), 0, 1)
        # 255 stands for a missing value.
        data = np.where(np.isfinite(level), np.rint(np.nan_to_num(level) * 254), 255).astype(np.uint8)
        return {"title": title, "low": low, "high": high, "colours": scale["cmap"], "data": _bytes(data)}

    def _rms(self, values: np.ndarray | None) -> list[float | None] | None:
        """Root mean square of each shown frame, over all of its points."""
        if values is None:
            return None
        frames = values[:: self.time].reshape(-(-len(values) // self.time), -1).astype(np.float64)
        return [float(f"{rms:.6g}") if np.isfinite(rms) else None for rms in np.sqrt((frames**2).mean(1))]


def _shown_levels(levels: Sequence[float]) -> list[float]:
    """Levels of the four widest central intervals, and the median."""
    kept = {i for _, low, high in central_intervals(levels)[:4] for i in (low, high)}
    return [level for i, level in enumerate(levels) if i in kept or abs(level - 0.5) < 1e-6]


def _floats(values: np.ndarray) -> str:
    return _bytes(np.asarray(values, "<f4"))


def _bytes(values: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(values).tobytes()).decode()
