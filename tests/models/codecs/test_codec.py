"""Codecs of every kind: sizes, what does not depend on later frames, and shifts around a ring."""

import pytest
import torch

from enma_fast.errors import EnmaError

from ..._tiny import LINE, PLANE, distance
from ._codecs import BLOCKS, OPTIONS, build, field, shifted_encode_differs


@pytest.fixture(params=OPTIONS)
def options(request):
    return OPTIONS[request.param]


@pytest.fixture
def codec(options):
    return build(options)


@pytest.mark.parametrize("frames", [1, 2, 3, 8, 9])
def test_shapes(codec, options, frames):
    z = codec.encode(field(options, frames))
    tokens = torch.Size(options.token_grid).numel()
    assert z.shape == (2, options.latent_frames(frames), tokens, options.latent_channels)
    whole = (z.shape[1] - 1) * options.time_factor + 1
    assert codec.decode(z).shape == (2, whole, *options.grid, options.field_channels)
    out = codec.decode(z, frames)
    assert out.shape == (2, frames, *options.grid, options.field_channels)
    assert out.dtype == torch.float32
    # Cropping only drops frames.
    assert torch.equal(out, codec.decode(z)[:, :frames])


def test_no_latent_depends_on_a_later_frame(codec, options):
    u = field(options, 9)
    z = codec.encode(u)
    for t in range(9):
        changed = u.clone()
        changed[:, t] += torch.randn_like(u[:, t])
        holder = -(-t // options.time_factor)
        new = codec.encode(changed)
        assert torch.equal(new[:, :holder], z[:, :holder])
        assert distance(new[:, holder], z[:, holder]) > 1e-3


def test_latents_of_a_beginning_are_a_beginning_of_the_latents(codec, options):
    u = field(options, 9)
    z = codec.encode(u)
    for frames in (1, 5, 9):
        assert distance(codec.encode(u[:, :frames]), z[:, : options.latent_frames(frames)]) < 1e-5


def test_no_frame_depends_on_a_later_latent(codec, options):
    z = torch.randn(2, 4, torch.Size(options.token_grid).numel(), options.latent_channels)
    u = codec.decode(z)
    for j in range(4):
        changed = z.clone()
        changed[:, j] += torch.randn_like(z[:, j])
        first = 0 if j == 0 else (j - 1) * options.time_factor + 1
        new = codec.decode(changed)
        assert torch.equal(new[:, :first], u[:, :first])
        assert distance(new[:, first], u[:, first]) > 1e-3


def test_a_latent_that_is_not_full_repeats_the_last_frame(codec, options):
    u = field(options, 2)
    more = torch.cat([u, u[:, -1:].expand(-1, options.time_factor - 1, *u.shape[2:])], dim=1)
    assert torch.equal(codec.encode(u), codec.encode(more))


@pytest.mark.parametrize("options", [LINE, PLANE, OPTIONS["strided"], *BLOCKS.values()])
def test_shifts_by_whole_tokens_commute_around_the_ring(options):
    codec = build(options)
    for tokens in (1, 3):
        assert shifted_encode_differs(codec, options, tokens * options.space_factor) < 1e-5
    z = torch.randn(2, 3, torch.Size(options.token_grid).numel(), options.latent_channels)
    moved = z.view(2, 3, *options.token_grid, -1).roll(1, dims=2).flatten(2, -2)
    expected = codec.decode(z).roll(options.space_factor, dims=2)
    assert distance(codec.decode(moved), expected) < 1e-5


@pytest.mark.parametrize("name", ["line", *BLOCKS])
def test_what_works_on_its_grid_alone_says_so(name):
    options = OPTIONS[name]
    codec = build(options)
    with pytest.raises(EnmaError, match=r"^points\b"):
        codec.encode(torch.randn(1, 3, 7, options.field_channels), torch.rand(7, options.dims))
    z = codec.encode(field(options, 3))
    with pytest.raises(EnmaError, match=r"^query\b"):
        codec.decode(z, query=torch.rand(7, options.dims))


@pytest.mark.parametrize("name", ["plane", "plane of blocks"])
def test_a_wrong_grid_is_named(name):
    options = OPTIONS[name]
    with pytest.raises(EnmaError, match="grid") as caught:
        build(options).encode(field(options, 3).transpose(2, 3))
    assert str(options.grid) in str(caught.value)
    assert str(options.grid[::-1]) in str(caught.value)


def test_fields_are_standardised_and_come_back_in_their_units():
    options = BLOCKS["plane of blocks"]
    made = build(options)
    u = field(options, 5)
    z = made.encode(u)
    torch.testing.assert_close(z[:, 1:].flatten(1).sort(-1)[0], ((u[:, 1:] - 0.5) / 3.0).flatten(1).sort(-1)[0])
    torch.testing.assert_close(made.standardised(u), (u - 0.5) / 3.0)
    torch.testing.assert_close(made.decode(z, 5), u)


def test_a_codec_knows_where_it_is_and_whether_it_is_trained(codec, options):
    assert codec.device == torch.device("cpu")
    assert codec.dtype == torch.float32
    assert codec.double().dtype == torch.float64
    assert codec.to("meta").device.type == "meta"
    assert codec.trained == (options not in BLOCKS.values())
    # Neither what stands for its place nor the units of the field belong to a checkpoint.
    assert {"place", "field_mean", "field_scale"}.isdisjoint(codec.state_dict())
