"""Observed fields and contexts, checked against the model before any work, and encoded.

Legend: B trajectories, K members, L observed frames, T frames, c physical channels, N tokens per frame, C token
channels, P observed points, d space dimensions.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from ..config import ModelConfig
from ..data import NETCDF_FILL, unmasked
from ..errors import EnmaError
from ..models.codecs.native import NativeCodec, native_codec
from ..models.drivers import Drivers
from ..models.layers import own_dtype
from ..models.model import Model
from ..sampling.batch_invariant import BLOCKS, map_alone, map_rows
from ..sampling.cuda_graphs import codec_recordings
from ..sampling.ladder import Ladder, ladder_of_codec
from ..sampling.noise import trajectory_seed
from ..sampling.shifts import View, shifted, views
from ..utils.text import counted
from .analysis import CONTEXT, HISTORY, Draw, analyse
from .cautions import outside, report_outside, warn_if_long, warn_if_uneven, warn_of_context
from .known import told
from .request import Fields, ForecastRequest
from .scattered import coordinates, moved, require_errors

log = logging.getLogger("enma_fast")

# Fields that are drawn from what scattered observations leave open, at least: a multiple of the number of shifts.
# Member k begins from field k modulo their number.
_DRAWS = 16
# Trajectories of frames of more points are estimated one at a time.
_FEW_POINTS = 2048
# Observations that are so many times as large as the training data have them do not come from such fields. Those of the
# test files of all equations, in and out of distribution, are up to 5.6 times as large; an error of 1 % of their
# standard deviation makes those of Combined and Advection 20 to 60 times as large at a fifth of the points.
_MOST_SIZE = 8.0


@dataclass(frozen=True)
class EncodedInputs:
    """Latents of what is observed, one for each trajectory and shift that some member takes.

    Attributes
    ----------
    history_BTNC, context_BTNC : observed latent frames
    num_observed, num_frames, num_latents : frames that are known, frames of the whole trajectory, and its latent frames
    query : checked coordinates of the output; None on the grid
    batched : true if the input has an axis of trajectories
    seeds : one for each trajectory
    native : the codec packed for the CPU, where the extension can
    ladder : how the codec works on a GPU
    views : how each shift shows the field; member k takes that of k modulo their number
    places : of the history of (trajectory, shift) in `history_BTNC`
    told, context_told : drivers of each row of these two, of models that are told some
    first_frames : of a model that draws frame 0 as a field, where none is observed: its tokens ``[rows, 1, N, C]``
    earlier : ``[B, K, T0, *grid, c]``, frames of the members that come before those of the forecast
    encode_earlier : their latent frames ``[rows, T, N, C]``, after those of the history
    """

    history_BTNC: Tensor
    context_BTNC: Tensor | None
    num_observed: int
    num_frames: int
    num_latents: int
    query: Tensor | None
    batched: bool
    seeds: list[int]
    native: NativeCodec | None
    ladder: Ladder
    views: list[View]
    places: dict[tuple[int, int], int]
    told: Drivers | None = None
    context_told: Drivers | None = None
    first_frames: Callable[[Sequence[tuple[int, int]]], Tensor] | None = None
    earlier: Tensor | None = None
    encode_earlier: Callable[[Sequence[tuple[int, int]]], Tensor] | None = None

    def history_of(self, row: tuple[int, int]) -> int:
        """Place of the history and context of a trajectory and member."""
        b, k = row
        return self.places[b, k % len(self.views)]

    def view_of(self, row: tuple[int, int]) -> View:
        """How a member sees the field of a trajectory."""
        return self.views[row[1] % len(self.views)]


def encode_inputs(
    model: Model,
    request: ForecastRequest,
    *,
    side_by_side: bool,
    frames_held: int | None = None,
    warn: bool = True,
) -> EncodedInputs:
    """Check everything of a request `on` the model before any work, then encode.

    `frames_held` frames of the forecast are in memory at a time, by default all, and with `side_by_side` the keys and
    values of all rows.

    With `warn` a message says, or with a strict request an error, which observed frames lie outside what the model was
    trained on.
    """
    config = model.config
    require_fp32(model)
    query = None if request.query is None else coordinates("query", request.query, model)
    history, context = request.observed, request.context
    leading = history or context
    if leading is None:
        raise EnmaError("history and context are both None; give one of them")
    where, context_at = _points(model, history, context)
    space = 1 if where is not None else config.codec.dims
    batched = leading.values.ndim == space + 3
    known = None if history is None else checked_field("history", history.values, model, where, batched)
    other = (
        None
        if context is None
        else checked_field("context", context.values, model, context_at, context.values.ndim == space + 3)
    )
    if known is not None and other is not None and len(other) not in (1, len(known)):
        raise EnmaError(
            f"history holds {len(known)} trajectories and context {len(other)}; give one context for each, or one"
        )
    if other is not None:
        if warn:
            warn_of_context(config, "context", other.shape[1])
        length = config.context_frames(other.shape[1])
        other = other[:, :length]
        context_at = context_at if context_at is None or context_at.ndim == 2 else context_at[..., :length, :, :]
    num_observed = 0 if known is None else known.shape[1]
    num_frames = num_observed + _frames_to_forecast(config, request, num_observed, has_context=other is not None)
    B = len(leading.values) if batched else 1
    tok = config.codec
    earlier = None if request.earlier is None else _earlier(request, model, B, where, num_frames - num_observed)
    known_latents, num_latents = tok.whole_latents(num_observed), tok.latent_frames(num_frames)
    # The last latent frame is not read.
    request.check_memory(
        config,
        min(num_frames - num_observed, frames_held or num_frames),
        num_trajectories=B,
        num_points=None if query is None else len(query),
        read_latents=num_latents - known_latents - 1 if side_by_side else 0,
        device=model.latent_mean.device,
    )
    numbers = list(range(B)) if request.trajectories is None else request.trajectories
    if len(numbers) != B:
        raise EnmaError(f"trajectories names {len(numbers)} numbers; the input holds {B}")
    if warn:
        warn_if_long(config, num_frames)
        warn_if_uneven(config, num_observed)
        reasons = outside(model, [u for u in (known, other) if u is not None], scattered=where is not None)
        report_outside(model, numbers, reasons, strict=request.strict)
    shown, ring = views(config, request.sampling), config.codec.periodic
    if config.is_told and len(shown) > 1:
        raise EnmaError(f"shifts is {len(shown)}; what {config.name} is told does not move with fields: leave it out")
    drawn = where is not None and not tok.at_points
    require_errors(request.errors, tok, scattered=where is not None)
    if drawn:
        shown = shown * -(-_DRAWS // len(shown))
    used = sorted({k % len(shown) for k in request.members[: len(shown)]})
    native, ladder = native_codec(model.codec), ladder_of_codec(tok, request.backend)
    seeds = [trajectory_seed(request.seed, n) for n in numbers]

    latents = partial(_encode, model, native, ladder)

    def on_grid(fields: Tensor) -> Tensor:
        if len(used) == 1:
            return latents(shifted(fields, shown[used[0]], ring))
        return latents(torch.stack([shifted(fields, shown[s], ring) for s in used], 1).flatten(0, 1))

    def encoded(fields: Tensor, where: Tensor | None, use: int) -> Tensor:
        """Latents of each trajectory in each shift that is used, [B * len(used), T, N, C]."""
        if where is not None and drawn:
            draws = [Draw(seed, torch.tensor(used), use) for seed in seeds]
            analyses, sizes = _drawn_fields(model, fields, where, draws, errors=request.errors)
            if warn or request.strict:
                _report_sizes("history" if use == HISTORY else "context", sizes, model, strict=request.strict)
            seen = [shifted(analyses[:, i], shown[s], ring) for i, s in enumerate(used)]
            return latents(torch.stack(seen, 1).flatten(0, 1))
        if where is not None:
            seen = [latents(fields, moved(where, shown[s], config.codec)) for s in used]
            return torch.stack(seen, 1).flatten(0, 1)
        if request.kept is None:
            return on_grid(fields)
        key = (use, native, *(shown[s] for s in used))
        return request.kept.latents(key, fields, on_grid, tok, causal=native is not None)

    if known is None:
        empty = (B * len(used), 0, config.num_tokens, config.token_channels)
        history_BTNC = torch.zeros(empty, device=model.latent_mean.device, dtype=torch.float32)
    else:
        history_BTNC = encoded(known, where, HISTORY)[:, :known_latents]
    context_BTNC = None
    if other is not None:
        if drawn:
            # What a context leaves open is drawn for each trajectory.
            other = other.expand(B, *other.shape[1:])
        context_BTNC = encoded(other, context_at, CONTEXT).unflatten(0, (-1, len(used)))
        context_BTNC = context_BTNC.expand(B, -1, -1, -1, -1).flatten(0, 1)
    first_frames, encode_earlier, continues = None, None, None
    if earlier is not None:
        # Observed frames are those of each member.
        seen = [] if known is None else [known[:, None].expand(len(known), earlier.shape[1], *known.shape[1:])]
        before = torch.cat([*seen, earlier], 2)
        continues, first_member = num_observed + earlier.shape[2], request.first_member
        drawn_first = known is None and model.draws_fields
        of_history, whole = 1 if drawn_first else known_latents, tok.whole_latents(continues)

        def known_fields(row: tuple[int, int]) -> Tensor:
            b, k = row
            return shifted(before[b, k - first_member, None], shown[k % len(shown)], ring)

        def encode_earlier(rows: Sequence[tuple[int, int]]) -> Tensor:
            return latents(torch.cat([known_fields(row) for row in rows]))[:, of_history:whole]

    if known is None and model.draws_fields:
        first_frame = None if other is None or context_at is not None else other[:, 0].expand(B, *other.shape[2:])

        def drawn_field(row: tuple[int, int]) -> Tensor:
            (b, k), seen = row, None if first_frame is None else first_frame[row[0], None]
            u = model.first_fields(seen, torch.tensor([seeds[b]]), torch.tensor([k])).to(model.latent_mean.device)
            return shifted(u[:, None], shown[k % len(shown)], ring)

        def first_frames(rows: Sequence[tuple[int, int]]) -> Tensor:
            return latents(torch.cat(map_alone(drawn_field, list(rows))))

    index = torch.arange(B).repeat_interleave(len(used))
    drivers = told(model, leading.known, count=B, frames=num_frames, argument="known")
    of_context = None
    if other is not None and context is not None:
        of_context = told(model, context.known, count=B, frames=other.shape[1], argument="context_known")
    return EncodedInputs(
        told=drivers and drivers[index],
        context_told=of_context and of_context[index],
        first_frames=first_frames,
        earlier=earlier,
        encode_earlier=encode_earlier,
        history_BTNC=history_BTNC,
        context_BTNC=context_BTNC,
        num_observed=num_observed if continues is None else continues,
        num_frames=num_frames,
        num_latents=num_latents,
        query=query,
        batched=batched,
        seeds=seeds,
        native=native,
        ladder=ladder,
        views=shown,
        places={(b, s): b * len(used) + i for b in range(B) for i, s in enumerate(used)},
    )


def _earlier(request: ForecastRequest, model: Model, B: int, where: Tensor | None, num_frames: int) -> Tensor:
    """Checked frames ``[B, K, T0, *grid, c]`` that the members have already."""
    tok, K = model.config.codec, request.num_members
    if where is not None or request.query is not None:
        raise EnmaError("earlier: frames at scattered points are not continued; forecast anew")
    u = torch.as_tensor(request.earlier, dtype=torch.float32, device=model.latent_mean.device)
    u = u if u.ndim == tok.dims + 4 else u[None]
    finite = u.shape[3:] == (*tok.grid, tok.field_channels) and torch.isfinite(model.codec.without_gaps(u)).all()
    if (*u.shape[:2], *u.shape[3:]) != (B, K, *tok.grid, tok.field_channels) or not finite:
        raise EnmaError(
            f"earlier has shape {tuple(u.shape)}; finite frames [{B}, {K}, T0, {', '.join(map(str, tok.grid))}, "
            f"{tok.field_channels}] of all members are expected"
        )
    if not 0 < u.shape[2] < num_frames:
        raise EnmaError(f"earlier: holds {u.shape[2]} frames of {num_frames}; at least one has to follow")
    return u


def _points(model: Model, history: Fields | None, context: Fields | None) -> tuple[Tensor | None, Tensor | None]:
    """Checked points of the observed frames, and of the context, which has theirs where it has none of its own."""
    of_history, of_context = (None if fields is None else fields.points for fields in (history, context))
    if history is None:
        of_history, of_context = of_context, None
    if of_history is None and of_context is not None:
        raise EnmaError("context_points: points is None; give those of the history, or leave this out")
    where = None if of_history is None else coordinates("points", of_history, model, of_frames=True)
    own = where if of_context is None else coordinates("context_points", of_context, model, of_frames=True)
    return where, own


def _drawn_fields(
    model: Model,
    values: Tensor,
    points: Tensor,
    draws: Sequence[Draw],
    *,
    errors: Sequence[float],
) -> tuple[Tensor, list[float]]:
    """Fields ``[B, S, L, *grid, c]`` that fit observations ``[B, L, P, c]``, and the size of these (`analyse`)."""
    covariance = model.covariance
    assert covariance is not None
    values, points = values.cpu(), points.cpu()
    # All trajectories have the same points, or each its own.
    each = points.expand(len(values), *points.shape[-3:]) if points.ndim > 2 else [points] * len(values)
    rows = list(zip(values, each, draws, strict=True))
    at_once = len(rows) if points.shape[-2] <= _FEW_POINTS else 1
    analyses: list[tuple[Tensor, float]] = []
    for first in range(0, len(rows), at_once):
        analyses += map_alone(lambda row: analyse(covariance, *row, errors=errors), rows[first : first + at_once])
    sizes = [size for _, size in analyses]
    if not all(math.isfinite(size) and fields.isfinite().all() for fields, size in analyses):
        raise EnmaError("points: no field of finite values fits the values; check their unit")
    return torch.stack([fields for fields, _ in analyses]).to(model.latent_mean.device), sizes


def _report_sizes(name: str, sizes: Sequence[float], model: Model, *, strict: bool) -> None:
    """Warn if observations are no fields such as the model was trained on, or refuse them."""
    large = [size for size in sizes if size > _MOST_SIZE]
    if not large:
        return
    text = (
        f"{name}: the values of {len(large)} of {len(sizes)} trajectories are no fields such as {model.config.name} "
        f"was trained on, by a factor of up to {max(large):.3g}: check unit and coordinates, and give the error that "
        "the values have (observation_error)"
    )
    if strict:
        raise EnmaError(text)
    log.warning("%s", text)


def _frames_to_forecast(config: ModelConfig, request: ForecastRequest, num_observed: int, *, has_context: bool) -> int:
    """Frames after the observed ones; `EnmaError` if too few are observed, or none is left."""
    if not has_context and num_observed < 3:
        seen = counted(num_observed, "frame")
        raise EnmaError(f"history has {seen}; the model {config.name!r} needs at least 3, or pass context=")
    if request.num_frames is not None:
        return request.num_frames
    if num_observed >= config.num_frames:
        raise EnmaError(
            f"history has {num_observed} frames, as many as {config.name} was trained on; say how many more: num_frames"
        )
    return config.num_frames - num_observed


def checked_field(name: str, value: np.ndarray | Tensor, model: Model, points: Tensor | None, batched: bool) -> Tensor:
    """One checked input as ``[B, T, *grid, c]`` fp32 on the model's device."""
    options = model.config.codec
    grid = options.grid if points is None else (points.shape[-2],)
    if not (value.is_floating_point() if isinstance(value, Tensor) else value.dtype.kind == "f"):
        raise EnmaError(f"{name} has dtype {value.dtype}; floating point is expected, such as float32")
    if isinstance(value, Tensor):
        if value.layout != torch.strided or value.is_meta:
            raise EnmaError(f"{name} is a {'meta' if value.is_meta else 'sparse'} tensor; give a dense one with values")
        u = value
    else:
        # A tensor needs this byte order and these strides; a value that is too large is found below.
        with np.errstate(over="ignore"):
            u = torch.from_numpy(np.require(unmasked(name, value), np.float32, ["C", "W"]))
    shape = tuple(u.shape if batched else (1, *u.shape))
    if len(shape) != len(grid) + 3 or shape[2:-1] != grid:
        raise EnmaError(
            f"{name} has shape {tuple(u.shape)}; the model {model.config.name!r} expects [B, T, "
            f"{', '.join(map(str, grid))}, {options.field_channels}] (B may be left out)"
            + _way_to_other_points(name, model, points, whole=len(shape) == len(grid) + 3)
        )
    if shape[-1] != options.field_channels:
        raise EnmaError(
            f"{name} has {shape[-1]} channels; the model {model.config.name!r} expects {options.field_channels}"
        )
    if not all(shape[:2]):
        raise EnmaError(f"{name} has shape {tuple(u.shape)}: no trajectory or no frame; leave it out if there is none")
    u = u.to(model.latent_mean.device, torch.float32).view(shape)
    if points is not None and points.ndim > 2:
        if points.shape[:-2] not in (shape[1:2], shape[:2]):
            given = " x ".join(map(str, points.shape[:-2]))
            own = "; give context_points" if name == "context" else ""
            held = f"{counted(shape[1], 'frame')} of {counted(shape[0], 'trajectory')}"
            raise EnmaError(f"{name} has {held}, its points are those of {given} frames{own}")
        # In place of absent points the first that is there: what is compared with the training data has no others.
        absent = points.isnan().any(-1).expand(u.shape[:-1])
        first = absent.int().argmin(2)[..., None, None].expand(-1, -1, -1, u.shape[-1])
        u = torch.where(absent[..., None], u.gather(2, first), u)
    u = u if points is not None else model.codec.without_gaps(u)
    # One number says it for nearly all fields; it is not finite where a value is not.
    if u.abs().amax().item() < float(NETCDF_FILL):
        return u
    for wrong, what in ((~torch.isfinite(u), "not finite"), (u == float(NETCDF_FILL), "the number of a missing one")):
        bad = wrong.flatten(2).any(-1)
        if bad.any():
            b, t = (int(i) for i in bad.nonzero()[0])
            raise EnmaError(
                f"{name} holds a value that is {what}, first in trajectory {b}, frame {t}; "
                "fill such values, for example by interpolation, or leave them out"
            )
    return u


def _way_to_other_points(name: str, model: Model, points: Tensor | None, *, whole: bool) -> str:
    """The arguments by which values elsewhere than at the expected points are forecast from."""
    argument = "context_points" if name == "context" else "points"
    if points is not None:
        return f"; give a value for each of `{argument}`, or leave that out"
    if not model.reads_points or not whole:
        return ""
    given = f"[B, T, P, {model.config.codec.field_channels}]"
    return f"; values at other points are {given}, with coordinates in {argument}= and those of the forecast in query="


def require_fp32(model: Model) -> None:
    """Raise `EnmaError` for weights that were converted: the number format of the sampler is an argument."""
    own = own_dtype(model)
    if own != torch.float32:
        name = str(own).removeprefix("torch.")
        remedy = " and pass dtype=torch.bfloat16" if own == torch.bfloat16 else ""
        raise EnmaError(f"model has {name} weights, fp32 is needed; call model.float(){remedy}")


def _encode(
    model: Model, native: NativeCodec | None, ladder: Ladder, fields: Tensor, points: Tensor | None = None
) -> Tensor:
    tok = model.codec
    if native is not None:
        with torch.no_grad():
            return model.to_tokens(native.encode(fields, points))
    function: Callable[[Tensor], Tensor] = partial(model.encode, points=points)
    if points is not None and points.ndim > 2:
        # The points of a row belong to it, wherever it is computed.
        fields = torch.cat([fields, points.expand(len(fields), -1, -1, -1)], -1)
        function = partial(_encode_frames, model)
    shape = None if points is None else "of frames" if points.ndim > 2 else tuple(points.shape)
    operation = ("encode", tok.config, tok.dtype, shape)
    # Points that all rows share are not among the rows.
    recordings = codec_recordings(tok, rows=len(fields), frames=fields.shape[1]) if points is None else None
    block = BLOCKS[tok.config.dims]
    return map_rows(function, fields, operation=operation, block=block, recordings=recordings, ladder=ladder)


def _encode_frames(model: Model, seen_BTPx: Tensor) -> Tensor:
    """Encode values with the coordinates of their points beside them, NaN where there is none."""
    values, points = seen_BTPx.split([model.config.codec.field_channels, model.config.codec.dims], -1)
    return model.encode(values, points, ~points.isnan().any(-1))
