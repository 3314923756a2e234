"""The gate of a SwiGLU layer, in one pass: y = silu(gate) * up, where x = [gate; up] along its last dimension.

Legend: ``...`` any leading shape, W width of gate and up.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import EnmaError
from ._backend import by_dtype, choose, native, native_problem, recorded, register

OP = "swiglu"
DTYPES = {"native": (torch.float32, torch.bfloat16)}


@functools.cache
def candidates(device: torch.device, dtype: torch.dtype) -> dict[str, str | None]:
    """Implementations, best first, with the reason why one cannot serve."""
    return by_dtype({"native": native_problem(device), "reference": None}, dtype, DTYPES)


def swiglu(x: Tensor, *, backend: str | None = None) -> Tensor:
    """``silu(gate) * up`` of ``x = [gate; up]``. Differentiable once.

    Parameters
    ----------
    x
        ``[..., 2 W]``.
    backend
        An implementation by name; the best that can run by default.

    Returns
    -------
    Tensor
        ``[..., W]``.

    Raises
    ------
    EnmaError
        Names the argument, what was expected and what was given.
    """
    if x.ndim == 0 or x.shape[-1] % 2 or x.shape[-1] == 0:
        raise EnmaError(f"{OP}: x has shape {list(x.shape)}; expected [..., 2 W] with W at least 1")
    name = choose(OP, candidates(x.device, x.dtype), backend)
    if name == "reference":
        return swiglu_ref(x)
    rows = x.reshape(-1, x.shape[-1]).contiguous()
    y: Tensor = (_FORWARD if recorded(rows) else _run_forward)(rows)
    return y.view(*x.shape[:-1], x.shape[-1] // 2)


def swiglu_ref(x: Tensor) -> Tensor:
    """The formula of this module, as written."""
    gate, up = x.chunk(2, dim=-1)
    return F.silu(gate) * up


def _run_forward(x: Tensor) -> Tensor:
    y: Tensor = native().swiglu_forward(x, threads=torch.get_num_threads())
    return y


def _fake_forward(x: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], x.shape[1] // 2)


def _run_backward(grad_y: Tensor, x: Tensor) -> Tensor:
    grad_x: Tensor = native().swiglu_backward(grad_y, x, threads=torch.get_num_threads())
    return grad_x


def _fake_backward(grad_y: Tensor, x: Tensor) -> Tensor:
    return torch.empty_like(x)


_FORWARD = register("swiglu(Tensor x) -> Tensor", _run_forward, _fake_forward)
_BACKWARD = register("swiglu_backward(Tensor grad_y, Tensor x) -> Tensor", _run_backward, _fake_backward)


def _setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad_y: Tensor) -> Tensor:
    gradient: Tensor = _BACKWARD(grad_y.contiguous(), *ctx.saved_tensors)
    return gradient


torch.library.register_autograd("enma_fast::swiglu", _backward, setup_context=_setup_context)
