"""Two dimensions: the same modules build, train and sample; the shipped 2-D presets take a step and forecast."""

import json
from dataclasses import replace

import pytest
import torch

from enma_fast.forecasting.members import sample_fields
from enma_fast.models.codecs.conv import ConvCodec
from enma_fast.models.codecs.interpolation import grid_points
from enma_fast.models.model import Model
from enma_fast.training.dynamics import DynamicsStage, DynamicsTask
from enma_fast.training.latents import encode_all
from enma_fast.training.loop import RunOptions, run, step_generator
from enma_fast.training.ranks import Rank
from enma_fast.training.recipes import RECIPES
from enma_fast.training.tokenizer import TokenizerStage, TokenizerTask

from .._tiny import PLANE, dynamics_task, shaken, tokenizer_task, waves, waves_file

LEARNING = {"steps": 30, "batch": 8, "optimizer": "muon", "learning_rate": 1e-2, "warmup_steps": 5}


def losses(out):
    return [json.loads(line)["loss"] for line in (out / "log.jsonl").read_text().splitlines() if "loss" in line]


def train(task, out):
    scores = run(task, RunOptions(out=out, precision="fp32", log_every=1, validate_every=1000))
    found = losses(out)
    return sum(found[:3]) / 3, sum(found[-5:]) / 5, scores


def test_the_tokenizer_learns(tmp_path):
    first, last, scores = train(tokenizer_task("plane", **LEARNING), tmp_path)
    assert last < 0.75 * first
    assert scores["rel_l2"] < 0.75


# On latents of a random tokenizer, with interpolation or without.
@pytest.mark.parametrize("name", ["plane", "plane-paper"])
def test_the_dynamics_learn_and_forecast(name, tmp_path):
    task = dynamics_task(name, **LEARNING)
    first, last, scores = train(task, tmp_path)
    assert last < first - 0.2
    assert all(0 < value < float("inf") for value in scores.values())

    fields = waves(2, 2, 8, task.model.config.codec)
    history, context = fields[::2, :3], fields[1::2]
    ensembles = [
        sample_fields(task.model, history, num_members=2),
        sample_fields(task.model, history[:, :1], context=context, num_members=2),
        sample_fields(task.model, None, context=context, num_members=2),
    ]
    for ensemble, frames in zip(ensembles, (5, 7, 8), strict=True):
        assert ensemble.shape == (2, 2, frames, 16, 8, 2)
        assert ensemble.isfinite().all()
        assert (ensemble[:, 0] - ensemble[:, 1]).abs().max() > 1e-3


PLANES = [name for name, preset in RECIPES.items() if preset.model.codec.dims == 2 and name.endswith("-small")]


def test_a_plane_is_among_the_small_presets():
    assert "vorticity-small" in PLANES


@pytest.mark.slow
@pytest.mark.parametrize("name", PLANES)
def test_small_presets_take_a_step_and_forecast(name):
    preset = RECIPES[name]
    config = replace(preset.model, num_frames=4)
    torch.manual_seed(0)
    model = Model(config)
    fields = waves(2, 2, 4, config.codec)
    trained = replace(preset.first(TokenizerStage), batch=2)
    task = TokenizerTask(model, trained, train=waves_file(config, fields), val=fields)
    loss, _ = task.loss(task.module, step_generator(0, 0), Rank())
    loss.backward()

    latents = encode_all(model.codec, fields, torch.tensor([0, 0, 1, 1]), shift=False)
    trained = replace(preset.first(DynamicsStage), batch=4, context_share=1.0)
    task = DynamicsTask(model, trained, latents={1: latents}, val=fields, val_contexts=fields)
    loss, _ = task.loss(task.module, step_generator(0, 0), Rank())
    loss.backward()
    for module in (model.codec, model.dynamics):
        gradients = [p.grad for p in module.parameters() if p.grad is not None]
        assert all(g.isfinite().all() for g in gradients)
        assert sum(g.square().sum() for g in gradients) > 0

    out = sample_fields(model.eval(), fields[:1, :3], num_members=2)
    assert out.shape == (1, 2, 1, *config.codec.grid, config.codec.field_channels)
    assert out.isfinite().all()


def test_axes_keep_their_order():
    """Without residual blocks, whose gates see the whole frame, a change reaches just as far as the kernels do."""
    options = replace(PLANE, layers=("space",))
    torch.manual_seed(0)
    codec = shaken(ConvCodec(options)).eval().requires_grad_(False)
    u = torch.randn(1, 1, 16, 8, 2)
    changed = u.clone()
    changed[0, 0, 12, 1] += 1.0
    moved = (codec.encode(changed) != codec.encode(u)).any(-1).view(8, 4).nonzero().tolist()
    # Token (i, j) sees points up to 4 from (2 i, 2 j); the first axis is a ring, the second ends at walls.
    assert moved == [[i, j] for i in (0, 4, 5, 6, 7) for j in (0, 1, 2)]

    z = torch.randn(1, 1, 32, 3)
    changed = z.clone()
    changed[0, 0, 6 * 4 + 3] += 1.0
    moved = (codec.decode(changed) != codec.decode(z)).any(-1)[0, 0].nonzero().tolist()
    # Tokens up to 1 away hold points (2 i, 2 j) to (2 i + 1, 2 j + 1), and the last kernel sees 3 more.
    assert moved == [[i, j] for i in (0, 1, 2, *range(7, 16)) for j in range(1, 8)]


def test_grids_have_their_own_lengths():
    x = grid_points(PLANE).view(16, 8, 2)
    # The first axis of 16 points is a ring two long, the second of 8 points ends in walls and is one long.
    assert x[:, 3, 0].tolist() == pytest.approx([i / 8 for i in range(16)])
    assert x[3, :, 1].tolist() == pytest.approx([j / 7 for j in range(8)])
