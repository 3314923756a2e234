"""Options that several commands share."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import EnmaError
from ..utils.bounds import most_threads, whole_number

if TYPE_CHECKING:
    from ..config import ModelConfig, SamplingConfig

AsJson = Annotated[
    bool, typer.Option("--json", help="One JSON object as the last line of standard output, and nothing else.")
]
Threads = Annotated[int | None, typer.Option("--threads", min=1, help="Threads for the arithmetic.")]
Device = Annotated[str, typer.Option("--device", help="Where the model runs: cpu or cuda.")]
Checkpoint = Annotated[str, typer.Option("--checkpoint", "-c", help="A shipped model by name, or a checkpoint folder.")]
Data = Annotated[Path, typer.Argument(metavar="FILE", help="Field file: HDF5 in The Well's layout.")]
Task = Annotated[str, typer.Option("--task", help="temporal, initial-value or generation.")]
History = Annotated[int, typer.Option("--history", help="Observed frames, an odd number; of the temporal task only.")]
Points = Annotated[
    int | None,
    typer.Option("--points", help="Grid points that are observed in each frame, others in each; by default all."),
]
Frames = Annotated[
    int | None,
    typer.Option("--frames", help="Frames to forecast; by default those of the file, or up to the trained length."),
]
Members = Annotated[int, typer.Option("--members", help="Ensemble size.")]
Seed = Annotated[int, typer.Option("--seed", help="Seed of the noise.")]
Known = Annotated[
    list[str] | None,
    typer.Option(
        "--known",
        metavar="NAME",
        help="Parameter, series, map or field that the model is told, in place of a channel; may be repeated. "
        "`time` is the time of day and year.",
    ),
]
Mask = Annotated[
    str | None, typer.Option("--mask", metavar="NAME", help="Field that is 0 or missing where there are no values.")
]
Periodic = Annotated[
    str | None,
    typer.Option("--periodic", help="Periodic axes, such as x,y, or none; by default as the source says, or none."),
]
Precision = Annotated[
    str | None,
    typer.Option(
        "--precision",
        help="Of the sampler's weights: fp32, bf16 or auto (the faster); the model's own by default, on a GPU bf16.",
    ),
]
Strict = Annotated[
    bool,
    typer.Option(
        "--strict",
        help="Refuse observed frames outside what the model was trained on, or in other units, not only warn.",
    ),
]
Chunk = Annotated[
    int | None,
    typer.Option("--chunk", help="Trajectories x members sampled at a time; by default 64, on a GPU 128 to 256."),
]

DEFAULT_CHECKPOINT = "combined-fast"

# Settings of the sampler, as `sampling` takes them.
SAMPLER: dict[str, Any] = {
    "mask_steps": Annotated[
        int | None,
        typer.Option("--mask-steps", help="Mask steps a frame; this and what follows: the model's own if left out."),
    ],
    "flow_steps": Annotated[int | None, typer.Option("--flow-steps", help="Flow steps a token.")],
    "temperature": Annotated[float | None, typer.Option("--temperature", help="Factor on the noise.")],
    "shifts": Annotated[
        int | None,
        typer.Option(
            "--shifts", help="Views of the field among members: places on a periodic domain, mirrors between walls."
        ),
    ],
}


def with_options(kinds: Mapping[str, Any], defaults: Mapping[str, Any]) -> Callable[[Any], Any]:
    """Give a command further options, annotated by name, after its own; one without a default must be typed."""

    def decorated(command: Any) -> Any:
        own = inspect.signature(command, eval_str=True).parameters.values()
        parameters = [p.replace(kind=p.KEYWORD_ONLY) for p in own if p.kind != p.VAR_KEYWORD and p.name not in kinds]
        for name, kind in kinds.items():
            default = defaults.get(name, inspect.Parameter.empty)
            parameters.append(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind))
        command.__signature__ = inspect.Signature(parameters)
        return command

    return decorated


def use_threads(threads: int | None) -> None:
    """Limit PyTorch's threads if asked to."""
    if threads is not None:
        import torch

        torch.set_num_threads(whole_number("--threads", threads, most=most_threads()))


def on_device(device: str) -> str:
    """The device if it can be used, or an `EnmaError`."""
    from ..utils.devices import can_use, use_own_gpu

    # Whoever asks whether a GPU is there takes memory on the current one.
    if device == "cuda":
        use_own_gpu()
    if not can_use(device):
        raise EnmaError(f"--device {device}: cannot be used here; use cpu")
    return device


def sampling(config: ModelConfig, **options: Any) -> tuple[SamplingConfig, dict[str, Any]]:
    """The model's own sampler settings, changed where an option is not None, and those options."""
    from ..sampling.settings import chosen_sampling
    from ..utils.dataclass_json import replace

    given = {name: value for name, value in options.items() if value is not None}
    changes = {f"sampling.{name}": value for name, value in given.items()}
    typed = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in given.items())
    chosen = replace(config, changes, source=typed).sampling if given else None
    return chosen_sampling(config, chosen), given


def numbers(text: str | None, option: str) -> list[float]:
    """Numbers with commas between them; none without the option."""
    try:
        return [] if text is None else [float(part) for part in text.split(",")]
    except ValueError:
        raise EnmaError(f"{option} {text!r}: write numbers with commas between them, such as 0.05,0.5,0.95") from None


def names(text: str | None) -> tuple[str, ...]:
    """Names with commas between them; none without the option."""
    return () if text is None else tuple(part.strip() for part in text.split(","))


def periodic_axes(text: str | None) -> tuple[str, ...] | None:
    """The axes of `--periodic`: none of them by the word, None without the option."""
    return () if text == "none" else None if text is None else names(text)


def span(text: str, option: str) -> tuple[int | None, int | None]:
    """First number, and the one after the last, of `A:B` (None for one that is left out) or of one number `A`."""
    first, colon, last = text.partition(":")
    try:
        if not colon:
            return int(first), int(first) + 1
        return int(first) if first else None, int(last) if last else None
    except ValueError:
        raise EnmaError(f"{option} {text!r}: write A:B, for example 0:10, or one number") from None


def trajectories(select: str | None, count: int) -> range:
    """Trajectory numbers that `--select` names, see `span`; all without a selection."""
    first, last = (None, None) if select is None else span(select, "--select")
    begin, end = 0 if first is None else first, count if last is None else last
    if not 0 <= begin < end <= count:
        raise EnmaError(f"--select {select!r}: names no trajectory, or one that is not there; there are {count}")
    return range(begin, end)
