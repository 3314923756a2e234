"""What only reproduces the paper: `python -m benchmarks.paper tables`, from a checkout."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from enma_fast import cli
from enma_fast.commands.options import AsJson, Threads, use_threads
from enma_fast.commands.terminal import Terminal, number, require_writable, table, write_out
from enma_fast.errors import EnmaError
from enma_fast.utils.text import counted

from . import score_files
from . import tables as pages

PAGE, CELLS = "tables.md", "tables.json"

app = typer.Typer(
    context_settings={"help_option_names": ["-h", "--help"]},
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback()
def _commands() -> None:
    """Reproduce the paper, from a checkout."""


@app.command("tables")
def tables(
    scores: Annotated[
        Path | None, typer.Option("--scores", help="Folder of score files; by default those beside this module.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help=f"Folder to write {PAGE} and {CELLS} to; of --measure, a score file.")
    ] = None,
    check: Annotated[
        bool,
        typer.Option("--check", help="Measure the shipped models again and compare; exit status 1 if they differ."),
    ] = False,
    tolerance: Annotated[
        float | None,
        typer.Option("--tolerance", min=0.0, help="Of --check: relative difference of a score that is allowed."),
    ] = None,
    measure: Annotated[
        str | None, typer.Option("--measure", metavar="MODEL", help="Make the score file of a model in --out.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option("--data", help="Of --measure: folder of the equation's test files.")
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Of --measure: seed of the noise; 0 by default.")] = None,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """The paper's tables, with what the models of this library and its baselines reach beside them."""
    terminal = Terminal(as_json)
    use_threads(threads)
    for option, value, of, asked in (
        ("tolerance", tolerance, "check", check),
        ("data", data, "measure", measure),
        ("seed", seed, "measure", measure),
    ):
        if value is not None and not asked:
            raise EnmaError(f"--{option}: belongs to --{of}; leave it out")
    if check and out is not None:
        raise EnmaError("--out: --check writes no file; leave it out")
    if measure is not None:
        for option, value in (("check", check or None), ("scores", scores)):
            if value is not None:
                raise EnmaError(f"--measure: makes one score file; leave out --{option}")
        if data is None or out is None:
            raise EnmaError("--measure: give --data, the folder of the test files, and --out, that of the score files")
        require_writable(out / "scores.json")
        with terminal.progress("measuring") as update:
            score_file = score_files.measure_model(measure, data, seed=seed or 0, progress=update)
        path = score_files.write_score_file(score_file, out)
        terminal.show(f"score file: {path}")
        terminal.result({"score_file": str(path), **score_file})
        return
    files = score_files.read_score_files(scores)
    if check:
        allowed = score_files.TOLERANCE if tolerance is None else tolerance
        with terminal.progress("checking") as update:
            entries = score_files.check(files, tolerance=allowed, progress=update)
        if not entries:
            raise EnmaError(f"--check: {scores} has no score file of a shipped model; check the folder")
        _report(terminal, entries, allowed)
        return
    ten_minutes = score_files.read_ten_minutes(scores)
    page, numbers = pages.markdown(files, ten_minutes), pages.as_json(files, ten_minutes)
    if out is not None:
        write_out(out / PAGE, page)
        write_out(out / CELLS, json.dumps(numbers, indent=1, allow_nan=False) + "\n")
        terminal.show(f"tables: {out / PAGE}, {out / CELLS}")
    else:
        terminal.show(page)
    terminal.result(numbers)


def _report(terminal: Terminal, entries: list[dict[str, Any]], tolerance: float) -> None:
    wrong = [entry for entry in entries if not entry["agrees"]]
    rows = [
        [e["model"], e["what"], _shown(e["expected"]), _shown(e["found"]), "" if e["agrees"] else "differs"]
        for e in entries
    ]
    terminal.show(
        table(
            f"{counted(len(entries), 'value')} of shipped models, {len(wrong)} that differ",
            ["model", "what", "in the tables", "here", ""],
            rows,
            caption=f"scores may differ by {tolerance:.3g} of their value",
            text=(0, 1, 4),
        )
    )
    terminal.result({"agrees": not wrong, "tolerance": tolerance, "values": entries})
    if wrong:
        raise typer.Exit(1)


def _shown(value: Any) -> str:
    return f"{value[:12]}..." if isinstance(value, str) else number(value, 4)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit status."""
    return cli.main(arguments, of=app, name="python -m benchmarks.paper")


if __name__ == "__main__":
    sys.exit(main())
