"""self_attention: the native kernels against the reference, values and gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from enma_fast.errors import EnmaError
from enma_fast.ops.self_attention import Pair, candidates, self_attention, self_attention_ref
from tests._extension import NATIVE, each_isa, needs_native
from tests.ops._oracle import assert_close_as_reference, assert_threads_keep_bits

EPS = 1e-5
DTYPES = (torch.float32, torch.bfloat16)
# Batch, tokens, heads, head dim, tokens of a frame, tokens of the past.
SIZES = [
    (1, 1, 1, 2, 1, 0),
    (2, 48, 2, 32, 16, 0),
    (3, 36, 3, 32, 4, 0),
    (2, 4, 2, 32, 4, 33),
    (2, 16, 2, 32, 16, 0),
    (1, 67, 2, 18, 5, 3),
    (2, 33, 1, 6, 40, 17),
    (0, 4, 2, 8, 4, 2),
    (2, 0, 2, 8, 4, 2),
]


def arguments(size: tuple[int, ...], *, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """Arguments that have everything; the weights differ from one."""
    B, L, H, K, frame, P = size
    angle = 7 * torch.rand(L, K // 2)
    return {
        "qkv_BL3HK": torch.randn(B, L, 3, H, K).to(dtype),
        "weights": (1 + 0.3 * torch.randn(K), 1 + 0.3 * torch.randn(K)),
        "rotary": (angle.cos(), angle.sin()),
        "past": (torch.randn(B, H, P, K).to(dtype), torch.randn(B, H, P, K).to(dtype)),
        "frame": frame,
        "eps": EPS,
        "keep": True,
    }


def run(given: dict[str, Any], cotangents: list[Tensor], *, wide: bool = False, **options: Any) -> list[Tensor]:
    """Result, keys and values if kept, and the gradients of all that has one."""

    def leaf(x: Tensor) -> Tensor:
        return (x.double() if wide else x.clone()).requires_grad_()

    def pair(name: str) -> Pair | None:
        return None if given[name] is None else (leaf(given[name][0]), leaf(given[name][1]))

    leaves = {"qkv_BL3HK": leaf(given["qkv_BL3HK"]), "weights": pair("weights"), "past": pair("past")}
    op = self_attention if options else self_attention_ref
    out, kept = op(**given | leaves, **options)
    results = [out, *(kept or ())]
    flat = [leaves["qkv_BL3HK"], *leaves["weights"], *(leaves["past"] or ())]
    loss = sum((y * c.to(y.dtype)).sum() for y, c in zip(results, cotangents, strict=False))
    return [x.detach() for x in (*results, *torch.autograd.grad(loss, flat))]


def cotangents_of(given: dict[str, Any]) -> list[Tensor]:
    B, L, _, H, K = given["qkv_BL3HK"].shape
    S = L + (0 if given["past"] is None else given["past"][0].shape[2])
    return [torch.randn(B, L, H, K), torch.randn(B, H, S, K), torch.randn(B, H, S, K)]


def check(given: dict[str, Any], cotangents: list[Tensor]) -> None:
    dtype = given["qkv_BL3HK"].dtype
    ours, same = run(given, cotangents, backend="native"), run(given, cotangents)
    exact = run(given, cotangents, wide=True)
    for number, (a, b, c) in enumerate(zip(ours, same, exact, strict=True)):
        assert a.dtype == b.dtype
        size = 1 + (float(c.abs().max()) if c.numel() else 0.0)
        assert_close_as_reference(a, b, c, floor=size * (2e-5 if dtype == torch.float32 else 2e-2)), number


def test_reference_is_the_formula() -> None:
    given = arguments((2, 6, 2, 4, 3, 2))
    qkv, past, (cos, sin) = given["qkv_BL3HK"].double(), [x.double() for x in given["past"]], given["rotary"]
    q, k, v = (qkv[:, :, i].transpose(1, 2) for i in range(3))
    turned = []
    for x, weight in zip((q, k), given["weights"], strict=True):
        x = F.rms_norm(x, (4,), weight.double(), eps=EPS)
        turn = torch.polar(torch.ones_like(cos, dtype=torch.float64), torch.atan2(sin, cos).double())
        z = torch.complex(x[..., :2], x[..., 2:]) * turn
        turned.append(torch.cat([z.real, z.imag], -1))
    keys, values = torch.cat([past[0], turned[1]], 2), torch.cat([past[1], v], 2)
    out, kept = self_attention_ref(**given | {"qkv_BL3HK": qkv, "past": tuple(past)})
    assert kept is not None
    torch.testing.assert_close(kept, (keys, values), rtol=1e-6, atol=1e-6)
    for token, seen in enumerate([5, 5, 5, 8, 8, 8]):
        expected = F.scaled_dot_product_attention(
            turned[0][:, :, token : token + 1], keys[:, :, :seen], values[:, :, :seen]
        )
        torch.testing.assert_close(out[:, token], expected[:, :, 0], rtol=1e-6, atol=1e-6)


@needs_native
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
def test_values_and_gradients(size: tuple[int, ...], dtype: torch.dtype) -> None:
    given = arguments(size, dtype=dtype)
    check(given, cotangents_of(given))


@needs_native
@pytest.mark.parametrize("absent", [{"rotary"}, {"past"}, {"keep"}, {"rotary", "past", "keep"}])
def test_what_may_be_absent(absent: set[str]) -> None:
    given = arguments((2, 21, 2, 32, 4, 5))
    given |= {name: False if name == "keep" else None for name in absent}
    check(given, cotangents_of(given)[: 1 if "keep" in absent else None])


@needs_native
def test_head_dims_that_are_odd() -> None:
    given = arguments((2, 9, 2, 5, 3, 4)) | {"rotary": None}
    check(given, cotangents_of(given))


@needs_native
def test_gradients_where_only_the_result_or_only_the_keys_are_used() -> None:
    given = arguments((2, 9, 2, 8, 3, 4))
    cotangents = cotangents_of(given)
    check(given, cotangents[:1])
    qkv = given["qkv_BL3HK"].clone().requires_grad_()
    gradients = []
    for backend in ("native", "reference"):
        _, kept = self_attention(**given | {"qkv_BL3HK": qkv}, backend=backend)
        assert kept is not None
        gradients += torch.autograd.grad((kept[0] * cotangents[1]).sum(), qkv)
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


@needs_native
def test_frame_by_frame_is_all_at_once() -> None:
    given = arguments((2, 12, 2, 16, 4, 3))
    whole, _ = self_attention(**given, backend="native")
    past = given["past"]
    for first in range(0, 12, 4):
        rows = slice(first, first + 4)
        some = {"qkv_BL3HK": given["qkv_BL3HK"][:, rows], "rotary": tuple(x[rows] for x in given["rotary"])}
        out, past = self_attention(**given | some | {"past": past}, backend="native")
        torch.testing.assert_close(out, whole[:, rows], rtol=1e-5, atol=1e-6)


@needs_native
def test_later_frames_change_nothing_and_scores_may_be_huge() -> None:
    given = arguments((1, 12, 2, 8, 4, 0)) | {"past": None}
    given["weights"] = (torch.full((8,), 40.0), torch.full((8,), 40.0))
    check(given, cotangents_of(given))
    changed = given["qkv_BL3HK"].clone()
    changed[:, 8:] *= -3
    ours = [self_attention(**given | {"qkv_BL3HK": x}, backend="native")[0] for x in (given["qkv_BL3HK"], changed)]
    assert torch.equal(ours[0][:, :8], ours[1][:, :8])
    assert not torch.equal(ours[0][:, 8:], ours[1][:, 8:])


@needs_native
def test_strided_inputs() -> None:
    given = arguments((2, 8, 2, 6, 4, 4))
    cotangents = cotangents_of(given)
    expected = run(given, cotangents, backend="native")
    given["qkv_BL3HK"] = given["qkv_BL3HK"].transpose(0, 3).contiguous().transpose(0, 3)
    given["past"] = tuple(x.transpose(1, 2).contiguous().transpose(1, 2) for x in given["past"])
    for a, b in zip(run(given, [c.mT.contiguous().mT for c in cotangents], backend="native"), expected, strict=True):
        assert torch.equal(a, b)


@needs_native
def test_with_and_without_gradients_are_the_same_bits() -> None:
    given = arguments((2, 20, 2, 16, 4, 3))
    with torch.no_grad():
        out, kept = self_attention(**given, backend="native")
    assert kept is not None
    for a, b in zip((out, *kept), run(given, cotangents_of(given), backend="native"), strict=False):
        assert torch.equal(a, b)


@needs_native
@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("past", [False, True])
def test_operators(past: bool, keep: bool) -> None:
    given = arguments((2, 6, 2, 8, 3, 4))
    qkv = given["qkv_BL3HK"].requires_grad_()
    tensors = (qkv, *(w.requires_grad_() for w in given["weights"]), *given["rotary"])
    tensors += tuple(x.requires_grad_() for x in given["past"]) if past else (None, None)
    torch.library.opcheck(torch.ops.enma_fast.self_attention.default, (*tensors, 3, EPS, keep))
    plain = [None if x is None else x.detach() for x in tensors]
    out, lse, keys, values = torch.ops.enma_fast.self_attention.default(*plain, 3, EPS, keep)
    later = (keys, values) if keep else (None, None)
    torch.library.opcheck(
        torch.ops.enma_fast.self_attention_backward.default,
        (torch.randn_like(out), *later, out, lse, *plain, 3, EPS),
    )


@needs_native
@each_isa
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_instruction_set(dtype: torch.dtype, isa: str) -> None:
    for size in SIZES[:-2]:
        given = arguments(size, dtype=dtype)
        tensors = (given["qkv_BL3HK"], *given["weights"], *given["rotary"], *given["past"])
        grads = [c.to(dtype) for c in cotangents_of(given)]

        def both(isa: str) -> list[Tensor]:
            out, lse, *kept = NATIVE.self_attention_forward(*tensors, size[4], EPS, True, isa=isa)  # noqa: B023
            back = NATIVE.self_attention_backward(*grads, out, lse, *tensors, size[4], EPS, isa=isa)  # noqa: B023
            return [out, *kept, *back]

        for a, b in zip(both(isa), both(""), strict=True):
            torch.testing.assert_close(a, b, rtol=2e-2, atol=6e-2 if dtype == torch.bfloat16 else 2e-4)


@needs_native
def test_threads_do_not_change_bits() -> None:
    given = arguments((5, 64, 3, 32, 16, 20))
    cotangents = cotangents_of(given)
    assert_threads_keep_bits(lambda: run(given, cotangents, backend="native"))


def test_bad_arguments() -> None:
    given = arguments((2, 6, 2, 8, 3, 4))
    qkv, (cos, sin), (k, v) = given["qkv_BL3HK"], given["rotary"], given["past"]
    for change, message in [
        ({"qkv_BL3HK": qkv[:, :, :2]}, "qkv_BL3HK has shape"),
        ({"qkv_BL3HK": qkv[..., :0]}, "head dim 0"),
        ({"frame": 0}, "frame is 0"),
        ({"weights": (torch.ones(7), torch.ones(8))}, "weight of q has shape"),
        ({"weights": (torch.ones(8), torch.ones(8).double())}, "weight of k is float64"),
        ({"rotary": (cos[1:], sin)}, "cosines has shape"),
        ({"rotary": (cos, sin.double())}, "sines is float64"),
        ({"qkv_BL3HK": qkv[..., :5], "weights": (torch.ones(5), torch.ones(5))}, "expected an even one"),
        ({"past": (k[:1], v)}, "keys of the past has shape"),
        ({"past": (k, v[:, :, 1:])}, "values of the past has shape"),
        ({"past": (k, v.bfloat16())}, "values of the past is bfloat16"),
        ({"backend": "fast"}, "backend 'fast' is unknown"),
    ]:
        with pytest.raises(EnmaError, match=message):
            self_attention(**given | change)
    assert candidates(torch.device("cpu"), torch.float64)["native"] is not None


@needs_native
def test_native_refuses_what_does_not_fit() -> None:
    given = arguments((2, 6, 2, 8, 3, 4))
    names = ("qkv", "q_weight", "k_weight", "cosines", "sines", "past_keys", "past_values")
    tensors = (given["qkv_BL3HK"], *given["weights"], *given["rotary"], *given["past"])
    whole = dict(zip(names, tensors, strict=True)) | {"frame": 3, "eps": EPS}
    for change, message in [
        ({"qkv": whole["qkv"].double()}, "qkv is float64"),
        ({"qkv": whole["qkv"].mT}, "qkv is not contiguous|has shape"),
        ({"q_weight": torch.ones(7)}, "q_weight has shape"),
        ({"k_weight": torch.ones(8).bfloat16()}, "k_weight is bfloat16"),
        ({"sines": None}, "one of a pair is missing"),
        ({"past_values": whole["past_values"][:, :, 1:]}, "past_values has shape"),
        ({"past_keys": whole["past_keys"][:, :, :, :7]}, "past_keys has shape"),
        ({"frame": 0}, "frame is 0"),
        ({"isa": "mmx"}, "isa 'mmx' is unknown"),
    ]:
        with pytest.raises(ValueError, match=message):
            NATIVE.self_attention_forward(**whole | {"keep": False} | change)
    out, lse, keys, values = NATIVE.self_attention_forward(**whole, keep=True)
    back = {"grad_out": out, "grad_keys": keys, "grad_values": values, "out": out, "lse": lse} | whole
    for name in ("grad_out", "grad_keys", "grad_values", "out", "lse"):
        with pytest.raises(ValueError, match=f"{name} has shape"):
            NATIVE.self_attention_backward(**back | {name: back[name][:1]})
