"""swiglu: the native kernels against the reference, values and gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from enma_fast.errors import EnmaError
from enma_fast.ops.swiglu import candidates, swiglu, swiglu_ref
from tests._extension import NATIVE, each_isa, needs_native
from tests.ops._oracle import assert_close_as_reference, assert_threads_keep_bits

DTYPES = (torch.float32, torch.bfloat16)
# The results are as large as ten.
ULPS = {torch.float32: 4e-6, torch.bfloat16: 8e-2}
SHAPES = [(2,), (7, 66), (2, 3, 258), (0, 8), (65, 34)]


def test_reference_is_the_formula() -> None:
    gate, up = torch.randn(2, 3, 5, dtype=torch.float64)
    torch.testing.assert_close(swiglu_ref(torch.cat([gate, up], -1)), gate * gate.sigmoid() * up)


@needs_native
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_gradients(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = (4 * torch.randn(shape)).to(dtype)
    cotangent = torch.randn(*shape[:-1], shape[-1] // 2).to(dtype)

    def run(op: object, wide: bool) -> list[Tensor]:
        leaf = (x.double() if wide else x.clone()).requires_grad_()
        y = swiglu(leaf, backend="native") if op is swiglu else swiglu_ref(leaf)
        return [y, *torch.autograd.grad(y, leaf, cotangent.to(y.dtype))]

    recorded = run(swiglu, False)
    for ours, same, exact in zip(recorded, run(swiglu_ref, False), run(swiglu_ref, True), strict=True):
        assert ours.dtype == dtype
        assert_close_as_reference(ours.detach(), same.detach(), exact.detach(), floor=ULPS[dtype])
    with torch.no_grad():
        assert torch.equal(swiglu(x, backend="native"), recorded[0])


@needs_native
def test_huge_gates_and_nan() -> None:
    gate = torch.tensor([-1e30, -200.0, -100.0, -87.0, 0.0, 87.0, 200.0, 1e30, float("nan")])
    x = torch.stack([gate, torch.ones(9)]).flatten().requires_grad_()
    y = swiglu(x, backend="native")
    torch.testing.assert_close(y, swiglu_ref(x), rtol=1e-6, atol=1e-30, equal_nan=True)
    ours, same = (torch.autograd.grad(z.sum(), x)[0] for z in (y, swiglu_ref(x)))
    torch.testing.assert_close(ours, same, rtol=1e-6, atol=1e-30, equal_nan=True)


@needs_native
def test_strided_inputs() -> None:
    wide = torch.randn(4, 5, 66)
    for x in (wide[:, ::2, :34], wide[..., ::3], wide.transpose(0, 1)[..., 32:]):
        torch.testing.assert_close(swiglu(x, backend="native"), swiglu_ref(x))


@needs_native
def test_operators() -> None:
    x = torch.randn(5, 12)
    torch.library.opcheck(torch.ops.enma_fast.swiglu.default, (x.clone().requires_grad_(),))
    torch.library.opcheck(torch.ops.enma_fast.swiglu_backward.default, (torch.randn(5, 6), x))


@needs_native
@each_isa
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_instruction_set(dtype: torch.dtype, isa: str) -> None:
    for W in (1, 15, 64, 100):
        x, grad = torch.randn(5, 2 * W).to(dtype), torch.randn(5, W).to(dtype)
        ours = [NATIVE.swiglu_forward(x, isa=isa), NATIVE.swiglu_backward(grad, x, isa=isa)]
        for a, b in zip(ours, [NATIVE.swiglu_forward(x), NATIVE.swiglu_backward(grad, x)], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-2 if dtype == torch.bfloat16 else 2e-6, atol=1e-6)


@needs_native
def test_threads_do_not_change_bits() -> None:
    x = torch.randn(700, 384, requires_grad=True)

    def compute() -> list[Tensor]:
        y = swiglu(x, backend="native")
        return [y, *torch.autograd.grad(y.square().sum(), x)]

    assert_threads_keep_bits(compute)


def test_bad_arguments() -> None:
    for shape in ((), (4, 3), (4, 0)):
        with pytest.raises(EnmaError, match="x has shape"):
            swiglu(torch.zeros(shape))
    with pytest.raises(EnmaError, match="backend 'fast'"):
        swiglu(torch.zeros(2), backend="fast")
    if candidates(torch.device("cpu"), torch.float64)["native"] is not None:
        with pytest.raises(EnmaError, match="cannot run"):
            swiglu(torch.zeros(2, dtype=torch.float64), backend="native")
    if NATIVE is None:
        return
    for change, message in [
        ({"x": torch.zeros(8)}, "x has shape"),
        ({"x": torch.zeros(2, 8).double()}, "x is float64"),
        ({"x": torch.zeros(8, 2).t()}, "x is not contiguous"),
        ({"grad_y": torch.zeros(2, 3)}, "grad_y has shape"),
        ({"grad_y": torch.zeros(2, 4).double()}, "grad_y is float64"),
        ({"grad_y": torch.zeros(4, 2).t()}, "grad_y is not contiguous"),
        ({"isa": "mmx"}, "isa 'mmx' is unknown"),
    ]:
        with pytest.raises(ValueError, match=message):
            NATIVE.swiglu_backward(**{"grad_y": torch.zeros(2, 4), "x": torch.zeros(2, 8)} | change)
