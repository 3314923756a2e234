"""modulated_norm: every implementation against the reference, values and gradients."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from enma_fast.errors import EnmaError
from enma_fast.ops._backend import extension
from enma_fast.ops.modulated_norm import candidates, modulated_norm, modulated_norm_ref
from tests.ops._oracle import assert_close_as_reference

NAMES = ("weight", "shift", "scale", "residual", "gate")
DTYPES = (torch.float32, torch.bfloat16)
ULPS = {torch.float32: 2e-6, torch.bfloat16: 3.2e-2}
# Which of NAMES are given, and whether shift, scale and gate are one row.
FORMS: list[tuple[str, bool]] = [
    ("", False),
    ("weight", False),
    ("shift scale", False),
    ("shift scale", True),
    ("residual", False),
    ("weight shift residual gate", True),
    ("weight shift scale residual gate", False),
]


@pytest.fixture(params=["triton", "native", "reference"])
def backend(request: pytest.FixtureRequest, device: torch.device) -> str:
    """Every implementation that runs here."""
    problem = candidates(device, torch.float32)[request.param]
    if problem is not None:
        pytest.skip(f"{request.param}: {problem}")
    return str(request.param)


def arguments(
    R: int, W: int, names: str, *, device: torch.device, dtype: torch.dtype = torch.float32, one_row: bool = False
) -> tuple[Tensor, dict[str, Tensor]]:
    """x [R, W] and the tensors named; shift, scale and gate are slices of one modulation, as in the flow head."""
    x = torch.randn(R, W, device=device).to(dtype)
    rows = torch.randn(1 if one_row else R, 3 * W, device=device).to(dtype)
    shift, scale, gate = rows.chunk(3, dim=-1)
    residual = torch.randn(R, W, device=device).to(dtype)
    given = {"weight": torch.randn(W, device=device).to(dtype), "shift": shift, "scale": scale}
    given |= {"residual": residual, "gate": gate}
    return x, {name: given[name] for name in names.split()}


def pair(result: Tensor | tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """(h, y), h empty without a residual."""
    return result if isinstance(result, tuple) else (result[:0], result)


def double(given: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.double() for name, value in given.items()}


def test_reference_is_the_formula() -> None:
    x, given = arguments(5, 7, "weight shift scale residual gate", device=torch.device("cpu"), dtype=torch.float64)
    h = x + given["gate"] * given["residual"]
    for kind in ("layer", "rms"):
        n = torch.nn.functional.layer_norm(h, (7,), eps=1e-3) if kind == "layer" else h
        n = torch.nn.functional.rms_norm(h, (7,), eps=1e-3) if kind == "rms" else n
        expected = n * given["weight"] * (1 + given["scale"]) + given["shift"]
        found_h, y = modulated_norm_ref(x, kind=kind, eps=1e-3, **given)
        torch.testing.assert_close(found_h, h)
        torch.testing.assert_close(y, expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["layer", "rms"])
@pytest.mark.parametrize("form", FORMS)
def test_values(form: tuple[str, bool], kind: str, dtype: torch.dtype, backend: str, device: torch.device) -> None:
    for R, W in [(1, 1), (7, 33), (2, 129), (0, 16)]:
        x, given = arguments(R, W, form[0], device=device, dtype=dtype, one_row=form[1])
        ours = pair(modulated_norm(x, kind=kind, backend=backend, **given))
        same = pair(modulated_norm_ref(x, kind=kind, **given))
        exact = pair(modulated_norm_ref(x.double(), kind=kind, **double(given)))
        for a, b, c in zip(ours, same, exact, strict=True):
            assert a.dtype == dtype
            assert a.is_contiguous()
            # One-wide rows of the layer norm divide nothing by sqrt(eps).
            assert_close_as_reference(a, b, c, floor=ULPS[dtype])


@pytest.mark.parametrize("kind", ["layer", "rms"])
def test_offset_rows_keep_their_digits(kind: str, backend: str, device: torch.device) -> None:
    x = 1000 + torch.randn(4, 257, device=device)
    ours = modulated_norm(x, kind=kind, backend=backend)
    assert isinstance(ours, Tensor)
    exact = modulated_norm_ref(x.double(), kind=kind)
    assert isinstance(exact, Tensor)
    assert (ours.double() - exact).abs().max() < 5e-4


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["layer", "rms"])
@pytest.mark.parametrize("form", FORMS[1:])
def test_gradients(form: tuple[str, bool], kind: str, dtype: torch.dtype, backend: str, device: torch.device) -> None:
    for R, W in [(1, 9), (37, 20)]:
        x, given = arguments(R, W, form[0], device=device, dtype=dtype, one_row=form[1])
        cotangents = torch.randn(2, R, W, device=device).to(dtype)

        def gradients(op: Any, wide: bool, **options: Any) -> list[Tensor]:
            leaves = [t.double() if wide else t.clone() for t in (x, *given.values())]  # noqa: B023
            leaves = [t.requires_grad_() for t in leaves]
            h, y = pair(op(leaves[0], kind=kind, **dict(zip(given, leaves[1:], strict=True)), **options))  # noqa: B023
            loss = (y * cotangents[0]).sum()  # noqa: B023
            if h.shape == y.shape:
                loss = loss + (h * cotangents[1]).sum()  # noqa: B023
            return list(torch.autograd.grad(loss, leaves))

        ours = gradients(modulated_norm, False, backend=backend)
        again = gradients(modulated_norm, False, backend=backend)
        same = gradients(modulated_norm_ref, False)
        exact = gradients(modulated_norm_ref, True)
        for a, b, c, d, name in zip(ours, again, same, exact, ["x", *given], strict=True):
            assert torch.equal(a, b), name
            assert a.dtype == dtype
            size = float(d.abs().max()) + 1
            assert_close_as_reference(a, c, d, floor=size * (1e-5 if dtype == torch.float32 else 2e-2))


def test_gradients_where_only_some_are_asked_for(backend: str, device: torch.device) -> None:
    x, given = arguments(6, 10, "weight shift scale residual gate", device=device)
    for count, one_row in itertools.product((1, 2), (False, True)):
        for wanted in itertools.combinations(("x", *given), count):
            x, given = arguments(6, 10, "weight shift scale residual gate", device=device, one_row=one_row)
            for name in wanted:
                ({"x": x} | given)[name].requires_grad_()
            leaves = [({"x": x} | given)[name] for name in wanted]
            # Of y alone, so that the gradient of h is absent.
            ours = torch.autograd.grad(pair(modulated_norm(x, backend=backend, **given))[1].square().sum(), leaves)
            same = torch.autograd.grad(pair(modulated_norm_ref(x, **given))[1].square().sum(), leaves)
            for a, b in zip(ours, same, strict=True):
                torch.testing.assert_close(a, b, rtol=2e-4, atol=2e-4)


def test_broadcast_shapes(backend: str, device: torch.device) -> None:
    x = torch.randn(2, 3, 16, device=device)
    for shape in [(16,), (1,), (1, 1, 16), (3, 16), (2, 1, 16), (2, 3, 1), (1, 3, 16)]:
        scale = torch.randn(shape, device=device, requires_grad=True)
        ours = modulated_norm(x, scale=scale, shift=scale, backend=backend)
        same = modulated_norm_ref(x, scale=scale, shift=scale)
        assert isinstance(ours, Tensor)
        assert isinstance(same, Tensor)
        torch.testing.assert_close(ours, same)
        (a,) = torch.autograd.grad(ours.square().sum(), scale)
        (b,) = torch.autograd.grad(same.square().sum(), scale)
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_strided_inputs(backend: str, device: torch.device) -> None:
    wide = torch.randn(4, 5, 66, device=device)
    for x in (wide[:, ::2, :33], wide[..., ::2], wide.transpose(0, 1)[..., 33:], wide.permute(2, 0, 1)):
        weight, residual = torch.randn(2 * x.shape[-1], device=device)[::2], torch.randn_like(x)
        ours = pair(modulated_norm(x, weight=weight.contiguous(), residual=residual, backend=backend))
        same = pair(modulated_norm_ref(x, weight=weight, residual=residual))
        for a, b in zip(ours, same, strict=True):
            torch.testing.assert_close(a, b)
        ours_strided = pair(modulated_norm(x, weight=weight, residual=residual, backend=backend))
        assert torch.equal(ours[1], ours_strided[1])


def test_weight_in_fp32_beside_bf16_rows(backend: str, device: torch.device) -> None:
    x, given = arguments(5, 48, "shift scale", device=device, dtype=torch.bfloat16)
    weight = torch.randn(48, device=device, requires_grad=True)
    ours = pair(modulated_norm(x, weight=weight, backend=backend, **given))[1]
    same = pair(modulated_norm_ref(x, weight=weight, **given))[1]
    exact = pair(modulated_norm_ref(x.double(), weight=weight.double(), **double(given)))[1]
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
    x, given = arguments(67, W, "weight shift scale residual gate", device=device, dtype=dtype)
    h, y = pair(modulated_norm(x, backend=backend, **given))
    again = pair(modulated_norm(x, backend=backend, **given))
    assert torch.equal(h, again[0])
    assert torch.equal(y, again[1])
    for some in (slice(0, 1), slice(3, 8), slice(30, 67)):
        part = {name: value if name == "weight" else value[some] for name, value in given.items()}
        h_part, y_part = pair(modulated_norm(x[some], backend=backend, **part))
        assert torch.equal(h[some], h_part)
        assert torch.equal(y[some], y_part)


def test_with_and_without_gradients_are_the_same_bits(backend: str, device: torch.device) -> None:
    x, given = arguments(5, 33, "weight shift residual gate", device=device)
    plain = pair(modulated_norm(x, backend=backend, **given))
    recorded = pair(modulated_norm(x.requires_grad_(), backend=backend, **given))
    with torch.inference_mode():
        inference = pair(modulated_norm(x, backend=backend, **given))
    for a, b, c in zip(plain, recorded, inference, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)


def test_infinities_and_nan_stay_in_their_row(backend: str, device: torch.device) -> None:
    x = torch.randn(3, 40, device=device)
    for dtype in DTYPES:
        bad = x.to(dtype)
        bad[1, 7] = float("nan")
        y = modulated_norm(bad, backend=backend)
        assert isinstance(y, Tensor)
        assert y[1].isnan().all()
        assert y[::2].isfinite().all()


def test_bad_arguments(device: torch.device) -> None:
    x, given = arguments(4, 8, "weight shift scale residual gate", device=device)
    for change, message in [
        ({"kind": "batch"}, "kind is 'batch'; expected one of layer, rms"),
        ({"weight": given["weight"][1:]}, "weight has shape"),
        ({"weight": given["weight"].double()}, "weight is float64"),
        ({"shift": given["shift"][:3]}, "shift has shape"),
        ({"scale": given["scale"].bfloat16()}, "scale is bfloat16"),
        ({"gate": given["gate"][None]}, "gate has shape"),
        ({"residual": given["residual"][:1]}, "residual has shape"),
        ({"residual": None}, "gate is given without the residual"),
        ({"backend": "fast"}, "backend 'fast' is unknown"),
    ]:
        with pytest.raises(EnmaError, match=message):
            modulated_norm(x, **given | change)
    with pytest.raises(EnmaError, match="x has shape"):
        modulated_norm(x[:, :0])
    for backend, problem in candidates(device, torch.float64).items():
        if problem is not None:
            with pytest.raises(EnmaError, match="cannot run"):
                modulated_norm(x.double(), backend=backend)


def test_wide_rows_are_not_for_triton(device: torch.device) -> None:
    if candidates(device, torch.float32)["triton"] is not None:
        pytest.skip("Triton cannot run here")
    x = torch.randn(1, 4097, device=device)
    with pytest.raises(EnmaError, match="takes rows of at most 4096"):
        modulated_norm(x, backend="triton")
    assert modulated_norm(x) is not None


def test_operators(backend: str, device: torch.device) -> None:
    if backend == "reference":
        pytest.skip("is no operator of its own")
    x, given = arguments(5, 12, "weight shift scale residual gate", device=device)
    leaves = [t.requires_grad_() for t in (x, *(given[name].clone() for name in NAMES))]
    torch.library.opcheck(torch.ops.enma_fast.modulated_norm.default, (*leaves, "layer", 1e-6, backend))
    torch.library.opcheck(torch.ops.enma_fast.modulated_norm.default, (leaves[0], *[None] * 5, "rms", 1e-6, backend))
    grad, stats = torch.randn(5, 12, device=device), torch.rand(2, 5, device=device)
    weight, scale, residual, gate = (given[name] for name in ("weight", "scale", "residual", "gate"))
    torch.library.opcheck(
        torch.ops.enma_fast.modulated_norm_backward.default,
        (grad, grad, x.detach(), stats, weight, scale, residual, gate, "rms", "x weight scale gate", backend),
    )


@pytest.mark.parametrize("isa", ["scalar", "avx2", "avx512", "emulated_avx512"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_instruction_set(dtype: torch.dtype, isa: str) -> None:
    native = extension()
    if native is None:
        pytest.skip("the extension is not built")
    for W, kind in itertools.product((1, 15, 64, 100), ("layer", "rms")):
        x, given = arguments(5, W, "weight shift scale residual gate", device=torch.device("cpu"), dtype=dtype)
        tensors = [given[name] for name in NAMES]
        try:
            y, h, _ = native.modulated_norm_forward(x, *tensors, kind == "rms", 1e-6, True, isa=isa)
        except ValueError as error:
            pytest.skip(str(error))
        same = pair(modulated_norm_ref(x, kind=kind, **given))
        exact = pair(modulated_norm_ref(x.double(), kind=kind, **double(given)))
        for a, b, c in zip((h, y), same, exact, strict=True):
            assert_close_as_reference(a, b, c, floor=ULPS[dtype])


def test_threads_do_not_change_bits() -> None:
    if extension() is None:
        pytest.skip("the extension is not built")
    x, given = arguments(700, 192, "weight shift scale residual gate", device=torch.device("cpu"), one_row=True)
    leaves = [t.clone().requires_grad_() for t in (x, *given.values())]
    results, threads = [], torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            h, y = pair(modulated_norm(leaves[0], backend="native", **dict(zip(given, leaves[1:], strict=True))))
            results.append([h, y, *torch.autograd.grad((h * y).sum(), leaves)])
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert torch.equal(a, b)


def test_native_refuses_what_does_not_fit() -> None:
    native = extension()
    if native is None:
        pytest.skip("the extension is not built")
    x = torch.randn(4, 8)
    for change, message in [
        ({"x": x[0]}, "x has shape"),
        ({"x": x.double()}, "x is Double"),
        ({"x": x.t()}, "x has strides"),
        ({"weight": x[0, :7]}, "weight has shape"),
        ({"shift": x[:2]}, "shift has shape"),
        ({"gate": x}, "gate is given without residual"),
        ({"isa": "mmx"}, "isa 'mmx' is unknown"),
    ]:
        given = dict.fromkeys(("weight", "shift", "scale", "residual", "gate")) | {"x": x}
        with pytest.raises(ValueError, match=message):
            native.modulated_norm_forward(**given | change, rms=False, eps=1e-6, keep=True)
