"""rms_norm: every implementation against the reference, values and gradients."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from enma_fast.errors import EnmaError
from enma_fast.ops._backend import interpreted
from enma_fast.ops.rms_norm import DTYPES as TAKEN
from enma_fast.ops.rms_norm import candidates, rms_norm, rms_norm_ref, sum_rms_norm, sum_rms_norm_ref
from tests._extension import NATIVE, each_isa, needs_native
from tests.ops._backends import usable
from tests.ops._oracle import assert_close_as_reference, assert_threads_keep_bits

EPS = 1e-6
DTYPES = (torch.float32, torch.bfloat16)
ULPS = {torch.float32: 2e-6, torch.bfloat16: 3.2e-2}


@pytest.fixture(params=["triton", "native", "reference"])
def backend(request: pytest.FixtureRequest, device: torch.device) -> str:
    """Every implementation that runs here."""
    return usable(request.param, candidates(device, torch.float32))


def needs_dtype(backend: str, dtype: torch.dtype) -> None:
    if dtype not in TAKEN.get(backend, (dtype,)):
        pytest.skip(f"{backend} takes no {dtype}")


def arguments(
    R: int, W: int, *, device: torch.device, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, Tensor]:
    """x and residual ``[R, W]``, and the weight; the rows are slices of a wider tensor."""
    x, residual = torch.randn(R, 2 * W, device=device).to(dtype).chunk(2, dim=-1)
    return x, residual, torch.randn(W, device=device).to(dtype)


def both(x: Tensor, residual: Tensor, weight: Tensor, **options: Any) -> tuple[Tensor, ...]:
    """The norm of x, the sum, and the norm of the sum."""
    return rms_norm(x, weight, eps=EPS, **options), *sum_rms_norm(x, residual, weight, eps=EPS, **options)


def both_ref(x: Tensor, residual: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
    return rms_norm_ref(x, weight, eps=EPS), *sum_rms_norm_ref(x, residual, weight, eps=EPS)


def rounds_as_torch(backend: str, dtype: torch.dtype) -> bool:
    """False for Triton's interpreter, which does not round ties of bf16 to even."""
    return dtype == torch.float32 or not (backend == "triton" and interpreted())


def test_reference_is_the_formula() -> None:
    x, residual, weight = arguments(5, 7, device=torch.device("cpu"), dtype=torch.float64)
    expected = torch.nn.functional.rms_norm(x + residual, (7,), weight, eps=1e-3)
    h, y = sum_rms_norm_ref(x, residual, weight, eps=1e-3)
    torch.testing.assert_close(h, x + residual)
    torch.testing.assert_close(y, expected)
    assert torch.equal(rms_norm_ref(h, weight, eps=1e-3), y)


@pytest.mark.parametrize("dtype", DTYPES)
def test_values(dtype: torch.dtype, backend: str, device: torch.device) -> None:
    needs_dtype(backend, dtype)
    for R, W in [(1, 1), (7, 33), (2, 129), (0, 16)]:
        given = arguments(R, W, device=device, dtype=dtype)
        ours, same = both(*given, backend=backend), both_ref(*given)
        exact = both_ref(*(t.double() for t in given))
        for a, b, c in zip(ours, same, exact, strict=True):
            assert a.dtype == dtype
            assert_close_as_reference(a, b, c, floor=ULPS[dtype])
        if rounds_as_torch(backend, dtype):
            assert torch.equal(ours[1], given[0] + given[1])


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients(dtype: torch.dtype, backend: str, device: torch.device) -> None:
    needs_dtype(backend, dtype)
    for R, W in [(1, 9), (37, 20)]:
        given = arguments(R, W, device=device, dtype=dtype)
        cotangents = torch.randn(3, R, W, device=device).to(dtype)

        def gradients(op: Any, wide: bool, **options: Any) -> list[Tensor]:
            leaves = [(t.double() if wide else t.clone()).requires_grad_() for t in given]  # noqa: B023
            loss = sum((y * c).sum() for y, c in zip(op(*leaves, **options), cotangents, strict=True))  # noqa: B023
            return list(torch.autograd.grad(loss, leaves))

        ours = gradients(both, False, backend=backend)
        again = gradients(both, False, backend=backend)
        same, exact = gradients(both_ref, False), gradients(both_ref, True)
        for a, b, c, d, name in zip(ours, again, same, exact, ["x", "residual", "weight"], strict=True):
            assert torch.equal(a, b), name
            assert a.dtype == dtype
            size = float(d.abs().max()) + 1
            assert_close_as_reference(a, c, d, floor=size * (1e-5 if dtype == torch.float32 else 2e-2))


def test_gradients_where_only_some_are_asked_for(backend: str, device: torch.device) -> None:
    for chosen in (*itertools.combinations(range(3), 1), *itertools.combinations(range(3), 2)):
        given = arguments(6, 10, device=device)
        leaves = [given[i].requires_grad_() for i in chosen]
        results = (
            [y for y in op(*given, **options) if y.requires_grad]
            for op, options in ((both, {"backend": backend}), (both_ref, {}))
        )
        ours, same = (torch.autograd.grad(sum(y.square().sum() for y in ys), leaves) for ys in results)
        for a, b in zip(ours, same, strict=True):
            torch.testing.assert_close(a, b, rtol=2e-4, atol=2e-4)


def test_strided_inputs(backend: str, device: torch.device) -> None:
    wide = torch.randn(4, 5, 66, device=device)
    for x in (
        wide[:, ::2, :33],
        wide[..., ::2],
        wide.transpose(0, 1)[..., 33:],
        wide.permute(2, 0, 1),
        wide[:0, :, ::2],
    ):
        weight, residual = torch.randn(2 * x.shape[-1], device=device)[::2], torch.randn_like(x)
        for a, b in zip(both(x, residual, weight, backend=backend), both_ref(x, residual, weight), strict=True):
            assert a.shape == x.shape
            torch.testing.assert_close(a, b)


def test_weight_in_fp32_beside_bf16_rows(backend: str, device: torch.device) -> None:
    needs_dtype(backend, torch.bfloat16)
    x, _, _ = arguments(5, 48, device=device, dtype=torch.bfloat16)
    weight = torch.randn(48, device=device, requires_grad=True)
    ours = rms_norm(x, weight, eps=EPS, backend=backend)
    same = rms_norm_ref(x, weight, eps=EPS)
    exact = rms_norm_ref(x.double(), weight.detach().double(), eps=EPS)
    assert_close_as_reference(ours.detach(), same, exact, floor=ULPS[torch.bfloat16])
    (gradient,) = torch.autograd.grad(ours.sum(), weight)
    assert gradient.dtype == torch.float32
    torch.testing.assert_close(gradient, torch.autograd.grad(same.sum(), weight)[0], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("W", [20, 192])
def test_bits_of_a_row_do_not_depend_on_the_others(
    W: int, dtype: torch.dtype, backend: str, device: torch.device
) -> None:
    if backend == "reference":
        pytest.skip("plain PyTorch promises no bits")
    needs_dtype(backend, dtype)
    x, residual, weight = arguments(67, W, device=device, dtype=dtype)
    whole = both(x, residual, weight, backend=backend)
    for some in (slice(0, 1), slice(3, 8), slice(30, 67), slice(0, 67)):
        for a, b in zip(whole, both(x[some], residual[some], weight, backend=backend), strict=True):
            assert torch.equal(a[some], b)


def test_with_and_without_gradients_are_the_same_bits(backend: str, device: torch.device) -> None:
    for dtype in (dtype for dtype in TAKEN.get(backend, DTYPES) if dtype in DTYPES and rounds_as_torch(backend, dtype)):
        x, residual, weight = arguments(5, 33, device=device, dtype=dtype)
        plain = both(x, residual, weight, backend=backend)
        recorded = both(x.clone().requires_grad_(), residual, weight, backend=backend)
        with torch.inference_mode():
            inference = both(x, residual, weight, backend=backend)
        for a, b, c in zip(plain, recorded, inference, strict=True):
            assert torch.equal(a, b)
            assert torch.equal(a, c)


def test_nan_stays_in_its_row(backend: str, device: torch.device) -> None:
    x = torch.randn(3, 40, device=device)
    for dtype in TAKEN.get(backend, DTYPES):
        bad = x.to(dtype)
        bad[1, 7] = float("nan")
        y = rms_norm(bad, torch.ones(40, device=device, dtype=dtype), eps=EPS, backend=backend)
        assert y[1].isnan().all()
        assert y[::2].isfinite().all()


def test_bad_arguments(device: torch.device) -> None:
    x, residual, weight = arguments(4, 8, device=device)
    for change, message in [
        ({"weight": weight[1:]}, "weight has shape"),
        ({"weight": weight.double()}, "weight is float64"),
        ({"residual": residual[:1]}, "residual has shape"),
        ({"residual": residual.bfloat16()}, "residual is bfloat16"),
        ({"x": x[:, :0], "residual": residual[:, :0]}, "x has shape"),
        ({"backend": "fast"}, "backend 'fast' is unknown"),
    ]:
        with pytest.raises(EnmaError, match=message):
            sum_rms_norm(**{"x": x, "residual": residual, "weight": weight, "eps": EPS} | change)
    for backend, problem in candidates(device, torch.float64).items():
        if problem is not None:
            with pytest.raises(EnmaError, match="cannot run"):
                rms_norm(x.double(), weight.double(), eps=EPS, backend=backend)


def test_wide_rows_are_not_for_triton(device: torch.device) -> None:
    if candidates(device, torch.float32)["triton"] is not None:
        pytest.skip("Triton cannot run here")
    x, weight = torch.randn(1, 4097, device=device), torch.ones(4097, device=device)
    with pytest.raises(EnmaError, match="rows"):
        rms_norm(x, weight, eps=EPS, backend="triton")
    torch.testing.assert_close(rms_norm(x, weight, eps=EPS), rms_norm_ref(x, weight, eps=EPS))


def test_operators(backend: str, device: torch.device) -> None:
    if backend == "reference":
        pytest.skip("is no operator of its own")
    x, _, weight = arguments(5, 12, device=device)
    leaves = (x.clone().requires_grad_(), weight.requires_grad_())
    for residual in (None, torch.randn(5, 12, device=device).requires_grad_()):
        torch.library.opcheck(torch.ops.enma_fast.rms_norm.default, (*leaves, residual, EPS, backend))
    grad, rstd = torch.randn(5, 12, device=device), torch.rand(5, device=device)
    for wants, of_sum in (((True, True), None), ((False, True), None), ((True, False), grad)):
        torch.library.opcheck(
            torch.ops.enma_fast.rms_norm_backward.default, (grad, of_sum, x, rstd, weight.detach(), *wants, backend)
        )


@needs_native
@each_isa
def test_every_instruction_set(isa: str) -> None:
    for W in (1, 15, 64, 100):
        x, residual, weight = arguments(5, W, device=torch.device("cpu"))
        y, h, _ = NATIVE.rms_norm_forward(x, weight, residual, EPS, True, isa=isa)
        same = sum_rms_norm_ref(x, residual, weight, eps=EPS)
        exact = sum_rms_norm_ref(x.double(), residual.double(), weight.double(), eps=EPS)
        for a, b, c in zip((h, y), same, exact, strict=True):
            assert_close_as_reference(a, b, c, floor=ULPS[torch.float32])


@needs_native
def test_threads_do_not_change_bits() -> None:
    leaves = [t.clone().requires_grad_() for t in arguments(700, 192, device=torch.device("cpu"))]

    def compute() -> list[Tensor]:
        y, h, z = both(*leaves, backend="native")
        return [y, h, z, *torch.autograd.grad((y * h * z).sum(), leaves)]

    assert_threads_keep_bits(compute)


@needs_native
def test_native_refuses_what_does_not_fit() -> None:
    x, weight = torch.randn(4, 8), torch.ones(8)
    for change, message in [
        ({"x": x[0]}, "x has shape"),
        ({"x": x.double()}, "x is float64"),
        ({"x": x.t(), "weight": weight[:4]}, "x has gaps"),
        ({"weight": weight[:7]}, "weight has shape"),
        ({"residual": x[:2]}, "residual has shape"),
        ({"isa": "mmx"}, "isa 'mmx' is unknown"),
    ]:
        given = {"x": x, "weight": weight, "residual": None, "eps": EPS, "keep": True}
        with pytest.raises(ValueError, match=message):
            NATIVE.rms_norm_forward(**given | change)
    for change, message in [
        ({"grad_y": x[:3]}, "grad_y has shape"),
        ({"grad_y": torch.randn(4, 9)[:, :8]}, "grad_y is not contiguous"),
        ({"grad_h": x[:3]}, "grad_h has shape"),
        ({"grad_h": torch.randn(4, 9)[:, :8]}, "grad_h is not contiguous"),
        ({"rstd": torch.ones(3)}, "rstd has shape"),
    ]:
        given = {
            "grad_y": x,
            "grad_h": None,
            "x": x,
            "rstd": torch.ones(4),
            "weight": weight,
            "want_x": True,
            "want_weight": True,
        }
        with pytest.raises(ValueError, match=message):
            NATIVE.rms_norm_backward(**given | change)
