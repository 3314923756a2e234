"""`enma-fast data generate`, `data import`, `data subset` and `data info`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import EnmaError
from ..utils.text import boundaries, counted, times
from .options import AsJson, Known, Mask, Periodic, names, numbers, periodic_axes
from .options import Data as DataFile
from .terminal import Terminal, number, table

# Separators of lists that are not ranges.
_BETWEEN = {"points": " x ", "lengths": " x ", "periodic": ", ", "channels": ", ", "known": ", "}


def generate(
    equation: Annotated[str, typer.Argument(help="Name of an equation; an unknown one lists them.")],
    out: Annotated[Path, typer.Option("--out", help="Folder of the files <equation>-<split>.h5.")],
    split: Annotated[str, typer.Option("--split", help="train, val, test-in, test-out or all.")] = "all",
    groups: Annotated[
        int | None,
        typer.Option("--groups", help="Environments of 10 trajectories each; by default the paper's number."),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Seed of parameters and initial conditions.")] = 0,
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, help="Processes that solve; by default one for each core.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace files of these names.")] = False,
    as_json: AsJson = False,
) -> None:
    """Solve an equation for the trajectories of a data set and write them as HDF5 in The Well's layout.

    The same command resumes after an interruption: files that it has finished stay as they are.
    """
    from ..data import DEFAULT_GROUPS, output_path
    from ..data import generate as solve
    from ..utils.system import usable_cores

    terminal = Terminal(as_json)
    files: list[dict[str, Any]] = []
    parts = list(DEFAULT_GROUPS) if split == "all" else [split]
    for part in parts:
        # Refuse before the first of them is made.
        output_path(equation, part, out, groups=groups, seed=seed, force=force)
    for part in parts:
        with terminal.progress(f"{equation}-{part}") as update:
            path = solve(
                equation,
                part,
                groups=groups,
                seed=seed,
                out_dir=out,
                force=force,
                workers=workers or usable_cores(),
                progress=update,
            )
        files.append({"file": str(path), "equation": equation, "split": part, "bytes": path.stat().st_size})
        terminal.show(f"{path}  {files[-1]['bytes'] / 1e6:.1f} MB")
    terminal.result({"files": files} if split == "all" else files[0])


def subset(
    file: DataFile,
    out: Annotated[Path, typer.Option("--out", help="File to write.")],
    environments: Annotated[
        int | None,
        typer.Option("--environments", help="Environments, evenly spread; by default at most 12 and 4 MB."),
    ] = None,
    each: Annotated[
        int | None, typer.Option("--each", help="Trajectories of each; by default 2, or 1 where there is one.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a file at --out.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write a few trajectories of some environments as a file of its own; the shipped test files are such.

    A trajectory of less than a tenth of the others' amplitude is replaced by the next of its environment.
    """
    from ..data import count
    from ..data import subset as write

    terminal = Terminal(as_json)
    path = write(file, out, environments=environments, each=each, force=force)
    num_trajectories, size = count(path), path.stat().st_size
    terminal.show(f"{path}  {num_trajectories} trajectories, {size / 1e6:.2f} MB")
    terminal.result({"file": str(path), "trajectories": num_trajectories, "bytes": size})


def import_(
    source: Annotated[Path, typer.Argument(help="File .npy, .npz, .nc or .h5, or Zarr folder.")],
    out: Annotated[Path, typer.Option("--out", help="Field file to write, .h5; its name becomes the data set's.")],
    axes: Annotated[
        str | None,
        typer.Option("--axes", help="Axes of the fields in order, out of trajectory,time,x,y,z,channel."),
    ] = None,
    fields: Annotated[
        str | None, typer.Option("--fields", help="Fields, or components such as u_0, NAME,NAME; all by default.")
    ] = None,
    channels: Annotated[str | None, typer.Option("--channels", help="New names of all channels, NAME,NAME.")] = None,
    units: Annotated[
        list[str] | None, typer.Option("--unit", metavar="CHANNEL=UNIT", help="Unit of a channel; may be repeated.")
    ] = None,
    dt: Annotated[float | None, typer.Option("--dt", help="Time between frames, in place of the source's.")] = None,
    spacing: Annotated[
        str | None, typer.Option("--spacing", help="Distance of points, one number or one per space axis.")
    ] = None,
    periodic: Periodic = None,
    environment: Annotated[
        str | None,
        typer.Option("--environment", help="Columns, NAME,NAME, that are equal where the physics is; else all differ."),
    ] = None,
    crop: Annotated[
        str | None,
        typer.Option("--crop", metavar="AXIS=A:B,...", help="Keep the places A to B - 1 of x, y, z or time, from 0."),
    ] = None,
    known: Known = None,
    mask: Mask = None,
    window: Annotated[
        int | None, typer.Option("--window", help="Cut long series into trajectories of so many frames.")
    ] = None,
    stride: Annotated[
        int | None, typer.Option("--stride", help="Frames between the beginnings of windows; by default a window.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a file at --out.")] = False,
    as_json: AsJson = False,
) -> None:
    """Import your own data: NumPy, NetCDF, Zarr, or HDF5 of The Well, PDEBench or arrays at its root."""
    from ..data import ImportOptions, describe, import_fields

    terminal = Terminal(as_json)
    options = ImportOptions(
        axes=names(axes),
        fields=names(fields),
        channels=names(channels),
        units=_units(units or []),
        dt=dt,
        spacing=tuple(numbers(spacing, "--spacing")),
        periodic=periodic_axes(periodic),
        environment=environment,
        crop=_crop(crop),
        known=tuple(known or ()),
        mask=mask,
        window=window,
        stride=stride,
    )
    facts = describe(import_fields(source, out, options, force=force))
    grid = f"{times(facts['points'])} points ({boundaries(facts['periodic'])})"
    terminal.show(
        f"{out}: {counted(facts['trajectories'], 'trajectory')} in {counted(facts['groups'], 'environment')}, "
        f"{counted(facts['frames'], 'frame')}, {grid}, channels {', '.join(facts['channels'])}"
    )
    terminal.result(facts)


def _crop(text: str | None) -> dict[str, tuple[int, int]]:
    ranges: dict[str, tuple[int, int]] = {}
    for part in names(text):
        match = re.fullmatch(r"(\w+)=(\d+):(\d+)", part)
        if match is None or match[1] in ranges:
            raise EnmaError(f"--crop {text}: write AXIS=A:B once for each axis, for example --crop x=0:48,y=0:36")
        ranges[match[1]] = int(match[2]), int(match[3])
    return ranges


def _units(values: list[str]) -> dict[str, str]:
    pairs = [text.partition("=") for text in values]
    for channel, equals, unit in pairs:
        if not (channel and equals and unit):
            raise EnmaError(f"--unit {channel}: write CHANNEL=UNIT, for example --unit temperature=K")
    return {channel: unit for channel, _, unit in pairs}


def info(file: DataFile, as_json: AsJson = False) -> None:
    """Show what a field file holds; every value is read, so damage is found."""
    from ..data import describe

    terminal = Terminal(as_json)
    facts = describe(file)
    rows = [[key, _text(value, _BETWEEN.get(key, " .. "))] for key, value in facts.items() if key != "file"]
    terminal.show(table(facts["file"], ["field", "value"], rows, text=(0, 1)))
    terminal.result(facts)


def _text(value: Any, between: str = " .. ") -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_text(item)}" for key, item in value.items()) or "-"
    if isinstance(value, list):
        return between.join(_text(item) for item in value)
    return number(value) if isinstance(value, float) else "-" if value is None else str(value)
