"""Residual, normalisation and adaptive modulation of rows in one pass (paper 3.1.2).

    h = x + gate * residual                                    rounded to the dtype of x; h = x without a residual
    n = (h - mean(h)) / sqrt(var(h) + eps)                     kind "layer"
    n = h / sqrt(mean(h^2) + eps)                              kind "rms"
    y = n * weight * (1 + scale) + shift

Legend: ``...`` any leading shape, R rows (its product), W width.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import EnmaError
from ._backend import choose, kernel, native, native_problem, register, triton_problem
from ._checks import dtype_name, expect

OP = "modulated_norm"
KINDS = ("layer", "rms")
EPS = 1e-6
MAX_TRITON_WIDTH = 4096
DTYPES = {
    "triton": (torch.float32, torch.bfloat16, torch.float16),
    "native": (torch.float32, torch.bfloat16),
}


def candidates(device: torch.device, dtype: torch.dtype) -> dict[str, str | None]:
    """Implementations, best first, with the reason why one cannot serve."""
    return dict(_candidates(device, dtype))


@functools.cache
def _candidates(device: torch.device, dtype: torch.dtype) -> dict[str, str | None]:
    problems: dict[str, str | None] = {"triton": triton_problem(device), "native": native_problem(device)}
    for name, dtypes in DTYPES.items():
        if problems[name] is None and dtype not in dtypes:
            problems[name] = f"takes {', '.join(map(dtype_name, dtypes))}, not {dtype_name(dtype)}"
    return problems | {"reference": None}


def modulated_norm(
    x: Tensor,
    *,
    kind: str = "layer",
    weight: Tensor | None = None,
    shift: Tensor | None = None,
    scale: Tensor | None = None,
    residual: Tensor | None = None,
    gate: Tensor | None = None,
    eps: float = EPS,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Add a gated residual, normalise each row, scale and shift it; fp32 inside (float64 for float64).

    ``h = x + gate * residual``, ``y = norm(h) * weight * (1 + scale) + shift``; the norm is of h as returned. The bits
    of a row do not depend on the other rows or their number. Differentiable once, in every tensor.

    Parameters
    ----------
    x
        ``[..., W]``.
    kind
        ``layer`` or ``rms``.
    weight
        ``[W]``, dtype of `x` or float32; 1 by default.
    shift, scale, gate
        Any shape that broadcasts to that of `x`; one row and row-wise cost no copy. 0, 0 and 1 by default.
    residual
        Shape of `x`.
    eps
        Added to the mean square, so in squared units of `x`.
    backend
        An implementation by name; the best that can run by default.

    Returns
    -------
    Tensor or (Tensor, Tensor)
        y, or (h, y) with a residual; shape and dtype of `x`.

    Raises
    ------
    EnmaError
        Names the argument, what was expected and what was given.
    """
    shape, dtype, device = x.shape, x.dtype, x.device
    if kind not in KINDS:
        raise EnmaError(f"{OP}: kind is {kind!r}; expected one of {', '.join(KINDS)}")
    if not shape or shape[-1] == 0:
        raise EnmaError(f"{OP}: x has shape {list(shape)}; expected [..., W] with W at least 1")
    if gate is not None and residual is None:
        raise EnmaError(f"{OP}: gate is given without the residual that it multiplies")
    if weight is not None:
        expect(OP, "weight", weight, shape=[shape[-1]], dtype=(dtype, torch.float32), device=device)
    for name, rows in (("shift", shift), ("scale", scale), ("residual", residual), ("gate", gate)):
        if rows is not None and (rows.dtype is not dtype or rows.device != device or rows.shape != shape):
            _expect_rows(name, rows, x)
    problems = _candidates(device, dtype)
    if shape[-1] > MAX_TRITON_WIDTH and problems["triton"] is None:
        problems = problems | {"triton": f"takes rows of at most {MAX_TRITON_WIDTH}, not {shape[-1]}"}
    name = choose(OP, problems, backend)
    if name == "reference":
        return modulated_norm_ref(
            x, kind=kind, weight=weight, shift=shift, scale=scale, residual=residual, gate=gate, eps=eps
        )
    inputs = (
        _rows(x, shape),
        None if weight is None else weight.contiguous(),
        _rows(shift, shape),
        _rows(scale, shape),
        _rows(residual, shape),
        _rows(gate, shape),
    )
    if torch.compiler.is_compiling() or (torch.is_grad_enabled() and _any_needs_gradient(inputs)):
        y, h, _ = _FORWARD(*inputs, kind, eps, name)
    else:
        # The dispatcher and its autograd layer cost as much as a few rows do.
        y, h, _ = _FORWARDS[name](*inputs, kind, eps, False)
    if len(shape) != 2:
        y = y.view(shape)
        h = h if residual is None else h.view(shape)
    return y if residual is None else (h, y)


def modulated_norm_ref(
    x: Tensor,
    *,
    kind: str = "layer",
    weight: Tensor | None = None,
    shift: Tensor | None = None,
    scale: Tensor | None = None,
    residual: Tensor | None = None,
    gate: Tensor | None = None,
    eps: float = EPS,
) -> Tensor | tuple[Tensor, Tensor]:
    """The formula of this module, as written."""
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    h = x
    if residual is not None:
        added = residual.to(wide) if gate is None else gate.to(wide) * residual.to(wide)
        h = (x.to(wide) + added).to(x.dtype)
    n = h.to(wide)
    if kind == "layer":
        n = n - n.mean(-1, keepdim=True)
    y = n * torch.rsqrt(n.square().mean(-1, keepdim=True) + eps)
    if weight is not None:
        y = y * weight.to(wide)
    if scale is not None:
        y = y * (1 + scale.to(wide))
    if shift is not None:
        y = y + shift.to(wide)
    y = y.to(x.dtype)
    return y if residual is None else (h, y)


def _expect_rows(name: str, rows: Tensor, x: Tensor) -> None:
    expect(OP, name, rows, shape=x.shape if name == "residual" else None, dtype=x.dtype, device=x.device)
    pairs = zip(reversed(rows.shape), reversed(x.shape), strict=False)
    if not 0 < rows.ndim <= x.ndim or any(a not in (1, b) for a, b in pairs):
        raise EnmaError(f"{OP}: {name} has shape {list(rows.shape)}; expected one that broadcasts to {list(x.shape)}")


def _rows(rows: Tensor | None, shape: Sequence[int]) -> Tensor | None:
    """`rows` as ``[R, W]`` or ``[1, W]``, without a copy where strides allow it."""
    if rows is None:
        return None
    W = shape[-1]
    if rows.shape != shape:
        rows = rows.expand(*rows.shape[:-1], W) if rows.numel() == rows.shape[-1] else rows.expand(shape)
    if rows.ndim != 2:
        rows = rows.reshape(-1, W)
    return rows if rows.stride(1) == 1 or W == 1 else rows.contiguous()


def _any_needs_gradient(tensors: Sequence[Tensor | None]) -> bool:
    return any(tensor is not None and tensor.requires_grad for tensor in tensors)


def _triton_forward(
    x: Tensor,
    weight: Tensor | None,
    shift: Tensor | None,
    scale: Tensor | None,
    residual: Tensor | None,
    gate: Tensor | None,
    kind: str,
    eps: float,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    y, h, stats = _outputs(x, residual, keep=keep)
    kernel("modulated_norm").launch_forward(
        x, weight, shift, scale, residual, gate, rms=kind == "rms", eps=eps, y=y, h=h, stats=stats
    )
    return y, h, stats


def _triton_backward(*arguments: Any) -> tuple[Tensor, ...]:
    *tensors, kind, _ = arguments
    out = _gradients(*arguments)
    kernel("modulated_norm_backward").launch_backward(*tensors, rms=kind == "rms", **out)
    return tuple(out.values())


def _native_forward(*arguments: Any) -> Any:
    *tensors, kind, eps, keep = arguments
    return native().modulated_norm_forward(*tensors, kind == "rms", eps, keep)


def _native_backward(*arguments: Any) -> tuple[Tensor, ...]:
    *tensors, kind, _ = arguments
    out = _gradients(*arguments)
    native().modulated_norm_backward(*tensors, kind == "rms", *out.values())
    return tuple(out.values())


_FORWARDS: dict[str, Callable[..., tuple[Tensor, Tensor, Tensor]]] = {
    "triton": _triton_forward,
    "native": _native_forward,
}
_BACKWARDS: dict[str, Callable[..., tuple[Tensor, ...]]] = {"triton": _triton_backward, "native": _native_backward}


def _outputs(x: Tensor, residual: Tensor | None, *, keep: bool) -> tuple[Tensor, Tensor, Tensor]:
    """y ``[R, W]``; h, empty without a residual; mean and reciprocal deviation ``[2, R]``, empty unless kept."""
    R, W = x.shape
    y = x.new_empty(R, W)
    h = x.new_empty(0 if residual is None else R, W)
    return y, h, x.new_empty(2, R if keep else 0, dtype=torch.float32)


def _gradients(
    grad_y: Tensor,
    grad_h: Tensor | None,
    h: Tensor,
    stats: Tensor,
    weight: Tensor | None,
    scale: Tensor | None,
    residual: Tensor | None,
    gate: Tensor | None,
    kind: str,
    wanted: str,
) -> dict[str, Tensor]:
    """Where the gradients go, by name; empty where not wanted. `shift` means the sum over rows."""
    R, W = h.shape
    rows = {
        "x": R,
        "weight": 1,
        "shift": 1,
        "scale": 0 if scale is None else scale.shape[0],
        "residual": R,
        "gate": 0 if gate is None else gate.shape[0],
    }
    return {
        f"grad_{name}": h.new_empty(
            count if name in wanted.split() else 0,
            W,
            dtype=weight.dtype if name == "weight" and weight is not None else h.dtype,
        )
        for name, count in rows.items()
    }


def _run_forward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    *given, name = arguments
    return _FORWARDS[name](*given, True)


def _fake_forward(x: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    return _outputs(x, arguments[3], keep=True)


def _run_backward(*arguments: Any) -> tuple[Tensor, ...]:
    *given, name = arguments
    return _BACKWARDS[name](*given)


def _fake_backward(*arguments: Any) -> tuple[Tensor, ...]:
    return tuple(_gradients(*arguments[:-1]).values())


_FORWARD = register(
    "modulated_norm(Tensor x, Tensor? weight, Tensor? shift, Tensor? scale, Tensor? residual, Tensor? gate, str kind,"
    " float eps, str backend) -> (Tensor, Tensor, Tensor)",
    _run_forward,
    _fake_forward,
)
_BACKWARD = register(
    "modulated_norm_backward(Tensor grad_y, Tensor? grad_h, Tensor h, Tensor stats, Tensor? weight, Tensor? scale,"
    " Tensor? residual, Tensor? gate, str kind, str wanted, str backend)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _run_backward,
    _fake_backward,
)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, weight, shift, scale, residual, gate, kind, _, name = inputs
    _, h, stats = output
    ctx.mark_non_differentiable(stats)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x if residual is None else h, stats, weight, scale, None if gate is None else residual, gate)
    ctx.shift_rows = 0 if shift is None else shift.shape[0]
    ctx.kind, ctx.name = kind, name


def _backward(ctx: Any, grad_y: Tensor | None, grad_h: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    h, stats, weight, scale, residual, gate = ctx.saved_tensors
    needs = dict(zip(("x", "weight", "shift", "scale", "residual", "gate"), ctx.needs_input_grad, strict=False))
    grad_y = torch.zeros_like(h) if grad_y is None else grad_y.contiguous()
    # The gradient of a row-wise shift is that of y, that of a residual without a gate is that of x.
    shift_is_y = ctx.shift_rows == h.shape[0]
    wanted = {name for name, need in needs.items() if need}
    if needs["residual"] and gate is None:
        wanted = (wanted | {"x"}) - {"residual"}
    if shift_is_y:
        wanted -= {"shift"}
    names = " ".join(name for name in needs if name in wanted)
    out = _BACKWARD(
        grad_y,
        # Without a residual h is no result: its gradient, where the caller has one, is empty.
        None if grad_h is None or grad_h.shape != h.shape else grad_h.contiguous(),
        h,
        stats,
        weight,
        scale,
        residual,
        gate,
        ctx.kind,
        names,
        ctx.name,
    )
    found = dict(zip(needs, out, strict=True))
    if shift_is_y:
        found["shift"] = grad_y
    if gate is None:
        found["residual"] = found["x"]
    if needs["weight"]:
        found["weight"] = found["weight"].view(-1)
    return (*(found[name] if need else None for name, need in needs.items()), None, None, None)


torch.library.register_autograd("enma_fast::modulated_norm", _backward, setup_context=_setup_context)
