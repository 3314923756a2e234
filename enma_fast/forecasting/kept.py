"""What forecasts of a growing history keep of it: encoded frames, and the memory of what a context has read of them.

Legend: B trajectories, T frames, N tokens per frame, C token channels, c physical channels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..config import CodecConfig
from ..sampling.engine import Engine

# Memory of what is read grows by so many latent frames.
ROOM = 16


class KeptFrames:
    """Latents of frames that were encoded, and an engine for each set of histories that is sampled together."""

    def __init__(self) -> None:
        self._latents: dict[tuple[Any, ...], tuple[Tensor, Tensor]] = {}
        self._engines: dict[tuple[int, ...], tuple[Engine, Engine]] = {}

    def latents(
        self,
        key: tuple[Any, ...],
        fields: Tensor,
        encode: Callable[[Tensor], Tensor],
        codec: CodecConfig,
        *,
        causal: bool,
    ) -> Tensor:
        """Latents ``[B, T', N, C]`` of fields ``[B, T, *grid, c]``, those that are known of this `key` as they are.

        `causal` says that `encode` gives a latent frame the same bits whatever comes after it, and before its reach.
        """
        before = self._latents.pop(key, None)
        all_latents = None
        if before is not None and torch.equal(before[0], fields[:, : before[0].shape[1]]):
            known, latents = before
            whole = codec.whole_latents(known.shape[1])
            first = whole - codec.reach
            if known.shape == fields.shape:
                all_latents = latents
            elif causal and first > 0:
                # The first latent frames of this part lack what comes before them.
                later = encode(fields[:, first * codec.time_factor :])[:, codec.reach :]
                all_latents = torch.cat([latents[:, :whole], later], 1)
        if all_latents is None:
            all_latents = encode(fields)
        self._latents[key] = fields, all_latents
        return all_latents

    def engine(self, engine: Engine, histories: tuple[int, ...]) -> Engine:
        """The engine for rows of these histories, with memory of its own."""
        pair = self._engines.get(histories)
        if pair is None or pair[0] is not engine:
            pair = self._engines[histories] = engine, engine.apart()
        return pair[1]
