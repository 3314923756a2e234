"""The paper's tables beside what this library and its baselines reach, from score files: cells, and Markdown of them.

| table         | of the paper | scores                                                                           |
|---------------|--------------|----------------------------------------------------------------------------------|
| errors        | 2            | `rel_l2` of forecasts from 3 frames, and from one frame and a context              |
| uncertainty   | 4            | `rmsce` and `crps`, by this library's protocol and by Zebra's                     |
| points        | 1            | `reconstruction` from a share of the points, and `rel_l2` of forecasts from them  |
| generation    | 5, and text  | `fpd`, `precision`, `recall`, and the distance from the solver's own trajectories |
| physics       | -            | spectra and conserved quantities of forecasts (`physics.Physics`)                 |
| speed         | 19           | CPU seconds for one member; the paper's of an A100                                |

Methods that had ten minutes each have a table of errors of their own.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from enma_fast.evaluation.paper import SOLVER_FIDELITY, SPLITS, paper_figures, paper_scores, paper_uncertainty
from enma_fast.utils.text import counted, markdown_table, short

from .scattered import SHARES, protocol_of
from .ten_minutes import introduction, where_ahead

# The paper's equations in its order; others follow them by their names.
_PAPER_ORDER = ("advection", "combined", "gray_scott", "wave", "vorticity")
_TITLES = {"temporal": "from 3 frames", "initial-value": "from one frame and a context trajectory"}
# Who made a number: the paper, a model of this library, or a baseline that this project trained or solved.
PAPER, MODEL, BASELINE = "paper", "model", "baseline"
# Quantities of the equations, and what every forecast has before them.
_KEPT = ("mass", "energy", "circulation", "enstrophy", "outside the range")
_PHYSICS = ("spectrum_error", "energy_error", *_KEPT)
_DISTRIBUTION = ("fpd", "precision", "recall")


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One number of a table and all that it depends on.

    Attributes
    ----------
    table, protocol, equation, task, split, score : what it is
    method, source : whose it is: a name, and "paper", "model" or "baseline"
    value : mean over the seeds
    median : of `rel_l2` or `reconstruction` over trajectories, averaged over the seeds
    deviation : standard deviation over the seeds; None of one seed
    paper : of the same cell, method -> value; empty where the paper has none
    seeds, cpu_seconds, num_parameters, members, trajectories, data : of the measurement; None of the paper's numbers
    """

    table: str
    protocol: str
    equation: str
    task: str
    split: str
    score: str
    method: str
    source: str
    value: float
    median: float | None = None
    deviation: float | None = None
    paper: dict[str, float]
    seeds: list[int] | None = None
    cpu_seconds: float | None = None
    num_parameters: int | None = None
    members: int | None = None
    trajectories: int | None = None
    data: str | None = None


def cells(files: Sequence[dict[str, Any]]) -> list[Cell]:
    """All cells of all tables: those of the paper, and those of the score files.

    Seeds of one method on one equation are averaged.
    """
    items = []
    equations = _ordered(file["equation"] for file in files)
    for table, protocol, task, split, score in _kinds():
        for equation in equations:
            paper = _paper(table, protocol, equation, task, split, score)
            what: dict[str, Any] = {
                "table": table,
                "equation": equation,
                "task": task,
                "split": split,
                "score": score,
                "paper": paper,
            }
            if protocol in ("whole", "calibration", "features") or table in ("points", "speed"):
                # The protocol of the paper's own numbers is not published.
                named = protocol if table == "points" else "paper"
                items += [
                    Cell(**what, protocol=named, method=name, source=PAPER, value=value)
                    for name, value in paper.items()
                ]
            for (kind, method), group in _methods(files, equation).items():
                rows = [(file, row) for file in group for row in file["rows"] if _is(row, protocol, task, split)]
                if rows and all(_score(row, score) is not None for _, row in rows):
                    items.append(Cell(**what, protocol=protocol, method=method, source=kind, **_of(rows, score, split)))
    return items


def as_json(files: Sequence[dict[str, Any]], ten_minutes: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
    """All cells as plain data: `source` (of the paper's numbers), `cells`, and those of `ten_minutes` each."""
    return {
        "source": paper_figures()["source"],
        "cells": [asdict(cell) for cell in cells(files)],
        "ten_minutes": [asdict(cell) for cell in _measured(ten_minutes)],
    }


def _measured(files: Sequence[dict[str, Any]]) -> list[Cell]:
    """Cells of score files without those of the paper."""
    return [cell for cell in cells(files) if cell.source != PAPER]


def markdown(files: Sequence[dict[str, Any]], ten_minutes: Sequence[dict[str, Any]] = ()) -> str:
    """All tables in Markdown, as a page of their own; `ten_minutes` are score files of methods that had so much."""
    all_cells = cells(files)
    parts = [
        "# The paper's tables",
        "<!-- Made by `python -m benchmarks.paper tables --out docs`; edit the score files, not this page. -->\n"
        f"For those who compare with the paper ({paper_figures()['source']}). Rows marked *paper* are its "
        "numbers, on its own data. The others are measured here, on data of this library's solvers with the same "
        "equations. "
        "`python -m benchmarks.paper tables --check` measures the shipped models on the shipped test files and "
        "compares.",
        "| row | what |\n|---|---|\n"
        "| bold | models of this library: *fast* is `combined-fast`, `advection-fast` and so on, *points* is "
        "`advection-points` |\n"
        "| *equation* | `combined` and others fit an equation; they learned nothing. Cards have what is missing |\n"
        "| *persistence* | repeats the last observed frame |\n"
        "| *fno* | a Fourier neural operator, trained here |\n"
        "| *solver* | the true solver, with parameters fitted to the observed frames: a bound for data without "
        "noise |\n"
        "| a dash | not measured |",
        "## Errors",
        "Relative L2 error of the ensemble mean over all forecast frames, the paper's table 2: mean over trajectories, "
        "and in brackets the median. Trajectories that decay to zero dominate the mean. Out of distribution Combined "
        "has a term that *solver* does not know. Some *fast* models saw more than the data hold: Advection moving "
        "frames, Combined more damping, Wave every second frame.",
    ]
    for task, title in _TITLES.items():
        parts += [f"### Errors {title}", _errors([c for c in all_cells if c.table == "errors" and c.task == task])]
    parts += [
        *_ten_minutes(ten_minutes),
        "## Uncertainty",
        "The paper's table 4, which names neither the task nor the number of members. A method of one member has no "
        "RMSCE, and its CRPS is its mean absolute error. *Zebra's protocol* observes one frame and 10 frames of "
        "another trajectory. Models of Gray-Scott and Wave were trained on whole contexts only.",
        "| column | members | trajectories | CRPS | RMSCE |\n|---|---|---|---|---|\n"
        "| *from 3 frames*, *from one frame* | 64 | the first 120 | fair | over all of them |\n"
        "| *Zebra's protocol*, 9 frames | 20 | the same | not fair | in batches of 10 |",
        _uncertainty([c for c in all_cells if c.table == "uncertainty"]),
        "## Scattered points",
        "The paper's table 1: only a share of the grid points is seen. Medians are in brackets. *fast* sees "
        "fields from optimal interpolation with the covariance of the training data. *points* attends to the points.",
        "| column | error of | seen points |\n|---|---|---|\n"
        "| *reconstruction* | the field that the tokenizer gives on the whole grid | the same in all frames |\n"
        "| *forecast* | a forecast from 3 frames; in the paper's rows of an FNO that steps the latents | others "
        "in each frame |",
        _points([c for c in all_cells if c.table == "points"]),
        "## Generation",
        "The paper's table 5: trajectories that are generated from a context alone. [Scores](scores.md) defines FPD, "
        "precision and recall. They compare features of a small network that was trained to find the parameters of the "
        "equation (ours beta and gamma, not alpha). Each network has its own scale, so the paper's FPD and ours do not "
        "compare. *truth* is the solver's own test trajectories, which a perfect model would equal. The distance is "
        "the relative L2 distance from the solver's trajectory that starts at the generated first frame.",
        _generation([c for c in all_cells if c.table == "generation"]),
        "## What the physics says",
        "Forecasts from 3 frames of the shipped test files, in units of the amplitude of the observed frames "
        "([definitions](scores.md)). The errors of the spectrum are in decades. A conserved quantity should not move, "
        "and a decaying one should not grow.",
        _physics([c for c in all_cells if c.table == "physics"]),
        "## Speed",
        "Seconds for one member of one forecast. The paper's table 19 names an A100 and no batch size. Ours are CPU "
        "seconds on the threads of the last column, with encoding and decoding, of the shipped test files.",
        _speed([c for c in all_cells if c.table == "speed"], files),
        "## How each row was measured",
        "CPU seconds are those of training, of all stages and threads. Baselines have the same data, and about as many "
        "parameters as the models that they are compared with.",
        _provenance(files),
        _data(files),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _kinds() -> Iterable[tuple[str, str, str, str, str]]:
    """Table, protocol, task, split and score of each kind of cell."""
    for task in _TITLES:
        for split in SPLITS:
            yield "errors", "whole", task, split, "rel_l2"
    for score in ("rmsce", "crps"):
        for task in _TITLES:
            yield "uncertainty", "calibration", task, "test-in", score
        yield "uncertainty", "zebra", "initial-value", "test-in", score
    for score in _PHYSICS:
        yield "physics", "shipped", "temporal", "test-in", score
    for share in SHARES:
        for score in ("reconstruction", "rel_l2"):
            yield "points", protocol_of(share), "temporal", "test-in", score
    yield "generation", "whole", "generation", "test-in", "solver_fidelity"
    for score in _DISTRIBUTION:
        yield "generation", "features", "generation", "test-in", score
    yield "speed", "shipped", "temporal", "test-in", "cpu_seconds_per_member"


def _paper(table: str, protocol: str, equation: str, task: str, split: str, score: str) -> dict[str, float]:
    figures = paper_figures()
    if table == "points":
        name = {"reconstruction": "reconstruction", "rel_l2": "time_stepping"}[score]
        rows = figures["table1_reconstruction"].get(protocol.split()[0], {})
        return {model: float(row[equation][name]) for model, row in rows.items() if equation in row}
    if table == "errors":
        return paper_scores(equation, task, split) if equation in _PAPER_ORDER else {}
    if table == "uncertainty" and equation == "combined":
        return {model: row[score] for model, row in paper_uncertainty().items()}
    if table == "generation" and equation == "combined":
        if score == "solver_fidelity":
            return {"ENMA": SOLVER_FIDELITY}
        return {model: float(row[score]) for model, row in figures["table5_generation_combined"].items()}
    if table == "speed":
        return {m: float(s) for m, s in figures["table19_seconds_per_sample_a100"].get(equation, {}).items()}
    return {}


def _score(row: dict[str, Any], score: str) -> Any:
    """A score of a row, or one of what the physics says: a quantity of that name has its violation."""
    physics = row.get("physics") or {}
    quantities = {each["name"]: each["violation"] for each in physics.get("quantities", ())}
    return row.get(score, physics.get(score, quantities.get(score)))


def _methods(files: Sequence[dict[str, Any]], equation: str) -> dict[tuple[str, str], list[dict[str, Any]]]:
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for file in files:
        if file["equation"] == equation:
            groups.setdefault((file["kind"], file["method"]), []).append(file)
    # Models first.
    return dict(sorted(groups.items(), key=lambda item: item[0][0] != MODEL))


def _is(row: dict[str, Any], protocol: str, task: str, split: str) -> bool:
    return (row["protocol"], row["task"], row["split"]) == (protocol, task, split)


def _of(rows: list[tuple[dict[str, Any], dict[str, Any]]], score: str, split: str) -> dict[str, Any]:
    """Value and provenance of a cell from the rows of its seeds."""
    values = [_score(row, score) for _, row in rows]
    medians = [row[f"{score}_median"] for _, row in rows if f"{score}_median" in row]
    file, row = rows[0]
    return {
        "value": statistics.fmean(values),
        "median": statistics.fmean(medians) if medians else None,
        "deviation": statistics.stdev(values) if len(values) > 1 else None,
        "seeds": [file["seed"] for file, _ in rows],
        "cpu_seconds": statistics.fmean(file["cpu_seconds"] for file, _ in rows),
        "num_parameters": file["num_parameters"],
        "members": row["members"],
        "trajectories": row["trajectories"],
        "data": file["data"].get(f"{file['equation']}-{split}.h5"),
    }


def _errors(table_cells: list[Cell]) -> str:
    """Rows are methods, columns equations in and out of distribution."""
    places = [(equation, split) for equation in _ordered(cell.equation for cell in table_cells) for split in SPLITS]
    names = {"test-in": "in", "test-out": "out"}
    head = ["method", *(f"{_named(equation)}, {names[split]}" for equation, split in places)]
    rows = []
    for label in dict.fromkeys(_label(cell) for cell in _in_order(table_cells)):
        by_place = {(c.equation, c.split): c for c in table_cells if _label(c) == label}
        rows.append([label, *(_error(by_place.get(place)) for place in places)])
    return markdown_table(head, rows)


def _ten_minutes(files: Sequence[dict[str, Any]]) -> list[str]:
    """Errors of methods that had equal time, from both starts, and how they were measured."""
    if not files:
        return []
    all_cells = _measured(files)
    errors, points = ([cell for cell in all_cells if cell.table == table] for table in ("errors", "points"))
    parts = ["## Ten minutes each", introduction({file["method"] for file in files})]
    for task, title in _TITLES.items():
        of_task = [cell for cell in errors if cell.task == task]
        parts += [f"### Errors after ten minutes, {title}", _errors(of_task)]
        parts += filter(None, [where_ahead({(c.equation, c.split, c.method): c.value for c in of_task}, name=_named)])
    if points:
        parts += [
            "### Scattered points after ten minutes",
            "As in the table of scattered points below; **own** sees fields that optimal interpolation makes of them, "
            "with the covariance of its training data.",
            _points(points),
        ]
    return [*parts, _provenance(files)]


def _error(cell: Cell | None) -> str:
    if cell is None:
        return "-"
    spread = "" if cell.deviation is None else f" ± {short(cell.deviation)}"
    return f"{short(cell.value)}{spread}" + ("" if cell.median is None else f" ({short(cell.median)})")


def _uncertainty(table_cells: list[Cell]) -> str:
    protocols = {
        ("paper", ""): "not stated",
        ("calibration", "temporal"): "from 3 frames",
        ("calibration", "initial-value"): "from one frame",
        ("zebra", "initial-value"): "Zebra's protocol",
    }
    groups: dict[tuple[str, str, str], dict[str, Cell]] = {}
    for cell in _in_order(table_cells):
        how = protocols[cell.protocol, "" if cell.protocol == "paper" else cell.task]
        groups.setdefault((cell.equation, _label(cell), how), {})[cell.score] = cell
    order = sorted(groups, key=lambda key: _place(key[0]))
    rows = [
        [_named(equation), label, how, *(short(_value(groups[equation, label, how].get(s))) for s in ("rmsce", "crps"))]
        for equation, label, how in order
    ]
    return markdown_table(["equation", "method", "protocol", "RMSCE", "CRPS"], rows)


def _physics(table_cells: list[Cell]) -> str:
    groups: dict[tuple[str, str], dict[str, Cell]] = {}
    for cell in _in_order(table_cells):
        groups.setdefault((cell.equation, _label(cell)), {})[cell.score] = cell
    order = sorted(groups, key=lambda key: _place(key[0]))
    rows = [
        [
            _named(equation),
            label,
            *(short(_value(groups[equation, label].get(score))) for score in _PHYSICS[:2]),
            ", ".join(f"{name} {short(cell.value)}" for name, cell in groups[equation, label].items() if name in _KEPT)
            or "-",
        ]
        for equation, label in order
    ]
    return markdown_table(["equation", "method", "waves", "mean square", "conserved or decaying"], rows)


def _points(table_cells: list[Cell]) -> str:
    groups: dict[tuple[str, str, str], dict[str, Cell]] = {}
    for cell in _in_order(table_cells):
        groups.setdefault((cell.equation, cell.protocol, _label(cell)), {})[cell.score] = cell
    shares = [protocol_of(share) for share in SHARES]
    rows = [
        [_named(equation), protocol, label, *(_error(cells.get(score)) for score in ("reconstruction", "rel_l2"))]
        for (equation, protocol, label), cells in sorted(
            groups.items(), key=lambda item: (_place(item[0][0]), shares.index(item[0][1]))
        )
    ]
    return markdown_table(["equation", "seen", "method", "reconstruction", "forecast"], rows)


def _generation(table_cells: list[Cell]) -> str:
    groups: dict[tuple[str, str], dict[str, Cell]] = {}
    for cell in _in_order(table_cells):
        groups.setdefault((cell.equation, _label(cell)), {})[cell.score] = cell
    order = sorted(groups, key=lambda key: _place(key[0]))
    scores = (*_DISTRIBUTION, "solver_fidelity")
    rows = [
        [_named(equation), label, *(short(_value(groups[equation, label].get(score))) for score in scores)]
        for equation, label in order
    ]
    return markdown_table(["equation", "method", "FPD", "precision", "recall", "distance"], rows)


def _speed(table_cells: list[Cell], files: Sequence[dict[str, Any]]) -> str:
    def where(cell: Cell) -> str:
        if cell.source == PAPER:
            return "A100"
        for file in files:
            if (file["equation"], file["method"], file["kind"]) == (cell.equation, cell.method, cell.source):
                return _machine(file["machine"])
        return "-"

    columns: dict[str, Callable[[Cell], str]] = {
        "seconds": lambda cell: short(cell.value),
        "members": lambda cell: "-" if cell.members is None else str(cell.members),
        "parameters": lambda cell: f"{cell.num_parameters:,}" if cell.num_parameters else "-",
        "machine": where,
    }
    order = sorted(_in_order(table_cells), key=lambda cell: _place(cell.equation))
    rows = [[_named(cell.equation), _label(cell), *(show(cell) for show in columns.values())] for cell in order]
    return markdown_table(["equation", "method", *columns], rows)


def _provenance(files: Sequence[dict[str, Any]]) -> str:
    rows = []
    for equation in _ordered(file["equation"] for file in files):
        for (kind, method), group in _methods(files, equation).items():
            first_file = group[0]
            sizes = sorted({(r["trajectories"], r["members"]) for r in first_file["rows"] if r["protocol"] == "whole"})
            rows.append(
                [
                    _named(equation),
                    f"{method} ({kind})",
                    f"{first_file['num_parameters']:,}",
                    f"{statistics.fmean(file['cpu_seconds'] for file in group):,.0f}",
                    ", ".join(str(file["seed"]) for file in group),
                    ", ".join(f"{count} x {members}" for count, members in reversed(sizes)) or "-",
                    _machine(first_file["machine"]),
                ]
            )
    head = ["equation", "method", "parameters", "CPU seconds", "seeds", "trajectories x members", "machine"]
    return markdown_table(head, rows)


def _data(files: Sequence[dict[str, Any]]) -> str:
    hashes: dict[str, set[str]] = {}
    for file in files:
        for name, digest in file["data"].items():
            hashes.setdefault(name, set()).add(digest[:16])
    rows = [[f"`{name}`", ", ".join(sorted(digests))] for name, digests in sorted(hashes.items())]
    return markdown_table(["file", "SHA-256 (first 16 digits)"], rows)


def _ordered(equations: Iterable[str]) -> list[str]:
    """The paper's equations, and all others that are given."""
    return sorted({*_PAPER_ORDER, *equations}, key=_place)


def _place(equation: str) -> tuple[int, str]:
    order = _PAPER_ORDER.index(equation) if equation in _PAPER_ORDER else len(_PAPER_ORDER)
    return order, equation


def _in_order(table_cells: list[Cell]) -> list[Cell]:
    order = (PAPER, MODEL, BASELINE)
    return sorted(table_cells, key=lambda cell: order.index(cell.source))


def _label(cell: Cell) -> str:
    return {PAPER: f"{cell.method}, *paper*", MODEL: f"**{cell.method}**", BASELINE: cell.method}[cell.source]


def _named(equation: str) -> str:
    return equation.replace("_", "-").title()


def _machine(machine: dict[str, Any]) -> str:
    return f"{machine['gpu'] or machine['cpu']}, {counted(machine['threads'], 'thread')}"


def _value(cell: Cell | None) -> float | None:
    return None if cell is None else cell.value
