"""What a forecast is made from, checked before any work: its arguments, and observed fields as latents.

Legend: B trajectories, L observed frames, T frames, c physical channels, N tokens per frame, C token channels, P
observed points, d space dimensions.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..config import ModelConfig, SamplingConfig
from ..data import NETCDF_FILL, unmasked
from ..errors import EnmaError, first_line
from ..models.layers import own_dtype
from ..models.model import Model
from ..sampling.batch_invariant import BLOCKS, map_rows
from ..sampling.noise import trajectory_seed
from ..sampling.shifts import shift_amounts, shifted
from ..utils.bounds import MOST_FRAMES, whole_number
from ..utils.system import memory
from ..utils.text import counted

log = logging.getLogger("enma_fast")

# Member numbers are one word of the noise's key.
MOST_MEMBERS = 2**32
# Seeds that fit 64 bits, with a sign or without.
LEAST_SEED, MOST_SEED = -(2**63), 2**64 - 1


@dataclass(frozen=True)
class Request:
    """Checked inputs, encoded: one row per trajectory and shift that some member takes."""

    history_BTNC: Tensor
    context_BTNC: Tensor | None
    observed: int
    last: int
    num_latents: int
    seeds: list[int]
    # Trajectory and member.
    rows: list[tuple[int, int]]
    # Grid points by which each shift moves the field; row (b, k) takes shift k modulo their number.
    shifts: list[tuple[int, ...]]
    # Place of the history of (trajectory, shift) in `history_BTNC`.
    places: dict[tuple[int, int], int]

    def history_of(self, row: tuple[int, int]) -> int:
        """Place of a row's history and context."""
        b, k = row
        return self.places[b, k % len(self.shifts)]

    def amount_of(self, row: tuple[int, int]) -> tuple[int, ...]:
        """Grid points by which a row's field is moved."""
        return self.shifts[row[1] % len(self.shifts)]


def check_size(config: ModelConfig, *, num_frames: int, num_members: int, num_trajectories: int = 1) -> None:
    """Raise `EnmaError` if the forecasts cannot fit this machine's memory."""
    tok = config.tokenizer
    each, there = 4 * num_frames * math.prod(tok.grid) * tok.field_channels / 1e9, memory() / 1e9
    rows = num_trajectories * num_members
    if rows * each > there:
        mend = "fewer at a time" if each <= there else "fewer frames"
        raise EnmaError(
            f"forecasts of {rows:,} x {num_frames:,} frames take {rows * each:,.0f} GB, "
            f"this machine has {there:,.0f} GB; use {mend}"
        )


def read_request(
    model: Model,
    history: np.ndarray | Tensor | None,
    num_frames: int | None,
    num_members: int,
    seed: int,
    context: np.ndarray | Tensor | None,
    points: np.ndarray | Tensor | None,
    trajectories: Sequence[int] | None,
    first_member: int,
    *,
    settings: SamplingConfig,
    warn: bool = True,
    strict: bool = False,
) -> tuple[Request, bool]:
    """Check everything before any work, then encode.

    With `warn` it is said, or with `strict` refused, where observed frames lie outside what the model was trained on.
    """
    config = model.config
    device = model.latent_mean.device
    num_members = whole_number("num_members", num_members, most=MOST_MEMBERS)
    first_member = whole_number("first_member", first_member, least=0, most=MOST_MEMBERS - num_members)
    seed = whole_number("seed", seed, least=LEAST_SEED, most=MOST_SEED)
    where = None if points is None else coordinates("points", points, model)
    given = history if history is not None else context
    if given is None:
        raise EnmaError("history and context are both None; give one of them")
    space = 1 if where is not None else config.tokenizer.dims
    batched = given.ndim == space + 3
    known = _field("history", history, model, where, batched) if history is not None else None
    other = None if context is None else _field("context", context, model, where, context.ndim == space + 3)
    if known is not None and other is not None and len(other) not in (1, len(known)):
        raise EnmaError(
            f"history holds {len(known)} trajectories and context {len(other)}; give one context for each, or one"
        )
    if other is not None and other.shape[1] > config.num_frames:
        if warn:
            log.warning(
                "context: of its %d frames the first %d are used, as in training", other.shape[1], config.num_frames
            )
        other = other[:, : config.num_frames]
    observed = 0 if known is None else known.shape[1]
    if other is None and observed < 3:
        raise EnmaError(
            f"history has {counted(observed, 'frame')}; the model {config.name!r} needs at least 3, or pass context="
        )
    if num_frames is None:
        num_frames = config.num_frames - observed
        if num_frames < 1:
            raise EnmaError(
                f"history has {observed} frames, as many as {config.name} was trained on; say how many more: num_frames"
            )
    num_frames = whole_number("num_frames", num_frames, most=MOST_FRAMES)
    B = len(given) if batched else 1
    check_size(config, num_frames=num_frames, num_members=num_members, num_trajectories=B)
    last = observed + num_frames
    numbers = list(range(B)) if trajectories is None else whole_numbers(trajectories)
    if len(numbers) != B:
        raise EnmaError(f"trajectories names {len(numbers)} numbers; the input holds {B}")
    if len(set(numbers)) != B:
        raise EnmaError("trajectories names a number twice: two would share their noise")
    if warn:
        warn_if_long(config, last)
        say_outside(model, numbers, outside(model, known, other, scattered=where is not None), strict=strict)
    shifts = shift_amounts(config, settings)
    if where is not None and len(shifts) > 1:
        raise EnmaError(f"points: shifts is {len(shifts)}, which is for fields on the grid; give settings without it")
    rows = [(b, first_member + k) for b in range(B) for k in range(num_members)]
    used = sorted({k % len(shifts) for _, k in rows[:num_members]})

    def encoded(fields: Tensor) -> Tensor:
        """Latents of each trajectory in each shift that is used, [B * len(used), T, N, C]."""
        if len(used) == 1:
            return _encode(model, shifted(fields, shifts[used[0]]), where)
        seen = torch.stack([shifted(fields, shifts[s]) for s in used], 1)
        return _encode(model, seen.flatten(0, 1), where)

    if known is None:
        empty = (B * len(used), 0, config.num_tokens, config.token_channels)
        history_BTNC = torch.zeros(empty, device=device, dtype=torch.float32)
    else:
        history_BTNC = encoded(known)[:, : config.tokenizer.whole_latents(observed)]
    context_BTNC = None
    if other is not None:
        context_BTNC = encoded(other).unflatten(0, (-1, len(used))).expand(B, -1, -1, -1, -1).flatten(0, 1)
    request = Request(
        history_BTNC=history_BTNC,
        context_BTNC=context_BTNC,
        observed=observed,
        last=last,
        num_latents=config.tokenizer.latent_frames(last),
        seeds=[trajectory_seed(seed, n) for n in numbers],
        rows=rows,
        shifts=shifts,
        places={(b, s): b * len(used) + i for b in range(B) for i, s in enumerate(used)},
    )
    return request, batched


def _field(name: str, value: np.ndarray | Tensor, model: Model, points: Tensor | None, batched: bool) -> Tensor:
    """One checked input as ``[B, T, *grid, c]`` fp32 on the model's device."""
    options = model.config.tokenizer
    grid = options.grid if points is None else (points.shape[-2],)
    if not (value.is_floating_point() if isinstance(value, Tensor) else value.dtype.kind == "f"):
        raise EnmaError(f"{name} has dtype {value.dtype}; floating point is expected")
    if isinstance(value, Tensor):
        u = value
    else:
        # In the byte order and with the strides that a tensor can have; too large a value is found below.
        with np.errstate(over="ignore"):
            u = torch.from_numpy(np.require(unmasked(name, value), np.float32, ["C", "W"]))
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
    for wrong, what in ((~torch.isfinite(u), "not finite"), (u == float(NETCDF_FILL), "the number of a missing one")):
        bad = wrong.flatten(2).any(-1)
        if bad.any():
            b, t = (int(i) for i in bad.nonzero()[0])
            raise EnmaError(f"{name} holds a value that is {what}, first in trajectory {b}, frame {t}")
    return u


def warn_if_long(config: ModelConfig, frames: int) -> None:
    """Say that trajectories of so many frames, observed and forecast, are longer than those of the training."""
    if frames > config.num_frames:
        log.warning("frames beyond %d were not seen in training of %s", config.num_frames, config.name)


def outside(
    model: Model, history: np.ndarray | Tensor | None, context: np.ndarray | Tensor | None, *, scattered: bool = False
) -> list[str]:
    """Why the observed frames `[B, T, *x, c]` of each trajectory lie outside the training data; empty if they do not.

    One context serves all. No texts at all where the model's checkpoint does not say what it was trained on.
    """
    if model.domain is None:
        return []
    seen = [u.numpy(force=True) if isinstance(u, Tensor) else u for u in (history, context) if u is not None]
    parts = [model.domain.reasons(u, scattered=scattered) for u in seen]
    count = max(map(len, parts), default=0)
    parts = [reasons * count if len(reasons) == 1 else reasons for reasons in parts]
    return [next(filter(None, reasons), "") for reasons in zip(*parts, strict=True)]


def say_outside(
    model: Model, numbers: Sequence[int], reasons: Sequence[str], *, strict: bool = False, where: str = ""
) -> None:
    """Say which trajectories lie outside the training data, or refuse them."""
    found = [(number, reason) for number, reason in zip(numbers, reasons, strict=False) if reason]
    if not found:
        return
    number, reason = found[0]
    more = f" (and of {len(found) - 1} more)" if len(found) > 1 else ""
    text = (
        f"{where}the observed frames of trajectory {number}{more} lie outside what {model.config.name} was trained on: "
        f"{reason}"
    )
    if strict:
        raise EnmaError(f"{text}; check unit and physics, or leave out strict")
    log.warning("%s", text)


def whole_numbers(trajectories: Sequence[int]) -> list[int]:
    """Numbers of trajectories as ints, or an `EnmaError`."""
    try:
        given = list(trajectories)
    except TypeError:
        raise EnmaError(f"trajectories is {trajectories!r}; a list of numbers is expected") from None
    return [whole_number("a trajectory", number, least=0) for number in given]


def coordinates(name: str, value: np.ndarray | Tensor, model: Model) -> Tensor:
    """Checked coordinates ``[P, d]`` fp32 on the model's device."""
    options = model.config.tokenizer
    if options.interpolation is None:
        raise EnmaError(f"{name}: the model {model.config.name!r} has no interpolation; it works on its grid only")
    try:
        value = value if isinstance(value, Tensor) else np.asarray(unmasked(name, value), np.float32)
    except (TypeError, ValueError) as error:
        raise EnmaError(
            f"{name} is no array of numbers ({first_line(error)}); [points, {options.dims}] is expected"
        ) from error
    points = torch.as_tensor(value, dtype=torch.float32, device=model.latent_mean.device)
    if points.ndim != 2 or not len(points) or points.shape[1] != options.dims:
        raise EnmaError(f"{name} has shape {tuple(points.shape)}; [points, {options.dims}] is expected")
    if not torch.isfinite(points).all():
        raise EnmaError(f"{name} holds a coordinate that is not finite")
    return points


def _encode(model: Model, fields: Tensor, points: Tensor | None) -> Tensor:
    tok = model.tokenizer
    operation = ("encode", tok.config, own_dtype(tok), None if points is None else tuple(points.shape))
    block = BLOCKS[tok.config.dims]
    return map_rows(lambda u: model.encode(u, points), fields, operation=operation, block=block)
