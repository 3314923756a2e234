"""Layers over one frame, and the rows around them: every kernel against the formula, by the two-reference rule."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from enma_fast.errors import EnmaError
from enma_fast.models.layers import Attention, Rotary, SwiGLU
from enma_fast.ops import frame_layer
from enma_fast.ops.frame_layer import LayerWeights, attend, heads_, residual, swiglu
from enma_fast.ops.frame_rows import frame_noise, mask_steps, order_of, read, rows_, shifted_
from enma_fast.ops.philox_normal import philox_normal
from tests.ops._cubin import CAPABILITIES, SHARED_LIMIT, report
from tests.ops._oracle import assert_close_as_reference

pytest.importorskip("triton")

DTYPES = (torch.float32, torch.bfloat16)
FLOOR = {torch.float32: 2e-6, torch.bfloat16: 4e-3}
# Rows of the batch, rows of the transformer, tokens of a mask step, heads, head dim, hidden width.
SIZES = [(1, 1, 1, 1, 16, 8), (2, 7, 3, 2, 24, 40), (3, 33, 17, 2, 32, 65), (1, 17, 17, 1, 64, 64)]


def layer_of(H: int, K: int, X: int, *, seed: int = 0) -> LayerWeights:
    generator = torch.Generator().manual_seed(seed)
    D = H * K

    def weight(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator) * shape[-1] ** -0.5

    def norm(width: int) -> Tensor:
        return 1 + 0.3 * torch.randn(width, generator=generator)

    return LayerWeights(
        norm=norm(D),
        qkv=weight(3 * D, D),
        q_norm=norm(K),
        k_norm=norm(K),
        out=weight(D, D),
        mlp_norm=norm(D),
        gate_up=weight(2 * X, D),
        down=weight(D, X),
        eps=1e-5,
        head_eps=1e-4,
    )


def to(value: Any, dtype: torch.dtype, device: torch.device) -> Any:
    """Floating tensors, alone or in a layer or a container, in a dtype; norms keep fp32, or float64."""
    if isinstance(value, LayerWeights):
        wide = torch.promote_types(dtype, torch.float32)
        return dataclasses.replace(
            value,
            **{
                f.name: getattr(value, f.name).to(device, wide if "norm" in f.name else dtype)
                for f in dataclasses.fields(value)
                if isinstance(getattr(value, f.name), Tensor)
            },
        )
    if isinstance(value, dict):
        return {name: to(entry, dtype, device) for name, entry in value.items()}
    if isinstance(value, Tensor):
        return value.to(device, dtype) if value.is_floating_point() else value.to(device)
    return value


def check(
    run: Callable[..., list[Tensor]], dtype: torch.dtype, device: torch.device, *, floor: float = 1.0, **given: Any
) -> None:
    """`run(backend=, **given)` by the kernel and by the reference, in this dtype and in float64."""
    rounded = to(to(given, dtype, device), torch.float64, device)
    exact = run(backend="reference", **rounded)
    ours, same = (run(backend=backend, **to(rounded, dtype, device)) for backend in ("triton", "reference"))
    for one, other, wide in zip(ours, same, exact, strict=True):
        if not wide.is_floating_point():
            assert torch.equal(one, wide)
            continue
        assert_close_as_reference(one, other, wide, floor=floor * FLOOR[dtype])


def tokens_of(B: int, L: int, M: int, *, first: int = 0) -> Tensor:
    return torch.stack([torch.randperm(L - first)[:M] for _ in range(B)])


@pytest.mark.each_value("turned")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("turned", [False, True])
def test_heads(size: tuple[int, ...], dtype: torch.dtype, turned: bool, device: torch.device) -> None:
    B, L, M, H, K, X = size

    def run(x, layer, turns, tokens, only_queries, position, length, backend):
        q = torch.full((B, M if only_queries else L, H, K), 7.0, dtype=x.dtype, device=x.device)
        kv = torch.full((2, B, L, H, K), 7.0, dtype=x.dtype, device=x.device)
        store = torch.full((2, B, L + 5, H, K), 7.0, dtype=x.dtype, device=x.device)
        options = {"turns": turns, "position": position, "tokens": tokens, "only_queries": only_queries}
        cached = {} if length is None else {"store": store, "length": length}
        heads_(x, layer, q=q, kv=kv, first=0, **options, **cached, backend=backend)
        return [q, kv, store]

    turns = torch.randn(2, 3 * L, K // 2) if turned else None
    given = {"x": torch.randn(B, L, H * K), "layer": layer_of(H, K, X), "turns": turns}
    chosen = tokens_of(B, L, M)
    two = torch.tensor(2)
    for tokens, only_queries, position, length in (
        (None, False, None, None),
        (None, False, two, torch.tensor(4)),
        (chosen, False, None, None),
        (chosen, True, None, None),
    ):
        more = {"tokens": tokens, "only_queries": only_queries, "length": length}
        # Turns stay in fp32 beside bf16: they are rounded in both.
        check(run, dtype, device, **given, **more, position=position if turned else None)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_heads_in_views_of_larger_buffers(dtype: torch.dtype, device: torch.device) -> None:
    B, N, H, K = 2, 5, 2, 16

    def run(buffer, layer, tokens, backend):
        # Rows 5 to 9 are those of the tokens.
        heads = [part.unflatten(-1, (H, K)) for part in buffer[1:]]
        kv = buffer[2:].unflatten(-1, (H, K))
        heads_(buffer[0], layer, q=heads[0], kv=kv, tokens=tokens, first=N, backend=backend)
        return [buffer]

    given = {"buffer": torch.randn(4, B, 2 * N, H * K), "layer": layer_of(H, K, 8)}
    check(run, dtype, device, **given, tokens=tokens_of(B, N, 3))


def test_the_reference_is_the_models_attention() -> None:
    torch.manual_seed(0)
    attention = Attention(32, 2).double()
    x = torch.randn(3, 8, 32, dtype=torch.float64)
    turns = Rotary((8,), (True,), 16)
    cos, sin = turns.tables(torch.arange(1))
    expected = attention.project(x / torch.sqrt(x.square().mean(-1, keepdim=True) + 1e-5), (cos, sin))
    layer = dataclasses.replace(
        to(layer_of(2, 16, 8), torch.float64, x.device),
        norm=torch.ones(32, dtype=torch.float64),
        qkv=attention.qkv.weight.detach(),
        q_norm=attention.q_norm.weight.detach(),
        k_norm=attention.k_norm.weight.detach(),
        head_eps=1e-5,
    )
    q, kv = x.new_empty(3, 8, 2, 16), x.new_empty(2, 3, 8, 2, 16)
    heads_(x, layer, q=q, kv=kv, turns=torch.stack([cos, sin]))
    for ours, theirs in zip((q, *kv), expected, strict=True):
        torch.testing.assert_close(ours, theirs.detach().transpose(1, 2), rtol=0, atol=1e-12)
    mlp = SwiGLU(32, 64).double()
    layer = dataclasses.replace(
        layer,
        mlp_norm=torch.ones(32, dtype=torch.float64),
        gate_up=mlp.gate_up.weight.detach(),
        down=mlp.down.weight.detach(),
    )
    y = residual(x, swiglu(x, layer), layer.down)
    normed = x / torch.sqrt(x.square().mean(-1, keepdim=True) + 1e-5)
    torch.testing.assert_close(y, x + mlp(normed).detach(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_attend(size: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
    B, L, M, H, K, _ = size

    def run(q, k, v, frame, backend):
        return [attend(q, k, v, frame=frame, backend=backend)]

    both = torch.randn(2, B, L, H, K)
    check(run, dtype, device, q=torch.randn(B, M, H, K), k=both[0], v=both[1], frame=None)
    # Three frames of M tokens, the keys in a buffer with room for more.
    both = torch.randn(2, B, 3 * M + 2, H, K)[:, :, : 3 * M]
    check(run, dtype, device, q=torch.randn(B, 3 * M, H, K), k=both[0], v=both[1], frame=M)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_residual_and_swiglu(size: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
    B, L, M, H, K, X = size

    def run(x, a, layer, tokens, first, backend):
        return [
            residual(x, a, layer.down, tokens=tokens, first=first, backend=backend),
            swiglu(x, layer, backend=backend),
        ]

    given = {"x": torch.randn(B, L, H * K), "layer": layer_of(H, K, X)}
    check(run, dtype, device, **given, a=torch.randn(B, L, X), tokens=None, first=0)
    first = L - max(M, L // 2)
    M = min(M, L - first)
    check(run, dtype, device, **given, a=torch.randn(B, M, X), tokens=tokens_of(B, L, M, first=first), first=first)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("channels", [1, 4, 17])
def test_rows(channels: int, dtype: torch.dtype, device: torch.device) -> None:
    B, N, M, D = 3, 9, 4, 40
    wide = torch.float64 if dtype == torch.float64 else torch.float32

    def run(z, places, context, tokens, concat, first, put, backend, **weights):
        # Tokens are at least fp32.
        z = None if z is None else z.to(torch.promote_types(z.dtype, wide))
        x = torch.full((B, 2 * N if concat or first else N, D), 7.0, dtype=weights["base_D"].dtype, device=device)
        frame = None if not put else torch.zeros(B, N, channels, dtype=z.dtype, device=device)
        given = {"places_ND": places, "context_BND": context, "tokens_BM": tokens, "frame_BNC": frame, "z_BMC": z}
        rows_(x, **weights, **given, concat=concat, first=first, scale=0.7, backend=backend)
        return [x] if frame is None else [x, frame.to(x.dtype)]

    given = {
        "base_D": torch.randn(D),
        "weight_DC": torch.randn(D, channels),
        "places": torch.randn(N, D),
        "context": torch.randn(B, N, D),
    }
    whole, some = torch.randn(B, N, channels), torch.randn(B, M, channels)
    chosen = tokens_of(B, N, M)
    plain: dict[str, Any] = {"z": None, "tokens": None, "concat": False, "first": 0, "put": False}
    for changes in (
        # The beginning of a frame in mask steps, and all of one in one pass.
        {"concat": True},
        {"concat": True, "z": 2 * whole},
        {"z": whole},
        {},
        # Tokens that have just been decided: beside the context, or added to it.
        {"z": some, "tokens": chosen, "put": True},
        {"z": some, "tokens": chosen, "put": True, "first": N, "context": None},
        # A frame that is fed back.
        {"z": whole, "context": None, "places": None},
    ):
        check(run, dtype, device, **given | plain | changes)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("channels", [1, 5, 40])
def test_read(channels: int, dtype: torch.dtype, device: torch.device) -> None:
    B, M, D = 2, 9, 48
    given = {"x": torch.randn(B, M, D), "weight": 0.3 * torch.randn(2 * channels, D), "bias": torch.randn(2 * channels)}

    def run(x, weight, bias, norm, y, backend):
        given_norm = None if norm is None else (norm, 1e-5)
        y = None if y is None else y.to(torch.promote_types(y.dtype, torch.float32))
        half = slice(None) if y is not None else slice(channels)
        return [read(x, weight[half], bias[half], norm=given_norm, y_BMC=y, backend=backend)]

    check(run, dtype, device, **given, norm=1 + torch.randn(D), y=None)
    check(run, dtype, device, **given, norm=None, y=torch.randn(B, M, channels))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rank", [1, 4, 33])
def test_shifted(rank: int, dtype: torch.dtype, device: torch.device) -> None:
    B, G, N, D = 6, 2, 5, 48

    def run(c, anchor, down, up, bias, backend):
        out = torch.empty_like(c)
        shifted_(out, c, anchor, down, up, bias, backend=backend)
        return [out]

    weights = {"down": torch.randn(rank, D) * D**-0.5, "up": torch.randn(2 * D, rank), "bias": torch.randn(2 * D)}
    check(run, dtype, device, **weights, c=torch.randn(B, N, D), anchor=torch.randn(G, N, D))


@pytest.mark.parametrize("backend", ["triton", "reference"])
@pytest.mark.parametrize(("counts", "channels"), [((1,), 1), ((1, 2, 5, 9), 4), ((3, 0, 30), 7), ((150,), 12)])
def test_order_and_noise_are_those_of_the_sampler(
    counts: tuple[int, ...], channels: int, backend: str, device: torch.device
) -> None:
    N = sum(counts)
    words = {"seeds": torch.tensor([5, 2**40 + 3]), "members": torch.tensor([2**32 - 1, 7])}
    words = {name: word.to(device) for name, word in words.items()}
    for number in (0, 3):
        frame = torch.tensor(number, device=device)
        order, noise = frame_noise(
            **words,
            frame=frame,
            steps=mask_steps(counts, device),
            channels=channels,
            dtype=torch.float32,
            scale=0.5,
            backend=backend,
        )
        expected = order_of(seed=words["seeds"], members=words["members"], frame=frame, num_tokens=N)
        assert torch.equal(order, expected)
        assert [part.shape[1] for part in noise] == list(counts)
        done = 0
        for step, (part, count) in enumerate(zip(noise, counts, strict=True)):
            tokens = expected[:, done : done + count]
            named = {"seed": words["seeds"], "members": words["members"], "frame": frame, "mask_step": step}
            drawn = philox_normal(**named, tokens=tokens, channels=channels)
            torch.testing.assert_close(part, 0.5 * drawn, rtol=2e-7, atol=0)
            done += count


def test_what_does_not_fit_is_refused(device: torch.device) -> None:
    layer = to(layer_of(2, 16, 8), torch.float32, device)
    x = torch.randn(2, 4, 32, device=device)
    with pytest.raises(EnmaError, match=r"x has shape \[2, 4, 31\]"):
        swiglu(x[..., :31], layer)
    with pytest.raises(EnmaError, match="x is float64"):
        swiglu(x.double(), layer)
    with pytest.raises(EnmaError, match="not float64"):
        swiglu(x.double(), to(layer, torch.float64, device), backend="triton")
    with pytest.raises(EnmaError, match="head dims"):
        swiglu(torch.randn(1, 1, 130, device=device), to(layer_of(1, 130, 8), torch.float32, device), backend="triton")
    assert frame_layer.candidates(torch.device("meta"), torch.float32)["reference"] is None


def cubin_cases() -> None:
    """A layer of the paper's models and of the small ones, for one member, for 16 and for a chunk of 256."""
    # Kernels are only compiled here, where there need not be a GPU.
    frame_layer.triton_problem = lambda device: None
    for B, H, K in ((1, 8, 64), (16, 8, 64), (256, 8, 64), (64, 4, 32)):
        _layer_cases(B, 16, H, K, 2 * H * K, torch.bfloat16)
    # Tiles of fp32 do not go by the rows.
    for B, H, K in ((16, 8, 64), (64, 4, 32)):
        _layer_cases(B, 16, H, K, 2 * H * K, torch.float32)


def _layer_cases(B: int, N: int, H: int, K: int, X: int, dtype: torch.dtype) -> None:
    D, L, C = H * K, 2 * N, 16
    cpu = torch.device("cpu")
    layer = to(layer_of(H, K, X), dtype, cpu)
    x = torch.randn(B, L, D).to(dtype)
    q, kv = x.new_empty(B, L, H, K), x.new_empty(2, B, L, H, K)
    turns, zero, tokens = torch.randn(2, 4 * L, K // 2), torch.tensor(0), torch.zeros(B, 3, dtype=torch.int64)
    heads_(x, layer, q=q, kv=kv, turns=turns, position=zero, store=kv, length=zero, backend="triton")
    heads_(x, layer, q=q, kv=kv, tokens=tokens, first=N, backend="triton")
    heads_(x, layer, q=q[:, :3], kv=kv, tokens=tokens, only_queries=True, backend="triton")
    a = attend(q, kv[0], kv[1], backend="triton")
    attend(q, kv[0], kv[1], frame=N, backend="triton")
    residual(x, a, layer.out, backend="triton")
    residual(x, a[:, :3], layer.out, tokens=tokens, first=N, backend="triton")
    residual(x, swiglu(x, layer, backend="triton"), layer.down, backend="triton")
    context, z = x[:, :N].contiguous(), torch.randn(B, N, C)
    weight, places = torch.randn(D, C).to(dtype), x[0, :N]
    given = {"base_D": layer.qkv[0], "places_ND": places, "backend": "triton"}
    rows_(x, context_BND=context, concat=True, **given)
    rows_(x, context_BND=context, concat=True, z_BMC=z, weight_DC=weight, **given)
    rows_(x, z_BMC=z[:, :3], weight_DC=weight, tokens_BM=tokens, first=N, frame_BNC=z, **given)
    read(x, weight.t().contiguous(), weight[:C, 0].contiguous(), norm=(layer.norm, 1e-5), backend="triton")
    both = torch.randn(2 * C, D).to(dtype)
    read(x[:, :N].contiguous(), both, both[:, 0].contiguous(), y_BMC=z, backend="triton")
    low = torch.randn(32, D).to(dtype)
    shifted_(
        context,
        context.clone(),
        context[:1],
        low,
        torch.randn(2 * D, 32).to(dtype),
        layer.gate_up[0].repeat(2),
        backend="triton",
    )
    seeds = torch.zeros(B, dtype=torch.int64)
    words = {"seeds": seeds, "members": seeds, "frame": zero, "steps": mask_steps((3, N - 3), cpu)}
    frame_noise(**words, channels=C, dtype=torch.float32, backend="triton")


@pytest.mark.slow
@pytest.mark.parametrize("capability", CAPABILITIES)
def test_cubins(capability: int) -> None:
    found = report("tests.ops.test_frame_layer:cubin_cases", capability)
    assert {cubin["kernel"] for cubin in found} == {
        f"_{name}_kernel" for name in ("heads", "attend", "residual", "swiglu", "rows", "read", "shifted", "noise")
    }
    for cubin in found:
        assert cubin["spills"] == 0, cubin
        assert cubin["stack"] == 0, cubin
        assert cubin["shared"] <= SHARED_LIMIT[capability], cubin
