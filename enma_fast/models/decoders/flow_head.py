"""Condition + noise -> token: the flow-matching head (paper 3.1.2).

Path x_r = (1 - r) x_0 + r x_1 from noise x_0 ~ N(0, I) to data x_1, velocity target x_1 - x_0, flow time r in [0, 1].
The velocity network is an MLP with adaptive layer norm (internals after LTH14/mar, which the paper leaves open).

Legend: ``...`` any leading shape (batch, frames, tokens, draws), C token channels, D width of the condition.
"""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...config import FlowConfig
from ...ops.flow_head import flow_head_ref, velocity
from ...ops.flow_plan import BlockWeights, FlowPlan, HeadWeights
from ...ops.self_attention import widened
from ..layers import exact
from ..schedule import flow_times

# Of the scale, in the weight of the likelihood of the residual target (Seitzer et al., 2022).
LIKELIHOOD_POWER = 0.5


class ModulatedBlock(nn.Module):
    """x + gate * W2 silu(W1 (norm(x) * (1 + scale) + shift)); evaluated by :func:`enma_fast.ops.flow_head.velocity`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.modulation = nn.Linear(width, 3 * width)
        self.up = nn.Linear(width, width)
        self.down = nn.Linear(width, width)

    def weights(self) -> BlockWeights:
        """The parameters as the operator takes them; no copy."""
        return BlockWeights(**_weights_of(self, "modulation", "up", "down"))


class VelocityHead(nn.Module):
    """v(x_r, condition, r)."""

    def __init__(self, config: FlowConfig, channels: int, condition_width: int) -> None:
        super().__init__()
        w = config.width
        self.time_features = config.time_features
        self.inward = nn.Linear(channels, w)
        self.condition = nn.Linear(condition_width, w)
        self.time = nn.Sequential(nn.Linear(config.time_features, w), nn.SiLU(), nn.Linear(w, w))
        blocks = [ModulatedBlock(w) for _ in range(config.layers)]
        self.blocks = nn.ModuleList(blocks)
        self.modulation = nn.Linear(w, 2 * w)
        self.outward = nn.Linear(w, channels)
        for layer in [*(b.modulation for b in blocks), self.modulation, self.outward]:
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, c: Tensor, r: Tensor) -> Tensor:
        """Velocity ``[..., C]`` at ``x [..., C]``; conditions ``c [..., D]`` and times ``r [..., 1]`` broadcast."""
        return velocity(x, F.silu(self.condition(c) + self.time(self.features(r).to(c.dtype))), self.weights())

    def weights(self) -> HeadWeights:
        """The parameters as the operator takes them; no copy."""
        blocks = tuple(block.weights() for block in cast("list[ModulatedBlock]", self.blocks))
        return HeadWeights(**_weights_of(self, "condition", "inward", "modulation", "outward"), blocks=blocks)

    def plan(self, *, steps: int) -> FlowPlan:
        """Weights and schedule for the operator; the embeddings of the evaluation times are computed here, once."""
        times = flow_times(steps)
        weight = self.inward.weight
        r_R1 = torch.tensor([r for r, _ in times], device=weight.device, dtype=torch.float32)[:, None]
        # In float64, from times in fp32, then rounded to the type of the weights: so machines and libenma agree.
        inward, outward = cast("list[nn.Linear]", [self.time[0], self.time[2]])
        hidden = F.silu(F.linear(self.features(r_R1.double()), inward.weight.double(), inward.bias.double()))
        return FlowPlan(
            weights=self.weights(),
            time_RW=F.linear(hidden, outward.weight.double(), outward.bias.double()).to(weight.dtype),
            moves=tuple(h for _, h in times),
            moves_per_step=2,
        )

    def features(self, r: Tensor) -> Tensor:
        """Sinusoids of 1000 r, ``[..., time_features]`` in fp32, or in float64 of times in float64."""
        half = self.time_features // 2
        dtype = torch.promote_types(r.dtype, torch.float32)
        frequency = torch.exp(-math.log(10_000.0) * torch.arange(half, device=r.device, dtype=dtype) / half)
        angle = 1000.0 * r.to(dtype) * frequency
        return torch.cat([angle.cos(), angle.sin()], dim=-1)


def _weights_of(module: nn.Module, *layers: str) -> dict[str, Any]:
    """Weight and bias of linear layers, by names such as `up_weight`."""
    return {f"{layer}_{kind}": getattr(getattr(module, layer), kind) for layer in layers for kind in ("weight", "bias")}


class FlowHead(nn.Module):
    """Distribution of one token given its condition: training loss and sampler."""

    def __init__(self, config: FlowConfig, channels: int, condition_width: int) -> None:
        super().__init__()
        self.channels = channels
        self.velocity = VelocityHead(config, channels, condition_width)
        self.moments = nn.Linear(condition_width, 2 * channels) if config.target == "residual" else None
        if self.moments is not None:
            nn.init.zeros_(self.moments.weight)
            nn.init.zeros_(self.moments.bias)

    def mean_and_scale(self, c: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and scale ``[..., C]`` of the tokens in fp32 or float64 (``residual`` target only)."""
        assert self.moments is not None
        mean, raw = widened(exact(self.moments, c)).chunk(2, dim=-1)
        # Smoothly bounded below: a token is never claimed to better than 1e-3 of its standard deviation.
        return mean, F.softplus(raw + math.log(math.e - 1)) + 1e-3

    def token_loss(self, z: Tensor, c: Tensor, noise: Tensor, r: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss per token ``[...]``, and a dict of per-token terms to log (detached).

        ``z`` are true tokens ``[..., C]`` and ``c`` conditions ``[..., D]``; ``noise [..., draws, C]`` is standard
        normal and ``r [..., draws, 1]`` are flow times.
        """
        target, terms = z.float(), {}
        likelihood = torch.zeros((), device=z.device)
        if self.moments is not None:
            mean, scale = self.mean_and_scale(c)
            error = target - mean
            nll = 0.5 * (error / scale).square() + scale.log()
            likelihood = (scale.detach() ** (2 * LIKELIHOOD_POWER) * nll).mean(-1)
            target = (error / scale).detach()
            terms["error"] = error.detach().square().mean(-1)
            terms["scale"] = scale.detach().square().mean(-1)
        x_1 = target[..., None, :]
        x_r = (1 - r) * noise + r * x_1
        v = self.velocity(x_r.to(c.dtype), c[..., None, :], r)
        flow = (v.float() - (x_1 - noise)).square().mean((-1, -2))
        terms["flow"] = flow.detach()
        return flow + likelihood, terms

    def sample(self, c: Tensor, noise: Tensor, *, steps: int) -> Tensor:
        """Integrate the flow from ``noise [..., C]`` under conditions ``c [..., D]``; returns tokens ``[..., C]``.

        Each step costs two evaluations of the velocity (midpoint rule).
        """
        y = flow_head_ref(
            c,
            noise.to(torch.promote_types(c.dtype, torch.float32)),
            plan=self.velocity.plan(steps=steps),
        )
        if self.moments is not None:
            mean, scale = self.mean_and_scale(c)
            y = mean + scale * y
        return y
