"""TRAJECTORY -> MEMBERS: rows are sampled a chunk at a time, decoded, and stopped where they are no longer wanted.

A row is one member of one trajectory.

Legend: B trajectories, K members, L observed frames, T frames, c physical channels, N tokens per frame, C token
channels, P observed points, Q query points, d space dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..config import CodecConfig
from ..errors import EnmaError
from ..models.covariance import at_points
from ..models.drivers import Told
from ..models.model import Model
from ..sampling.batch_invariant import BLOCKS, map_alone, map_rows
from ..sampling.cuda_graphs import codec_recordings
from ..sampling.engine import Engine, engine_for
from ..sampling.settings import Chunk
from ..sampling.shifts import View, shifted
from ..utils.forks import forkable, iterate_in_own_thread, run_in_own_thread
from .encoding import EncodedInputs, encode_inputs
from .kept import ROOM
from .memory import all_in_memory, in_memory
from .request import ForecastRequest
from .scattered import moved

# Called with the number of a frame and its values; returns None, a bool, or a mask [K] or [B, K] of members to stop.
Stop = Callable[[int, Any], Any]

# By PyTorch one latent frame alone is rounded differently from one of several.
FEWEST_LATENTS = 2


@forkable
def sample_members(
    model: Model,
    request: ForecastRequest,
    *,
    stop: Stop | None = None,
    warn: bool = True,
) -> Tensor:
    """Forecast arrays without labels: ``[K, T, *grid, c]`` or ``[B, K, T, *grid, c]``, fp32, on the model's device.

    Chunks that do not fit the memory are halved, but with `stop`, whose chunks are in memory together. `EnmaError` if
    what is observed does not fit the model or the request. Without `warn` there is no warning of frames beyond those of
    the training, nor of observations unlike them.
    """
    request = request.on(model)
    inputs = encode_inputs(model, request, side_by_side=stop is not None, warn=warn)
    engine = engine_for(model.dynamics, dtype=request.dtype, backend=request.backend)
    if stop is not None:
        with all_in_memory():
            return _sampled(model, request, inputs, engine, stop)
    return in_memory(
        lambda chunk: _sampled(model, replace(request, chunk=chunk), inputs, engine, None),
        request.rows,
        rows=len(inputs.seeds) * request.num_members,
        independent=engine.backend == "native",
    )


@forkable
def sample_as_asked(model: Model, request: ForecastRequest, *, stop: Stop | None = None) -> Tensor:
    """As `sample_members` without a warning, and by as many rows at a time as are asked for, or not at all."""
    request = request.on(model)
    inputs = encode_inputs(model, request, side_by_side=stop is not None, warn=False)
    engine = engine_for(model.dynamics, dtype=request.dtype, backend=request.backend)
    return _sampled(model, request, inputs, engine, stop)


def _sampled(
    model: Model, request: ForecastRequest, inputs: EncodedInputs, engine: Engine, stop: Stop | None
) -> Tensor:
    """Members of encoded inputs."""
    chunks = _chunks(engine, inputs, request, ahead=stop is None)
    shape = _shape(inputs, request)
    kept = _all_kept(inputs, shape)
    if stop is not None:
        for _ in _frames(model, inputs, chunks, kept, shape=shape, stop=stop):
            pass
    out, decode = None, _decoder(model, inputs)
    while chunks:
        part = chunks.pop(0)
        if stop is None:
            part.sample()
        # The latents are as long as without `stop`, so that the decoder does the same arithmetic.
        latents = _padded(part.latents, inputs.num_latents)
        fields = decode(latents, part.rows, slice(inputs.num_observed, inputs.num_frames))
        if out is None:
            out = fields.new_empty(len(kept), *fields.shape[1:])
        out[part.place] = fields
    assert out is not None
    if stop is not None:
        out[torch.arange(out.shape[1], device=kept.device) >= kept[:, None]] = math.nan
    out = out.view(*shape, *out.shape[1:])
    return (
        out
        if inputs.earlier is None
        else torch.cat([inputs.earlier.view(*shape, *inputs.earlier.shape[2:]), out], len(shape))
    )


def sample_fields(
    model: Model, history: Any, *, num_members: int = 1, stop: Stop | None = None, warn: bool = True, **given: Any
) -> Tensor:
    """`sample_members` of the request that `ForecastRequest.of_arrays` makes of the other keywords."""
    request = ForecastRequest.of_arrays(history, num_members=num_members, **given)
    return sample_members(model, request, stop=stop, warn=warn)


def stream_members(
    model: Model,
    request: ForecastRequest,
    *,
    stop: Stop | None = None,
) -> Iterator[Tensor]:
    """Forecast as `sample_members`; yield each frame ``[K, *grid, c]`` or ``[B, K, *grid, c]`` as it is decided."""
    request = run_in_own_thread(request.on, model)
    inputs = run_in_own_thread(
        encode_inputs,
        model,
        request,
        side_by_side=True,
        frames_held=model.config.codec.time_factor,
    )
    engine = run_in_own_thread(engine_for, model.dynamics, dtype=request.dtype, backend=request.backend)
    chunks, shape = _chunks(engine, inputs, request, ahead=False), _shape(inputs, request)

    def frames() -> Iterator[Tensor]:
        with all_in_memory():
            yield from _frames(model, inputs, chunks, _all_kept(inputs, shape), shape=shape, stop=stop)

    return iterate_in_own_thread(frames())


@dataclass
class _Chunk:
    """Rows (trajectory, member) that are sampled together, and their place among all."""

    place: slice
    rows: list[tuple[int, int]]
    making: Iterator[Tensor]
    # Latent frames so far, [rows, T, N, C], the observed ones included.
    latents: Tensor

    def sample(self, count: int | None = None) -> None:
        """Make `count` more latent frames, by default all."""
        self.latents = torch.cat([self.latents, *(z[:, None] for z in islice(self.making, count))], dim=1)


def _chunks(engine: Engine, inputs: EncodedInputs, request: ForecastRequest, *, ahead: bool) -> list[_Chunk]:
    every = [(b, k) for b in range(len(inputs.seeds)) for k in request.members]
    chunks = []
    for begin in range(0, len(every), request.rows):
        place = slice(begin, begin + request.rows)
        rows = every[place]
        earlier = None if inputs.encode_earlier is None else inputs.encode_earlier(rows)
        chunk = Chunk(request.rows, ahead, earlier)
        if inputs.first_frames is None:
            history = inputs.history_BTNC[[inputs.history_of(row) for row in rows]]
            making = _latents(engine, inputs, request, rows, chunk)
        else:
            # Each row has a history of its own.
            history = inputs.first_frames(rows)
            making = _latents(engine, inputs, request, rows, chunk, history=history)
        chunks.append(_Chunk(place, rows, making, history if earlier is None else torch.cat([history, earlier], 1)))
    return chunks


def _shape(inputs: EncodedInputs, request: ForecastRequest) -> tuple[int, ...]:
    """Leading axes of the forecast: (B, K), or (K,) where the input has no axis of trajectories."""
    return (len(inputs.seeds), request.num_members) if inputs.batched else (request.num_members,)


def _frames(
    model: Model,
    inputs: EncodedInputs,
    chunks: list[_Chunk],
    kept: Tensor,
    *,
    shape: tuple[int, ...],
    stop: Stop | None,
) -> Iterator[Tensor]:
    """Yield forecast frames ``[*shape, *grid, c]``, each as soon as it is decided, until all members have stopped.

    How many frames each row keeps is written into ``kept [rows]``.
    """
    tok = model.config.codec
    factor, window, decode = tok.time_factor, _window(tok), _decoder(model, inputs)
    number = 0
    for j in range(tok.whole_latents(inputs.num_observed), inputs.num_latents):
        group = None
        for part in chunks:
            if (kept[part.place] <= number).all():
                # This gives its memory back to the engine.
                part.making = iter(())
                continue
            part.sample(j + 1 - part.latents.shape[1])
            z = part.latents[:, -window:]
            # A window gives the last frame of its first latent, and all frames of the others.
            before = (j + 1 - z.shape[1]) * factor
            begin, end = inputs.num_observed + number - before, min(j * factor + 1, inputs.num_frames) - before
            decoded = decode(_padded(z, FEWEST_LATENTS), part.rows, slice(begin, end))
            if group is None:
                group = decoded.new_full((len(kept), *decoded.shape[1:]), math.nan)
            group[part.place] = decoded
        assert group is not None
        for rows in group.unbind(1):
            rows[kept <= number] = math.nan
            frame = rows.view(*shape, *rows.shape[1:])
            number += 1
            if stop is not None:
                kept[_rows_to_stop(stop(number - 1, frame), shape, kept.device) & (kept > number)] = number
            yield frame
            if (kept <= number).all():
                return


def _all_kept(inputs: EncodedInputs, shape: tuple[int, ...]) -> Tensor:
    """Frames ``[rows]`` that each row keeps, where none is stopped."""
    frames = inputs.num_frames - inputs.num_observed
    return torch.full((math.prod(shape),), frames, device=inputs.history_BTNC.device, dtype=torch.int64)


def _padded(latents: Tensor, length: int) -> Tensor:
    """Latent frames ``[rows, T, N, C]`` with zeros after them, where there are fewer than `length`."""
    missing = latents.new_zeros(len(latents), max(0, length - latents.shape[1]), *latents.shape[2:])
    return torch.cat([latents, missing], dim=1)


def _rows_to_stop(answer: Any, shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Mask ``[rows]`` from the answer of a `stop`."""
    if answer is None:
        answer = False
    mask = answer.numpy(force=True) if isinstance(answer, Tensor) else np.asarray(answer)
    if mask.dtype != np.bool_ or mask.shape not in ((), shape):
        raise EnmaError(
            f"stop returned {mask.dtype} {mask.shape}; None, a bool or a boolean mask {list(shape)} is expected"
        )
    return torch.tensor(np.broadcast_to(mask, shape).reshape(-1), device=device)


def _window(codec: CodecConfig) -> int:
    """Latent frames that decide the frames of the last one."""
    return max(FEWEST_LATENTS, codec.reach + 1)


def _latents(
    engine: Engine,
    inputs: EncodedInputs,
    request: ForecastRequest,
    rows: list[tuple[int, int]],
    chunk: Chunk,
    *,
    history: Tensor | None = None,
) -> Iterator[Tensor]:
    """Latent frames of rows ``(trajectory, member)``; history and context are read once for each shift.

    A `history` of each row is read for it alone.
    """
    of_rows = [inputs.history_of(row) for row in rows]
    which = sorted(set(of_rows)) if history is None else of_rows
    if request.kept is not None:
        engine, chunk = request.kept.engine(engine, tuple(which)), replace(chunk, room=ROOM)
    place = {row: i for i, row in enumerate(which)}
    groups = [place[row] for row in of_rows] if history is None else list(range(len(rows)))
    device = inputs.history_BTNC.device
    pairs = [] if inputs.context_BTNC is None else [(inputs.context_BTNC[which], inputs.context_told)]
    pairs.append((inputs.history_BTNC[which] if history is None else history, inputs.told))
    return engine.trajectory(
        [frames if told is None else Told(frames, told[which]) for frames, told in pairs],
        num_latents=inputs.num_latents,
        seeds=torch.tensor([inputs.seeds[b] for b, _ in rows], device=device),
        members=torch.tensor([k for _, k in rows], device=device),
        settings=request.sampling,
        groups=torch.tensor(groups, device=device),
        chunk=chunk,
    )


# A function of tokens [rows, T', N, C], their rows (trajectory, member) and frames: the fields of these. Each row is
# where its trajectory is, without the shift of its member.
_Decode = Callable[[Tensor, list[tuple[int, int]], slice], Tensor]


def _decoder(model: Model, inputs: EncodedInputs) -> _Decode:
    """A decoder at the query points, by default on the grid."""
    query = inputs.query
    if query is None or model.config.codec.at_points:
        return _own_decoder(model, inputs, query)
    covariance, decode = model.covariance, _own_decoder(model, inputs, None)
    assert covariance is not None
    shares = [share.to(query.device) for share in covariance.shares(query.cpu())]

    def decode_at_points(latents: Tensor, rows: list[tuple[int, int]], frames: slice) -> Tensor:
        fields = decode(latents, rows, frames)
        if fields.device.type != "cpu":
            return at_points(fields, shares)
        return torch.cat(map_alone(lambda u: at_points(u, shares), fields.split(1)))

    return decode_at_points


def _own_decoder(model: Model, inputs: EncodedInputs, query: Tensor | None) -> _Decode:
    """A decoder that is the tokenizer's."""
    tok = model.codec
    native = inputs.native if query is None else None
    end, block = None if native is not None else tok.prepared_end(), BLOCKS[tok.config.dims]

    def decoded(latents: Tensor, frames: int, query: Tensor | None) -> Tensor:
        if native is not None:
            with torch.no_grad():
                return native.decode(model.from_tokens(latents), frames)
        operation = ("decode", tok.config, tok.dtype, frames, None if query is None else tuple(query.shape))
        recordings = codec_recordings(tok, rows=len(latents), frames=frames) if query is None else None
        return map_rows(
            lambda z: model.decode(z, frames, query, end=end),
            latents,
            operation=operation,
            block=block,
            recordings=recordings,
            ladder=inputs.ladder,
        )

    def in_place(latents: Tensor, rows: list[tuple[int, int]], frames: slice) -> Tensor:
        alike: dict[View, list[int]] = {}
        for i, row in enumerate(rows):
            alike.setdefault(inputs.view_of(row), []).append(i)
        whole = decoded(latents, frames.stop, None)[:, frames] if query is None else None

        def part(view: View, index: slice | list[int]) -> Tensor:
            if whole is not None:
                return shifted(whole[index], view, tok.config.periodic, back=True)
            assert query is not None
            return decoded(latents[index], frames.stop, moved(query, view, tok.config))[:, frames]

        if len(alike) == 1:
            (view,) = alike
            return part(view, slice(None))
        # What is decoded on a GPU may not be written into.
        out = None
        for view, index in alike.items():
            values = part(view, index)
            out = values.new_empty(len(rows), *values.shape[1:]) if out is None else out
            out[index] = values
        assert out is not None
        return out

    return in_place
