"""Configs survive JSON; whatever is wrong with one is a single line that names source and field."""

import dataclasses
import json
import math

import pytest

from enma_fast.config import (
    BlocksConfig,
    CodecConfig,
    ContextConfig,
    ConvConfig,
    DecoderConfig,
    FlowConfig,
    InterpolationConfig,
    LinearConfig,
    LocalConfig,
    ModelConfig,
)
from enma_fast.errors import EnmaError
from enma_fast.training.dynamics import DynamicsStage
from enma_fast.training.recipes import RECIPES, Recipe, find_recipe
from enma_fast.training.stage import Optimizer
from enma_fast.training.tokenizer import TokenizerStage
from enma_fast.utils.dataclass_json import from_json, replace, to_json

from ._tiny import CONFIGS

hypothesis = pytest.importorskip("hypothesis")
st = pytest.importorskip("hypothesis.strategies")


def changed(document, path, value):
    """A JSON document with one dotted entry set, or taken out if the value is None."""
    document = json.loads(json.dumps(document))
    *parents, last = path.split(".")
    node = document
    for parent in parents:
        node = node[parent]
    if value is None:
        del node[last]
    else:
        node[last] = value
    return json.dumps(document)


@pytest.fixture
def document():
    return json.loads(to_json(CONFIGS["points"]))


@pytest.mark.parametrize("name", RECIPES)
def test_presets_survive_json(name):
    assert from_json(Recipe, to_json(RECIPES[name])) == RECIPES[name]
    assert from_json(ModelConfig, to_json(RECIPES[name].model)) == RECIPES[name].model


@pytest.mark.parametrize("name", CONFIGS)
def test_json_is_a_fixed_point(name):
    text = to_json(CONFIGS[name])
    assert to_json(from_json(ModelConfig, text)) == text


def test_presets_go_by_their_own_names():
    assert {name: row.model.name for name, row in RECIPES.items()} == {name: name for name in RECIPES}
    with pytest.raises(EnmaError, match=r"'combined-huge'.*combined-small"):
        find_recipe("combined-huge")


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("colour", "red", "colour"),
        ("codec.gird", [32], "codec.gird"),
        ("step.depth", 3, "step.depth"),
        ("step.kind", "magic", "step: .*flow"),
        ("codec.kind", "conv", "codec.interpolation"),
        ("context.kind", None, "context: .*kind"),
        ("initial", {"kind": "local", "colour": 1}, "initial.colour"),
        ("trunk.condition", "sum", "trunk.condition: .*'concat' or 'add'"),
        ("codec.interpolation.head", 3, "codec.interpolation.head"),
        ("name", None, "name: .*required"),
        ("dataset", None, "dataset: .*required"),
        ("num_frames", "twenty", "num_frames: .*integer"),
        # Close to right is wrong too: nothing is converted silently.
        ("num_frames", "8", "num_frames: .*integer"),
        ("num_frames", 8.5, "num_frames: .*integer"),
        ("codec.variational", 1, "codec.variational: .*boolean"),
        ("codec.grid", 32, "codec.grid: "),
        ("codec.layers", ["space", 2], r"codec.layers.1: .*string"),
        ("context.positions", "absolute", "context.positions: .*'sincos' or 'rotary'"),
        ("step.target", "noise", "step.target: .*'data' or 'residual'"),
    ],
)
def test_wrong_entries_are_named(document, path, value, said):
    with pytest.raises(EnmaError, match=f"^model.json: .*{said}") as caught:
        from_json(ModelConfig, changed(document, path, value), source="model.json")
    assert "\n" not in str(caught.value)


def test_a_document_older_than_a_key_does_what_was_done_then(document):
    older = changed(document, "sampling.shifts", None)
    assert from_json(ModelConfig, older).sampling.shifts is None


@pytest.mark.parametrize("text", ["", "{", '{"name": "x"', "[]", "null", "\x00"])
def test_what_is_no_document_is_refused(text):
    with pytest.raises(EnmaError, match=r"^model\.json: "):
        from_json(ModelConfig, text, source="model.json")


def test_a_whole_number_is_a_valid_float(document):
    assert from_json(ModelConfig, changed(document, "frame_interval", 1)).frame_interval == 1.0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"codec.grid": (30,)}, r"Tiny: grid \(30,\) is not a multiple of 4 "),
        ({"context.patch": (3,)}, r"Tiny: grid \(32,\) is not a multiple of 6"),
        ({"codec.kernel_ends": 67}, "Tiny: codec.kernel_ends 67 "),
        ({"codec.grid": (32, 32)}, "Tiny: lengths has 1 entries"),
        ({"codec.lengths": ()}, "Tiny: lengths has 0 entries"),
        ({"codec.lengths": (0.0,)}, "Tiny: lengths is .*above 0"),
        ({"codec.periodic": (True, False)}, "Tiny: periodic has 2 entries"),
        ({"context.patch": (2, 2)}, "Tiny: patch has 2 entries"),
        ({"context.patch": (0,)}, "Tiny: patch is .*above 0"),
        ({"codec.grid": (0,)}, "Tiny: grid is .*above 0"),
        ({"codec.grid": ()}, "Tiny: grid .* 0 dimensions"),
        (
            {"codec.grid": (8,) * 3, "codec.lengths": (1.0,) * 3, "codec.periodic": (True,) * 3},
            "Tiny: grid .* 3 dimensions; 1 to 2",
        ),
        ({"codec.layers": ("space", "pool")}, r"Tiny: codec.layers holds \['pool'\]"),
        ({"context.heads": 3}, r"Tiny: context.width 32 must be a multiple of 4 \* heads"),
        ({"context.heads": 0}, "Tiny: context.heads is 0"),
        ({"context.heads": 8}, "Tiny: .*4 channels a head; rotary positions in 1 dimension need 8"),
        ({"shortest_context": 0}, "Tiny: shortest_context is 0; at least 1 is needed"),
        ({"shortest_context": 9}, "Tiny: shortest_context is 9; at most num_frames=8 can be"),
        ({"context.layers": 0}, "Tiny: context.layers is 0"),
        ({"trunk.layers": 0}, "Tiny: trunk.layers is 0"),
        ({"trunk": None}, "Tiny: trunk is null"),
        ({"sampling.flow_steps": -1}, "Tiny: sampling.flow_steps is -1; at least 1"),
        ({"sampling.temperature": -0.5}, "Tiny: sampling.temperature is -0.5; 0 or more"),
        ({"sampling.temperature": float("nan")}, "Tiny: sampling.temperature is nan; 0 or more"),
        ({"codec.kernel_ends": 4}, "Tiny: codec.kernel_ends is 4"),
        ({"step.time_features": 7}, "Tiny: step.time_features is 7"),
    ],
)
def test_bad_grids_are_refused(changes, said):
    config = replace(CONFIGS["relative"], {"name": "Tiny"})
    # The name keeps its case: it is what the reader looks for.
    with pytest.raises(EnmaError, match=said):
        replace(config, changes)


def test_a_bad_grid_is_refused_on_construction_too():
    with pytest.raises(EnmaError, match="multiple"):
        ModelConfig(name="x", dataset="x", codec=ConvConfig(grid=(100,)))


def test_replace_reaches_nested_entries_and_leaves_the_original():
    config = CONFIGS["points"]
    before = to_json(config)
    new = replace(
        config,
        {
            "num_frames": 9,
            "step.width": 12,
            # The command line gives a list.
            "context.patch": [4],
            "codec.interpolation.features": 10,
        },
    )
    assert (new.num_frames, new.step.width, new.codec.interpolation.features) == (9, 12, 10)
    assert new.context.patch == (4,)
    assert new.context.layers == config.context.layers
    assert to_json(config) == before
    assert replace(config, {}) == config


def test_replace_takes_whole_parts():
    part = InterpolationConfig(heads=2, slopes=(1.0, 2.0))
    assert replace(CONFIGS["points"], {"codec.interpolation": part}).codec.interpolation == part
    for slot, kind in (("codec", BlocksConfig(grid=(32,), lengths=(2.0,))), ("step", LocalConfig(width=32))):
        assert getattr(replace(CONFIGS["relative"], {slot: kind}), slot) == kind
    assert replace(CONFIGS["relative-fast"], {"initial": None}).initial is None


def test_replace_checks_all_changes_together():
    plane = replace(
        CONFIGS["relative"],
        {
            "codec.grid": (16, 16),
            "codec.lengths": (1.0, 1.0),
            "codec.periodic": (True, True),
            "context.patch": (2, 2),
        },
    )
    assert (plane.token_grid, plane.num_tokens, plane.token_channels) == ((4, 4), 16, 8)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"frames": 3}, "'frames'; known are name, dataset, num_frames"),
        ({"step.depth": 3}, "'step.depth'; known are kind, width, layers"),
        ({"codec.interpolation.heads": 3}, "'codec.interpolation.heads'; known are kind, grid"),
        ({"initial.width": 3}, "'initial.width'; initial is None"),
        ({"name.first": 3}, "'name.first'; name is 'relative'"),
        ({"num_frames": "8"}, "num_frames: .*integer"),
        ({"": 3}, "unknown key ''"),
    ],
)
def test_replace_refuses_unknown_keys_and_wrong_types(changes, said):
    with pytest.raises(EnmaError, match=f"^ModelConfig: .*{said}"):
        replace(CONFIGS["relative"], changes)


@pytest.mark.parametrize(
    ("name", "epochs", "batches"),
    [
        ("combined", 1000, (64, 128)),
        ("advection", 1000, (64, 128)),
        ("gray-scott", 150, (8, 128)),
        ("wave", 150, (8, 64)),
        ("vorticity", 150, (8, 64)),
    ],
)
def test_paper_recipes_train_as_long_as_the_paper(name, epochs, batches):
    recipe = RECIPES[f"{name}-paper"]
    stages = (recipe.first(TokenizerStage), recipe.first(DynamicsStage))
    assert tuple(stage.batch for stage in stages) == batches
    seen = [stage.steps * stage.batch / 12_000 for stage in stages]
    assert seen == pytest.approx([epochs, 1000], rel=5e-3)
    assert [stage.optimizer.final_learning_rate for stage in stages] == [1e-7, 1e-5]


@pytest.mark.parametrize(
    ("kind", "changes", "said"),
    [
        (TokenizerStage, {"steps": 0}, "tokenizer: steps is 0"),
        (TokenizerStage, {"batch": -4}, "tokenizer: batch is -4"),
        (TokenizerStage, {"window": 0}, "tokenizer: window is 0"),
        (Optimizer, {"learning_rate": 0.0}, "learning_rate is 0.0"),
        (Optimizer, {"learning_rate": math.inf}, "learning_rate is inf"),
        (Optimizer, {"weight_decay": math.inf}, "weight_decay is inf"),
        (Optimizer, {"warmup_steps": -1}, "warmup_steps is -1"),
        (Optimizer, {"ema_decay": 1.5}, "ema_decay is 1.5"),
        (DynamicsStage, {"context_share": -0.5}, "dynamics: context_share is -0.5"),
        (DynamicsStage, {"encoded_shifts": 0}, "dynamics: encoded_shifts is 0"),
        (DynamicsStage, {"mask_ratio": (0.75, 0.5)}, "dynamics: mask_ratio is"),
    ],
)
def test_impossible_trainings_are_refused(kind, changes, said):
    usual = {} if kind is Optimizer else {"steps": 1, "batch": 1}
    with pytest.raises(EnmaError, match=f"^{said}"):
        kind(**usual | changes)


@hypothesis.given(frames=st.integers(1, 60), time_layers=st.integers(0, 3))
def test_latent_frames_cover_the_frames(frames, time_layers):
    options = dataclasses.replace(ConvConfig(), layers=("space",) + ("time",) * time_layers)
    factor = 2**time_layers
    # Latent 0 holds frame 0, latent j the factor frames that end at j * factor.
    holds = [[0]] + [list(range((j - 1) * factor + 1, j * factor + 1)) for j in range(1, frames + 1)]
    assert options.latent_frames(frames) == sum(held[0] < frames for held in holds)
    assert options.whole_latents(frames) == sum(held[-1] < frames for held in holds)


@pytest.mark.parametrize(("frames", "latents"), [(1, 1), (2, 2), (3, 2), (20, 11), (30, 16), (50, 26)])
def test_latent_frames_of_the_paper(frames, latents):
    assert ConvConfig().latent_frames(frames) == latents


@pytest.mark.parametrize(
    ("name", "part", "changes", "said"),
    [
        (
            "combined-small",
            "context",
            {"positions": "rotery"},
            "context.positions is 'rotery'; use one of 'sincos', 'rotary'",
        ),
        ("combined-small", "trunk", {"condition": "sum"}, "trunk.condition is 'sum'; use one of 'concat', 'add'"),
        ("combined-small", "step", {"target": "noise"}, "step.target is 'noise'; use one of 'data', 'residual'"),
        ("combined-fast", "initial", {"target": "noise"}, "initial.target is 'noise'; use one of 'data', 'residual'"),
        ("combined-small", "sampling", {"temperature": "1"}, r"sampling.temperature is '1' \(text\); .* a number"),
        ("combined-small", "sampling", {"shifts": "2"}, r"sampling.shifts is '2' \(text\)"),
        ("combined-small", "context", {"scale_shift_rank": -1}, "context.scale_shift_rank is -1"),
        ("combined-small", "codec", {"kind": "points"}, "codec.kind is 'points'"),
        ("combined-small", "step", {"kind": "linear"}, "step.kind is 'linear'"),
        ("advection-points", "codec.interpolation", {"heads": 5}, "codec.interpolation.features is 16"),
        ("advection-points", "codec.interpolation", {"heads": 0}, "codec.interpolation.heads is 0"),
    ],
)
def test_configs_made_in_python_are_checked_as_those_of_files(name, part, changes, said):
    config = RECIPES[name].model
    outer, _, inner = part.partition(".")
    slot = getattr(config, outer)
    if inner:
        changes = {inner: dataclasses.replace(getattr(slot, inner), **changes)}
    with pytest.raises(EnmaError, match=said):
        dataclasses.replace(config, **{outer: dataclasses.replace(slot, **changes)})


@pytest.mark.parametrize("slot", [CodecConfig, ContextConfig, DecoderConfig])
def test_kinds_of_a_slot_go_by_their_tags(slot):
    assert slot.kinds
    for tag, kind in slot.kinds.items():
        assert {entry.name: entry.default for entry in dataclasses.fields(kind)}["kind"] == tag
        assert issubclass(kind, slot)


def test_a_decoder_may_have_any_place():
    for initial in (None, FlowConfig(), LocalConfig(width=32), LinearConfig()):
        for step in (FlowConfig(), LinearConfig(), LocalConfig(modes=4)):
            config = dataclasses.replace(CONFIGS["relative"], initial=initial, step=step)
            assert from_json(ModelConfig, to_json(config)) == config


@pytest.mark.parametrize(("block", "frames"), [(1, 1), (2, 2), (4, 3)])
def test_blocks_have_as_many_channels_as_values(block, frames):
    config = BlocksConfig(
        grid=(8, 16), lengths=(1.0, 1.0), periodic=(True, True), field_channels=3, block=block, frames=frames
    )
    assert config.latent_channels == 3 * block**2 * frames
    assert config.token_grid == (8 // block, 16 // block)
    assert config.latent_frames(1 + 2 * frames) == 3
    assert config.whole_frames(2 * frames) == 1 + frames
