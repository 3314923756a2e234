"""The user's own fields: one data set out of a file or a folder, divided into training, validation and test.

Environments stay whole where there are five or more, and so do the series of which windows were cut. Windows of fewer
series are divided by time, and those that overlap the held-out ones are left out. Windows that were cut before are
recognised by the frames that they share.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..data import (
    FIRST_FRAME,
    SERIES,
    SPACING_TOLERANCE,
    FieldFile,
    ImportOptions,
    check_values,
    constant_channels,
    dataset_split,
    leave_out,
    read,
)
from ..data.drivers import differing, joined
from ..data.importing import imported, known_layout, windows
from ..data.selection import share_of
from ..errors import EnmaError
from ..utils.bounds import FEWEST_FRAMES
from ..utils.names import SPACE
from ..utils.text import counted

log = logging.getLogger("enma_fast")

TRAIN, VAL, TEST = "train", "val", "test-in"
SPLITS = (TRAIN, VAL, TEST)
# Users also call the last of them so.
_SHORT_TEST = "-test"
# Share of the data for each of validation and test, and fewest environments, or series, that are held out whole.
_SHARE, _FEWEST = 0.1, 5
# Windows that series too few to be divided are cut into, at least.
_WINDOWS = 20
_ENDINGS = (".h5", ".hdf5", ".nc", ".nc4", ".zarr", ".npy", ".npz")


def files_of(source: Path) -> list[Path]:
    """The files of fields that a path names: itself, or those of a folder in the order of their names."""
    if not source.exists():
        raise EnmaError(f"{source}: no such file or folder; check the path")
    if source.is_file() or source.suffix == ".zarr":
        return [source]
    for endings in (_ENDINGS[:2], _ENDINGS):
        # What was imported may lie beside its sources.
        if files := sorted(path for path in source.iterdir() if path.suffix.lower() in endings):
            return files
    raise EnmaError(f"{source}: holds no file of fields ({', '.join(_ENDINGS)})")


def name_of(source: Path) -> str:
    """Name of the data set and the model: that of the file without its split, or of the folder."""
    stem = dataset_split(source.stem)[0] if source.suffix.lower() in _ENDINGS else source.resolve().name
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", stem).strip("-.") or "own"


def split_files(source: Path) -> dict[Path, str]:
    """The split that each field file of a path is of; those out of distribution (`-test-out`) are left out."""
    files = files_of(source)
    if len(files) == 1:
        return {files[0]: TRAIN}
    named = {path: TEST if path.stem.endswith(_SHORT_TEST) else dataset_split(path.stem)[1] or TRAIN for path in files}
    if TRAIN not in named.values():
        raise EnmaError(f"{source}: its files are named as held-out data only; name one of them ...-train.h5")
    return {path: split for path, split in named.items() if split in SPLITS}


def load_splits(source: Path, options: ImportOptions | None = None) -> dict[str, FieldFile]:
    """Training, validation and test data, with the drivers and masks of some options.

    Files of a folder whose names end in `-train`, `-val` and `-test-in` (or `-test`) are these splits, files without
    such an end training data, of which splits that are lacking are taken. Longer trajectories are cut into windows as
    long as the shortest, and one or two series into 20 or more. `EnmaError` if files disagree, a value is missing, a
    channel is constant in the training data, or there are too few trajectories.
    """
    parts: dict[str, list[FieldFile]] = {}
    for path, split in split_files(source).items():
        parts.setdefault(split, []).append(_opened(path, options or ImportOptions()))
    count = sum(map(len, parts[TRAIN]))
    frames = min(len(data.times) for data in parts[TRAIN])
    if count + len(parts) <= len(SPLITS) and frames >= len(SPLITS) * FEWEST_FRAMES:
        parts[TRAIN] = [_cut(data, count * frames // _WINDOWS) for data in parts[TRAIN]]
    shortest = min(len(data.times) for files in parts.values() for data in files)
    parts = {split: [_cut(data, shortest) for data in files] for split, files in parts.items()}
    first = parts[TRAIN][0]
    for data in (data for files in parts.values() for data in files):
        _agree(first, data)
        _note_other_places(first, data)
        check_values(data)
    whole = {split: _joined(files) for split, files in parts.items()}
    lacking = [split for split in SPLITS if split not in whole]
    if lacking:
        whole[TRAIN] = _in_series(whole[TRAIN])
        divided = divide(whole[TRAIN], lacking)
        whole |= {split: whole[TRAIN].rows(rows) for split, rows in divided.items()}
    splits = {split: whole[split] for split in SPLITS}
    _check_constants(splits)
    return splits


def _opened(path: Path, options: ImportOptions) -> FieldFile:
    """The fields of a file; what a file of another format does not say must be told when it is imported."""
    if known_layout(path) and options == ImportOptions():
        return read(path)
    try:
        return imported(path, options)
    except EnmaError as error:
        raise EnmaError(f"{error}; options are those of: enma-fast data import {path} --out {path.stem}.h5") from None


def _cut(data: FieldFile, window: int) -> FieldFile:
    """Windows of so many frames, or of the fewest that can be trained on; the data where they have no more."""
    window = max(FEWEST_FRAMES, window)
    if len(data.times) <= window:
        return data
    cut = windows(data, window, window)
    log.info("%s: cut into %s of %d frames", data.path, counted(len(cut), "window"), window)
    return cut


def _in_series(data: FieldFile) -> FieldFile:
    """The data with the place of each trajectory in its series, if some are windows that overlap others."""
    if FIRST_FRAME in data.parameters:
        return data
    count, length = data.u.shape[:2]
    digests = _digests(data)
    frames = [digests[row * length :][:length] for row in range(count)]
    # Two successive frames are enough to look for; a window begins at some of them within another one.
    inside: dict[tuple[bytes, ...], tuple[int, int]] = {}
    for row, own in enumerate(frames):
        for place in range(1, length - 1):
            inside.setdefault((own[place], own[place + 1]), (row, place))
    earlier: dict[int, tuple[int, int]] = {}
    for row, own in enumerate(frames):
        other, place = inside.get((own[0], own[1]), (row, 0))
        # Fields at rest are alike at every place.
        if other != row and own[0] != own[1] and frames[other][place:] == own[: length - place]:
            earlier[row] = other, place
    if not earlier:
        return data
    starts: dict[int, tuple[int, int]] = {}
    for row in range(count):
        chain = [row]
        while chain[-1] in earlier and chain[-1] not in starts and earlier[chain[-1]][0] not in chain:
            chain.append(earlier[chain[-1]][0])
        starts.setdefault(chain[-1], (chain[-1], 0))
        for one in reversed(chain[:-1]):
            other, place = earlier[one]
            starts[one] = starts[other][0], starts[other][1] + place
    series, first = np.array([starts[row] for row in range(count)]).T
    log.info("%s: windows that overlap, of %d series", data.path, len(np.unique(series)))
    return replace(data, parameters={**data.parameters, SERIES: series, FIRST_FRAME: first})


def _check_constants(splits: dict[str, FieldFile]) -> None:
    """Raise `EnmaError` if a channel is constant in the training data, so that its scale is not known."""
    constant = constant_channels(splits[TRAIN])
    for name, value in constant.items():
        data = splits[TRAIN]
        varying = [split for split in SPLITS if name not in constant_channels(splits[split])]
        where = f"in all training trajectories, not in those for {' and '.join(varying)}" if varying else "everywhere"
        fix = "train on more trajectories in which it varies, or " if varying else ""
        fix += leave_out(data, constant, f"enma-fast data import {data.path} --out NEW.h5 ")
        raise EnmaError(f"{data.path}: {name} is {value:g} {where}; {fix}")
    told = splits[TRAIN].known
    if same := [name for name in told if name not in differing(told)]:
        raise EnmaError(
            f"{splits[TRAIN].path}: {same[0]}, which is told, is the same in all training data; leave it out of --known"
        )


def divide(data: FieldFile, lacking: Sequence[str]) -> dict[str, np.ndarray]:
    """Rows of the training data, and of each of the splits that are lacking; the same for the same data.

    `EnmaError` if there are too few trajectories.
    """
    assert data.environment is not None
    numbers, units = np.unique(data.environment, return_inverse=True)
    few = _by_trajectory
    if FIRST_FRAME in data.parameters:
        few = _by_time
        if len(numbers) < _FEWEST or len(numbers) == len(data):
            numbers, units = np.unique(data.parameters[SERIES], return_inverse=True)
    if len(numbers) < _FEWEST:
        return few(data, lacking)
    return _held_out(data, lacking, units, np.random.default_rng(0).permutation(len(numbers)))


def _by_trajectory(data: FieldFile, lacking: Sequence[str]) -> dict[str, np.ndarray]:
    """Trajectories of few environments; in pairs of one where each of them has a pair for every split."""
    assert data.environment is not None
    order = np.random.default_rng(0).permutation(len(data))
    pairs = environment_sizes(data).min() >= 2 * (len(lacking) + 1)
    if pairs:
        # Those of an environment lie evenly among those of the others.
        environment, place = data.environment[order], np.empty(len(data))
        for number in np.unique(environment):
            mine = np.flatnonzero(environment == number)
            place[mine] = np.arange(len(mine)) // 2 / len(mine)
        order = order[np.lexsort((environment, place))]
    return _held_out(data, lacking, np.arange(len(data)), order, pairs=pairs)


def _held_out(
    data: FieldFile, lacking: Sequence[str], units: np.ndarray, order: np.ndarray, *, pairs: bool = False
) -> dict[str, np.ndarray]:
    """Rows of the splits: of the first units of an order for each that is lacking, and the rest for training."""
    count = len(order)
    each = share_of(count, _SHARE)
    each += pairs and each % 2
    if count < len(lacking) * each + 1:
        raise EnmaError(
            f"{data.path}: holds {counted(count, 'trajectory')}; training, validation and test need at least "
            f"{len(lacking) + 1}, so give more, or cut them into shorter ones: enma-fast data import --window"
        )
    rows = {split: np.flatnonzero(np.isin(units, order[i * each :][:each])) for i, split in enumerate(lacking)}
    return {TRAIN: np.flatnonzero(np.isin(units, order[len(lacking) * each :])), **rows}


def _by_time(data: FieldFile, lacking: Sequence[str]) -> dict[str, np.ndarray]:
    """The last windows are those of the last split, and so on; windows that reach into a later split are left out."""
    first = data.parameters[FIRST_FRAME]
    starts = np.unique(first)
    each = share_of(len(starts), _SHARE)
    end, rows = np.inf, {}
    for split in reversed([TRAIN, *lacking]):
        free = starts[starts + len(data.times) <= end]
        if not len(free):
            raise EnmaError(
                f"{data.path}: its windows begin at {counted(len(starts), 'frame')}, too few to hold some out that do "
                "not overlap the others; import the series with a shorter --window"
            )
        kept = free if split == TRAIN else free[-each:]
        rows[split] = np.flatnonzero(np.isin(first, kept))
        end = kept[0]
    return rows


def distinct_frames(splits: dict[str, FieldFile]) -> dict[str, int]:
    """Number of different frames of each split; windows that overlap share some.

    `EnmaError` if training shows all frames of a trajectory that is held out.
    """
    digests = {split: _digests(data) for split, data in splits.items()}
    counts = {split: len(set(of_split)) for split, of_split in digests.items()}
    seen = set(digests[TRAIN])
    for split in (VAL, TEST):
        data = splits[split]
        frames = np.array([digest in seen for digest in digests[split]]).reshape(len(data), -1)
        rows = np.flatnonzero(frames.all(axis=1))
        if len(rows):
            raise EnmaError(
                f"{data.path}: {len(rows)} of its {counted(len(data), 'trajectory')} for {split} are in the training "
                f"data too, from {rows[0]} to {rows[-1]}; leave them out, part of a series by enma-fast data import "
                "--crop time=A:B"
            )
    return counts


def _digests(data: FieldFile) -> list[bytes]:
    """A hash of each frame of each trajectory."""
    frames = np.ascontiguousarray(data.u).reshape(len(data) * data.u.shape[1], -1)
    return [hashlib.blake2b(frame.tobytes(), digest_size=16).digest() for frame in frames]


def has_contexts(splits: dict[str, FieldFile]) -> bool:
    """True if every trajectory of every split has another one of its environment."""
    return all(environment_sizes(data).min() > 1 for data in splits.values())


def environment_sizes(data: FieldFile) -> np.ndarray:
    """Number of trajectories of each environment, int64."""
    assert data.environment is not None
    return np.unique(data.environment, return_counts=True)[1]


def _agree(first: FieldFile, data: FieldFile) -> None:
    """Raise `EnmaError` unless two files are of one data set."""
    facts: dict[str, Any] = {
        "channels": [", ".join(of.channels) for of in (first, data)],
        "units": [[of.units.get(channel, "1") for channel in of.channels] for of in (first, data)],
        "points": [of.u.shape[2:-1] for of in (first, data)],
        "frames": [of.u.shape[1] for of in (first, data)],
        "boundaries": [of.periodic for of in (first, data)],
        "known inputs": [sorted(of.known) for of in (first, data)],
        "places without values": [int(np.isnan(of.u[0, 0]).sum()) for of in (first, data)],
    }
    for what, (one, other) in facts.items():
        if one != other:
            raise EnmaError(
                f"{data.path}: its {what} are {other}, those of {first.path.name} {one}; convert one of them, or train "
                "on files that agree"
            )
    for what, one, other in (("times", first.times, data.times), *zip(SPACE, first.coords, data.coords, strict=False)):
        # Times may begin anywhere.
        if not np.allclose(one - one[0], other - other[0], rtol=SPACING_TOLERANCE, atol=1e-6 * np.ptp(one)):
            raise EnmaError(
                f"{data.path}: its {what} have other steps than those of {first.path.name}; interpolate them, or train "
                "on files that agree"
            )


def _note_other_places(first: FieldFile, data: FieldFile) -> None:
    """Warn where the places of a file begin elsewhere than those of the first one."""
    for axis, one, other in zip(SPACE, first.coords, data.coords, strict=False):
        if abs(other[0] - one[0]) > SPACING_TOLERANCE * np.ptp(one):
            log.warning(
                "%s: its %s begins at %g, that of %s at %g; the model counts places and knows no positions. Turn or "
                "crop one of them if these are continents or coasts",
                data.path,
                axis,
                other[0],
                first.path.name,
                one[0],
            )


def _joined(parts: list[FieldFile]) -> FieldFile:
    """Files as one; numbers of series are those of their own file, so each file has others."""
    shared = [name for name in parts[0].parameters if all(name in data.parameters for data in parts)]
    parameters = {name: np.concatenate([data.parameters[name] for data in parts]) for name in shared}
    if SERIES in shared:
        parameters[SERIES] = _numbered([data.parameters[SERIES] for data in parts])
    environment, columns = _environments(parts, [name for name in shared if name not in (SERIES, FIRST_FRAME)])
    return replace(
        parts[0],
        u=np.concatenate([data.u for data in parts]) if len(parts) > 1 else parts[0].u,
        environment=environment,
        environment_by=columns,
        parameters=parameters,
        known=joined([data.known for data in parts], [len(data) for data in parts]),
        numbers=None,
        total=None,
    )


def _environments(parts: Sequence[FieldFile], shared: Sequence[str]) -> tuple[np.ndarray, tuple[str, ...]]:
    """The environment of each trajectory of several files, and the columns that all files made theirs from.

    Environments of two files are one where their columns agree, or where no file names its columns, the parameters
    that all files share and that are those of the environment in each. Others are those of their own file.
    """
    named = {data.environment_by: data for data in parts if data.environment_by}
    if len(named) > 1:
        (one, first_file), (other, data) = list(named.items())[:2]
        raise EnmaError(
            f"{data.path}: its environments are those of {','.join(other)}, and of {first_file.path.name} those of "
            f"{','.join(one)}; import them with the same --environment"
        )
    own = [np.arange(len(data)) if data.environment is None else data.environment for data in parts]
    each = list(zip(parts, own, strict=True))
    columns = next(iter(named), tuple(name for name in shared if all(_follows(*one, [name]) for one in each)))
    numbers: dict[tuple[Any, ...], int] = {}
    environments = []
    for i, (data, alone) in enumerate(each):
        values, first, place = np.unique(alone, return_index=True, return_inverse=True)
        keys: list[tuple[Any, ...]] = [(i, number) for number in values.tolist()]
        if columns and all(name in data.parameters for name in columns):
            if data.environment_by or _follows(data, alone, columns, distinct=True):
                keys = list(zip(*(data.parameters[name][first].tolist() for name in columns), strict=True))
        elif data.environment_by:
            # Of columns of text the numbers are the same in every file.
            keys = [(None, number) for number in values.tolist()]
        environments.append(np.array([numbers.setdefault(key, len(numbers)) for key in keys])[place])
    return np.concatenate(environments), columns if all(data.environment_by for data in parts) else ()


def _follows(data: FieldFile, environment: np.ndarray, columns: Sequence[str], *, distinct: bool = False) -> bool:
    """True if some parameters are the same throughout each environment, and with `distinct` differ between them."""
    _, first, place = np.unique(environment, return_index=True, return_inverse=True)
    same = all((data.parameters[name] == data.parameters[name][first][place]).all() for name in columns)
    rows = set(zip(*(data.parameters[name][first].tolist() for name in columns), strict=True))
    return bool(same) and (not distinct or len(rows) == len(first))


def _numbered(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Numbers from 0 on for the values of each part, those of a later part after those of the parts before."""
    numbers, most = [], 0
    for values in parts:
        numbers.append(np.unique(values, return_inverse=True)[1] + most)
        most = int(numbers[-1].max()) + 1
    return np.concatenate(numbers)
