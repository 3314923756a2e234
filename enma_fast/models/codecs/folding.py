"""The linear end of a decoder as one convolution: what follows its last residual layer, prepared once.

Every `space` layer after the last residual one is linear, and so is the convolution to the field. On a periodic domain
all of them together are one convolution of the tokens, each of which gives its own grid points: for the small 1-D
codec a sixth of the arithmetic. Sums are in another order, so values differ from those of `ConvCodec.decode` by
rounding.

Legend: B rows, C channels of a token, T frames, n tokens of a space dimension, f grid points of a token, c channels of
the field.
"""

from __future__ import annotations

import copy
import math
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..layers import pad_space, prepared
from .convolutions import CausalConv, ExpandSpace


class FoldedEnd:
    """The layers of `ConvCodec.up` from number `first` on, and `conv_out`, as one convolution."""

    def __init__(self, codec: Any, first: int, radius: int) -> None:
        config = codec.config
        self.first, self.radius, self.periodic = first, radius, config.periodic
        self.factor = 2 ** (len(codec.up) - first)
        last = cast(CausalConv, codec.conv_out)
        self.channels = cast(nn.Conv2d, last.conv).out_channels
        weight = codec.from_latent.weight
        self.frames = last.pad_time + 1
        linear = copy.deepcopy(nn.Sequential(*codec.up[first:], last)).double()
        inward = cast(nn.Conv2d, cast(ExpandSpace, codec.up[first]).conv.conv).in_channels
        grid = [min(n // self.factor, 2 * radius + 1) for n in config.grid]
        with torch.no_grad():
            # Responses to a 1 in each channel at place 0 of frame 0, less the response to zeros.
            x = torch.zeros(inward + 1, inward, self.frames, *grid, dtype=torch.float64, device=weight.device)
            x.flatten(2)[range(inward), range(inward), 0] = 1.0
            y = linear(x)
            nothing = self._by_token(y[-1:])[0]
            answers = self._by_token(y[:-1]) - nothing
            # A place at distance k is reached by the weight at -k, counted from the middle; likewise for frames.
            for axis in range(answers.ndim - config.dims, answers.ndim):
                places = torch.arange(radius, -radius - 1, -1, device=weight.device) % answers.shape[axis]
                answers = answers.index_select(axis, places)
            self.weight = answers.transpose(0, 1).flip(2).to(weight.dtype).contiguous()
            # The bias is the same at all tokens; the first frames have fewer frames before them.
            bias = nothing.flatten(2)[..., 0]
            self.bias = bias[:, -1].to(weight.dtype)
            self.lacking = (bias[:, :-1] - bias[:, -1:]).to(weight.dtype)[(..., *[None] * config.dims)]

    def __call__(self, x: Tensor) -> Tensor:
        """``[B, C, T, *n]`` to ``[B, c, T, *(n f)]``."""
        dims, lacking = len(self.periodic), self.lacking[:, : x.shape[2]]
        x = pad_space(x, self.radius, self.periodic)
        x = F.pad(x, [0, 0] * dims + [self.frames - 1, 0])
        y = (F.conv2d if dims == 1 else F.conv3d)(x, self.weight, self.bias)
        y[:, :, : lacking.shape[1]] += lacking
        B, _, T, *grid = y.shape
        y = y.view(B, self.channels, *[self.factor] * dims, T, *grid)
        order = [0, 1, 2 + dims]
        for i in range(dims):
            order += [3 + dims + i, 2 + i]
        return y.permute(order).reshape(B, self.channels, T, *(n * self.factor for n in grid))

    def _by_token(self, y: Tensor) -> Tensor:
        """Fields ``[B, c, T, *(n f)]`` by the token that gives them ``[B, c f.., T, *n]``."""
        dims = len(self.periodic)
        split = [size for n in y.shape[3:] for size in (n // self.factor, self.factor)]
        y = y.view(*y.shape[:3], *split)
        order = [0, 1, *(4 + 2 * i for i in range(dims)), 2, *(3 + 2 * i for i in range(dims))]
        return y.permute(order).flatten(1, 1 + dims)


def folded_end(codec: Any) -> FoldedEnd | None:
    """The result of `fold_end`, made on first use and again after the weights have changed."""
    return prepared(codec, "folded end", lambda: fold_end(codec))


def fold_end(codec: Any) -> FoldedEnd | None:
    """The linear end of a decoder, prepared; None if there is none, or if one convolution is no less arithmetic."""
    config = codec.config
    first = len(codec.up)
    while first > 0 and isinstance(codec.up[first - 1], ExpandSpace):
        first -= 1
    if first == len(codec.up) or config.stride_ends > 1 or not all(config.periodic):
        return None
    # The first one maps the tokens, the last one the grid.
    last = cast(CausalConv, codec.conv_out)
    convs = [*(cast(ExpandSpace, layer).conv for layer in codec.up[first:]), last]
    # Reach in grid points, then through each layer in those of its own input.
    low, high = 0, 2 ** (len(convs) - 1) - 1
    places, work = math.prod(config.grid), 0
    for conv in reversed(convs):
        if conv is not last:
            low, high, places = low // 2, high // 2, places // 2**config.dims
        low, high = low - conv.pad_space, high + conv.pad_space
        work += places * sum(p.numel() for p in conv.parameters())
    radius = max(-low, high)
    if 2 * radius + 1 > min(config.grid) // 2 ** (len(convs) - 1):
        return None
    end = FoldedEnd(codec, first, radius)
    return end if places * end.weight.numel() < work else None
