"""The masked transformer: unknown tokens do not matter, known ones do, places turn around a periodic domain."""

import itertools
from dataclasses import replace

import pytest
import torch

from enma_fast.models.masked_transformer import MaskedTransformer

from .._tiny import CONFIGS, distance, shaken

N, C, D = 8, 4, 32
VARIANTS = dict(enumerate(itertools.product(("sincos", "rotary"), ("concat", "add"))))


def build(positions, condition, periodic=True):
    config = CONFIGS["relative"]
    changed = replace(
        config,
        codec=replace(config.codec, periodic=(periodic,)),
        context=replace(config.context, positions=positions),
        trunk=replace(config.trunk, condition=condition),
    )
    torch.manual_seed(0)
    made = shaken(MaskedTransformer(changed))
    return made.eval().requires_grad_(False)


@pytest.fixture(params=VARIANTS.values(), ids="-".join)
def trunk(request):
    return build(*request.param)


@pytest.fixture
def frame():
    """Context, tokens, and which of them are known: one row with none, one with all."""
    known = torch.rand(4, N) < 0.5
    known[0], known[1] = False, True
    return torch.randn(4, N, D), torch.randn(4, N, C), known


def test_unknown_tokens_do_not_matter(trunk, frame):
    h, x, known = frame
    c = trunk(h, x, known)
    assert c.shape == (4, N, D)
    assert torch.equal(trunk(h, torch.where(known[..., None], x, torch.full_like(x, 1e6)), known), c)
    assert torch.equal(trunk(h, torch.where(known[..., None], x, torch.nan), known), c)


def test_every_known_token_and_every_context_matter_everywhere(trunk, frame):
    h, x, _ = frame
    known = torch.ones(4, N, dtype=torch.bool)
    c = trunk(h, x, known)
    for n in range(N):
        new_x, new_h = x.clone(), h.clone()
        new_x[:, n] += 1
        new_h[:, n] += torch.randn(4, D)
        for changed in (trunk(h, new_x, known), trunk(new_h, x, known)):
            assert ((changed - c).abs().amax(-1) > 1e-5).all()


def test_knowing_a_token_matters(trunk, frame):
    h, x, known = frame
    c = trunk(h, x, known)
    flipped = known.clone()
    flipped[:, 3] = ~flipped[:, 3]
    assert ((trunk(h, x, flipped) - c).abs().amax((-1, -2)) > 1e-4).all()


def test_rows_do_not_mix(trunk, frame):
    h, x, known = frame
    assert distance(trunk(h[2:], x[2:], known[2:]), trunk(h, x, known)[2:]) < 1e-5


def test_two_n_tokens_or_n(frame):
    lengths = {}
    for condition in ("concat", "add"):
        trunk = build("rotary", condition)
        trunk.blocks[0].register_forward_hook(
            lambda module, inputs, output, key=condition: lengths.update({key: inputs[0].shape[1]})
        )
        assert trunk(*frame).shape == (4, N, D)
    assert lengths == {"concat": 2 * N, "add": N}


def turned_differs(trunk, frame, shift):
    return distance(trunk(*(a.roll(shift, dims=1) for a in frame)), trunk(*frame).roll(shift, dims=1))


@pytest.mark.parametrize("condition", ["concat", "add"])
def test_rotary_conditions_turn_with_the_tokens(frame, condition):
    for shift in (1, 5):
        assert turned_differs(build("rotary", condition), frame, shift) < 1e-5


@pytest.mark.parametrize("condition", ["concat", "add"])
def test_they_do_not_turn_at_a_wall_or_with_fixed_embeddings(frame, condition):
    assert turned_differs(build("rotary", condition, periodic=False), frame, 1) > 1e-3
    assert turned_differs(build("sincos", condition), frame, 1) > 1e-3


def test_context_and_tokens_of_one_place_can_be_told_apart():
    # Exchanging the halves of the sequence is more than a permutation: half a frame lies between them.
    trunk = build("rotary", "concat")
    seen = []
    trunk.blocks[-1].register_forward_hook(lambda module, inputs, output: seen.append(sum(output)))
    a, b = torch.randn(2, 4, N, C)
    known = torch.ones(4, N, dtype=torch.bool)
    trunk(trunk.embed(a), b, known)
    trunk(trunk.embed(b), a, known)
    assert distance(seen[0].roll(N, dims=1), seen[1]) > 1e-3


def test_conditions_are_normalised(frame):
    trunk = build("rotary", "add")
    trunk.norm.weight.fill_(1.0)
    torch.testing.assert_close(trunk(*frame).square().mean(-1), torch.ones(4, N), rtol=1e-3, atol=1e-3)
