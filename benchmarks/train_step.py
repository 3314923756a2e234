"""The dynamics training step of a preset, against the same step written naively.

    python -m benchmarks.train_step --preset combined-small --threads 2 --json

Contenders take the same step from the same weights and random numbers; losses and gradients are compared first.

* ``ours``: the step of a stage `dynamics` as ``enma-fast train`` takes it, Muon's products in its format too;
* ``compiled``: the same under ``torch.compile`` (with ``--compile``; two minutes to compile);
* ``naive-fp32``: the same modules in fp32 eager as a first version would write them: SDPA with a mask, masked tokens
  picked by boolean indexing, and in a one-pass model its frames drawn one noise after the other.

All of them keep freed memory and flush subnormal numbers, which are settings of the process.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.harness import gemm_rate, interleave, machine, ratios
from benchmarks.rows import add
from enma_fast.config import CausalTransformerConfig
from enma_fast.models.decoders.decoder import Decoder
from enma_fast.models.decoders.flow import FlowDecoder
from enma_fast.models.decoders.linear import LinearDecoder
from enma_fast.models.model import Dynamics, Model, SegmentDraws, draw
from enma_fast.ops import _backend, self_attention
from enma_fast.training.dynamics import DynamicsStage
from enma_fast.training.loop import RunOptions, autocast, fast_bf16, in_bf16, step_generator
from enma_fast.training.optim import CLIP_NORM, build
from enma_fast.training.recipes import RECIPES
from enma_fast.training.stage import Optimizer
from enma_fast.training.subnormals import flush_subnormals
from enma_fast.utils.system import keep_freed_memory


def sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Attention as torch offers it."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def naive_loss(dynamics: Dynamics, segments: list[Tensor], draws: SegmentDraws) -> Tensor:
    """The loss with masked tokens picked by a boolean mask."""
    assert dynamics.trunk is not None
    assert isinstance(dynamics.step, FlowDecoder)
    contexts = dynamics.context([z + n for z, n in zip(segments, draws.history, strict=True)])
    total = []
    for z, h, noise, times, known in zip(segments, contexts, draws.noise, draws.times, draws.known, strict=True):
        c = dynamics.trunk(h.flatten(0, 1), z.flatten(0, 1), known.flatten(0, 1))
        pick = ~known.flatten(0, 1)
        loss, _ = dynamics.step.token_loss(
            z.flatten(0, 1)[pick], c[pick], noise.flatten(0, 1)[pick], times.flatten(0, 1)[pick]
        )
        total.append(loss)
    return torch.cat(total).mean()


def naive_one_pass_loss(dynamics: Dynamics, segments: list[Tensor], draws: SegmentDraws) -> Tensor:
    """The loss of a one-pass model: the flow of frames 0 with masked tokens picked, the CRPS of the others' draws."""
    assert dynamics.trunk is not None
    assert isinstance(dynamics.initial, FlowDecoder)
    assert isinstance(dynamics.step, LinearDecoder)
    contexts = dynamics.context([z + n for z, n in zip(segments, draws.history, strict=True)])
    flow, frames = [], []
    for z, h, noise, times, known in zip(segments, contexts, draws.noise, draws.times, draws.known, strict=True):
        c, pick = dynamics.trunk(h[:, 0], z[:, 0], known[:, 0]), ~known[:, 0]
        flow.append(dynamics.initial.token_loss(z[:, 0][pick], c[pick], noise[:, 0][pick], times[:, 0][pick])[0])
        following, truth = h[:, 1:].flatten(0, 1), z[:, 1:].flatten(0, 1)
        # A linear decoder sees no past frames.
        past, each = truth[:, None][:, :0], noise[:, 1:].flatten(0, 1).unbind(2)
        made = [dynamics.step.from_noise(following, past, one) for one in each]
        count = len(made)
        error = torch.stack([(x - truth).abs() for x in made]).mean(0)
        apart = torch.stack([(x - y).abs() for x in made for y in made]).sum(0) / (2 * count * (count - 1))
        frames.append((error - apart) * dynamics.score_weight)
    return torch.cat(flow).sum() / draws.masked + torch.cat(frames).mean()


# By the kind of decoder of all frames but frame 0.
BY_HAND = {"flow": naive_loss, "linear": naive_one_pass_loss}


class Stepper:
    """One contender: its own copy of the weights and optimiser."""

    def __init__(
        self,
        model: Model,
        config: Optimizer,
        loss: Callable[[nn.Module], Tensor],
        *,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.module = Dynamics(model.config).to(model.codec.device)
        self.module.load_state_dict(model.dynamics.state_dict())
        self.optimizers = build(self.module, config, dtype=dtype)
        self.loss = loss

    def gradients(self) -> tuple[float, Tensor]:
        """Loss and flattened gradient of the first step."""
        self.module.zero_grad(set_to_none=True)
        loss = self.loss(self.module)
        loss.backward()
        return loss.item(), torch.cat([p.grad.flatten() for p in self.module.parameters() if p.grad is not None])

    def step(self) -> None:
        """A whole training step."""
        self.gradients()
        nn.utils.clip_grad_norm_(self.module.parameters(), CLIP_NORM)
        for optimizer in self.optimizers:
            optimizer.step()


def flops_per_step(model: Model, rows: int, frames: int, draws: int) -> float:
    """FLOPs of the matrix products, forward and backward (three times the forward), of a batch of ``rows`` pairs."""

    def weights(module: nn.Module) -> int:
        return sum(m.weight.numel() for m in module.modules() if isinstance(m, nn.Linear))

    dynamics, trunk, step = model.dynamics, model.dynamics.trunk, model.dynamics.step
    own, masked = model.config.context, model.config.trunk
    assert isinstance(own, CausalTransformerConfig)
    assert trunk is not None
    assert masked is not None
    N, D = model.config.num_tokens, own.width
    # Two starts, and the last frame is not read.
    read = (2 * frames + 1) * N
    forward = 2 * read * weights(dynamics.context) - 2 * 2 * N * weights(dynamics.context.embed)
    forward += 4 * own.layers * read**2 * D

    def decide(count: int, embed: nn.Module) -> int:
        """Frames of the masked transformer, whose tokens enter by `embed`."""
        length = N * (2 if masked.condition == "concat" else 1)
        products = length * weights(trunk.blocks) + N * weights(embed)
        return count * (2 * products + 4 * masked.layers * length**2 * D)

    # Frames that the flow decides: of a one-pass model the first of each trajectory.
    by_flow = 2 * frames
    flow: Decoder | None = step
    if isinstance(step, LinearDecoder):
        by_flow, drawn, flow = 2, 2 * (frames - 1) * draws, dynamics.initial
        forward += decide(drawn, step.noise) + 2 * drawn * N * step.read.weight.numel()
    assert isinstance(flow, FlowDecoder)
    forward += decide(by_flow, trunk.embed)
    per_token = flow.velocity.condition.weight.numel() + weights(flow.moments or nn.Identity())
    per_draw = weights(flow.velocity) - flow.velocity.condition.weight.numel()
    forward += 2 * by_flow * N * (per_token + draws * per_draw)
    return 3.0 * rows * forward


@flush_subnormals()
def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="combined-small", choices=sorted(RECIPES))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, help="file to whose rows this one is added, as JSON")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    device = torch.device(args.device)
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)

    preset = RECIPES[args.preset]
    kind = preset.model.step.kind
    if kind not in BY_HAND:
        parser.error(f"--preset: {args.preset} has a step of kind {kind}, which the naive step lacks; take another")
    by_hand = BY_HAND[kind]
    config, options = preset.first(DynamicsStage), preset.model
    model = Model(options).to(device)
    # Zero-initialised outputs would hide most of the gradient from the comparison.
    for p in model.dynamics.parameters():
        p.data += 0.01 * torch.randn_like(p)
    rows, frames = config.batch // 2, options.codec.latent_frames(options.num_frames)
    u = torch.randn(config.batch, options.num_frames, *options.codec.grid, options.codec.field_channels).to(device)
    with torch.no_grad():
        segments = list(model.encode(u).split(rows))
    draws = draw(
        options,
        [(rows, frames)] * 2,
        draws=config.draws,
        mask_ratio=config.mask_ratio,
        generator=step_generator(0, 0),
    ).share(slice(rows), ranks=1, device=device)
    run = RunOptions(out=None, device=args.device)  # type: ignore[arg-type]
    # As `training.loop.run` sets up.
    keep_freed_memory()
    dtype = torch.bfloat16 if in_bf16(run) else torch.float32

    def ours(module: nn.Module) -> Tensor:
        with autocast(run):
            return module(segments, draws)[0]

    def compiled(module: nn.Module) -> Tensor:
        with autocast(run):
            return fast(segments, draws)[0]

    def naive(module: nn.Module) -> Tensor:
        assert isinstance(module, Dynamics)
        with mock.patch.object(_backend, "FUSED", ()), mock.patch.object(self_attention, "attention", sdpa):
            return by_hand(module, segments, draws)

    steppers = {
        "ours": Stepper(model, config.optimizer, ours, dtype=dtype),
        "naive-fp32": Stepper(model, config.optimizer, naive),
    }
    if args.compile:
        steppers["compiled"] = Stepper(model, config.optimizer, compiled, dtype=dtype)
        fast = torch.compile(steppers["compiled"].module)

    loss, gradient = steppers["naive-fp32"].gradients()
    tolerance = 3e-2 if fast_bf16(args.device) else 1e-3
    errors = {}
    for other, stepper in steppers.items():
        value, g = stepper.gradients()
        errors[other] = max(abs(value / loss - 1), ((g - gradient).norm() / gradient.norm()).item())
        if not errors[other] <= tolerance:
            raise SystemExit(f"{other}: differs from naive-fp32 by {errors[other]:.2e}; no time is reported")

    on_gpu = device.type == "cuda"
    seconds = interleave({k: s.step for k, s in steppers.items()}, rounds=args.rounds, synchronise=on_gpu)
    rates = {dtype: gemm_rate(dtype, device=device) for dtype in (torch.float32, torch.bfloat16)}
    best = max(rates.values())
    flops = flops_per_step(model, rows, frames, config.draws)
    median = statistics.median(seconds["ours"])
    result = {
        "case": "train_step",
        "preset": args.preset,
        "batch": config.batch,
        "device": args.device,
        "ours_s": median,
        "trajectories_per_second": config.batch / median,
        "gemm_rate": best,
        "gemm_rate_bf16": rates[torch.bfloat16],
        "fraction_of_gemm_rate": flops / median / best,
        "against": ratios(seconds, "ours"),
        "error": max(errors.values()),
        **machine(),
    }
    if args.out is not None:
        add(result, args.out)
    if args.json:
        print(json.dumps(result))
    else:
        for key, value in result.items():
            print(f"{key:26} {value}")


if __name__ == "__main__":
    main()
