"""The page of results, from the JSON that the benchmarks left under `benchmarks/results/<machine>/`.

    python -m benchmarks.report > docs/performance.md
    python -m benchmarks.report --check

`--check` says whether the page is what the files give. A file holds what a benchmark printed last under `--json`:
one object, or a list of them. What has no table of its own is listed by name.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from enma_fast.errors import EnmaError
from enma_fast.utils.text import counted, markdown_table

RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parent.parent / "docs" / "performance.md"

INTRODUCTION = """\
# Measured speed

For those who ask how fast an operation or a model is, on which processor, and against what. A machine that is not
here was not measured.

```console
python -m benchmarks.report > docs/performance.md     # writes this page from the files under benchmarks/results/
python -m benchmarks.compare trajectory --json        # measures a table; so do train_step, embed_ranks and pareto
```

| column | what |
|---|---|
| ours | median over rounds, of processor time in `embed` and `embed_frame`, of the clock elsewhere |
| of the rate | share of the best rate of square matrix products, on the same machine in the same run |
| *eager*, *compile* | the same model in PyTorch; *eager* without a number format is fp32 |
| *masked-flow* | a model of the same size with the paper's sampler (mask steps and a flow), in our engine |
| *masked-flow-eager* | the same in PyTorch |
| *naive-fp32* | the same training step in PyTorch and fp32, as a first version would write it |
| *busy*, *drifted* | whether the machine was too busy to compare, or its speed changed |

The column of a baseline is its time divided by ours: the median over rounds of the ratio within a round. The least and
the greatest ratio are in brackets. Above 1 ours is faster.

* Contenders run in turn in one process (A B C A B C ...), and those of `embed_ranks` in processes of their own. Their
  outputs are compared first. A contender with a wrong output is not timed.
* A contender of less than 20 ms is repeated until its turn lasts that long, except in `embed_frame` and `embed_ranks`.
  In tables of commits before 8063443 a turn is one call, with the caches as the contender before it left them.
* Compiled samplers have frozen weights. Before commit d570b66 they had not, and were slower: the paper's flow head took
  97 to 101 ms in place of 81 ms (3 rows, one thread, AVX2).
* A preset in `trajectory` and `forecast` gives the sizes of a model and the settings of its sampler. Its weights are
  random. The shipped model of that name may have other mask steps, flow steps and shifts, and so other times.
* Each table names its commit and versions.
"""

PARETO = """\
### pareto

The first row is the model's own setting. Ask for the others with `--mask-steps`, `--flow-steps` and `--temperature` of
`enma-fast forecast` and `score`, or `settings=`. *eager* is the sampler in plain PyTorch. *compiled* is the same with
masked transformer and decoders under `torch.compile`. An error is bold if no other setting is at least as good in both
time and this error (to five digits), and better in one. The error of the mean also rewards an ensemble without spread;
spread/skill is 1 for a calibrated one. Rows with settings that the sampler no longer has are left out.
"""

COSTS = """\
### costs

Error against the CPU time of a member, of the shipped test trajectories. *equation* is the model that fits an equation,
*network* the one that learned. Both see 3 frames. *solver* is the solver of the data, coarser from row to row. It is
given the true parameters and frame 0. Its first row made the data, so its error is that of rounding.
"""

# Entries that stand in every table or in no cell; the other plain entries of a row name the case.
_SHOWN = {"case", "ours_s", "against", "gemm_rate", "gemm_rates", "gemm_rate_bf16", "fraction_of_gemm_rate"}
_SHOWN |= {"error", "allowed_error", "wrong", "left_out", "per", "threads", "commit", "torch", "python"}
_MACHINE = {"cpu", "cores", "simd", "torch_simd", "gpu", "system"}
_ALWAYS = ("preset", "rows", "members", "dtype")
_PARETO_ERRORS = {"rel_l2": "relative L2", "crps": "CRPS"}
# Settings that the sampler had, and the value that it goes by now; a file may name others.
_GONE = {"method": "midpoint", "last_flow_steps": None}

Row = dict[str, Any]


def load(file: Path) -> list[Row]:
    """The rows of a file, each with the entries of its machine beside its own."""
    try:
        found = json.loads(file.read_text())
    except ValueError as error:
        raise EnmaError(f"{file}: is not JSON ({error}); keep the last line that the benchmark printed") from None
    rows = found if isinstance(found, list) else [found]
    return [
        row.get("machine", {}) | {key: value for key, value in row.items() if key != "machine"}
        if isinstance(row, dict) and isinstance(row.get("machine", {}), dict)
        else {"value": row}
        for row in rows
    ]


def page(results: Path) -> str:
    """The whole page in Markdown."""
    parts = [INTRODUCTION]
    for folder in sorted(path for path in results.iterdir() if path.is_dir()):
        parts += [f"## {folder.name}\n", *machine_parts(folder)]
    return "\n".join(parts)


def machine_parts(folder: Path) -> Iterator[str]:
    """One section per case, in the order of the alphabet; then what has no table."""
    timed: list[tuple[Path, Row]] = []
    pareto: list[tuple[Path, Row]] = []
    costs: list[tuple[Path, Row]] = []
    others: list[str] = []
    machines: dict[str, None] = {}
    for file in sorted(folder.glob("*.json")):
        for row in load(file):
            if _is_timed(row):
                timed.append((file, row))
            elif _is_pareto(row):
                pareto.append((file, row))
            elif row.get("case") == "costs":
                costs.append((file, row))
            else:
                others.append(_listed(file, row))
                continue
            machines[_machine(row)] = None
    yield "\n".join(f"{text}\n" for text in machines)
    # Sorting keeps the order of the files and of their rows within a case.
    for case, same in groupby(sorted(timed, key=lambda item: item[1]["case"]), key=lambda item: item[1]["case"]):
        yield f"### {case}\n"
        for where, group in groupby(same, key=lambda item: _provenance(*item)):
            yield from _timed(where, [row for _, row in group])
    if pareto:
        yield PARETO
    for file, row in pareto:
        yield from _pareto(file, row)
    if costs:
        yield COSTS
    for file, row in costs:
        yield from _costs(file, row)
    if others:
        yield "### Without a table\n"
        yield "\n".join(f"* {text}" for text in dict.fromkeys(others)) + "\n"


def _is_timed(row: Row) -> bool:
    return isinstance(row.get("case"), str) and "ours_s" in row and isinstance(row.get("against"), dict)


def _is_pareto(row: Row) -> bool:
    return row.get("case") == "pareto" and isinstance(row.get("rows"), list) and isinstance(row.get("pareto"), dict)


def _listed(file: Path, row: Row) -> str:
    case = f"case {row['case']}, " if "case" in row else ""
    return f"`{file.name}`: {case}keys {', '.join(row)}"


def _machine(row: Row) -> str:
    parts = [row.get("gpu"), row.get("cpu")]
    if row.get("cores"):
        parts.append(counted(row["cores"], "core"))
    parts += [", ".join(row.get("simd") or []), row.get("system")]
    return "; ".join(part for part in parts if part)


def _provenance(file: Path, row: Row) -> str:
    parts = [f"`{file.name}`"]
    if row.get("commit"):
        parts.append(f"commit {row['commit']}")
    if row.get("torch"):
        parts.append(f"torch {row['torch']}")
    if row.get("python"):
        parts.append(f"Python {row['python']}")
    if row.get("threads"):
        parts.append(f"{row['threads']} thread{'s' * (row['threads'] != 1)}")
    return ", ".join(parts)


def _timed(where: str, rows: list[Row]) -> Iterator[str]:
    """A table of rows that share file, commit, versions and threads."""
    names = [
        name
        for name in dict.fromkeys(name for row in rows for name in row)
        if name not in _SHOWN | _MACHINE and all(isinstance(row.get(name), str | int | float | None) for row in rows)
    ]
    leading = [name for name in _ALWAYS if name in names]
    varying = [name for name in names if len({row.get(name) for row in rows}) > 1]
    columns = [*leading, *(name for name in varying if name not in leading)]
    same = [
        f"{name} {_number(rows[0][name])}" for name in names if name not in columns and rows[0].get(name) is not None
    ]
    yield f"{where}{'; ' * bool(same)}{', '.join(same)}.\n"
    baselines = list(
        dict.fromkeys(name for row in rows for key in ("against", "left_out") for name in row.get(key, ()))
    )
    head = [*columns, "ours", "of the rate", *baselines, "error"]
    yield _table(head, [[*(_number(row.get(name)) for name in columns), *_cells(row, baselines)] for row in rows])
    notes = [
        f"* {name}{at}: {what}"
        for row in rows
        for at in ["".join(f", {column} {_number(row[column])}" for column in columns if row.get(column) is not None)]
        for name, what in (
            *(row.get("left_out") or {}).items(),
            *((n, f"WRONG by {_number(error)}, so without a time") for n, error in (row.get("wrong") or {}).items()),
        )
    ]
    if notes:
        yield "\n".join(notes) + "\n"


def _cells(row: Row, baselines: Sequence[str]) -> Iterator[str]:
    per = f" a {row['per']}" if row.get("per") else ""
    wrong = row.get("wrong") or {}
    off = "ours" in wrong or row["ours_s"] is None
    yield "wrong" if off else _seconds(row["ours_s"]) + per
    part, rate = row.get("fraction_of_gemm_rate"), row.get("gemm_rate")
    yield "-" if part is None or rate is None or off else f"{100 * part:.0f} % of {rate / 1e9:,.0f} GFLOP/s"
    against = {} if off else {name: _ratio(found) for name, found in row["against"].items()}
    against |= dict.fromkeys(wrong, "wrong")
    for name in baselines:
        yield against.get(name, "-")
    allowed = row.get("allowed_error")
    yield _number(row.get("error")) + ("" if allowed is None else f" ({_number(allowed)} allowed)")


def _pareto(file: Path, row: Row) -> Iterator[str]:
    yield (
        f"{_provenance(file, row)}; {row['model']} on {row['data']}: {row['num_trajectories']} trajectories, "
        f"{row['members']} members, {row['num_frames']} frames from {row['history']}, noise seed {row['seed']}; "
        f"times of {row['timed_trajectories']} trajectories at once, {row['rounds']} rounds.\n"
    )
    picture = file.with_suffix(".png")
    if picture.is_file():
        yield f"![Error against seconds per member]({_link(picture)})\n"
    rows = []
    for one in row["rows"]:
        if any(one.get("sampling", {}).get(name) not in (None, value) for name, value in _GONE.items()):
            continue
        errors = (
            f"**{_number(one[key])}**" if one["name"] in row["pareto"].get(key, ()) else _number(one[key])
            for key in _PARETO_ERRORS
        )
        gain = {"ratio": one["speedup"], "ratio_min": one["speedup_min"], "ratio_max": one["speedup_max"]}
        rows.append(
            [one["name"], _seconds(one["seconds_per_member"]), _ratio(gain), *errors, _number(one["spread_skill"])]
        )
    if (solver := row.get("solver")) is not None:
        errors = (_number(solver[key]) for key in _PARETO_ERRORS)
        rows.append(
            [solver["name"], _seconds(solver["seconds_per_member"]), "-", *errors, _number(solver["spread_skill"])]
        )
    yield _table(["setting", "a member", "faster by", *_PARETO_ERRORS.values(), "spread/skill"], rows)


def _costs(file: Path, row: Row) -> Iterator[str]:
    yield f"{_provenance(file, row)}; {row['members']} members, {row['rounds']} rounds.\n"
    picture = file.with_suffix(".png")
    if picture.is_file():
        yield f"![Error against CPU time of a member, a panel for each equation]({_link(picture)})\n"
    cells = (
        [one["equation"], one["kind"], one["name"], _seconds(one["seconds_per_member"]), _number(one["rel_l2"])]
        for one in row["rows"]
    )
    yield _table(["equation", "what", "name or setting", "CPU time of a member", "relative L2"], cells)


def _link(path: Path) -> str:
    """From the folder of the page."""
    return f"../benchmarks/results/{path.parent.name}/{path.name}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return markdown_table(head, rows) + "\n"


def _seconds(value: float) -> str:
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if value >= scale:
            return f"{value / scale:.3g} {unit}" if value < 1000 * scale else f"{value / scale:,.0f} {unit}"
    return f"{value:.2e} s"


def _ratio(found: Row) -> str:
    return f"{found['ratio']:.2f} ({found['ratio_min']:.2f} to {found['ratio_max']:.2f})"


def _number(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def main() -> int:
    """Command line; with `--check` exit status 1 when the page is another."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="compare with the page instead of printing it")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of one folder per machine")
    parser.add_argument("--page", type=Path, default=PAGE)
    options = parser.parse_args()
    text = page(options.results)
    if not options.check:
        sys.stdout.write(text)
        return 0
    if options.page.is_file() and options.page.read_text() == text:
        return 0
    print(
        f"{options.page}: differs from the results; write it again: python -m benchmarks.report > docs/performance.md"
    )
    return 1


if __name__ == "__main__":
    sys.exit(main())
