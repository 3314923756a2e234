"""`enma-fast score`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import EnmaError
from ..forecasting.request import ForecastRequest, dtype_named
from ..utils.text import counted
from . import options
from .terminal import Terminal, number, require_writable, table, write_out

# Options that a forecast store is scored with; the others say how a field file is forecast.
_OF_A_STORE = {"file", "truth", "out", "threads", "as_json"}
# Scores of single channels that the terminal shows; JSON has all.
_OF_CHANNELS = ("rel_l2", "rmse", "crps", "spread_skill")


@options.with_options(options.SAMPLER, dict.fromkeys(options.SAMPLER))
def score(
    context: typer.Context,
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="Field file: HDF5 in The Well's layout; or a forecast store.")
    ],
    truth: Annotated[
        Path | None, typer.Option("--truth", help="Of a forecast store: field file with its trajectories.")
    ] = None,
    checkpoint: options.Checkpoint = options.DEFAULT_CHECKPOINT,
    task: options.Task = ForecastRequest.task.name,
    history: options.History = ForecastRequest.num_history,
    points: options.Points = ForecastRequest.points,
    members: options.Members = ForecastRequest.num_members,
    seed: options.Seed = ForecastRequest.seed,
    limit: Annotated[int | None, typer.Option("--limit", help="Score the first N trajectories only.")] = None,
    precision: options.Precision = None,
    strict: options.Strict = False,
    chunk: options.Chunk = ForecastRequest.chunk,
    device: options.Device = "cpu",
    out: Annotated[Path | None, typer.Option("--out", help="JSON file to write the scores to.")] = None,
    threads: options.Threads = None,
    as_json: options.AsJson = False,
    **sampler: Any,
) -> None:
    """Score ensemble forecasts of a field file, or those in a forecast store, next to the paper's figures.

    A store is scored as it is, without the model: --truth names the field file of its trajectories, where the store
    holds no truth itself. Repeat the command after an interruption and it goes on where it was.
    """
    from ..data import read
    from ..evaluation.scoring import paper_table
    from ..evaluation.scoring import score as score_file
    from ..evaluation.store_scores import score_store
    from ..models.checkpoint import load_model

    terminal = Terminal(as_json)
    options.use_threads(threads)
    if out is not None:
        require_writable(out)
    if truth is not None and file.is_file():
        raise EnmaError(f"--truth: {file} is a field file, which holds its truth; leave the option out")
    if truth is not None or (file / "zarr.json").is_file():
        _refuse_options(context, file)
        with terminal.progress("scoring") as update:
            result = score_store(file, truth=truth, progress=update)
    else:
        model = load_model(checkpoint, device=options.on_device(device))
        settings, _ = options.sampling(model.config, **sampler)
        data = read(file)
        with terminal.progress("scoring") as update:
            result = score_file(
                model,
                data,
                task=task,
                num_history=history,
                num_members=members,
                seed=seed,
                limit=limit,
                chunk=chunk,
                settings=settings,
                dtype=dtype_named(precision),
                strict=strict,
                points=points,
                progress=update,
            )
        result |= {"file": str(file), "checkpoint": str(checkpoint)}
    terminal.show(_score_table(result, paper_table(result)), *_channel_table(result["channels"]))
    if out is not None:
        write_out(out, json.dumps(result, allow_nan=False, indent=1) + "\n")
    terminal.result(result)


def _refuse_options(context: typer.Context, store: Path) -> None:
    """Raise `EnmaError` if an option was typed that says how to forecast."""
    for name in context.params:
        source = context.get_parameter_source(name)
        if name not in _OF_A_STORE and source is not None and source.name == "COMMANDLINE":
            option = name.replace("_", "-")
            raise EnmaError(f"--{option}: {store} is a forecast store, scored as it is; leave the option out")


def _of_physics(physics: dict[str, Any] | None) -> list[str]:
    """Lines about the physics of the members."""
    if physics is None:
        return []
    laws = {"conserved": "changes by", "decays": "grows by"}
    said = [
        f"{each['name']} {laws[each['law']]} {number(each['violation'])} (truth: {number(each['truth'])})"
        for each in physics["quantities"]
    ]
    return [f"physics, relative to the observed amplitude: {'; '.join([*said, _spectrum(physics)])}"]


def _spectrum(physics: dict[str, Any]) -> str:
    return f"spectrum differs from the truth's by {number(physics['spectrum_error'])} decades"


def _score_table(result: dict[str, Any], paper: list[dict[str, Any]]) -> Any:
    from ..evaluation.metrics import columns

    names = [column.name for column in columns("terminal") if result[column.name] is not None]
    rows = [[f"{result['model']} (this run)", *(number(result[name]) for name in names)]]
    rows += [[f"{row['model']} (paper)", *(number(row.get(name)) for name in names)] for row in paper]
    split = result["split"] or "no split of this package"
    origin = result.get("store") or (
        f"{number(result['seconds_per_member'])} s per member, {result['num_parameters']:,} parameters"
    )
    notes = []
    if result["rel_l2_median"] is not None:
        median, tail = (number(result[name]) for name in ("rel_l2_median", "rel_l2_q90"))
        notes.append(f"rel_l2 is a mean over trajectories; their median is {median}, their 90 % quantile {tail}")
    if result["crps_relative"] is not None:
        seen = "the observed frames" if result["history"] else "the truth"
        notes.append(f"crps / RMS of {seen}: {number(result['crps_relative'])}")
    if result["num_outside"] is not None:
        notes.append(f"observed frames outside the training data: {counted(result['num_outside'], 'trajectory')}")
    notes += _of_physics(result["physics"])
    if any("crps" in row for row in paper):
        notes.append("the ENMA paper does not say whether its crps and rmsce are from 3 frames or from 1")
    if result["channels"] is not None:
        notes.append("the scores are of all channels together, whatever their units; those of each are below")
    return table(
        f"{result['dataset']} ({split}), {result['task']}: {counted(result['num_trajectories'], 'trajectory')}",
        ["", *names],
        rows,
        caption=f"{counted(result['num_members'], 'member')} from {counted(result['history'], 'frame')}, "
        f"{counted(result['num_frames'], 'frame')} scored, seed {result['seed']}; {origin}"
        + "".join(f"\n{note}" for note in notes),
    )


def _channel_table(channels: dict[str, Any] | None) -> list[Any]:
    """Scores of each channel, and what a reader of them needs to know; nothing of a field of one channel."""
    from ..evaluation.channel_scores import channel_notes

    if channels is None:
        return []
    shown = [name for name in _OF_CHANNELS if any(row[name] is not None for row in channels.values())]
    rows = [[f"{name} ({row['unit']})", *(number(row[score]) for score in shown)] for name, row in channels.items()]
    return [table("each channel", ["channel (unit)", *shown], rows, caption="\n".join(channel_notes(channels)) or None)]
