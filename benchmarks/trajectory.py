"""Whole trajectories: the engine against the reference sampler, for `benchmarks.compare trajectory`.

    python -m benchmarks.compare trajectory --preset combined-paper --members 1,16,64 --threads 2 --json

Random weights of the preset's size, two observed latent frames, all members of one trajectory. Contenders:

* ``ours``: the engine with weights in bf16 (or fp32 with ``--dtype fp32``);
* ``eager-bf16``, ``eager-fp32``: the reference sampler of the same model in that dtype;
* ``masked-flow``, where a flow decides frame 0 of the preset alone: the engine with the same sizes, by flow throughout;
  ``masked-flow-eager-bf16`` and so on are its baselines, and ``--no-flow`` leaves out all of them;
* ``compile-bf16``: the eager sampler with masked transformer and velocity network under `torch.compile`, weights
  frozen, a graph of its own for each shape, and the flow head's schedule prepared once. The loop around the network
  stays in Python (unrolled, a shape takes minutes to compile), and so does the causal transformer, a twentieth of the
  arithmetic, whose shape changes with each frame; on a GPU ``compile-graphs-bf16`` runs these as CUDA graphs.

The first two members of every contender are compared with the float64 reference of its own model; `error` is the
largest difference.
FLOPs are those that the answer needs: what is computed once per frame or per trajectory counts once.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_map

from benchmarks.cases import SHORT, Case
from enma_fast.config import CausalTransformerConfig, FlowConfig, ModelConfig
from enma_fast.models.decoders.flow import FlowDecoder
from enma_fast.models.decoders.flow_head import VelocityHead
from enma_fast.models.decoders.local import LocalDecoder
from enma_fast.models.layers import MLP_RATIO
from enma_fast.models.model import Dynamics
from enma_fast.models.schedule import flow_times, mask_schedule
from enma_fast.ops.flow_head import integrate, velocity
from enma_fast.sampling import reference as reference_sampler
from enma_fast.sampling.engine import Engine
from enma_fast.training.recipes import find_recipe

STATUS = Path("/proc/self/status")
CLEAR = Path("/proc/self/clear_refs")
OBSERVED = 2
COMPARED = 2


def memory_now() -> int:
    """Resident bytes of this process, its peak being forgotten where the system can (Linux; 0 elsewhere)."""
    if not STATUS.exists():
        return 0
    # Some sandboxes have no such file: the peak is then that of the whole process.
    with contextlib.suppress(OSError):
        CLEAR.write_text("5")
    return _status("VmRSS")


def memory_peak() -> int:
    """The most bytes resident since `memory_now`."""
    return _status("VmHWM") if STATUS.exists() else 0


def _status(field: str) -> int:
    found = next(line for line in STATUS.read_text().splitlines() if line.startswith(field))
    return 1024 * int(found.split()[1])


def with_mask_steps(config: ModelConfig) -> ModelConfig | None:
    """The model of the same sizes whose flow decides all frames; None where no flow decides frame 0 alone."""
    if not isinstance(config.initial, FlowConfig):
        return None
    return dataclasses.replace(config, initial=None, step=config.initial)


_Module = TypeVar("_Module", bound=nn.Module)


def random_weights(module: _Module) -> _Module:
    """Random weights everywhere: zero-initialised parts would be trivial to compute right."""
    module.requires_grad_(False).eval()
    for p in module.parameters():
        p.add_(0.02 * torch.randn_like(p))
    return module


def random_dynamics(config: ModelConfig) -> Dynamics:
    """Dynamics of random weights, the same every time."""
    torch.manual_seed(0)
    return random_weights(Dynamics(config))


def needed_flops(config: ModelConfig, *, members: int, num_latents: int, observed: int) -> float:
    """FLOPs of the products behind the latent frames of one trajectory's members, each computed once."""
    own, trunk, step, settings = config.context, config.trunk, config.step, config.sampling
    assert isinstance(own, CausalTransformerConfig)
    assert trunk is not None
    N, C, D = config.num_tokens, config.token_channels, own.width
    hidden = MLP_RATIO * D
    rows = N * (2 if trunk.condition == "concat" else 1)
    qkv, rest = 3 * D * D, D * D + 3 * D * hidden
    counts = mask_schedule(N, min(settings.mask_steps, N)) if isinstance(step, FlowConfig) else (N,)

    def causal(frames: int) -> float:
        return 2 * N * (C * D + own.layers * (qkv + rest)) + 4 * own.layers * N * frames * N * D

    masked = 0.0
    for number, count in enumerate(counts):
        changed = rows if number == 0 else counts[number - 1]
        masked += 2 * changed * (C * D + qkv)
        for layer in range(trunk.layers):
            last = layer == trunk.layers - 1
            out = count if last else rows
            if layer > 0:
                masked += 2 * (rows * 2 * D * D + out * D * D)
            masked += 4 * out * rows * D + 2 * out * rest
    masked += 2 * N * 3 * D * own.scale_shift_rank
    head = 2 * N * C * D
    if isinstance(step, FlowConfig):
        w = step.width
        evaluation = 2 * C * w + step.layers * 5 * w * w + 2 * w * w
        head = 2 * N * (D * w + len(flow_times(settings.flow_steps)) * evaluation)
    each = sum(masked + head + (causal(t + 2) if t + 1 < num_latents else 0) for t in range(observed, num_latents))
    return members * each + sum(causal(t + 1) for t in range(observed + 1))


class Velocity(nn.Module):
    """The velocity network of a head as a module, so that its weights can be frozen."""

    def __init__(self, head: VelocityHead) -> None:
        super().__init__()
        self.head = head

    def forward(self, x: Tensor, m: Tensor) -> Tensor:
        return velocity(x, m, self.head.weights())


def compiled_copy(dynamics: Dynamics, *, graphs: bool = False) -> Dynamics:
    """A copy whose masked transformer and decoders are compiled; with `graphs` as CUDA graphs."""
    torch._dynamo.reset()
    # Each shape has a graph of its own, and all copies share a function's limit; beyond it code would run uncompiled.
    torch._dynamo.config.recompile_limit = torch._dynamo.config.accumulated_recompile_limit = 256
    # Dynamo reads this when it traces, also a shape that comes later: as an option of one call of `torch.compile` it is
    # too late, for weights are inputs of the graph by then and cannot be frozen.
    torch._inductor.config.freezing = True
    model = copy.deepcopy(dynamics)

    def fast(run: Callable[..., Any]) -> Callable[..., Any]:
        made = torch.compile(run, dynamic=False, options={"triton.cudagraphs": graphs})
        # A graph writes its next results where its last ones are.
        return (lambda *x, **more: tree_map(torch.clone, made(*x, **more))) if graphs else made

    trunk: Any = model.trunk
    trunk.forward, trunk.unknown = fast(trunk.forward), fast(trunk.unknown)
    for decoder in (model.initial, model.step):
        changed: Any = decoder
        if isinstance(decoder, LocalDecoder):
            changed.tokens_of = fast(decoder.tokens_of)
        elif isinstance(decoder, FlowDecoder):
            changed.sample = _compiled_sample(decoder, fast)
    return model


def _compiled_sample(flow: FlowDecoder, fast: Callable[..., Any]) -> Callable[..., Tensor]:
    """`FlowDecoder.sample` with the velocity network compiled by `fast`, and each schedule prepared once."""
    network, plans = fast(Velocity(flow.velocity)), {}

    def sample(c: Tensor, noise: Tensor, *, steps: int) -> Tensor:
        if steps not in plans:
            plans[steps] = flow.velocity.plan(steps=steps)
        plan = plans[steps]
        condition = F.linear(c, plan.weights.condition_weight, plan.weights.condition_bias)
        y = integrate(
            lambda k, x: network(x.to(c.dtype), F.silu(condition + plan.time_RW[k])),
            noise.float(),
            moves=plan.moves,
            moves_per_step=plan.moves_per_step,
        )
        if flow.moments is not None:
            mean, scale = flow.mean_and_scale(c)
            y = mean + scale * y
        return y

    return sample


def prepared_engine(
    dynamics: Dynamics, dtype: torch.dtype, sampled: Callable[[Engine], Tensor]
) -> tuple[Engine, float, int]:
    """An engine that has sampled, seconds until it could, and bytes that it took at most, on a GPU of the GPU's."""
    on_gpu = next(dynamics.parameters()).device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated() if on_gpu else memory_now()
    clock = time.perf_counter()
    engine = Engine(dynamics, dtype=dtype)
    prepared = time.perf_counter() - clock
    sampled(engine)
    if not on_gpu:
        return engine, prepared, memory_peak() - before
    # The first trajectory packs, compiles and captures; the second does not.
    torch.cuda.synchronize()
    first = time.perf_counter() - clock
    memory = torch.cuda.max_memory_allocated() - before
    clock = time.perf_counter()
    sampled(engine)
    torch.cuda.synchronize()
    return engine, first - (time.perf_counter() - clock), memory


def beside_flow(
    model: _Module,
    base: _Module | None,
    *,
    ours: Callable[[_Module], Callable[[], Tensor]],
    baselines: Callable[[_Module], dict[str, Callable[[], Tensor]]],
    expected: Callable[[_Module], tuple[Tensor, float]],
) -> dict[str, Any]:
    """Contenders of a `Case` and what they must agree with: ours and its baselines of a model, then those of `base`.

    `base` is the model of `with_mask_steps`, where there is one.
    """
    exact, allowance = expected(model)
    contenders = {"ours": ours(model), **baselines(model)}
    others: dict[str, tuple[Tensor, float]] = {}
    if base is not None:
        flow = {"masked-flow": ours(base)} | {f"masked-flow-{name}": run for name, run in baselines(base).items()}
        contenders |= flow
        others = dict.fromkeys(flow, expected(base))
    return {"contenders": contenders, "exact": exact, "allowance": allowance, "others": others}


def trajectory_case(
    members: int, dtype: torch.dtype, device: torch.device, *, compiled: bool, preset: str, flow: bool = True
) -> Case:
    """`members` members of one trajectory of the preset's whole length; with `flow` also by flow throughout."""
    config = find_recipe(preset).model
    settings = config.sampling
    num_latents = config.codec.latent_frames(config.num_frames)
    dynamics = random_dynamics(config).to(device)
    history = torch.randn(1, OBSERVED, config.num_tokens, config.token_channels, device=device)
    seeds = torch.full((members,), 3, device=device)
    numbers, groups = torch.arange(members, device=device), torch.zeros(members, dtype=torch.int64, device=device)
    few = min(COMPARED, members)

    def reference(model: Dynamics, rows: int = members) -> Tensor:
        frames = reference_sampler.trajectory(
            model,
            [history.expand(rows, -1, -1, -1)],
            num_latents=num_latents,
            seeds=seeds[:rows],
            members=numbers[:rows],
            settings=settings,
        )
        return torch.stack(list(frames), 1)[:few]

    def sampled(engine: Engine) -> Tensor:
        frames = engine.trajectory(
            [history], num_latents=num_latents, seeds=seeds, members=numbers, groups=groups, settings=settings
        )
        return torch.stack(list(frames), 1)[:few]

    def expected(model: Dynamics) -> tuple[Tensor, float]:
        """The float64 answer, and how far from it a contender may be."""
        exact = reference(copy.deepcopy(model).double(), few)
        wrong_by = (reference(copy.deepcopy(model).to(dtype), few).double() - exact).abs().max().item()
        return exact, 2 * wrong_by + 4e-7 * exact.abs().max().item()

    engine, prepared, memory = prepared_engine(dynamics, dtype, sampled)
    short = SHORT[dtype]

    def ours(model: Dynamics) -> Callable[[], Tensor]:
        used = engine if model is dynamics else Engine(model, dtype=dtype)
        return lambda: sampled(used)

    def baselines(model: Dynamics) -> dict[str, Callable[[], Tensor]]:
        """The same sampler in PyTorch: eager, and compiled."""
        rounded = copy.deepcopy(model).to(dtype)
        made = {f"eager-{short}": lambda: reference(rounded), "eager-fp32": lambda: reference(model)}
        if compiled:
            fast = compiled_copy(rounded)
            made[f"compile-{short}"] = lambda: reference(fast)
        if compiled and device.type == "cuda":
            graphs = compiled_copy(rounded, graphs=True)
            made[f"compile-graphs-{short}"] = lambda: reference(graphs)
        return made

    by_flow = with_mask_steps(config) if flow else None
    base = None if by_flow is None else random_dynamics(by_flow).to(device)
    notes: dict[str, Any] = {"preset": preset, "members": members, "latent_frames": num_latents, "per": "member"}
    notes |= {"decoder": config.step.kind, "prepare_s": prepared}
    notes |= {"planned_bytes": engine.planned_bytes(), "peak_bytes": memory}
    notes |= {"backend": engine.backend}
    return Case(
        name="trajectory",
        rows=members,
        dtype=dtype,
        device=device,
        **beside_flow(dynamics, base, ours=ours, baselines=baselines, expected=expected),
        flops=needed_flops(config, members=members, num_latents=num_latents, observed=OBSERVED),
        notes=notes | {"flow_steps": settings.flow_steps, "mask_steps": settings.mask_steps},
        units=members,
    )
