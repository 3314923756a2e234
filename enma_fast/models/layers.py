"""Blocks that the transformers and the tokenizer share.

Legend: B batch, L sequence, D width, H heads, K head dim, N tokens per frame, T frames.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..ops.rms_norm import rms_norm, rms_norm_ref

# Types of the fused norm; float64 is for tests.
FUSED = (torch.float32, torch.bfloat16)


def widened(x: Tensor) -> Tensor:
    """`x` in fp32, or unchanged in float64: the type of sums and tokens beside weights of any type."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class RMSNorm(nn.Module):
    """y = x / sqrt(mean(x^2) + eps) * weight, at least in fp32 inside."""

    def __init__(self, width: int, *, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() and x.requires_grad and x.dtype in FUSED:
            # Forward and backward take one pass each; sampling uses the plain form, whose bits are fixed.
            return rms_norm(x, self.weight, eps=self.eps)
        return rms_norm_ref(x, self.weight, eps=self.eps)


class SwiGLU(nn.Module):
    """W_down (silu(W_gate x) * W_up x), gate and up fused in one projection."""

    def __init__(self, width: int, ratio: float) -> None:
        super().__init__()
        hidden = int(width * ratio)
        self.gate_up = nn.Linear(width, 2 * hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)


class Rotary:
    """Rotation angles of tokens on a grid of places and at a frame number.

    Of the K/2 rotated pairs, half turn with the place (harmonics 1, 2, ... of each dimension: whole turns around a
    periodic domain, half turns otherwise), a quarter with the frame (geometric from 1 to 1/32 rad a frame), the rest
    not at all. Scores then depend on differences of place and frame only.
    """

    def __init__(self, token_grid: tuple[int, ...], periodic: tuple[bool, ...], head_dim: int) -> None:
        pairs = head_dim // 2
        dims = len(token_grid)
        per_dim = pairs // 2 // dims
        places = torch.stack(torch.meshgrid(*axes_of(token_grid), indexing="ij"), dim=-1).reshape(-1, dims)
        harmonics = torch.arange(1, per_dim + 1, dtype=torch.float64, device="cpu")
        turn = [2 * math.pi / n if p else math.pi / n for n, p in zip(token_grid, periodic, strict=True)]
        space = [places[:, i : i + 1] * turn[i] * harmonics for i in range(dims)]
        num_time = pairs // 4
        still = pairs - per_dim * dims - num_time
        num_tokens = math.prod(token_grid)
        self._space = torch.cat([*space, places.new_zeros(num_tokens, num_time + still)], dim=-1)
        self._time = places.new_zeros(pairs)
        self._time[per_dim * dims : per_dim * dims + num_time] = (
            32.0 ** -torch.linspace(0, 1, max(num_time, 1), device="cpu")[:num_time]
        )

    def tables(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines [T*N, K/2] (fp32) for frame numbers [T]."""
        angle_TNk = frames.double()[:, None, None] * self._time.to(frames.device) + self._space.to(frames.device)
        angle = angle_TNk.flatten(0, 1)
        return angle.cos().float(), angle.sin().float()


def rotate(x_BHLK: Tensor, cos_Lk: Tensor, sin_Lk: Tensor) -> Tensor:
    """Turn the pairs (x_k, x_{k+K/2}) by the angles of their place."""
    a, b = widened(x_BHLK).chunk(2, dim=-1)
    return torch.cat([a * cos_Lk - b * sin_Lk, a * sin_Lk + b * cos_Lk], dim=-1).to(x_BHLK.dtype)


def attention(q_BHLK: Tensor, k_BHSK: Tensor, v_BHSK: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(K) + mask) v; mask is additive, broadcast to [B, H, L, S].

    On the CPU plain matrix products beat the fused kernel forward and backward at head dims of 32 and a few hundred
    keys (docs/experiments.md), so SDPA serves GPUs only.
    """
    if q_BHLK.is_cuda:
        return F.scaled_dot_product_attention(q_BHLK, k_BHSK, v_BHSK, attn_mask=mask)
    scores = q_BHLK @ k_BHSK.transpose(-1, -2)
    scores = widened(scores) * q_BHLK.shape[-1] ** -0.5
    if mask is not None:
        scores = scores + mask
    return scores.softmax(-1).to(v_BHSK.dtype) @ v_BHSK


class Attention(nn.Module):
    """Multi-head self-attention with per-head RMS normalisation of queries and keys."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.head_dim = heads, width // heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.q_norm = RMSNorm(self.head_dim)
        self.k_norm = RMSNorm(self.head_dim)

    def project(self, x_BLD: Tensor, rotary: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values [B, H, L, K], normalised and rotated."""
        B, L, _ = x_BLD.shape
        q, k, v = self.qkv(x_BLD).view(B, L, 3, self.heads, self.head_dim).permute(2, 0, 3, 1, 4)
        q, k = self.q_norm(q), self.k_norm(k)
        if rotary is not None:
            q, k = rotate(q, *rotary), rotate(k, *rotary)
        return q, k, v

    def merge(self, x_BHLK: Tensor) -> Tensor:
        """Heads back to width, then the output projection."""
        return self.out(x_BHLK.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Pre-norm transformer block: x + attention(norm(x)), then x + swiglu(norm(x))."""

    def __init__(self, width: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm_1 = RMSNorm(width)
        self.attention = Attention(width, heads)
        self.norm_2 = RMSNorm(width)
        self.mlp = SwiGLU(width, mlp_ratio)

    def forward(self, x_BLD: Tensor, rotary: tuple[Tensor, Tensor] | None = None, mask: Tensor | None = None) -> Tensor:
        q, k, v = self.attention.project(self.norm_1(x_BLD), rotary)
        x_BLD = x_BLD + self.attention.merge(attention(q, k, v, mask))
        return x_BLD + self.mlp(self.norm_2(x_BLD))


class ScaleShift(nn.Module):
    """c' = anchor * (1 + gamma(c)) + beta(c), with gamma, beta from a rank-R bottleneck; identity at the start.

    NOVA's scaling-and-shift layer (baaivision/NOVA), which the paper's "Layer Norm Rank" very likely names.
    """

    def __init__(self, width: int, rank: int) -> None:
        super().__init__()
        self.down = nn.Linear(width, rank, bias=False)
        self.up = nn.Linear(rank, 2 * width)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, c_BND: Tensor, anchor_BND: Tensor) -> Tensor:
        gamma, beta = self.up(self.down(F.silu(c_BND))).chunk(2, dim=-1)
        return anchor_BND * (1 + gamma) + beta


def axes_of(grid: tuple[int, ...]) -> list[Tensor]:
    """Numbers 0, 1, ... of the points of each dimension (float64, on the CPU also where modules are made elsewhere).

    Arithmetic on the meta device, which checkpoints are checked on, would import the whole of torch.compile.
    """
    return [torch.arange(n, dtype=torch.float64, device="cpu") for n in grid]


def sincos(token_grid: tuple[int, ...], width: int) -> Tensor:
    """Fixed sine-cosine embeddings [N, width] of places on a grid, width shared evenly among the dimensions."""
    per_dim = width // len(token_grid) // 2
    frequency = 10_000.0 ** -(torch.arange(per_dim, dtype=torch.float64, device="cpu") / per_dim)
    parts = []
    for place in torch.meshgrid(*axes_of(token_grid), indexing="ij"):
        angle = place.reshape(-1, 1) * frequency
        parts += [angle.sin(), angle.cos()]
    table = torch.cat(parts, dim=-1).float()
    return F.pad(table, (0, width - table.shape[-1]))


def init_linear(module: nn.Module, *, depth: int) -> None:
    """Draw weights with std 1/sqrt(fan_in), those of output projections scaled down by sqrt(2 depth)."""
    for name, child in module.named_modules():
        if isinstance(child, nn.Linear):
            std = child.in_features**-0.5
            if name.endswith(("attention.out", "mlp.down")):
                std /= math.sqrt(2 * depth)
            nn.init.normal_(child.weight, std=std)
            if child.bias is not None:
                nn.init.zeros_(child.bias)


def exact(layer: nn.Linear, x: Tensor) -> Tensor:
    """Apply a linear layer in the precision of its weights, also under autocast."""
    kind = x.device.type
    if not (torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)):
        return layer(x)
    with torch.autocast(kind, enabled=False):
        return layer(x.to(layer.weight.dtype))


def weights_key(module: nn.Module) -> tuple[tuple[int, int], ...]:
    """A key that differs from an earlier one if a weight has been changed or replaced."""
    key, left = [], [module]
    # The same as `module.parameters()`, which takes twice as long because it names them.
    while left:
        part = left.pop()
        left += [child for child in part._modules.values() if child is not None]
        weights = [p for p in part._parameters.values() if p is not None]
        key += [(p.data_ptr(), 0 if p.is_inference() else p._version) for p in weights]
    return tuple(key)


def own_dtype(module: nn.Module) -> torch.dtype:
    """Dtype of a module's weights."""
    return next(module.parameters()).dtype
