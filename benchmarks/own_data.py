"""Own data: `enma_fast.train` beside what a user may have written, for equal CPU seconds of one thread.

    python -m benchmarks.own_data --set ks --seconds 120 --seed 0 --out benchmarks/results/own-data.json
    python -m benchmarks.own_data page --out docs/own-data-compared.md

All methods learn from the training split that `enma_fast.train` makes of one file of solutions (`own_sets`), and
forecast the trajectories of another from three frames. The learning rate of each network (`own_networks`) is chosen on
the validation split, by runs of a tenth of the time each. All clocks are CPU seconds, those of `enma_fast.train` too:
on a machine that others use its budget is what it would be on one's own.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
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
from benchmarks.harness import as_json, machine
from benchmarks.own_networks import HISTORY, NETWORKS, fit, relative_errors
from benchmarks.own_sets import SETS, write_set
from enma_fast.data import FieldFile, read
from enma_fast.data.drivers import rows_of
from enma_fast.evaluation.baselines import Method, Observations, baselines
from enma_fast.evaluation.metrics import crps, relative_l2
from enma_fast.forecasting.members import sample_fields
from enma_fast.training.own_data import load_splits
from enma_fast.training.own_model import linear_methods, prepare_own
from enma_fast.training.own_plan import Request
from enma_fast.utils.files import write_atomic
from enma_fast.utils.text import markdown_table

RESULTS = Path(__file__).parent / "results" / "own-data.json"
FIELD = "field model"
GROUPS = ("closed", FIELD, *NETWORKS)
METHODS = ("persistence", "climatology", "damped persistence", "linear", *NETWORKS, FIELD)
MEMBERS = 16
# Of a network's learning rates the best on validation data is taken, by runs of this share of the time.
RATES, SHARE = (5e-4, 1e-3, 2e-3, 4e-3), 0.1
# Forecasts that are made at a time, by the number of space dimensions: members of one trajectory, or trajectories.
_ROWS = {1: 64, 2: 32}
# Column of a row -> its title, what it is at best, and how it is written.
COLUMNS = {
    "rel_l2": ("rel. L2", 0.0, ".4f"),
    "rel_l2_median": ("its median", 0.0, ".4f"),
    "crps": ("CRPS", 0.0, ".4f"),
    "spread_skill": ("spread/skill", 1.0, ".2f"),
    "coverage_50": ("central 50 %", 0.5, ".2f"),
    "coverage_90": ("central 90 %", 15 / 17, ".2f"),
    "train_s": ("training, CPU s", 0.0, ".1f"),
    "member_ms": ("member, CPU ms", 0.0, ".3f"),
}
# Set -> heading, and a text about the data.
TITLES = {
    "ks": (
        "Kuramoto-Sivashinsky",
        "Chaos in one dimension, 128 points, periodic. The training file is one series of 600 frames, cut into windows "
        "that overlap. The {test} test trajectories are other series, and {frames} frames are forecast.",
    ),
    "burgers": (
        "Burgers with unknown viscosity and forcing",
        "One dimension, 128 points, periodic. Each of 1,000 trajectories has its own viscosity and its own steady "
        "forcing, which no method is told. {frames} frames of {test} other trajectories are forecast.",
    ),
    "burgers-told": (
        "Burgers with known viscosity and forcing",
        "The same trajectories. Here viscosity and forcing are told to the model by `--known`, and to the networks as "
        "further input maps. Forecasts without training do not use them.",
    ),
    "shallow": (
        "Shallow water",
        "Two dimensions, 96 x 64 points, periodic in x with walls in y. The channels are the height and two "
        "velocities. The training file has 160 trajectories; {frames} frames of {test} others are forecast.",
    ),
}
HEAD = """\
# Own data, compared

<!-- Made by `python -m benchmarks.own_data page`; edit benchmarks/own_data.py, not this page. -->
This page compares `enma-fast train` with forecasts without training and with two networks that you could write.
It helps you to decide whether [a model of your own data](your-own-data.md) is worth training. Figures are {seeds}.

All methods learn from the same training split and forecast the same test trajectories from three frames. Best values
of a column are bold."""
TAIL = """\
## How it was measured

* **Time**: CPU seconds of one thread. Those of the field model are for the whole command: plan, floors, training,
  calibration and its own scores. It plans them beforehand, so it takes somewhat more or less than it was given.
* **Floors**: persistence, damped persistence, climatology, and the best linear floor that `train` tried. Their
  training time is the fit of the chosen floor, without the choice.
* **Networks**: an FNO and a U-Net in plain PyTorch (`benchmarks/own_networks.py`), in float32. They see three frames
  and forecast the change to the next one. AdamW minimises the relative L2 error of their own forecasts, of 1 frame at
  first and of 8 late in training. The field model uses bfloat16 where the processor has it.
* **Learning rates** of the networks are the best of 0.0005, 0.001, 0.002 and 0.004 on validation data. The runs that
  choose them have a tenth of the time each, and are not counted.
* **Scores** are of standardised fields. The field model has 16 members, and relative L2 is that of their mean. The
  others have one member: their CRPS is the mean absolute error, and they have neither spread nor coverage.
* **Coverage** is the share of points inside the central 50 or 90 % of the members. Of 16 perfect members the wider
  range holds 15/17, which is 0.88.
* **Machine**: {machine}. Other programs ran on it at the same time, so times vary.

The solvers are in `benchmarks/own_sets.py`. These commands make the page again, up to the speed of the machine:

```console
{commands}
```"""
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
    """Scores of members `[B, K, T, *x, c]` of trajectories by their numbers, and CPU milliseconds of a member."""
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
        totals.add((values - torch.from_numpy(mean)) / torch.from_numpy(scale), truth)
    return {**totals.result(), "member_ms": 1e3 * seconds / made, "members": totals.members}


def closed_rows(source: Path, run: Path, request: Request, score: Callable[..., dict[str, Any]]) -> Iterable[dict]:
    """Persistence, climatology, damped persistence, and the best linear floor of those that `train` tried."""
    plan = prepare_own(source, run, request)
    train = read(run / "data" / f"{plan.recipe.model.dataset}-train.h5")
    clock = time.process_time
    begun = clock()
    methods = baselines(train)
    first = clock()
    damped = linear_methods(replace(plan, floors={}), train)
    second = clock()
    linear = linear_methods(plan, train)
    third = clock()
    fitted = {"persistence": 0.0, "climatology": first - begun, "damped persistence": second - first}
    fitted["linear"] = max(0.0, third - second - fitted["damped persistence"])
    for name, method in (methods | damped | linear).items():
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
    source = write_set(name, work / "sets" / name)
    splits, test = load_splits(source), read(source / f"{name}-test-in.h5")
    train = splits["train"].u
    axes = tuple(range(train.ndim - 1))
    mean, scale = (part.astype(np.float32) for part in (train.mean(axes, dtype="f8"), train.std(axes, dtype="f8")))
    request = Request(minutes=seconds / 60, seed=seed)
    run = work / "runs" / f"{name}-{seconds:g}-{seed}"

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


def merged(rows: Sequence[dict[str, Any]], new: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows in the order of sets, seeds and methods; a new one takes the place of the old one of its kind."""

    def key(row: dict[str, Any]) -> tuple[int, int, int]:
        return list(SETS).index(row["set"]), row["seed"], METHODS.index(row["method"])

    return sorted([*(row for row in rows if key(row) != key(new)), new], key=key)


def load(path: Path) -> list[dict[str, Any]]:
    """The rows of a result file; none where there is no file."""
    return json.loads(path.read_text()) if path.is_file() else []


def page(rows: Sequence[dict[str, Any]]) -> str:
    """The page of the documentation, from the rows of a result file; several seeds become medians."""
    seeds = sorted({row["seed"] for row in rows})
    places = {(row["machine"]["cpu"], row["machine"]["torch_simd"], row["machine"]["torch"]) for row in rows}
    parts = [HEAD.format(seeds="of one seed" if len(seeds) == 1 else f"medians of {len(seeds)} seeds")]
    for name in SETS:
        if mine := [row for row in rows if row["set"] == name]:
            budget = f"Each trained method has {mine[0]['seconds']:g} CPU seconds."
            about = f"{TITLES[name][1].format(**mine[0])} {budget}"
            lacking = [method for method in METHODS if method not in {row["method"] for row in mine}]
            said = f"{learned(mine)} Not measured yet: {', '.join(lacking)}." if lacking else learned(mine)
            parts += [f"## {TITLES[name][0]}", about, _table(mine), said]
    measured = "; ".join(f"{cpu}, {simd}, one thread, torch {torch}" for cpu, simd, torch in sorted(places))
    parts.append(TAIL.format(machine=measured, commands="\n".join(_commands(rows))))
    return "\n\n".join(parts) + "\n"


def medians(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, float | None]]:
    """Figures of each method of a set, medians over seeds."""
    found: dict[str, dict[str, float | None]] = {}
    for method in METHODS:
        if mine := [row for row in rows if row["method"] == method]:
            found[method] = {
                key: None if mine[0][key] is None else float(np.median([row[key] for row in mine])) for key in COLUMNS
            }
    return found


def _table(rows: Sequence[dict[str, Any]]) -> str:
    """A row a method; bold is the best of a column to the digits that are shown."""
    found = medians(rows)
    cells = {}
    for key, (_, wanted, digits) in COLUMNS.items():
        away = {name: abs(row[key] - wanted) for name, row in found.items() if row[key] is not None}
        # Alone in its column, nothing is the best.
        least = f"{min(away.values()):{digits}}" if len(away) > 1 else None
        for name, row in found.items():
            text = "-" if row[key] is None else f"{row[key]:{digits}}"
            cells[name, key] = f"**{text}**" if name in away and f"{away[name]:{digits}}" == least else text
    head = ["forecast", *(title for title, _, _ in COLUMNS.values())]
    return markdown_table(head, [[name, *(cells[name, key] for key in COLUMNS)] for name in found])


def learned(rows: Sequence[dict[str, Any]]) -> str:
    """A sentence about the least mean error, and what comes next to it."""
    errors = {name: row["rel_l2"] for name, row in medians(rows).items()}
    best, second, *_ = sorted(errors, key=errors.__getitem__)
    named = {name: f"the {name}" if name in (FIELD, *NETWORKS) else f"the {name} floor" for name in errors}
    named |= {name: name for name in ("persistence", "climatology", "damped persistence")}
    other = second if best == FIELD else FIELD
    times = errors[other] / errors[best]
    text = f"{named[best]} has the least error; that of {named[other]} is {times:.3g} times as large."
    return text[0].upper() + text[1:]


def _commands(rows: Sequence[dict[str, Any]]) -> Iterable[str]:
    for name, seconds, seed in dict.fromkeys((row["set"], row["seconds"], row["seed"]) for row in rows):
        yield (
            f"OMP_NUM_THREADS=1 python -m benchmarks.own_data --set {name} --seconds {seconds:g} --seed {seed} "
            "--out benchmarks/results/own-data.json"
        )
    yield "python -m benchmarks.own_data page --out docs/own-data-compared.md"


def main(arguments: Sequence[str] | None = None) -> None:
    """See the module."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.own_data", description=__doc__.split("\n")[0])
    parser.add_argument("what", nargs="?", choices=["measure", "page"], default="measure")
    parser.add_argument("--set", choices=list(SETS), default="ks")
    parser.add_argument("--seconds", type=float, default=120.0, help="CPU seconds of training, each method")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--methods", nargs="+", choices=GROUPS, default=GROUPS, help="'closed' are those without steps")
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
    for row in measure(given.set, given.work, seconds=given.seconds, seed=given.seed, groups=given.methods):
        print(as_json(row), flush=True)
        if given.out is not None:
            given.out.parent.mkdir(parents=True, exist_ok=True)
            lines = ",\n".join(map(as_json, merged(load(given.out), row)))
            write_atomic(given.out, f"[\n{lines}\n]\n".encode())


if __name__ == "__main__":
    main()
