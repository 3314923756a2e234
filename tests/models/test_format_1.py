"""Checkpoints of format 1: each kind of config, and the names of its tensors, become those of format 2."""

import json

import pytest
import torch

from enma_fast.config import (
    BlocksConfig,
    CausalTransformerConfig,
    ConvConfig,
    FlowConfig,
    GaussianConfig,
    InterpolationConfig,
    LinearConfig,
    LocalConfig,
    ModelConfig,
    PointsConfig,
    SamplingConfig,
    TrunkConfig,
)
from enma_fast.errors import EnmaError
from enma_fast.models.checkpoint import load_config, load_model, write_manifest, write_tensors
from enma_fast.models.format_1 import config_of, names_of
from enma_fast.models.model import Model
from enma_fast.utils.dataclass_json import from_json

from .._tiny import shaken

LINE = {
    "grid": [32],
    "lengths": [2.0],
    "periodic": [True],
    "field_channels": 1,
    "latent_channels": 2,
    "width": 8,
    "max_width": 12,
    "layers": ["residual", "space", "time"],
    "kernel": 3,
    "kernel_time": 3,
    "kernel_ends": 5,
    "stride_ends": 1,
    "variational": True,
    "kl_weight": 0.001,
    "interpolation": None,
    "field_mean": [0.5],
    "field_scale": [2.0],
}
POINTS = LINE | {
    "interpolation": {
        "features": 8,
        "hidden": 16,
        "heads": 2,
        "head_dim": 4,
        "frequencies": 12,
        "max_log2_frequency": 4.0,
        "slopes": [1.0, 3.0],
        "learned_slopes": True,
        "distance_power": 1,
        "refine_depth": 2,
        "refine_heads": 4,
        "refine_head_dim": 4,
        "slices": 16,
    }
}
# Two frames of blocks of two points, as weights of convolutions.
LOSSLESS = LINE | {
    "latent_channels": 4,
    "width": 4,
    "max_width": 4,
    "layers": ["time"],
    "kernel_ends": 3,
    "stride_ends": 2,
    "variational": False,
}
FLOW = {
    "width": 24,
    "layers": 1,
    "time_features": 8,
    "target": "residual",
    "likelihood_power": 0.5,
    "draws": 2,
    "time_law": "uniform",
}
MASKED = {
    "width": 32,
    "heads": 2,
    "temporal_layers": 3,
    "spatial_layers": 2,
    "mlp_ratio": 2.0,
    "patch": [2],
    "positions": "rotary",
    "condition": "add",
    "decoder": "masked-flow",
    "scale_shift_rank": 4,
    "local": None,
    "flow": FLOW,
}
ONE_PASS = MASKED | {"decoder": "one-pass"}
# It had a head of frame 0, and a flow in its config that no tensor belonged to.
FIRST = ONE_PASS | {"first": {"width": 16, "layers": 2, "modes": 3}}
LOCAL = ONE_PASS | {"local": {"width": 16, "layers": 2, "past": 3, "modes": 3}}
SAMPLING = {
    "mask_steps": 3,
    "flow_steps": 2,
    "last_flow_steps": None,
    "method": "midpoint",
    "temperature": 0.5,
    "shifts": 4,
}


def document(tokenizer, dynamics):
    return {
        "name": "old",
        "dataset": "waves",
        "num_frames": 8,
        "shortest_context": 3,
        "frame_interval": 0.1,
        "tokenizer": tokenizer,
        "dynamics": dynamics,
        "sampling": SAMPLING,
    }


SHARED = {
    "grid": (32,),
    "lengths": (2.0,),
    "periodic": (True,),
    "field_channels": 1,
    "field_mean": (0.5,),
    "field_scale": (2.0,),
}
CONVOLUTIONS = SHARED | {
    "latent_channels": 2,
    "width": 8,
    "max_width": 12,
    "layers": ("residual", "space", "time"),
    "kernel_ends": 5,
    "stride_ends": 1,
    "variational": True,
    "kl_weight": 0.001,
}
SEEN = InterpolationConfig(features=8, heads=2, slopes=(1.0, 3.0))
CODECS = {
    "conv": (LINE, ConvConfig(**CONVOLUTIONS)),
    "points": (POINTS, PointsConfig(**CONVOLUTIONS, interpolation=SEEN)),
    "lossless": (LOSSLESS, BlocksConfig(**SHARED, block=2, frames=2)),
}
OLD_FLOW = FlowConfig(width=24, layers=1, time_features=8, target="residual")
# What decides frame 0 and all others.
DECODERS = {
    "masked-flow": (MASKED, None, OLD_FLOW),
    "one-pass": (ONE_PASS, OLD_FLOW, LinearConfig()),
    "local": (LOCAL, OLD_FLOW, LocalConfig(width=16, layers=2, modes=3)),
    "first": (FIRST, GaussianConfig(), LinearConfig()),
}


def read(old):
    return from_json(ModelConfig, json.dumps(config_of(old)))


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("codec", CODECS)
def test_the_config_has_the_slots_of_what_it_named(codec, decoder):
    (tokenizer, expected), (dynamics, initial, step) = CODECS[codec], DECODERS[decoder]
    assert read(document(tokenizer, dynamics)) == ModelConfig(
        name="old",
        dataset="waves",
        num_frames=8,
        shortest_context=3,
        frame_interval=0.1,
        codec=expected,
        context=CausalTransformerConfig(
            width=32, heads=2, layers=3, patch=(2,), positions="rotary", scale_shift_rank=4
        ),
        trunk=TrunkConfig(layers=2, condition="add"),
        initial=initial,
        step=step,
        sampling=SamplingConfig(mask_steps=3, flow_steps=2, temperature=0.5, shifts=4),
    )


def test_what_a_config_lacks_has_the_default_of_its_time():
    bare = read({"name": "old", "dataset": "waves", "tokenizer": {}, "dynamics": {}})
    assert bare == ModelConfig(name="old", dataset="waves")
    assert (bare.context.layers, bare.trunk.layers, bare.trunk.condition) == (6, 6, "concat")
    assert read(
        {"name": "old", "dataset": "waves", "tokenizer": {}, "dynamics": {"decoder": "one-pass"}}
    ) == ModelConfig(name="old", dataset="waves", initial=FlowConfig(), step=LinearConfig())


@pytest.mark.parametrize(
    "changes",
    [
        {"latent_channels": 3},
        {"variational": True},
        {"layers": ["time", "residual"]},
        {"interpolation": POINTS["interpolation"]},
    ],
)
def test_convolutions_that_are_no_permutation_stay_convolutions(changes):
    assert read(document(LOSSLESS | changes, MASKED)).codec.kind in ("conv", "points")


def old_tensors(model):
    """The tensors of a model by the names of format 1, spelled out."""
    config, new = model.config, model.state_dict()
    step = {"flow": "flow.", "linear": "", "local": "local."}[config.step.kind]
    old = {}
    for name, tensor in new.items():
        if name.startswith("dynamics.step.noise."):
            old["dynamics.spatial.noise." + name.removeprefix("dynamics.step.noise.")] = tensor
        elif name.startswith("dynamics.step."):
            old["dynamics." + step + name.removeprefix("dynamics.step.")] = tensor
        else:
            for after, before in (
                ("codec.", "tokenizer."),
                ("dynamics.context.", "dynamics.temporal."),
                ("dynamics.trunk.", "dynamics.spatial."),
                ("dynamics.initial.", "dynamics.flow."),
                ("latent_", "latent_"),
            ):
                if name.startswith(after):
                    old[before + name.removeprefix(after)] = tensor
    assert len(old) == len(new)
    if config.codec.kind == "blocks":
        # The weights of the permutation.
        old |= {"tokenizer.conv_in.conv.weight": torch.ones(4, 1, 3, 3), "tokenizer.to_latent.bias": torch.zeros(4)}
    if config.initial == GaussianConfig():
        # The weights of the head that drew frame 0.
        old |= {"dynamics.first.read.weight": torch.ones(2, 16), "dynamics.first.norm.weight": torch.ones(16)}
    return old


@pytest.fixture(params=[(codec, decoder) for codec in CODECS for decoder in DECODERS], ids="-".join)
def folder(request, tmp_path):
    """A checkpoint of format 1, and the model that it holds."""
    codec, decoder = request.param
    old = document(CODECS[codec][0], DECODERS[decoder][0])
    torch.manual_seed(0)
    model = shaken(Model(read(old)))
    (tmp_path / "config.json").write_text(json.dumps(old))
    write_tensors(tmp_path / "model.safetensors", old_tensors(model))
    write_manifest(tmp_path)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps(manifest | {"format": 1}))
    return tmp_path, model


def test_a_checkpoint_of_format_1_loads(folder):
    path, model = folder
    found = load_model(path)
    assert found.config == model.config == load_config(path)
    expected = model.state_dict()
    assert found.state_dict().keys() == expected.keys()
    for name, tensor in found.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


def test_names_that_format_1_did_not_have_stay():
    config = config_of(document(LINE, MASKED))
    tensors = {"extra": torch.zeros(1), "latent_mean": torch.ones(2)}
    assert names_of(config, tensors).keys() == tensors.keys()


@pytest.mark.parametrize(
    ("part", "entry", "value"),
    [
        ("sampling", "method", "euler"),
        ("sampling", "last_flow_steps", 1),
        ("tokenizer", "interpolation", POINTS["interpolation"] | {"distance_power": 2}),
        ("tokenizer", "interpolation", POINTS["interpolation"] | {"max_log2_frequency": 3.0}),
    ],
)
def test_a_value_that_no_model_has_any_more_is_refused(part, entry, value):
    """Such a model would give other forecasts than it did."""
    old = document(LINE, MASKED)
    with pytest.raises((EnmaError, ValueError)):
        read(old | {part: old[part] | {entry: value}})


@pytest.mark.parametrize("part", ["tokenizer", "dynamics", "sampling"])
@pytest.mark.parametrize("value", [3, None, "text", [1]])
def test_what_is_no_config_is_refused(tmp_path, part, value):
    (tmp_path / "config.json").write_text(json.dumps(document(LINE, MASKED) | {part: value}))
    write_tensors(tmp_path / "model.safetensors", {})
    write_manifest(tmp_path)
    with pytest.raises(EnmaError) as caught:
        load_config(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / 'config.json'}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("part", "entry"), [("tokenizer", "colour"), ("dynamics", "colour"), ("sampling", "colour")])
def test_an_unknown_key_of_format_1_is_refused(tmp_path, part, entry):
    old = document(LINE, MASKED)
    (tmp_path / "config.json").write_text(json.dumps(old | {part: old[part] | {entry: 3}}))
    write_tensors(tmp_path / "model.safetensors", {})
    write_manifest(tmp_path)
    with pytest.raises(EnmaError, match=entry):
        load_config(tmp_path)
