"""Training on a stand-in for a GPU: nothing of the CPU is mixed in, and losses are those of the CPU."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from enma_fast.models.checkpoint import LOG
from enma_fast.training.augment import Shift
from enma_fast.training.field_stage import FieldStage, FieldTask
from enma_fast.training.loop import RunOptions, run, step_generator
from enma_fast.training.ranks import ALONE, mean_over_ranks
from enma_fast.training.stage import Material, Optimizer

from .._device import DEVICE, OnDevice, StandIn
from .._tiny import dynamics_task, waves_file
from .test_field_stage import model, waves


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    monkeypatch.setattr(torch.cuda, "_lazy_init", lambda: None)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda x: x)
    before = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    yield StandIn()
    torch.__future__.set_overwrite_module_params_on_conversion(before)


def test_the_stand_in_refuses_what_a_gpu_refuses(stand_in: StandIn) -> None:
    with stand_in:
        x = torch.ones(3, device=DEVICE)
        assert isinstance(x, OnDevice)
        assert (x + torch.tensor(1.0))[torch.tensor([0, 1])].tolist() == [2.0, 2.0]
        assert not isinstance(x.cpu(), OnDevice)
        for mixed in (
            lambda: x + torch.ones(3),
            lambda: torch.stack([x[0], torch.tensor(1.0)]),
            lambda: torch.ones(3)[x.long()],
        ):
            with pytest.raises(RuntimeError, match="cuda:0"):
                mixed()


def logged(folder: Path, device: str) -> list[dict[str, float]]:
    """What six steps of a field model log, of which some infer the physics from companions."""
    made, (u, environments) = model(), waves(16)
    data = replace(waves_file(made.config, u), environment=environments.numpy())
    stage = FieldStage(steps=6, batch=16, augment=(Shift(),), optimizer=Optimizer(kind="muon", warmup_steps=2))
    made.requires_grad_(False).to(device)
    task = FieldTask(made, stage, Material(train=lambda: data, val=u, val_contexts=None, folder=folder, tell=print))
    # Scores of forecasts are another matter.
    task.validate = lambda rank: {"crps": 1.0}  # type: ignore[method-assign]
    run(task, RunOptions(out=folder, precision="fp32", log_every=1, device=device, validate_every=100, compile=False))
    return [json.loads(line) for line in (folder / LOG).read_text().splitlines()]


def test_steps_of_a_field_model_are_those_of_the_cpu(stand_in: StandIn, tmp_path: Path) -> None:
    (tmp_path / "cpu").mkdir()
    (tmp_path / "gpu").mkdir()
    expected = logged(tmp_path / "cpu", "cpu")
    with stand_in:
        found = logged(tmp_path / "gpu", str(DEVICE))
    assert len(found) == len(expected) > 5
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.keys() == theirs.keys()
        for name in ours.keys() & {"loss", "grad_norm", "frames"}:
            np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-3)


def test_steps_of_the_dynamics_are_those_of_the_cpu(stand_in: StandIn) -> None:
    def losses(device: torch.device) -> list[float]:
        task = dynamics_task("relative")
        task.model.to(device)
        found = []
        for step in range(3):
            loss, terms = task.loss(task.module, step_generator(0, step), ALONE)
            loss.backward()
            found += list(mean_over_ranks({"loss": loss.detach(), **terms}, ALONE).values())
        assert all(p.grad is not None and p.grad.device == device for p in task.module.parameters() if p.requires_grad)
        return found

    expected = losses(torch.device("cpu"))
    with stand_in:
        np.testing.assert_allclose(losses(DEVICE), expected, rtol=1e-4)
