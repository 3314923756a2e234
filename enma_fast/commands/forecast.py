"""`enma-fast forecast`."""

from __future__ import annotations

import dataclasses
import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import EnmaError
from ..forecasting.request import ForecastRequest, dtype_named, task_named
from ..utils.launch import detect
from ..utils.text import counted
from . import options
from .terminal import Terminal, number, size, table

if TYPE_CHECKING:
    from ..config import ModelConfig
    from ..data import FieldFile
    from ..runs.plan import Plan


@options.with_options(options.SAMPLER, dict.fromkeys(options.SAMPLER))
def forecast(
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="Field file: HDF5 in The Well's layout; or a table of readings, .csv."),
    ],
    out: Annotated[Path, typer.Option("--out", help="Zarr store to write, or to continue.")],
    checkpoint: options.Checkpoint = options.DEFAULT_CHECKPOINT,
    task: Annotated[
        str | None,
        typer.Option("--task", help="temporal, initial-value or generation; by default as --context says."),
    ] = None,
    history: Annotated[
        int | None,
        typer.Option(
            "--history",
            help="Observed frames, of the temporal task only; by default "
            f"{ForecastRequest.num_history}, of readings all.",
        ),
    ] = None,
    points: options.Points = ForecastRequest.points,
    observation_error: Annotated[
        str | None,
        typer.Option(
            "--observation-error",
            help="Standard deviation of the error of values at scattered points: one number, or one for each channel.",
        ),
    ] = None,
    frames: options.Frames = None,
    context: Annotated[
        Path | None,
        typer.Option(
            "--context", help="Field file of contexts, one for each trajectory or one for all: initial-value."
        ),
    ] = None,
    members: options.Members = ForecastRequest.num_members,
    first_member: Annotated[
        int, typer.Option("--first-member", help="Number of the first member, to continue another store's ensemble.")
    ] = ForecastRequest.first_member,
    seed: options.Seed = ForecastRequest.seed,
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
    extend: Annotated[
        Path | None,
        typer.Option("--extend", help="Store of a shorter forecast of the same request: its members go on in --out."),
    ] = None,
    shard: Annotated[int, typer.Option("--shard", help="Members in a file.")] = 1,
    strict: options.Strict = False,
    force: Annotated[bool, typer.Option("--force", help="Replace a forecast store at --out.")] = False,
    static: Annotated[
        bool,
        typer.Option("--static", help="Fixed shares of the members, for several machines without shared locks."),
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, show the plan, and stop.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No plan, no progress.")] = False,
    precision: options.Precision = None,
    chunk: options.Chunk = ForecastRequest.chunk,
    device: options.Device = "cpu",
    threads: options.Threads = None,
    as_json: options.AsJson = False,
    **sampler: Any,
) -> None:
    """Forecast ensembles for the trajectories of a field file and write them as a Zarr store.

    A table of readings has the columns frame, x (and y), one for each channel, and perhaps trajectory: what sensors
    read at points that lie anywhere.

    The same command continues a run that was stopped. Under torchrun, mpirun or srun the processes share the work.
    """
    from ..data import count
    from ..models.checkpoint import load_config
    from ..runs.prepare import prepare
    from ..store.layout import OUTSIDE, POINTS

    launch = detect()
    terminal = Terminal(as_json, quiet=quiet or not launch.is_reporter)
    options.use_threads(threads or launch.threads())
    config = load_config(checkpoint)
    readings = _readings(config, file, history=history, context=context)
    selected = options.trajectories(select, count(file) if readings is None else len(readings))
    settings, typed = options.sampling(config, **sampler)
    request = ForecastRequest(
        task=task_named(task, has_contexts=context is not None),
        num_history=ForecastRequest.num_history if history is None else history,
        num_frames=frames,
        num_members=members,
        first_member=first_member,
        trajectories=selected,
        seed=seed,
        settings=settings,
        dtype=dtype_named(precision),
        chunk=chunk,
        strict=strict,
        points=points,
        observation_error=options.numbers(observation_error, "--observation-error"),
    )
    asked = _words(
        checkpoint=checkpoint,
        task=request.task.name,
        history=request.num_history if readings is None else None,
        points=request.points,
        observation_error=observation_error,
        frames=request.num_frames,
        context=context and context.name,
        members=request.num_members,
        first_member=request.first_member or None,
        seed=request.seed,
        select=f"{selected.start}:{selected.stop}",
        statistics_only=statistics_only or None,
        quantiles=quantiles,
        exceedance=exceedance,
        extend=extend and extend.name,
        shard=None if shard == 1 else shard,
        **typed,
        precision=precision,
        device=None if device == "cpu" else device,
    )
    run = prepare(
        file if readings is None else readings,
        out,
        request,
        checkpoint=checkpoint,
        context=context,
        keep_members=not statistics_only,
        quantiles=options.numbers(quantiles, "--quantiles"),
        thresholds=options.numbers(exceedance, "--exceedance"),
        shard=shard,
        device=options.on_device(device),
        command=shlex.join(["enma-fast", "forecast", file.name, *asked]),
        force=force,
        extend=extend,
        static=static,
        launch=launch,
    )
    plan = run.plan(measure=True if dry_run else None)
    shown = _plan_table(plan, out)
    # The plan is the result of a dry run.
    if dry_run:
        terminal.show(shown)
    else:
        terminal.note(shown)
    result: dict[str, Any] = {
        "plan": dataclasses.asdict(plan),
        "task": request.task.name,
        "model": run.sampler.forecast.model.config.name,
        "history": run.sampler.forecast.num_observed,
        "points": run.layout.attributes.get(POINTS),
        "seed": request.seed,
        OUTSIDE: run.layout.attributes.get(OUTSIDE),
        "sampling": dataclasses.asdict(settings),
        "rank": launch.rank,
    }
    if dry_run:
        terminal.result({"store": str(out), **result})
        return
    with terminal.progress("members") as update:
        begun: list[tuple[float, int]] = []

        def report(done: int, total: int) -> None:
            # Members of an earlier run say nothing about the speed.
            now = time.perf_counter()
            if not begun:
                begun.append((now, done))
            start, before = begun[0]
            rate = f"  {(done - before) / (now - start):.1f}/s" if done > before else ""
            update(done, total, f"{done:,} of {total:,}{rate}")

        done = run.execute(report)
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
            "num_parameters": sum(p.numel() for p in run.sampler.forecast.model.parameters()),
        }
    )


def _readings(config: ModelConfig, file: Path, *, history: int | None, context: Path | None) -> FieldFile | None:
    """The readings of a table, all of whose frames are observed; None for a file of another kind."""
    from ..data import is_readings
    from ..forecasting.scattered import readings_for

    if not is_readings(file):
        return None
    readings = readings_for(config, file)
    if history not in (None, len(readings.times)):
        raise EnmaError(f"--history {history}: all {len(readings.times)} frames of {file} are observed; leave it out")
    if context is not None:
        raise EnmaError(f"--context: {file} holds readings, from which the temporal task alone forecasts; leave it out")
    return readings


def _words(**values: Any) -> list[str]:
    """Options as they are typed, without those that are None; True is a flag."""
    words = []
    for name, value in values.items():
        if value is not None:
            words += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
    return words


def _plan_table(plan: Plan, out: Path) -> Any:
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
