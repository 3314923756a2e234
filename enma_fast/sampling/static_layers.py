"""Layers of the transformers for `static_step`: operators on static shapes, with queries apart from keys and values.

Legend: B rows, L rows of a transformer, M some of them, D width, H heads, K head dim.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from ..models.layers import Attention, RMSNorm, attention, rotate
from ..ops.rms_norm import rms_norm, sum_rms_norm

# Cosines and sines of rotary positions.
Rotary = tuple[Tensor, Tensor]


def norm_of(x: Tensor, norm: RMSNorm) -> Tensor:
    return rms_norm(x, norm.weight, eps=norm.eps)


def norm_of_sum(x: Tensor, residual: Tensor, norm: RMSNorm) -> tuple[Tensor, Tensor]:
    """``x + residual``, and its norm."""
    return sum_rms_norm(x, residual, norm.weight, eps=norm.eps)


def project(module: Attention, x_BLD: Tensor, rotary: Rotary | None) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values ``[B, L, H, K]``, normalised and rotated."""
    q, k, v = module.qkv(x_BLD).unflatten(-1, (3, module.heads, module.head_dim)).unbind(2)
    return rotated(norm_of(q, module.q_norm), rotary), rotated(norm_of(k, module.k_norm), rotary), v


def queries(module: Attention, x_BMD: Tensor, rotary: Rotary | None) -> Tensor:
    """Only the queries ``[B, M, H, K]``."""
    q = F.linear(x_BMD, module.qkv.weight[: x_BMD.shape[-1]]).unflatten(-1, (module.heads, module.head_dim))
    return rotated(norm_of(q, module.q_norm), rotary)


def keys_values(module: Attention, x_BLD: Tensor, rotary: Rotary | None) -> tuple[Tensor, Tensor]:
    """Only keys and values ``[B, L, H, K]``."""
    both = F.linear(x_BLD, module.qkv.weight[x_BLD.shape[-1] :])
    k, v = both.unflatten(-1, (2, module.heads, module.head_dim)).unbind(2)
    return rotated(norm_of(k, module.k_norm), rotary), v


def attend(q_BMHK: Tensor, k_BLHK: Tensor, v_BLHK: Tensor) -> Tensor:
    return attention(q_BMHK.transpose(1, 2), k_BLHK.transpose(1, 2), v_BLHK.transpose(1, 2))


def rotated(x_BLHK: Tensor, rotary: Rotary | None) -> Tensor:
    return x_BLHK if rotary is None else rotate(x_BLHK, *rotary)


def rotary_of(table: Tensor | None, rows: slice | Tensor) -> Rotary | None:
    """Cosines and sines ``[..., 1, K/2]`` for some rows of the masked transformer."""
    if table is None:
        return None
    if isinstance(rows, Tensor):
        return F.embedding(rows, table[0])[..., None, :], F.embedding(rows, table[1])[..., None, :]
    return table[0, rows, None], table[1, rows, None]


def gather(x_BLD: Tensor, rows_BM: Tensor | slice) -> Tensor:
    if isinstance(rows_BM, slice):
        return x_BLD[:, rows_BM]
    return x_BLD.gather(1, rows_BM[..., None].expand(-1, -1, x_BLD.shape[-1]))
