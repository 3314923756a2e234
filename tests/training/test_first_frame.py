"""Training the flow of frame 0 alone: what it changes, what it fits, and what it refuses."""

import pytest
import torch

from enma_fast.errors import EnmaError
from enma_fast.sampling.rollout import rollout
from enma_fast.training.first_frame import FirstFrameStage, FirstFrameTask
from enma_fast.training.loop import RunOptions, run, step_generator
from enma_fast.training.ranks import Rank

from .._tiny import forecast_task

SETTINGS = {"steps": 40, "batch": 4, "learning_rate": 5e-3, "kind": FirstFrameStage}


def task(name="relative-fast"):
    return forecast_task(name, make=FirstFrameTask, **SETTINGS)


def test_training_lowers_the_loss_and_changes_the_velocity_alone(tmp_path):
    trained = task()
    before = {name: t.clone() for name, t in trained.model.state_dict().items()}
    first = trained.validate()["flow"]
    scores = run(trained, RunOptions(out=tmp_path, precision="fp32", validate_every=40, log_every=40))
    assert scores["flow"] < first - 0.05
    changed = {name for name, t in trained.model.state_dict().items() if not torch.equal(t, before[name])}
    assert changed
    assert all(name.startswith("dynamics.initial.velocity.") for name in changed)


def test_the_condition_is_that_of_frame_0_in_a_forecast():
    """As `rollout` reads it, for a context and one observed frame."""
    one = task()
    dynamics, generator = one.model.dynamics, torch.Generator().manual_seed(0)
    N, C = one.model.config.num_tokens, one.model.config.token_channels
    context, z = torch.randn(2, 3, N, C, generator=generator), torch.randn(2, N, C, generator=generator)
    keys = torch.zeros(2, 1, dtype=torch.int64)
    with torch.no_grad():
        _, h = rollout(dynamics, z[:, None], num_frames=1, seeds=keys, members=keys, context=context)
        assert torch.equal(one.module.start(z, context), h)


def test_the_loss_is_a_function_of_its_step_and_of_no_rank():
    one = task()
    whole, again = (one.loss(one.module, step_generator(0, 3), Rank())[0] for _ in range(2))
    assert torch.equal(whole, again)
    assert not torch.equal(whole, one.loss(one.module, step_generator(0, 4), Rank())[0])


def test_the_flow_of_every_frame_is_not_trained_by_frame_0():
    with pytest.raises(EnmaError, match="relative has no flow for frame 0 alone"):
        task("relative")


def test_frame_0_needs_contexts():
    def make(*arguments, **data):
        return FirstFrameTask(*arguments, **data | {"val_contexts": None})

    with pytest.raises(EnmaError, match="frame 0 needs a context, and every environment two or more trajectories"):
        forecast_task("relative-fast", make=make, **SETTINGS)
