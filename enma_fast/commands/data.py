"""`enma-fast data generate`, `data subset` and `data info`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from .options import AsJson
from .options import Data as DataFile
from .terminal import Terminal, number, table

# Lists that are no range.
_BETWEEN = {"points": " x ", "lengths": " x ", "periodic": ", ", "channels": ", "}


def generate(
    equation: Annotated[str, typer.Argument(help="combined or advection.")],
    out: Annotated[Path, typer.Option("--out", help="Folder of the files <equation>-<split>.h5.")],
    split: Annotated[str, typer.Option("--split", help="train, val, test-in, test-out or all.")] = "all",
    groups: Annotated[
        int | None,
        typer.Option("--groups", help="Environments of 10 trajectories each; by default the paper's number."),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Seed of parameters and initial conditions.")] = 0,
    force: Annotated[bool, typer.Option("--force", help="Replace files of these names.")] = False,
    as_json: AsJson = False,
) -> None:
    """Solve an equation for the trajectories of a data set and write them as HDF5 in The Well's layout."""
    from ..data import DEFAULT_GROUPS, place
    from ..data import generate as solve

    terminal = Terminal(as_json)
    made: list[dict[str, Any]] = []
    parts = list(DEFAULT_GROUPS) if split == "all" else [split]
    for part in parts:
        # Before the first of them is made.
        place(equation, part, out, force=force)
    for part in parts:
        with terminal.progress(f"{equation}-{part}") as update:
            path = solve(equation, part, groups=groups, seed=seed, out_dir=out, force=force, progress=update)
        made.append({"file": str(path), "equation": equation, "split": part, "bytes": path.stat().st_size})
        terminal.show(f"{path}  {made[-1]['bytes'] / 1e6:.1f} MB")
    terminal.result(made if split == "all" else made[0])


def subset(
    file: DataFile,
    out: Annotated[Path, typer.Option("--out", help="File to write.")],
    environments: Annotated[int, typer.Option("--environments", help="Environments, evenly spread.")] = 12,
    each: Annotated[int, typer.Option("--each", help="Trajectories of each.")] = 2,
    force: Annotated[bool, typer.Option("--force", help="Replace a file at --out.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write a few trajectories of some environments as a file of its own; the shipped test files are such."""
    from ..data import subset as write

    terminal = Terminal(as_json)
    path = write(file, out, environments=environments, each=each, force=force)
    terminal.show(f"{path}  {environments * each} trajectories, {path.stat().st_size / 1e6:.2f} MB")
    terminal.result({"file": str(path), "trajectories": environments * each, "bytes": path.stat().st_size})


def info(file: DataFile, as_json: AsJson = False) -> None:
    """Show what a field file holds; every value is read, so damage is found."""
    from ..data import describe

    terminal = Terminal(as_json)
    found = describe(file)
    rows = [[key, _text(value, _BETWEEN.get(key, " .. "))] for key, value in found.items() if key != "file"]
    terminal.show(table(found["file"], ["field", "value"], rows, text=(0, 1)))
    terminal.result(found)


def _text(value: Any, between: str = " .. ") -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_text(item)}" for key, item in value.items()) or "-"
    if isinstance(value, list):
        return between.join(_text(item) for item in value)
    return number(value) if isinstance(value, float) else "-" if value is None else str(value)
