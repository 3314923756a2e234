"""Own data: `enma_fast.train` beside what a user may have written, for equal CPU seconds of one thread.

    python -m benchmarks.own_data --set ks --seconds 120 --seed 0 --out benchmarks/results/own-data.json
    python -m benchmarks.own_data --quick
    python -m benchmarks.own_data page --out docs/own-data-compared.md

All methods learn from the training split that `enma_fast.train` makes of one file of solutions (`own_sets`), and
forecast the trajectories of another from three frames. The learning rate of each network (`own_networks`) is chosen on
the validation split, by runs of a tenth of the time each. All clocks are CPU seconds, those of `enma_fast.train` too:
on a machine that others use its budget is what it would be on one's own.

`--quick` measures the rows of a minute again, in less than ten minutes, and fails if one does not hold.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

import enma_fast
from benchmarks.harness import machine
from benchmarks.own_networks import HISTORY, NETWORKS, fit, relative_errors
from benchmarks.own_results import FIELD, QUICK_SECONDS, RESULTS, broken, load, merged, page
from benchmarks.own_sets import SETS, write_set
from benchmarks.rows import as_json
from enma_fast.data import FieldFile, read
from enma_fast.data.drivers import rows_of
from enma_fast.evaluation.baselines import Method, Observations, baselines
from enma_fast.evaluation.metrics import crps, relative_l2
from enma_fast.forecasting.members import sample_fields
from enma_fast.training.own_data import load_splits
from enma_fast.training.own_model import floor_methods, prepare_own
from enma_fast.training.own_plan import EQUATION, Request
from enma_fast.utils.files import write_atomic

GROUPS = ("closed", FIELD, *NETWORKS)
MEMBERS = 16
# Of a network's learning rates the best on validation data is taken, by runs of this share of the time.
RATES, SHARE = (5e-4, 1e-3, 2e-3, 4e-3), 0.1
# Forecasts that are made at a time, by the number of space dimensions: members of one trajectory, or trajectories.
_ROWS = {1: 64, 2: 32}
_LEVELS = {"coverage_50": 0.5, "coverage_90": 0.9}

# Members `[B, K, T, *x, c]` of trajectories of a file, by their numbers.
Forecast = Callable[[FieldFile, Sequence[int]], Tensor]


class Totals:
    """Scores of forecasts of standardised fields, batch by batch."""

    def __init__(self) -> None:
        self.errors: list[Tensor] = []
        self.weights: list[int] = []
        self.parts: list[dict[str, float]] = []
        self.members = 0

    def add(self, members_BKTxc: Tensor, truth_BTxc: Tensor) -> None:
        """Add a batch of members and what came."""
        members, truth = members_BKTxc.double(), truth_BTxc.double()
        self.members = count = members.shape[1]
        mean = members.mean(1)
        self.errors.append(relative_l2(mean, truth))
        self.weights.append(len(truth))
        part = {"crps": float(crps(members, truth)), "error": float((mean - truth).square().mean())}
        if count > 1:
            part["variance"] = float(members.var(1).mean())
            ordered = members.sort(1).values
            for name, level in _LEVELS.items():
                low, high = (_quantile(ordered, (1 + sign * level) / 2) for sign in (-1, 1))
                part[name] = float(((low <= truth) & (truth <= high)).double().mean())
        self.parts.append(part)

    def result(self) -> dict[str, float | None]:
        """Figures of all batches; spread and coverage of one member are None."""
        errors = torch.cat(self.errors)
        mean = {
            key: float(np.average([part[key] for part in self.parts], weights=self.weights)) for key in self.parts[0]
        }
        found: dict[str, float | None] = {
            "rel_l2": float(errors.mean()),
            "rel_l2_median": float(errors.median()),
            "crps": mean["crps"],
            "spread_skill": None,
            **dict.fromkeys(_LEVELS),
        }
        if self.members > 1:
            factor = (self.members + 1) / self.members
            found["spread_skill"] = float(np.sqrt(factor * mean["variance"] / mean["error"]))
            found |= {name: mean[name] for name in _LEVELS}
        return found


def _quantile(ordered_BKTxc: Tensor, share: float) -> Tensor:
    """Below it a truth that is one more member lies with this probability, as far as the members reach."""
    count = ordered_BKTxc.shape[1]
    place = min(max(share * (count + 1) - 1, 0.0), count - 1.0)
    low = min(int(place), count - 2)
    return torch.lerp(ordered_BKTxc[:, low], ordered_BKTxc[:, low + 1], place - low)


def scored(
    forecast: Forecast, test: FieldFile, mean: np.ndarray, scale: np.ndarray, *, members: int = 1
) -> dict[str, Any]:
    """Scores of members `[B, K, T, *x, c]` of trajectories by their numbers, and CPU milliseconds of a member.

    A mask of the test data leaves out what it does not have.
    """
    totals, seconds, made = Totals(), 0.0, 0
    each = max(1, _ROWS[test.u.ndim - 3] // members)
    # The first call pays for what later ones find in caches.
    forecast(test, range(1))
    for first in range(0, len(test), each):
        numbers = range(first, min(first + each, len(test)))
        begun = time.process_time()
        values = forecast(test, numbers)
        seconds += time.process_time() - begun
        made += values.shape[0] * values.shape[1]
        truth = torch.from_numpy((test.u[list(numbers), HISTORY:] - mean) / scale)
        found = (values - torch.from_numpy(mean)) / torch.from_numpy(scale)
        if test.mask is not None:
            there = torch.from_numpy(test.mask)
            found, truth = found[:, :, :, there], truth[:, :, there]
        totals.add(found, truth)
    return {**totals.result(), "member_ms": 1e3 * seconds / made, "members": totals.members}


def closed_rows(source: Path, run: Path, request: Request, score: Callable[..., dict[str, Any]]) -> Iterable[dict]:
    """Persistence, climatology, damped persistence, and the best linear floor of those that `train` tried."""
    plan = prepare_own(source, run, request)
    train = read(run / "data" / f"{plan.recipe.model.dataset}-train.h5")
    clock = time.process_time
    begun = clock()
    methods = baselines(train)
    fitted = {"persistence": 0.0, "climatology": clock() - begun}
    others = {name: error for name, error in plan.floors.items() if name != EQUATION}
    floors: dict[str, dict[str, float]] = {"damped persistence": {}, "linear": others}
    if plan.best == EQUATION:
        floors[EQUATION] = {EQUATION: plan.floors[EQUATION]}
    for name, tried in floors.items():
        begun = clock()
        methods |= floor_methods(replace(plan, floors=tried), train)
        # Damped persistence is fitted each time.
        fitted[name] = max(0.0, clock() - begun - fitted.get("damped persistence", 0.0))
    for name, method in methods.items():
        more = {"kind": plan.linear} if name == "linear" else {}
        yield {"method": name, "train_s": fitted[name], **score(_by_method(method)), **more}


def _by_method(method: Method) -> Forecast:
    def forecast(test: FieldFile, numbers: Sequence[int]) -> Tensor:
        observed = test.u[list(numbers), :HISTORY]
        frames = test.u.shape[1] - HISTORY
        given = Observations(
            history=observed, context=None, num_frames=frames, num_members=1, trajectories=list(numbers), seed=0
        )
        return torch.as_tensor(np.asarray(method(given)))

    return forecast


def field_row(source: Path, run: Path, request: Request, score: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    """The model of `enma_fast.train`, the whole of it counted: plan, floors, training, calibration, own scores."""
    begun = time.process_time()
    with patch("time.monotonic", time.process_time), patch("time.perf_counter", time.process_time):
        model = enma_fast.train(source, run, minutes=request.minutes, seed=request.seed)
    used = time.process_time() - begun

    def forecast(test: FieldFile, numbers: Sequence[int]) -> Tensor:
        history = torch.from_numpy(test.u[list(numbers), :HISTORY])
        known = rows_of(test.known, list(numbers))
        found = sample_fields(
            model, history, num_members=MEMBERS, trajectories=numbers, seed=request.seed, known=known, warn=False
        )
        return found[:, :, : test.u.shape[1] - HISTORY]

    return {"method": FIELD, "train_s": used, **score(forecast, members=MEMBERS), "parameters": _size(model)}


def network_row(
    kind: str,
    splits: Mapping[str, FieldFile],
    scales: tuple[np.ndarray, np.ndarray],
    score: Callable[..., dict[str, Any]],
    *,
    seconds: float,
    seed: int,
) -> dict[str, Any]:
    """A network with the best of some learning rates; the seconds of the runs that chose it are not counted."""
    mean, scale = scales
    fields = {split: torch.from_numpy((data.u - mean) / scale) for split, data in splits.items()}
    train, val = fields["train"], fields["val"]
    periodic, told = splits["train"].periodic, told_maps(splits["train"], splits["train"])

    @torch.inference_mode()
    def validation(rate: float) -> float:
        with torch.inference_mode(False):
            model = fit(kind, train, periodic, seconds=SHARE * seconds, learning_rate=rate, seed=seed, told_Bxk=told)
        maps = told_maps(splits["val"], splits["train"])
        parts = zip(val.split(8), [None] * len(val) if maps is None else maps.split(8), strict=False)
        made = torch.cat([model(part[:, :HISTORY], part.shape[1] - HISTORY, known) for part, known in parts])
        return float(relative_errors(made, val[:, HISTORY:]).mean())

    tried = {rate: validation(rate) for rate in RATES}
    rate = min(tried, key=lambda rate: tried[rate] if np.isfinite(tried[rate]) else np.inf)
    begun = time.process_time()
    model = fit(kind, train, periodic, seconds=seconds, learning_rate=rate, seed=seed, told_Bxk=told)
    used = time.process_time() - begun

    @torch.inference_mode()
    def forecast(test: FieldFile, numbers: Sequence[int]) -> Tensor:
        history = torch.from_numpy((test.u[list(numbers), :HISTORY] - mean) / scale)
        maps = told_maps(test, splits["train"])
        known = None if maps is None else maps[list(numbers)]
        made = model(history, test.u.shape[1] - HISTORY, known)
        return (made * torch.from_numpy(scale) + torch.from_numpy(mean))[:, None]

    chosen = {f"{rate:g}": error for rate, error in tried.items()}
    row = {"method": kind, "train_s": used, **score(forecast), "parameters": _size(model)}
    return {**row, "learning_rate": rate, "validation": chosen}


def told_maps(data: FieldFile, train: FieldFile) -> Tensor | None:
    """Drivers that stay in time as standardised maps `[B, *x, k]`; None without any."""
    if not data.known:
        return None
    grid = data.u.shape[2:-1]
    maps = [
        np.broadcast_to(((values - train.known[name].mean()) / train.known[name].std())[:, 0], (len(data), *grid))
        for name, values in data.known.items()
    ]
    return torch.from_numpy(np.stack(maps, -1).astype(np.float32))


def _size(model: torch.nn.Module) -> int:
    return sum(part.numel() for part in model.parameters())


def measure(name: str, work: Path, *, seconds: float, seed: int, groups: Sequence[str]) -> Iterable[dict[str, Any]]:
    """Rows of a set, one for each method; data and runs lie in a folder, where a finished run is used again."""
    run = work / "runs" / f"{name}-{seconds:g}-{seed}"
    yield from measure_files(write_set(name, work / "sets" / name), run, seconds=seconds, seed=seed, groups=groups)


def measure_files(
    source: Path, run: Path, *, seconds: float, seed: int, groups: Sequence[str]
) -> Iterable[dict[str, Any]]:
    """Rows of the files `NAME-train.h5` and `NAME-test-in.h5` of the folder `NAME`."""
    name = source.name
    splits, test = load_splits(source), read(source / f"{name}-test-in.h5")
    train = splits["train"].u
    axes, there = tuple(range(train.ndim - 1)), True if splits["train"].mask is None else splits["train"].mask
    moments = (train.mean(axes, dtype="f8", where=there), train.std(axes, dtype="f8", where=there))
    mean, scale = (part.astype(np.float32) for part in moments)
    request = Request(minutes=seconds / 60, seed=seed)

    def score(forecast: Forecast, **given: int) -> dict[str, Any]:
        return scored(forecast, test, mean, scale, **given)

    def rows() -> Iterable[dict[str, Any]]:
        # First of all, or the plan would be made outside of its seconds.
        if FIELD in groups:
            yield field_row(source, run, request, score)
        if "closed" in groups:
            yield from closed_rows(source, run, request, score)
        for kind in NETWORKS:
            if kind in groups:
                yield network_row(kind, splits, (mean, scale), score, seconds=seconds, seed=seed)

    about = {"case": "own-data", "set": name, "seed": seed, "seconds": seconds}
    about |= {"train": len(splits["train"]), "test": len(test), "frames": test.u.shape[1] - HISTORY}
    for row in rows():
        yield {**about, **row, "machine": machine()}


def main(arguments: Sequence[str] | None = None) -> None:
    """See the module."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.own_data", description=__doc__.split("\n")[0])
    parser.add_argument("what", nargs="?", choices=["measure", "page"], default="measure")
    parser.add_argument("--set", choices=list(SETS), default="ks")
    parser.add_argument("--seconds", type=float, default=120.0, help="CPU seconds of training, each method")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--methods", nargs="+", choices=GROUPS, default=GROUPS, help="'closed' are those without steps")
    parser.add_argument("--quick", action="store_true", help="measure the rows of a minute, and compare them")
    parser.add_argument("--work", type=Path, default=Path("out/own-data"), help="folder for data and runs")
    parser.add_argument("--out", type=Path, help="result file that the rows are added to, or the page")
    given = parser.parse_args(arguments)
    if given.what == "page":
        text = page(load(RESULTS))
        if given.out is None:
            print(text, end="")
        else:
            write_atomic(given.out, text.encode())
        return
    if os.environ.get("OMP_NUM_THREADS") != "1":
        sys.exit("OMP_NUM_THREADS is not 1; run OMP_NUM_THREADS=1 python -m benchmarks.own_data ...")
    torch.set_num_threads(1)
    if given.quick:
        _quick(given.work, given.out)
        return
    for row in measure(given.set, given.work, seconds=given.seconds, seed=given.seed, groups=given.methods):
        _tell(row, given.out)


def _tell(row: dict[str, Any], out: Path | None) -> None:
    print(as_json(row), flush=True)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        lines = ",\n".join(map(as_json, merged(load(out), row)))
        write_atomic(out, f"[\n{lines}\n]\n".encode())


def _quick(work: Path, out: Path | None) -> None:
    """Measure the rows of a minute in new run folders, and exit with what does not hold."""
    committed, rows = [row for row in load(RESULTS) if row["seconds"] == QUICK_SECONDS], []
    with tempfile.TemporaryDirectory(dir=work if work.is_dir() else None) as folder:
        for name in dict.fromkeys(row["set"] for row in committed):
            trained = any(row["set"] == name and row["method"] == FIELD for row in committed)
            groups = (FIELD, "closed") if trained else ("closed",)
            for row in measure(name, Path(folder), seconds=QUICK_SECONDS, seed=0, groups=groups):
                _tell(row, out)
                rows.append(row)
    if wrong := broken(rows, committed):
        sys.exit("\n".join(wrong))
    print(f"{len(rows)} rows are those of {RESULTS.name}")


if __name__ == "__main__":
    main()
