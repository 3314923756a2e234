"""The training loss: the formula over masked tokens, invariant to what it should be; the sizes of the presets."""

from dataclasses import replace

import pytest
import torch

from enma_fast.models.model import Dynamics, Model, SegmentDraws, draw
from enma_fast.training.recipes import RECIPES

from .._tiny import CONFIGS, distance, model, shaken, waves

N, C = 8, 4
SHAPES = {"one": [(4, 5)], "two": [(4, 5), (4, 3)]}


def build(name):
    torch.manual_seed(0)
    return shaken(Dynamics(CONFIGS[name])).eval().requires_grad_(False)


def make_draws(shapes, name="relative", seed=0, **changes):
    """Draws of a step whose history has noise too, so that what is read is not what is scored."""
    settings = {"draws": 2, "mask_ratio": (0.25, 1.0)} | changes
    generator = torch.Generator().manual_seed(seed)
    draws = draw(CONFIGS[name], shapes, generator=generator, **settings)
    assert not any(history.any() for history in draws.history)
    return replace(draws, history=[0.2 * torch.randn(h.shape, generator=generator) for h in draws.history])


def apply(draws, change):
    """Draws with `change(tensor)` done to each tensor of a segment."""
    lists = ([change(x) for x in part] for part in (draws.noise, draws.times, draws.known, draws.history))
    return SegmentDraws(*lists, draws.masked)


@pytest.fixture(params=["paper", "relative"])
def dynamics(request):
    return build(request.param)


@pytest.fixture(params=SHAPES)
def batch(request):
    """Segments and draws."""
    shapes = SHAPES[request.param]
    generator = torch.Generator().manual_seed(5)
    return [torch.randn(*shape, N, C, generator=generator) for shape in shapes], make_draws(shapes, seed=1)


def test_loss_is_the_mean_over_masked_tokens(dynamics, batch):
    segments, draws = batch
    contexts = dynamics.context([z + n for z, n in zip(segments, draws.history, strict=True)])
    losses, terms = [], []
    for i, (z, h) in enumerate(zip(segments, contexts, strict=True)):
        for b in range(z.shape[0]):
            for t in range(z.shape[1]):
                known = draws.known[i][b, t]
                c = dynamics.trunk(h[b : b + 1, t], z[b : b + 1, t], known[None])[0]
                for n in range(N):
                    if not known[n]:
                        loss, term = dynamics.step.token_loss(
                            z[b, t, n], c[n], draws.noise[i][b, t, n], draws.times[i][b, t, n]
                        )
                        losses.append(loss)
                        terms.append(term)
    loss, logged = dynamics(segments, draws)
    assert draws.masked == len(losses)
    torch.testing.assert_close(loss, torch.stack(losses).mean(), rtol=1e-5, atol=1e-6)
    for key, value in logged.items():
        torch.testing.assert_close(value, torch.stack([term[key] for term in terms]).mean(), rtol=1e-5, atol=1e-6)


def test_a_one_pass_model_takes_the_flow_loss_of_frames_0_and_the_crps_of_the_others(batch):
    dynamics, (segments, draws) = build("relative-fast"), batch
    contexts = dynamics.context([z + n for z, n in zip(segments, draws.history, strict=True)])
    flow, crps = [], []
    for i, (z, h) in enumerate(zip(segments, contexts, strict=True)):
        known = draws.known[i][:, 0]
        c = dynamics.trunk(h[:, 0], z[:, 0], known)
        loss, _ = dynamics.initial.token_loss(z[:, 0], c, draws.noise[i][:, 0], draws.times[i][:, 0])
        flow.append(loss[~known])
        for t in range(1, z.shape[1]):
            made = [
                dynamics.step.read(dynamics.trunk.unknown(h[:, t], dynamics.step.noise(draws.noise[i][:, t, :, k])))
                for k in range(draws.noise[i].shape[3])
            ]
            errors = torch.stack([(x - z[:, t]).abs() for x in made]).mean(0)
            pairs = [(a - b).abs() for k, a in enumerate(made) for b in made[:k]]
            crps.append(errors - torch.stack(pairs).mean(0) / 2)
    loss, logged = dynamics(segments, draws)
    torch.testing.assert_close(logged["first_frame"], torch.cat(flow).sum() / draws.masked, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(logged["crps"], torch.stack(crps).mean(), rtol=1e-5, atol=1e-6)
    assert loss == logged["first_frame"] + logged["crps"]


def test_order_of_trajectories_does_not_matter(dynamics, batch):
    segments, draws = batch
    order = torch.tensor([2, 0, 3, 1])
    loss, _ = dynamics([z[order] for z in segments], apply(draws, lambda x: x[order]))
    torch.testing.assert_close(loss, dynamics(segments, draws)[0], rtol=1e-5, atol=0)
    # Trajectories and their draws belong together.
    other, _ = dynamics([z[order] for z in segments], draws)
    assert abs(other / loss - 1) > 1e-3


def test_shifts_around_the_ring_do_not_matter_to_rotary_places(batch):
    segments, draws = batch
    for name, limit in (("relative", 1e-5), ("paper", None)):
        dynamics = build(name)
        loss, _ = dynamics(segments, draws)
        turned, _ = dynamics([z.roll(3, dims=2) for z in segments], apply(draws, lambda x: x.roll(3, dims=2)))
        if limit:
            torch.testing.assert_close(turned, loss, rtol=limit, atol=0)
        else:
            assert abs(turned / loss - 1) > 1e-4


def test_noise_and_times_of_known_tokens_do_not_matter(dynamics, batch):
    segments, draws = batch
    mark = [known[..., None, None] for known in draws.known]
    noise = [torch.where(m, torch.randn_like(x), x) for m, x in zip(mark, draws.noise, strict=True)]
    times = [torch.where(m, torch.rand_like(x), x) for m, x in zip(mark, draws.times, strict=True)]
    assert any(m.any() for m in mark)
    changed = replace(draws, noise=noise, times=times)
    assert torch.equal(dynamics(segments, changed)[0], dynamics(segments, draws)[0])
    assert dynamics(segments, replace(draws, noise=[x + 0.1 for x in draws.noise]))[0] != dynamics(segments, draws)[0]


def only(draws, segment):
    """The loss of one segment: all tokens of the other known."""
    known = [k if i == segment else torch.ones_like(k) for i, k in enumerate(draws.known)]
    return replace(draws, known=known, masked=(~known[segment]).sum().float())


def test_a_target_does_not_change_the_loss_of_its_context(dynamics):
    segments = [torch.randn(4, 5, N, C), torch.randn(4, 3, N, C)]
    draws = make_draws(SHAPES["two"])
    other = [segments[0], segments[1] + 1]
    assert torch.equal(dynamics(other, only(draws, 0))[0], dynamics(segments, only(draws, 0))[0])
    moved = [segments[0] + 1, segments[1]]
    assert dynamics(moved, only(draws, 1))[0] != dynamics(segments, only(draws, 1))[0]


def test_the_loss_of_two_segments_is_that_of_each_by_its_masked_tokens(dynamics):
    segments = [torch.randn(4, 5, N, C), torch.randn(4, 3, N, C)]
    draws = make_draws(SHAPES["two"])
    parts = [only(draws, i) for i in range(2)]
    weighted = sum(dynamics(segments, part)[0] * part.masked for part in parts) / draws.masked
    torch.testing.assert_close(dynamics(segments, draws)[0], weighted, rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", ["paper", "relative", "relative-fast"])
def test_shares_average_to_the_whole_with_their_gradients(name, batch):
    segments, draws = batch
    dynamics = build(name).requires_grad_(True)
    loss, terms = dynamics(segments, draws)
    loss.backward()
    whole = {key: p.grad.clone() for key, p in dynamics.named_parameters() if p.grad is not None}
    dynamics.zero_grad()
    # Shares with different numbers of masked tokens: of the plain means, the mean would be another one.
    rows = [slice(0, 2), slice(2, 4)]
    shares = [draws.share(part, ranks=2, device=torch.device("cpu")) for part in rows]
    counts = [sum((~k).sum() for k in share.known) for share in shares]
    assert counts[0] != counts[1]
    found = [dynamics([z[part] for z in segments], share) for part, share in zip(rows, shares, strict=True)]
    torch.testing.assert_close((found[0][0] + found[1][0]) / 2, loss, rtol=1e-5, atol=0)
    for key, value in terms.items():
        torch.testing.assert_close((found[0][1][key] + found[1][1][key]) / 2, value, rtol=1e-5, atol=0)
    ((found[0][0] + found[1][0]) / 2).backward()
    for key, p in dynamics.named_parameters():
        if p.grad is not None:
            torch.testing.assert_close(p.grad, whole[key], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["paper", "relative", "relative-fast"])
def test_every_parameter_is_trained(name):
    dynamics = build(name).requires_grad_(True)
    dynamics([torch.randn(4, 5, N, C), torch.randn(4, 3, N, C)], make_draws(SHAPES["two"], name))[0].backward()
    idle = [key for key, p in dynamics.named_parameters() if p.grad is None or not p.grad.any()]
    assert idle == []
    assert dynamics.context.start.grad.any(dim=1).all()


def tensors(draws):
    return [*draws.noise, *draws.times, *draws.known, *draws.history, draws.masked]


def test_draws_are_a_function_of_the_generator():
    first, again, other = (make_draws(SHAPES["two"], seed=seed) for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(tensors(first), tensors(again), strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(tensors(first)[:4], tensors(other)[:4], strict=True))


def test_draws_have_their_shapes_and_laws():
    draws = make_draws([(400, 5), (400, 2)], draws=3)
    for i, frames in enumerate((5, 2)):
        assert draws.noise[i].shape == (400, frames, N, 3, C)
        assert draws.times[i].shape == (400, frames, N, 3, 1)
        assert draws.known[i].shape == (400, frames, N)
        assert draws.history[i].shape == (400, frames, N, C)
    assert draws.noise[0].mean().abs() < 0.01
    assert draws.noise[0].std() == pytest.approx(1.0, abs=0.01)
    quantiles = draws.times[0].flatten()[:10_000].quantile(torch.tensor([0.1, 0.5, 0.9]))
    torch.testing.assert_close(quantiles, torch.tensor([0.1, 0.5, 0.9]), atol=0.02, rtol=0)


def test_masked_shares_follow_the_ratio():
    masked = (~make_draws([(500, 4)], mask_ratio=(0.25, 1.0)).known[0]).sum(-1).flatten()
    # A uniform ratio above 1/4, rounded up: 3 to 8 of 8 tokens, equally often.
    counts = masked.bincount(minlength=N + 1)
    assert counts[:3].sum() == 0
    assert (counts[3:] / 2000 - 1 / 6).abs().max() < 0.03
    assert (~make_draws([(50, 4)], mask_ratio=(1.0, 1.0)).known[0]).all()
    assert ((~make_draws([(50, 4)], mask_ratio=(0.5, 0.5)).known[0]).sum(-1) == 4).all()
    # One token at least, so that every frame counts.
    assert ((~make_draws([(50, 4)], mask_ratio=(0.0, 0.0)).known[0]).sum(-1) == 1).all()
    # Any token as often as any other.
    places = (~make_draws([(2000, 1)], mask_ratio=(0.5, 0.5)).known[0]).float().mean((0, 1))
    assert (places - 0.5).abs().max() < 0.05


@pytest.mark.parametrize("name", CONFIGS)
def test_tokens_are_standardised_latents(name):
    made = model(name)
    u = waves(2, 2, 5, made.config.codec)
    latents = made.codec.encode(u)
    tokens = made.encode(u)
    assert tokens.shape == (4, 3, made.config.num_tokens, made.config.token_channels)
    torch.testing.assert_close(made.from_tokens(tokens), latents, rtol=1e-5, atol=1e-5)
    standard = (latents - 0.3) / 1.7
    torch.testing.assert_close(tokens.flatten(2).sort()[0], standard.flatten(2).sort()[0], rtol=1e-5, atol=1e-5)
    assert distance(made.decode(tokens, 5), made.codec.decode(latents, 5)) < 1e-5


def count(module):
    return sum(p.numel() for p in module.parameters())


PAPER = [name for name in RECIPES if name.endswith("-paper")]


@pytest.mark.parametrize("name", RECIPES)
def test_presets_build(name):
    with torch.device("meta"):
        made = Model(RECIPES[name].model)
    assert count(made) == count(made.codec) + count(made.dynamics)


@pytest.mark.parametrize("name", PAPER)
def test_paper_presets_have_the_papers_sizes(name):
    with torch.device("meta"):
        dynamics = Dynamics(RECIPES[name].model)
    # 6 + 6 layers of width 512, and an MLP of 3 x 512 (table 7).
    assert count(dynamics.context) + count(dynamics.trunk) == pytest.approx(31.5e6, rel=0.01)
    flow = dynamics.step if dynamics.initial is None else dynamics.initial
    assert count(flow) == pytest.approx(5.1e6, rel=0.02)


@pytest.mark.parametrize(
    ("name", "latents", "places", "tokens", "channels"),
    [
        ("combined-paper", 11, 16, 16, 4),
        ("combined-fast-paper", 11, 16, 16, 4),
        ("advection-paper", 11, 16, 16, 4),
        ("gray-scott-paper", 11, 64, 64, 4),
        ("wave-paper", 16, 256, 64, 32),
        ("vorticity-paper", 16, 256, 64, 32),
    ],
)
def test_paper_presets_have_the_papers_tokens(name, latents, places, tokens, channels):
    config = RECIPES[name].model
    options = config.codec
    with torch.device("meta"):
        made = Model(config)
        u = torch.empty(1, config.num_frames, *options.grid, options.field_channels)
        assert made.codec.encode(u).shape == (1, latents, places, options.latent_channels)
        assert made.encode(u).shape == (1, latents, tokens, channels)
    assert (config.num_tokens, config.token_channels) == (tokens, channels)


def test_every_paper_preset_is_held():
    assert sorted(PAPER) == [
        "advection-paper",
        "combined-fast-paper",
        "combined-paper",
        "gray-scott-paper",
        "vorticity-paper",
        "wave-paper",
    ]
