"""The rollout for training gives the values of the sampler, with gradients that finite differences confirm."""

import pytest
import torch

from enma_fast.models.model import Dynamics
from enma_fast.sampling.reference import trajectory
from enma_fast.sampling.rollout import rollout

from .._tiny import CONFIGS, distance, shaken

N, C = 8, 4
DECODERS = {
    "paper": CONFIGS["paper"],
    "relative": CONFIGS["relative"],
    "one-pass, 2N tokens": CONFIGS["paper-fast"],
    "one-pass, N tokens": CONFIGS["relative-fast"],
    "local": CONFIGS["line-local"],
}
SEEDS, MEMBERS = torch.tensor([[3, 3, 3], [9, 9, 9]]), torch.tensor([[0, 1, 5], [0, 2, 3]])


@pytest.fixture(params=DECODERS)
def dynamics(request):
    torch.manual_seed(0)
    return shaken(Dynamics(DECODERS[request.param])).double().eval()


def latents(*shape):
    return torch.randn(*shape, N, C, generator=torch.Generator().manual_seed(7), dtype=torch.float64)


@pytest.mark.parametrize(("observed", "context"), [(2, None), (1, 4)], ids=["temporal", "initial-value"])
def test_members_are_those_of_the_sampler(dynamics, observed, context):
    history, other = latents(2, observed), None if context is None else latents(2, context)
    made, _ = rollout(dynamics, history, num_frames=3, seeds=SEEDS, members=MEMBERS, context=other)
    expected = trajectory(
        dynamics,
        [part.repeat_interleave(3, 0) for part in (other, history) if part is not None],
        num_latents=observed + 3,
        seeds=SEEDS.flatten(),
        members=MEMBERS.flatten(),
    )
    assert distance(made.flatten(0, 1), torch.stack(list(expected), 1)) < 1e-12
    apart = (made[:, 0] - made[:, 1]).flatten(1).norm(dim=1) / made[:, 0].flatten(1).norm(dim=1)
    assert (apart > 1e-3).all(), "noise makes members differ"


def test_context_of_frame_0_is_what_generation_begins_with(dynamics):
    context = latents(2, 4)
    _, h_BND = rollout(
        dynamics, latents(2, 1), num_frames=1, seeds=SEEDS, members=MEMBERS, context=context, settings=None
    )
    first = dynamics.context([context, latents(2, 1)])[1][:, 0]
    assert distance(h_BND, first) < 1e-12


def test_gradients_are_those_of_finite_differences(dynamics):
    history, context = latents(2, 1), latents(2, 3)
    weights = torch.randn(2, 3, 3, N, C, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def loss():
        made, _ = rollout(dynamics, history, num_frames=3, seeds=SEEDS, members=MEMBERS, context=context)
        return (weights * made.tanh()).sum()

    loss().backward()
    generator = torch.Generator().manual_seed(2)
    moved = {name: p for name, p in dynamics.named_parameters() if p.grad is not None}
    assert len(moved) > 30
    # Parameters that are far apart are moved together.
    for names in (list(moved)[first::6] for first in range(6)):
        parameters = [moved[name] for name in names]
        directions = [torch.randn(p.shape, generator=generator, dtype=torch.float64) for p in parameters]
        directions = [d / d.norm() for d in directions]
        values = []
        with torch.no_grad():
            for step in (1e-5, -2e-5, 1e-5):
                for p, direction in zip(parameters, directions, strict=True):
                    p.add_(direction, alpha=step)
                values.append(loss().item() if len(values) < 2 else 0.0)
        numerical = (values[0] - values[1]) / 2e-5
        found = sum((p.grad * d).sum().item() for p, d in zip(parameters, directions, strict=True))
        assert found == pytest.approx(numerical, rel=2e-5, abs=1e-6), names
