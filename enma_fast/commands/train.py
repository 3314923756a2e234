"""`enma-fast train tokenizer`, `train dynamics`, and the stages after them up to `train publish`."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from ..training.config import VALIDATE_EVERY
from .options import AsJson, Threads, on_device, settings, use_threads, with_options
from .terminal import Terminal

# Options of every stage by the names of their parameters, in the order of the help.
_KINDS: dict[str, Any] = {
    "preset": Annotated[str, typer.Argument(metavar="PRESET", help="Model and recipe, for example combined-small.")],
    "data": Annotated[Path, typer.Option("--data", help="Folder of <dataset>-train.h5 and <dataset>-val.h5.")],
    "out": Annotated[Path, typer.Option("--out", help="Run folder; the same command resumes what it finds there.")],
    "start": Annotated[
        str | None,
        typer.Option(
            "--from", metavar="RUN", help="Start from the weights of this run or checkpoint, not from random ones."
        ),
    ],
    "steps": Annotated[int | None, typer.Option("--steps", min=1, help="Steps in all, instead of the preset's.")],
    "batch": Annotated[int | None, typer.Option("--batch", min=1, help="Trajectories per step, over all ranks.")],
    "seed": Annotated[int, typer.Option("--seed", help="Seed of weights, batches and noise.")],
    "precision": Annotated[str, typer.Option("--precision", help="auto (bf16 where it is fast), bf16 or fp32.")],
    "compile": Annotated[bool, typer.Option("--compile", help="torch.compile the step.")],
    "device": Annotated[str, typer.Option("--device", help="cpu or cuda.")],
    "model_set": Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change the model config, e.g. dynamics.width=256."),
    ],
    "train_set": Annotated[
        list[str] | None,
        typer.Option("--train-set", metavar="KEY=VALUE", help="Change the training config, e.g. learning_rate=1e-3."),
    ],
    "save_seconds": Annotated[float, typer.Option("--save-seconds", help="Seconds between saved states.")],
    "validate_every": Annotated[int, typer.Option("--validate-every", min=1, help="Steps between validations.")],
    "stop_after": Annotated[
        int | None, typer.Option("--stop-after", min=1, help="Stop at this step, to resume later.")
    ],
    "threads": Threads,
    "as_json": AsJson,
}
_DEFAULTS: dict[str, Any] = {
    **dict.fromkeys(("start", "steps", "batch", "model_set", "train_set", "stop_after", "threads")),
    "seed": 0,
    "precision": "auto",
    "compile": False,
    "device": "cpu",
    "save_seconds": 300.0,
    "as_json": False,
}
_TOKENIZER = Annotated[
    str | None,
    typer.Option("--tokenizer", help="Run folder of a tokenizer, or a checkpoint; a lossless one has none."),
]
_BEFORE = Annotated[
    str, typer.Option("--from", metavar="RUN", help="Run folder of the finished stage before, or a checkpoint.")
]


def _command(
    stage: str, description: str, kinds: dict[str, Any], defaults: dict[str, Any] = _DEFAULTS
) -> Callable[..., None]:
    """The command that trains a stage; options that are not named here are those of `RunOptions`."""

    @with_options(kinds, defaults | {"validate_every": VALIDATE_EVERY[stage]})
    def command(
        *,
        preset: str,
        data: Path,
        out: Path,
        start: str | None,
        steps: int | None,
        batch: int | None,
        model_set: list[str] | None,
        train_set: list[str] | None,
        device: str,
        threads: int | None,
        as_json: bool,
        **run: Any,
    ) -> None:
        from ..training.loop import RunOptions
        from ..training.recipes import train

        terminal = Terminal(as_json)
        use_threads(threads)
        # Of a tokenizer's own training there is none.
        tokenizer = run.pop("tokenizer", None)
        counts = {name: value for name, value in (("steps", steps), ("batch", batch)) if value is not None}
        with terminal.progress(stage.replace("-", " ")) as update:

            def report(done: int, total: int, values: dict[str, float]) -> None:
                if _is_first_rank():
                    rate = values.get("per_second", 0.0)
                    update(done, total, note=f"loss {values['loss']:.4g}  {rate:.0f} trajectories/s")

            result = train(
                stage,
                preset,
                data_dir=data,
                options=RunOptions(out=out, device=on_device(device), progress=report, **run),
                tokenizer=tokenizer,
                start=start,
                model_changes=settings(model_set or [], "--set"),
                training_changes=settings(train_set or [], "--train-set") | counts,
            )
        if not _is_first_rank():
            return
        scores = ", ".join(f"{key} {value:.4g}" for key, value in result["validation"].items())
        terminal.show(f"{result['steps']} steps in {result['seconds']:.0f} s; validation: {scores or 'none yet'}")
        if result["checkpoint"]:
            terminal.show(f"checkpoint: {result['checkpoint']}")
        else:
            terminal.show("stopped before the end; the same command resumes")
        terminal.result(result)

    command.__doc__ = description
    return command


tokenizer = _command("tokenizer", "Train the tokenizer: fields to latent frames and back.", _KINDS)
dynamics = _command(
    "dynamics",
    "Train the dynamics on a tokenizer's latent frames; under torchrun on several ranks.",
    {"preset": _KINDS["preset"], "tokenizer": _TOKENIZER} | _KINDS,
    _DEFAULTS | {"tokenizer": None},
)
# Later stages start from the weights of a whole model.
_LATER = _KINDS | {
    "start": _BEFORE,
    "tokenizer": Annotated[
        str | None, typer.Option("--tokenizer", metavar="RUN", help="A tokenizer in place of that of --from.")
    ],
}
_LATER_DEFAULTS = {name: default for name, default in _DEFAULTS.items() if name != "start"} | {"tokenizer": None}
head = _command(
    "head",
    "Train the local head of a one-pass model, and nothing else of it; the best validation is kept.",
    _LATER,
    _LATER_DEFAULTS,
)
forecasts = _command(
    "forecasts",
    "Train finished dynamics on whole forecasts by a proper score; the best validation is kept.",
    _LATER,
    _LATER_DEFAULTS,
)
first_frame = _command(
    "first-frame",
    "Train what draws frame 0 of a one-pass model, and nothing else of it; the best validation is kept.",
    _LATER,
    _LATER_DEFAULTS,
)


def publish(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder of the last stage that finished.")],
    data: Annotated[Path, typer.Option("--data", help="Folder of <dataset>-train.h5, -test-in.h5 and -test-out.h5.")],
    out: Annotated[Path, typer.Option("--out", help="Checkpoint folder to write.")],
    tokenizer: Annotated[Path | None, typer.Option("--tokenizer", help="Run folder of its tokenizer.")] = None,
    dynamics: Annotated[Path | None, typer.Option("--dynamics", help="Run folder of its dynamics.")] = None,
    head: Annotated[Path | None, typer.Option("--head", help="Run folder of its local head alone.")] = None,
    forecasts: Annotated[Path | None, typer.Option("--forecasts", help="Run folder of its whole forecasts.")] = None,
    begun: Annotated[
        list[str] | None,
        typer.Option("--begun-from", help="Run or checkpoint whose weights one of these runs began with; repeatable."),
    ] = None,
    sampling: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change the sampler's defaults, e.g. temperature=1.5."),
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
            run,
            tokenizer=tokenizer,
            dynamics=dynamics,
            head=head,
            forecasts=forecasts,
            begun=begun or (),
            data_dir=data,
            out=out,
            sampling=settings(sampling or [], "--set"),
            limit=limit,
            members=members,
            half=half,
            seed=seed,
            progress=update,
        )
    terminal.show(f"{out}: model, card and metrics")
    terminal.result({"checkpoint": str(out), **metrics})


def _is_first_rank() -> bool:
    """True for the rank that shows something, of those that torchrun starts."""
    return os.environ.get("RANK", "0") == "0"
