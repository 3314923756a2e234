"""`enma-fast plot`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from .options import (
    AsJson,
)
from .terminal import Terminal


def plot(
    store: Annotated[Path, typer.Argument(metavar="STORE", help="Forecast store.")],
    out: Annotated[Path, typer.Option("--out", help="Picture to write: .png, .pdf or .svg.")],
    truth: Annotated[
        Path | None, typer.Option("--truth", help="Field file with the truth, where the store holds none.")
    ] = None,
    trajectory: Annotated[int | None, typer.Option("--trajectory", help="Its number in the file.")] = None,
    channel: Annotated[str | None, typer.Option("--channel", help="Name of the channel; the first by default.")] = None,
    as_json: AsJson = False,
) -> None:
    """Draw one trajectory of a forecast store: maps, a fan chart at a point, and calibration of all."""
    from ..demo import store_figure
    from ..errors import EnmaError
    from ..output import read_forecast
    from ..plots import save_figure

    terminal = Terminal(as_json)
    dataset = read_forecast(store)
    numbers, channels = dataset["trajectory"].to_numpy().tolist(), list(dataset.attrs["channels"])
    if trajectory is not None and trajectory not in numbers:
        raise EnmaError(f"{store}: has no trajectory {trajectory}; it holds {', '.join(map(str, numbers))}")
    if channel is not None and channel not in channels:
        raise EnmaError(f"{store}: has no channel {channel!r}; it holds {', '.join(channels)}")
    place = 0 if trajectory is None else numbers.index(trajectory)
    attrs = dataset.attrs
    title = f"{attrs['model']}, {attrs['task']}: trajectory {numbers[place]} of {attrs['data_name']}"
    figure = store_figure(
        store,
        place=place,
        channel=0 if channel is None else channels.index(channel),
        truth=None if truth is None else _truth(truth, dataset),
        title=title,
    )
    save_figure(figure, out)
    terminal.show(f"figure: {out}")
    terminal.result({"figure": str(out), "store": str(store), "trajectory": numbers[place]})


def _truth(file: Path, dataset: Any) -> Any:
    """The forecast frames `[B, T, *x, c]` of the store's trajectories in a field file."""
    from ..data import read
    from ..errors import EnmaError

    data = read(file, select=dataset["trajectory"].to_numpy())
    seen = dataset.attrs["observed_frames"]
    truth = data.u[:, seen : seen + dataset.sizes["time"]]
    shape = tuple(dataset[dataset.attrs["channels"][0]].shape)
    if truth.shape[:-1] != (shape[0], *shape[2:]) or truth.shape[-1] != len(dataset.attrs["channels"]):
        raise EnmaError(f"{file}: its frames have shape {truth.shape[1:]}; the forecast has {shape[2:]}")
    return truth
