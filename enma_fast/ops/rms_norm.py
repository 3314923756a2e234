"""RMS normalisation of rows, alone or of a sum, in one pass (paper 3.1.2).

    h = x + residual                                           rounded to the dtype of x; h = x without a residual
    y = h / sqrt(mean(h^2) + eps) * weight

Legend: ``...`` any leading shape, R rows (its product), W width.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..errors import EnmaError
from ._backend import by_dtype, choose, kernel, native, native_problem, recorded, register, triton_problem
from ._checks import expect

OP = "rms_norm"
MAX_TRITON_WIDTH = 4096
DTYPES = {
    "triton": (torch.float32, torch.bfloat16, torch.float16),
    "native": (torch.float32,),
}


@functools.cache
def candidates(device: torch.device, dtype: torch.dtype) -> dict[str, str | None]:
    """Implementations, best first, with the reason why one cannot serve."""
    problems = {"triton": triton_problem(device), "native": native_problem(device), "reference": None}
    return by_dtype(problems, dtype, DTYPES)


def rms_norm(x: Tensor, weight: Tensor, *, eps: float, backend: str | None = None) -> Tensor:
    """Normalise each row, ``x / sqrt(mean(x^2) + eps) * weight``; fp32 inside (float64 for float64).

    The bits of a row do not depend on the other rows or their number. Differentiable once, in `x` and `weight`.

    Parameters
    ----------
    x
        ``[..., W]``.
    weight
        ``[W]``, dtype of `x` or float32.
    eps
        Added to the mean square.
    backend
        An implementation by name; the best that can run by default.

    Returns
    -------
    Tensor
        Shape and dtype of `x`.

    Raises
    ------
    EnmaError
        Names the argument, what was expected and what was given.
    """
    name = _choose(x, weight, backend)
    if name == "reference":
        return rms_norm_ref(x, weight, eps=eps)
    return _normalised(x, weight, None, eps, name)[0].view(x.shape)


def sum_rms_norm(
    x: Tensor, residual: Tensor, weight: Tensor, *, eps: float, backend: str | None = None
) -> tuple[Tensor, Tensor]:
    """``h = x + residual`` and its norm, as :func:`rms_norm`; the norm is of h as returned.

    Parameters
    ----------
    x, residual
        ``[..., W]``, of one shape and dtype.
    weight, eps, backend
        As :func:`rms_norm`.

    Returns
    -------
    tuple of Tensor
        h and y, shape and dtype of `x`.

    Raises
    ------
    EnmaError
        Names the argument, what was expected and what was given.
    """
    expect(OP, "residual", residual, shape=x.shape, dtype=x.dtype, device=x.device)
    name = _choose(x, weight, backend)
    if name == "reference":
        return sum_rms_norm_ref(x, residual, weight, eps=eps)
    y, h = _normalised(x, weight, residual, eps, name)
    return h.view(x.shape), y.view(x.shape)


def rms_norm_ref(x: Tensor, weight: Tensor, *, eps: float) -> Tensor:
    """The formula of this module, as written."""
    wide = torch.promote_types(x.dtype, torch.float32)
    n = x.to(wide)
    y = n * torch.rsqrt(n.square().mean(-1, keepdim=True) + eps) * weight.to(wide)
    return y.to(x.dtype)


def sum_rms_norm_ref(x: Tensor, residual: Tensor, weight: Tensor, *, eps: float) -> tuple[Tensor, Tensor]:
    """The formula of this module, as written."""
    h = x + residual
    return h, rms_norm_ref(h, weight, eps=eps)


def _choose(x: Tensor, weight: Tensor, backend: str | None) -> str:
    """The implementation for these arguments, which are checked."""
    if x.ndim == 0 or x.shape[-1] == 0:
        raise EnmaError(f"{OP}: x has shape {list(x.shape)}; expected [..., W] with W at least 1")
    expect(
        OP, "weight", weight, shape=[x.shape[-1]], dtype=tuple(dict.fromkeys((x.dtype, torch.float32))), device=x.device
    )
    problems = candidates(x.device, x.dtype)
    if x.shape[-1] > MAX_TRITON_WIDTH and problems["triton"] is None:
        problems = problems | {"triton": f"takes rows of at most {MAX_TRITON_WIDTH}, not {x.shape[-1]}"}
    return choose(OP, problems, backend)


def _normalised(x: Tensor, weight: Tensor, residual: Tensor | None, eps: float, name: str) -> tuple[Tensor, Tensor]:
    """y and h, as rows."""
    rows, weight, others = _rows(x), weight.contiguous(), None if residual is None else _rows(residual)
    if recorded(x, weight, residual):
        y, h, _ = _FORWARD(rows, weight, others, eps, name)
    else:
        # The dispatcher and its autograd layer cost as much as a few rows do.
        y, h, _ = _FORWARDS[name](rows, weight, others, eps, False)
    return y, h


def _rows(x: Tensor) -> Tensor:
    """`x` as ``[R, W]``, without a copy where strides allow it."""
    rows = x if x.ndim == 2 else x.reshape(-1, x.shape[-1])
    return rows if rows.stride(1) == 1 or rows.shape[1] == 1 else rows.contiguous()


def _triton_forward(
    x: Tensor, weight: Tensor, residual: Tensor | None, eps: float, keep: bool
) -> tuple[Tensor, Tensor, Tensor]:
    R, W = x.shape
    y, h = x.new_empty(R, W), x.new_empty(0 if residual is None else R, W)
    rstd = x.new_empty(R if keep else 0, dtype=torch.float32)
    with torch.cuda.device_of(x):
        kernel(OP).launch_forward(x, weight, residual, eps=eps, y=y, h=h, rstd=rstd)
    return y, h, rstd


def _triton_backward(
    grad_y: Tensor, grad_h: Tensor | None, x: Tensor, rstd: Tensor, weight: Tensor, want_x: bool, want_weight: bool
) -> tuple[Tensor, Tensor]:
    grad_x, grad_weight = _gradients(x, weight, want_x, want_weight)
    with torch.cuda.device_of(x):
        kernel(OP).launch_backward(grad_y, x, rstd, weight, grad_x=grad_x, grad_weight=grad_weight)
    if want_x and grad_h is not None:
        grad_x += grad_h
    return grad_x, grad_weight


def _native_backward(*arguments: Any) -> tuple[Tensor, Tensor]:
    grad_x, grad_weight = native().rms_norm_backward(*arguments, threads=torch.get_num_threads())
    return grad_x, grad_weight.to(arguments[4].dtype)


# y; h, empty without a residual; the reciprocal root mean square of each row, empty unless kept.
_FORWARDS: dict[str, Callable[..., tuple[Tensor, Tensor, Tensor]]] = {
    "triton": _triton_forward,
    "native": lambda *arguments: native().rms_norm_forward(*arguments, threads=torch.get_num_threads()),
}
_BACKWARDS: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {
    "triton": _triton_backward,
    "native": _native_backward,
}


def _gradients(x: Tensor, weight: Tensor, want_x: bool, want_weight: bool) -> tuple[Tensor, Tensor]:
    """Where the gradients go; empty where not wanted."""
    R, W = x.shape
    return x.new_empty(R if want_x else 0, W), weight.new_empty(W if want_weight else 0)


def _run_forward(
    x: Tensor, weight: Tensor, residual: Tensor | None, eps: float, name: str
) -> tuple[Tensor, Tensor, Tensor]:
    return _FORWARDS[name](x, weight, residual, eps, True)


def _fake_forward(
    x: Tensor, weight: Tensor, residual: Tensor | None, eps: float, name: str
) -> tuple[Tensor, Tensor, Tensor]:
    R, W = x.shape
    h = x.new_empty(0 if residual is None else R, W)
    return x.new_empty(x.shape), h, x.new_empty(R, dtype=torch.float32)


def _run_backward(*arguments: Any) -> tuple[Tensor, Tensor]:
    *given, name = arguments
    return _BACKWARDS[name](*given)


def _fake_backward(
    grad_y: Tensor, grad_h: Tensor | None, x: Tensor, rstd: Tensor, *others: Any
) -> tuple[Tensor, Tensor]:
    return _gradients(x, *others[:-1])


_FORWARD = register(
    "rms_norm(Tensor x, Tensor weight, Tensor? residual, float eps, str backend) -> (Tensor, Tensor, Tensor)",
    _run_forward,
    _fake_forward,
)
_BACKWARD = register(
    "rms_norm_backward(Tensor grad_y, Tensor? grad_h, Tensor x, Tensor rstd, Tensor weight, bool want_x,"
    " bool want_weight, str backend) -> (Tensor, Tensor)",
    _run_backward,
    _fake_backward,
)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, weight, residual, _, ctx.name = inputs
    _, h, rstd = output
    ctx.mark_non_differentiable(*((h, rstd) if residual is None else (rstd,)))
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x if residual is None else h, rstd, weight)


def _backward(ctx: Any, grad_y: Tensor | None, grad_h: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    x, rstd, weight = ctx.saved_tensors
    want_x, want_weight, want_residual = ctx.needs_input_grad[:3]
    grad_y = torch.zeros_like(x) if grad_y is None else grad_y.contiguous()
    grad_h = None if grad_h is None else grad_h.contiguous()
    grad, grad_weight = _BACKWARD(grad_y, grad_h, x, rstd, weight, want_x or want_residual, want_weight, ctx.name)
    wanted = zip((grad, grad_weight, grad), (want_x, want_weight, want_residual), strict=True)
    return (*(gradient if want else None for gradient, want in wanted), None, None)


torch.library.register_autograd("enma_fast::rms_norm", _backward, setup_context=_setup_context)
