"""Mask steps and the flow-matching head: the paper's decoder (paper 3.1.2).

A frame is decided a few tokens at a time, in random order. Each token is carried from noise to data by the flow of its
condition, which the masked transformer reads off the context and the tokens that are known.

Legend: B batch x members, N tokens per frame, M tokens decided in a mask step, C token channels, D width.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from ...config import FlowConfig, ModelConfig, SamplingConfig
from ...ops.flow_head import flow_head, load_
from ...ops.flow_plan import FlowPlan
from ...ops.frame_rows import mask_steps, read
from ...ops.rms_norm import rms_norm
from ..masked_transformer import MaskedTransformer
from ..schedule import mask_schedule
from .decoder import Decoder, Draws, Noise, StaticDecision, StaticFrame
from .flow_head import FlowHead


class FlowDecoder(FlowHead, Decoder):
    """The masked transformer, which decoders share, in mask steps, and a flow-matching head."""

    def __init__(self, config: ModelConfig, own: FlowConfig, trunk: MaskedTransformer | None) -> None:
        assert trunk is not None
        super().__init__(own, config.token_channels, config.context.transformer.width)
        # In a list it is no part of this module, and is trained and stored once.
        self._trunk = [trunk]

    def decide(self, h: Tensor, past_BPNC: Tensor, noise: Noise, settings: SamplingConfig) -> Tensor:
        (B, N), C = h.shape[:2], self.channels
        order_BN = noise.order(N)
        # Tokens are fp32 with bf16 weights, and float64 with float64 weights.
        wide = torch.promote_types(h.dtype, torch.float32)
        x_BNC = torch.zeros(B, N, C, dtype=wide, device=h.device)
        known_BN = torch.zeros(B, N, dtype=torch.bool, device=h.device)
        done = 0
        for step, count in enumerate(mask_schedule(N, min(settings.mask_steps, N))):
            tokens_BM = order_BN[:, done : done + count]
            c_BND = self._trunk[0](h, x_BNC.to(h.dtype), known_BN)
            c_BMD = c_BND.gather(1, tokens_BM[..., None].expand(-1, -1, c_BND.shape[-1]))
            noise_BMC = settings.temperature * noise.normal(tokens_BM, C, mask_step=step)
            z_BMC = self.sample(c_BMD, noise_BMC, steps=settings.flow_steps)
            x_BNC = x_BNC.scatter(1, tokens_BM[..., None].expand(-1, -1, C), z_BMC)
            known_BN = known_BN.scatter(1, tokens_BM, True)
            done += count
        return x_BNC

    def loss(self, h: Tensor, past_BPNC: Tensor, z_BNC: Tensor, draws: Draws) -> tuple[Tensor, dict[str, Tensor]]:
        """Flow loss of the masked tokens."""
        per_token, parts = self.token_loss(z_BNC, self._trunk[0](h, z_BNC, draws.known), draws.noise, draws.times)
        weight = (~draws.known).to(per_token.dtype)
        terms = {name: (part * weight).sum() / draws.masked for name, part in parts.items()}
        return (per_token * weight).sum() / draws.masked, terms

    def linear_mean(self) -> tuple[Tensor, Tensor] | None:
        if self.moments is None:
            return None
        return self.moments.weight[: self.channels], self.moments.bias[: self.channels]

    def last_weights(self) -> list[nn.Parameter]:
        return list(self.velocity.parameters())

    def last_loss(self, h: Tensor, z_BNC: Tensor, draws: Draws) -> Tensor:
        """Flow loss of the masked tokens; velocities of the others are not computed."""
        with torch.no_grad():
            condition = self._trunk[0](h, z_BNC, draws.known)
        masked = ~draws.known
        # The likelihood of the mean and scale is part of it, and has no gradient here.
        per_token, _ = self.token_loss(z_BNC[masked], condition[masked], draws.noise[masked], draws.times[masked])
        return per_token.sum() / draws.masked

    @torch.inference_mode()
    def static(self, frame: StaticFrame, settings: SamplingConfig, original: Decoder) -> StaticDecision:
        schedule = mask_schedule(frame.num_tokens, min(settings.mask_steps, frame.num_tokens))
        steps = mask_steps(schedule, frame.device)

        def planned(original: FlowDecoder) -> FlowPlan:
            # Embeddings of the evaluation times are computed from the original weights.
            plan = self.velocity.plan(steps=settings.flow_steps)
            time_RW = original.velocity.plan(steps=settings.flow_steps).time_RW
            return dataclasses.replace(plan, time_RW=time_RW.to(plan.time_RW.dtype))

        assert isinstance(original, FlowDecoder)
        plan = planned(original)
        moments, (weight, eps) = self.moments, frame.norm

        def decide(frame: StaticFrame) -> None:
            order_BN, noises = frame.ordered_noise(steps, settings.temperature)
            frame.begin_frame(None, None)
            done = 0
            for count, noise_BMC in zip(steps.counts, noises, strict=True):
                tokens_BM = order_BN[:, done : done + count]
                c_BMD = rms_norm(frame.conditions(tokens_BM), weight, eps=eps)
                z_BMC = flow_head(c_BMD, noise_BMC, plan=plan)
                if moments is not None:
                    z_BMC = read(c_BMD, moments.weight, moments.bias, y_BMC=z_BMC)
                done += count
                frame.put(z_BMC, tokens_BM, last=done == frame.num_tokens)

        return StaticDecision(decide, lambda original: load_(plan, planned(original)))
