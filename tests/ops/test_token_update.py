"""update_tokens_: every implementation writes exactly the reference's bits, and nothing else."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from enma_fast.errors import EnmaError
from enma_fast.ops._backend import kernel
from enma_fast.ops.token_update import candidates, update_tokens_, update_tokens_ref_
from tests.ops._cubin import SHARED_LIMIT, report

BACKENDS = ("triton", "reference")
SIZES = [(1, 1, 1, 1), (3, 7, 5, 4), (2, 33, 33, 17), (5, 16, 3, 129), (4, 16, 0, 4), (0, 16, 3, 4), (2, 5, 2, 0)]


def arguments(
    B: int, N: int, M: int, C: int, *, device: torch.device, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x = torch.randn(B, N, C, device=device).to(dtype)
    known = torch.rand(B, N, device=device) < 0.3
    tokens = torch.stack([torch.randperm(N)[:M] for _ in range(B)]) if B else torch.zeros(0, M, dtype=torch.int64)
    return x, known, tokens.to(device), torch.randn(B, M, C, device=device).to(dtype)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("places", [torch.int64, torch.int32])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", SIZES)
def test_as_the_reference(
    size: tuple[int, ...], dtype: torch.dtype, places: torch.dtype, backend: str, device: torch.device
) -> None:
    x, known, tokens, z = arguments(*size, device=device, dtype=dtype)
    expected_x, expected_known = x.clone(), known.clone()
    for b in range(size[0]):
        for m in range(size[2]):
            expected_x[b, tokens[b, m]] = z[b, m]
            expected_known[b, tokens[b, m]] = True
    assert update_tokens_(x, known, tokens.to(places), z, backend=backend) is None
    assert torch.equal(x, expected_x)
    assert torch.equal(known, expected_known)


@pytest.mark.parametrize("backend", BACKENDS)
def test_strided_views(backend: str, device: torch.device) -> None:
    wide = torch.zeros(6, 5, 9, device=device)
    flags = torch.zeros(7, 12, dtype=torch.bool, device=device)
    x, known = wide.permute(1, 2, 0)[:, ::2], flags.t()[:10:2, :5]
    _, _, tokens, z = arguments(5, 5, 3, 6, device=device)
    z = z.transpose(1, 2).contiguous().transpose(1, 2)
    tokens = tokens.t().contiguous().t()
    expected_x, expected_known = x.clone(), known.clone()
    update_tokens_ref_(expected_x, expected_known, tokens, z)
    update_tokens_(x, known, tokens, z, backend=backend)
    assert torch.equal(x, expected_x)
    assert torch.equal(known, expected_known)
    assert wide.permute(1, 2, 0)[:, 1::2].eq(0).all()
    assert flags.sum() == expected_known.sum()


def test_the_kernel_skips_places_outside_the_frame(device: torch.device) -> None:
    guard = torch.zeros(3, 5, 4, device=device)
    flags = torch.zeros(3, 5, dtype=torch.bool, device=device)
    tokens = torch.tensor([[-1, 5, 2, 2**31, -(2**40)]], device=device)
    z = torch.ones(1, 5, 4, device=device)
    kernel("token_update").launch_update_tokens(guard[1:2], flags[1:2], tokens, z)
    assert guard.sum() == 4
    assert guard[1, 2].eq(1).all()
    assert flags.nonzero().tolist() == [[1, 2]]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("place", [-1, 5])
def test_places_outside_are_an_error_on_the_cpu(place: int, backend: str) -> None:
    if backend == "triton" and candidates(torch.device("cpu"), torch.float32)["triton"] is not None:
        pytest.skip("Triton is not interpreted on a machine with a GPU")
    x, known, tokens, z = arguments(2, 5, 2, 3, device=torch.device("cpu"))
    tokens[1, 0] = place
    before = x.clone()
    with pytest.raises(EnmaError, match="tokens_BM"):
        update_tokens_(x, known, tokens, z, backend=backend)
    assert torch.equal(x, before)


def test_bad_arguments(device: torch.device) -> None:
    x, known, tokens, z = arguments(2, 5, 2, 3, device=device)
    for call, message in [
        (lambda: update_tokens_(x[0], known, tokens, z), "x_BNC has shape"),
        (lambda: update_tokens_(x, known[:, 1:], tokens, z), "known_BN has shape"),
        (lambda: update_tokens_(x, known.to(torch.uint8), tokens, z), "known_BN is uint8"),
        (lambda: update_tokens_(x, known, tokens.float(), z), "tokens_BM is float32"),
        (lambda: update_tokens_(x, known, tokens[:1], z), "tokens_BM has shape"),
        (lambda: update_tokens_(x, known, tokens, z[:, 1:]), "z_BMC has shape"),
        (lambda: update_tokens_(x, known, tokens, z.bfloat16()), "z_BMC is bfloat16"),
        (lambda: update_tokens_(x, known, tokens, z, backend="fast"), "backend 'fast' is unknown"),
        (lambda: update_tokens_(x.double(), known, tokens, z.double(), backend="triton"), "not float64"),
    ]:
        with pytest.raises(EnmaError, match=message):
            call()


def test_doubles_fall_back(device: torch.device) -> None:
    x, known, tokens, z = arguments(2, 5, 2, 3, device=device, dtype=torch.float64)
    update_tokens_(x, known, tokens, z)
    assert torch.equal(x.gather(1, tokens[..., None].expand_as(z)), z)


def test_operator(device: torch.device) -> None:
    torch.library.opcheck(torch.ops.enma_fast.update_tokens_.default, arguments(3, 7, 4, 5, device=device))


def test_operator_compiles_without_a_graph_break(device: torch.device) -> None:
    x, known, tokens, z = arguments(3, 7, 4, 5, device=device)
    expected_x, expected_known = x.clone(), known.clone()
    update_tokens_ref_(expected_x, expected_known, tokens, z)
    compiled = torch.compile(torch.ops.enma_fast.update_tokens_, backend="aot_eager", fullgraph=True)
    compiled(x, known, tokens, z)
    assert torch.equal(x, expected_x)
    assert torch.equal(known, expected_known)


def cubin_cases() -> None:
    """Sizes of the paper's models: 16 and 64 tokens, 4 to 64 channels."""
    launch = kernel("token_update").launch_update_tokens
    for dtype in (torch.float32, torch.bfloat16):
        for B, N, M, C in [(1, 16, 3, 4), (64, 64, 64, 64)]:
            launch(*arguments(B, N, M, C, device=torch.device("cpu"), dtype=dtype))


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90, 100])
def test_cubins(capability: int) -> None:
    pytest.importorskip("triton")
    for cubin in report("tests.ops.test_token_update:cubin_cases", capability):
        assert cubin["spills"] == 0, cubin
        assert cubin["stack"] == 0, cubin
        assert cubin["shared"] <= SHARED_LIMIT[capability], cubin
        assert cubin["registers"] <= 64, cubin
