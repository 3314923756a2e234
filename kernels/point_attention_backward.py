"""Cross-attention with a geometry bias, gradients: logits are computed again, sums have a fixed order, no atomics.

w_qp  = exp(s_qp - lse_q)                          s_qp as in the forward pass
dv_p  = sum_q w_qp dout_q
ds_qp = w_qp (dout_q . v_p - delta_q)              delta_q = dout_q . out_q
dq_q  = sum_p ds_qp k_p / sqrt(K),   dk_p = sum_q ds_qp q_q / sqrt(K),   dm_h = -sum_qp ds_qp dist
dx_q  = -m_h sum_p ds_qp d(dist)/dx_q        and the opposite sign, summed over q, for x_p
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .point_attention import (
    LOG2_E,
    MOST_REGISTERS,
    apart,
    block_of,
    coordinate,
    distances,
    dot,
    geometry,
    rows,
    strides,
)

# Rows that a program owns, rows that it runs over, warps, stages, by bytes of an element and the wider of BLOCK_K and
# BLOCK_V. With a second stage (2, 64) spills on sm_80 by Triton 3.6.
CONFIGS = {
    (2, 16): (64, 32, 4, 2),
    (2, 32): (64, 32, 4, 2),
    (2, 64): (64, 32, 8, 1),
    (2, 128): (32, 32, 8, 1),
    (4, 16): (32, 16, 4, 1),
    (4, 32): (32, 32, 4, 1),
    (4, 64): (32, 32, 8, 1),
    (4, 128): (16, 16, 8, 1),
}


@triton.jit
def inverse(distance):
    """1 / distance; at distance zero 0."""
    return tl.where(distance > 0, 1.0 / tl.where(distance > 0, distance, 1.0), 0.0)


@triton.jit
def backward_queries(
    p_q, p_k, p_v, p_at, p_places, p_slopes, p_valid, p_out_grad, p_lse, p_delta, p_q_grad, p_slopes_grad, p_at_grad,
    stride_qb, stride_qh, stride_qr, stride_kb, stride_kh, stride_kr, stride_vb, stride_vh, stride_vr,
    stride_at, stride_places, H, Q, P, scale, period_0, period_1, period_2,
    K: tl.constexpr, V: tl.constexpr, DIMS: tl.constexpr, PERIODIC: tl.constexpr,
    HAS_VALID: tl.constexpr, WITH_PLACES: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_P: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """dq, the part of dm and dx_q of BLOCK_Q queries of one head: formulas of this module."""
    program = tl.program_id(0).to(tl.int64)
    blocks_q = tl.cdiv(Q, BLOCK_Q)
    BLOCKS_V: tl.constexpr = (V + BLOCK_V - 1) // BLOCK_V
    i_q = program % blocks_q
    i_bh = program // blocks_q
    i_b = i_bh // H
    i_h = i_bh % H

    o_q = i_q * BLOCK_Q + tl.arange(0, BLOCK_Q)
    o_k = tl.arange(0, BLOCK_K)
    o_v = tl.arange(0, BLOCK_V)
    m_q = o_q < Q
    b_q = rows(p_q + i_b * stride_qb + i_h * stride_qh, stride_qr, o_q, m_q, o_k, K)
    p_out_grad += i_bh * Q * V
    b_out_grad = rows(p_out_grad, V, o_q, m_q, o_v, V)
    lse = tl.load(p_lse + i_bh * Q + o_q, mask=m_q, other=0.0) * LOG2_E
    delta = tl.load(p_delta + i_bh * Q + o_q, mask=m_q, other=0.0)
    p_at += i_b * stride_at
    p_places += i_b * stride_places
    at_0 = coordinate(p_at, o_q, m_q, 0, DIMS)
    at_1 = coordinate(p_at, o_q, m_q, 1, DIMS)
    at_2 = coordinate(p_at, o_q, m_q, 2, DIMS)
    slope = tl.load(p_slopes + i_h)
    p_k += i_b * stride_kb + i_h * stride_kh
    p_v += i_b * stride_vb + i_h * stride_vh

    q_grad = tl.zeros([BLOCK_Q, BLOCK_K], dtype=tl.float32)
    slopes_grad = tl.zeros([BLOCK_Q], dtype=tl.float32)
    grad_0 = tl.zeros([BLOCK_Q], dtype=tl.float32)
    grad_1 = tl.zeros([BLOCK_Q], dtype=tl.float32)
    grad_2 = tl.zeros([BLOCK_Q], dtype=tl.float32)
    for start in range(0, P, BLOCK_P):
        o_p = start + tl.arange(0, BLOCK_P).to(tl.int64)
        m_p = o_p < P
        if HAS_VALID:
            m_p = m_p & (tl.load(p_valid + i_b * P + o_p, mask=m_p, other=0) != 0)
        b_k = rows(p_k, stride_kr, o_p, m_p, o_k, K)
        x_0 = coordinate(p_places, o_p, m_p, 0, DIMS)
        x_1 = coordinate(p_places, o_p, m_p, 1, DIMS)
        x_2 = coordinate(p_places, o_p, m_p, 2, DIMS)
        distance = distances(
            at_0, at_1, at_2, x_0, x_1, x_2, period_0, period_1, period_2, DIMS, PERIODIC
        )  # fmt: skip
        logits = dot(b_q, tl.trans(b_k)) * (scale * LOG2_E) - slope * LOG2_E * distance
        weights = tl.where(m_q[:, None] & m_p[None, :], tl.exp2(logits - lse[:, None]), 0.0)
        b_v = rows(p_v, stride_vr, o_p, m_p, o_v, V)
        weights_grad = dot(b_out_grad, tl.trans(b_v))
        for i_v in range(1, BLOCKS_V):
            b_v = rows(p_v, stride_vr, o_p, m_p, i_v * BLOCK_V + o_v, V)
            b_more = rows(p_out_grad, V, o_q, m_q, i_v * BLOCK_V + o_v, V)
            weights_grad += dot(b_more, tl.trans(b_v))
        grad = weights * (weights_grad - delta[:, None])
        q_grad += dot(grad.to(b_k.dtype), b_k)
        slopes_grad -= tl.sum(grad * distance, 1)
        if WITH_PLACES:
            pull = -slope * grad * inverse(distance)
            grad_0 += tl.sum(pull * apart(at_0, x_0, period_0, PERIODIC % 2 == 1), 1)
            if DIMS > 1:
                grad_1 += tl.sum(pull * apart(at_1, x_1, period_1, (PERIODIC // 2) % 2 == 1), 1)
            if DIMS > 2:
                grad_2 += tl.sum(pull * apart(at_2, x_2, period_2, PERIODIC // 4 == 1), 1)

    p_q_grad += i_bh * Q * K
    m_out = m_q[:, None] & (o_k < K)[None, :]
    tl.store(
        p_q_grad + o_q[:, None] * K + o_k[None, :], (q_grad * scale).to(p_q_grad.dtype.element_ty), mask=m_out
    )  # fmt: skip
    tl.store(p_slopes_grad + i_bh * blocks_q + i_q, tl.sum(slopes_grad, 0))
    if WITH_PLACES:
        p_at_grad += i_bh * Q * DIMS
        tl.store(p_at_grad + o_q * DIMS, grad_0, mask=m_q)
        if DIMS > 1:
            tl.store(p_at_grad + o_q * DIMS + 1, grad_1, mask=m_q)
        if DIMS > 2:
            tl.store(p_at_grad + o_q * DIMS + 2, grad_2, mask=m_q)


@triton.jit
def backward_points(
    p_q, p_k, p_v, p_at, p_places, p_slopes, p_valid, p_out_grad, p_lse, p_delta, p_k_grad, p_v_grad, p_places_grad,
    stride_qb, stride_qh, stride_qr, stride_kb, stride_kh, stride_kr, stride_vb, stride_vh, stride_vr,
    stride_at, stride_places, H, Q, P, scale, period_0, period_1, period_2, first_v,
    K: tl.constexpr, V: tl.constexpr, DIMS: tl.constexpr, PERIODIC: tl.constexpr,
    HAS_VALID: tl.constexpr, WITH_PLACES: tl.constexpr, WITH_KEYS: tl.constexpr, BLOCK_Q: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """Block `first_v` of dv, and if WITH_KEYS dk and dx_p, of BLOCK_P points of one head: formulas of this module."""
    program = tl.program_id(0).to(tl.int64)
    blocks_p = tl.cdiv(P, BLOCK_P)
    BLOCKS_V: tl.constexpr = (V + BLOCK_V - 1) // BLOCK_V
    i_p = program % blocks_p
    i_bh = program // blocks_p
    i_b = i_bh // H
    i_h = i_bh % H

    o_p = i_p * BLOCK_P + tl.arange(0, BLOCK_P)
    o_k = tl.arange(0, BLOCK_K)
    o_v = first_v * BLOCK_V + tl.arange(0, BLOCK_V)
    m_p = o_p < P
    m_valid = m_p
    if HAS_VALID:
        m_valid = m_p & (tl.load(p_valid + i_b * P + o_p, mask=m_p, other=0) != 0)
    p_v += i_b * stride_vb + i_h * stride_vh
    b_k = rows(p_k + i_b * stride_kb + i_h * stride_kh, stride_kr, o_p, m_valid, o_k, K)
    p_at += i_b * stride_at
    p_places += i_b * stride_places
    x_0 = coordinate(p_places, o_p, m_valid, 0, DIMS)
    x_1 = coordinate(p_places, o_p, m_valid, 1, DIMS)
    x_2 = coordinate(p_places, o_p, m_valid, 2, DIMS)
    slope = tl.load(p_slopes + i_h)
    p_q += i_b * stride_qb + i_h * stride_qh
    p_out_grad += i_bh * Q * V

    k_grad = tl.zeros([BLOCK_P, BLOCK_K], dtype=tl.float32)
    v_grad = tl.zeros([BLOCK_P, BLOCK_V], dtype=tl.float32)
    grad_0 = tl.zeros([BLOCK_P], dtype=tl.float32)
    grad_1 = tl.zeros([BLOCK_P], dtype=tl.float32)
    grad_2 = tl.zeros([BLOCK_P], dtype=tl.float32)
    for start in range(0, Q, BLOCK_Q):
        o_q = start + tl.arange(0, BLOCK_Q).to(tl.int64)
        m_q = o_q < Q
        b_q = rows(p_q, stride_qr, o_q, m_q, o_k, K)
        lse = tl.load(p_lse + i_bh * Q + o_q, mask=m_q, other=0.0) * LOG2_E
        at_0 = coordinate(p_at, o_q, m_q, 0, DIMS)
        at_1 = coordinate(p_at, o_q, m_q, 1, DIMS)
        at_2 = coordinate(p_at, o_q, m_q, 2, DIMS)
        distance = distances(
            x_0, x_1, x_2, at_0, at_1, at_2, period_0, period_1, period_2, DIMS, PERIODIC
        )  # fmt: skip
        logits = dot(b_k, tl.trans(b_q)) * (scale * LOG2_E) - slope * LOG2_E * distance
        weights = tl.where(m_valid[:, None] & m_q[None, :], tl.exp2(logits - lse[None, :]), 0.0)
        b_out_grad = rows(p_out_grad, V, o_q, m_q, o_v, V)
        v_grad += dot(weights.to(b_out_grad.dtype), b_out_grad)
        if WITH_KEYS:
            delta = tl.load(p_delta + i_bh * Q + o_q, mask=m_q, other=0.0)
            weights_grad = dot(rows(p_v, stride_vr, o_p, m_valid, o_v, V), tl.trans(b_out_grad))
            for i_v in range(1, BLOCKS_V):
                b_v = rows(p_v, stride_vr, o_p, m_valid, i_v * BLOCK_V + o_v, V)
                weights_grad += dot(b_v, tl.trans(rows(p_out_grad, V, o_q, m_q, i_v * BLOCK_V + o_v, V)))
            grad = weights * (weights_grad - delta[None, :])
            k_grad += dot(grad.to(b_q.dtype), b_q)
            if WITH_PLACES:
                pull = -slope * grad * inverse(distance)
                grad_0 += tl.sum(pull * apart(x_0, at_0, period_0, PERIODIC % 2 == 1), 1)
                if DIMS > 1:
                    grad_1 += tl.sum(pull * apart(x_1, at_1, period_1, (PERIODIC // 2) % 2 == 1), 1)
                if DIMS > 2:
                    grad_2 += tl.sum(pull * apart(x_2, at_2, period_2, PERIODIC // 4 == 1), 1)

    p_v_grad += i_bh * P * V
    m_out = m_p[:, None] & (o_v < V)[None, :]
    tl.store(p_v_grad + o_p[:, None] * V + o_v[None, :], v_grad.to(p_v_grad.dtype.element_ty), mask=m_out)
    if WITH_KEYS:
        p_k_grad += i_bh * P * K
        m_out = m_p[:, None] & (o_k < K)[None, :]
        tl.store(
            p_k_grad + o_p[:, None] * K + o_k[None, :], (k_grad * scale).to(p_k_grad.dtype.element_ty), mask=m_out
        )  # fmt: skip
        if WITH_PLACES:
            p_places_grad += i_bh * P * DIMS
            tl.store(p_places_grad + o_p * DIMS, grad_0, mask=m_p)
            if DIMS > 1:
                tl.store(p_places_grad + o_p * DIMS + 1, grad_1, mask=m_p)
            if DIMS > 2:
                tl.store(p_places_grad + o_p * DIMS + 2, grad_2, mask=m_p)


def query_blocks(q: Tensor, v: Tensor) -> int:
    """Parts in which dm arrives."""
    own = CONFIGS[q.element_size(), max(block_of(q.shape[-1]), block_of(v.shape[-1]))][0]
    return int(triton.cdiv(q.shape[-2], own))


def launch_backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    query_points: Tensor,
    points: Tensor,
    slopes: Tensor,
    valid: Tensor | None,
    periods: tuple[float, ...],
    out_grad: Tensor,
    lse: Tensor,
    delta: Tensor,
    q_grad: Tensor,
    k_grad: Tensor,
    v_grad: Tensor,
    slopes_grad: Tensor,
    query_points_grad: Tensor | None,
    points_grad: Tensor | None,
) -> None:
    """Fill the gradients, all contiguous.

    `slopes_grad` is ``[B, H, query_blocks(q, v)]`` and those of coordinates ``[B, H, rows, d]``, fp32: the caller sums.
    """
    batches, heads, num_queries, head_dim = q.shape
    num_points, value_dim = v.shape[-2:]
    block_k, block_v = block_of(head_dim), block_of(value_dim)
    own, others, warps, stages = CONFIGS[q.element_size(), max(block_k, block_v)]
    rings, mask = geometry(periods)
    inputs = (q, k, v, query_points, points, slopes, slopes if valid is None else valid, out_grad, lse, delta)
    sizes = (
        *strides(q, k, v), query_points.stride(0) if query_points.ndim == 3 else 0,
        points.stride(0) if points.ndim == 3 else 0, heads, num_queries, num_points, head_dim**-0.5, *rings,
    )  # fmt: skip
    # The widest products of fp32 take all registers anyway, and spill where the assembler is told so.
    most = MOST_REGISTERS if q.element_size() == 2 or max(block_k, block_v) < 128 else None
    options = {
        "K": head_dim, "V": value_dim, "DIMS": len(periods), "PERIODIC": mask,
        "HAS_VALID": valid is not None, "WITH_PLACES": points_grad is not None, "BLOCK_K": block_k,
        "BLOCK_V": block_v, "num_warps": warps, "num_stages": stages, "maxnreg": most,
    }  # fmt: skip
    if q_grad.numel():
        grid = (triton.cdiv(num_queries, own) * batches * heads,)
        at_grad = slopes_grad if query_points_grad is None else query_points_grad
        backward_queries[grid](
            *inputs, q_grad, slopes_grad, at_grad, *sizes, BLOCK_Q=own, BLOCK_P=others, **options
        )  # fmt: skip
    if k_grad.numel():
        grid = (triton.cdiv(num_points, own) * batches * heads,)
        places_grad = slopes_grad if points_grad is None else points_grad
        for i_v in range(triton.cdiv(value_dim, block_v)):
            backward_points[grid](
                *inputs, k_grad, v_grad, places_grad, *sizes, i_v, WITH_KEYS=i_v == 0, BLOCK_Q=others, BLOCK_P=own,
                **options,
            )  # fmt: skip
