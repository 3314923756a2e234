"""TRAJECTORY -> MEMBERS: observed fields in, members of a forecast out, as arrays.

`sample_fields` samples tensors; `forecast` and `stream` take and give numpy, torch or xarray around it.

Legend: B trajectories, K members, L observed frames, T frames, c physical channels, N tokens per frame, C token
channels, P observed points, Q query points, d space dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..config import SamplingConfig, TokenizerConfig
from ..errors import EnmaError
from ..models.folding import folded_end
from ..models.layers import own_dtype
from ..models.model import Model
from ..models.tokenizer import LinearEnd
from ..sampling.batch_invariant import BLOCKS, map_rows
from ..sampling.engine import Engine, engine_for
from ..sampling.settings import chosen_sampling
from ..sampling.shifts import shifted
from ..utils.bounds import check_numbers, whole_number
from ..utils.forks import forkable, iterate_in_own_thread, run_in_own_thread
from .ensemble import SPACE, Ensemble, Given, Labels, first_time, given
from .request import MOST_MEMBERS, Request, check_size, coordinates, read_request, whole_numbers

# A numpy array, a tensor, an xarray.DataArray or an xarray.Dataset.
Array = np.ndarray | Tensor | Any
# What stops members: of the number of a frame and its values, None, a bool, or a mask [K] or [B, K].
Stop = Callable[[int, Any], Any]

# Rows sampled at a time by default: enough to keep every core busy, few enough for their keys and values.
CHUNK = 64

# A latent frame alone is rounded otherwise than one of several.
FEWEST_LATENTS = 2


def forecast(
    model: Model,
    history: Array | None,
    *,
    num_frames: int | None = None,
    num_members: int = 1,
    seed: int = 0,
    context: Array | None = None,
    points: np.ndarray | Tensor | None = None,
    query: np.ndarray | Tensor | None = None,
    settings: SamplingConfig | None = None,
    trajectories: Sequence[int] | None = None,
    first_member: int = 0,
    chunk: int = CHUNK,
    dtype: torch.dtype | None = None,
    backend: str | None = None,
    stop: Stop | None = None,
    strict: bool = False,
) -> Ensemble:
    """Sample an ensemble of forecasts.

    The task follows from what is given: ``history`` alone is temporal conditioning, one frame of ``history`` with a
    ``context`` is the initial value problem, a ``context`` alone is generation (paper section 4).

    Parameters
    ----------
    model
        From :func:`enma_fast.load_model`.
    history
        Observed frames ``[L, *grid, c]`` or ``[B, L, *grid, c]``, or ``[..., L, P, c]`` at scattered ``points``; in
        the units of the training data, ``model.config.frame_interval`` apart. None to generate from the context.
        In xarray the dimensions are ``trajectory`` (may be left out), ``time``, ``x``, ``y`` (or ``point``) and
        ``channel`` (may be left out), in any order; the variables of a Dataset are the channels. Positions in space
        have to increase and to span the model's domain.
    num_frames
        Frames to forecast after the history; by default up to the model's trained length.
    num_members
        Ensemble size K.
    seed
        Seed of the run. Member k of trajectory b depends on (model, seed, trajectory number, k) only.
    context
        Whole trajectory ``[T, *grid, c]`` or ``[B, T, *grid, c]`` of the same physics with another initial value: the
        first one for the first history and so on, whatever their labels, or one for all.
    points
        ``[P, d]`` coordinates of scattered observations (models with interpolation).
    query
        ``[Q, d]`` coordinates of the output (models with interpolation); by default the model's grid.
    settings
        Sampling settings; the model's own by default.
    trajectories
        Number of each trajectory, the part of its noise key, all different; by default the integers of an xarray
        coordinate ``trajectory``, and 0, 1, ... without one: names are kept, but the noise depends on the numbers.
    first_member
        Number of the first member; members are ``first_member, ..., first_member + num_members - 1``.
    chunk
        Rows (trajectories x members) sampled at a time; on the CPU no result depends on it.
    dtype
        Of the weights while sampling: the model's own by default; ``torch.bfloat16`` is faster where the processor
        multiplies it.
    backend
        How latent frames are made, ``native``, ``graph``, ``static`` or ``reference``
        (:mod:`enma_fast.sampling.engine`); the best that can serve by default.
    stop
        ``stop(number, frame)`` is called once for each forecast frame of all members, in order, as soon as it is
        decided: with its number, from 0, and its values ``[K, *grid, c]`` or ``[B, K, *grid, c]``. It returns None or
        False to go on, True to stop all members, or a mask ``[K]`` or ``[B, K]`` of those to stop; xarray goes by its
        names, and a Dataset stops what any channel stops. The frame it saw stays, later frames of a stopped member are
        NaN, and other members keep their bits. Frames that share a latent frame (two, mostly) are decided together. A
        chunk that has wholly stopped is sampled no further, and after the last member ``stop`` is called no more. The
        chunks advance side by side, so memory is that of all of them.
    strict
        Raise where observed frames lie outside what the model was trained on (:mod:`enma_fast.models.domain`),
        in place of a warning; checkpoints that do not say what that is give neither.

    Returns
    -------
    Ensemble
        The forecast frames, without the observed ones, fp32, in the kind of array that ``history`` (without one,
        ``context``) is.

    Raises
    ------
    EnmaError
        One line naming the argument and the mend.

    Notes
    -----
    In a forked child the work is done in a thread of its own, `stop` included (:mod:`enma_fast.utils.forks`).
    """
    queried = None if query is None else coordinates("query", query, model)
    known, other, labels = _read(model, history, context, points, queried, trajectories, num_members, first_member)
    fields = sample_fields(
        model,
        known,
        num_frames=num_frames,
        num_members=num_members,
        seed=seed,
        context=other,
        points=points,
        query=queried,
        settings=settings,
        trajectories=labels.trajectories,
        first_member=first_member,
        chunk=chunk,
        dtype=dtype,
        backend=backend,
        stop=_plain(stop, labels),
        strict=strict,
    )
    return Ensemble(labels.plain(fields), labels)


def stream(
    model: Model,
    history: Array | None,
    *,
    num_frames: int | None = None,
    num_members: int = 1,
    seed: int = 0,
    context: Array | None = None,
    points: np.ndarray | Tensor | None = None,
    query: np.ndarray | Tensor | None = None,
    settings: SamplingConfig | None = None,
    trajectories: Sequence[int] | None = None,
    first_member: int = 0,
    chunk: int | None = None,
    dtype: torch.dtype | None = None,
    backend: str | None = None,
    stop: Stop | None = None,
    strict: bool = False,
) -> Iterator[Any]:
    """Like :func:`forecast`, but yield each frame ``[K, *grid, c]`` (or ``[B, K, *grid, c]``) as it is decided.

    Frames are in the kind of array that is given, and are those of :func:`forecast` up to the rounding of the decoder.
    ``chunk`` are rows that go together, all by default. ``stop`` is called before its frame is yielded; the stream ends
    with the frame at which the last member stops.
    """
    queried = None if query is None else coordinates("query", query, model)
    known, other, labels = _read(model, history, context, points, queried, trajectories, num_members, first_member)
    chosen = chosen_sampling(model.config, settings)
    request, batched = run_in_own_thread(
        read_request,
        model,
        known,
        num_frames,
        num_members,
        seed,
        other,
        points,
        labels.trajectories,
        first_member,
        settings=chosen,
        strict=strict,
    )
    engine = run_in_own_thread(engine_for, model.dynamics, dtype=dtype, backend=backend)
    size = whole_number("chunk", len(request.rows) if chunk is None else chunk)
    frames = _frames(
        model,
        request,
        _chunks(engine, request, chosen, size),
        _all_kept(request),
        shape=(len(request.seeds), num_members) if batched else (num_members,),
        query=queried,
        stop=_plain(stop, labels),
    )
    return (_wrapped(labels, number, frame) for number, frame in enumerate(iterate_in_own_thread(frames)))


@forkable
def sample_fields(
    model: Model,
    history: np.ndarray | Tensor | None,
    *,
    num_frames: int | None = None,
    num_members: int = 1,
    seed: int = 0,
    context: np.ndarray | Tensor | None = None,
    points: np.ndarray | Tensor | None = None,
    query: np.ndarray | Tensor | None = None,
    settings: SamplingConfig | None = None,
    trajectories: Sequence[int] | None = None,
    first_member: int = 0,
    chunk: int = CHUNK,
    dtype: torch.dtype | None = None,
    backend: str | None = None,
    stop: Stop | None = None,
    warn: bool = True,
    strict: bool = False,
) -> Tensor:
    """Like :func:`forecast`, of arrays without names, as a tensor on the model's device.

    Without ``warn`` nothing is said of frames beyond those of the training, nor of observations unlike them.

    Returns
    -------
    Tensor
        ``[K, T, *grid, c]`` or ``[B, K, T, *grid, c]``, fp32.
    """
    queried = None if query is None else coordinates("query", query, model)
    chosen = chosen_sampling(model.config, settings)
    request, batched = read_request(
        model,
        history,
        num_frames,
        num_members,
        seed,
        context,
        points,
        trajectories,
        first_member,
        settings=chosen,
        warn=warn,
        strict=strict,
    )
    engine = engine_for(model.dynamics, dtype=dtype, backend=backend)
    chunks = _chunks(engine, request, chosen, whole_number("chunk", chunk))
    shape = (len(request.seeds), num_members) if batched else (num_members,)
    kept = _all_kept(request)
    if stop is not None:
        for _ in _frames(model, request, chunks, kept, shape=shape, query=queried, stop=stop):
            pass
    out = None
    while chunks:
        part = chunks.pop(0)
        if stop is None:
            part.sample()
        # As long as without `stop`, so that the decoder does the same arithmetic.
        missing = part.latents.new_zeros(*_missing(part.latents, request.num_latents))
        fields = _fields(model, torch.cat([part.latents, missing], dim=1), request, queried)
        fields = _moved_back(fields, request, part.rows)
        if out is None:
            out = fields.new_empty(len(request.rows), *fields.shape[1:])
        out[part.rows] = fields
    assert out is not None
    if stop is not None:
        out[torch.arange(out.shape[1], device=kept.device) >= kept[:, None]] = math.nan
    return out.view(*shape, *out.shape[1:])


@dataclass
class _Chunk:
    """Rows that are sampled together."""

    rows: slice
    making: Iterator[Tensor]
    # Latent frames so far, [rows, T, N, C], the observed ones included.
    latents: Tensor

    def sample(self, count: int | None = None) -> None:
        """Make so many more latent frames, by default all."""
        self.latents = torch.cat([self.latents, *(z[:, None] for z in islice(self.making, count))], dim=1)


def _chunks(engine: Engine, request: Request, settings: SamplingConfig, size: int) -> list[_Chunk]:
    check_numbers("settings", settings, "sampling")
    chunks = []
    for begin in range(0, len(request.rows), size):
        part = slice(begin, begin + size)
        rows = request.rows[part]
        chunks.append(
            _Chunk(
                part,
                _latents(engine, request, rows, settings),
                request.history_BTNC[[request.history_of(row) for row in rows]],
            )
        )
    return chunks


def _frames(
    model: Model,
    request: Request,
    chunks: list[_Chunk],
    kept: Tensor,
    *,
    shape: tuple[int, ...],
    query: Tensor | None,
    stop: Stop | None,
) -> Iterator[Tensor]:
    """Forecast frames ``[*shape, *grid, c]``, each as soon as it is decided, until all members have stopped.

    Writes into ``kept [rows]`` how many frames each row keeps.
    """
    tok = model.config.tokenizer
    factor, window, ending = tok.time_factor, _window(tok), folded_end(model.tokenizer)
    number = 0
    for j in range(request.history_BTNC.shape[1], request.num_latents):
        group = None
        for part in chunks:
            if (kept[part.rows] <= number).all():
                # Gives its memory back to the engine.
                part.making = iter(())
                continue
            part.sample(1)
            z = part.latents[:, -window:]
            # A window gives the last frame of its first latent, and all frames of the others.
            before = (j + 1 - z.shape[1]) * factor
            begin, end = request.observed + number - before, min(j * factor + 1, request.last) - before
            missing = z.new_zeros(*_missing(z, FEWEST_LATENTS))
            decoded = _decode(model, torch.cat([z, missing], dim=1), end, query, ending)[:, begin:end]
            if group is None:
                group = decoded.new_full((len(kept), *decoded.shape[1:]), math.nan)
            group[part.rows] = _moved_back(decoded, request, part.rows)
        assert group is not None
        for rows in group.unbind(1):
            rows[kept <= number] = math.nan
            frame = rows.view(*shape, *rows.shape[1:])
            number += 1
            if stop is not None:
                kept[_mask(stop(number - 1, frame), shape, kept.device) & (kept > number)] = number
            yield frame
            if (kept <= number).all():
                return


def _all_kept(request: Request) -> Tensor:
    return torch.full(
        (len(request.rows),), request.last - request.observed, device=request.history_BTNC.device, dtype=torch.int64
    )


def _missing(latents: Tensor, length: int) -> tuple[int, ...]:
    """Shape of what lacks to so many latent frames."""
    return (len(latents), max(0, length - latents.shape[1]), *latents.shape[2:])


def _mask(answer: Any, shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Which rows a `stop` has named."""
    if answer is None:
        answer = False
    mask = answer.numpy(force=True) if isinstance(answer, Tensor) else np.asarray(answer)
    if mask.dtype != np.bool_ or mask.shape not in ((), shape):
        raise EnmaError(
            f"stop returned {mask.dtype} {mask.shape}; None, a bool or a boolean mask {list(shape)} is expected"
        )
    return torch.tensor(np.broadcast_to(mask, shape).reshape(-1), device=device)


def _window(tok: TokenizerConfig) -> int:
    """Latent frames that decide the frames of the last one: the decoder is causal, and its kernels are short."""
    reach = tok.kernel_time - 1
    # From the frames back to the latents; `layers` is the order of the encoder.
    for layer in tok.layers:
        if layer == "residual":
            reach += tok.kernel_time - 1
        elif layer == "time":
            # The first latent frame of a window gives the last of its frames only.
            reach = (reach + 1) // 2 + 1
    return max(FEWEST_LATENTS, reach + 1)


def _read(
    model: Model,
    history: Array | None,
    context: Array | None,
    points: np.ndarray | Tensor | None,
    query: Tensor | None,
    trajectories: Sequence[int] | None,
    num_members: int,
    first_member: int,
) -> tuple[Any, Any, Labels]:
    """Plain arrays of history and context, and the labels of the forecast."""
    config = model.config
    grid = SPACE[: config.tokenizer.dims]
    inward = grid if points is None else ("point",)
    known = None if history is None else given("history", history, space=inward)
    other = None if context is None else given("context", context, space=inward)
    leading = known or other
    if leading is None:
        raise EnmaError("history and context are both None; give one of them")
    if other is not None and leading.channels is not None:
        other = other.ordered("context", leading.channels)
    batched = leading.data.ndim == len(inward) + 3
    numbers = leading.numbers if trajectories is None else tuple(whole_numbers(trajectories))
    if numbers is None:
        numbers = tuple(range(len(leading.data) if batched else 1))
    tok = config.tokenizer
    for argument, source in (("history", known), ("context", other)):
        if points is not None:
            _require_points(argument, source, coordinates("points", points, model), grid)
        elif source is not None:
            source.require_domain(argument, tok.lengths, tok.periodic)
    coords = {} if points is not None else {name: ((name,), values) for name, values in leading.coords.items()}
    if query is not None:
        coords = {name: (("point",), values) for name, values in zip(grid, query.T.numpy(force=True), strict=True)}
    num_members = whole_number("num_members", num_members, most=MOST_MEMBERS)
    first_member = whole_number("first_member", first_member, least=0, most=MOST_MEMBERS - num_members)
    # Before the numbers of so many are listed.
    check_size(config, num_frames=1, num_members=num_members)
    labels = Labels(
        kind=leading.kind,
        members=tuple(range(first_member, first_member + num_members)),
        trajectories=numbers,
        batched=batched,
        interval=config.frame_interval,
        start=first_time(known, other, interval=config.frame_interval),
        first_times=leading.times if known is None and leading.times is not None and leading.times.size else None,
        space=grid if query is None else ("point",),
        coords=dict(leading.further) | coords,
        attributes=leading.attributes,
        channels=leading.channels,
        units=leading.units,
        has_channel=leading.has_channel,
        name=leading.name,
    )
    return None if known is None else known.data, None if other is None else other.data, labels


def _require_points(argument: str, source: Given | None, points: Tensor, axes: tuple[str, ...]) -> None:
    """Raise `EnmaError` if xarray says that its values are at other points ``[P, d]``."""
    known = {} if source is None else {axis: x for axis, x in source.points.items() if axis in axes}
    for axis, x in known.items():
        given = points[:, axes.index(axis)].numpy(force=True)
        if len(x) == len(given) and not np.allclose(x, given, rtol=1e-5, atol=1e-5 * np.ptp(x)):
            raise EnmaError(f"{argument}: its coordinate {axis} tells of other points than `points` does")


def _plain(stop: Stop | None, labels: Labels) -> Stop | None:
    """A `stop` for tensors, from one for the kind of arrays that was given."""
    if stop is None:
        return None

    def plain(number: int, frame: Tensor) -> Any:
        answer = stop(number, _wrapped(labels, number, frame))
        if hasattr(answer, "data_vars"):
            answer = answer.to_dataarray("channel").any("channel")
        if isinstance(answer, Tensor) or not getattr(answer, "dims", ()):
            return answer
        dims = ("trajectory", "realization") if labels.batched else ("realization",)
        if set(answer.dims) != set(dims):
            found = ", ".join(map(str, answer.dims))
            raise EnmaError(f"stop returned the dims ({found}); expected are {', '.join(dims)}")
        return answer.transpose(*dims).to_numpy()

    return plain


def _wrapped(labels: Labels, number: int, frame: Tensor) -> Any:
    """One frame in the kind of array that was given."""
    dims = ("trajectory", "realization") if labels.batched else ("realization",)
    return labels.wrap(labels.plain(frame), dims, time=labels.times(number))


def _latents(
    engine: Engine, request: Request, rows: list[tuple[int, int]], settings: SamplingConfig
) -> Iterator[Tensor]:
    """Latent frames of rows ``(trajectory, member)``; history and context are read once for each shift."""
    which = sorted({request.history_of(row) for row in rows})
    place = {history: i for i, history in enumerate(which)}
    device = request.history_BTNC.device
    return engine.trajectory(
        request.history_BTNC[which],
        num_latents=request.num_latents,
        seeds=torch.tensor([request.seeds[b] for b, _ in rows], device=device),
        members=torch.tensor([k for _, k in rows], device=device),
        context=None if request.context_BTNC is None else request.context_BTNC[which],
        settings=settings,
        groups=torch.tensor([place[request.history_of(row)] for row in rows], device=device),
    )


def _moved_back(fields: Tensor, request: Request, rows: slice) -> Tensor:
    """Decoded rows ``[rows, T, *grid, c]``, each where its trajectory is."""
    if len(request.shifts) == 1:
        return fields
    moves = [request.amount_of(row) for row in request.rows[rows]]
    for amount in set(moves):
        index = [i for i, other in enumerate(moves) if other == amount]
        fields[index] = shifted(fields[index], amount, back=True)
    return fields


def _fields(model: Model, latents: Tensor, request: Request, query: Tensor | None) -> Tensor:
    """Decode and drop the observed frames."""
    factor = model.config.tokenizer.time_factor
    frames = (latents.shape[1] - 1) * factor + 1
    last = min(frames, request.last)
    return _decode(model, latents, last, query, folded_end(model.tokenizer))[:, request.observed :]


def _decode(model: Model, latents: Tensor, frames: int, query: Tensor | None, end: LinearEnd | None) -> Tensor:
    tok = model.tokenizer
    operation = ("decode", tok.config, own_dtype(tok), frames, None if query is None else tuple(query.shape))
    block = BLOCKS[tok.config.dims]
    return map_rows(lambda z: model.decode(z, frames, query, end=end), latents, operation=operation, block=block)
