"""`enma-fast train FILE`: from one's own field file to a model, its scores and a report."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from ..errors import EnmaError
from ..utils.text import counted
from .forecast import duration
from .options import AsJson, Threads, use_threads
from .terminal import Terminal, number, size, table

if TYPE_CHECKING:
    from ..training.own_plan import Plan

STORE, REPORT = "forecast.zarr", "report.html"
# Members of the forecast that the report shows.
_MEMBERS = 32


class OwnDataGroup(TyperGroup):
    """`enma-fast train` with its subcommands, of which `run` is meant where a path stands in place of a name."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        word = args[0] if args else "-"
        # The group itself has no other option.
        options_first = word.startswith("-") and word not in ("--help", "-h")
        path_first = word not in self.commands and ("/" in word or "." in word or Path(word).exists())
        if args and (options_first or path_first):
            args = ["run", *args]
        return super().parse_args(ctx, args)


def run(
    source: Annotated[
        Path, typer.Argument(metavar="FILE_OR_FOLDER", help="Field file, or a folder of them; `data import` makes one.")
    ],
    out: Annotated[Path, typer.Option("--out", help="Run folder; the same command resumes what it finds there.")],
    model_size: Annotated[str, typer.Option("--size", help="small, base or paper.")] = "small",
    minutes: Annotated[
        float | None,
        typer.Option("--minutes", help="Time for all; by default as many steps as the presets of this size take."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show model, split, memory and time, measured on a few steps, and stop.")
    ] = False,
    seed: Annotated[int, typer.Option("--seed", help="Seed of weights, batches and noise.")] = 0,
    shift: Annotated[
        bool,
        typer.Option("--shift/--no-shift", help="Whether the physics is the same at every place of the periodic axes."),
    ] = True,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Train a model on your own data; `run` may be left out before a path.

    The data are split into training, validation and test by environment, the model fits their grid and channels.
    """
    from ..models.checkpoint import IN_RUN
    from ..training.own_model import prepare_own, train_own
    from ..training.own_plan import Request, make_plan, saved_plan

    terminal = Terminal(as_json)
    use_threads(threads)
    request = Request(size=model_size, minutes=minutes, seed=seed, shift=shift)
    if dry_run:
        planned = saved_plan(source, out, request) or make_plan(source, request)[0]
        terminal.show(_plan_table(planned))
        terminal.result({"out": str(out), "plan": dataclasses.asdict(planned)})
        return
    plan = prepare_own(source, out, request)
    terminal.note(_plan_table(plan))
    with terminal.progress(plan.preset.model.name) as update:
        metrics = train_own(plan, out, command=_command(source, request), progress=update)
    report = _report(terminal, plan, out)
    terminal.show(
        *_score_tables(plan, metrics["rows"]),
        f"checkpoint: {out / IN_RUN}   (enma-fast forecast FILE --checkpoint {out} --out forecast.zarr)",
        *([f"report:     {report}"] if report else []),
    )
    terminal.result({"out": str(out), "checkpoint": str(out / IN_RUN), "report": report and str(report), **metrics})


def _report(terminal: Terminal, plan: Plan, out: Path) -> Path | None:
    """A forecast of the first test trajectory as a store and a page; None if an extra is missing."""
    from ..figures.report import write_report
    from ..forecasting.request import ForecastRequest
    from ..runs.prepare import prepare

    data = out / "data" / f"{plan.preset.model.dataset}-test-in.h5"
    request = ForecastRequest(num_members=_MEMBERS, trajectories=[0])
    try:
        prepare(data, out / STORE, request, checkpoint=out).execute()
        write_report(out / STORE, out / REPORT)
    except EnmaError as error:
        terminal.note(f"no report: {error}")
        return None
    return out / REPORT


def _command(source: Path, request: Any) -> str:
    minutes = [] if request.minutes is None else ["--minutes", f"{request.minutes:g}"]
    shift = [] if request.shift else ["--no-shift"]
    words = ["--out", "RUN", "--size", request.size, *minutes, "--seed", str(request.seed), *shift]
    return shlex.join(["enma-fast", "train", source.name, *words])


def _plan_table(plan: Plan) -> Any:
    from ..training.own_plan import shares
    from ..training.recipes import recipe

    model = plan.preset.model
    tok = model.tokenizer
    walls = ("periodic" if wraps else "open" for wraps in tok.periodic)
    grid = ", ".join(f"{n} {wall}" for n, wall in zip(tok.grid, walls, strict=True))
    pairs = zip(plan.channels, tok.field_mean or (), tok.field_scale or (), strict=True)
    rows = [
        ["points", grid],
        ["channels", ", ".join(f"{name} ({number(mean)} +- {number(scale)})" for name, mean, scale in pairs)],
        ["frames", f"{model.num_frames}, {number(model.frame_interval)} apart"],
        ["model", f"{plan.request.size}, {plan.num_parameters:,} parameters, {model.num_tokens} tokens a frame"],
    ]
    for split, count in plan.trajectories.items():
        shared = plan.frames.get(split, count * model.num_frames)
        few = f", which overlap: {shared:,} frames in all" if shared < count * model.num_frames else ""
        environments = counted(plan.environments[split], "environment")
        rows.append([split, f"{counted(count, 'trajectory')} in {environments}{few}"])
    rows.append(["tasks", "temporal, initial value by a context" if plan.contexts else "temporal; no contexts"])
    for stage in shares(plan.preset):
        training = recipe(plan.preset, stage)
        batch = f"{training.batch} windows of {training.window} frames" if training.window else str(training.batch)
        rows.append([stage, f"{training.steps:,} steps of {batch}, about {duration(plan.seconds[stage])}"])
    rows += [["memory", f"about {size(plan.memory)}"], ["time", f"about {duration(sum(plan.seconds.values()))}"]]
    return table(f"plan of {model.name}", ["", "value"], rows, text=(0, 1))


def _score_tables(plan: Plan, rows: list[dict[str, Any]]) -> list[Any]:
    """Scores of each task, and errors of each channel in its unit."""
    from ..evaluation.baselines import BASELINES
    from ..training.own_card import notes

    # Runs that were finished by an older version have fewer baselines.
    names = [name for name in BASELINES if all(name in row for row in rows)]
    head = ["task", "trajectories", "rel. L2", *names, "CRPS", "spread/skill"]
    lines = [
        [
            row["task"],
            str(row["num_trajectories"]),
            *(number(part["rel_l2"]) for part in (row, *(row[name] for name in names))),
            number(row["crps"]),
            number(row["spread_skill"]),
        ]
        for row in rows
    ]
    errors = [
        [row["task"], f"{channel} ({found.get('unit', '1')})"]
        + [number(found[key]) for key in ("rmse", *(f"{name}_rmse" for name in names))]
        for row in rows
        for channel, found in row["channels"].items()
    ]
    caption = " ".join(notes(plan)) or None
    return [
        table("held-out test split", head, lines),
        table(
            "RMS errors", ["task", "channel (unit)", "mean of members", *names], errors, caption=caption, text=(0, 1)
        ),
    ]
