"""point_attention against its reference: values, gradients, padding, and what may not matter."""

import math

import pytest
import torch
from torch.nn import functional as F

from enma_fast.errors import EnmaError
from enma_fast.ops._backend import interpreted
from enma_fast.ops._point_attention_run import OPERATOR
from enma_fast.ops.point_attention import candidates, point_attention, point_attention_ref

from .._extension import NATIVE, needs_native
from ._oracle import assert_close_as_reference

# B, H, Q, P, K, V, d, periods, coordinates per batch row, padding.
CASES = {
    "one": (1, 1, 1, 1, 1, 1, 1, (None,), False, False),
    "ring": (2, 3, 5, 7, 3, 5, 1, (0.7,), False, False),
    "plane": (2, 2, 33, 67, 16, 16, 2, (0.7, None), True, True),
    "space": (1, 2, 37, 65, 32, 20, 3, (0.7, None, 1.0), False, True),
    "many-values": (1, 2, 17, 33, 40, 200, 2, (None, None), True, False),
    "wide": (1, 1, 17, 33, 128, 130, 2, (None, None), True, True),
    "one-query": (2, 1, 1, 129, 16, 8, 2, (1.0, 1.0), False, False),
}


def case(B, H, Q, P, K, V, d, periods, per_row, padded, dtype=torch.float32):
    """Tensors with gradients (q, k, v, query_points, points, slopes), and the other arguments."""
    rows = [B] * per_row
    tensors = [torch.randn(B, H, n, width).to(dtype) for n, width in ((Q, K), (P, K), (P, V))]
    places = [torch.rand(*rows, n, d) for n in (Q, P)]
    shared = min(Q, P, 2)
    places[0][..., :shared, :] = places[1][..., :shared, :]
    valid = None
    if padded:
        valid = torch.rand(B, P) > 0.3
        valid[:, 0] = True
    return [*tensors, *places, 5 * torch.rand(H)], {"periods": periods, "valid": valid}


def results(function, tensors, options, *, double=False, device=None, **more):
    """Output and gradients of all tensors, for one fixed gradient of the output."""
    inputs = [(x.double() if double else x).to(device, copy=True).requires_grad_() for x in tensors]
    q, k, v, query_points, points, slopes = inputs
    options = {name: x.to(device) if isinstance(x, torch.Tensor) else x for name, x in options.items()}
    out = function(q, k, v, query_points=query_points, points=points, slopes=slopes, **options, **more)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    grads = torch.autograd.grad(out, inputs, grad.to(out.device, out.dtype))
    return [x.detach().cpu() for x in (out, *grads)]


def assert_as_reference(tensors, options, backend, where):
    exact = results(point_attention_ref, tensors, options, double=True)
    same = results(point_attention_ref, tensors, options)
    ours = results(point_attention, tensors, options, device=where, backend=backend)
    names = ("out", "q", "k", "v", "query_points", "points", "slopes")
    # Gradients in fp32 too stand on an output that was rounded to the dtype of q.
    dtype = tensors[0].dtype
    ulps = (8 if dtype == torch.float32 else 2) * torch.finfo(dtype).eps
    for name, a, b, c in zip(names, ours, same, exact, strict=True):
        assert a.dtype == b.dtype, name
        # The gradient of a slope is a sum over all pairs, which cancel.
        largest = c.abs().max().item() * (4 if name == "slopes" else 1) if c.numel() else 0.0
        assert_close_as_reference(a, b, c, floor=ulps * max(largest, 0.5))


@pytest.fixture(params=["triton", pytest.param("native", marks=needs_native)])
def backend(request):
    if request.param == "triton":
        pytest.importorskip("triton")
    return request.param


@pytest.fixture
def where(backend, device):
    return torch.device("cpu") if backend == "native" else device


@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients(name, backend, where):
    assert_as_reference(*case(*CASES[name]), backend, where)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype, backend, where):
    assert_as_reference(*case(1, 2, 19, 65, 16, 24, 2, (1.0, None), False, True, dtype=dtype), backend, where)


def call(tensors, options, backend, where, **changes):
    q, k, v, query_points, points, slopes = (x.to(where) for x in tensors)
    options = {name: x.to(where) if isinstance(x, torch.Tensor) else x for name, x in (options | changes).items()}
    return point_attention(
        q, k, v, query_points=query_points, points=points, slopes=slopes, backend=backend, **options
    )  # fmt: skip


def test_repeats_bit_for_bit(backend, where):
    arguments = case(*CASES["plane"])
    first, second = (results(point_attention, *arguments, device=where, backend=backend) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_order_of_points_does_not_matter(backend, where):
    (q, k, v, query_points, points, slopes), options = case(*CASES["plane"])
    order = torch.randperm(points.shape[-2])
    expected = call([q, k, v, query_points, points, slopes], options, backend, where)
    permuted = [q, k[:, :, order], v[:, :, order], query_points, points[:, order], slopes]
    out = call(permuted, options, backend, where, valid=options["valid"][:, order])
    torch.testing.assert_close(out, expected, rtol=0, atol=2e-6)


def test_no_other_query_matters(backend, where):
    (q, k, v, query_points, points, slopes), options = case(*CASES["plane"])
    some = [3, 0, 31]
    expected = call([q, k, v, query_points, points, slopes], options, backend, where)[:, :, some]
    out = call([q[:, :, some], k, v, query_points[:, some], points, slopes], options, backend, where)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("backend", ["triton", pytest.param("native", marks=needs_native), "reference"], indirect=False)
@pytest.mark.parametrize("per_row", [False, True])
def test_padding_has_no_influence(backend, per_row, device):
    where = device_of(backend, device)
    shape = (3, 2, 9, 37, 8, 12, 2, (None, None), per_row, True)
    tensors, options = case(*shape)
    valid = options["valid"]
    # The last row has no valid point at all.
    valid[2] = False
    if not per_row:
        valid[1] = valid[0]
    expected = results(point_attention, tensors, options, device=where, backend=backend)
    hole = ~(valid if per_row else valid[:1].expand(3, -1))
    poisoned = [x.clone() for x in tensors]
    for i in (1, 2):
        poisoned[i] = poisoned[i].masked_fill(~valid[:, None, :, None], math.nan)
    poisoned[4] = poisoned[4].masked_fill(hole[..., None] if per_row else hole[0, :, None], math.nan)
    found = results(point_attention, poisoned, options, device=where, backend=backend)
    for a, b in zip(found, expected, strict=True):
        assert torch.isfinite(b).all()
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)
    out, dq, dk, dv = found[:4]
    assert not out[2].any()
    assert not dq[2].any()
    for grad in (dk, dv):
        assert not grad.masked_select(~valid[:, None, :, None]).any()
    # Shorter rows alone give the same.
    short = [x[:1, :, valid[0]] if i in (1, 2) else x for i, x in enumerate(tensors)]
    short[0] = short[0][:1]
    short[3], short[4] = (x[:1] if per_row else x for x in short[3:5])
    short[4] = short[4][..., valid[0], :]
    alone = call(short, options, backend, where, valid=None).cpu()
    torch.testing.assert_close(alone, out[:1], rtol=0, atol=1e-6)


def device_of(backend, device):
    """Where a backend runs; skips Triton if it is not there."""
    if backend == "triton":
        pytest.importorskip("triton")
        return device
    return torch.device("cpu")


@pytest.mark.parametrize("sizes", [(0, 5), (5, 0), (0, 0)], ids=["no query", "no point", "neither"])
@pytest.mark.parametrize("backend", ["triton", pytest.param("native", marks=needs_native), "reference"], indirect=False)
def test_empty(backend, sizes, device):
    Q, P = sizes
    tensors, options = case(2, 2, Q, P, 4, 6, 2, (1.0, None), False, False)
    out, *grads = results(point_attention, tensors, options, device=device_of(backend, device), backend=backend)
    assert out.shape == (2, 2, Q, 6)
    assert not out.any()
    wide = [torch.cat([x, x], -1)[..., ::2] for x in tensors[:3]]
    out, *_ = results(point_attention, wide + tensors[3:], options, device=device_of(backend, device), backend=backend)
    assert out.shape == (2, 2, Q, 6)
    for grad, x in zip(grads, tensors, strict=True):
        assert grad.shape == x.shape
        assert not grad.any()


def test_far_points(backend, where):
    """All logits near -1e4: the largest decides, and nothing underflows to zero over zero."""
    tensors, options = case(1, 2, 19, 70, 8, 8, 2, (None, None), False, False)
    tensors[3] = tensors[3] + 100.0 / math.sqrt(2)
    tensors[5] = torch.tensor([100.0, 200.0])
    same = point_attention_ref(*tensors[:3], query_points=tensors[3], points=tensors[4], slopes=tensors[5], **options)
    wide = [x.double() for x in tensors]
    exact = point_attention_ref(*wide[:3], query_points=wide[3], points=wide[4], slopes=wide[5], **options)
    out = call(tensors, options, backend, where).cpu()
    # Logits of 2e4 carry an error of 1e-3 in fp32, whatever one does.
    assert_close_as_reference(out, same, exact, floor=2e-3)


def test_without_slopes_it_is_plain_attention(backend, where):
    tensors, options = case(*CASES["plane"])
    tensors[5].zero_()
    mask = options["valid"][:, None, None]
    expected = F.scaled_dot_product_attention(*(x.double() for x in tensors[:3]), attn_mask=mask)
    out = call(tensors, options, backend, where).cpu()
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=1e-6)


def test_any_strides(backend, where):
    tensors, options = case(*CASES["plane"])
    q, k, v, query_points, points, slopes = tensors
    strided = [
        q[:1].transpose(1, 2).contiguous().transpose(1, 2).expand(2, -1, -1, -1),
        k.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0),
        torch.cat([v, v], -1)[..., ::2],
        query_points.transpose(-1, -2).contiguous().transpose(-1, -2),
        points.transpose(-1, -2).contiguous().transpose(-1, -2),
        torch.stack([slopes, slopes], -1)[:, 0],
    ]
    valid = torch.stack([options["valid"], options["valid"]], -1)[..., 0]
    assert not any(x.is_contiguous() for x in (*strided, valid))
    whole = [x.contiguous() for x in strided]
    out = call(strided, options, backend, where, valid=valid)
    assert torch.equal(out, call(whole, options, backend, where))


@pytest.mark.parametrize("padded", [False, True])
def test_operator_is_registered_as_it_behaves(padded, backend, where):
    tensors, options = case(2, 2, 5, 7, 4, 6, 2, (1.0, None), padded, padded)
    tensors = [x.to(where).requires_grad_() for x in tensors]
    valid = options["valid"].to(where) if padded else None
    torch.library.opcheck(OPERATOR, (*tensors, valid, [1.0, 0.0], backend))


def test_gradients_only_where_asked_for(backend, where):
    tensors, options = case(*CASES["ring"])
    q, k, v, query_points, points, slopes = (x.to(where) for x in tensors)
    v.requires_grad_()
    out = point_attention(
        q, k, v, query_points=query_points, points=points, slopes=slopes, backend=backend, **options
    )  # fmt: skip
    out.sum().backward()
    assert v.grad is not None
    assert q.grad is None


def test_default_is_the_best_that_runs():
    tensors, options = case(*CASES["plane"])
    best = "reference" if NATIVE is None else "native"
    expected = call(tensors, options, best, torch.device("cpu"))
    assert torch.equal(call(tensors, options, None, torch.device("cpu")), expected)


def test_float64_is_left_to_the_reference():
    tensors, options = case(*CASES["plane"])
    tensors = [x.double() for x in tensors]
    out = call(tensors, options, None, torch.device("cpu"))
    assert out.dtype == torch.float64
    assert torch.equal(out, call(tensors, options, "reference", torch.device("cpu")))


def test_candidates_name_their_problems():
    found = candidates(torch.device("cpu"), torch.float64)
    assert list(found) == ["triton", "native", "reference"]
    assert found["reference"] is None
    assert all(found[name] for name in ("triton", "native"))
    assert candidates(torch.device("cpu"), torch.float32)["native"] is None or NATIVE is None


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"backend": "nonsense"}, "backend 'nonsense'"),
        ({"periods": (-1.0, None)}, "periods"),
        ({"valid": torch.ones(2, 3, dtype=torch.bool)}, "valid"),
        ({"valid": torch.ones(2, 7)}, "valid"),
        ({"slopes": torch.ones(1)}, "slopes"),
        ({"points": torch.zeros(3, 7, 2)}, "points"),
        ({"k": torch.zeros(2, 3, 7, 5)}, "k_BHPK"),
        ({"v": torch.zeros(2, 3, 7, 5).double()}, "v_BHPV"),
        ({"v": torch.zeros(2, 3, 7, 0)}, "q_BHQK"),
        ({"q": torch.zeros(3, 5, 4)}, "q_BHQK"),
        (
            {"points": torch.zeros(7, 2).double(), "backend": "native"},
            "backend 'native'",
        ),
    ],
)
def test_arguments_that_do_not_fit_are_named(changes, said):
    arguments = {
        "q": torch.zeros(2, 3, 5, 4),
        "k": torch.zeros(2, 3, 7, 4),
        "v": torch.zeros(2, 3, 7, 4),
        "query_points": torch.zeros(5, 2),
        "points": torch.zeros(7, 2),
        "slopes": torch.ones(3),
        "periods": (1.0, None),
    } | changes
    q, k, v = (arguments.pop(name) for name in "qkv")
    with pytest.raises(EnmaError, match=f"^point_attention: (?:{said})"):
        point_attention(q, k, v, **arguments)


def test_triton_says_which_head_dims_it_takes(device):
    if device.type == "cpu" and not interpreted():
        pytest.skip("needs triton")
    q, v = torch.zeros(1, 1, 3, 129, device=device), torch.zeros(1, 1, 3, 4, device=device)
    x, slopes = torch.zeros(3, 1, device=device), torch.ones(1, device=device)
    with pytest.raises(EnmaError, match="head dims"):
        point_attention(
            q, q, v, query_points=x, points=x, slopes=slopes, periods=(None,), backend="triton"
        )  # fmt: skip
    point_attention(q, q, v, query_points=x, points=x, slopes=slopes, periods=(None,))
