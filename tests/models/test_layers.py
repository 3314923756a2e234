"""Shared blocks against their formulas; rotary scores depend on differences of place and frame only."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from enma_fast.models.layers import (
    Attention,
    Block,
    RMSNorm,
    Rotary,
    ScaleShift,
    SwiGLU,
    init_linear,
    sincos,
    weights_key,
    weights_key_ref,
)
from enma_fast.ops._backend import extension
from enma_fast.ops.self_attention import attention, rotate

from .._tiny import distance, shaken


def test_rms_norm_is_its_formula():
    norm = shaken(RMSNorm(6, eps=1e-5))
    x = torch.randn(4, 5, 6)
    x64 = x.double()
    expected = x64 / (x64.square().mean(-1, keepdim=True) + 1e-5).sqrt() * norm.weight.double()
    torch.testing.assert_close(norm(x).double(), expected, rtol=1e-6, atol=1e-6)


def test_rms_norm_sums_in_fp32():
    x = (300 * torch.randn(3, 4096)).bfloat16()
    y = RMSNorm(4096)(x)
    assert y.dtype == torch.bfloat16
    expected = F.rms_norm(x.double(), (4096,), eps=1e-5)
    assert distance(y.double(), expected) < 2**-8


def test_swiglu_is_its_formula():
    mlp = SwiGLU(6, 15)
    x = torch.randn(3, 6)
    gate, up = mlp.gate_up.weight[:15], mlp.gate_up.weight[15:]
    hidden = (x @ gate.T) * (x @ gate.T).sigmoid() * (x @ up.T)
    torch.testing.assert_close(mlp(x), hidden @ mlp.down.weight.T)


@pytest.mark.parametrize("key", [weights_key, weights_key_ref])
def test_every_change_of_weights_changes_their_key(key):
    with torch.inference_mode():
        uncounted = RMSNorm(6)
    # A module may hold None in place of a part.
    module = torch.nn.ModuleDict({"mlp": SwiGLU(6, 15), "norm": RMSNorm(6), "uncounted": uncounted})
    module["norm"].register_module("absent", None)
    module["norm"].register_parameter("bias", None)

    def write_uncounted():
        with torch.inference_mode():
            uncounted.weight.mul_(2)

    changes = [
        lambda: module["mlp"].down.weight.data_ptr(),
        lambda: module["norm"].weight.detach().add_(1),
        lambda: module["mlp"].load_state_dict(module["mlp"].state_dict()),
        lambda: setattr(module["mlp"].down, "weight", torch.nn.Parameter(torch.zeros(6, 15))),
        lambda: setattr(module["norm"].weight, "data", torch.ones(6)),
        lambda: module["norm"].register_module("absent", RMSNorm(2)),
        write_uncounted,
    ]
    keys = [key(module)]
    for change in changes:
        change()
        keys.append(key(module))
    assert [a == b for a, b in itertools.pairwise(keys)] == [True, *[False] * 6]


def test_the_compiled_key_is_that_of_the_reference():
    compiled = extension()
    if compiled is None:
        pytest.skip("the extension is not built")
    model = SwiGLU(6, 15)
    assert np.frombuffer(compiled.weights_key(model), np.int64).tolist() == list(weights_key_ref(model))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("length", [1, 7, 33])
def test_attention_is_softmax(length, masked):
    q, k, v = (torch.randn(2, 3, n, 8) for n in (length, 13, 13))
    mask = None
    if masked:
        mask = torch.zeros(length, 13).masked_fill(torch.rand(length, 13) < 0.5, float("-inf"))
        mask[:, 0] = 0.0
    expected = F.scaled_dot_product_attention(
        q.double(), k.double(), v.double(), attn_mask=None if mask is None else mask.double()
    )
    torch.testing.assert_close(attention(q, k, v, mask).double(), expected, rtol=1e-5, atol=1e-6)


def test_block_is_two_residuals():
    block = shaken(Block(16, 2))
    x = torch.randn(2, 5, 16)
    q, k, v = block.attention.project(block.norm_1(x), None)
    y = x + block.attention.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(2, 5, 16))
    expected = y + block.mlp(block.norm_2(y))
    torch.testing.assert_close(sum(block(x, None)), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(sum(block(x - 2, torch.full_like(x, 2))), expected, rtol=1e-4, atol=1e-4)


def test_queries_and_keys_are_normalised_per_head_and_values_are_not():
    layer = Attention(24, 3)
    x = 50 * torch.randn(2, 4, 24)
    q, k, v = layer.project(x, None)
    assert q.shape == (2, 3, 4, 8)
    for normed in (q, k):
        torch.testing.assert_close(normed.square().mean(-1), torch.ones(2, 3, 4), rtol=1e-4, atol=1e-4)
    rows = x @ layer.qkv.weight[48:].T
    torch.testing.assert_close(v.transpose(1, 2).reshape(2, 4, 24), rows, rtol=1e-4, atol=1e-4)


def test_rotation_keeps_lengths_and_turns_by_the_angle():
    x = torch.randn(2, 3, 5, 8)
    angle = torch.rand(5, 4) * 7
    y = rotate(x, angle.cos(), angle.sin())
    as_complex = torch.complex(x[..., :4], x[..., 4:]) * torch.polar(torch.ones(5, 4), angle)
    torch.testing.assert_close(y, torch.cat([as_complex.real, as_complex.imag], dim=-1))
    torch.testing.assert_close(y.norm(dim=-1), x.norm(dim=-1))


def scores(rotary, frames):
    """Scores of one query and one key direction between all places and frames."""
    generator = torch.Generator().manual_seed(3)
    pairs = rotary.tables(torch.arange(1))[0].shape[1]
    q, k = torch.randn(2, 2 * pairs, generator=generator)
    cos, sin = rotary.tables(torch.tensor(frames))
    count = len(cos)
    q, k = (rotate(x.expand(1, 1, count, -1), cos, sin)[0, 0] for x in (q, k))
    return q @ k.T


def test_scores_depend_on_the_difference_of_places_around_the_ring():
    s = scores(Rotary((8,), (True,), 16), [0])
    for shift in range(1, 8):
        torch.testing.assert_close(s.roll((shift, shift), (0, 1)), s, rtol=1e-4, atol=1e-4)
    # They do depend on it.
    assert (s[0] - s[0, 0]).abs()[1:].min() > 1e-2


def test_scores_depend_on_the_difference_of_places_along_a_wall():
    s = scores(Rotary((8,), (False,), 16), [0])
    for shift in range(1, 8):
        torch.testing.assert_close(s[shift:, shift:], s[:-shift, :-shift], rtol=1e-4, atol=1e-4)
    assert (s.roll((1, 1), (0, 1)) - s).abs().max() > 1e-2


def test_scores_depend_on_the_difference_of_frames():
    rotary = Rotary((4,), (True,), 32)
    near, far = scores(rotary, [0, 3]), scores(rotary, [17, 20])
    torch.testing.assert_close(near, far, rtol=1e-4, atol=1e-4)
    assert (scores(rotary, [0, 1])[:4, 4:] - near[:4, 4:]).abs().max() > 1e-2


def test_rotary_angles_on_a_plane():
    rotary = Rotary((4, 3), (True, False), 32)
    cos, sin = rotary.tables(torch.tensor([2.0]))
    angle = torch.zeros(4, 3, 16, dtype=torch.float64)
    for i in range(4):
        for j in range(3):
            for h in range(4):
                angle[i, j, h] = 2 * math.pi / 4 * i * (h + 1)
                angle[i, j, 4 + h] = math.pi / 3 * j * (h + 1)
                angle[i, j, 8 + h] = 2.0 * 32 ** (-h / 3)
    torch.testing.assert_close(cos, angle.cos().float().flatten(0, 1), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(sin, angle.sin().float().flatten(0, 1), rtol=1e-6, atol=1e-6)


def test_scale_and_shift_starts_as_the_anchor_and_is_its_formula():
    layer = ScaleShift(6, 3)
    c, anchor = torch.randn(2, 5, 6), torch.randn(2, 5, 6)
    assert torch.equal(layer(c, anchor), anchor)
    shaken(layer)
    gamma, beta = (F.silu(c) @ layer.down.weight.T @ layer.up.weight.T + layer.up.bias).split(6, dim=-1)
    torch.testing.assert_close(layer(c, anchor), anchor + anchor * gamma + beta)


def test_sincos_embeddings_tell_places_apart():
    table = sincos((6, 5), 18)
    assert table.shape == (30, 18)
    assert torch.pdist(table).min() > 0.1
    # Four frequencies for each dimension: 18 // 2 // 2; the two channels left over are zero.
    frequency = 10_000.0 ** -(torch.arange(4) / 4)
    i, j = 4, 3
    parts = [torch.sin(i * frequency), torch.cos(i * frequency), torch.sin(j * frequency), torch.cos(j * frequency)]
    torch.testing.assert_close(table[i * 5 + j], torch.cat([*parts, torch.zeros(2)]))


def test_output_projections_start_smaller():
    torch.manual_seed(0)
    blocks = torch.nn.ModuleList([Block(128, 2) for _ in range(2)])
    init_linear(blocks, depth=8)
    for block in blocks:
        for layer, std in (
            (block.attention.qkv, 128**-0.5),
            (block.attention.out, 128**-0.5 / 4),
            (block.mlp.gate_up, 128**-0.5),
            (block.mlp.down, 256**-0.5 / 4),
        ):
            assert layer.weight.std().item() == pytest.approx(std, rel=0.05)
