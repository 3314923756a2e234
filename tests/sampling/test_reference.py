"""The sampler against a slow loop of its own; members keep their forecast in any batch; every token is decided."""

from dataclasses import replace

import pytest
import torch

from enma_fast.models.decoders.decoder import Noise
from enma_fast.models.model import Dynamics
from enma_fast.ops.frame_rows import order_of
from enma_fast.ops.philox_normal import philox_normal
from enma_fast.sampling.reference import trajectory

from .._tiny import CONFIGS, distance, shaken

N, C = 8, 4
# floor(8 cos^2(pi / 6)) = 6 and floor(8 cos^2(pi / 3)) = 2 tokens are masked after steps 1 and 2.
COUNTS = (2, 4, 2)


def build(name="relative"):
    torch.manual_seed(0)
    return shaken(Dynamics(CONFIGS[name])).eval().requires_grad_(False)


@pytest.fixture(params=["paper", "relative"])
def dynamics(request):
    return build(request.param)


def latents(*shape):
    return torch.randn(*shape, N, C, generator=torch.Generator().manual_seed(7))


def run(dynamics, history, *, num_latents=5, seeds=(3, 3, 9, 9), members=(0, 1, 0, 1), context=None, settings=None):
    """All generated frames `[B, T, N, C]`."""
    rows = history.shape[0]
    frames = trajectory(
        dynamics,
        [part for part in (context, history) if part is not None],
        num_latents=num_latents,
        seeds=torch.tensor(seeds[:rows]),
        members=torch.tensor(members[:rows]),
        settings=settings,
    )
    return torch.stack(list(frames), dim=1)


TASKS = {
    "temporal": (2, None),
    "initial-value": (1, 4),
    "generation": (0, 4),
}


@pytest.fixture(params=TASKS)
def task(request):
    """History and context of four rows."""
    observed, context = TASKS[request.param]
    return latents(4, observed), None if context is None else latents(4, context)


def slow(dynamics, history, context, *, num_latents, seed, member, settings):
    """One trajectory `[T, N, C]`, token by token, with the whole past read again for every frame."""
    frames = list(history)
    for index in range(len(history), num_latents):
        segments = [] if context is None else [context[None]]
        # The last frame of a sequence is never read, so anything may stand there.
        segments.append(torch.stack([*frames, torch.full((N, C), 99.0)])[None])
        h = dynamics.context(segments)[-1][:, index]
        (order,) = order_of(seed=seed, members=torch.tensor([member]), frame=index, num_tokens=N).tolist()
        x, known = torch.zeros(N, C), torch.zeros(N, dtype=torch.bool)
        for step, count in enumerate(COUNTS):
            decided, order = order[:count], order[count:]
            conditions = dynamics.trunk(h, x[None], known[None])[0]
            for token in decided:
                noise = philox_normal(
                    seed=seed,
                    members=torch.tensor([member]),
                    frame=index,
                    mask_step=step,
                    tokens=torch.tensor([token]),
                    channels=C,
                )[0, 0]
                start = settings.temperature * noise
                x[token] = dynamics.step.sample(conditions[token], start, steps=settings.flow_steps)
            known[decided] = True
        frames.append(x)
    return torch.stack(frames[len(history) :])


@pytest.mark.each_value
@pytest.mark.parametrize("changes", [{}, {"temperature": 0.5, "flow_steps": 3}])
def test_the_sampler_is_the_slow_loop(dynamics, task, changes):
    history, context = task
    settings = replace(dynamics.config.sampling, **changes)
    found = run(dynamics, history, context=context, settings=settings)
    assert found.shape == (4, 5 - history.shape[1], N, C)
    for row, (seed, member) in enumerate(((3, 0), (3, 1), (9, 0), (9, 1))):
        expected = slow(
            dynamics,
            history[row],
            None if context is None else context[row],
            num_latents=5,
            seed=seed,
            member=member,
            settings=settings,
        )
        assert distance(found[row], expected) < 1e-4


def test_a_member_alone_is_that_member_of_an_ensemble(dynamics, task):
    history, context = (None if x is None else x[:1].expand(16, *x.shape[1:]) for x in task)
    members, seeds = tuple(range(16)), (5,) * 16
    whole = run(dynamics, history, context=context, seeds=seeds, members=members)
    for first, count in ((3, 1), (0, 4), (10, 6)):
        rows = slice(first, first + count)
        part = run(
            dynamics,
            history[rows],
            context=None if context is None else context[rows],
            seeds=seeds[rows],
            members=members[rows],
        )
        assert distance(part, whole[rows]) < 1e-5


def test_order_of_rows_does_not_matter(dynamics, task):
    history, context = task
    found = run(dynamics, history, context=context)
    order = [2, 0, 3, 1]
    turned = run(
        dynamics,
        history[order],
        context=None if context is None else context[order],
        seeds=(9, 3, 9, 3),
        members=(0, 0, 1, 1),
    )
    assert distance(turned, found[order]) < 1e-5


def test_seed_and_member_decide_the_noise(dynamics, task):
    history, context = (None if x is None else x[:1].expand(4, *x.shape[1:]) for x in task)
    found = run(dynamics, history, context=context, seeds=(3, 3, 4, 3), members=(0, 1, 0, 0))
    assert distance(found[3], found[0]) < 1e-6
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert ((found[a] - found[b]).abs().amax((-1, -2)) > 1e-2).all()


def test_a_longer_forecast_begins_like_a_shorter_one(dynamics, task):
    history, context = task
    short, long = (run(dynamics, history, context=context, num_latents=count) for count in (3, 6))
    assert torch.equal(long[:, : short.shape[1]], short)


def test_the_history_is_read_and_never_generated(dynamics):
    history = latents(4, 3)
    found = run(dynamics, history)
    assert found.shape[1] == 2
    for t in range(3):
        changed = history.clone()
        changed[:, t] += 1
        assert ((run(dynamics, changed) - found).abs().amax((-1, -2)) > 1e-4).all()
    assert run(dynamics, history, num_latents=4).shape[1] == 1


def test_the_context_is_read(dynamics):
    context = latents(4, 3)
    found = run(dynamics, latents(4, 0), context=context)
    changed = context.clone()
    changed[1] += 1
    other = run(dynamics, latents(4, 0), context=changed)
    assert (other[1] - found[1]).abs().max() > 1e-2
    assert distance(other[[0, 2, 3]], found[[0, 2, 3]]) < 1e-5


def test_a_history_that_goes_on_is_what_was_generated(dynamics):
    # Frames 2 and 3 were generated from frames 0 and 1; given as history, the rest follows unchanged.
    history = latents(4, 2)
    found = run(dynamics, history)
    assert distance(run(dynamics, torch.cat([history, found[:, :2]], dim=1)), found[:, 2:]) < 1e-5


@pytest.mark.parametrize("mask_steps", [1, 3, 8, 20])
def test_every_token_is_decided_once(mask_steps):
    # A head at rest leaves every token at its noise.
    dynamics = build("paper")
    torch.nn.init.zeros_(dynamics.step.velocity.outward.weight)
    torch.nn.init.zeros_(dynamics.step.velocity.outward.bias)
    known_counts = []
    dynamics.trunk.register_forward_hook(lambda module, inputs, output: known_counts.append(inputs[2].sum(1)))
    seeds, members = torch.tensor([3, 4]), torch.tensor([0, 7])
    settings = replace(dynamics.config.sampling, mask_steps=mask_steps, temperature=0.25)
    x = dynamics.step.decide(torch.randn(2, N, 32), torch.zeros(2, 0, N, C), Noise(seeds, members, 2), settings)
    counts = {1: [8], 3: list(COUNTS), 8: [1] * 8, 20: [1] * 8}[mask_steps]
    assert [known.tolist() for known in known_counts] == [[sum(counts[:s])] * 2 for s in range(len(counts))]
    order = order_of(seed=seeds, members=members, frame=2, num_tokens=N)
    done = 0
    for step, count in enumerate(counts):
        tokens = order[:, done : done + count]
        noise = philox_normal(seed=seeds, members=members, frame=2, mask_step=step, tokens=tokens, channels=C)
        for row in range(2):
            assert torch.equal(x[row, tokens[row]], 0.25 * noise[row])
        done += count
    assert done == N


def test_known_tokens_are_what_was_decided():
    dynamics = build()
    seen = []
    dynamics.trunk.register_forward_hook(lambda module, inputs, output: seen.append(inputs[1:]))
    noise = Noise(torch.tensor([1, 2, 3, 4]), torch.zeros(4, dtype=torch.int64), 0)
    x = dynamics.step.decide(torch.randn(4, N, 32), torch.zeros(4, 0, N, C), noise, dynamics.config.sampling)
    assert len(seen) == 3
    for given, known in seen:
        assert torch.equal(given[known], x[known])


def test_without_noise_only_the_order_differs(dynamics):
    history = latents(1, 2).expand(4, -1, -1, -1)
    settings = replace(dynamics.config.sampling, temperature=0.0, mask_steps=1)
    found = run(dynamics, history, seeds=(3,) * 4, members=(0, 1, 2, 3), settings=settings)
    assert distance(found, found[:1].expand_as(found)) < 1e-5
    ordered = run(dynamics, history, seeds=(3,) * 4, settings=replace(settings, mask_steps=3))
    assert distance(ordered[1], ordered[0]) > 1e-3


def test_the_models_own_settings_are_the_default(dynamics):
    history = latents(4, 2)
    found = run(dynamics, history)
    assert torch.equal(found, run(dynamics, history, settings=dynamics.config.sampling))
    assert not torch.equal(found, run(dynamics, history, settings=replace(dynamics.config.sampling, flow_steps=1)))


def test_frames_come_one_by_one(dynamics):
    calls = []
    dynamics.context.embed.register_forward_hook(lambda *_: calls.append(1))
    frames = trajectory(
        dynamics,
        [latents(1, 2)],
        num_latents=5,
        seeds=torch.tensor([0]),
        members=torch.tensor([0]),
    )
    assert calls == []
    counts = []
    for z in frames:
        assert z.shape == (1, N, C)
        assert not z.requires_grad
        counts.append(len(calls))
    # Two frames of history, then one step for each frame but the last.
    assert counts == [2, 3, 4]
    assert len(calls) == 4


@pytest.mark.parametrize("name", ["paper-fast", "relative-fast"])
def test_temperature_leaves_the_initial_state_of_a_one_pass_model_alone(name):
    dynamics = build(name)
    cold, warm = (
        run(dynamics, latents(4, 0), context=latents(4, 4), settings=replace(dynamics.config.sampling, temperature=t))
        for t in (0.3, 1.0)
    )
    assert torch.equal(cold[:, 0], warm[:, 0])
    assert distance(cold[:, 1], warm[:, 1]) > 1e-3
