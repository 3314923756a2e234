"""A forecast store, read and scored one trajectory at a time, and the figures drawn from it.

Shape suffixes: B trajectories, K members, T frames, Q quantile levels, c channels; `*x` space.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...data import EQUATIONS, dataset_split, read
from ...data.missing import in_place
from ...drawing.calibration import SpreadErrorBins
from ...drawing.forecast import Forecast
from ...drawing.plots import forecast_figure, save_movie
from ...drawing.style import labelled
from ...errors import EnmaError
from ...evaluation.metrics import SCORES, Scores
from ...evaluation.metrics.arrays import where_there
from ...evaluation.physics import Physics
from ...evaluation.store_scores import check_truth_file
from ...evaluation.task_scores import leave_out_errors
from ...forecasting.scattered import drawn_places
from ...store.layout import POINTS, TOGETHER
from ...store.metadata import READINGS
from ...store.read import is_missing, read_forecast, zarr_errors
from ...utils.names import SPACE
from ...utils.system import memory

# Values that are scored at a time, in float64 and with copies of them.
_BLOCK = 1 << 22
# Values that are not finite, or near the largest of float32, are left out and named.
quiet = np.errstate(over="ignore", invalid="ignore")
# Memory of a trajectory while it is scored, in sizes of its values.
_COPIES = 1.5


@dataclass(kw_only=True)
class Trajectory:
    """All channels of one trajectory: members `[K, T, *x, c]` or statistics `[T, *x, c]` and `[Q, T, *x, c]`.

    What the model saw is `observed` `[L, *x, c]`, or `readings` `[L, P, c]` at scattered points.
    """

    number: int
    members: np.ndarray | None
    mean: np.ndarray | None
    spread: np.ndarray | None
    quantiles: np.ndarray | None
    truth: np.ndarray | None
    observed: np.ndarray | None
    readings: np.ndarray | None = None

    @property
    def amplitude(self) -> float | None:
        """RMS of the readings; None where whole frames were observed, or nothing was."""
        if self.readings is None:
            return None
        return _rms(self.readings[~np.isnan(self.readings)])


def _rms(x: np.ndarray) -> float:
    return float(np.sqrt(np.square(x, dtype=np.float64).mean()))


def blocks(array: np.ndarray, axis: int = 0) -> Iterator[np.ndarray]:
    """An array in parts along an axis, of at most `_BLOCK` values each or of one place; they are views."""
    at_once = max(1, _BLOCK * array.shape[axis] // max(1, array.size))
    places = [slice(None)] * axis
    for begin in range(0, array.shape[axis], at_once):
        yield array[(*places, slice(begin, begin + at_once))]


class StoreReader:
    """A forecast store, read one trajectory at a time; `truth` is a field file with the truth, if the store holds none.

    `EnmaError` if the store or the file cannot be read, or if the frames of the file do not match those of the store.
    """

    def __init__(self, path: str | Path, truth: str | Path | None = None) -> None:
        self.path = Path(path)
        self.dataset = read_forecast(path)
        attrs = self.attributes = self.dataset.attrs
        self.channels = [str(name) for name in attrs["channels"]]
        self.numbers: list[int] = self.dataset["trajectory"].to_numpy().tolist()
        self.times: np.ndarray = self.dataset["time"].to_numpy()
        self.coords: list[np.ndarray] = [self.dataset[a].to_numpy() for a in SPACE if a in self.dataset.dims]
        self.levels: list[float] = self.dataset["quantile"].to_numpy().tolist() if "quantile" in self.dataset else []
        self.num_members: int | None = self.dataset.sizes.get("realization", attrs.get("num_members"))
        self.columns: dict[str, np.ndarray] = {
            str(name): self._checked(values, str(name))
            for name, values in self.dataset.variables.items()
            if values.dims == ("trajectory",) and name != "trajectory"
        }
        self._require_memory()
        self._truth = None if truth is None else self._from_file(Path(truth))

    def _require_memory(self) -> None:
        """Raise `EnmaError` if one trajectory does not fit the memory."""
        kept = ("",) if self.channels[0] in self.dataset else ("_mean", "_spread", "_quantile")
        names = [name + kind for name in self.channels for kind in (*kept, "_truth", "_observed")]
        values = sum(math.prod(self.dataset[name].shape[1:]) for name in names if name in self.dataset)
        if (needed := _COPIES * 4 * values) > (available := memory()):
            raise EnmaError(
                f"{self.path}: one trajectory of its members takes {needed / 1e9:,.0f} GB, this machine has "
                f"{available / 1e9:,.0f} GB; score it by enma-fast score, or forecast again with --statistics-only"
            )

    def __len__(self) -> int:
        return len(self.numbers)

    def __iter__(self) -> Iterator[Trajectory]:
        return (self.trajectory(place) for place in range(len(self)))

    def trajectory(self, place: int) -> Trajectory:
        """Read the trajectory at index `place` of the store."""
        members, seen = self._read("", place), self._read("_observed", place)
        scattered = READINGS in self.dataset.sizes
        return Trajectory(
            number=self.numbers[place],
            members=members,
            mean=None if members is not None else self._read("_mean", place),
            spread=None if members is not None else self._read("_spread", place),
            quantiles=None if members is not None else self._read("_quantile", place),
            truth=self._read("_truth", place) if self._truth is None else self._truth[place],
            observed=None if scattered else seen,
            readings=seen if scattered else None,
        )

    def forecast(self, trajectory: Trajectory, channel: int) -> Forecast:
        """One channel of a trajectory, for the figures."""
        fields: dict[str, Any] = {
            name: None if x is None else x[..., channel] for name, x in vars(trajectory).items() if name != "number"
        }
        if not self.has_truth:
            fields["truth"] = None
        return Forecast(
            times=self.times,
            coords=self.coords,
            levels=self.levels,
            num_members=self.num_members,
            observed_times=self.dataset["observed_time"].to_numpy() if "observed_time" in self.dataset else None,
            observed_places=self._observed_places(trajectory),
            reading_points=self._reading_points(trajectory),
            name=self.channels[channel],
            unit=self._unit(self._variable(channel)),
            axis_units=self.axis_units,
            together=self.attributes.get(TOGETHER, 1),
            **fields,
        )

    @property
    def axis_units(self) -> dict[str, str]:
        """Units of time and space, where they are known."""
        name, _ = dataset_split(str(self.attributes.get("data_name")))
        units = {axis: self._unit(axis) for axis in ("time", "x", "y") if axis in self.dataset.variables}
        # Stores of older versions said "1" of all axes.
        wrong = "data_name" in self.attributes and name not in EQUATIONS
        return {axis: unit for axis, unit in units.items() if unit is not None and not (wrong and unit == "1")}

    def label(self, channel: int) -> str:
        """The channel, and its unit if it has one."""
        unit = self._unit(self._variable(channel))
        return self.channels[channel] if unit in (None, "1") else labelled(self.channels[channel], unit)

    def _variable(self, channel: int) -> str:
        """The name of a variable that holds values of a channel."""
        kinds = ("", *(f"_{kind}" for kind in ("mean", "spread", "quantile", "exceedance")))
        return next(name for kind in kinds if (name := self.channels[channel] + kind) in self.dataset.variables)

    def _unit(self, variable: str) -> str | None:
        unit = self.dataset[variable].attrs.get("units")
        return None if unit is None else str(unit)

    def _observed_places(self, trajectory: Trajectory) -> np.ndarray | None:
        """Where the model saw the observed frames, `[L, *x]`; None where it saw all of them."""
        count, seed, seen = self.attributes.get(POINTS), self.attributes.get("seed"), trajectory.observed
        if count is None or seed is None or seen is None:
            return None
        grid = seen.shape[1:-1]
        places = drawn_places(grid, [trajectory.number], count=count, num_frames=len(seen), seed=seed)[0]
        mask = np.zeros((len(seen), math.prod(grid)), bool)
        np.put_along_axis(mask, places, True, 1)
        return mask.reshape(seen.shape[:-1])

    def _reading_points(self, trajectory: Trajectory) -> np.ndarray | None:
        """Coordinates of the readings, `[L, P, d]`; None where whole frames were observed."""
        if trajectory.readings is None:
            return None
        place, axes = self.numbers.index(trajectory.number), SPACE[: len(self.coords)]
        return np.stack([self._values(f"{axis}_observed", place) for axis in axes], axis=-1)

    @property
    def has_truth(self) -> bool:
        """False for generated trajectories, beside which stands another draw of the same environment."""
        return self.attributes.get("task") != "generation"

    def scores(self, channel: int | None = None) -> PooledScores:
        """An empty accumulator for the scores of this store, of one channel or of all."""
        return PooledScores(self.num_members, channel, has_truth=self.has_truth)

    def physics(self) -> Physics:
        """An empty accumulator for what the physics says of this store."""
        name, _ = dataset_split(str(self.attributes.get("data_name")))
        return Physics(name, [len(x) for x in self.coords], len(self.channels))

    def place_of(self, number: int | None) -> int:
        """Index of the trajectory with this number, by default 0; `EnmaError` if there is none."""
        if number is not None and number not in self.numbers:
            raise EnmaError(f"{self.path}: has no trajectory {number}; it holds {', '.join(map(str, self.numbers))}")
        return 0 if number is None else self.numbers.index(number)

    def place_of_median_error(self) -> int:
        """Index of the trajectory whose mean has the median error, the lower one of two; 0 if none can be scored."""
        pooled = self.scores()
        scores = [(place, pooled.add(trajectory)) for place, trajectory in enumerate(self)]
        errors = sorted((float(each["rel_l2"]), place) for place, each in scores if each and each["rel_l2"] is not None)
        return errors[(len(errors) - 1) // 2][1] if errors else 0

    def channel_of(self, name: str | None) -> int:
        """Index of the channel with this name, by default 0; `EnmaError` if there is none."""
        if name is not None and name not in self.channels:
            raise EnmaError(f"{self.path}: has no channel {name!r}; it holds {', '.join(self.channels)}")
        return 0 if name is None else self.channels.index(name)

    def title(self, place: int) -> str:
        """Title of a figure: model, task and trajectory."""
        attrs = self.attributes
        source = ", ".join(str(attrs[name]) for name in ("model", "task") if name in attrs)
        data = f" of {attrs['data_name']}" if "data_name" in attrs else ""
        part = f", seen at {self.seen_points}" if self.seen_points else ""
        return f"{source}{': ' if source else ''}trajectory {self.numbers[place]}{data}{part}"

    @property
    def seen_points(self) -> str:
        """How many points of each observed frame the model saw, in words; empty if all of them."""
        count = self.attributes.get(POINTS)
        # Frames may differ in how many readings they have.
        most = "up to " if READINGS in self.dataset.sizes else ""
        return "" if count is None else f"{most}{count} points"

    def _read(self, suffix: str, place: int) -> np.ndarray | None:
        names = [name + suffix for name in self.channels]
        if any(name not in self.dataset for name in names):
            return None
        values = [self._values(name, place) for name in names]
        return values[0][..., None] if len(values) == 1 else np.stack(values, axis=-1)

    def _values(self, name: str, place: int) -> np.ndarray:
        """Values of a variable for one trajectory; `EnmaError` if its file is damaged or missing."""
        of = f"{name} of trajectory {self.numbers[place]}"
        values = self._checked(self.dataset[name].isel(trajectory=place), of)
        # Zarr reads a missing file as NaN.
        members = self.dataset[name].dims[1] == "realization"
        parts = values if members else values[None]
        for k in np.nonzero(np.isnan(parts).all(tuple(range(1, parts.ndim))))[0].tolist():
            if is_missing(self.path, self.dataset, name, place, k):
                raise EnmaError(f"{self.path}: {of} is missing; run: enma-fast verify {self.path}")
        return values

    def _checked(self, variable: Any, of: str) -> np.ndarray:
        """Values of a variable; `EnmaError` if its file is damaged."""
        with zarr_errors(self.path, of):
            return np.asarray(variable.to_numpy())

    def _from_file(self, file: Path) -> np.ndarray:
        """Frames `[B, T, *x, c]` of a field file for the trajectories and times of the store."""
        check_truth_file(self.path, self.dataset, file, self.numbers)
        seen = int(self.attributes["observed_frames"])
        truth: np.ndarray = read(file, select=np.asarray(self.numbers)).u[:, seen : seen + len(self.times)]
        return truth


class PooledScores:
    """Scores over the trajectories of a store, from its members or else from its statistics.

    A trajectory that cannot be scored, since it is not finite or its truth is zero, is left out; `left_out` says why.
    """

    def __init__(self, num_members: int | None, channel: int | None = None, *, has_truth: bool = True) -> None:
        self.left_out: dict[int, str] = {}
        self._num_members, self._has_truth = num_members, has_truth
        self._channels = slice(None) if channel is None else slice(channel, channel + 1)
        self._scores, self._bins = Scores(), SpreadErrorBins()
        self._statistics = self._spread = False

    def add(self, trajectory: Trajectory) -> dict[str, Any] | None:
        """Add a trajectory; returns its own scores, or None if it has no truth or cannot be scored."""
        members, truth = trajectory.members, trajectory.truth
        mean, spread = trajectory.mean, trajectory.spread
        if truth is None or (members is None and mean is None):
            return None
        if members is None:
            self._statistics = True
            assert mean is not None
            wide = mean[None].astype(np.float64)
            # One member has no spread.
            spread = spread if self._num_members != 1 else None
            if spread is not None:
                # Two stand-in members with the same mean and standard deviation (ddof 1).
                half = spread[None] / np.sqrt(2)
                wide = np.concatenate([wide - half, wide + half])
        else:
            wide, mean, spread = members, members.mean(0), None
            if len(members) > 1:
                # NumPy holds the deviations of all members that it is given.
                spread = np.concatenate([part.std(0, ddof=1) for part in blocks(members, 1)])
        if not truth[..., self._channels].any():
            self.left_out[trajectory.number] = "its truth is zero throughout, so its relative error is not defined"
            return None
        single = Scores()
        try:
            seen = None if trajectory.observed is None else trajectory.observed[None, ..., self._channels]
            if trajectory.readings is not None:
                valid = ~np.isnan(trajectory.readings).any(-1)
                seen = trajectory.readings[valid][None, None, ..., self._channels]
            forecast, outcome = wide[..., self._channels], truth[..., self._channels]
            if in_place(~np.isnan(outcome[None])) and not (mask := ~np.isnan(outcome[0])).all():
                forecast, outcome = where_there(forecast, mask), where_there(outcome, mask)
                seen = None if seen is None else where_there(seen, mask)
            _score(single, forecast, outcome, seen)
        except EnmaError as error:
            self.left_out[trajectory.number] = str(error)
            return None
        self._scores.merge(single)
        if spread is not None:
            self._spread = True
            self._bins.update(spread[..., self._channels], (mean - truth)[..., self._channels])
        return self._corrected(single)

    def result(self) -> dict[str, Any] | None:
        """Scores for `forecast_figure`, or None if no trajectory could be scored."""
        if not self._scores.num_trajectories:
            return None
        result = self._corrected(self._scores)
        if not self._statistics:
            result["rank_histogram"] = self._scores.rank_histogram().tolist() if self._spread else None
        if self._spread:
            nominal, observed = (values.tolist() for values in self._scores.reliability())
            result["reliability"] = {"nominal": nominal, "observed": observed}
            if self._has_truth:
                result["spread_error"] = self._bins.result(result["num_members"])
        return result

    def _corrected(self, scores: Scores) -> dict[str, Any]:
        """Scores as a dict; if they are of statistics, those that need members are None, and K is that of the store."""
        result = scores.result()
        if not self._has_truth:
            leave_out_errors(result)
        if not self._statistics:
            return result
        members = self._num_members
        # There are two stand-in members: their factor (K + 1) / K is 3 / 2.
        factor = ((members + 1) / members if members else 1.0) / 1.5
        for row in (result, result["per_frame"]):
            ratio = row["spread_skill"]
            ratios = [None if value is None else value * factor**0.5 for value in np.atleast_1d(ratio)]
            row["spread_skill"] = ratios if isinstance(ratio, list) else ratios[0]
        for name in (name for name, score in SCORES.items() if score.needs_members):
            result[name] = None
            if name in result["per_frame"]:
                result["per_frame"][name] = [None] * len(result["per_frame"][name])
        return {**result, "num_members": members}


def _score(scores: Scores, members: np.ndarray, truth: np.ndarray, seen: np.ndarray | None) -> None:
    """Add a trajectory, in parts if it is large; members `[K, T, *x, c]`, truth `[T, *x, c]`, seen `[1, L, ..., c]`."""
    if members.size <= _BLOCK:
        scores.update(members[None], truth[None], seen)
        return
    amplitude = None if seen is None else _rms(seen)
    if amplitude is not None and not math.isfinite(amplitude):
        raise EnmaError("what was observed of it is not finite")
    scores.update_in_parts(_parts(members, truth), len(truth), amplitude=amplitude)


def _parts(members: np.ndarray, truth: np.ndarray) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Members `[K, T, *x, c]` and truth `[T, *x, c]` for `Scores.update_in_parts`, some frames at a time."""
    first = 0
    for block_KtP in blocks(members.reshape(*members.shape[:2], -1), 1):
        count = block_KtP.shape[1]
        yield first, block_KtP, truth[first : first + count].reshape(count, -1)
        first += count


@quiet
def store_figure(store: str | Path | StoreReader, *, place: int = 0, channel: int = 0, title: str | None = None) -> Any:
    """Draw one trajectory of a forecast store, and the calibration of all of them, as a matplotlib figure.

    `store` may be a reader, which may have a truth from a field file; `place` and `channel` are indices in the store;
    `title` is by default model, task and trajectory.
    """
    reader = store if isinstance(store, StoreReader) else StoreReader(store)
    if not 0 <= place < len(reader):
        raise EnmaError(f"{reader.path}: has no trajectory at place {place}; it holds {len(reader)}")
    pooled = reader.scores(channel)
    for trajectory in reader:
        pooled.add(trajectory)
    for number, reason in pooled.left_out.items():
        logging.getLogger("enma_fast").warning("trajectory %d is not scored: %s", number, reason)
    return forecast_figure(
        reader.forecast(reader.trajectory(place), channel),
        scores=pooled.result(),
        title=reader.title(place) if title is None else title,
    )


@quiet
def store_movie(reader: StoreReader, out: str | Path, *, place: int = 0, channel: int = 0) -> Path:
    """Write the movie of one trajectory of a forecast store, with `plots.save_movie`."""
    return save_movie(reader.forecast(reader.trajectory(place), channel), out, title=reader.title(place))
