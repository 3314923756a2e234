"""`enma-fast forecast`, `score` and `plot`."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from .options import (
    DEFAULT_CHECKPOINT,
    AsJson,
    Checkpoint,
    Chunk,
    Device,
    FlowMethod,
    FlowSteps,
    History,
    LastFlowSteps,
    MaskSteps,
    Members,
    Precision,
    Seed,
    Task,
    Temperature,
    Threads,
    on_device,
    sampling,
    trajectories,
    use_threads,
)
from .options import Data as DataFile
from .terminal import Terminal, number, table

_SCORES = ("rel_l2", "rel_l2_member", "crps", "rmsce", "rmsce_rank", "spread_skill", "solver_fidelity")


def forecast(
    file: DataFile,
    out: Annotated[Path, typer.Option("--out", help="Zarr store to write.")],
    checkpoint: Checkpoint = DEFAULT_CHECKPOINT,
    task: Task = "temporal",
    history: History = 3,
    members: Members = 16,
    seed: Seed = 0,
    select: Annotated[
        str | None, typer.Option("--select", help="Trajectories A:B of the file, or one number; all by default.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a forecast store at --out.")] = False,
    mask_steps: MaskSteps = None,
    flow_steps: FlowSteps = None,
    last_flow_steps: LastFlowSteps = None,
    flow_method: FlowMethod = None,
    temperature: Temperature = None,
    precision: Precision = None,
    chunk: Chunk = 64,
    device: Device = "cpu",
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Forecast ensembles for the trajectories of a field file and write them as a Zarr store."""
    from ..checkpoint import load_model
    from ..data import read
    from ..tasks import Case, ensembles, open_store, provenance

    terminal = Terminal(as_json)
    use_threads(threads)
    model = load_model(checkpoint, device=on_device(device))
    settings, typed = sampling(
        model.config,
        mask_steps=mask_steps,
        flow_steps=flow_steps,
        last_flow_steps=last_flow_steps,
        flow_method=flow_method,
        temperature=temperature,
    )
    typed += "" if precision is None else f" --precision {precision}"
    case = Case(
        task=task, history=history, members=members, seed=seed, chunk=chunk, settings=settings, precision=precision
    )
    data = read(file)
    rows = trajectories(select, len(data))
    asked = (
        f"--task {task} --history {history} --members {members} --seed {seed} --select {rows.start}:{rows.stop}{typed}"
    )
    attributes = provenance(checkpoint, data, f"enma-fast forecast {file.name} --checkpoint {checkpoint} {asked}")
    done, clock = 0, time.perf_counter()
    with (
        terminal.progress("forecasting") as update,
        open_store(out, model.config, data, case, rows=rows, attributes=attributes, force=force) as store,
    ):
        for part, samples in ensembles(model, data, case, rows=rows):
            store.put(done, samples.cpu())
            done += len(part)
            update(done, len(rows))
    seconds = time.perf_counter() - clock
    terminal.show(f"{out}: {done} trajectories, {members} members, {seconds:.1f} s")
    terminal.result(
        {
            "store": str(out),
            "task": task,
            "model": model.config.name,
            "num_trajectories": done,
            "num_members": members,
            "num_frames": int(samples.shape[2]),
            "history": case.observed,
            "seed": seed,
            "sampling": dataclasses.asdict(settings),
            "seconds_per_member": seconds / (done * members),
            "num_parameters": sum(p.numel() for p in model.parameters()),
        }
    )


def score(
    file: DataFile,
    checkpoint: Checkpoint = DEFAULT_CHECKPOINT,
    task: Task = "temporal",
    history: History = 3,
    members: Members = 16,
    seed: Seed = 0,
    limit: Annotated[int | None, typer.Option("--limit", help="Score the first N trajectories only.")] = None,
    mask_steps: MaskSteps = None,
    flow_steps: FlowSteps = None,
    last_flow_steps: LastFlowSteps = None,
    flow_method: FlowMethod = None,
    temperature: Temperature = None,
    precision: Precision = None,
    chunk: Chunk = 64,
    device: Device = "cpu",
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Score ensemble forecasts of a field file: error, CRPS and calibration, beside the paper's figures."""
    from ..checkpoint import load_model
    from ..data import read
    from ..scoring import paper_table
    from ..scoring import score as measure

    terminal = Terminal(as_json)
    use_threads(threads)
    model = load_model(checkpoint, device=on_device(device))
    settings, _ = sampling(
        model.config,
        mask_steps=mask_steps,
        flow_steps=flow_steps,
        last_flow_steps=last_flow_steps,
        flow_method=flow_method,
        temperature=temperature,
    )
    data = read(file)
    with terminal.progress("scoring") as update:
        result = measure(
            model,
            data,
            task=task,
            history=history,
            members=members,
            seed=seed,
            limit=limit,
            chunk=chunk,
            settings=settings,
            precision=precision,
            progress=update,
        )
    terminal.show(_score_table(result, paper_table(result)))
    terminal.result({**result, "file": str(file), "checkpoint": str(checkpoint)})


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


def _score_table(result: dict[str, Any], paper: list[dict[str, Any]]) -> Any:
    names = [name for name in _SCORES if result[name] is not None]
    rows = [[f"{result['model']} (this run)", *(number(result[name]) for name in names)]]
    rows += [[f"{row['model']} (paper)", *(number(row.get(name)) for name in names)] for row in paper]
    split = result["split"] or "no split of this package"
    return table(
        f"{result['dataset']} ({split}), {result['task']}: {result['num_trajectories']} trajectories",
        ["", *names],
        rows,
        caption=f"{result['num_members']} members from {result['history']} frames, {result['num_frames']} frames "
        f"scored, seed {result['seed']}; {number(result['seconds_per_member'])} s per member, "
        f"{result['num_parameters']:,} parameters",
    )
