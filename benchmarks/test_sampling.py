"""Sampling under pytest-benchmark: a frame, a trajectory, an ensemble, the tokenizer around them, and a training step.

pytest --benchmark-only
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import enma_fast
from benchmarks.forecast import random_model
from benchmarks.train_step import Stepper
from enma_fast.forecasting.members import sample_fields
from enma_fast.models.model import Model, draw
from enma_fast.sampling.engine import Engine
from enma_fast.training.dynamics import DynamicsStage
from enma_fast.training.loop import step_generator
from enma_fast.training.recipes import RECIPES

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
BACKENDS = ["best", "reference"]
DECODERS = ["masked-flow", "one-pass"]
OBSERVED, FRAMES = 3, 17
# All compute in fp32, on a GPU too, which would take bf16 unasked; the noise is the same.
DTYPE = torch.float32
AGREE = 1e-3


@pytest.fixture(scope="module")
def model() -> Model:
    return enma_fast.load_model("combined-small", device=DEVICE)


@pytest.fixture(scope="module")
def one_pass() -> Model:
    """A one-pass model of random weights, which take as long as any."""
    return random_model(RECIPES["combined-fast"].model).to(DEVICE)


@pytest.fixture
def chosen(decoder: str, request: pytest.FixtureRequest) -> Model:
    model: Model = request.getfixturevalue({"masked-flow": "model", "one-pass": "one_pass"}[decoder])
    return model


def timed(
    benchmark: Any,
    run: Callable[[], object],
    *,
    group: str,
    by: str = "ours",
    rounds: int = 5,
    model: str = "combined-small",
) -> None:
    def whole() -> None:
        run()
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()

    benchmark.group = group
    benchmark.extra_info |= {"by": by, "threads": torch.get_num_threads(), "model": model}
    benchmark.pedantic(whole, warmup_rounds=1, rounds=rounds)


def latents(model: Model, engine: Engine, members: int, frames: int) -> Tensor:
    """Latent frames of `members` members after two observed ones."""
    config = model.config
    history = torch.linspace(-1, 1, 2 * config.num_tokens * config.token_channels, device=DEVICE)
    z = engine.trajectory(
        [history.view(1, 2, config.num_tokens, config.token_channels)],
        num_latents=2 + frames,
        seeds=torch.full((members,), 3, device=DEVICE),
        members=torch.arange(members, device=DEVICE),
        groups=torch.zeros(members, dtype=torch.int64, device=DEVICE),
    )
    return torch.stack(list(z), 1)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("members", [1, 64])
@pytest.mark.parametrize(("what", "frames"), [("frame", 1), ("trajectory", 9)])
def test_latents(
    benchmark: Any, chosen: Model, decoder: str, what: str, frames: int, members: int, backend: str
) -> None:
    exact = latents(chosen, Engine(chosen.dynamics, dtype=DTYPE, backend="reference"), members, frames)
    # It packs its weights once, as the one that a model keeps.
    engine = Engine(chosen.dynamics, dtype=DTYPE, backend=None if backend == "best" else backend)
    error = (latents(chosen, engine, members, frames) - exact).abs().max().item()
    assert error <= AGREE * exact.abs().max().item()
    timed(
        benchmark,
        lambda: latents(chosen, engine, members, frames),
        group=f"{what}, {members} members, {decoder}",
        by="ours" if backend == "best" else "PyTorch",
        model=chosen.config.name,
    )


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("members", [64, pytest.param(1024, marks=pytest.mark.large)])
def test_ensemble(benchmark: Any, chosen: Model, decoder: str, members: int) -> None:
    model = chosen
    history = torch.sin(torch.linspace(0, 6.2832, 129)[:-1]).expand(OBSERVED, 128)[..., None]
    alone = sample_fields(model, history, num_members=1, first_member=members - 1, dtype=DTYPE)
    many = sample_fields(model, history, num_members=members, dtype=DTYPE)
    assert (many[-1] - alone[0]).abs().max() <= AGREE * alone.abs().max()
    timed(
        benchmark,
        lambda: sample_fields(model, history, num_members=members, dtype=DTYPE),
        group=f"ensemble, {members} members, {decoder}",
        rounds=3,
        model=model.config.name,
    )


@pytest.mark.parametrize("what", ["encode", "decode"])
def test_tokenizer(benchmark: Any, model: Model, what: str) -> None:
    u = torch.sin(torch.linspace(0, 6.2832, 129, device=DEVICE)[:-1]).expand(64, 20, 128)[..., None]
    with torch.inference_mode():
        z = model.encode(u)
        assert (model.decode(z, 20) - u).norm() <= 0.05 * u.norm()
        run = (lambda: model.encode(u)) if what == "encode" else (lambda: model.decode(z, 20))
        timed(benchmark, run, group=f"{what}, 64 trajectories")


def test_train_step(benchmark: Any, model: Model) -> None:
    config, training = model.config, RECIPES["combined-small"].first(DynamicsStage)
    rows = training.batch // 2
    generator = torch.Generator().manual_seed(0)
    shape = (rows, 11, config.num_tokens, config.token_channels)
    segments = [torch.randn(shape, generator=generator).to(DEVICE) for _ in range(2)]
    draws = draw(
        config,
        [(rows, 11)] * 2,
        draws=training.draws,
        mask_ratio=training.mask_ratio,
        generator=step_generator(0, 0),
    ).share(slice(None), ranks=1, device=DEVICE)
    stepper = Stepper(model, training.optimizer, lambda module: module(segments, draws)[0])
    stepper.module.to(DEVICE)
    loss, gradient = stepper.gradients()
    assert math.isfinite(loss)
    assert torch.isfinite(gradient).all()
    timed(benchmark, stepper.step, group=f"train step, {training.batch} trajectories")
