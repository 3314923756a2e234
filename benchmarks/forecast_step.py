"""The training step on whole forecasts, against the same step as the sampler's own loop would take it.

    python -m benchmarks.forecast_step --preset combined-fast --threads 2 --json

Both take the same batches from the same weights and random numbers; losses and gradients are compared first.

* ``ours``: the step of a stage `forecasts` as ``enma-fast train`` takes it on this machine;
* ``naive-fp32``: every member reads history and context on its own, frame by frame, in fp32 with plain norms.

A round is a batch without and a batch with a context; a step's time is their mean, weighted by the preset's share.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import statistics
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.harness import gemm_rate, interleave, machine, ratios
from enma_fast.config import ModelConfig, SamplingConfig
from enma_fast.data import FieldFile
from enma_fast.models.contexts.causal_transformer import GrowingCache
from enma_fast.models.decoders.decoder import Noise, first_past, next_past
from enma_fast.models.model import Dynamics, Model
from enma_fast.ops import _backend
from enma_fast.training import forecasts as train_forecasts
from enma_fast.training.augment import CutContexts, Shift
from enma_fast.training.forecasts import MEMBERS, ForecastStage, ForecastTask
from enma_fast.training.loop import RunOptions, autocast, fast_bf16, in_bf16, step_generator
from enma_fast.training.optim import CLIP_NORM, build
from enma_fast.training.ranks import Rank
from enma_fast.training.recipes import RECIPES, Recipe
from enma_fast.training.subnormals import flush_subnormals
from enma_fast.utils.system import keep_freed_memory


def naive_rollout(
    dynamics: Dynamics,
    history: Tensor,
    *,
    num_frames: int,
    seeds: Tensor,
    members: Tensor,
    context: Tensor | None = None,
    settings: SamplingConfig | None = None,
) -> tuple[Tensor, Tensor]:
    """`rollout.rollout` as the sampler's loop would do it, with gradients."""
    settings = settings or dynamics.config.sampling
    reader, (B, K) = dynamics.context, seeds.shape
    segments = [z.repeat_interleave(K, 0) for z in ([history] if context is None else [context, history])]
    cache = GrowingCache(reader, B * K)
    anchor = h = torch.empty(0)
    for number, segment in enumerate(segments):
        anchor = h = reader.start_frame(cache, segment=number)
        for z in segment.unbind(1):
            h = reader.step(z, cache)
    past, made = first_past(segments[-1], dynamics.step.past), []
    for t in range(history.shape[1], history.shape[1] + num_frames):
        condition, noise = reader.scaled(h, anchor, first=False), Noise(seeds.flatten(), members.flatten(), t)
        made.append(dynamics.decide(condition, past, noise, settings))
        past = next_past(past, made[-1])
        if len(made) < num_frames:
            h = reader.step(made[-1], cache)
    return torch.stack(made, 1).unflatten(0, (B, K)), anchor[::K]


def fields(config: ModelConfig, environments: int = 64) -> FieldFile:
    """Random trajectories of a model's shape, two of each environment."""
    tok = config.codec
    shape = (2 * environments, config.num_frames, *tok.grid, tok.field_channels)
    return FieldFile(
        path=Path(f"{config.dataset}-train.h5"),
        name=f"{config.dataset}-train",
        u=(0.3 * torch.randn(shape, generator=torch.Generator().manual_seed(0))).numpy(),
        channels=tuple(f"u{i}" for i in range(tok.field_channels)),
        times=np.arange(config.num_frames) * config.frame_interval,
        coords=tuple(np.arange(n) * (x / n) for n, x in zip(tok.grid, tok.lengths, strict=True)),
        lengths=tok.lengths,
        periodic=tok.periodic,
        parameters={},
        environment=np.arange(environments).repeat(2),
    )


@contextlib.contextmanager
def naively() -> Iterator[None]:
    """The library with the rollout and the layers of a first version."""
    with mock.patch.object(_backend, "FUSED", ()), mock.patch.object(train_forecasts, "rollout", naive_rollout):
        yield


def without_parameters(recipe: Recipe) -> ForecastStage:
    """The stage of whole forecasts of a recipe, for data of an equation without parameters."""
    return replace(recipe.first(ForecastStage), augment=(Shift(), CutContexts()))


class Stepper:
    """One contender: its own copy of the model and optimiser, and the same two batches."""

    def __init__(self, model: Model, config: ForecastStage, data: FieldFile, *, naive: bool) -> None:
        self.options = RunOptions(out=Path(), precision="fp32" if naive else "auto")
        self.way = naively if naive else contextlib.nullcontext
        own, none = copy.deepcopy(model), torch.empty(0)
        self.tasks = [
            ForecastTask(own, replace(config, context_share=share), train=data, val=none, val_contexts=none)
            for share in (0.0, 1.0)
        ]
        dtype = torch.bfloat16 if in_bf16(self.options) else torch.float32
        self.optimizers = build(self.tasks[0].module, config.optimizer, dtype=dtype)

    def gradients(self, kind: int) -> tuple[float, Tensor]:
        """Loss and flattened gradient of a batch without (0) or with (1) a context."""
        module = self.tasks[kind].module
        module.zero_grad(set_to_none=True)
        with self.way(), autocast(self.options):
            loss, _ = self.tasks[kind].loss(module, step_generator(0, 0), Rank())
        loss.backward()
        return loss.item(), torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None])

    def step(self, kind: int) -> None:
        """A whole training step."""
        self.gradients(kind)
        nn.utils.clip_grad_norm_(self.tasks[kind].module.parameters(), CLIP_NORM)
        for optimizer in self.optimizers:
            optimizer.step()


@flush_subnormals()
def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="combined-fast", choices=sorted(RECIPES))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    # As `training.loop.run` sets up, for both: these are settings of the process.
    keep_freed_memory()

    preset = RECIPES[args.preset]
    config, model = without_parameters(preset), Model(preset.model)
    # Zero-initialised outputs would hide most of the gradient from the comparison.
    for p in model.dynamics.parameters():
        p.data += 0.01 * torch.randn_like(p)
    model.codec.requires_grad_(False)
    data = fields(preset.model)
    steppers = {name: Stepper(model, config, data, naive=name != "ours") for name in ("ours", "naive-fp32")}
    # Tolerance of gradients through nine frames; bf16 rounds each of them.
    tolerance, error = 1e-1 if fast_bf16("cpu") else 1e-3, 0.0
    for kind in (0, 1):
        (loss, g), (expected, h) = (steppers[name].gradients(kind) for name in ("ours", "naive-fp32"))
        error = max(error, abs(loss / expected - 1), ((g - h).norm() / h.norm()).item())
    if not error <= tolerance:
        raise SystemExit(f"ours: differs from naive-fp32 by {error:.2e}; no time is reported")

    against, seconds = {}, 0.0
    for kind, share in ((0, 1 - config.context_share), (1, config.context_share)):
        found = interleave({name: partial(s.step, kind) for name, s in steppers.items()}, rounds=args.rounds)
        context = "with a context" if kind else "without one"
        against |= {f"{name}, {context}": row for name, row in ratios(found, "ours").items()}
        seconds += share * statistics.median(found["ours"])
    result = {
        "case": "forecast_step",
        "preset": args.preset,
        "batch": config.batch,
        "members": MEMBERS,
        "ours_s": seconds,
        "trajectories_per_second": config.batch / seconds,
        "gemm_rate": gemm_rate(torch.float32),
        "gemm_rate_bf16": gemm_rate(torch.bfloat16),
        "against": against,
        "error": error,
        **machine(),
    }
    if args.json:
        print(json.dumps(result))
    else:
        for key, value in result.items():
            print(f"{key:26} {value}")


if __name__ == "__main__":
    main()
