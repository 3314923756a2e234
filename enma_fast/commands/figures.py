"""`enma-fast plot` and `enma-fast report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..utils.text import counted
from .options import AsJson
from .terminal import Terminal, number, require_writable

Store = Annotated[Path, typer.Argument(metavar="STORE", help="Forecast store.")]
Truth = Annotated[Path | None, typer.Option("--truth", help="Field file with the truth, where the store holds none.")]


def plot(
    store: Store,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", help="Picture (.png, .pdf, .svg), or movie of a 2-D field (.gif); by default STORE's name as .png."
        ),
    ] = None,
    truth: Truth = None,
    trajectory: Annotated[
        int | None, typer.Option("--trajectory", help="Its number in the file; the first of the store by default.")
    ] = None,
    channel: Annotated[str | None, typer.Option("--channel", help="Name of the channel; the first by default.")] = None,
    as_json: AsJson = False,
) -> None:
    """Draw one trajectory of a forecast store: maps, a fan chart at a point, and calibration of all; or a movie."""
    from ..drawing.plots import MOVIE, require_picture, save_figure
    from ..figures.report import StoreReader, store_figure, store_movie

    terminal = Terminal(as_json)
    picture = _beside(store, ".png") if out is None else out
    require_picture(picture)
    require_writable(picture)
    reader = StoreReader(store, truth)
    place, index = reader.place_of(trajectory), reader.channel_of(channel)
    if picture.suffix == MOVIE:
        store_movie(reader, picture, place=place, channel=index)
    else:
        save_figure(store_figure(reader, place=place, channel=index), picture)
    terminal.show(f"figure: {picture}")
    terminal.result({"figure": str(picture), "store": str(store), "trajectory": reader.numbers[place]})


def report(
    store: Store,
    out: Annotated[
        Path | None, typer.Option("--out", help="Page to write, .html; by default STORE's name as .html.")
    ] = None,
    truth: Truth = None,
    as_json: AsJson = False,
) -> None:
    """Write a forecast store as one HTML page: scores, figures and a viewer over time; it needs no network."""
    from ..figures.report import write_report

    terminal = Terminal(as_json)
    result = write_report(store, _beside(store, ".html") if out is None else out, truth=truth)
    scores = result["scores"]
    if scores is not None:
        terminal.show(
            f"relative L2 error of the mean {number(scores['rel_l2'])}, "
            f"spread/skill {number(scores['spread_skill'])}, {counted(scores['num_trajectories'], 'trajectory')}"
        )
    terminal.show(*result["notes"], f"report: {result['report']} ({result['num_bytes'] / 1e6:.1f} MB)")
    terminal.result(result)


def _beside(store: Path, suffix: str) -> Path:
    """A file of the store's name; that of `.` or `..` is the name of the folder it stands for."""
    return (store.resolve() if store.name in ("", "..") else store).with_suffix(suffix)
