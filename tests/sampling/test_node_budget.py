"""How many nodes the graph of a frame holds, at the paper's sizes: a frame of few rows takes as long as its launches.

A tape stands in for the graph, and counts the launches of kernels and the operations of PyTorch that are not views.
"""

from __future__ import annotations

import functools
from collections import Counter

import pytest
import torch

from enma_fast.models.model import Dynamics
from enma_fast.sampling.settings import Size
from enma_fast.sampling.static_step import FrameKind, StaticStep
from enma_fast.training.recipes import RECIPES
from enma_fast.utils.dataclass_json import replace

from .._static import TapeRecorder
from .._tiny import shaken

pytest.importorskip("triton")

# Six mask steps of six layers and the frame fed back; a frame in one pass, fed back (docs/notes/gpu-launches.md).
BUDGETS = {"combined-paper": 245, "combined-fast-paper": 66}


def step_of(name: str, *, members: int = 1) -> StaticStep:
    """A step of a preset, whose width and flow steps do not change its nodes."""
    config = RECIPES[name].model
    flow = "step" if config.initial is None else "initial"
    narrow = {"context.width": 32, "context.heads": 1, f"{flow}.width": 16, "sampling.flow_steps": 1}
    config = replace(config, narrow)
    assert config.sampling.mask_steps == 6
    assert config.trunk.layers == config.context.layers == 6
    torch.manual_seed(0)
    dynamics = shaken(Dynamics(config), scale=0.05).eval().requires_grad_(False)
    sizes = {"rows": members, "groups": 1, "prefix_frames": 3, "own_frames": 2, "settings": config.sampling}
    return StaticStep(dynamics, Size(**sizes))


def nodes(name: str, monkeypatch: pytest.MonkeyPatch, *, last: bool = False, members: int = 1) -> Counter[str]:
    """Nodes of a frame of a preset."""
    step = step_of(name, members=members)
    recorder = TapeRecorder(monkeypatch)
    recorder.record(functools.partial(step.run, FrameKind("step", last)))
    assert torch.isfinite(step.tokens_BNC).all()
    return recorder.nodes[0]


@pytest.mark.parametrize("name", [pytest.param("combined-paper", marks=pytest.mark.slow), "combined-fast-paper"])
def test_a_frame_is_within_its_budget(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = nodes(name, monkeypatch)
    assert found.total() == BUDGETS[name], found


def test_the_last_frame_has_no_causal_transformer(monkeypatch: pytest.MonkeyPatch) -> None:
    found = nodes("combined-fast-paper", monkeypatch, last=True)
    # Five launches a layer, the rows and the noise before them and the tokens after.
    assert found.total() == 6 * 5 + 3, found


def test_the_number_of_members_adds_no_node(monkeypatch: pytest.MonkeyPatch) -> None:
    # The budget is that of one member.
    found = nodes("combined-fast-paper", monkeypatch, members=2)
    assert found.total() == BUDGETS["combined-fast-paper"], found


def test_a_history_is_read_in_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    step = step_of("combined-fast-paper")
    config = step.config
    history = torch.randn(1, 2, config.num_tokens, config.token_channels)
    words = {"seeds": torch.tensor([3]), "members": torch.tensor([0])}
    recorder = TapeRecorder(monkeypatch)
    recorder.record(lambda: step.begin([history], **words, first=2))
    launches = Counter({name: count for name, count in recorder.nodes[0].items() if name.startswith("_")})
    # Embedding and five launches a layer, whatever the number of frames; then the context of the next frame.
    assert launches.total() == 1 + 6 * 5
    assert recorder.nodes[0].total() <= 50, recorder.nodes[0]
