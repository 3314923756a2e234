"""A linear layer for inference whose weights are packed once, with the activation fused into the product.

    y = x W^T + b                                          activation None
    y = silu(x W^T + b)                                    activation "silu"
    y = silu(x W_gate^T + b_gate) (x W_up^T + b_up)        activation "swiglu", rows of W are gate, then up

Legend: ``...`` any leading shape, K inputs, N outputs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import EnmaError
from ._backend import choose, native, native_problem, register
from ._checks import dtype_name, expect

OP = "packed_linear"
ACTIVATIONS = (None, "silu", "swiglu")


@dataclass(frozen=True, kw_only=True, slots=True)
class PackedLinear:
    """Weights of one layer, as given and, where the extension serves them, as its kernels read them (a copy)."""

    weight: Tensor  # [N, K], with swiglu [2N, K]
    bias: Tensor | None
    activation: str | None
    packed: Tensor | None

    @property
    def outputs(self) -> int:
        """N."""
        return self.weight.shape[0] // (2 if self.activation == "swiglu" else 1)


def candidates(device: torch.device, dtype: torch.dtype) -> dict[str, str | None]:
    """Implementations, best first, with the reason why one cannot serve weights of this device and dtype."""
    return {"native": packing_problem(device, dtype), "reference": None}


def packing_problem(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why the extension cannot pack weights of this device and dtype."""
    if dtype not in (torch.float32, torch.bfloat16):
        return f"takes float32 and bfloat16 weights, these are {dtype_name(dtype)}"
    return native_problem(device)


def pack_linear(weight: Tensor, bias: Tensor | None = None, *, activation: str | None = None) -> PackedLinear:
    """Pack a layer for :func:`packed_linear`; pack again after its weights have changed.

    Parameters
    ----------
    weight
        ``[N, K]``; ``[2N, K]`` with ``swiglu``, rows of the gate first.
    bias
        One for each row, dtype of `weight`.
    activation
        None, ``silu`` or ``swiglu``.

    Raises
    ------
    EnmaError
        Names the argument, what was expected and what was given.
    """
    if activation not in ACTIVATIONS:
        raise EnmaError(f"{OP}: activation is {activation!r}; expected None, 'silu' or 'swiglu'")
    expect(OP, "weight", weight, shape=[None, None], dtype=(torch.float32, torch.bfloat16, torch.float64))
    parts = 2 if activation == "swiglu" else 1
    if 0 in weight.shape or weight.shape[0] % parts != 0:
        raise EnmaError(f"{OP}: weight has shape {list(weight.shape)}; expected [{parts} N, K] with N and K at least 1")
    if bias is not None:
        expect(OP, "bias", bias, shape=[weight.shape[0]], dtype=weight.dtype, device=weight.device)
    weight, bias = weight.detach(), None if bias is None else bias.detach()
    packed = None
    if candidates(weight.device, weight.dtype)["native"] is None:
        packed = native().pack_linear(weight.contiguous(), None if bias is None else bias.contiguous(), parts)
    return PackedLinear(weight=weight, bias=bias, activation=activation, packed=packed)


def packed_linear(x: Tensor, packed: PackedLinear, *, backend: str | None = None) -> Tensor:
    """Apply a packed layer.

    Parameters
    ----------
    x
        ``[..., K]`` in the dtype of the weights, or fp32 with bf16 weights. Sums are fp32; where the processor
        multiplies bf16 (AVX-512 BF16), bf16 weights meet inputs rounded to bf16.
    packed
        From :func:`pack_linear`.
    backend
        An implementation by name; the best that can run by default.

    Returns
    -------
    Tensor
        ``[..., N]``, dtype of `x`. Of the native implementation, a row's bits do not depend on the other rows.

    Raises
    ------
    EnmaError
        Names the argument, what was expected and what was given.
    """
    weight = packed.weight
    dtypes = (torch.bfloat16, torch.float32) if weight.dtype == torch.bfloat16 else (weight.dtype,)
    expect(OP, "x", x, dtype=dtypes, device=weight.device)
    if x.ndim == 0 or x.shape[-1] != weight.shape[1]:
        raise EnmaError(f"{OP}: x has shape {list(x.shape)}; expected [..., {weight.shape[1]}]")
    able = candidates(weight.device, weight.dtype)
    if able["native"] is None and packed.packed is None:
        able["native"] = "the weights were packed without the extension"
    elif able["native"] is None and x.requires_grad and torch.is_grad_enabled():
        able["native"] = "it has no backward, and x asks for a gradient"
    if choose(OP, able, backend) == "reference":
        return packed_linear_ref(x, packed)
    rows = x.reshape(-1, weight.shape[1])
    rows = rows if rows.stride(1) == 1 else rows.contiguous()
    bf16 = weight.dtype == torch.bfloat16
    y = _native(rows, packed.packed, packed.outputs, bf16, packed.activation or "")
    return y.reshape(*x.shape[:-1], packed.outputs)


def packed_linear_ref(x: Tensor, packed: PackedLinear) -> Tensor:
    """The formula of this module, as written, in the dtype of `x`."""
    y = F.linear(x, packed.weight.to(x.dtype), None if packed.bias is None else packed.bias.to(x.dtype))
    if packed.activation == "swiglu":
        gate, up = y.chunk(2, dim=-1)
        return F.silu(gate) * up
    return F.silu(y) if packed.activation == "silu" else y


def _run(x: Tensor, packed: Tensor, n: int, bf16: bool, activation: str) -> Tensor:
    return native().packed_linear(x, packed, n=n, bf16=bf16, activation=activation, threads=torch.get_num_threads())


def _fake(x: Tensor, packed: Tensor, n: int, bf16: bool, activation: str) -> Tensor:
    return x.new_empty((x.shape[0], n))


_native = register("packed_linear(Tensor x, Tensor packed, int n, bool bf16, str activation) -> Tensor", _run, _fake)
