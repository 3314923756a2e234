"""A kind is a config and a module, and no list names it: toys of each slot, from their config to a forecast."""

import json
from dataclasses import replace as changed

import numpy as np
import pytest
import torch

from enma_fast import forecast
from enma_fast.config import LinearConfig, ModelConfig
from enma_fast.errors import EnmaError
from enma_fast.models.checkpoint import load_model, save_model
from enma_fast.models.model import Dynamics, draw
from enma_fast.sampling.engine import candidates
from enma_fast.training.recipes import RECIPES
from enma_fast.utils.dataclass_json import from_json, replace, to_json
from enma_fast.utils.kinds import Slot

from .._tiny import CONFIGS, random_model, waves
from ..toys.codec import EveryConfig
from ..toys.context import MeanConfig, Pull, PullConfig
from ..toys.decoder import Persistence, PersistenceConfig

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
