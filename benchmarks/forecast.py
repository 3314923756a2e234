"""Whole forecasts, from observed fields to the fields of all members, for `benchmarks.compare forecast`.

    python -m benchmarks.compare forecast --preset combined-fast --members 1,16,64 --json

Random weights of the preset's size, a wave observed for three frames, all members of one trajectory, to the trained
length. Each contender encodes and decodes in fp32, and samples between:

* ``ours``: `forecast` with the preset's model;
* ``eager-fp32``, ``eager-bf16``: the same model as plain PyTorch: `Model.encode`, the reference sampler in that dtype,
  `Model.decode`;
* ``compile-fp32``, ``compile-bf16``: the same with masked transformer and heads under `torch.compile`, as in
  `benchmarks.trajectory`;
* ``masked-flow``, where a flow decides frame 0 of the preset alone: `forecast` with the same sizes, by flow throughout;
  ``masked-flow-eager-fp32`` and so on are its baselines.

The first two members of every contender are compared with the float64 reference of its own model.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.cases import SHORT, Case
from benchmarks.trajectory import COMPARED, beside_flow, compiled_copy, random_weights, with_mask_steps
from enma_fast.config import ModelConfig
from enma_fast.forecasting.members import sample_fields
from enma_fast.models.model import Model
from enma_fast.sampling import reference as reference_sampler
from enma_fast.sampling.noise import trajectory_seed
from enma_fast.training.recipes import find_recipe

OBSERVED = 3
SEED = 3


def random_model(config: ModelConfig) -> Model:
    """A model of random weights, the same every time."""
    torch.manual_seed(0)
    return random_weights(Model(config))


def wave(config: ModelConfig) -> Tensor:
    """Observed frames `[1, L, *grid, c]` of a travelling wave."""
    tok = config.codec
    axes = torch.meshgrid(*(torch.arange(n) * (2 * torch.pi / n) for n in tok.grid), indexing="ij")
    time = torch.arange(OBSERVED).view(-1, *[1] * tok.dims)
    return torch.sin(sum(axes) - 0.3 * time)[None, ..., None].repeat_interleave(tok.field_channels, -1)


def plain(model: Model, observed: Tensor, members: int) -> Tensor:
    """Members `[K, T, *grid, c]` by the reference of every stage."""
    config = model.config
    weight = model.latent_mean
    with torch.inference_mode():
        history = model.encode(observed.to(weight)).expand(members, -1, -1, -1)
        frames = reference_sampler.trajectory(
            model.dynamics,
            [history],
            num_latents=config.codec.latent_frames(config.num_frames),
            seeds=torch.full((members,), trajectory_seed(SEED, 0), device=weight.device),
            members=torch.arange(members, device=weight.device),
        )
        z = torch.cat([history, torch.stack([z.to(weight) for z in frames], 1)], 1)
        return model.decode(z, config.num_frames)[:, OBSERVED:]


def forecast_case(members: int, dtype: torch.dtype, device: torch.device, *, compiled: bool, preset: str) -> Case:
    """`members` members of one trajectory, for as many frames as the preset is trained on."""
    config = find_recipe(preset).model
    model = random_model(config).to(device)
    observed, few = wave(config).to(device), min(COMPARED, members)

    def ours(made: Model) -> Callable[[], Tensor]:
        return lambda: sample_fields(made, observed, num_members=members, seed=SEED, dtype=dtype)[0, :few]

    def sampled_in_dtype(made: Model) -> Model:
        rounded = copy.deepcopy(made)
        rounded.dynamics.to(dtype)
        return rounded

    def expected(made: Model) -> tuple[Tensor, float]:
        """The float64 answer, and how far from it a contender may be."""
        exact = plain(copy.deepcopy(made).double(), observed, few)
        wrong_by = (plain(sampled_in_dtype(made), observed, few).double() - exact).abs().max().item()
        return exact, 2 * wrong_by + 1e-6 * exact.abs().max().item()

    def baselines(made: Model) -> dict[str, Callable[[], Tensor]]:
        """The same forecast in PyTorch: eager, and compiled."""
        models = {f"eager-{short}": sampled_in_dtype(made), "eager-fp32": made}
        if compiled:
            twin = sampled_in_dtype(made)
            twin.dynamics = compiled_copy(twin.dynamics)
            models[f"compile-{short}"] = twin
        return {name: partial(first_members, model) for name, model in models.items()}

    def first_members(made: Model) -> Tensor:
        return plain(made, observed, members)[:few]

    short = SHORT[dtype]
    by_flow = with_mask_steps(config)
    base = None if by_flow is None else random_model(by_flow).to(device)
    notes: dict[str, Any] = {"preset": preset, "members": members, "per": "member", "decoder": config.step.kind}
    notes |= {"num_frames": config.num_frames - OBSERVED}
    return Case(
        name="forecast",
        rows=members,
        dtype=dtype,
        device=device,
        **beside_flow(model, base, ours=ours, baselines=baselines, expected=expected),
        flops=0,
        notes=notes | {"flow_steps": config.sampling.flow_steps, "mask_steps": config.sampling.mask_steps},
        units=members,
    )
