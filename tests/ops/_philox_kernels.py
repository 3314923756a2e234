"""Kernels around the device functions of kernels/philox_normal.py, for words of any choice; imports Triton."""

import torch
import triton
import triton.language as tl
from enma_fast.kernels.philox_normal import _pair, _uniform
from torch import Tensor

BLOCK = 256


@triton.jit
def _words(p_counter, p_key, p_out, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    m = i < n
    c0 = tl.load(p_counter + 4 * i, mask=m, other=0).to(tl.uint32)
    c1 = tl.load(p_counter + 4 * i + 1, mask=m, other=0).to(tl.uint32)
    c2 = tl.load(p_counter + 4 * i + 2, mask=m, other=0).to(tl.uint32)
    c3 = tl.load(p_counter + 4 * i + 3, mask=m, other=0).to(tl.uint32)
    key = tl.load(p_key + 2 * i, mask=m, other=0) | (tl.load(p_key + 2 * i + 1, mask=m, other=0) << 32)
    w0, w1, w2, w3 = tl.philox(key, c0, c1, c2, c3)
    tl.store(p_out + 4 * i, w0.to(tl.int64), mask=m)
    tl.store(p_out + 4 * i + 1, w1.to(tl.int64), mask=m)
    tl.store(p_out + 4 * i + 2, w2.to(tl.int64), mask=m)
    tl.store(p_out + 4 * i + 3, w3.to(tl.int64), mask=m)


@triton.jit
def _values(p_word, p_uniform, p_normal, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    m = i < n
    w0 = tl.load(p_word + 2 * i, mask=m, other=0).to(tl.uint32)
    w1 = tl.load(p_word + 2 * i + 1, mask=m, other=0).to(tl.uint32)
    first, second = _pair(w0, w1)
    tl.store(p_uniform + 2 * i, _uniform(w0), mask=m)
    tl.store(p_uniform + 2 * i + 1, _uniform(w1), mask=m)
    tl.store(p_normal + 2 * i, first, mask=m)
    tl.store(p_normal + 2 * i + 1, second, mask=m)


def words(counter: Tensor, key: Tensor) -> Tensor:
    """Words ``[n, 4]`` of int64 counters ``[n, 4]`` and keys ``[n, 2]``."""
    out = torch.empty_like(counter)
    _words[(triton.cdiv(len(out), BLOCK),)](counter, key, out, len(out), BLOCK=BLOCK)
    return out


def values(word: Tensor) -> tuple[Tensor, Tensor]:
    """Uniforms (float64) and normals (float32) ``[n, 2]`` of int64 words ``[n, 2]``."""
    uniform, normal = torch.empty_like(word, dtype=torch.float64), torch.empty_like(word, dtype=torch.float32)
    _values[(triton.cdiv(len(word), BLOCK),)](word, uniform, normal, len(word), BLOCK=BLOCK)
    return uniform, normal
