"""The codecs of convolutions: their layers, where shifts do not commute, and the loss by its formula."""

from dataclasses import replace

import pytest
import torch

from enma_fast.config import ConvConfig
from enma_fast.models.codecs.conv import ExpandSpace, ExpandTime
from enma_fast.models.layers import pad_space

from ..._tiny import LINE, PLANE
from ._codecs import CONVOLUTIONS, build, field, shifted_encode_differs


@pytest.fixture(params=CONVOLUTIONS)
def options(request):
    return CONVOLUTIONS[request.param]


@pytest.fixture
def codec(options):
    return build(options)


@pytest.mark.parametrize(("frames", "latents"), [(20, 11), (50, 26), (30, 16)])
def test_latent_frames_of_the_paper(frames, latents):
    config = ConvConfig()
    codec = build(config)
    assert codec.encode(field(config, frames, batch=1)).shape == (1, latents, 16, 4)


def test_shifts_by_a_part_of_a_token_do_not_commute():
    assert shifted_encode_differs(build(LINE), LINE, 1) > 1e-2


@pytest.mark.parametrize("periodic", [(False, True), (False, False)])
def test_shifts_do_not_commute_at_a_wall(periodic):
    options = replace(PLANE, periodic=periodic)
    assert shifted_encode_differs(build(options), options, options.space_factor) > 1e-2


def test_padding_goes_around_the_ring_and_is_zero_at_a_wall():
    x = torch.arange(1.0, 7.0).view(1, 1, 1, 2, 3)
    expected = [[0, 0, 0, 0, 0], [3, 1, 2, 3, 1], [6, 4, 5, 6, 4], [0, 0, 0, 0, 0]]
    assert pad_space(x, 1, (False, True))[0, 0, 0].tolist() == expected
    expected = [[0, 4, 5, 6, 0], [0, 1, 2, 3, 0], [0, 4, 5, 6, 0], [0, 1, 2, 3, 0]]
    assert pad_space(x, 1, (True, False))[0, 0, 0].tolist() == expected


def test_expanding_space_puts_each_channel_at_its_place():
    layer = ExpandSpace(1, 1, PLANE, kernel=3)
    with torch.no_grad():
        layer.conv.conv.weight.zero_()
        layer.conv.conv.bias.copy_(torch.arange(4.0))
    out = layer(torch.zeros(1, 1, 1, 2, 2))
    assert out[0, 0, 0].tolist() == [[0, 1, 0, 1], [2, 3, 2, 3], [0, 1, 0, 1], [2, 3, 2, 3]]


def test_expanding_time_drops_the_first_frame():
    layer = ExpandTime(1, 1, LINE)
    with torch.no_grad():
        layer.conv.conv.weight.fill_(1.0)
        layer.conv.conv.bias.copy_(torch.tensor([0.25, 0.5]))
    out = layer(torch.tensor([10.0, 20.0, 30.0]).view(1, 1, 3, 1))
    assert out.flatten().tolist() == [10.5, 20.25, 20.5, 30.25, 30.5]


def test_loss_is_its_formula():
    codec = build(replace(LINE, kl_weight=0.3))
    u = field(LINE, 6, batch=3)
    mean, log_variance = codec.posterior(u)
    noise = torch.randn_like(mean)
    loss, relative = codec(u, noise)
    out = codec.decode(mean + log_variance.exp().sqrt() * noise, 6)
    errors = [((a - b) ** 2).sum().sqrt() / (b**2).sum().sqrt() for a, b in zip(out, u, strict=True)]
    normal = torch.distributions.Normal
    kl = torch.distributions.kl_divergence(normal(mean, log_variance.exp().sqrt()), normal(0.0, 1.0)).mean()
    torch.testing.assert_close(relative, torch.stack(errors).mean(), rtol=1e-5, atol=0)
    torch.testing.assert_close(loss, relative + 0.3 * kl, rtol=1e-5, atol=0)


def test_a_plain_auto_encoder_ignores_the_noise():
    codec = build(replace(LINE, variational=False))
    u = field(LINE, 5)
    mean, log_variance = codec.posterior(u)
    assert mean.shape[-1] == LINE.latent_channels
    assert (log_variance == float("-inf")).all()
    loss, relative = codec(u, torch.randn_like(mean))
    assert torch.equal(loss, relative)
    assert torch.equal(loss, codec(u, torch.zeros_like(mean))[0])
    # Bit for bit equality would hang on how the error is summed.
    expected = (codec.decode(mean, 5) - u).flatten(1).norm(dim=1) / u.flatten(1).norm(dim=1)
    torch.testing.assert_close(loss, expected.mean(), rtol=1e-6, atol=0)


def test_a_field_of_zeros_has_a_finite_loss():
    codec = build(LINE).requires_grad_(True)
    u = torch.zeros(2, 3, 32, 1)
    loss, _ = codec(u, torch.randn(2, 2, 16, 2))
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(p.grad).all() for p in codec.parameters())


def test_every_parameter_is_trained(codec, options):
    codec.train().requires_grad_(True)
    u, points, values = field(options, 5), None, None
    if options.at_points:
        points, values = torch.rand(2, 9, options.dims), torch.randn(2, 5, 9, options.field_channels)
    noise = torch.randn_like(codec.encode(u))
    codec(u, noise, points, values)[0].backward()
    idle = {name for name, p in codec.named_parameters() if p.grad is None or not p.grad.any()}
    # A softmax does not see what is added to all its scores.
    assert {name for name in idle if not name.endswith(("attend.bias", "_k.bias"))} == set()


def test_loss_from_points_compares_on_the_grid():
    options = CONVOLUTIONS["points"]
    codec = build(options)
    u = field(options, 4)
    index = torch.randperm(32)[:20].expand(2, -1)
    points = codec.interpolation.regular[index]
    values = u[:, :, index[0]]
    noise = torch.zeros(2, 3, 16, options.latent_channels)
    _, relative = codec(u, noise, points, values)
    out = codec.decode(codec.encode(values, points), 4)
    expected = (out - u).flatten(1).norm(dim=1) / u.flatten(1).norm(dim=1)
    torch.testing.assert_close(relative, expected.mean())
