"""Weights of the latent channels in the scores: a channel counts as much as it changes the field."""

import pytest
import torch

from enma_fast.models.decoders.decoder import Draws
from enma_fast.models.decoders.local import PAST
from enma_fast.models.fair_score import fair_score
from enma_fast.training.dynamics import DynamicsStage, DynamicsTask
from enma_fast.training.latents import encode_all
from enma_fast.training.sensitivity import channel_weights

from .._tiny import CONFIGS, random_model, stage, waves


@pytest.fixture
def scaled():
    """A model whose decoder hears of latent channel 0 ten times less than it did, and its latents."""
    model = random_model(CONFIGS["line-local"])
    z = model.codec.encode(waves(3, 2, 8, model.config.codec))
    before = channel_weights(model, z)
    model.codec.from_latent.weight[:, 0] /= 10
    return model, z, before


def test_a_channel_that_hardly_changes_the_field_hardly_counts(scaled):
    model, z, before = scaled
    weights = channel_weights(model, z)
    channels = model.config.codec.latent_channels
    assert weights.shape == (model.config.token_channels,)
    assert torch.equal(weights, weights[:channels].repeat(model.config.token_channels // channels))
    assert weights.mean() == pytest.approx(1)
    ratio = (weights[0] / weights[1]) / (before[0] / before[1])
    assert ratio == pytest.approx(0.1, rel=0.3)


def test_the_score_of_a_frame_is_weighted():
    torch.manual_seed(0)
    config = CONFIGS["line-local"]
    fields = waves(3, 2, 8, config.codec)
    model = random_model(config).requires_grad_(True)
    environment = torch.arange(3).repeat_interleave(2)
    latents = encode_all(model.codec, fields, environment, shift=False)
    task = DynamicsTask(model, stage(DynamicsStage, config), latents={1: latents}, val=fields, val_contexts=None)
    weights = task.model.dynamics.score_weight
    assert torch.equal(weights, channel_weights(model, latents.z[0]))
    assert weights.std() > 0.01
    dynamics, B, N, C = model.dynamics, 2, config.num_tokens, config.token_channels
    h, z = torch.randn(B, N, config.context.width), torch.randn(B, N, C)
    noise, past = torch.randn(B, N, 2, C), torch.randn(B, PAST, N, C)
    made = torch.stack([dynamics.step.from_noise(h, past, noise[:, :, k]) for k in range(2)], 1)
    expected = (fair_score(made, z, torch.abs) * weights).mean()
    draws = Draws(noise, noise, torch.zeros(B, N, dtype=torch.bool), torch.ones(()), weights)
    assert dynamics.step.loss(h, past, z, draws)[0].item() == pytest.approx(expected.item(), rel=1e-5)
    assert "score_weight" not in dynamics.state_dict()
