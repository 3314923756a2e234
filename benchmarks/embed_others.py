"""A forecast frame by frame in libenma beside TorchScript and ONNX Runtime, for `benchmarks.compare embed --others`.

    python -m benchmarks.compare embed --others --preset combined-fast --members 1,16,64 --json

The model's PyTorch code is exported in two parts, as somebody would do it today for a program in C++:

* a step, which decides a latent frame from a context and noise, reads it, and returns it with the next context and with
  keys and values of all frames so far, which the caller hands over again;
* the decoder of a whole trajectory, called once at its end, which costs less than decoding frame by frame.

``libtorch`` runs a frozen trace of them in a program in C++, compiled against the libtorch of this installation;
``torchscript`` is the same trace, called from Python, and ``eager`` the code before; ``onnxruntime`` needs the packages
onnx, onnxscript and onnxruntime. Observed frames are encoded and read before, and noise is drawn before for all but
``ours``. All make the same members, on one thread, without shifts, in turn; a contender whose frames differ from those
of ``ours`` has no time. Processor time is counted, of a frame of all members.
"""

from __future__ import annotations

import contextlib
import importlib.util
import statistics
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.embed import LIBRARY, TOLERANCE, checkpoint
from benchmarks.forecast import SEED, wave
from benchmarks.harness import processor_seconds, ratios
from benchmarks.libtorch import Program, compiled
from enma_fast.errors import EnmaError, first_line
from enma_fast.models.checkpoint import load_model
from enma_fast.models.contexts.causal_transformer import FrameCache
from enma_fast.models.decoders.linear import LinearDecoder
from enma_fast.models.layers import Block
from enma_fast.models.model import Dynamics, Model
from enma_fast.ops.philox_normal import philox_normal
from enma_fast.ops.self_attention import attention
from enma_fast.sampling.noise import trajectory_seed
from tests.runtime._libenma import Library

ONNX = ("onnx", "onnxscript", "onnxruntime")
NAMES = ("context", "noise", "past", "cosines", "sines")

State = tuple[Tensor, Tensor, Tensor]
StepCall = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], State]


class Step(nn.Module):
    """The next latent frame, from what is known before it."""

    def __init__(self, dynamics: Dynamics, temperature: float) -> None:
        super().__init__()
        self.dynamics, self.temperature = dynamics, temperature

    def forward(self, h_BND: Tensor, noise_BNC: Tensor, past: Tensor, cosines: Tensor, sines: Tensor) -> State:
        """Latent frame ``[B, N, C]``, next context ``[B, N, D]``, keys and values ``[layers, 2, B, H, P + N, K]``."""
        reader, decoder = self.dynamics.context, self.dynamics.step
        assert isinstance(decoder, LinearDecoder)
        # It sees no past frames.
        z_BNC = decoder.from_noise(h_BND, noise_BNC[:, None][:, :0], self.temperature * noise_BNC)
        x, added, kept = reader.embed(z_BNC), None, []
        for layer, block in enumerate(cast("list[Block]", reader.blocks)):
            x, y = block.begin(x, added)
            q, k, v = block.attention.project(y, (cosines, sines))
            k, v = torch.cat([past[layer, 0], k], dim=2), torch.cat([past[layer, 1], v], dim=2)
            kept.append(torch.stack([k, v]))
            x, added = block.finish(x, block.attention.merge(attention(q, k, v)))
        return z_BNC, x if added is None else x + added, torch.stack(kept)


class Decoder(nn.Module):
    """Frames ``[B, T, *grid, c]`` of the latent frames of whole trajectories ``[B, T', N, C]``."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model

    def forward(self, z_BTNC: Tensor) -> Tensor:
        return self.model.decode(z_BTNC, self.model.config.num_frames)


@dataclass(frozen=True)
class Start:
    """State that a forecast begins with, for each member, and noise and rotary tables of each of its latent frames."""

    history: Tensor
    context: Tensor
    past: Tensor
    noise: list[Tensor]
    tables: list[tuple[Tensor, Tensor]]

    def arguments(self) -> tuple[Tensor, ...]:
        """Those of the first step."""
        return (self.context, self.noise[0], self.past, *self.tables[0])

    def tensors(self) -> dict[str, Tensor]:
        """All by name, those of the steps stacked."""
        cosines, sines = (torch.stack(tables) for tables in zip(*self.tables, strict=True))
        made = {"history": self.history.contiguous(), "context": self.context, "past": self.past}
        return made | {"noise": torch.stack(self.noise), "cosines": cosines, "sines": sines}


@torch.no_grad()
def started(model: Model, observed: Tensor, members: int) -> Start:
    """Encode and read the observed frames ``[1, L, *grid, c]``, once for each member."""
    config, reader = model.config, model.dynamics.context
    if not isinstance(model.dynamics.step, LinearDecoder) or reader.rotary is None or reader.scale_shift is not None:
        raise EnmaError(
            f"{config.name}: the exported step is that of a linear decoder with rotary places, without scale_shift"
        )
    history = model.encode(observed).expand(members, -1, -1, -1)
    known, total = history.shape[1], config.codec.latent_frames(config.num_frames)
    cache = FrameCache(reader, members, total + 1)
    context = reader.start_frame(cache, segment=0)
    for z in history.unbind(1):
        context = reader.step(z, cache)
    noise = [
        philox_normal(
            seed=torch.full((members,), trajectory_seed(SEED, 0)),
            members=torch.arange(members),
            frame=t,
            mask_step=0,
            tokens=torch.arange(config.num_tokens),
            channels=config.token_channels,
        )
        for t in range(known, total)
    ]
    # The start of the trajectory is a frame too.
    tables = [reader.rotary.tables(torch.arange(t + 1, t + 2)) for t in range(known, total)]
    past = cache.kv[..., : (known + 1) * config.num_tokens, :].contiguous()
    return Start(history, context, past, noise, tables)


def forecast(start: Start, step: StepCall, decoder: Callable[[Tensor], Tensor], observed: int) -> np.ndarray:
    """All members' frames ``[B, T, *grid, c]`` after the observed ones, by the parts of a contender."""
    context, past, made = start.context, start.past, [start.history]
    for noise, tables in zip(start.noise, start.tables, strict=True):
        z, context, past = step(context, noise, past, *tables)
        made.append(z[:, None])
    return decoder(torch.cat(made, dim=1))[:, observed:].numpy()


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Without the warnings of exporters."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def traced(module: nn.Module, arguments: tuple[Tensor, ...]) -> Callable[..., Any]:
    """A module in TorchScript, frozen; `EnmaError` if it does not hold for keys and values of another length."""
    with silent():
        made = torch.jit.freeze(torch.jit.trace(module, arguments, check_trace=False).eval())
    longer = tuple(x.repeat_interleave(2, 4) if x.ndim == 6 else x for x in arguments)
    for found, expected in zip(outputs(made(*longer)), outputs(module(*longer)), strict=True):
        # NaN is wrong too, here and below.
        if not (found - expected).abs().max() <= TOLERANCE * expected.abs().max():
            raise EnmaError("the trace holds for keys and values of one length only")
    return cast("Callable[..., Any]", made)


def outputs(found: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return found if isinstance(found, tuple) else (found,)


def in_onnx(module: nn.Module, arguments: tuple[Tensor, ...], names: tuple[str, ...], path: Path) -> Callable[..., Any]:
    """A module in ONNX Runtime, on one thread; keys and values may have any length."""
    runtime: Any = importlib.import_module("onnxruntime")
    shapes = tuple({4: torch.export.Dim("length", min=2)} if x.ndim == 6 else None for x in arguments)
    with silent():
        torch.onnx.export(
            module, arguments, str(path), dynamo=True, verbose=False, input_names=names, dynamic_shapes=shapes
        )
    options = runtime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def call(*given: Tensor) -> Any:
        found = [
            torch.from_numpy(x) for x in session.run(None, dict(zip(names, (x.numpy() for x in given), strict=True)))
        ]
        return found[0] if len(found) == 1 else found

    return call


def exported(model: Model, start: Start, folder: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Step and decoder of each contender by name, and why a contender has none."""
    step, decoder = Step(model.dynamics, model.config.sampling.temperature).eval(), Decoder(model).eval()
    latents = torch.cat([start.history, torch.stack(start.noise, dim=1)], dim=1).contiguous()
    made: dict[str, Any] = {"eager": (step, decoder)}
    left_out = {}
    try:
        made["torchscript"] = traced(step, start.arguments()), traced(decoder, (latents,))
    except (RuntimeError, EnmaError) as error:
        left_out["torchscript"] = f"{type(error).__name__}: {first_line(error)}"
    missing = [name for name in ONNX if importlib.util.find_spec(name) is None]
    if missing:
        left_out["onnxruntime"] = f"not installed: pip install {' '.join(missing)}"
        return made, left_out
    try:
        made["onnxruntime"] = (
            in_onnx(step, start.arguments(), NAMES, folder / "step.onnx"),
            in_onnx(decoder, (latents,), ("latents",), folder / "decoder.onnx"),
        )
    # Its exporter raises classes of its own.
    except Exception as error:
        left_out["onnxruntime"] = f"{type(error).__name__}: {first_line(error)}"
    return made, left_out


@torch.no_grad()
def measure(preset: str, members: list[int], *, rounds: int, library: Path = LIBRARY) -> Iterator[dict[str, Any]]:
    """One row for each number of members; `EnmaError` without the library, or for a model that cannot be exported."""
    if not library.exists():
        raise EnmaError(f"{library} is missing: install with a compiler, or give --library of `make libenma`")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as made:
        folder = checkpoint(preset, Path(made) / "checkpoint")
        model = load_model(folder)
        observed = wave(model.config)
        opened = Library(library).open(folder)
        program: Path | str
        try:
            program = compiled(Path(made))
        except EnmaError as error:
            program = str(error)
        for count in members:
            yield {"preset": preset, **_row(model, opened, observed, count, rounds, Path(made), program)}


def _row(
    model: Model, opened: Any, observed: Tensor, members: int, rounds: int, folder: Path, program: Path | str
) -> dict[str, Any]:
    length, known = model.config.num_frames - observed.shape[1], observed.shape[1]
    start, history = started(model, observed, members), observed[0].numpy()
    parts, left_out = exported(model, start, folder)
    # Frames beyond those that are made, so that the last latent frame is read as others read it.
    session = opened.session(num_members=members, seed=SEED, shifts=1, num_frames=length + 2)
    frames = np.empty((length, members, *session.frame_shape), np.float32)

    def ours() -> None:
        for frame in frames:
            session.step(frame)

    session.observe(history)
    ours()
    expected = frames.swapaxes(0, 1).copy()
    largest = np.abs(expected).max()
    timed: dict[str, Callable[[], float]] = {"ours": lambda: processor_seconds(ours)}
    errors = {}
    for name, (step, decoder) in parts.items():
        run = partial(forecast, start, step, decoder, known)
        errors[name] = float(np.abs(run() - expected).max() / largest)
        timed[name] = partial(processor_seconds, run)
    with contextlib.ExitStack() as stack:
        if isinstance(program, str) or "torchscript" not in parts:
            left_out["libtorch"] = program if isinstance(program, str) else "there is no trace"
        else:
            whole = (members, model.config.num_frames, *session.frame_shape)
            running = stack.enter_context(Program(program, parts["torchscript"], start.tensors(), folder, shape=whole))
            running.forecast()
            errors["libtorch"] = float(np.abs(running.frames(known) - expected).max() / largest)
            timed["libtorch"] = running.forecast
        wrong = {name: error for name, error in errors.items() if not error <= TOLERANCE}
        seconds: dict[str, list[float]] = {name: [] for name in timed if name not in wrong}
        for _ in range(rounds):
            session.observe(history)
            for name, taken in seconds.items():
                taken.append(timed[name]() / length)
    session.free()
    return {
        "case": "embed_frame",
        "rows": members,
        "dtype": "float32",
        "ours_s": statistics.median(seconds["ours"]),
        "against": ratios(seconds, "ours"),
        "left_out": left_out,
        "wrong": wrong,
        "error": max(errors.values()),
        "allowed_error": TOLERANCE,
        "per": "frame",
        "num_frames": length,
        "rounds": rounds,
        "threads": 1,
    }


def line(row: dict[str, Any]) -> str:
    """One row of the table for people."""
    others = [
        f"{name} {found['ratio']:.2f}x ({found['ratio_min']:.2f} to {found['ratio_max']:.2f})"
        for name, found in row["against"].items()
    ]
    others += [f"{name} is left out ({reason})" for name, reason in row["left_out"].items()]
    others += [f"{name} is WRONG by {error:.1e}" for name, error in row["wrong"].items()]
    return f"{row['preset']:<16} {row['rows']:>4} members: {1e3 * row['ours_s']:.3f} ms a frame; {', '.join(others)}"
