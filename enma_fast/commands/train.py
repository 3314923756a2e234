"""`enma-fast train`: from a recipe, or from one's own field files, to a model; and `enma-fast publish`."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import EnmaError
from ..utils.text import counted
from .forecast import duration
from .options import AsJson, Known, Mask, Periodic, Threads, on_device, periodic_axes, use_threads
from .terminal import Terminal, number, table

if TYPE_CHECKING:
    from ..training.own_plan import Plan, Request
    from ..training.recipes import Recipe

STORE, REPORT = "forecast.zarr", "report.html"
# Members of the forecast that the report shows.
_MEMBERS = 16


def train(
    source: Annotated[
        str,
        typer.Argument(
            metavar="RECIPE_OR_FILE",
            help="A recipe by its name or its .toml file; or your own field file, or a folder of them.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="Run folder; the same command resumes what it finds there.")],
    seed: Annotated[
        int | None, typer.Option("--seed", help="Seed of weights, batches and noise; by default the recipe's, or 0.")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option("--data", help="Of a recipe: folder of <dataset>-train.h5 and -val.h5; by default they are made."),
    ] = None,
    start: Annotated[
        str | None,
        typer.Option("--from", metavar="MODEL", help="Of a recipe: begin with the weights of this run or checkpoint."),
    ] = None,
    precision: Annotated[
        str, typer.Option("--precision", help="Of a recipe: auto (bf16 where it is fast), bf16 or fp32.")
    ] = "auto",
    compile_steps: Annotated[
        bool | None,
        typer.Option(
            "--compile/--no-compile", help="Of a recipe: torch.compile the steps; by default where faster on a GPU."
        ),
    ] = None,
    device: Annotated[str, typer.Option("--device", help="Where the network is trained: cpu or cuda.")] = "cpu",
    model_size: Annotated[
        str, typer.Option("--size", help="Of your data: small, or base with wider layers.")
    ] = "small",
    minutes: Annotated[
        float | None, typer.Option("--minutes", help="Of your data: time for all of it; by default 10.")
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Show model and split, or the stages of a recipe, and stop."),
    ] = False,
    shift: Annotated[
        bool,
        typer.Option(
            "--shift/--no-shift",
            help="Of your data: whether training may move fields along periodic axes where they look the same.",
        ),
    ] = True,
    plot: Annotated[
        Path | None,
        typer.Option("--plot", help="Of your data: picture of loss and validation, drawn again as it trains."),
    ] = None,
    known: Known = None,
    mask: Mask = None,
    periodic: Periodic = None,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Train a model: all stages of a recipe, or the one of a field model for your own data.

    Your data are split into training, validation and test by environment; the model fits their grid and channels.
    """
    # Of the processes that torchrun starts the first one speaks.
    is_first = os.environ.get("RANK", "0") == "0"
    terminal = Terminal(as_json and is_first, quiet=not is_first)
    use_threads(threads)
    # A recipe has a name, or is a TOML file; other words with no place are no data either.
    if not source.endswith(".toml") and ("/" in source or "." in source or Path(source).exists()):
        for option, value in (("--data", data), ("--from", start)):
            if value is not None:
                raise EnmaError(f"{option}: is an option of recipes, and {source} is data; leave it out")
        for option, other in (("--precision", precision != "auto"), ("--compile", compile_steps is not None)):
            if other:
                raise EnmaError(f"{option}: is an option of recipes; train the recipe that `train {source}` writes")
        from ..training.own_plan import MINUTES, Request

        request = Request(
            size=model_size,
            minutes=MINUTES if minutes is None else minutes,
            seed=seed or 0,
            shift=shift,
            known=tuple(known or ()),
            mask=mask,
            periodic=periodic_axes(periodic),
        )
        _train_own(terminal, Path(source), out, request, plot, dry_run, on_device(device))
        return
    given = (
        ("--size", model_size != "small"),
        ("--minutes", minutes is not None),
        ("--no-shift", not shift),
        ("--plot", plot is not None),
        ("--known", bool(known)),
        ("--mask", mask is not None),
        ("--periodic", periodic is not None),
    )
    for option, is_given in given:
        if is_given:
            raise EnmaError(f"{option}: is an option for your own data; change the recipe instead")
    from ..training.recipes import find_recipe

    recipe = find_recipe(source)
    recipe = recipe if seed is None else dataclasses.replace(recipe, seed=seed)
    if dry_run:
        rows = [[name, stage.amount] for name, stage in recipe.folders().items()]
        terminal.show(table(f"stages of {recipe.model.name}", ["", "value"], rows, text=(0, 1)))
        return
    _train_recipe(terminal, recipe, out, data, start, precision, compile_steps, device)


def _train_recipe(
    terminal: Terminal,
    recipe: Recipe,
    out: Path,
    data: Path | None,
    start: str | None,
    precision: str,
    compile_steps: bool | None,
    device: str,
) -> None:
    from ..training.card import train_recipe
    from ..training.loop import RunOptions

    with terminal.progress(recipe.model.name) as update:
        options = RunOptions(out=out, device=on_device(device), precision=precision, compile=compile_steps)
        result = train_recipe(recipe, options=options, data_dir=data, start=start, progress=update)
    for name, part in result["training"]["stages"].items():
        scores = ", ".join(f"{key} {value:.4g}" for key, value in part["validation"].items())
        terminal.show(f"{name}: {part['steps']} steps in {part['seconds']:.0f} s; validation: {scores or 'none yet'}")
    terminal.show(f"checkpoint: {result['checkpoint']}")
    terminal.result({"out": str(out), **result})


def _train_own(
    terminal: Terminal, source: Path, out: Path, request: Request, plot: Path | None, dry_run: bool, device: str
) -> None:
    from ..models.checkpoint import IN_RUN, MANIFEST
    from ..training.own_model import drawn, prepare_own, train_own
    from ..training.own_plan import make_plan, saved_plan

    if dry_run:
        planned = saved_plan(source, out, request) or make_plan(source, request)[0]
        terminal.show(_plan_table(planned))
        terminal.result({"out": str(out), "plan": dataclasses.asdict(planned)})
        return
    plan = prepare_own(source, out, request)
    terminal.note(_plan_table(plan))
    try:
        with terminal.progress(plan.recipe.model.name) as update:
            progress = update if plot is None else drawn(update, plan, out, plot)
            metrics = train_own(plan, out, command=request.command(source), device=device, progress=progress)
    except KeyboardInterrupt:
        if (out / IN_RUN / MANIFEST).is_file():
            terminal.note(f"stopped: {out} holds the best model until now; the same command goes on with it")
        raise
    if terminal.quiet:
        return
    report = _report(terminal, plan, out)
    terminal.show(
        *_score_tables(plan, metrics),
        f"checkpoint: {out / IN_RUN}   (enma-fast forecast FILE --checkpoint {out} --out forecast.zarr)",
        *([f"report:     {report}"] if report else []),
    )
    terminal.result({"out": str(out), "checkpoint": str(out / IN_RUN), "report": report and str(report), **metrics})


def publish(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Finished run folder of a recipe.")],
    out: Annotated[Path, typer.Option("--out", help="Checkpoint folder to write.")],
    data: Annotated[
        Path | None,
        typer.Option("--data", help="Folder of the data files; by default the run's own, with generated test files."),
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", help="Score the first N trajectories of each file.")] = None,
    members: Annotated[
        int | None, typer.Option("--members", min=16, help="Score no ensembles of more than N members, of 16 and 64.")
    ] = None,
    half: Annotated[bool, typer.Option("--half", help="Store the weights in fp16, half the size.")] = False,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the noise.")] = 0,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Score a trained model in all tasks, and write it with its model card and metrics."""
    from ..training.card import publish as write

    terminal = Terminal(as_json)
    use_threads(threads)
    with terminal.progress("scoring") as update:
        metrics = write(
            run, data_dir=data, out=out, limit=limit, members=members, half=half, seed=seed, progress=update
        )
    terminal.show(f"{out}: model, card and metrics")
    terminal.result({"checkpoint": str(out), **metrics})


def _report(terminal: Terminal, plan: Plan, out: Path) -> Path | None:
    """A forecast of the first test trajectory as a store and a page; None if an extra is missing."""
    from ..figures.report import write_report
    from ..forecasting.request import ForecastRequest
    from ..runs.prepare import prepare

    data = out / "data" / f"{plan.recipe.model.dataset}-test-in.h5"
    request = ForecastRequest(num_members=_MEMBERS, trajectories=[0])
    try:
        prepare(data, out / STORE, request, checkpoint=out).execute()
        write_report(out / STORE, out / REPORT)
    except EnmaError as error:
        terminal.note(f"no report: {error}")
        return None
    return out / REPORT


def _plan_table(plan: Plan) -> Any:
    model = plan.recipe.model
    tok = model.codec
    walls = ("periodic" if wraps else "open" for wraps in tok.periodic)
    grid = ", ".join(f"{n} {wall}" for n, wall in zip(tok.grid, walls, strict=True))
    pairs = zip(plan.channels, tok.field_mean or (), tok.field_scale or (), strict=True)
    rows = [
        ["points", grid],
        ["channels", ", ".join(f"{name} ({number(mean)} +- {number(scale)})" for name, mean, scale in pairs)],
        ["frames", f"{model.num_frames}, {model.frame_interval:.4g} apart"],
        ["model", f"{plan.request.size}, {plan.num_parameters:,} parameters"],
    ]
    for split, count in plan.trajectories.items():
        shared = plan.frames.get(split, count * model.num_frames)
        few = f", which overlap: {shared:,} frames in all" if shared < count * model.num_frames else ""
        environments = counted(plan.environments[split], "environment")
        rows.append([split, f"{counted(count, 'trajectory')} in {environments}{few}"])
    if model.known:
        rows.append(["known inputs", ", ".join(map(str, model.known))])
    rows.append(["tasks", "temporal, initial value by a context" if plan.contexts else "temporal; no contexts"])
    rows.append(["floor", _floor(plan)])
    rows.append(["time", duration(60 * plan.request.minutes)])
    return table(f"plan of {model.name}", ["", "value"], rows, text=(0, 1))


def _floor(plan: Plan) -> str:
    """What the network adds to, and the errors of the kinds that were tried."""
    if not plan.floors:
        return "chosen when the training begins"
    context: Any = plan.recipe.model.context
    tried = ", ".join(f"{name} {number(error)}" for name, error in plan.floors.items())
    return f"{context.floor}{', which is right' if plan.right else ''} (relative errors: {tried})"


def _score_tables(plan: Plan, metrics: dict[str, Any]) -> list[Any]:
    """Scores of each task, and errors of each channel in its unit."""
    from ..training.own_card import HEAD, notes, score_rows

    rows = metrics["rows"]
    names = list(rows[0]["methods"])
    errors = [
        [row["task"], f"{channel} ({scores.get('unit', '1')})"]
        + [number(scores[key]) for key in ("rmse", *(f"{name}_rmse" for name in names))]
        for row in rows
        for channel, scores in row["channels"].items()
    ]
    held = f"held-out test split, {counted(rows[0]['num_trajectories'], 'trajectory')}"
    return [
        table(held, list(HEAD), score_rows(rows, number), text=(0, 1)),
        table(
            "RMS errors",
            ["task", "channel (unit)", "mean of members", *names],
            errors,
            caption=" ".join(notes(plan, metrics)) or None,
            text=(0, 1),
        ),
    ]
