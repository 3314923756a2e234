"""`enma-fast train tokenizer`, `train dynamics`, `train forecasts`, `train first-frame` and `train publish`."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import AsJson, Threads, on_device, settings, use_threads
from .terminal import Terminal

if TYPE_CHECKING:
    from ..training.loop import RunOptions

PresetName = Annotated[str, typer.Argument(metavar="PRESET", help="Model and recipe, for example combined-small.")]
DataFolder = Annotated[Path, typer.Option("--data", help="Folder of <dataset>-train.h5 and <dataset>-val.h5.")]
RunFolder = Annotated[Path, typer.Option("--out", help="Run folder; the same command resumes what it finds there.")]
Steps = Annotated[int | None, typer.Option("--steps", min=1, help="Steps in all, instead of the preset's.")]
Batch = Annotated[int | None, typer.Option("--batch", min=1, help="Trajectories per step, over all ranks.")]
RunSeed = Annotated[int, typer.Option("--seed", help="Seed of weights, batches and noise.")]
Precision = Annotated[str, typer.Option("--precision", help="auto (bf16 where it is fast), bf16 or fp32.")]
Compile = Annotated[bool, typer.Option("--compile", help="torch.compile the step.")]
RunDevice = Annotated[str, typer.Option("--device", help="cpu or cuda.")]
ModelSet = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change the model config, e.g. dynamics.width=256."),
]
TrainSet = Annotated[
    list[str] | None,
    typer.Option("--train-set", metavar="KEY=VALUE", help="Change the training config, e.g. learning_rate=1e-3."),
]
SaveSeconds = Annotated[float, typer.Option("--save-seconds", help="Seconds between saved states.")]
ValidateEvery = Annotated[int, typer.Option("--validate-every", min=1, help="Steps between validations.")]
Start = Annotated[
    str | None,
    typer.Option(
        "--from", metavar="RUN", help="Start from the weights of this run or checkpoint, not from random ones."
    ),
]
Before = Annotated[
    str, typer.Option("--from", metavar="RUN", help="Run folder of the finished stage before, or a checkpoint.")
]
StopAfter = Annotated[int | None, typer.Option("--stop-after", min=1, help="Stop at this step, to resume later.")]


def tokenizer(
    preset: PresetName,
    data: DataFolder,
    out: RunFolder,
    start: Start = None,
    steps: Steps = None,
    batch: Batch = None,
    seed: RunSeed = 0,
    precision: Precision = "auto",
    compile_step: Compile = False,
    device: RunDevice = "cpu",
    model_set: ModelSet = None,
    train_set: TrainSet = None,
    save_seconds: SaveSeconds = 300.0,
    validate_every: ValidateEvery = 500,
    stop_after: StopAfter = None,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Train the tokenizer: fields to latent frames and back."""
    from ..training.recipes import train_tokenizer

    terminal = Terminal(as_json)
    use_threads(threads)
    with terminal.progress("tokenizer") as update:
        result = train_tokenizer(
            preset,
            data_dir=data,
            options=_options(
                update, out, seed, precision, compile_step, device, save_seconds, validate_every, stop_after
            ),
            model_changes=settings(model_set or [], "--set"),
            training_changes=_training(train_set, steps, batch),
            start=start,
        )
    _finish(terminal, result)


def dynamics(
    preset: PresetName,
    tokenizer: Annotated[str, typer.Option("--tokenizer", help="Run folder of a tokenizer, or a checkpoint.")],
    data: DataFolder,
    out: RunFolder,
    start: Start = None,
    steps: Steps = None,
    batch: Batch = None,
    seed: RunSeed = 0,
    precision: Precision = "auto",
    compile_step: Compile = False,
    device: RunDevice = "cpu",
    model_set: ModelSet = None,
    train_set: TrainSet = None,
    save_seconds: SaveSeconds = 300.0,
    validate_every: ValidateEvery = 1000,
    stop_after: StopAfter = None,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Train the dynamics on a tokenizer's latent frames; under torchrun on several ranks."""
    from ..training.recipes import train_dynamics

    terminal = Terminal(as_json)
    use_threads(threads)
    with terminal.progress("dynamics") as update:
        result = train_dynamics(
            preset,
            tokenizer=tokenizer,
            data_dir=data,
            options=_options(
                update, out, seed, precision, compile_step, device, save_seconds, validate_every, stop_after
            ),
            model_changes=settings(model_set or [], "--set"),
            training_changes=_training(train_set, steps, batch),
            start=start,
        )
    _finish(terminal, result)


def _from_weights(stage: str, description: str) -> Callable[..., None]:
    """The command of a stage that begins with the weights of a whole model."""

    def command(
        preset: PresetName,
        start: Before,
        data: DataFolder,
        out: RunFolder,
        steps: Steps = None,
        batch: Batch = None,
        seed: RunSeed = 0,
        precision: Precision = "auto",
        compile_step: Compile = False,
        device: RunDevice = "cpu",
        model_set: ModelSet = None,
        train_set: TrainSet = None,
        save_seconds: SaveSeconds = 300.0,
        validate_every: ValidateEvery = 500,
        stop_after: StopAfter = None,
        threads: Threads = None,
        as_json: AsJson = False,
    ) -> None:
        from ..training.recipes import train_forecasts

        terminal = Terminal(as_json)
        use_threads(threads)
        with terminal.progress(stage.replace("-", " ")) as update:
            result = train_forecasts(
                preset,
                start=start,
                stage=stage,
                data_dir=data,
                options=_options(
                    update, out, seed, precision, compile_step, device, save_seconds, validate_every, stop_after
                ),
                model_changes=settings(model_set or [], "--set"),
                training_changes=_training(train_set, steps, batch),
            )
        _finish(terminal, result)

    command.__doc__ = description
    return command


forecasts = _from_weights(
    "forecasts", "Train finished dynamics on whole forecasts by a proper score; the best validation is kept."
)
first_frame = _from_weights(
    "first-frame",
    "Train the flow that draws frame 0 of a one-pass model, and nothing else of it; the best validation is kept.",
)


def publish(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder of the last stage that finished.")],
    data: Annotated[Path, typer.Option("--data", help="Folder of <dataset>-train.h5, -test-in.h5 and -test-out.h5.")],
    out: Annotated[Path, typer.Option("--out", help="Checkpoint folder to write.")],
    tokenizer: Annotated[Path | None, typer.Option("--tokenizer", help="Run folder of its tokenizer.")] = None,
    dynamics: Annotated[Path | None, typer.Option("--dynamics", help="Run folder of its dynamics.")] = None,
    forecasts: Annotated[Path | None, typer.Option("--forecasts", help="Run folder of its whole forecasts.")] = None,
    begun: Annotated[
        str | None, typer.Option("--begun-from", help="Checkpoint whose weights the first of these runs began with.")
    ] = None,
    sampling: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change the sampler's defaults, e.g. temperature=1.5."),
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", help="Score the first N trajectories of each file.")] = None,
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
            run,
            tokenizer=tokenizer,
            dynamics=dynamics,
            forecasts=forecasts,
            begun=begun,
            data_dir=data,
            out=out,
            sampling=settings(sampling or [], "--set"),
            limit=limit,
            seed=seed,
            progress=update,
        )
    terminal.show(f"{out}: model, card and metrics")
    terminal.result({"checkpoint": str(out), **metrics})


def _options(
    update: Callable[..., None],
    out: Path,
    seed: int,
    precision: str,
    compile_step: bool,
    device: str,
    save_seconds: float,
    validate_every: int,
    stop_after: int | None,
) -> RunOptions:
    from ..training.loop import RunOptions

    def report(done: int, total: int, values: dict[str, float]) -> None:
        if not _speaks():
            return
        rate = values.get("per_second", 0.0)
        update(done, total, note=f"loss {values['loss']:.4g}  {rate:.0f} trajectories/s")

    return RunOptions(
        out=out,
        seed=seed,
        precision=precision,
        compile=compile_step,
        device=on_device(device),
        save_seconds=save_seconds,
        validate_every=validate_every,
        stop_after=stop_after,
        progress=report,
    )


def _training(changes: list[str] | None, steps: int | None, batch: int | None) -> dict[str, Any]:
    named = {"steps": steps, "batch": batch}
    return {
        **settings(changes or [], "--train-set"),
        **{key: value for key, value in named.items() if value is not None},
    }


def _finish(terminal: Terminal, result: dict[str, Any]) -> None:
    if not _speaks():
        return
    scores = ", ".join(f"{key} {value:.4g}" for key, value in result["validation"].items())
    terminal.show(f"{result['steps']} steps in {result['seconds']:.0f} s; validation: {scores or 'none yet'}")
    if result["checkpoint"]:
        terminal.show(f"checkpoint: {result['checkpoint']}")
    else:
        terminal.show("stopped before the end; the same command resumes")
    terminal.result(result)


def _speaks() -> bool:
    """Of the ranks that torchrun starts, only the first shows anything."""
    return os.environ.get("RANK", "0") == "0"
