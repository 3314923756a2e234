"""Frames decided in field space: a floor's forecast, and what gated convolutions add to it (`models.field_step`).

A member has a draw of the floor's coefficients and numbers of its own, which stay, and noise of each frame. How much
of the correction counts is found for each trajectory, by forecasts of the frames that are known.

Legend: B rows, P past frames, N tokens per frame, C channels of a token, c physical channels; `*x` space.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ...config import FieldConfig, ModelConfig, PhysicsConfig, SamplingConfig
from ...errors import EnmaError
from ..contexts.physics import NUMBERS, FieldTokens, Physics
from ..drivers import num_inputs
from ..field_step import PAST, PATTERNS, FieldStep
from ..floors.choice import kinds
from ..floors.ladder import Floor, forecaster
from ..grid_layers import on_grid
from ..masked_transformer import MaskedTransformer
from .decoder import Decoder, Noise

# What normals are drawn for: places and residuals of a frame; and, of frame 0, coefficients and numbers of a member.
_PLACES, _COEFFICIENTS, _MEMBER, _RESIDUALS = 0, 1, 2, 3


class FieldDecoder(Decoder):
    """The next frame from the last three and the physics of a trajectory."""

    past = PAST

    def __init__(self, config: ModelConfig, own: FieldConfig, trunk: MaskedTransformer | None) -> None:
        super().__init__()
        del trunk
        context, codec = config.context, config.codec
        if not isinstance(context, PhysicsConfig):
            raise EnmaError(f"{config.name}: step is of kind 'field', which reads context 'physics'; give that")
        self.places = FieldTokens(config)
        self.model = FieldStep(
            codec.grid,
            self.places.edges,
            codec.field_channels,
            own,
            condition=NUMBERS,
            views=kinds(codec)[context.floor]().num_views,
            told=num_inputs(config),
        )

    @property
    def of_grid(self) -> str | None:
        return "residuals of single steps" if bool(self.model.residuals.any()) else None

    def decide(self, h: Physics, past_BPNC: Tensor, noise: Noise, settings: SamplingConfig) -> Tensor:
        missing = max(0, PAST - h.frames)
        past = self._completed(self.places.of(past_BPNC)[:, missing:], h.floor, h.state[h.index] if missing else None)
        if not h.kept:
            self._begin(h, noise, settings)
        shape, drawn = self.model.network.noise_shape(len(past)), None
        kept = h.kept
        if shape[-1] and kept["drawn"]:
            tokens = torch.arange(math.prod(shape[1:-1]), device=past.device)
            normals = noise.normal(tokens, shape[-1], mask_step=_PLACES).view(shape)
            drawn = normals * on_grid(kept["spread"][:, None], normals)
        frame = self.model.frame(
            past,
            kept["condition"],
            kept["forecast"],
            kept["bounds"],
            corrected=kept["corrected"],
            factor=kept["share"],
            noise=drawn,
            known=kept["told"] and kept["told"].at(h.frames),
        )
        if kept["residuals"]:
            one = torch.zeros(1, dtype=torch.int64, device=past.device)
            # Two members each draw opposite residuals, so that these leave the mean where the floor has it.
            pairs, sign = replace(noise, members=noise.members // 2), 1 - 2 * (noise.members % 2)
            sums = pairs.normal(one, PATTERNS, mask_step=_RESIDUALS)[:, 0].to(frame.dtype)
            sums = sums * (sign * kept["residuals"])[:, None].to(frame.dtype)
            frame = frame + torch.tensordot(sums, self.model.residuals, 1)
        return self.places.tokens(frame).to(torch.promote_types(past_BPNC.dtype, torch.float32))

    @staticmethod
    def _completed(known: Tensor, floor: Floor, state: Any) -> Tensor:
        """Three frames, those before the known ones `[B, L, *x, c]` by the floor."""
        missing = PAST - known.shape[1]
        return known if not missing else torch.cat([floor.before(known[:, 0], state)[:, None]] * missing + [known], 1)

    def reliance(self, h: Physics) -> tuple[Tensor, Tensor]:
        """How much of the correction counts for each of the inferred rows `[R]`, and the misfit of known frames."""
        return self.model.reliance(
            h.windows, h.numbers, h.forecast(), first=h.floor.reads == 1, own=h.own, told=h.told_windows
        )

    def _begin(self, h: Physics, noise: Noise, settings: SamplingConfig) -> None:
        """What stays through a trajectory: shares, bounds, and the coefficients and numbers of members."""
        index = h.index
        share, misfit = (part[index] for part in self.reliance(h))
        spread = settings.temperature * self.model.factor(misfit, own=h.own)
        drawn = bool(spread.any())
        first_noise, one = replace(noise, frame=0), torch.zeros(1, dtype=torch.int64, device=index.device)

        def normals(count: int, purpose: int) -> Tensor:
            return first_noise.normal(one, count, mask_step=purpose)[:, 0] * spread[:, None]

        state, condition = h.state[index], h.numbers[index]
        if h.floor.num_draws and drawn:
            # A correction that counts takes the floor's error away, and its uncertainty with it.
            coefficients = normals(h.floor.num_draws, _COEFFICIENTS)
            state = h.floor.draw(state, coefficients * (1 - share)[:, None].to(coefficients.dtype))
        if self.model.config.member and drawn:
            condition = self.model.condition(condition, normals(self.model.config.member, _MEMBER).to(condition.dtype))
        h.kept |= {
            "share": share,
            "spread": spread,
            "drawn": drawn,
            "residuals": settings.temperature if bool(self.model.residuals.any()) else 0.0,
            "corrected": bool(share.any()),
            "bounds": tuple(bound[index] for bound in self.model.bounds(self._completed(h.observed, h.floor, h.state))),
            "condition": condition,
            "forecast": forecaster(h.floor, state),
            "told": None if h.told is None else h.told[index],
        }
