"""x[b, tokens[b, m]] = z[b, m] and known[b, tokens[b, m]] = True, both in one launch."""

import torch
import triton
import triton.language as tl
from torch import Tensor

# Values that one program moves, at most BLOCK_C of them in a row.
BLOCK = 1024
MAX_BLOCK_C = 64


@triton.jit
def _update_tokens_kernel(
    p_x,
    p_known,
    p_tokens,
    p_z,
    N,
    M,
    C,
    s_xb,
    s_xn,
    s_xc,
    s_kb,
    s_kn,
    s_tb,
    s_tm,
    s_zb,
    s_zm,
    s_zc,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """x[b, tokens[b, m]] = z[b, m], known[b, tokens[b, m]] = True; tokens outside [0, N) are skipped."""
    i_b = tl.program_id(0).to(tl.int64)
    o_m = tl.program_id(1).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    b_token = tl.load(p_tokens + i_b * s_tb + o_m * s_tm, mask=o_m < M, other=-1).to(tl.int64)
    m_m = (b_token >= 0) & (b_token < N)
    b_token = tl.where(m_m, b_token, 0)
    tl.store(p_known + i_b * s_kb + b_token * s_kn, tl.full([BLOCK_M], 1, tl.uint8), mask=m_m)
    for i_c in range(0, C, BLOCK_C):
        o_c = (i_c + tl.arange(0, BLOCK_C)).to(tl.int64)
        m_mc = m_m[:, None] & (o_c < C)[None, :]
        b_z = tl.load(p_z + i_b * s_zb + o_m[:, None] * s_zm + o_c[None, :] * s_zc, mask=m_mc)
        tl.store(p_x + i_b * s_xb + b_token[:, None] * s_xn + o_c[None, :] * s_xc, b_z, mask=m_mc)


def launch_update_tokens(x: Tensor, known: Tensor, tokens: Tensor, z: Tensor) -> None:
    """Write `z` [B, M, C] at `tokens` [B, M] of `x` [B, N, C] and True at those of `known` [B, N]; any strides."""
    B, M, C = z.shape
    if B * M == 0:
        return
    block_c = min(triton.next_power_of_2(max(C, 1)), MAX_BLOCK_C)
    block_m = min(triton.next_power_of_2(M), BLOCK // block_c)
    # A bool is one byte; Triton's pointers to one-bit integers are an exception that is avoided here.
    bytes_known = known.view(torch.uint8)
    _update_tokens_kernel[(B, triton.cdiv(M, block_m))](
        x,
        bytes_known,
        tokens,
        z,
        x.shape[1],
        M,
        C,
        *x.stride(),
        *known.stride(),
        *tokens.stride(),
        *z.stride(),
        BLOCK_M=block_m,
        BLOCK_C=block_c,
        num_warps=1 if block_m * block_c <= 256 else 4,
    )
