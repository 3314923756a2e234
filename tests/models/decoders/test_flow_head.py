"""The flow head: its loss against hand formulas, its integrator against an exact flow, and that it learns."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from enma_fast.config import FlowConfig
from enma_fast.models.decoders.flow_head import FlowHead, VelocityHead
from enma_fast.models.schedule import flow_times
from enma_fast.ops.flow_head import flow_head_ref, integrate

from ..._tiny import distance, shaken

CONFIG = FlowConfig(width=24, layers=2, time_features=16)
RESIDUAL = replace(CONFIG, target="residual")
C, D = 3, 10


def build(config=CONFIG, channels=C, width=D):
    torch.manual_seed(0)
    return shaken(FlowHead(config, channels, width))


@pytest.fixture
def batch():
    """Tokens `[5, 2, C]`, conditions, noise of 4 draws and their times."""
    return torch.randn(5, 2, C), torch.randn(5, 2, D), torch.randn(5, 2, 4, C), torch.rand(5, 2, 4, 1)


def matching(head, x_1, c, noise, r):
    """Mean square error of the velocity, one draw at a time."""
    errors = []
    for k in range(noise.shape[-2]):
        e, t = noise[..., k, :], r[..., k, :]
        errors.append((head.velocity((1 - t) * e + t * x_1, c, t) - (x_1 - e)) ** 2)
    return torch.stack(errors).mean((0, -1))


def test_a_new_head_is_at_rest(batch):
    z, c, noise, r = batch
    head = FlowHead(CONFIG, C, D)
    x = torch.randn(5, 2, 4, C)
    assert torch.equal(head.velocity(x, c[..., None, :], r), torch.zeros(5, 2, 4, C))
    loss, _ = head.token_loss(z, c, noise, r)
    torch.testing.assert_close(loss, (z[..., None, :] - noise).square().mean((-1, -2)))
    # Without a velocity noise stays where it is.
    assert torch.equal(head.sample(c, z, steps=3), z)


def test_loss_of_the_token_itself_is_its_formula(batch):
    z, c, noise, r = batch
    head = build()
    loss, terms = head.token_loss(z, c, noise, r)
    torch.testing.assert_close(loss, matching(head, z, c, noise, r))
    assert terms.keys() == {"flow"}
    assert torch.equal(terms["flow"], loss)


def test_loss_of_the_residual_is_its_formula(batch):
    z, c, noise, r = batch
    head = build(RESIDUAL)
    loss, terms = head.token_loss(z, c, noise, r)
    mean, raw = (c @ head.moments.weight.T + head.moments.bias).chunk(2, dim=-1)
    scale = torch.log1p(torch.exp(raw) * (math.e - 1)) + 1e-3
    nll = -torch.distributions.Normal(mean, scale).log_prob(z) - 0.5 * math.log(2 * math.pi)
    likelihood = (scale * nll).mean(-1)
    flow = matching(head, (z - mean) / scale, c, noise, r)
    torch.testing.assert_close(loss, flow + likelihood, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(terms["flow"], flow, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(terms["error"], (z - mean).square().mean(-1))
    torch.testing.assert_close(terms["scale"], scale.square().mean(-1), rtol=1e-4, atol=1e-5)


def test_the_flow_does_not_train_the_moments_nor_the_likelihood_the_flow(batch):
    z, c, noise, r = batch
    head = build(RESIDUAL)
    head.token_loss(z, c, noise, r)[0].mean().backward()
    both = head.moments.weight.grad.clone()
    velocity = head.velocity.outward.weight.grad.clone()
    head.zero_grad()
    head.token_loss(z, c, torch.zeros_like(noise), torch.zeros_like(r))[0].mean().backward()
    torch.testing.assert_close(head.moments.weight.grad, both)
    assert distance(head.velocity.outward.weight.grad, velocity) > 1e-2


def test_moments_start_at_zero_and_one_and_the_scale_is_bounded_below():
    head = FlowHead(RESIDUAL, C, D)
    mean, scale = head.mean_and_scale(torch.randn(4, D))
    assert torch.equal(mean, torch.zeros(4, C))
    torch.testing.assert_close(scale, torch.full((4, C), 1.001))
    with torch.no_grad():
        head.moments.bias[C:] = -200.0
    torch.testing.assert_close(head.mean_and_scale(torch.zeros(D))[1], torch.full((C,), 1e-3))


def test_draws_broadcast(batch):
    z, c, noise, r = batch
    head = build()
    v = head.velocity(noise, c[..., None, :], r)
    for k in range(4):
        assert distance(v[..., k, :], head.velocity(noise[..., k, :], c, r[..., k, :])) < 1e-5
    single = [head.token_loss(z, c, noise[..., k : k + 1, :], r[..., k : k + 1, :])[0] for k in range(4)]
    torch.testing.assert_close(head.token_loss(z, c, noise, r)[0], torch.stack(single).mean(0))


def test_velocity_depends_on_all_its_arguments(batch):
    _, c, noise, r = batch
    velocity = build().velocity
    x, t = noise[..., 0, :], r[..., 0, :]
    v = velocity(x, c, t)
    for other in (velocity(x + 0.1, c, t), velocity(x, c + 0.1, t), velocity(x, c, t + 0.1)):
        assert distance(other, v) > 1e-3


def test_time_features_are_their_formula():
    features = VelocityHead(CONFIG, C, D).features(torch.tensor([[0.0], [0.37]]))
    angles = [370 * 10_000 ** (-i / 8) for i in range(8)]
    assert features[0].tolist() == [1.0] * 8 + [0.0] * 8
    expected = torch.tensor([math.cos(a) for a in angles] + [math.sin(a) for a in angles])
    torch.testing.assert_close(features[1], expected, rtol=1e-4, atol=1e-4)


SPREAD = 0.3


def gaussian_velocity(x, c, r):
    """The exact velocity field from N(0, 1) to N(c, SPREAD^2)."""
    variance = (1 - r) ** 2 + (r * SPREAD) ** 2
    return c + (r * SPREAD**2 - (1 - r)) / variance * (x - r * c)


def growth(x, c, r):
    """dx/dr = c x cos 2r, so that x(1) = x(0) exp(c sin(2) / 2)."""
    return c * x * math.cos(2 * r)


def follow(field, c, noise, *, steps):
    """The state at flow time 1 under a velocity field in closed form."""
    times = flow_times(steps)
    moves = tuple(h for _, h in times)
    return integrate(lambda k, x: field(x, c, times[k][0]), noise, moves=moves, moves_per_step=2)


def test_the_exact_flow_of_a_gaussian_is_followed():
    c, noise = torch.tensor([1.5, -0.5, 0.0]), torch.randn(200, C)
    exact = c + SPREAD * noise
    error = (follow(gaussian_velocity, c, noise, steps=32) - exact).abs().max()
    assert error < 1e-4


# The flow of a Gaussian would not do: there the midpoint method happens to be of third order.
def test_the_integrator_converges_at_its_order():
    c, start = torch.tensor([1.5, -0.5, 2.0]), torch.randn(50, C)
    exact = start * torch.exp(c * math.sin(2) / 2)
    errors = [(follow(growth, c, start, steps=steps) - exact).abs().max().item() for steps in (16, 32, 64)]
    for coarse, fine in pairwise(errors):
        assert math.log2(coarse / fine) == pytest.approx(2, abs=0.2)


def test_samples_of_the_residual_are_scaled_and_shifted():
    head = build(RESIDUAL)
    c, noise = torch.randn(200, D), torch.randn(200, C)
    mean, scale = head.mean_and_scale(c)
    standard = flow_head_ref(c, noise, plan=head.velocity.plan(steps=8))
    found = head.sample(c, noise, steps=8)
    torch.testing.assert_close(found, mean + scale * standard, rtol=0, atol=1e-6)


def test_sampling_is_an_integration_of_the_velocity():
    head = build()
    c, noise = torch.randn(7, D), torch.randn(7, C)
    y = noise
    for i in range(4):
        r = torch.full((7, 1), i / 4)
        middle = y + head.velocity(y, c, r) / 8
        y = y + head.velocity(middle, c, r + 1 / 8) / 4
    assert distance(head.sample(c, noise, steps=4), y) < 1e-5


@pytest.mark.parametrize("config", [CONFIG, RESIDUAL], ids=["data", "residual"])
def test_learns_a_distribution_with_two_modes(config):
    """Modes at -1 and 1, their width 0.1 and their weights by the condition: 0.8 and 0.2, or 0.3 and 0.7."""
    torch.manual_seed(0)
    head = FlowHead(replace(config, width=32), 1, 2)
    generator = torch.Generator().manual_seed(1)
    optimizer = torch.optim.AdamW(head.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=300)
    conditions = torch.eye(2)
    right = torch.tensor([0.2, 0.7])
    for _ in range(300):
        which = torch.randint(2, (256,), generator=generator)
        sign = torch.where(torch.rand(256, generator=generator) < right[which], 1.0, -1.0)
        z = (sign + 0.1 * torch.randn(256, generator=generator))[:, None]
        noise, r = torch.randn(256, 2, 1, generator=generator), torch.rand(256, 2, 1, generator=generator)
        optimizer.zero_grad()
        head.token_loss(z, conditions[which], noise, r)[0].mean().backward()
        optimizer.step()
        schedule.step()
    with torch.inference_mode():
        for i in range(2):
            noise = torch.randn(4000, 1, generator=generator)
            z = head.sample(conditions[i].expand(4000, 2), noise, steps=20)
            assert (z > 0).float().mean().item() == pytest.approx(right[i].item(), abs=0.06)
            assert (z.abs() < 0.5).float().mean() < 0.03
            for sign in (-1, 1):
                mode = z[z.sign() == sign]
                assert mode.mean().item() == pytest.approx(sign, abs=0.06)
                assert mode.median().item() == pytest.approx(sign, abs=0.05)
                assert (mode.quantile(0.84) - mode.quantile(0.16)).item() / 2 == pytest.approx(0.1, abs=0.05)


def test_half_precision_conditions_keep_fp32_tokens(batch):
    z, c, noise, r = batch
    head = build(RESIDUAL)
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = head.token_loss(z, c.bfloat16(), noise, r)
        out = head.sample(c.bfloat16(), noise[..., 0, :], steps=2)
    assert (loss.dtype, out.dtype) == (torch.float32, torch.float32)
    assert distance(loss, head.token_loss(z, c, noise, r)[0]) < 0.1
    assert distance(out, head.sample(c, noise[..., 0, :], steps=2)) < 0.1
