"""frame_attention: every implementation against the reference, and what the decoder relies on."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from enma_fast.errors import EnmaError
from enma_fast.ops._backend import interpreted, kernel
from enma_fast.ops.frame_attention import candidates, frame_attention, frame_attention_ref
from enma_fast.ops.self_attention import attention
from tests._extension import NATIVE, each_isa, needs_native
from tests.ops._backends import usable
from tests.ops._cubin import CAPABILITIES, SHARED_LIMIT, report
from tests.ops._oracle import assert_close_as_reference, assert_threads_keep_bits

DTYPES = (torch.float32, torch.bfloat16)
FLOOR = {torch.float32: 2e-6, torch.bfloat16: 4e-3}
# B, G, N, S, P, K: a head dim that is no power of two, one that 8 does not divide, frames across tiles, empty parts.
SIZES = [
    (1, 1, 1, 1, 1, 8),
    (4, 2, 5, 7, 3, 24),
    (4, 2, 17, 33, 65, 40),
    (2, 1, 16, 0, 0, 64),
    (2, 1, 3, 5, 0, 100),
    (1, 1, 67, 2, 35, 9),
    (0, 1, 4, 4, 4, 16),
    (2, 1, 0, 4, 4, 16),
]
H = 2


@pytest.fixture(params=["triton", "flash", "native", "reference"])
def backend(request: pytest.FixtureRequest, device: torch.device) -> str:
    """Every implementation that runs here."""
    return usable(request.param, candidates(device, torch.float32))


def arguments(
    B: int, G: int, N: int, S: int, P: int, K: int, *, device: torch.device, dtype: torch.dtype = torch.float32
) -> tuple[tuple[Tensor, Tensor, Tensor], dict[str, Any]]:
    """Slices of one projection, as in the model, and buffers that are NaN beyond their lengths."""
    qkv = torch.randn(B, N, 3, H, K, device=device).to(dtype)
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    cache = torch.randn(2, B, H, S + 4, K, device=device).to(dtype)
    prefix = torch.randn(2, G, H, P + 4, K, device=device).to(dtype)
    cache[:, :, :, S:] = float("nan")
    prefix[:, :, :, P:] = float("nan")
    length, prefix_length = torch.tensor([S, P], device=device)
    return (q, k, v), {"cache": cache, "length": length, "prefix": prefix, "prefix_length": prefix_length}


def double(given: dict[str, Any]) -> dict[str, Any]:
    return {name: value.double() if value.ndim else value for name, value in given.items()}


def test_reference_is_attention_over_what_is_valid() -> None:
    (q, k, v), given = arguments(4, 2, 5, 7, 3, 24, device=torch.device("cpu"), dtype=torch.float64)
    for b in range(4):
        parts = given["prefix"][:, b // 2, :, :3], given["cache"][:, b, :, :7], torch.stack([k[b], v[b]])
        keys, values = torch.cat(parts, dim=2)
        expected = torch.nn.functional.scaled_dot_product_attention(q[b], keys, values)
        torch.testing.assert_close(frame_attention_ref(q, k, v, **given)[b], expected)


def test_reference_has_the_bits_of_the_model() -> None:
    (q, k, v), given = arguments(3, 1, 6, 9, 0, 16, device=torch.device("cpu"))
    keys, values = torch.cat([given["cache"][:, :, :, :9], torch.stack([k, v])], 3)
    assert torch.equal(frame_attention_ref(q, k, v, **given), attention(q, keys, values))


@pytest.mark.each_value("backend")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
def test_values(size: tuple[int, ...], dtype: torch.dtype, backend: str, device: torch.device) -> None:
    own, given = arguments(*size, device=device, dtype=dtype)
    ours = frame_attention(*own, backend=backend, **given)
    assert ours.dtype == dtype
    assert torch.equal(ours, frame_attention(*own, backend=backend, **given))
    exact = frame_attention_ref(*(t.double() for t in own), **double(given))
    assert_close_as_reference(ours, frame_attention_ref(*own, **given), exact, floor=FLOOR[dtype])


@pytest.mark.parametrize("places", [torch.int32, torch.int64])
def test_other_lengths_in_the_same_buffers(places: torch.dtype, backend: str, device: torch.device) -> None:
    own, given = arguments(4, 2, 5, 40, 7, 24, device=device)
    for S, P in ((0, 0), (1, 7), (33, 0), (40, 3)):
        some = {name: torch.tensor(n, dtype=places, device=device) for name, n in (("length", S), ("prefix_length", P))}
        ours = frame_attention(*own, backend=backend, **given | some)
        expected = frame_attention_ref(*own, **given | some)
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=2e-6)


def test_the_kernel_keeps_lengths_within_the_buffers(device: torch.device) -> None:
    if candidates(device, torch.float32)["triton"] is not None:
        pytest.skip("Triton cannot run here")
    own, given = arguments(2, 1, 3, 4, 4, 16, device=device)
    given = {name: value[:, :, :, :4] if value.ndim else value for name, value in given.items()}
    expected, ours = frame_attention(*own, backend="triton", **given), torch.empty_like(own[0])
    far = torch.full((), 2**20, dtype=torch.int32, device=device)
    launch = kernel("frame_attention").launch_frame_attention
    launch(*own, **given | {"length": far, "prefix_length": far}, out=ours)
    assert torch.equal(ours, expected)


def test_large_logits(backend: str, device: torch.device) -> None:
    (q, k, v), given = arguments(2, 1, 5, 9, 6, 16, device=device)
    q = 300 * q
    ours = frame_attention(q, k, v, backend=backend, **given)
    exact = frame_attention_ref(q.double(), k.double(), v.double(), **double(given))
    assert_close_as_reference(ours, frame_attention_ref(q, k, v, **given), exact, floor=1e-4)


@pytest.mark.parametrize("dtype", DTYPES)
def test_bits_of_a_member_do_not_depend_on_the_others(dtype: torch.dtype, backend: str, device: torch.device) -> None:
    if backend not in ("triton", "native"):
        pytest.skip("others promise no bits")
    own, given = arguments(14, 2, 16, 20, 30, 24, device=device, dtype=dtype)
    together = frame_attention(*own, backend=backend, **given)
    for b in (0, 5, 13):
        g = b // 7
        alone = given | {"cache": given["cache"][:, b : b + 1], "prefix": given["prefix"][:, g : g + 1]}
        ours = frame_attention(*(t[b : b + 1] for t in own), backend=backend, **alone)
        if backend == "triton" and interpreted():
            # The interpreter multiplies with the BLAS library, whose rows are not all alike.
            torch.testing.assert_close(ours[0], together[b])
        else:
            assert torch.equal(ours[0], together[b])


def test_strided_buffers(backend: str, device: torch.device) -> None:
    own, given = arguments(4, 2, 5, 7, 3, 24, device=device)
    expected = frame_attention(*own, backend=backend, **given)
    wide = {name: torch.stack([value, value], dim=3).flatten(3, 4) for name, value in given.items() if value.ndim}
    views = {name: value.transpose(1, 3).contiguous().transpose(1, 3) for name, value in wide.items()}
    views = {name: value[:, :, :, : given[name].shape[3]] for name, value in views.items()}
    assert torch.equal(frame_attention(*own, backend=backend, **given | views), expected)
    scattered = tuple(t.transpose(2, 3).contiguous().transpose(2, 3) for t in own)
    with pytest.raises(EnmaError, match="stride 1"):
        frame_attention(*scattered, backend=backend, **given)


def test_bad_arguments(device: torch.device) -> None:
    (q, k, v), given = arguments(4, 2, 5, 7, 3, 24, device=device)
    for own, change, message in [
        ((q[0], k, v), {}, "q_BHNK has shape"),
        ((q[..., :4], k[..., :4], v[..., :4]), {}, "head dim 4; expected 8 to 128"),
        ((q, k[:, :, :4], v), {}, "k_BHNK has shape"),
        ((q, k, v.double()), {}, "v_BHNK is float64"),
        ((q, k, v), {"cache": given["cache"][:, :2]}, "cache has shape"),
        ((q, k, v), {"length": torch.tensor(12)}, "length is 12; expected 0 to 11"),
        ((q, k, v), {"prefix_length": torch.tensor(-1)}, "prefix_length is -1; expected 0 to 7"),
        ((q, k, v), {"length": torch.tensor([3], device=device)}, "length has shape"),
        ((q, k, v), {"length": torch.tensor(3.0, device=device)}, "length is float32"),
        ((q[:3], k[:3], v[:3]), {"cache": given["cache"][:, :3]}, "2 groups"),
        ((q, k, v), {"backend": "fast"}, "backend 'fast' is unknown"),
    ]:
        with pytest.raises(EnmaError, match=message):
            frame_attention(*own, **given | change)
    for name, problem in candidates(device, torch.float32).items():
        if problem is not None:
            with pytest.raises(EnmaError, match="cannot run"):
                frame_attention(q, k, v, backend=name, **given)


@needs_native
@each_isa
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_instruction_set(dtype: torch.dtype, isa: str) -> None:
    for size in SIZES:
        own, given = arguments(*size, device=torch.device("cpu"), dtype=dtype)
        lengths = int(given["length"]), int(given["prefix_length"])
        ours = NATIVE.frame_attention(*own, *given["cache"], *given["prefix"], *lengths, isa=isa)
        exact = frame_attention_ref(*(t.double() for t in own), **double(given))
        assert_close_as_reference(ours, frame_attention_ref(*own, **given), exact, floor=FLOOR[dtype])


@needs_native
def test_threads_do_not_change_bits() -> None:
    own, given = arguments(24, 2, 16, 96, 40, 64, device=torch.device("cpu"))
    assert_threads_keep_bits(lambda: [frame_attention(*own, backend="native", **given)])


@needs_native
def test_native_refuses_what_does_not_fit() -> None:
    (q, k, v), given = arguments(4, 2, 5, 7, 3, 24, device=torch.device("cpu"))
    lengths = {name: int(given[name]) for name in ("length", "prefix_length")}
    buffers = {f"{name}_{part}": given[name][i] for name in ("cache", "prefix") for i, part in enumerate("kv")}
    tensors = {"q": q, "k": k, "v": v} | buffers | lengths
    for change, message in [
        ({"q": q.double()}, "q is float64"),
        ({"k": k[:, :1]}, "k has shape"),
        ({"v": v[:, :, :2]}, "k has values of shape"),
        ({"length": 12}, "cache has 11 tokens; 12 asked for"),
        ({"cache_k": given["cache"][0, :2]}, "cache has shape"),
        ({"prefix_v": None}, "keys without values"),
        ({"isa": "mmx"}, "isa 'mmx' is unknown"),
    ]:
        with pytest.raises(ValueError, match=message):
            NATIVE.frame_attention(**tensors | change)


def cubin_cases() -> None:
    """The paper's models: 16 and 64 tokens a frame, heads of 64 channels, and the widest head."""
    launch = kernel("frame_attention").launch_frame_attention
    for dtype, (N, K) in itertools.product(DTYPES, [(16, 64), (64, 64), (64, 128)]):
        own, given = arguments(64, 1, N, 9 * N, 4 * N, K, device=torch.device("cpu"), dtype=dtype)
        launch(*own, **given, out=torch.empty_like(own[0]))


@pytest.mark.slow
@pytest.mark.parametrize("capability", CAPABILITIES)
def test_cubins(capability: int) -> None:
    pytest.importorskip("triton")
    cubins = report("tests.ops.test_frame_attention:cubin_cases", capability)
    assert len(cubins) == 6
    for i, cubin in enumerate(cubins):
        assert cubin["spills"] == 0, cubin
        assert cubin["stack"] == 0, cubin
        assert cubin["shared"] <= SHARED_LIMIT[capability], cubin
        assert cubin["registers"] * 32 * cubin["num_warps"] <= 65536, cubin
        # fp32 products stay fp32; the second half of the cases is bf16.
        assert (cubin["tensor_core"] > 0) == (i >= 3), cubin
