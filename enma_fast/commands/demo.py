"""`enma-fast demo`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import EnmaError
from ..forecasting.request import ForecastRequest
from .options import DEFAULT_CHECKPOINT, AsJson, Points, Seed, Threads, use_threads
from .terminal import Terminal, number, table

_BESIDE = ("FNO", "AViT", "Zebra", "ENMA")
_PAPER = (
    "\nThe paper's are over 1,200 trajectories (120 out of distribution); it does not say whether its CRPS and RMSCE "
    "are from 3 frames or from 1."
)
# Label of a column, number of the forecast that it is of, and the score.
_COLUMNS = (
    ("rel. L2", 0, "rel_l2"),
    ("one member", 0, "rel_l2_member"),
    ("CRPS", 0, "crps"),
    ("RMSCE", 0, "rmsce"),
    ("spread / skill", 0, "spread_skill"),
    ("out of dist.", 1, "rel_l2"),
    ("median", 1, "rel_l2_median"),
    ("initial value", 2, "rel_l2"),
)


def demo(
    out: Annotated[Path, typer.Option("--out", help="Folder of the forecast store and the figure.")] = Path("out/demo"),
    members: Annotated[int, typer.Option("--members", help="Ensemble size.")] = 64,
    trajectories: Annotated[
        int | None, typer.Option("--trajectories", help="Trajectories to forecast; 12, or all that the file holds.")
    ] = None,
    seed: Seed = 0,
    pde: Annotated[
        str | None, typer.Option("--pde", help="Equation whose shipped model to use; an unknown name lists them.")
    ] = None,
    checkpoint: Annotated[
        str | None,
        typer.Option("--checkpoint", "-c", help=rf"Shipped name or folder.  \[default: {DEFAULT_CHECKPOINT}]"),
    ] = None,
    points: Points = ForecastRequest.points,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Forecast trajectories that the shipped model has never seen, score them, and draw that of median error."""
    from ..figures import demo as library

    if pde is not None and checkpoint is not None:
        raise EnmaError("--pde: names a shipped model, and so does --checkpoint; give one of them")
    if pde is not None:
        checkpoint = library.shipped_model(pde)
    terminal = Terminal(as_json)
    use_threads(threads)
    clock = time.perf_counter()
    with terminal.progress("forecasting") as update:
        result = library.run(
            out,
            members=members,
            trajectories=trajectories,
            seed=seed,
            checkpoint=checkpoint or DEFAULT_CHECKPOINT,
            points=points,
            progress=update,
        )
    terminal.show(
        _table(result),
        f"spread and error agree when spread/skill is 1; {time.perf_counter() - clock:.0f} s in all, "
        f"{number(result['seconds_per_member'])} s per member",
        f"forecast: {result['store']}   (xarray.open_zarr)",
        f"figure:   {result['figure']}   (trajectory {result['figure_trajectory']}, of median error)",
    )
    terminal.result(result)


def _table(result: dict[str, Any]) -> Any:
    """This model and four of the paper's, one column per figure."""
    temporal, outside, _ = result["rows"]
    papers = [{row["model"]: row for row in rows} for rows in result["paper"]]
    rows = [["this model", *(number(result["rows"][i][name]) for _, i, name in _COLUMNS)]]
    for model in _BESIDE if any(papers) else ():
        rows.append([f"{model}, paper", *(number(papers[i].get(model, {}).get(name)) for _, i, name in _COLUMNS)])
    recognised, points = "", temporal["points"]
    seen = "" if points is None else f" seen at {points} points, different ones in each"
    if outside["num_outside"] is not None:
        counts = (f"{row['num_outside']} of {row['num_trajectories']}" for row in (temporal, outside))
        recognised = "\nTrajectories found outside the training data: {} in distribution, {} out of it.".format(*counts)
    return table(
        f"{result['model']}: {result['num_trajectories']} unseen trajectories, {temporal['num_frames']} frames",
        ["", *(label for label, _, _ in _COLUMNS)],
        rows,
        caption=f"From {temporal['history']} frames{seen}, {temporal['num_members']} members. The last three columns "
        f"are relative L2 of {outside['num_members']} members: its mean and median out of distribution, and its mean "
        "from 1 frame and a context." + (_PAPER if any(papers) else "") + recognised,
    )
