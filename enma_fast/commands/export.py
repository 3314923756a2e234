"""`enma-fast export-netcdf`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import EnmaError
from ..utils.text import counted
from .options import AsJson, span
from .terminal import Terminal


def netcdf(
    store: Annotated[Path, typer.Argument(metavar="STORE", help="Forecast store.")],
    out: Annotated[Path, typer.Option("--out", help="NetCDF file to write, by habit ending in .nc.")],
    select: Annotated[
        str | None, typer.Option("--select", help="Trajectories A:B by their numbers, or one number; all by default.")
    ] = None,
    members: Annotated[
        str | None, typer.Option("--members", help="Members A:B by their numbers, or one number; all by default.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a NetCDF file at --out.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write a forecast store as one NetCDF-4 file with CF attributes, as xarray and ncview open it."""
    from ..store.netcdf import export_netcdf
    from ..store.read import read_forecast

    terminal = Terminal(as_json)
    dataset = read_forecast(store)
    if members is not None and "realization" not in dataset.coords:
        raise EnmaError(f"--members {members}: {store} holds statistics only; leave the option out")
    typed = "".join(f" {name} {value}" for name, value in (("--select", select), ("--members", members)) if value)
    with terminal.progress("exporting") as update:
        result = export_netcdf(
            store,
            out,
            trajectories=_chosen(select, "--select", dataset, "trajectory"),
            members=_chosen(members, "--members", dataset, "realization"),
            command=f"enma-fast export-netcdf {store.name} --out {out.name}{typed}",
            force=force,
            progress=update,
        )
    terminal.show(
        f"{out}: {counted(result['num_trajectories'], 'trajectory')}, {counted(result['num_members'], 'member')}, "
        f"{result['bytes'] / 1e6:.1f} MB"
    )
    terminal.result(result)


def _chosen(text: str | None, option: str, dataset: Any, axis: str) -> list[int] | None:
    """The numbers along an axis of the store that an option names, see `span`."""
    if text is None:
        return None
    begin, end = span(text, option)
    numbers = dataset[axis].to_numpy().tolist()
    chosen = [n for n in numbers if (begin is None or n >= begin) and (end is None or n < end)]
    if not chosen:
        raise EnmaError(f"{option} {text!r}: names no {axis} of the store; it holds {min(numbers)} to {max(numbers)}")
    return chosen
