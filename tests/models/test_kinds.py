"""A kind is a config and a module, and no list names it: toys of each slot, from their config to a forecast."""

import json
from dataclasses import dataclass
from dataclasses import replace as changed
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import nn

from enma_fast import forecast
from enma_fast.config import CodecConfig, ContextConfig, DecoderConfig, LinearConfig, ModelConfig
from enma_fast.errors import EnmaError
from enma_fast.models.checkpoint import load_model, save_model
from enma_fast.models.codecs.codec import Codec
from enma_fast.models.decoders.decoder import Decoder
from enma_fast.models.model import Dynamics, draw
from enma_fast.sampling.engine import candidates
from enma_fast.training.recipes import RECIPES
from enma_fast.utils.dataclass_json import from_json, replace, to_json
from enma_fast.utils.kinds import Slot

from .._tiny import CONFIGS, random_model, waves


class Persistence(Decoder):
    """The last frame, and noise of a scale that is trained; it reads two past frames, and no trunk."""

    past = 2

    def __init__(self, config, own, trunk):
        super().__init__()
        self.channels = config.token_channels
        self.scale = nn.Parameter(torch.full((config.token_channels,), own.scale))

    def decide(self, h, past_BPNC, noise, settings):
        tokens = torch.arange(past_BPNC.shape[2], device=past_BPNC.device)
        return past_BPNC[:, -1] + settings.temperature * self.scale * noise.normal(tokens, self.channels)

    def loss(self, h, past_BPNC, z_BNC, draws):
        made = past_BPNC[:, -1, :, None] + self.scale * draws.noise
        error = (made - z_BNC[:, :, None]).square().mean()
        return error, {"error": error.detach()}


@dataclass(frozen=True, kw_only=True)
class PersistenceConfig(DecoderConfig):
    kind: str = "toy-persistence"
    scale: float = 0.5
    module: ClassVar[type] = Persistence

    def check(self, name, slot, codec):
        if self.scale < 0:
            raise EnmaError(f"{name}: {slot}.scale is {self.scale}; 0 or more is needed")


class Every(Codec):
    """One place for each point; no two frames share a latent one."""

    def __init__(self, config):
        super().__init__(config)
        self.gain = nn.Parameter(torch.ones(()))

    def encode(self, u, points=None, valid=None):
        return (self.gain * self.on_grid(u, points)).flatten(2, -2).float()

    def decode(self, z_BTNC, num_frames=None, query=None, *, end=None):
        u = (z_BTNC / self.gain).unflatten(2, self.config.grid)
        return self.in_units(u[:, :num_frames])


@dataclass(frozen=True, kw_only=True)
class EveryConfig(CodecConfig):
    kind: str = "toy-every"
    module: ClassVar[type] = Every

    @property
    def latent_channels(self):
        return self.field_channels

    @property
    def space_factor(self):
        return 1

    @property
    def time_factor(self):
        return 1

    @property
    def reach(self):
        return 0


class Mean(nn.Module):
    """The mean of the frames that were read, in a linear layer."""

    def __init__(self, config):
        super().__init__()
        self.tokens = config.num_tokens
        self.read = nn.Linear(config.token_channels, config.context.features)

    def forward(self, segments):
        out = []
        for z_BTNC in segments:
            before = torch.cat([torch.zeros_like(z_BTNC[:, :1]), z_BTNC[:, :-1]], 1)
            counts = torch.arange(z_BTNC.shape[1]).clamp(min=1).view(-1, 1, 1)
            out.append(self.read(before.cumsum(1) / counts))
        return out

    def begin(self, segments, *, room):
        last = segments[-1]
        wide = torch.promote_types(last.dtype, torch.float32)
        empty = torch.zeros(len(last), self.tokens, self.read.in_features, dtype=wide, device=last.device)
        return [last.sum(1) if last.shape[1] else empty, last.shape[1]]

    def condition(self, past):
        total, frames = past
        return self.read(total / max(frames, 1))

    def advance(self, past, z_BNC):
        past[0], past[1] = past[0] + z_BNC, past[1] + 1


@dataclass(frozen=True, kw_only=True)
class MeanConfig(ContextConfig):
    kind: str = "toy-mean"
    features: int = 6
    module: ClassVar[type] = Mean


class Pull(Decoder):
    """What is linear in the condition, and noise."""

    def __init__(self, config, own, trunk):
        super().__init__()
        self.channels = config.token_channels
        self.read = nn.Linear(config.context.features, config.token_channels)

    def decide(self, h, past_BPNC, noise, settings):
        made = settings.temperature * noise.normal(torch.arange(h.shape[1], device=h.device), self.channels)
        return self.read(h) + made

    def loss(self, h, past_BPNC, z_BNC, draws):
        error = (self.read(h) - z_BNC).square().mean()
        return error, {"error": error.detach()}


@dataclass(frozen=True, kw_only=True)
class PullConfig(DecoderConfig):
    kind: str = "toy-pull"
    module: ClassVar[type] = Pull


RELATIVE = CONFIGS["relative"]
TOYS = {
    "a decoder of all frames": changed(RELATIVE, step=PersistenceConfig()),
    "a decoder of frame 0": changed(RELATIVE, initial=PersistenceConfig(scale=1.0), step=LinearConfig()),
    "a decoder of all frames but frame 0": changed(RELATIVE, initial=RELATIVE.step, step=PersistenceConfig()),
    "a codec": changed(RELATIVE, codec=EveryConfig(grid=(16,), field_mean=(0.5,), field_scale=(2.0,))),
    "a context, without a trunk": changed(RELATIVE, context=MeanConfig(patch=(2,)), trunk=None, step=PullConfig()),
}


@pytest.fixture(params=TOYS)
def config(request):
    return TOYS[request.param]


def test_its_config_survives_json(config):
    text = to_json(config)
    assert from_json(ModelConfig, text) == config
    assert json.loads(text)["codec"]["kind"] == config.codec.kind
    assert replace(config, {"num_frames": 9}) == changed(config, num_frames=9)


def test_its_config_is_checked():
    with pytest.raises(EnmaError, match=r"step\.scale"):
        replace(TOYS["a decoder of all frames"], {"step.scale": -1.0})
    with pytest.raises(EnmaError, match=r"^ModelConfig: step\.colour"):
        from_json(
            ModelConfig,
            to_json(RELATIVE).replace('"kind": "flow",', '"kind": "flow", "colour": 3,'),
            source="ModelConfig",
        )
    document = json.loads(to_json(RELATIVE))
    document["step"] = {"kind": "toy-unheard-of"}
    with pytest.raises(EnmaError, match=r"step.*toy-persistence"):
        from_json(ModelConfig, json.dumps(document))
    # A kind belongs to one slot.
    document["step"] = {"kind": "toy-mean"}
    with pytest.raises(EnmaError, match="step"):
        from_json(ModelConfig, json.dumps(document))


def test_its_checkpoint_comes_back_to_the_bit(config, tmp_path):
    made = random_model(config)
    save_model(made, tmp_path)
    again = load_model(tmp_path)
    assert again.config == config
    expected = made.state_dict()
    assert again.state_dict().keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in again.state_dict().items())


def test_it_forecasts_by_the_reference(config):
    serving = candidates(config, torch.device("cpu"), torch.float32)
    assert serving["reference"] is None
    # The engine does not see the codec.
    if config != TOYS["a codec"]:
        assert "toy-" in serving["native"]
        assert "toy-" in serving["static"]
    made = random_model(config)
    u = waves(1, 2, 3, config.codec).numpy()
    members = forecast(made, u, num_members=3, num_frames=4, seed=1).numpy()
    assert members.shape == (2, 3, 4, *config.codec.grid, config.codec.field_channels)
    assert np.isfinite(members).all()
    assert (members[:, 0] != members[:, 1]).any()
    again = forecast(made, u, num_members=1, first_member=2, num_frames=4, seed=1).numpy()
    np.testing.assert_allclose(again[:, 0], members[:, 2], rtol=1e-4, atol=1e-5)
    # Frame 0 too is one of a decoder's.
    drawn = forecast(made, None, context=u, num_members=2, num_frames=3).numpy()
    assert np.isfinite(drawn).all()


def test_persistence_is_what_its_class_says():
    made = random_model(TOYS["a decoder of all frames"])
    with torch.no_grad():
        made.dynamics.step.scale.zero_()
    u = waves(1, 1, 3, made.config.codec)
    members = forecast(made, u.numpy(), num_members=1, num_frames=3).numpy()
    last = made.encode(u)[:, -1:]
    expected = made.decode(torch.cat([made.encode(u), last, last], 1))[:, 3:6]
    np.testing.assert_allclose(members[0, 0], expected[0], rtol=1e-4, atol=1e-5)


def test_its_loss_trains_it(config):
    torch.manual_seed(0)
    dynamics = Dynamics(config)
    shape = (4, 5)
    z = torch.randn(*shape, config.num_tokens, config.token_channels)
    generator = torch.Generator().manual_seed(0)
    draws = draw(config, [shape], draws=2, mask_ratio=(1.0, 1.0), generator=generator)
    loss, terms = dynamics([z], draws)
    loss.backward()
    assert all(torch.isfinite(term) for term in terms.values())
    for slot in (dynamics.step, dynamics.initial):
        if type(slot) in (Persistence, Pull):
            assert all(p.grad is not None and p.grad.any() for p in slot.parameters())


def test_kinds_of_presets_say_what_they_are():
    for preset in RECIPES.values():
        config = preset.model
        for part in (config.codec, config.context, config.step, config.initial):
            if part is not None:
                slot = next(base for base in type(part).__mro__ if Slot in base.__bases__)
                assert slot.kinds[part.kind] is type(part)
                assert isinstance(part.made(), type)
