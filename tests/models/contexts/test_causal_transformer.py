"""The causal transformer: nothing sees a later frame, a cached step equals the full pass, places are periodic."""

from dataclasses import replace

import pytest
import torch

from enma_fast.models.contexts.causal_transformer import CausalTransformer, FrameCache

from ..._tiny import CONFIGS, distance, shaken

N, C = 8, 4


def build(config, seed=0):
    torch.manual_seed(seed)
    return shaken(CausalTransformer(config), seed).eval().requires_grad_(False)


def with_context(name, **changes):
    return replace(CONFIGS[name], context=replace(CONFIGS[name].context, **changes))


VARIANTS = {
    "paper": CONFIGS["paper"],
    "paper-plain": with_context("paper", scale_shift_rank=0),
    "relative": CONFIGS["relative"],
    "relative-scaled": with_context("relative", scale_shift_rank=3),
}


@pytest.fixture(params=VARIANTS)
def transformer(request):
    return build(VARIANTS[request.param])


def frames(*counts, batch=2):
    return [torch.randn(batch, count, N, C) for count in counts]


def test_the_context_of_a_frame_does_not_depend_on_it(transformer):
    (z,) = frames(5)
    (h,) = transformer([z])
    assert h.shape == (2, 5, N, 32)
    for t in range(5):
        changed = z.clone()
        changed[:, t] += torch.randn_like(z[:, t])
        (new,) = transformer([changed])
        assert torch.equal(new[:, : t + 1], h[:, : t + 1])
        if t < 4:
            assert ((new[:, t + 1] - h[:, t + 1]).abs().amax((-1, -2)) > 1e-3).all()


def test_inside_a_frame_every_token_sees_every_other(transformer):
    (z,) = frames(2)
    (h,) = transformer([z])
    for n in range(N):
        changed = z.clone()
        changed[:, 0, n] += torch.randn(2, C)
        (new,) = transformer([changed])
        assert ((new[:, 1] - h[:, 1]).abs().amax(-1) > 1e-5).all()


def test_the_first_context_holds_no_data(transformer):
    a, b = transformer(frames(3))[0], transformer(frames(3))[0]
    assert torch.equal(a[:, 0], b[:, 0])
    assert torch.equal(a[0, 0], a[1, 0])


def test_rows_do_not_mix(transformer):
    (z,) = frames(3)
    assert distance(transformer([z[1:]])[0], transformer([z])[0][1:]) < 1e-5


def test_a_context_influences_the_target_and_not_the_other_way(transformer):
    context, target = frames(4, 3)
    h_context, h_target = transformer([context, target])
    assert (h_context.shape[1], h_target.shape[1]) == (4, 3)
    new_context, new_target = transformer([context, target + 1])
    assert torch.equal(new_context, h_context)
    assert torch.equal(new_target[:, 0], h_target[:, 0])
    _, other = transformer([context + 1, target])
    assert ((other - h_target).abs().amax((-1, -2)) > 1e-3).all()
    # A context is encoded as if it stood alone.
    assert distance(h_context, transformer([context])[0]) < 1e-5


def test_a_target_and_a_first_trajectory_have_their_own_starts(transformer):
    context, target = frames(2, 3)
    alone, (h_context, h_target) = transformer([target])[0], transformer([context, target])
    transformer.start[1] += 0.5
    assert torch.equal(transformer([target])[0], alone)
    new_context, new_target = transformer([context, target])
    assert torch.equal(new_context, h_context)
    assert ((new_target - h_target).abs().amax((-1, -2)) > 1e-3).all()


def stepwise(transformer, segments):
    """The contexts of all frames, from cached steps."""
    batch = segments[0].shape[0]
    cache = FrameCache(transformer, batch, sum(s.shape[1] + 1 for s in segments))
    out = []
    for number, segment in enumerate(segments):
        anchor = h = transformer.start_frame(cache, segment=number)
        contexts = []
        for t in range(segment.shape[1]):
            contexts.append(transformer.scaled(h, anchor, first=t == 0))
            h = transformer.step(segment[:, t], cache)
        out.append(torch.stack(contexts, dim=1) if contexts else segment.new_zeros(batch, 0, N, 32))
    assert cache.kv.shape[4] == cache.frames * N, "the buffer is as long as it is said to be"
    return out


@pytest.mark.parametrize("counts", [(1,), (5,), (4, 3), (3, 1), (2, 3, 2), (0, 3)])
def test_a_cached_step_is_the_full_pass(transformer, counts):
    segments = frames(*counts)
    for found, expected in zip(stepwise(transformer, segments), transformer(segments), strict=True):
        assert found.shape == expected.shape
        if expected.numel():
            assert distance(found, expected) < 1e-5


@pytest.mark.parametrize("name", ["relative", "relative-scaled"])
def test_rotary_contexts_turn_with_the_tokens(name):
    transformer = build(VARIANTS[name])
    segments = frames(3, 4)
    for shift in (1, 5):
        turned = transformer([s.roll(shift, dims=2) for s in segments])
        for found, expected in zip(turned, transformer(segments), strict=True):
            assert distance(found, expected.roll(shift, dims=2)) < 1e-5


def test_rotary_contexts_do_not_turn_at_a_wall():
    config = CONFIGS["relative"]
    walled = build(replace(config, codec=replace(config.codec, periodic=(False,))))
    (z,) = frames(3)
    assert distance(walled([z.roll(1, dims=2)])[0], walled([z])[0].roll(1, dims=2)) > 1e-3


def test_fixed_embeddings_do_not_turn_with_the_tokens():
    transformer = build(VARIANTS["paper"])
    (z,) = frames(3)
    assert distance(transformer([z.roll(1, dims=2)])[0], transformer([z])[0].roll(1, dims=2)) > 1e-3


@pytest.mark.parametrize(("name", "sees_order"), [("paper", False), ("relative", True)])
def test_only_rotary_encodes_the_frame_number(name, sees_order):
    # One layer deep, the order of past frames can only be told from an encoding of time; the paper has none.
    transformer = build(with_context(name, layers=1))
    (z,) = frames(4)
    difference = distance(transformer([z[:, [1, 0, 2, 3]]])[0][:, 3], transformer([z])[0][:, 3])
    assert difference > 1e-3 if sees_order else difference < 1e-5


def test_depth_tells_the_order_of_frames_without_an_encoding():
    transformer = build(VARIANTS["paper"])
    (z,) = frames(4)
    assert distance(transformer([z[:, [1, 0, 2, 3]]])[0][:, 3], transformer([z])[0][:, 3]) > 1e-4
