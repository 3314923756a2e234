"""Scattered points <-> regular grid by cross-attention with a geometry bias (paper D.1.1, table 12).

Legend: B batch, T frames, P observed points, Q query points, X grid points (flattened), H heads, K head dim, c physical
channels, F grid features, d space dimensions.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...config import CodecConfig, PointsConfig
from ...errors import EnmaError
from ...ops.point_attention import point_attention
from ..layers import axes_of

# Channels of values, and of a head; bands of the encoding, and the binary logarithm of the last one's frequency.
HIDDEN, HEAD_DIM, FREQUENCIES, MAX_LOG2_FREQUENCY = 16, 4, 12, 4.0
# Blocks that refine features on the grid, their heads, the channels of a head, and slices.
REFINE_DEPTH, REFINE_HEADS, REFINE_HEAD_DIM, SLICES = 2, 4, 4, 16


def grid_points(config: CodecConfig) -> Tensor:
    """Coordinates ``[X, d]`` of the grid: x_j = j L / n around a ring, and j L / (n - 1) between walls."""
    axes = [places * spacing for places, spacing in zip(axes_of(config.grid), config.spacings, strict=True)]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).reshape(-1, config.dims).float()


class PointEncoding(nn.Module):
    """Sines and cosines of coordinates scaled to [-1, 1], bands pi 2^linspace(0, max, n) per dimension (NeRF)."""

    bands: Tensor
    lengths: Tensor

    def __init__(self, lengths: tuple[float, ...]) -> None:
        super().__init__()
        bands = math.pi * 2.0 ** torch.linspace(0.0, MAX_LOG2_FREQUENCY, FREQUENCIES, device="cpu")
        self.register_buffer("bands", bands, persistent=False)
        self.register_buffer("lengths", torch.tensor(lengths), persistent=False)
        self.features = 2 * FREQUENCIES * len(lengths)

    def forward(self, x_Pd: Tensor) -> Tensor:
        """``[..., P, features]``."""
        angle = (2 * x_Pd / self.lengths - 1)[..., None] * self.bands
        return torch.cat([angle.sin(), angle.cos()], dim=-1).flatten(-2)


class PhysicsAttention(nn.Module):
    """Transolver block: points are pooled to a few slices, slices attend to each other, points read them back."""

    def __init__(self, width: int) -> None:
        super().__init__()
        inner = REFINE_HEADS * REFINE_HEAD_DIM
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.values = nn.Linear(width, inner)
        self.assign = nn.Linear(REFINE_HEAD_DIM, SLICES)
        self.temperature = nn.Parameter(torch.full((REFINE_HEADS, 1, 1), 0.5))
        self.qkv = nn.Linear(REFINE_HEAD_DIM, 3 * REFINE_HEAD_DIM, bias=False)
        self.out = nn.Linear(inner, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x_BXF: Tensor) -> Tensor:
        B, X, _ = x_BXF.shape
        v_BHXK = self.values(self.norm_1(x_BXF)).view(B, X, REFINE_HEADS, REFINE_HEAD_DIM).transpose(1, 2)
        weight_BHXS = (self.assign(v_BHXK) / self.temperature.clamp(0.1, 5.0)).softmax(-1)
        share = weight_BHXS.sum(2)[..., None] + 1e-5
        slices_BHSK = weight_BHXS.transpose(-1, -2) @ v_BHXK / share
        q, k, v = self.qkv(slices_BHSK).chunk(3, dim=-1)
        slices_BHSK = (q @ k.transpose(-1, -2) * REFINE_HEAD_DIM**-0.5).softmax(-1) @ v
        x_BXF = x_BXF + self.out((weight_BHXS @ slices_BHSK).transpose(1, 2).flatten(2))
        return x_BXF + self.mlp(self.norm_2(x_BXF))


class Interpolation(nn.Module):
    """Observed points to the tokenizer's grid, and grid features to any query points."""

    regular: Tensor

    def __init__(self, config: PointsConfig) -> None:
        super().__init__()
        opts = config.interpolation
        if len(opts.slopes) != opts.heads:
            raise EnmaError(f"interpolation.slopes has {len(opts.slopes)} entries; heads is {opts.heads}")
        if min(opts.slopes) <= 0:
            raise EnmaError(f"interpolation.slopes is {opts.slopes}; every entry must be above 0")
        self.config, self.options = config, opts
        self.periods = tuple(n if p else None for n, p in zip(config.lengths, config.periodic, strict=True))
        num_points, inner = math.prod(config.grid), opts.heads * HEAD_DIM
        self.encoding = PointEncoding(config.lengths)
        regular = grid_points(config)
        self.register_buffer("regular", regular, persistent=False)
        self.grid = nn.Parameter(regular.clone())
        self.latents = nn.Parameter(nn.init.normal_(torch.empty(num_points, HIDDEN), std=HIDDEN**-0.5))
        # Per head and direction; softplus keeps m_h >= 0, so that near points always weigh more than far ones.
        raw = torch.tensor([math.log(math.expm1(m)) for m in opts.slopes])
        self.slopes_in = nn.Parameter(raw.clone())
        self.slopes_out = nn.Parameter(raw.clone())
        self.lift = nn.Linear(config.field_channels, HIDDEN)
        self.in_q, self.in_k = nn.Linear(HIDDEN, inner), nn.Linear(self.encoding.features, inner)
        self.in_v, self.in_out = nn.Linear(HIDDEN, inner), nn.Linear(inner, opts.features)
        self.refine = nn.ModuleList([PhysicsAttention(opts.features) for _ in range(REFINE_DEPTH)])
        self.out_q, self.out_k = nn.Linear(self.encoding.features, inner), nn.Linear(opts.features, inner)
        self.out_v, self.out_out = nn.Linear(opts.features, opts.features), nn.Linear(opts.features, HIDDEN)
        self.project = nn.Sequential(nn.GELU(), nn.Linear(HIDDEN, config.field_channels))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.options.heads, -1)).transpose(-2, -3)

    def to_grid(self, u_BTPc: Tensor, points: Tensor | None, valid: Tensor | None) -> Tensor:
        """Grid features ``[B, T, *grid, F]`` of values at ``points`` ([P, d] or [B, P, d]; None: the regular grid).

        Frames that have points of their own, [B, T, P, d] with ``valid`` [B, T, P], are so many trajectories of one.
        """
        if points is not None and points.ndim == 4:
            seen = None if valid is None else valid.flatten(0, 1)
            return self.to_grid(u_BTPc.flatten(0, 1)[:, None], points.flatten(0, 1), seen).view(
                *u_BTPc.shape[:2], *self.config.grid, -1
            )
        if points is None:
            if tuple(u_BTPc.shape[2:-1]) != self.config.grid:
                raise EnmaError(f"field has the grid {tuple(u_BTPc.shape[2:-1])}; {self.config.grid} is expected")
            u_BTPc, points = u_BTPc.flatten(2, -2), self.regular
        if u_BTPc.shape[2] != points.shape[-2]:
            raise EnmaError(f"field has {u_BTPc.shape[2]} points; points has {points.shape[-2]} rows")
        B, T = u_BTPc.shape[:2]
        k = self._heads(self.in_k(self.encoding(points)))
        q = self._heads(self.in_q(self.latents))
        # The weights depend on places only, so all frames share them: T joins the value dimension.
        v_BTPHK = self.in_v(self.lift(u_BTPc)).unflatten(-1, (self.options.heads, -1))
        v = v_BTPHK.permute(0, 3, 2, 1, 4).flatten(3)
        out = point_attention(
            q.expand(B, *q.shape[-3:]),
            k.expand(B, *k.shape[-3:]),
            v,
            query_points=self.grid,
            points=points,
            slopes=F.softplus(self.slopes_in),
            periods=self.periods,
            valid=valid,
        )
        x_BTXF = self.in_out(out.unflatten(-1, (T, -1)).permute(0, 3, 2, 1, 4).flatten(3))
        x = x_BTXF.flatten(0, 1)
        for block in self.refine:
            x = block(x)
        return x.view(B, T, *self.config.grid, -1)

    def to_points(self, x: Tensor, query: Tensor | None) -> Tensor:
        """Values ``[B, T, Q, c]`` of grid features ``[B, T, *grid, F]`` at query points (None: on the grid itself)."""
        B, T = x.shape[:2]
        x_bXF = x.flatten(0, 1).flatten(1, -2)
        where = self.regular if query is None else query
        q = self._heads(self.out_q(self.encoding(where)))
        if q.ndim == 4:
            q = q.repeat_interleave(T, dim=0)
            where = where.repeat_interleave(T, dim=0)
        out = point_attention(
            q.expand(B * T, *q.shape[-3:]),
            self._heads(self.out_k(x_bXF)),
            self._heads(self.out_v(x_bXF)),
            query_points=where,
            points=self.grid,
            slopes=F.softplus(self.slopes_out),
            periods=self.periods,
        )
        y = self.project(self.out_out(out.transpose(1, 2).flatten(2))).view(B, T, -1, self.config.field_channels)
        return y if query is not None else y.view(B, T, *self.config.grid, -1)
