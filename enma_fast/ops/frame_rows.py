"""Rows of the transformers from tokens and context, tokens from rows, and order and noise of a frame, a launch each.

    x    = base + scale z W^T + places + context        rows from tokens z
    z    = norm(x) W^T + b                              tokens from rows, or mean + scale y with both read off x
    c'   = anchor (1 + gamma) + beta                    gamma, beta = (silu(c) W_down^T) W_up^T + b
    order, noise                                        of all tokens of a frame, at the mask step that decides each

As :mod:`enma_fast.ops.frame_layer`, for the static step alone.

Legend: B rows of the batch, G groups that share an anchor, N tokens per frame, M of them, C token channels, D width, R
rank, L rows of the transformer.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ._backend import choose, kernel
from .frame_layer import candidates as candidates
from .philox_normal import Word, as_word, philox, philox_normal
from .rms_norm import rms_norm

OP = "frame_rows"
# Mask step of the words that order the tokens.
ORDER_STEP = 0xFFFFFFFF


def rows_(
    x_BLD: Tensor,
    *,
    base_D: Tensor,
    z_BMC: Tensor | None = None,
    weight_DC: Tensor | None = None,
    scale: float = 1.0,
    places_ND: Tensor | None = None,
    context_BND: Tensor | None = None,
    tokens_BM: Tensor | None = None,
    first: int = 0,
    concat: bool = False,
    frame_BNC: Tensor | None = None,
    backend: str | None = None,
) -> None:
    """Write rows of tokens, ``base + scale z W^T + places + context``, in place.

    Parameters
    ----------
    x_BLD
        The rows; D contiguous.
    z_BMC, weight_DC
        Tokens, fp32 or float64, and their embedding.
    context_BND
        Added to each row; with `concat` rows of their own, with their places, before those of the tokens (L = 2N).
    tokens_BM
        Tokens to write, by default all N; token n is row `first` + n.
    frame_BNC
        The tokens are written here too.
    """
    if choose(OP, candidates(x_BLD.device, x_BLD.dtype), backend) == "triton":
        with torch.cuda.device_of(x_BLD):
            kernel(OP).launch_rows(
                base_D,
                z_BMC,
                weight_DC,
                places_ND,
                context_BND,
                tokens_BM,
                scale=scale,
                first=first,
                concat=concat,
                x=x_BLD,
                frame=frame_BNC,
            )
        return
    B, L, D = x_BLD.shape
    N = L // 2 if concat else L
    own = torch.arange(N, device=x_BLD.device).expand(B, N) if tokens_BM is None else tokens_BM
    rows = base_D.expand(B, own.shape[1], D)
    if z_BMC is not None and weight_DC is not None:
        rows = rows + F.linear((scale * z_BMC).to(weight_DC.dtype), weight_DC)
        if frame_BNC is not None:
            frame_BNC.scatter_(1, own[..., None].expand_as(z_BMC), z_BMC)
    if places_ND is not None:
        rows = rows + F.embedding(own, places_ND)
    if context_BND is not None and not concat:
        rows = rows + context_BND.gather(1, own[..., None].expand_as(rows))
    if context_BND is not None and concat:
        x_BLD[:, :N] = context_BND if places_ND is None else context_BND + places_ND
    start = N if concat else first
    x_BLD.scatter_(1, (own + start)[..., None].expand_as(rows), rows.to(x_BLD.dtype))


def read(
    x_BMD: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    norm: tuple[Tensor, float] | None = None,
    y_BMC: Tensor | None = None,
    out: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """Tokens ``[B, M, C]`` from rows, in fp32 or float64.

    Parameters
    ----------
    weight, bias
        ``[C, D]`` and ``[C]``; with `y_BMC` ``[2 C, D]`` and ``[2 C]``, of which the halves give mean m and scale s:
        ``m + (softplus(s + ln(e - 1)) + 1e-3) y``.
    norm
        Weight ``[D]`` and eps of a norm of the rows.
    out
        Contiguous, to be filled and returned.
    """
    if out is None:
        channels = weight.shape[0] // (1 if y_BMC is None else 2)
        out = x_BMD.new_empty(*x_BMD.shape[:2], channels, dtype=torch.promote_types(x_BMD.dtype, torch.float32))
    if choose(OP, candidates(x_BMD.device, x_BMD.dtype), backend) == "triton":
        y = None if y_BMC is None else y_BMC.flatten(0, 1)
        with torch.cuda.device_of(x_BMD):
            kernel(OP).launch_read(
                x_BMD.flatten(0, 1),
                None if norm is None else norm[0],
                weight,
                bias,
                y,
                eps=0.0 if norm is None else norm[1],
                out=out.view(-1, out.shape[-1]),
            )
        return out
    x = x_BMD if norm is None else rms_norm(x_BMD, norm[0], eps=norm[1])
    tokens = F.linear(x, weight, bias).to(out.dtype)
    if y_BMC is not None:
        mean, raw = tokens.chunk(2, dim=-1)
        tokens = mean + (F.softplus(raw + math.log(math.e - 1)) + 1e-3) * y_BMC
    return out.copy_(tokens)


def shifted_(
    out_BND: Tensor,
    c_BND: Tensor,
    anchor_GND: Tensor,
    down: Tensor,
    up: Tensor,
    bias: Tensor,
    *,
    backend: str | None = None,
) -> None:
    """Write ``anchor (1 + gamma) + beta``, with gamma and beta from c: `down` ``[R, D]``, `up` ``[2 D, R]``."""
    if choose(OP, candidates(c_BND.device, c_BND.dtype), backend) == "triton":
        with torch.cuda.device_of(c_BND):
            kernel(OP).launch_shifted(c_BND, anchor_GND, down, up, bias, out=out_BND)
        return
    gamma, beta = F.linear(F.linear(F.silu(c_BND), down), up, bias).chunk(2, dim=-1)
    anchor = anchor_GND.repeat_interleave(c_BND.shape[0] // anchor_GND.shape[0], 0)
    out_BND.copy_(anchor * (1 + gamma) + beta)


class MaskSteps(NamedTuple):
    """Tokens of each mask step, and of each place in the order its step, first place and tokens, ``[3, N]`` int64."""

    counts: tuple[int, ...]
    table: Tensor


def mask_steps(counts: tuple[int, ...], device: torch.device) -> MaskSteps:
    """The mask steps that decide so many tokens each, with a table for kernels."""
    rows = [(step, sum(counts[:step]), count) for step, count in enumerate(counts) for _ in range(count)]
    return MaskSteps(counts, torch.tensor(rows, dtype=torch.int64, device=device).t().contiguous())


def frame_noise(
    *,
    seeds: Tensor,
    members: Tensor,
    frame: Tensor,
    steps: MaskSteps,
    channels: int,
    dtype: torch.dtype,
    scale: float = 1.0,
    backend: str | None = None,
) -> tuple[Tensor, list[Tensor]]:
    """Order ``[B, N]`` in which each member decides the tokens of a frame, and the noise of each mask step.

    The same numbers as :func:`order_of` and, times `scale`, as
    :func:`enma_fast.ops.philox_normal.philox_normal`.

    Parameters
    ----------
    seeds, members, frame
        int64 ``[B]``, ``[B]`` and ``[]``, read on the device.

    Returns
    -------
    tuple
        int64 ``[B, N]``, and for each mask step ``[B, M, C]``, contiguous.
    """
    counts, table = steps
    B, N, C = len(members), sum(counts), channels
    if choose(OP, candidates(members.device, dtype), backend) == "triton":
        order = torch.empty(B, N, dtype=torch.int64, device=members.device)
        drawn = torch.empty(N * B, C, dtype=dtype, device=members.device)
        with torch.cuda.device_of(members):
            kernel(OP).launch_noise(seeds, members, frame, table, scale=scale, order=order, noise=drawn)
        parts = drawn.split([B * count for count in counts])
        return order, [part.view(B, count, C) for part, count in zip(parts, counts, strict=True)]
    order = order_of(seed=seeds, members=members, frame=frame, num_tokens=N)
    noise = []
    for step, tokens in enumerate(order.split(counts, dim=1)):
        drawn = philox_normal(
            seed=seeds, members=members, frame=frame, mask_step=step, tokens=tokens, channels=C, dtype=dtype
        )
        noise.append(scale * drawn)
    return order, noise


def order_of(*, seed: Word, members: Tensor, frame: Word, num_tokens: int) -> Tensor:
    """The tokens ``[B, N]`` sorted by one random word each, equal ones by their index."""
    tokens_N = torch.arange(num_tokens, device=members.device)
    words = philox(0, tokens_N, ORDER_STEP, as_word(frame, ndim=2), as_word(seed, ndim=2), as_word(members, ndim=2))
    return torch.argsort(torch.as_tensor(words[0]), dim=-1, stable=True)
