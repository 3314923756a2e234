"""`enma-fast forecast`."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Annotated

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
from .terminal import Terminal


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
