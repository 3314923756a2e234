"""`point_attention` as a registered operator with a backward: Triton on a GPU, the extension on a CPU.

Legend as in point_attention.py. Coordinates and slopes are fp32 here; a period of 0 stands for none.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ._backend import kernel, native, register

# Of the distance in the extension's logits.
_POWER = 1
_ARGUMENTS = (
    "Tensor q, Tensor k, Tensor v, Tensor query_points, Tensor points, Tensor slopes, Tensor? valid, float[]"
    " periods, str backend"
)


def _rows(x: Tensor) -> Tensor:
    """Rows contiguous; batch and heads may have any stride, 0 too."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _kernel_arguments(
    query_points: Tensor, points: Tensor, slopes: Tensor, valid: Tensor | None, periods: list[float]
) -> dict[str, Any]:
    return {
        "query_points": query_points.contiguous(),
        "points": points.contiguous(),
        "slopes": slopes.contiguous(),
        "valid": None if valid is None else valid.contiguous().view(torch.uint8),
        "periods": tuple(periods),
    }


def _forward(*arguments: Any) -> tuple[Tensor, Tensor]:
    q, k, v, query_points, points, slopes, valid, periods, backend = arguments
    if backend == "native":
        out, lse = native().point_attention_forward(
            *(_rows(x.float()) for x in (q, k, v)),
            *(x.contiguous() for x in (query_points, points, slopes)),
            None if valid is None else valid.contiguous(),
            _POWER,
            periods,
            torch.get_num_threads(),
        )
        return out.to(q.dtype), lse
    out, lse = _forward_fake(q, k, v)
    q, k, v = _rows(q), _rows(k), _rows(v)
    geometry = _kernel_arguments(query_points, points, slopes, valid, periods)
    with torch.cuda.device_of(q):
        kernel("point_attention").launch_forward(q, k, v, **geometry, out=out, lse=lse)
    return out, lse


def _forward_fake(q: Tensor, k: Tensor, v: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    return q.new_empty(*q.shape[:-1], v.shape[-1]), q.new_empty(q.shape[:-1], dtype=torch.float32)


def _backward(*arguments: Any) -> tuple[Tensor, ...]:
    out_grad, out, lse, q, k, v, query_points, points, slopes, *others = arguments
    valid, periods, backend, with_places = others
    out_grad, delta = out_grad.contiguous(), (out_grad.float() * out.float()).sum(-1)
    if backend == "native":
        q_grad, k_grad, v_grad, slopes_grad, query_points_grad, points_grad = native().point_attention_backward(
            out_grad.float(),
            lse,
            delta,
            *(_rows(x.float()) for x in (q, k, v)),
            *(x.contiguous() for x in (query_points, points, slopes)),
            None if valid is None else valid.contiguous(),
            _POWER,
            periods,
            with_places,
            torch.get_num_threads(),
        )
        q_grad, k_grad, v_grad = q_grad.to(q.dtype), k_grad.to(k.dtype), v_grad.to(v.dtype)
    else:
        module = kernel("point_attention_backward")
        q_grad, k_grad, v_grad = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
        slopes_grad = lse.new_empty(*q.shape[:2], module.query_blocks(q, v))
        parts = [lse.new_empty(*x.shape[:-1], len(periods)) for x in (q, k)] if with_places else [None, None]
        with torch.cuda.device_of(q):
            module.launch_backward(
                *(_rows(x) for x in (q, k, v)),
                **_kernel_arguments(query_points, points, slopes, valid, periods),
                out_grad=out_grad,
                lse=lse,
                delta=delta,
                q_grad=q_grad,
                k_grad=k_grad,
                v_grad=v_grad,
                slopes_grad=slopes_grad,
                query_points_grad=parts[0],
                points_grad=parts[1],
            )
        slopes_grad = slopes_grad.sum(-1)
        query_points_grad, points_grad = (lse.new_empty(0) if part is None else part for part in parts)
    if with_places:
        # Heads share the places, and so does the batch where they have no batch dimension.
        query_points_grad = query_points_grad.sum((0, 1) if query_points.ndim == 2 else 1)
        points_grad = points_grad.sum((0, 1) if points.ndim == 2 else 1)
    return q_grad, k_grad, v_grad, query_points_grad, points_grad, slopes_grad.sum(0)


def _backward_fake(*arguments: Any) -> tuple[Tensor, ...]:
    _, _, lse, q, k, v, query_points, points, slopes, *_, with_places = arguments
    grads = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
    places = (lse.new_empty(x.shape if with_places else [0]) for x in (query_points, points))
    return (*grads, *places, torch.empty_like(slopes, memory_format=torch.contiguous_format))


_BACKWARD = register(
    f"point_attention_backward(Tensor out_grad, Tensor out, Tensor lse, {_ARGUMENTS},"
    " bool with_places) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _backward,
    _backward_fake,
)
# Output and log-sum-exp [B, H, Q] (natural logarithm, fp32; minus infinity for a row without valid points).
OPERATOR = register(f"point_attention({_ARGUMENTS}) -> (Tensor, Tensor)", _forward, _forward_fake)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.periods, ctx.backend = inputs
    ctx.save_for_backward(*tensors, *output)
    ctx.mark_non_differentiable(output[1])


def _gradients(ctx: Any, out_grad: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    *inputs, out, lse = ctx.saved_tensors
    with_places = ctx.needs_input_grad[3] or ctx.needs_input_grad[4]
    grads = _BACKWARD(out_grad, out, lse, *inputs, ctx.periods, ctx.backend, with_places)
    needed = [grad if need else None for grad, need in zip(grads, ctx.needs_input_grad, strict=False)]
    return (*needed, None, None, None)


torch.library.register_autograd("enma_fast::point_attention", _gradients, setup_context=_keep)
