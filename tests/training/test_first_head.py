"""A head of frame 0: what it begins as, what its training changes, and what its score tells apart."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from enma_fast.config import FirstConfig
from enma_fast.errors import EnmaError
from enma_fast.models.checkpoint import PRETRAINED, load_model
from enma_fast.models.model import Model
from enma_fast.sampling.reference import trajectory
from enma_fast.training.card import card_text, read_metrics
from enma_fast.training.config import RolloutConfig
from enma_fast.training.first_field import begin_as_field
from enma_fast.training.first_frame import FirstFrameTask
from enma_fast.training.loop import RunOptions, run, step_generator
from enma_fast.training.ranks import Rank
from enma_fast.training.recipes import inherit, train
from enma_fast.training.wave_score import WaveScore

from .._tiny import CONFIGS, FIRST, TRAINING, dynamics_task, forecast_task, random_model

SETTINGS = replace(
    TRAINING, steps=40, batch=4, learning_rate=1e-3, rollout=RolloutConfig(history=(2, 2), first_draws=2)
)


def task(name="line-first", make=FirstFrameTask, settings=SETTINGS):
    return forecast_task(name, settings, decoder="one-pass", make=make)


def made_frames(dynamics, count):
    """Frames 0 ``[count, *grid, F]`` of as many members after an untrained model's context."""
    N, C = dynamics.config.num_tokens, dynamics.config.token_channels
    context, seeds = torch.zeros(count, 1, N, C), torch.zeros(count, dtype=torch.int64)
    first = trajectory(
        dynamics, context[:, :0], num_latents=1, seeds=seeds, members=torch.arange(count), context=context
    )
    return dynamics.first.on_grid(next(first)[:, None])[:, 0]


def smooth(count, grid, channels):
    """Random fields around a mean whose neighbours, and whose channels, vary together."""
    noise = torch.randn(count, *grid, channels, generator=torch.Generator().manual_seed(0))
    for axis in range(1, 1 + len(grid)):
        noise = noise + noise.roll(1, axis)
    noise[..., 1:] = 0.5 * noise[..., 1:] + noise[..., :1]
    return 0.7 + noise


@pytest.mark.parametrize("name", FIRST)
def test_it_begins_as_the_random_field_of_the_data(name):
    torch.manual_seed(0)
    config = CONFIGS[name]
    modes = (min(config.tokenizer.token_grid) + 1) // 2
    config = replace(config, dynamics=replace(config.dynamics, first=FirstConfig(width=16, layers=2, modes=modes)))
    model = Model(config)
    data = smooth(4000, config.tokenizer.token_grid, config.tokenizer.latent_channels)
    # Waves beyond the filter are no part of it.
    axes = tuple(range(1, data.ndim - 1))
    waves = torch.fft.fftn(data, dim=axes)
    for axis, n in zip(axes, config.tokenizer.token_grid, strict=True):
        kept = (torch.fft.fftfreq(n, 1 / n).abs() < modes).view(-1, *[1] * (data.ndim - 1 - axis))
        waves = waves * kept
    data = torch.fft.ifftn(waves, dim=axes).real
    begin_as_field(model.dynamics.first, data)
    made = made_frames(model.dynamics.requires_grad_(False), 4000)
    torch.testing.assert_close(made.flatten(0, -2).mean(0), data.flatten(0, -2).mean(0), atol=0.03, rtol=0)
    for move in (0, 1, 2):
        found, expected = (
            torch.einsum("b...i,b...j->ij", x - x.flatten(0, -2).mean(0), x.roll(move, 1) - x.flatten(0, -2).mean(0))
            / x[..., 0].numel()
            for x in (made, data)
        )
        # Norms are nearly linear, and 4,000 fields have a few percent of their own.
        torch.testing.assert_close(found, expected, atol=0.1 * data.var().item(), rtol=0)


@pytest.mark.parametrize("stage", ["dynamics", "head", "forecasts", "first-frame"])
def test_a_head_that_is_too_narrow_is_refused_before_anything_is_trained(stage, tmp_path):
    start = {} if stage == "dynamics" else {"start": PRETRAINED / "vorticity-fast"}
    options, changes = RunOptions(out=tmp_path / "run"), {"dynamics.first.width": 16}
    with pytest.raises(EnmaError, match=r"dynamics\.first\.width is 16; more than twice 8, the latent channels"):
        train(stage, "vorticity-fast", data_dir=tmp_path, options=options, model_changes=changes, **start)


def test_training_lowers_the_score_and_changes_the_head_alone(tmp_path):
    trained = task()
    # Half of what it begins with, which fits these few waves.
    with torch.no_grad():
        trained.model.dynamics.first.read.weight.mul_(0.5)
    before = {name: t.clone() for name, t in trained.model.state_dict().items()}
    first = trained.validate()["score"]
    scores = run(trained, RunOptions(out=tmp_path, precision="fp32", validate_every=40, log_every=40))
    assert scores["score"] < first
    changed = {name for name, t in trained.model.state_dict().items() if not torch.equal(t, before[name])}
    assert changed
    assert all(name.startswith("dynamics.first.") for name in changed)


def test_what_was_trained_does_not_begin_anew():
    one = task()
    with torch.no_grad():
        one.model.dynamics.first.read.weight.mul_(2)
    before = one.model.dynamics.first.read.weight.clone()
    one._begin_first()
    assert torch.equal(one.model.dynamics.first.read.weight, before)


def test_the_score_tells_fields_with_the_same_values_apart():
    """Members whose values have the right distribution, at places that are shuffled, are no such fields."""
    config = CONFIGS["line-local"]
    options = config.tokenizer
    fields = smooth(600, options.grid, 1)[:, None]
    score = WaveScore(
        SimpleNamespace(config=config, encode=lambda u: u, decode=lambda z: z, latent_std=torch.ones(1)), fields
    )
    members, truth = fields[:400].view(200, 2, *fields.shape[1:])[:, :, 0], fields[400:, 0]
    shuffled = members[:, :, torch.randperm(options.grid[0], generator=torch.Generator().manual_seed(0))]
    good, wrong, wide = (score(x, truth).item() for x in (members, shuffled, 0.7 + 2 * (members - 0.7)))
    assert good < 0.97 * min(wrong, wide)


def test_forecasts_train_it_with_the_rest():
    """Where a batch has contexts; frame 0 counts by its weight."""
    settings = replace(SETTINGS, context_share=1.0)
    one = forecast_task("line-first", settings, decoder="one-pass")
    loss, terms = one.loss(one.module, step_generator(0, 0), Rank())
    loss.backward()
    assert terms["first_frame"] > 0
    assert one.model.dynamics.first.read.weight.grad.abs().sum() > 0
    settings = replace(settings, rollout=replace(settings.rollout, first_frame=0.0))
    other = forecast_task("line-first", settings, decoder="one-pass")
    assert "first_frame" not in other.loss(other.module, step_generator(0, 0), Rank())[1]


def test_single_frames_train_without_a_flow():
    one = dynamics_task("line-first")
    _, terms = one.loss(one.module, step_generator(0, 0), Rank())
    assert set(terms) == {"crps"}
    assert one.model.dynamics.flow is None


@pytest.mark.parametrize(("name", "width"), [("line-fourier", 16), ("line-first", 32)])
def test_a_model_with_a_flow_or_a_head_of_other_sizes_goes_on_with_a_new_head(name, width):
    before, config = random_model(CONFIGS[name]), CONFIGS["line-first"]
    config = replace(config, dynamics=replace(config.dynamics, first=replace(config.dynamics.first, width=width)))
    model = Model(config)
    inherit(model, before, source="it")
    ours, theirs = model.state_dict(), before.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours if not name.startswith("dynamics.first."))
    assert not model.dynamics.first.read.weight.any()
    other = replace(config.dynamics, local=replace(config.dynamics.local, width=32))
    with pytest.raises(EnmaError, match=r"it: dynamics\.local\..* has shape"):
        inherit(Model(replace(config, dynamics=other)), before, source="it")


@pytest.mark.parametrize(
    ("name", "changes", "text"),
    [
        ("line-first", {"decoder": "masked-flow", "local": None}, "dynamics.first is set and the decoder is"),
        ("line-first", {"first": FirstConfig(width=24)}, "dynamics.first.width is 24; a multiple of 16"),
        ("line-first", {"first": FirstConfig(width=16, modes=99)}, "dynamics.first.modes is 99; 1 to"),
        (
            "plane-local",
            {"first": FirstConfig(width=16, modes=1)},
            "dynamics.first.modes is 1 and the domain has walls",
        ),
    ],
)
def test_a_config_that_no_head_can_have_is_refused(name, changes, text):
    config = CONFIGS[name]
    with pytest.raises(EnmaError, match=text):
        replace(config, dynamics=replace(config.dynamics, **changes))


def test_the_card_says_that_frame_0_has_a_head_of_its_own():
    metrics = read_metrics(PRETRAINED / "vorticity-fast")
    text = (PRETRAINED / "vorticity-fast" / "README.md").read_text()
    assert text == card_text(load_model("vorticity-fast").config, metrics)
    assert "(frame 0, which only generation draws, by a head of its own)" in text
