"""Blocks that the transformers and the tokenizer share.

Legend: B batch, L sequence, D width, H heads, K head dim, N tokens per frame, T frames.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..ops import fused_in_training
from ..ops._backend import extension
from ..ops.recordings import CudaRecorder, Recordings
from ..ops.rms_norm import rms_norm, rms_norm_ref, sum_rms_norm, sum_rms_norm_ref
from ..ops.self_attention import Pair, self_attention, split_heads
from ..ops.swiglu import swiglu

# Hidden channels of the MLP of a block for each channel.
MLP_RATIO = 2

_T = TypeVar("_T")


class RMSNorm(nn.Module):
    """y = x / sqrt(mean(x^2) + eps) * weight, at least in fp32 inside."""

    def __init__(self, width: int, *, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        norm = rms_norm if fused_in_training(x) else rms_norm_ref
        return norm(x, self.weight, eps=self.eps)

    def of_sum(self, x: Tensor, added: Tensor) -> tuple[Tensor, Tensor]:
        """The sum in the type of `x`, and its norm."""
        norm = sum_rms_norm if fused_in_training(x) else sum_rms_norm_ref
        return norm(x, added.to(x.dtype), self.weight, eps=self.eps)


class SwiGLU(nn.Module):
    """W_down (silu(W_gate x) * W_up x), gate and up fused in one projection."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate_up = nn.Linear(width, 2 * hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.gate_up(x)
        return self.down(swiglu(y, backend=None if fused_in_training(y) else "reference"))


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


class Attention(nn.Module):
    """Multi-head self-attention with per-head RMS normalisation of queries and keys."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.head_dim = heads, width // heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.q_norm = RMSNorm(self.head_dim)
        self.k_norm = RMSNorm(self.head_dim)

    def forward(
        self,
        x_BLD: Tensor,
        rotary: Pair | None = None,
        *,
        frame: int | None = None,
        past: Pair | None = None,
        keep: bool = False,
    ) -> tuple[Tensor, Pair | None]:
        """Attend, tokens of a frame (by default all) to their own and earlier frames and to a past.

        Returns the result, and keys and values ``[B, H, P + L, K]`` if kept, to be the past of later calls.
        """
        qkv = self._projected(x_BLD)
        out_BLHK, kept = self_attention(
            qkv,
            self._weights(),
            frame=frame or max(1, x_BLD.shape[1]),
            eps=self.q_norm.eps,
            rotary=rotary,
            past=past,
            keep=keep,
            backend=None if fused_in_training(qkv) else "reference",
        )
        return self.out(out_BLHK.flatten(2)), kept

    def project(self, x_BLD: Tensor, rotary: Pair | None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values [B, H, L, K], normalised and rotated."""
        return split_heads(self._projected(x_BLD), self._weights(), eps=self.q_norm.eps, rotary=rotary)

    def merge(self, x_BHLK: Tensor) -> Tensor:
        """Heads back to width, then the output projection."""
        return self.out(x_BHLK.transpose(1, 2).flatten(2))

    def _projected(self, x_BLD: Tensor) -> Tensor:
        return self.qkv(x_BLD).unflatten(-1, (3, self.heads, self.head_dim))

    def _weights(self) -> Pair:
        return self.q_norm.weight, self.k_norm.weight


class Block(nn.Module):
    """Pre-norm transformer block: x + attention(norm(x)), then x + swiglu(norm(x))."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm_1 = RMSNorm(width)
        self.attention = Attention(width, heads)
        self.norm_2 = RMSNorm(width)
        self.mlp = SwiGLU(width, MLP_RATIO * width)

    def forward(self, x_BLD: Tensor, added_BLD: Tensor | None, rotary: Pair | None = None) -> tuple[Tensor, Tensor]:
        """From a sum, in two parts (the second may be absent), to the next: the norm that follows adds them up."""
        x_BLD, y_BLD = self.begin(x_BLD, added_BLD)
        return self.finish(x_BLD, self.attention(y_BLD, rotary)[0])

    def begin(self, x_BLD: Tensor, added_BLD: Tensor | None) -> tuple[Tensor, Tensor]:
        """The sum, and the input of attention."""
        return (x_BLD, self.norm_1(x_BLD)) if added_BLD is None else self.norm_1.of_sum(x_BLD, added_BLD)

    def finish(self, x_BLD: Tensor, attended_BLD: Tensor) -> tuple[Tensor, Tensor]:
        """The sum with what attention gave, and what is to be added to it."""
        x_BLD, y_BLD = self.norm_2.of_sum(x_BLD, attended_BLD)
        return x_BLD, self.mlp(y_BLD)


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


def pad_space(x: Tensor, amount: int, periodic: tuple[bool, ...]) -> Tensor:
    """Pad every space axis of ``[B, c, T, *x]`` on both sides: periodically, or with zeros at a wall."""
    if amount == 0:
        return x
    dims = len(periodic)
    for axis, is_periodic in enumerate(periodic):
        # F.pad counts axes from the last one.
        pad = [0, 0] * (dims - 1 - axis) + [amount, amount]
        if is_periodic:
            where = x.ndim - dims + axis
            n = x.shape[where]
            x = torch.cat([x.narrow(where, n - amount, amount), x, x.narrow(where, 0, amount)], dim=where)
        else:
            x = F.pad(x, pad)
    return x


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


def weights_key(module: nn.Module) -> Hashable:
    """A key that differs from an earlier one if a weight has been changed or replaced.

    Buffers are weights too.

    PyTorch counts changes of `p`, as by `p.copy_(...)` under `torch.no_grad()` or `load_state_dict`, and not those of
    `p.data`, nor any of a parameter that was made under `torch.inference_mode`: of that the sum is part of the key.
    """
    # Every forecast asks, of the tokenizer and of the dynamics.
    compiled = extension()
    return weights_key_ref(module) if compiled is None else compiled.weights_key(module)


def weights_key_ref(module: nn.Module) -> tuple[float, ...]:
    """Reference of :func:`weights_key`."""
    key: list[float] = []
    left: list[nn.Module | None] = [module]
    while left:
        part = left.pop()
        if part is None:
            continue
        left.extend(part._modules.values())
        for p in (*part._parameters.values(), *part._buffers.values()):
            if p is not None:
                key += (p.data_ptr(), p.double().sum().item() if p.is_inference() else p._version)
    return tuple(key)


class Prepared(dict[Hashable, tuple[Hashable, Any]]):
    """What has been prepared from a module's weights, with their key; a copy of the module prepares its own."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Prepared:
        return Prepared()

    def __reduce__(self) -> tuple[type[Prepared], tuple[()]]:
        return Prepared, ()


def prepared(
    module: nn.Module, name: Hashable, prepare: Callable[[], _T], *, renew: Callable[[_T], _T] | None = None
) -> _T:
    """What `prepare` returns for the weights that the module has now: made on first use and again after a change.

    With `renew` it is made of the last one after a change.
    """
    cache: Prepared = vars(module).setdefault("_prepared", Prepared())
    weights = weights_key(module)
    entry = cache.get(name)
    if entry is None or entry[0] != weights:
        entry = cache[name] = (weights, prepare() if entry is None or renew is None else renew(entry[1]))
    value: _T = entry[1]
    return value


def recordings_of(module: nn.Module, device: torch.device) -> Recordings | None:
    """CUDA graphs of a module's calls; None without a GPU, under autocast, and on another stream than its default."""
    if device.type != "cuda":
        return None
    # A recording keeps the arithmetic of its time, and its memory is of one stream.
    if torch.is_autocast_enabled("cuda") or torch.cuda.current_stream(device) != torch.cuda.default_stream(device):
        return None
    kind = ("recordings", torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32)
    return prepared(module, kind, lambda: Recordings(CudaRecorder(device)))


def own_dtype(module: nn.Module) -> torch.dtype:
    """Dtype of a module's weights."""
    return next(module.parameters()).dtype
