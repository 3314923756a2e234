"""TRAJECTORY -> MEMBERS: observed fields in, members of a forecast out, as arrays.

Legend: B trajectories, K members, L observed frames, T frames, c physical channels, N tokens per frame, C token
channels, P observed points, Q query points, d space dimensions.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .coding import code_rows
from .config import ModelConfig, SamplingConfig
from .engine import Engine, engine_for
from .errors import EnmaError
from .model import Model
from .noise import trajectory_seed
from .system import memory

log = logging.getLogger("enma_fast")

Array = np.ndarray | Tensor

# Rows sampled at a time by default: enough to keep every core busy, few enough for their keys and values.
CHUNK = 64


@dataclass(frozen=True)
class _Request:
    """Checked inputs, encoded: one row per trajectory."""

    history_BTNC: Tensor
    context_BTNC: Tensor | None
    observed: int
    last: int
    num_latents: int
    seeds: list[int]


def forecast(
    model: Model,
    history: Array | None,
    *,
    num_frames: int | None = None,
    num_members: int = 1,
    seed: int = 0,
    context: Array | None = None,
    points: Array | None = None,
    query: Array | None = None,
    settings: SamplingConfig | None = None,
    trajectories: Sequence[int] | None = None,
    first_member: int = 0,
    chunk: int = CHUNK,
    dtype: torch.dtype | None = None,
    backend: str | None = None,
) -> Tensor:
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
    num_frames
        Frames to forecast after the history; by default up to the model's trained length.
    num_members
        Ensemble size K.
    seed
        Seed of the run. Member k of trajectory b depends on (model, seed, trajectory number, k) only.
    context
        Whole trajectory ``[T, *grid, c]`` or ``[B, T, *grid, c]`` of the same physics with another initial value.
    points
        ``[P, d]`` coordinates of scattered observations (models with interpolation).
    query
        ``[Q, d]`` coordinates of the output (models with interpolation); by default the model's grid.
    settings
        Sampling settings; the model's own by default.
    trajectories
        Number of each trajectory, the part of its noise key; by default 0, 1, ....
    first_member
        Number of the first member; members are ``first_member, ..., first_member + num_members - 1``.
    chunk
        Rows (trajectories x members) sampled at a time; on the CPU no result depends on it.
    dtype
        Of the weights while sampling: the model's own by default; ``torch.bfloat16`` is faster where the processor
        multiplies it.
    backend
        How latent frames are made, ``native``, ``graph``, ``static`` or ``reference`` (:mod:`enma_fast.engine`); the
        best that can serve by default.

    Returns
    -------
    Tensor
        ``[K, T, *grid, c]`` or ``[B, K, T, *grid, c]``, fp32: the forecast frames, without the observed ones.

    Raises
    ------
    EnmaError
        One line naming the argument and the mend.
    """
    queried = None if query is None else _coordinates("query", query, model)
    request, batched = _request(model, history, num_frames, num_members, seed, context, points, trajectories)
    settings = settings or model.config.sampling
    if chunk < 1:
        raise EnmaError(f"chunk is {chunk}; at least 1 is needed")
    engine = engine_for(model.dynamics, dtype=dtype, backend=backend)
    B = len(request.seeds)
    rows = [(b, first_member + k) for b in range(B) for k in range(num_members)]
    out = None
    for begin in range(0, len(rows), chunk):
        part = rows[begin : begin + chunk]
        latents = torch.stack(list(_latents(engine, request, part, settings)), dim=1)
        known = request.history_BTNC[[b for b, _ in part]]
        fields = _fields(model, torch.cat([known, latents], dim=1), request, queried)
        if out is None:
            out = fields.new_empty(len(rows), *fields.shape[1:])
        out[begin : begin + len(part)] = fields
    assert out is not None
    out = out.view(B, num_members, *out.shape[1:])
    return out if batched else out[0]


def stream(
    model: Model,
    history: Array | None,
    *,
    num_frames: int | None = None,
    num_members: int = 1,
    seed: int = 0,
    context: Array | None = None,
    points: Array | None = None,
    query: Array | None = None,
    settings: SamplingConfig | None = None,
    trajectories: Sequence[int] | None = None,
    first_member: int = 0,
    dtype: torch.dtype | None = None,
    backend: str | None = None,
) -> Iterator[Tensor]:
    """Like :func:`forecast`, but yield each frame ``[K, *grid, c]`` (or ``[B, K, *grid, c]``) as it is decided."""
    queried = None if query is None else _coordinates("query", query, model)
    request, batched = _request(model, history, num_frames, num_members, seed, context, points, trajectories)
    rows = [(b, first_member + k) for b in range(len(request.seeds)) for k in range(num_members)]
    latents = request.history_BTNC[[b for b, _ in rows]]
    done = 0
    engine = engine_for(model.dynamics, dtype=dtype, backend=backend)
    for z in _latents(engine, request, rows, settings or model.config.sampling):
        latents = torch.cat([latents, z[:, None]], dim=1)
        fields = _fields(model, latents, request, queried)
        for u in fields[:, done:].unbind(1):
            u = u.view(len(request.seeds), num_members, *u.shape[1:])
            yield u if batched else u[0]
        done = fields.shape[1]


def _latents(
    engine: Engine, request: _Request, rows: list[tuple[int, int]], settings: SamplingConfig
) -> Iterator[Tensor]:
    """Latent frames of rows ``(trajectory, member)``; a trajectory's history and context are read once."""
    which = sorted({b for b, _ in rows})
    place = {b: i for i, b in enumerate(which)}
    device = request.history_BTNC.device
    return engine.trajectory(
        request.history_BTNC[which],
        num_latents=request.num_latents,
        seeds=torch.tensor([request.seeds[b] for b, _ in rows], device=device),
        members=torch.tensor([k for _, k in rows], device=device),
        context=None if request.context_BTNC is None else request.context_BTNC[which],
        settings=settings,
        groups=torch.tensor([place[b] for b, _ in rows], device=device),
    )


def _fields(model: Model, latents: Tensor, request: _Request, query: Tensor | None) -> Tensor:
    """Decode and drop the observed frames."""
    factor = model.config.tokenizer.time_factor
    frames = (latents.shape[1] - 1) * factor + 1
    last = min(frames, request.last)
    return code_rows(lambda z: model.decode(z, last, query), latents)[:, request.observed :]


def check_size(config: ModelConfig, *, num_frames: int, num_members: int, num_trajectories: int = 1) -> None:
    """Raise `EnmaError` if the forecasts cannot fit this machine's memory."""
    tok = config.tokenizer
    values = num_trajectories * num_members * num_frames * math.prod(tok.grid) * tok.field_channels
    needed, there = 4 * values / 1e9, memory() / 1e9
    if needed > there:
        raise EnmaError(
            f"num_members is {num_members}: these forecasts take {needed:,.0f} GB, this machine has {there:,.0f} GB;"
            " use fewer at a time"
        )


def _request(
    model: Model,
    history: Array | None,
    num_frames: int | None,
    num_members: int,
    seed: int,
    context: Array | None,
    points: Array | None,
    trajectories: Sequence[int] | None,
) -> tuple[_Request, bool]:
    """Check everything before any work, then encode."""
    config = model.config
    device = model.latent_mean.device
    if num_members < 1:
        raise EnmaError(f"num_members is {num_members}; at least 1 is needed")
    where = None if points is None else _coordinates("points", points, model)
    given = history if history is not None else context
    if given is None:
        raise EnmaError("history and context are both None; give one of them")
    space = 1 if where is not None else config.tokenizer.dims
    batched = given.ndim == space + 3
    known = _field("history", history, model, where, batched) if history is not None else None
    other = _field("context", context, model, where, batched) if context is not None else None
    if known is not None and other is not None and len(known) != len(other):
        raise EnmaError(f"history holds {len(known)} trajectories and context {len(other)}; give one context for each")
    observed = 0 if known is None else known.shape[1]
    if other is None and observed < 3:
        raise EnmaError(
            f"history has {observed} frame{'s' * (observed != 1)}; the model {config.name!r} needs at least 3,"
            " or pass context="
        )
    if num_frames is None:
        num_frames = config.num_frames - observed
    if num_frames < 1:
        raise EnmaError(
            f"num_frames is {num_frames}; at least 1 is needed (history has {observed} of {config.num_frames} frames)"
        )
    B = len(given) if batched else 1
    check_size(config, num_frames=num_frames, num_members=num_members, num_trajectories=B)
    last = observed + num_frames
    if last > config.num_frames:
        log.warning("frames beyond %d were not seen in training of %s", config.num_frames, config.name)
    if known is None:
        history_BTNC = torch.zeros(B, 0, config.num_tokens, config.token_channels, device=device)
    else:
        whole = config.tokenizer.whole_latents(observed)
        history_BTNC = code_rows(lambda u: model.encode(u, where), known)[:, :whole]
    context_BTNC = None if other is None else code_rows(lambda u: model.encode(u, where), other)
    numbers = list(range(B)) if trajectories is None else list(trajectories)
    if len(numbers) != B:
        raise EnmaError(f"trajectories names {len(numbers)} numbers; the input holds {B}")
    request = _Request(
        history_BTNC=history_BTNC,
        context_BTNC=context_BTNC,
        observed=observed,
        last=last,
        num_latents=config.tokenizer.latent_frames(last),
        seeds=[trajectory_seed(seed, n) for n in numbers],
    )
    return request, batched


def _field(name: str, value: Array, model: Model, points: Tensor | None, batched: bool) -> Tensor:
    """One checked input as ``[B, T, *grid, c]`` fp32 on the model's device."""
    options = model.config.tokenizer
    grid = options.grid if points is None else (points.shape[-2],)
    u = torch.as_tensor(value)
    if not u.is_floating_point():
        raise EnmaError(f"{name} has dtype {u.dtype}; floating point is expected")
    shape = tuple(u.shape if batched else (1, *u.shape))
    if len(shape) != len(grid) + 3 or shape[2:-1] != grid:
        raise EnmaError(
            f"{name} has shape {tuple(u.shape)}; the model {model.config.name!r} expects [B, T, "
            f"{', '.join(map(str, grid))}, {options.field_channels}] (B may be left out)"
        )
    if shape[-1] != options.field_channels:
        raise EnmaError(
            f"{name} has {shape[-1]} channels; the model {model.config.name!r} expects {options.field_channels}"
        )
    if not all(shape[:2]):
        raise EnmaError(f"{name} has shape {tuple(u.shape)}: no trajectory or no frame; leave it out if there is none")
    u = u.to(model.latent_mean.device, torch.float32).view(shape)
    bad = (~torch.isfinite(u)).flatten(2).any(-1)
    if bad.any():
        b, t = (int(i) for i in bad.nonzero()[0])
        raise EnmaError(f"{name} holds a value that is not finite, first in trajectory {b}, frame {t}")
    return u


def _coordinates(name: str, value: Array, model: Model) -> Tensor:
    """Checked coordinates ``[P, d]`` fp32 on the model's device."""
    options = model.config.tokenizer
    if options.interpolation is None:
        raise EnmaError(f"{name}: the model {model.config.name!r} has no interpolation; it works on its grid only")
    points = torch.as_tensor(value, dtype=torch.float32, device=model.latent_mean.device)
    if points.ndim != 2 or not len(points) or points.shape[1] != options.dims:
        raise EnmaError(f"{name} has shape {tuple(points.shape)}; [points, {options.dims}] is expected")
    if not torch.isfinite(points).all():
        raise EnmaError(f"{name} holds a coordinate that is not finite")
    return points
