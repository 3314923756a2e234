"""`enma-fast forecast`."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from ..utils.text import counted
from .options import (
    DEFAULT_CHECKPOINT,
    AsJson,
    Checkpoint,
    Chunk,
    Device,
    FlowMethod,
    FlowSteps,
    Frames,
    History,
    LastFlowSteps,
    MaskSteps,
    Members,
    Precision,
    Seed,
    Shifts,
    Strict,
    Temperature,
    Threads,
    numbers,
    on_device,
    sampling,
    trajectories,
    use_threads,
)
from .options import Data as DataFile
from .terminal import Terminal, number, size, table


def forecast(
    file: DataFile,
    out: Annotated[Path, typer.Option("--out", help="Zarr store to write, or to continue.")],
    checkpoint: Checkpoint = DEFAULT_CHECKPOINT,
    task: Annotated[
        str | None,
        typer.Option("--task", help="temporal, initial-value or generation; by default as --context says."),
    ] = None,
    history: History = 3,
    frames: Frames = None,
    context: Annotated[
        Path | None,
        typer.Option(
            "--context", help="Field file of contexts, one for each trajectory or one for all: initial-value."
        ),
    ] = None,
    members: Members = 16,
    first_member: Annotated[
        int, typer.Option("--first-member", help="Number of the first member, to continue another store's ensemble.")
    ] = 0,
    seed: Seed = 0,
    select: Annotated[
        str | None, typer.Option("--select", help="Trajectories A:B of the file, or one number; all by default.")
    ] = None,
    statistics_only: Annotated[
        bool, typer.Option("--statistics-only", help="Write mean, spread and what --quantiles asks for, no members.")
    ] = False,
    quantiles: Annotated[
        str | None, typer.Option("--quantiles", help="Quantiles to write, such as 0.05,0.5,0.95; with mean and spread.")
    ] = None,
    exceedance: Annotated[
        str | None, typer.Option("--exceedance", help="Thresholds whose exceedance probability is written: 0.5,1.")
    ] = None,
    shard: Annotated[int, typer.Option("--shard", help="Members in a file.")] = 1,
    strict: Strict = False,
    force: Annotated[bool, typer.Option("--force", help="Replace a forecast store at --out.")] = False,
    static: Annotated[
        bool,
        typer.Option("--static", help="Fixed shares of the members, for several machines without shared locks."),
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, show the plan, and stop.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No plan, no progress.")] = False,
    mask_steps: MaskSteps = None,
    flow_steps: FlowSteps = None,
    last_flow_steps: LastFlowSteps = None,
    flow_method: FlowMethod = None,
    temperature: Temperature = None,
    shifts: Shifts = None,
    precision: Precision = None,
    chunk: Chunk = 64,
    device: Device = "cpu",
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Forecast ensembles for the trajectories of a field file and write them as a Zarr store.

    The same command continues a run that was stopped. Under torchrun, mpirun or srun the processes share the work.
    """
    from ..data import count
    from ..models.checkpoint import load_config
    from ..runs.run import prepare
    from ..store.layout import OUTSIDE
    from ..utils.launch import detect

    launch = detect()
    terminal = Terminal(as_json, quiet=quiet or not launch.is_reporter)
    use_threads(threads or launch.threads())
    rows = trajectories(select, count(file))
    settings, typed = sampling(
        load_config(checkpoint),
        mask_steps=mask_steps,
        flow_steps=flow_steps,
        last_flow_steps=last_flow_steps,
        flow_method=flow_method,
        temperature=temperature,
        shifts=shifts,
    )
    task = task or ("temporal" if context is None else "initial-value")
    command = shlex.join(
        ["enma-fast", "forecast", file.name, "--checkpoint", str(checkpoint), "--task", task]
        + ["--history", str(history)]
        + ([] if frames is None else ["--frames", str(frames)])
        + ([] if context is None else ["--context", context.name])
        + ["--members", str(members)]
        + ([] if first_member == 0 else ["--first-member", str(first_member)])
        + ["--seed", str(seed), "--select", f"{rows.start}:{rows.stop}"]
        + (["--statistics-only"] if statistics_only else [])
        + ([] if quantiles is None else ["--quantiles", quantiles])
        + ([] if exceedance is None else ["--exceedance", exceedance])
        + ([] if shard == 1 else ["--shard", str(shard)])
        + typed.split()
        + ([] if precision is None else ["--precision", precision])
        + ([] if device == "cpu" else ["--device", device])
    )
    run = prepare(
        file,
        out,
        checkpoint=checkpoint,
        task=task,
        history=history,
        frames=frames,
        context=context,
        members=members,
        first_member=first_member,
        seed=seed,
        select=rows,
        keep_members=not statistics_only,
        quantiles=numbers(quantiles, "--quantiles"),
        thresholds=numbers(exceedance, "--exceedance"),
        settings=settings,
        precision=precision,
        chunk=chunk,
        shard=shard,
        device=on_device(device),
        command=command,
        strict=strict,
        force=force,
        static=static,
        launch=launch,
    )
    plan = run.plan(measure=True if dry_run else None)
    shown = _plan_table(plan, out)
    # Of a dry run the plan is the result.
    if dry_run:
        terminal.show(shown)
    else:
        terminal.note(shown)
    result: dict[str, Any] = {
        "plan": dataclasses.asdict(plan),
        "task": task,
        "model": run.sampler.model.config.name,
        "history": run.sampler.case.observed,
        "seed": seed,
        OUTSIDE: run.layout.attributes.get(OUTSIDE),
        "sampling": dataclasses.asdict(settings),
        "rank": launch.rank,
    }
    if dry_run:
        terminal.result({"store": str(out), **result})
        return
    with terminal.ensemble_progress(members) as update:
        done = run.execute(update)
    sampled = done["members_sampled"]
    rate = number(sampled / done["seconds"])
    work = f"{counted(sampled, 'member')} sampled in {done['seconds']:.1f} s, {rate} a second"
    terminal.show(
        f"{out}: {counted(done['num_trajectories'], 'trajectory')}, {counted(members, 'member')}; "
        f"{work if sampled else 'all were there, nothing was left to sample'}"
    )
    terminal.result(
        {
            **done,
            **result,
            "seconds_per_member": done["seconds"] / sampled if sampled else None,
            "num_parameters": sum(p.numel() for p in run.sampler.model.parameters()),
        }
    )


def _plan_table(plan: Any, out: Path) -> Any:
    rows = [
        ["trajectories", f"{plan.trajectories:,}"],
        ["members of each", f"{plan.members:,}"],
        ["frames of each", f"{plan.frames:,}"],
        ["members to sample", f"{plan.members_missing:,} of {plan.trajectories * plan.members:,}"],
        ["rows at a time", f"{plan.chunk:,} in {plan.blocks:,} blocks"],
        ["disk", f"{size(plan.disk)} in {plan.files:,} files"],
    ]
    if plan.ranks > 1:
        rows.append(["processes", f"{plan.ranks:,}"])
    if plan.seconds is not None:
        parts = ", ".join(f"{name.replace('_', ' and ')} {size(value)}" for name, value in plan.memory.items())
        rows.append(["memory", f"{size(sum(plan.memory.values()))}: {parts}"])
        rows.append(["time", f"about {duration(plan.seconds)}"])
    return table(f"plan of {out}", ["", "value"], rows, text=(0, 1))


def duration(seconds: float) -> str:
    """A time for people."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"
