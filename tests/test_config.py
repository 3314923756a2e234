"""Configs survive JSON; whatever is wrong with one is a single line that names source and field."""

import dataclasses
import json
import math

import pytest

from enma_fast.config import InterpolationConfig, ModelConfig, TokenizerConfig
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
        ("tokenizer.gird", [32], "tokenizer.gird"),
        ("dynamics.flow.depth", 3, "dynamics.flow.depth"),
        ("tokenizer.interpolation.head", 3, "tokenizer.interpolation.head"),
        ("name", None, "name: .*required"),
        ("dataset", None, "dataset: .*required"),
        ("num_frames", "twenty", "num_frames: .*integer"),
        # Close to right is wrong too: nothing is converted silently.
        ("num_frames", "8", "num_frames: .*integer"),
        ("num_frames", 8.5, "num_frames: .*integer"),
        ("tokenizer.variational", 1, "tokenizer.variational: .*boolean"),
        ("tokenizer.grid", 32, "tokenizer.grid: "),
        ("tokenizer.layers", ["space", 2], r"tokenizer.layers.1: .*string"),
        ("dynamics.positions", "absolute", "dynamics.positions: .*'sincos' or 'rotary'"),
        ("dynamics.flow.target", "noise", "dynamics.flow.target: .*'data' or 'residual'"),
        ("sampling.method", "heun", "sampling.method: .*'midpoint' or 'euler'"),
        ("tokenizer.interpolation.distance_power", 3, "distance_power: .*1 or 2"),
    ],
)
def test_wrong_entries_are_named(document, path, value, said):
    with pytest.raises(EnmaError, match=f"^model.json: .*{said}") as caught:
        from_json(ModelConfig, changed(document, path, value), source="model.json")
    assert "\n" not in str(caught.value)


def test_a_document_older_than_a_key_does_what_was_done_then(document):
    older = changed(document, "sampling.last_flow_steps", None)
    assert from_json(ModelConfig, older).sampling.last_flow_steps is None


@pytest.mark.parametrize("text", ["", "{", '{"name": "x"', "[]", "null", "\x00"])
def test_what_is_no_document_is_refused(text):
    with pytest.raises(EnmaError, match=r"^model\.json: "):
        from_json(ModelConfig, text, source="model.json")


def test_a_whole_number_is_a_valid_float(document):
    assert from_json(ModelConfig, changed(document, "frame_interval", 1)).frame_interval == 1.0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"tokenizer.grid": (30,)}, r"Tiny: grid \(30,\) is not a multiple of 4 .*; change grid, tokenizer"),
        ({"dynamics.patch": (3,)}, r"Tiny: grid \(32,\) is not a multiple of 6"),
        ({"tokenizer.kernel": 35}, "Tiny: tokenizer.kernel 35 .* more than once around .* of 32 points and 16 tokens"),
        ({"tokenizer.grid": (32, 32)}, "Tiny: lengths has 1 entries"),
        ({"tokenizer.lengths": ()}, "Tiny: lengths has 0 entries"),
        ({"tokenizer.lengths": (0.0,)}, "Tiny: lengths is .*above 0"),
        ({"tokenizer.periodic": (True, False)}, "Tiny: periodic has 2 entries"),
        ({"dynamics.patch": (2, 2)}, "Tiny: patch has 2 entries"),
        ({"dynamics.patch": (0,)}, "Tiny: patch is .*above 0"),
        ({"tokenizer.grid": (0,)}, "Tiny: grid is .*above 0"),
        ({"tokenizer.grid": ()}, "Tiny: grid .* 0 dimensions"),
        (
            {"tokenizer.grid": (8,) * 3, "tokenizer.lengths": (1.0,) * 3, "tokenizer.periodic": (True,) * 3},
            "Tiny: grid .* 3 dimensions; 1 or 2",
        ),
        ({"tokenizer.layers": ("space", "pool")}, r"Tiny: tokenizer.layers holds \['pool'\]"),
        ({"dynamics.heads": 3}, r"Tiny: dynamics.width 32 must be a multiple of 4 \* heads"),
        ({"dynamics.heads": 0}, "Tiny: heads is .*above 0"),
        ({"dynamics.heads": 8}, "Tiny: .*4 channels a head; rotary positions in 1 dimension need 8"),
        ({"shortest_context": 0}, "Tiny: shortest_context is 0; at least 1 is needed"),
        ({"shortest_context": 9}, "Tiny: shortest_context is 9; at most num_frames=8 can be"),
        ({"dynamics.temporal_layers": 0}, "Tiny: dynamics.temporal_layers is 0; at least 1"),
        ({"sampling.flow_steps": -1}, "Tiny: sampling.flow_steps is -1; at least 1"),
        ({"sampling.last_flow_steps": 0}, "Tiny: sampling.last_flow_steps is 0; at least 1"),
        ({"sampling.temperature": -0.5}, "Tiny: sampling.temperature is -0.5; 0 or more"),
        ({"sampling.temperature": float("nan")}, "Tiny: sampling.temperature is nan; 0 or more"),
        ({"tokenizer.kernel": 4}, "Tiny: tokenizer.kernel is 4; an odd number"),
        ({"dynamics.flow.time_features": 7}, "Tiny: dynamics.flow.time_features is 7; an even number"),
    ],
)
def test_bad_grids_are_refused(changes, said):
    config = replace(CONFIGS["relative"], {"name": "Tiny"})
    # The name keeps its case: it is what the reader looks for.
    with pytest.raises(EnmaError, match=said):
        replace(config, changes)


def test_a_bad_grid_is_refused_on_construction_too():
    with pytest.raises(EnmaError, match="multiple"):
        ModelConfig(name="x", dataset="x", tokenizer=TokenizerConfig(grid=(100,)))


def test_replace_reaches_nested_entries_and_leaves_the_original():
    config = CONFIGS["points"]
    before = to_json(config)
    new = replace(
        config,
        {
            "num_frames": 9,
            "dynamics.flow.width": 12,
            # The command line gives a list.
            "dynamics.patch": [4],
            "tokenizer.interpolation.slices": 5,
        },
    )
    assert (new.num_frames, new.dynamics.flow.width, new.tokenizer.interpolation.slices) == (9, 12, 5)
    assert new.dynamics.patch == (4,)
    assert new.dynamics.temporal_layers == config.dynamics.temporal_layers
    assert to_json(config) == before
    assert replace(config, {}) == config


def test_replace_takes_whole_parts():
    part = InterpolationConfig(heads=2, slopes=(1.0, 2.0))
    assert replace(CONFIGS["relative"], {"tokenizer.interpolation": part}).tokenizer.interpolation == part
    assert replace(CONFIGS["points"], {"tokenizer.interpolation": None}).tokenizer.interpolation is None


def test_replace_checks_all_changes_together():
    plane = replace(
        CONFIGS["relative"],
        {
            "tokenizer.grid": (16, 16),
            "tokenizer.lengths": (1.0, 1.0),
            "tokenizer.periodic": (True, True),
            "dynamics.patch": (2, 2),
        },
    )
    assert (plane.token_grid, plane.num_tokens, plane.token_channels) == ((4, 4), 16, 8)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"frames": 3}, "'frames'; known are name, dataset, num_frames"),
        ({"dynamics.flow.depth": 3}, "'dynamics.flow.depth'; known are width, layers"),
        ({"tokenizer.interpolation.slices": 3}, "tokenizer.interpolation is None"),
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
    options = dataclasses.replace(TokenizerConfig(), layers=("space",) + ("time",) * time_layers)
    factor = 2**time_layers
    # Latent 0 holds frame 0, latent j the factor frames that end at j * factor.
    holds = [[0]] + [list(range((j - 1) * factor + 1, j * factor + 1)) for j in range(1, frames + 1)]
    assert options.latent_frames(frames) == sum(held[0] < frames for held in holds)
    assert options.whole_latents(frames) == sum(held[-1] < frames for held in holds)


@pytest.mark.parametrize(("frames", "latents"), [(1, 1), (2, 2), (3, 2), (20, 11), (30, 16), (50, 26)])
def test_latent_frames_of_the_paper(frames, latents):
    assert TokenizerConfig().latent_frames(frames) == latents


@pytest.mark.parametrize(
    ("name", "part", "changes", "said"),
    [
        ("combined-small", "dynamics", {"positions": "rotery"}, "positions is 'rotery'; use one of 'sincos', 'rotary'"),
        ("combined-small", "dynamics", {"decoder": "onepass"}, "decoder is 'onepass'; use one of 'masked-flow'"),
        ("combined-small", "sampling", {"method": "heun"}, "sampling.method is 'heun'; use one of 'midpoint', 'euler'"),
        ("combined-small", "sampling", {"temperature": "1"}, r"sampling.temperature is '1' \(text\); .* a number"),
        ("combined-small", "sampling", {"shifts": "2"}, r"sampling.shifts is '2' \(text\)"),
        ("combined-fast", "flow", {"draws": 1}, "dynamics.flow.draws is 1; frames decided in one pass need 2 or more"),
        ("combined-small", "dynamics", {"mlp_ratio": 0.0}, "mlp_ratio 0.0; 0 or more and above 0 are needed"),
        ("combined-small", "dynamics", {"scale_shift_rank": -1}, "scale_shift_rank is -1 and"),
        ("advection-points", "interpolation", {"heads": 5}, "features is 16; a multiple of its heads"),
        ("advection-points", "interpolation", {"heads": 0}, "features is 16; a multiple of its heads"),
    ],
)
def test_configs_made_in_python_are_checked_as_those_of_files(name, part, changes, said):
    config = RECIPES[name].model
    outer = {"flow": "dynamics", "interpolation": "tokenizer"}.get(part)
    holder = config if outer is None else getattr(config, outer)
    changed = {part: dataclasses.replace(getattr(holder, part), **changes)}
    with pytest.raises(EnmaError, match=said):
        dataclasses.replace(config, **(changed if outer is None else {outer: dataclasses.replace(holder, **changed)}))
