"""Results of `benchmarks.own_data`: rows in a file, whether others agree with them, and the page that they make."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.own_networks import NETWORKS
from benchmarks.own_sets import SETS
from enma_fast.commands.terminal import number
from enma_fast.data.equations import EQUATIONS
from enma_fast.training.own_plan import EQUATION
from enma_fast.utils.text import markdown_table

RESULTS = Path(__file__).parent / "results" / "own-data.json"
FIELD = "field model"
METHODS = ("persistence", "climatology", "damped persistence", "linear", EQUATION, *NETWORKS, FIELD)
# Those of them that a clock decides.
BY_TIME = ("linear", EQUATION, FIELD)
# Seconds of the rows that `--quick` measures again.
QUICK_SECONDS = 60.0
# Column -> largest factor between a row and the committed one. Forecasts without training differ by rounding. The
# linear floor is chosen by the clock, and a network makes as many steps as the machine does in its time.
EXACT, TIMED = {"rel_l2": 1.01, "crps": 1.01}, {"rel_l2": 1.6, "crps": 1.6}
# Column of a row -> its title, what it is at best, and how it is written.
COLUMNS = {
    "rel_l2": ("rel. L2", 0.0, ".4f"),
    "rel_l2_median": ("median", 0.0, ".4f"),
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
        "forcing, which no method knows. {frames} frames of {test} other trajectories are forecast.",
    ),
    "burgers-told": (
        "Burgers with known viscosity and forcing",
        "The same trajectories. Here the field model gets viscosity and forcing by `--known`, and the networks as "
        "additional input channels. The simple forecasts do not use them.",
    ),
    "shallow": (
        "Shallow water",
        "Two dimensions, 96 x 64 points, periodic in x with walls in y. The channels are the height and two "
        "velocities. The training file has 160 trajectories; {frames} frames of {test} others are forecast.",
    ),
    **{
        name: (
            name.replace("_", "-").title(),
            f"{' x '.join(map(str, each.grid))} points, {'periodic' if all(each.periodic) else 'with walls'}. The data "
            "are those of the package's [equation](equations.md). {frames} frames of {test} trajectories with other "
            "parameters are forecast. No method is told the parameters.",
        )
        for name, each in EQUATIONS.items()
    },
}
HEAD = """\
# Own data, compared

<!-- Made by `python -m benchmarks.own_data page`; edit benchmarks/own_results.py, not this page. -->
This page compares `enma-fast train` with simple forecasts in closed form and with two common networks. It helps you to
decide whether [a model of your own data](your-own-data.md) is worth training. Numbers are {seeds}.

All methods learn from the same training split and forecast the same test trajectories from three frames. The best value
of a column is bold. A *floor* is the simple forecast that a field model builds on
([How field models work](how-field-models-work.md#the-floor))."""
MINUTE = f"""\
These rows are of {QUICK_SECONDS:g} CPU seconds. You can check them, and all simple forecasts, in ten minutes:

```console
OMP_NUM_THREADS=1 python -m benchmarks.own_data --quick
```

The command fails if a number differs by more than a factor of {TIMED["rel_l2"]:g} from the one in
`benchmarks/results/own-data.json`. Persistence, climatology and damped persistence must agree to 1 %.
An AVX2 processor did not find all equations in a minute."""
TAIL = """\
## How it was measured

* **Time**: CPU seconds of one thread. Those of the field model are for the whole command: plan, floors, training,
  calibration and scores. It takes about what it was given, and much less if it ends early.
  The last column is the time of one member of one forecast.
* **Linear** is the best linear floor that `train` tried. Its training time is that of
  fitting it alone.
* **Networks**: an FNO and a U-Net in plain PyTorch (`benchmarks/own_networks.py`), in float32. They see three frames
  and forecast the change to the next one. AdamW minimises the relative L2 error of forecasts by the network itself.
  They have 1 frame at first and 8 frames late in training. The field model uses bfloat16 where the processor has it.
* **Learning rates** of the networks are the best of 0.0005, 0.001, 0.002 and 0.004 on validation data, after a tenth
  of the time each, which is not counted.
* **Scores** are of standardised fields. The field model has 16 members, and relative L2 is that of their mean. The
  others have one member: their CRPS is the mean absolute error, and they have neither spread nor coverage.
* **Coverage** is the share of points inside the central 50 or 90 % of the members. With 16 calibrated members the
  90 % range covers 15/17, which is 0.88.
* **Machine**: {machine}. Other programs ran too, so times vary.

The solvers are in `benchmarks/own_sets.py`; the package has those of its equations. These commands measure everything
anew and write this page. Results depend on the machine:

```console
{commands}
```"""


def merged(rows: Sequence[dict[str, Any]], new: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows in the order of sets, seconds, seeds and methods; a new one takes the place of the old one of its kind."""

    def key(row: dict[str, Any]) -> tuple[int, float, int, int]:
        return list(SETS).index(row["set"]), row["seconds"], row["seed"], METHODS.index(row["method"])

    return sorted([*(row for row in rows if key(row) != key(new)), new], key=key)


def broken(rows: Sequence[dict[str, Any]], committed: Sequence[dict[str, Any]]) -> list[str]:
    """A line for each figure of some rows that is not that of the committed row of the same set, seconds and method."""
    found = []
    for row in rows:
        same = ("set", "seconds", "seed", "method")
        (old,) = [each for each in committed if all(each[key] == row[key] for key in same)] or (None,)
        where = f"{row['set']}, {row['method']}"
        if old is None:
            found.append(f"{where}: is not in {RESULTS.name}")
            continue
        limits = TIMED if row["method"] in BY_TIME else EXACT
        for key, most in limits.items():
            # NaN is no figure.
            if not 1 / most <= row[key] / old[key] <= most:
                found.append(f"{where}: {key} is {row[key]:.4g}, and {old[key]:.4g} in {RESULTS.name}")
    return found


def load(path: Path) -> list[dict[str, Any]]:
    """The rows of a result file; none where there is no file."""
    return json.loads(path.read_text()) if path.is_file() else []


def page(rows: Sequence[dict[str, Any]]) -> str:
    """The page of the documentation, from the rows of a result file; several seeds become medians."""
    seeds = sorted({row["seed"] for row in rows})
    places = {(row["machine"]["cpu"], row["machine"]["torch_simd"], row["machine"]["torch"]) for row in rows}
    parts = [HEAD.format(seeds="of one seed" if len(seeds) == 1 else f"medians of {len(seeds)} seeds")]
    for name in SETS:
        # Short runs have a table of their own.
        if mine := [row for row in rows if row["set"] == name and row["seconds"] != QUICK_SECONDS]:
            budget = f"Each trained method has {mine[0]['seconds']:g} CPU seconds."
            about = f"{TITLES[name][1].format(**mine[0])} {budget}"
            # The equation has a row where it is the best floor.
            there = {EQUATION, *(row["method"] for row in mine)}
            lacking = [method for method in METHODS if method not in there]
            said = f"{learned(mine)} Not measured yet: {', '.join(lacking)}." if lacking else learned(mine)
            parts += [f"## {TITLES[name][0]}", about, _table(mine), said]
    parts += _quick_part([row for row in rows if row["seconds"] == QUICK_SECONDS])
    measured = "; ".join(f"{cpu}, {simd}, one thread, torch {torch}" for cpu, simd, torch in sorted(places))
    parts.append(TAIL.format(machine=measured, commands="\n".join(_commands(rows))))
    return "\n\n".join(parts) + "\n"


def _quick_part(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The rows that `--quick` measures again."""
    if not rows:
        return []
    titles = [COLUMNS[key][0] for key in EXACT]
    cells = [
        [TITLES[row["set"]][0], row["method"], *(_text(row[key], COLUMNS[key][2]) for key in EXACT)]
        for row in rows
        if row["method"] in BY_TIME
    ]
    return ["## A minute", MINUTE, markdown_table(["data", "forecast", *titles], cells)]


def medians(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, float | None]]:
    """Figures of each method of a set, medians over seeds."""
    found: dict[str, dict[str, float | None]] = {}
    for method in METHODS:
        if mine := [row for row in rows if row["method"] == method]:
            found[method] = {
                key: None if mine[0][key] is None else float(np.median([row[key] for row in mine])) for key in COLUMNS
            }
    return found


def _text(value: float, digits: str) -> str:
    """A number as its column has it; errors that four places do not show with two digits of their own."""
    return number(value, 2) if digits == ".4f" and 0 < value < 1e-3 else f"{value:{digits}}"


def _table(rows: Sequence[dict[str, Any]]) -> str:
    """A row a method; bold is the best of a column to the digits that are shown."""
    found = medians(rows)
    cells = {}
    for key, (_, wanted, digits) in COLUMNS.items():
        away = {name: abs(row[key] - wanted) for name, row in found.items() if row[key] is not None}
        # Alone in its column, nothing is the best.
        least = _text(min(away.values()), digits) if len(away) > 1 else None
        for name, row in found.items():
            text = "-" if row[key] is None else _text(row[key], digits)
            cells[name, key] = f"**{text}**" if name in away and _text(away[name], digits) == least else text
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
        if seconds == QUICK_SECONDS:
            continue
        yield (
            f"OMP_NUM_THREADS=1 python -m benchmarks.own_data --set {name} --seconds {seconds:g} --seed {seed} "
            "--out benchmarks/results/own-data.json"
        )
    yield "python -m benchmarks.own_data page --out docs/own-data-compared.md"
