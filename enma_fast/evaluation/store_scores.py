"""Score the members of a forecast store, one trajectory at a time, as `scoring` does while it samples.

A trajectory is read in blocks and scored in parts of a block, so the memory does not depend on the size of the store.
After each trajectory the sums are saved beside the store, in `<store>.scores`: after an interruption the same call
resumes from there, gives the same bits as an uninterrupted one, and removes the file at the end.

Shape suffixes: K members, T forecast frames, X points along the first axis, P points of a frame.
"""

from __future__ import annotations

import glob
import hashlib
import json
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..data import FieldFile, dataset_split, read
from ..data.fields import FieldSource
from ..errors import EnmaError
from ..forecasting.channels import report_unit
from ..models.checkpoint import read_tensors, sha256, write_tensors
from ..store.layout import MASKED, OUTSIDE, POINTS
from ..store.metadata import READINGS
from ..store.read import is_missing, read_forecast, zarr_errors
from ..utils.names import SPACE
from ..utils.system import versions
from ..utils.text import counted, times
from ..utils.units import has_no_unit, same_unit
from .channel_scores import ChannelPart
from .physics import Physics
from .solver import solver_fidelity
from .task_scores import TaskScores

log = logging.getLogger("enma_fast")

# Values, of all members together, that are read and scored at a time: 64 MB of fp32, and about 64 MB of fp64 in all.
_BLOCK, _PART = 1 << 24, 1 << 20
# Readings may be so far, of their RMS, from the truth at the nearest grid points.
_NEAR = 0.5
# Trajectories that the solver runs from at a time.
_SOLVED = 64

# The truth of a channel `[T, X, ...]`, by the place of the trajectory in the store and the number of the channel.
_Truth = Callable[[int, int], Any]


def score_store(
    path: str | Path, *, truth: str | Path | None = None, progress: Callable[[int, int], None] | None = None
) -> dict[str, Any]:
    """Score the members of a forecast store, in memory that does not grow with it.

    Parameters
    ----------
    path : store, written by `enma-fast forecast`
    truth : field file with the trajectories of the store, by their numbers; by default the store's own truth
    progress : called with (steps done, steps): a trajectory is one step of the scores, and one of the physics

    Returns
    -------
    dict
        As `enma_fast.score` (see there for the task `generation`), except entries that only a run of the model can
        give. `sampling` and `precision` are as the store states them. `store` and `truth` are the files that were
        scored (None for the store's own truth).

    Raises
    ------
    EnmaError
        If the store holds no members, or not all of them, or has a damaged chunk. Also if there is no truth, or if
        channels, grid, frames or times of the field file are not the store's.
    """
    path = Path(path)
    dataset = read_forecast(path)
    attrs, channels = dataset.attrs, list(dataset.attrs["channels"])
    for name in channels:
        if name not in dataset:
            raise EnmaError(f"{path}: holds no members of {name}, only statistics; forecast again and keep the members")
    numbers = [int(number) for number in dataset["trajectory"].to_numpy()]
    shape_KTX = dataset[channels[0]].shape[1:]
    truth_of, truth_hash = _truth(path, dataset, None if truth is None else Path(truth), numbers)
    key = _key(path, dataset, truth_hash)
    # That of `.` or `..` has the name of the folder it stands for.
    real = path.resolve() if path.name in ("", "..") else path
    state = real.with_name(f"{real.name}.scores")
    name, split = dataset_split(str(attrs.get("data_name")))
    physics = _empty_physics(dataset, name)
    scores = TaskScores(channels, physics)
    _resume(state, key, scores)
    total = len(numbers) * (1 if physics is None else 2)
    for place in range(scores.num_trajectories, len(numbers)):
        amplitude, *amplitudes = _amplitudes(path, dataset, place)
        parts = _parts(path, dataset, place, truth_of)
        passed = scores.of_channels.update_in_parts(parts, shape_KTX[1], amplitudes)
        scores.all.update_in_parts(passed, shape_KTX[1], amplitude=amplitude)
        _save(state, key, scores)
        if progress is not None:
            progress(place + 1, total)
    fidelity, generated = None, attrs.get("task") == "generation"
    if physics is not None:
        for place in range(len(numbers)):
            _add_physics(physics, path, dataset, place, truth_of)
            if progress is not None:
                progress(len(numbers) + place + 1, total)
    if generated and truth is not None:
        fidelity = _solver_fidelity(path, dataset, Path(truth), numbers, name)
    _remove(state)
    return {
        "task": attrs.get("task"),
        "dataset": name,
        "split": split,
        "model": attrs.get("model"),
        **scores.result({c: dataset[c].attrs.get("units", "1") for c in channels}, has_truth=not generated),
        "solver_fidelity": fidelity,
        "num_outside": None if attrs.get(OUTSIDE) is None else len(attrs[OUTSIDE]),
        "history": attrs.get("observed_frames"),
        "points": attrs.get(POINTS),
        "num_frames": shape_KTX[1],
        "seed": attrs.get("seed"),
        "sampling": attrs.get("sampling"),
        "precision": attrs.get("precision"),
        "store": str(path),
        "truth": None if truth is None else str(truth),
    }


def _truth(path: Path, dataset: Any, file: Path | None, numbers: Sequence[int]) -> tuple[_Truth, str]:
    """A function that reads the truth, and the hash of its file."""
    channels = list(dataset.attrs["channels"])
    if file is not None:
        digest = check_truth_file(path, dataset, file, numbers)
        return _FileTruth(file, numbers, int(dataset.attrs["observed_frames"]), dataset.sizes["time"]), digest
    if any(f"{name}_truth" not in dataset for name in channels):
        seen, last = dataset.attrs.get("observed_frames", 0), dataset.sizes["time"]
        raise EnmaError(
            f"{path}: holds no truth; give a field file that does, its frames {seen} to {seen + last - 1}: --truth FILE"
        )
    return lambda place, channel: dataset[f"{channels[channel]}_truth"][place], "of the store"


class _FileTruth:
    """The truth from a field file, some trajectories at a time."""

    def __init__(self, file: Path, numbers: Sequence[int], first: int, frames: int) -> None:
        self._file, self._numbers, self._frames = file, numbers, slice(first, first + frames)
        self._begin, self._held = 0, np.empty(0, np.float32)

    def __call__(self, place: int, channel: int) -> np.ndarray:
        if not self._begin <= place < self._begin + len(self._held):
            # First one trajectory, whose size is not known, then as many as fit a part.
            count = max(1, _PART // self._held[0].size) if len(self._held) else 1
            wanted = self._numbers[place : place + count]
            self._begin, self._held = place, read(self._file, select=wanted).u[:, self._frames]
        return self._held[place - self._begin, ..., channel]


def check_truth_file(path: Path, dataset: Any, file: Path, numbers: Sequence[int]) -> str:
    """SHA-256 of a field file whose trajectories are those of the store; `EnmaError` if they cannot be."""
    attrs = dataset.attrs
    if "observed_frames" not in attrs:
        raise EnmaError(f"{path}: lacks the attribute observed_frames, which finds the forecast frames in {file}")
    last = max(numbers)

    def held(source: FieldSource) -> list[int]:
        if source.num_trajectories <= last:
            raise EnmaError(
                f"--truth {file}: holds {counted(source.num_trajectories, 'trajectory')}; {path} holds "
                f"{len(numbers)}, up to number {last}; give the file that it was forecast from"
            )
        return [last]

    data = read(file, select=held)
    seen, channels = int(attrs["observed_frames"]), list(attrs["channels"])
    axes = [name for name in SPACE if name in dataset.dims]
    grid, expected = data.u.shape[2:-1], tuple(dataset.sizes[name] for name in axes)
    if list(data.channels) != channels:
        raise EnmaError(f"{file}: its fields are {', '.join(data.channels)}; {path} forecasts {', '.join(channels)}")
    for name in channels:
        # A store may hold statistics without members.
        kinds = (f"{name}{kind}" for kind in ("", "_mean", "_spread", "_quantile"))
        kept = next((variable for variable in kinds if variable in dataset), None)
        unit, forecast = data.units.get(name, "1"), "1" if kept is None else dataset[kept].attrs.get("units", "1")
        if not (has_no_unit(unit) or has_no_unit(forecast) or same_unit(unit, forecast)):
            report_unit(f"{file}: {name}", unit, forecast, of=str(path))
    if grid != expected:
        raise EnmaError(f"{file}: the grid is {times(grid)} points; {path} has {times(expected)}")
    for name, coords in zip(axes, data.coords, strict=True):
        if not _same_places(coords, dataset[name].to_numpy(), axis=coords):
            raise EnmaError(f"{file}: dimensions/{name} has other points than {name} of {path}; give a truth at those")
    frames = dataset.sizes["time"]
    if len(data.times) < seen + frames:
        raise EnmaError(
            f"{file}: dimensions/time has {len(data.times)} frames; {path} observed {seen} and forecasts {frames} more"
        )
    if not _same_places(data.times[seen : seen + frames], dataset["time"].to_numpy(), axis=data.times):
        raise EnmaError(f"{file}: dimensions/time has other times than time of {path}; give a truth at those")
    digest = sha256(file)
    if attrs.get("data_sha256", digest) != digest:
        # If the file of the forecast held no truth, the truth is in another one.
        if f"{channels[0]}_truth" in dataset:
            log.warning("%s: is another file than %s was forecast from: its SHA-256 is not data_sha256", file, path)
        if seen and not _observed(path, dataset, data, numbers.index(last)):
            log.warning(
                "%s: the first frames of trajectory %d differ from those that %s observed; check --truth",
                file,
                last,
                path,
            )
    return digest


def _same_places(places: np.ndarray, expected: np.ndarray, *, axis: np.ndarray) -> bool:
    """True if places on an axis, such as times, are equal to a thousandth of its spacing, or to rounding in float32."""
    size = np.abs(expected).max()
    spacing = np.abs(np.diff(axis)).min() if len(axis) > 1 else size
    # Far from zero the spacing is lost in float32, and no rounding explains a shift.
    rounding = min(np.finfo(np.float32).eps / 2 * size, spacing / 4)
    return np.allclose(places, expected, rtol=0.0, atol=max(1e-3 * spacing, rounding))


def _close(values: np.ndarray, expected: np.ndarray) -> bool:
    size = np.nanmax(expected) - np.nanmin(expected)
    return np.allclose(values, expected, rtol=1e-5, atol=1e-5 * size, equal_nan=True)


def _observed(path: Path, dataset: Any, data: FieldFile, place: int) -> bool:
    """True if the file's one trajectory starts with the store's observed frames, or the store holds none."""
    if READINGS in dataset.sizes:
        return _near_readings(path, dataset, data, place)
    for c, name in enumerate(data.channels):
        if f"{name}_observed" in dataset:
            seen = _values(path, int(dataset["trajectory"][place]), dataset[f"{name}_observed"][place])
            if not _close(data.u[0, : len(seen), ..., c], seen):
                return False
    return True


def _near_readings(path: Path, dataset: Any, data: FieldFile, place: int) -> bool:
    """True if the file's one trajectory has, at the grid points nearest to the store's readings, about their values."""
    number, axes = int(dataset["trajectory"][place]), "xy"[: len(data.coords)]
    points = [_values(path, number, dataset[f"{axis}_observed"][place]) for axis in axes]
    valid, nearest = ~np.isnan(points[0]), []
    for where, x, length, ring in zip(points, data.coords, data.lengths, data.periodic, strict=True):
        distance = np.abs(where[..., None] - x)
        nearest.append((np.minimum(distance, length - distance) if ring else distance).argmin(-1))
    frames = np.broadcast_to(np.arange(len(valid))[:, None], valid.shape)
    for c, name in enumerate(data.channels):
        seen = _values(path, number, dataset[f"{name}_observed"][place])[valid]
        if np.square(data.u[(0, frames, *nearest, c)][valid] - seen).mean() > _NEAR**2 * np.square(seen).mean():
            return False
    return True


def _parts(path: Path, dataset: Any, place: int, truth_of: _Truth) -> Iterator[ChannelPart]:
    """Yield the parts of one trajectory for `ChannelScores.passing`."""
    number, nonzero = int(dataset["trajectory"][place]), False
    for channel, name in enumerate(dataset.attrs["channels"]):
        members_KTX, truth_TX = dataset[name][place], truth_of(place, channel)
        for frames, rows in _blocks(members_KTX.shape, _BLOCK):
            block_KTP = _values(path, number, members_KTX[:, frames, rows])
            block_KTP = block_KTP.reshape(*block_KTP.shape[:2], -1)
            block_TP = _values(path, number, truth_TX[frames, rows]).reshape(block_KTP.shape[1:])
            if MASKED in dataset.attrs:
                mask_P = ~np.isnan(block_TP[0])
                block_KTP, block_TP = block_KTP[..., mask_P], block_TP[:, mask_P]
            _require_finite(path, dataset, name, place, block_KTP)
            if not np.isfinite(block_TP).all():
                raise EnmaError(f"{path}: {name}_truth of trajectory {number} is not finite; give the truth by --truth")
            nonzero = nonzero or bool(block_TP.any())
            for t, p in _blocks(block_KTP.shape, _PART):
                yield channel, frames.start + t.start, block_KTP[:, t, p], block_TP[t, p]
    if not nonzero:
        raise EnmaError(
            f"{path}: the truth of trajectory {number} is zero throughout, so its relative error is not defined; "
            "forecast the others again, without it"
        )


def _amplitudes(path: Path, dataset: Any, place: int) -> list[float | None]:
    """RMS of the observed frames of a trajectory, and that of each channel; None where the store holds none."""
    names = [f"{name}_observed" for name in dataset.attrs["channels"]]
    if any(name not in dataset for name in names):
        return [None] * (1 + len(names))
    number, total, count = int(dataset["trajectory"][place]), 0.0, 0
    each: list[float | None] = []
    for name in names:
        own, seen = 0.0, count
        seen_TX = dataset[name][place]
        for frames, rows in _blocks((1, *seen_TX.shape), _BLOCK):
            values = _values(path, number, seen_TX[frames, rows])
            if READINGS in dataset.sizes or MASKED in dataset.attrs:
                # A frame may have fewer than others, and land none.
                values = values[~np.isnan(values)]
            square = float(np.square(values, dtype=np.float64).sum())
            total, count, own = total + square, count + values.size, own + square
        each.append(math.sqrt(own / (count - seen)))
    if not math.isfinite(total):
        raise EnmaError(
            f"{path}: the observed frames of trajectory {number} are not finite; run: enma-fast verify {path}"
        )
    return [math.sqrt(total / count), *each]


def _blocks(shape_KTX: Sequence[int], limit: int) -> Iterator[tuple[slice, slice]]:
    """Slices of frames and of points along the first axis, with at most `limit` values (at least one point) a block."""
    members, frames, points = shape_KTX[:3]
    each = members * math.prod(shape_KTX[3:])
    at_once = max(1, limit // (each * points))
    rows = points if each * points <= limit else max(1, limit // each)
    for t in range(0, frames, at_once):
        for x in range(0, points, rows):
            yield slice(t, min(t + at_once, frames)), slice(x, min(x + rows, points))


def _values(path: Path, number: int, array: Any) -> np.ndarray:
    """Values of a part of the store or of the truth; `EnmaError` if a chunk is damaged."""
    with zarr_errors(path, f"trajectory {number}"):
        return np.asarray(array)


def _require_finite(path: Path, dataset: Any, name: str, place: int, block_KTX: np.ndarray) -> None:
    finite = np.isfinite(block_KTX)
    if finite.all():
        return
    bad_K = ~finite.all(axis=tuple(range(1, finite.ndim)))
    first_bad = int(bad_K.argmax())
    what = f"member {int(dataset['realization'][first_bad])} of trajectory {int(dataset['trajectory'][place])}"
    if is_missing(path, dataset, name, place, first_bad):
        raise EnmaError(f"{path}: {what} is missing ({name} is NaN there); run: enma-fast verify {path}")
    raise EnmaError(f"{path}: {what} is not finite in {name}; forecast it again with other --precision or settings")


def _empty_physics(dataset: Any, name: str) -> Physics | None:
    """For the physics scores of a store; None of fields too large for it."""
    channels = list(dataset.attrs["channels"])
    members_TX = dataset[channels[0]].shape[2:]
    return None if math.prod(members_TX) * len(channels) > _BLOCK else Physics(name, members_TX[1:], len(channels))


def _add_physics(physics: Physics, path: Path, dataset: Any, place: int, truth_of: _Truth) -> None:
    """Add the members of one trajectory, in blocks."""
    channels, number = list(dataset.attrs["channels"]), int(dataset["trajectory"][place])
    at_once = max(1, _PART // (math.prod(dataset[channels[0]].shape[2:]) * len(channels)))

    def stacked(arrays: list[Any]) -> np.ndarray:
        return np.stack([_values(path, number, array) for array in arrays], axis=-1)

    seen = None
    if READINGS not in dataset.sizes and all(f"{channel}_observed" in dataset for channel in channels):
        seen = stacked([dataset[f"{channel}_observed"][place] for channel in channels])
    blocks = (
        stacked([dataset[channel][place, k : k + at_once] for channel in channels])
        for k in range(0, dataset.sizes["realization"], at_once)
    )
    truth = stacked([truth_of(place, c) for c in range(len(channels))])
    # Readings are no frames.
    amplitude = _amplitudes(path, dataset, place)[0] if seen is None else None
    physics.add(blocks, truth, seen, amplitude=amplitude)


def _solver_fidelity(path: Path, dataset: Any, truth: Path, numbers: Sequence[int], name: str) -> float | None:
    """`scoring.solver_fidelity` of the first member of all trajectories, some at a time."""
    total = 0.0
    for first in range(0, len(numbers), _SOLVED):
        part = numbers[first : first + _SOLVED]
        fields = [
            _values(path, part[0], dataset[channel][first : first + len(part), 0])
            for channel in dataset.attrs["channels"]
        ]
        mean = solver_fidelity(name, read(truth, select=part), range(len(part)), np.stack(fields, axis=-1))
        if mean is None:
            return None
        total += mean * len(part)
    return total / len(numbers)


def _key(path: Path, dataset: Any, truth_hash: str) -> str:
    """Hash of all that a saved state depends on: the store's contents, the truth, and the versions."""
    coords = {name: hashlib.sha256(values.to_numpy().tobytes()).hexdigest() for name, values in dataset.coords.items()}
    whole = {
        "attributes": dataset.attrs,
        "written": (path / "zarr.json").stat().st_mtime_ns,
        "sizes": dict(dataset.sizes),
        "coords": coords,
        "truth": truth_hash,
        "versions": versions(),
        "parts": [_BLOCK, _PART],
    }
    return hashlib.sha256(json.dumps(whole, sort_keys=True, default=str).encode()).hexdigest()


def _resume(state: Path, key: str, scores: TaskScores) -> None:
    """Take up the sums of an interrupted call, if there are any."""
    if not state.is_file():
        return
    try:
        tensors, metadata = read_tensors(state)
        if metadata.get("key") != key:
            return
        scores.restore(tensors)
    except EnmaError as error:
        log.warning("%s; scoring starts again from the first trajectory", error)
        return
    log.info("%s: resumed after %d trajectories", state, scores.num_trajectories)


def _save(state: Path, key: str, scores: TaskScores) -> None:
    arrays = {name: torch.from_numpy(value) for name, value in scores.state().items()}
    try:
        write_tensors(state, arrays, {"key": key})
    except OSError as error:
        log.warning("%s: cannot be written (%s); an interruption would lose the scores so far", state, error)


def _remove(state: Path) -> None:
    """Remove the state, and the temporary files of a save that was killed."""
    for path in (state, *state.parent.glob(f".{glob.escape(state.name)}.*")):
        with suppress(OSError):
            path.unlink()
