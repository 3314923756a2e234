"""Past frames -> context: the causal transformer (paper 3.1.1) and its cache.

Legend: B batch x members, T latent frames, N tokens per frame, C token channels, D width, H heads, K head dim.

A sequence is one or more segments; each starts with a learned frame (BOS) and holds the latent frames of one
trajectory. The output at a frame is the context of the *next* frame of the same segment, so BOS gives the first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from ...config import ModelConfig
from ...ops.self_attention import Pair, attention
from ..layers import Block, Rotary, ScaleShift, exact, init_linear, sincos
from .context import Context


class FrameCache:
    """Keys and values of the frames seen so far, one static buffer [layers, 2, B, H, max_frames * N, K]."""

    def __init__(self, temporal: CausalTransformer, batch: int, max_frames: int) -> None:
        block = cast(Block, temporal.blocks[0]).attention
        weight = block.qkv.weight
        shape = (
            len(temporal.blocks),
            2,
            batch,
            block.heads,
            max_frames * temporal.num_tokens,
            block.head_dim,
        )
        self.kv = torch.zeros(shape, dtype=weight.dtype, device=weight.device)
        self.rows, self.num_tokens = batch, temporal.num_tokens
        self.frames = 0

    def append(self, layer: int, k_BHLK: Tensor, v_BHLK: Tensor) -> tuple[Tensor, Tensor]:
        """Add keys and values of new frames to a layer; returns all that it holds."""
        begin = self.frames * self.num_tokens
        end = begin + k_BHLK.shape[2]
        self.kv[layer, 0, :, :, begin:end] = k_BHLK
        self.kv[layer, 1, :, :, begin:end] = v_BHLK
        keys, values = self.kv[layer, :, :, :, :end]
        return keys, values


class GrowingCache:
    """Keys and values of the frames seen so far, with gradients."""

    def __init__(self, temporal: CausalTransformer, rows: int) -> None:
        self.kv: list[Pair | None] = [None] * len(temporal.blocks)
        self.rows = rows
        self.frames = 0

    def repeat(self, times: int) -> None:
        """Repeat each row `times` times, the copies next to each other."""
        self.kv = [
            None if both is None else (both[0].repeat_interleave(times, 0), both[1].repeat_interleave(times, 0))
            for both in self.kv
        ]
        self.rows *= times


Cache = FrameCache | GrowingCache


@dataclass
class Past:
    """What has been read: keys and values, the raw output of the last frame and of the start of the last segment."""

    cache: Cache
    h_BND: Tensor
    anchor_BND: Tensor
    # Of the last segment.
    frames: int


class CausalTransformer(Context):
    """Frame-block-causal transformer over latent frames; inside a frame attention is full."""

    places: Tensor | None

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        own = config.context.transformer
        self.num_tokens = config.num_tokens
        self.embed = nn.Linear(config.token_channels, own.width)
        # One start vector for a first trajectory, one for a trajectory that follows a context.
        self.start = nn.Parameter(nn.init.normal_(torch.empty(2, own.width), std=0.02))
        self.blocks = nn.ModuleList([Block(own.width, own.heads) for _ in range(own.layers)])
        self.scale_shift = ScaleShift(own.width, own.scale_shift_rank) if own.scale_shift_rank else None
        init_linear(self.blocks, depth=own.layers)
        self.rotary = (
            Rotary(config.token_grid, config.codec.periodic, own.width // own.heads)
            if own.positions == "rotary"
            else None
        )
        places = sincos(config.token_grid, own.width) if own.positions == "sincos" else None
        self.register_buffer("places", places, persistent=False)

    def begin(self, segments: Sequence[Tensor], *, room: int) -> Past:
        """Read whole segments ``[B, T_i, N, C]``, where T_i may be 0, a frame at a time; `room` is for later frames."""
        frames = room + sum(1 + segment.shape[1] for segment in segments)
        cache = FrameCache(self, segments[0].shape[0], frames)
        anchor = h = torch.empty(0)
        for number, segment in enumerate(segments):
            anchor = h = self.start_frame(cache, segment=number)
            for z_BNC in segment.unbind(1):
                h = self.step(z_BNC.to(cache.kv.dtype), cache)
        return Past(cache, h, anchor, segments[-1].shape[1])

    def begin_members(self, segments: Sequence[Tensor], members: int) -> tuple[Past, Tensor]:
        """Read whole segments with gradients, in one pass, for so many members of each trajectory.

        Also returns the condition of frame 0 of the last segment ``[B, N, D]``.
        """
        cache = GrowingCache(self, segments[0].shape[0])
        h_BTND = self.read(segments, cache)
        frames = segments[-1].shape[1]
        start_BND = h_BTND[:, -1 - frames]
        cache.repeat(members)
        last, anchor = (x.repeat_interleave(members, 0) for x in (h_BTND[:, -1], start_BND))
        return Past(cache, last, anchor, frames), start_BND

    def condition(self, past: Past) -> Tensor:
        """What the decoder of the next frame is told, ``[B, N, D]``."""
        return self.scaled(past.h_BND, past.anchor_BND, first=past.frames == 0)

    def advance(self, past: Past, z_BNC: Tensor) -> None:
        """Read the frame ``[B, N, C]`` that was decided."""
        past.h_BND = self.step(z_BNC.to(self.embed.weight.dtype), past.cache)
        past.frames += 1

    def _frames(self, z_BTNC: Tensor) -> Tensor:
        # The sum that all blocks add to keeps fp32 under autocast.
        x = exact(self.embed, z_BTNC)
        return x if self.places is None else x + self.places

    def _start(self, batch: int, segment: int) -> Tensor:
        x_D = self.start[min(segment, 1)]
        x_ND = x_D.expand(self.num_tokens, -1) if self.places is None else x_D + self.places
        return x_ND.expand(batch, 1, *x_ND.shape)

    def _tables(self, first: int, count: int, device: torch.device) -> Pair | None:
        if self.rotary is None:
            return None
        return self.rotary.tables(torch.arange(first, first + count, device=device))

    def forward(self, segments: Sequence[Tensor]) -> list[Tensor]:
        """All contexts of all segments in one pass (training).

        From latent frames ``[B, T_i, N, C]`` of each segment to ``[B, T_i, N, D]``: entry t is the context of its frame
        t.
        """
        last = [*segments[:-1], segments[-1][:, :-1]]
        h_BTND = self.read(last)
        out, first = [], 0
        for z_BTNC in segments:
            count = z_BTNC.shape[1]
            out.append(self._scaled_all(h_BTND[:, first : first + count], h_BTND[:, first : first + 1]))
            first += count + 1
        return out

    def read(self, segments: Sequence[Tensor], cache: GrowingCache | None = None) -> Tensor:
        """Read whole segments in one pass, each after its start, and keep them in an empty cache, if there is one.

        From latent frames ``[B, T_i, N, C]`` of each segment, where T_i may be 0, to raw outputs ``[B, sum(T_i + 1), N,
        D]``.
        """
        parts = []
        for i, z_BTNC in enumerate(segments):
            parts += [self._start(z_BTNC.shape[0], i), self._frames(z_BTNC)]
        x_BTND = torch.cat(parts, dim=1)
        B, T, N, D = x_BTND.shape
        h = self._layers(x_BTND.view(B, T * N, D), self._tables(0, T, x_BTND.device), cache)
        if cache is not None:
            cache.frames = T
        return h.view(B, T, N, D)

    def _scaled_all(self, h_BTND: Tensor, anchor_B1ND: Tensor) -> Tensor:
        if self.scale_shift is None:
            return h_BTND
        later = self.scale_shift(h_BTND[:, 1:], anchor_B1ND)
        return torch.cat([h_BTND[:, :1], later], dim=1)

    def scaled(self, h_BND: Tensor, anchor_BND: Tensor, *, first: bool) -> Tensor:
        """The condition of a frame, from a raw output and that of the segment's start."""
        if self.scale_shift is None or first:
            return h_BND
        return self.scale_shift(h_BND, anchor_BND)

    def start_frame(self, cache: Cache, *, segment: int) -> Tensor:
        """Feed the start of a segment; returns its raw output ``[B, N, D]``."""
        return self._step(self._start(cache.rows, segment)[:, 0], cache)

    def step(self, z_BNC: Tensor, cache: Cache) -> Tensor:
        """Feed one latent frame; returns its raw output ``[B, N, D]``, the context of the next frame."""
        return self._step(self._frames(z_BNC), cache)

    def _step(self, x_BND: Tensor, cache: Cache) -> Tensor:
        h = self._layers(x_BND, self._tables(cache.frames, 1, x_BND.device), cache)
        cache.frames += 1
        return h

    def _layers(self, x_BLD: Tensor, rotary: Pair | None, cache: Cache | None) -> Tensor:
        added = None
        for layer, block in enumerate(cast("list[Block]", self.blocks)):
            x_BLD, y_BLD = block.begin(x_BLD, added)
            if isinstance(cache, FrameCache):
                q, k, v = block.attention.project(y_BLD, rotary)
                attended = block.attention.merge(attention(q, *cache.append(layer, k, v)))
            else:
                past = None if cache is None else cache.kv[layer]
                attended, kept = block.attention(
                    y_BLD, rotary, frame=self.num_tokens, past=past, keep=cache is not None
                )
                if cache is not None:
                    cache.kv[layer] = kept
            x_BLD, added = block.finish(x_BLD, attended)
        return x_BLD if added is None else x_BLD + added
