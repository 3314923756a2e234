"""Data that a user could have, and plans of trainings that take seconds."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from enma_fast.config import FlowConfig, TrunkConfig
from enma_fast.data import write
from enma_fast.training.own_plan import Plan

SPEED, INTERVAL = 0.8, 0.05


def advected(count: int, frames: int = 8, points: int = 16, seed: int = 0) -> np.ndarray:
    """Waves `[count, frames, points]` that move at a constant speed around a ring of length 1."""
    rng = np.random.default_rng(seed)
    x, t = np.arange(points) / points, np.arange(frames) * INTERVAL
    u = np.zeros((count, frames, points))
    for k in (1, 2):
        height, phase = rng.normal(size=(count, 1, 1)) / k, rng.uniform(0, 2 * np.pi, (count, 1, 1))
        u += height * np.sin(2 * np.pi * k * (x - SPEED * t[:, None]) + phase)
    return u.astype(np.float32)


def save(path: Path, *fields: np.ndarray, environment: list[int] | None = None, **more: object) -> Path:
    """A field file of these channels `[n, T, *x]` on rings of length 1."""
    dims = fields[0].ndim - 2
    settings = {
        "times": INTERVAL * np.arange(fields[0].shape[1]),
        "coords": [np.arange(n) / n for n in fields[0].shape[2:]],
        "periodic": [True] * dims,
        "units": None,
        **more,
    }
    return write(
        path,
        name=path.stem,
        scalars={"environment": np.arange(len(fields[0])) if environment is None else environment},
        t0_fields={"uvw"[c]: values for c, values in enumerate(fields)},
        **settings,
    )


def tiny(plan: Plan, out: Path, steps: dict[str, int]) -> Plan:
    """The plan with a model of few weights and so many steps, as if it had been made so."""
    known = plan.recipe.model
    model = replace(
        known,
        context=replace(known.context, width=64, heads=4, layers=2),
        trunk=TrunkConfig(layers=1, condition="add"),
        initial=FlowConfig(width=32, layers=1, time_features=16, target="residual"),
    )
    stages = tuple(
        replace(stage, steps=steps[name], optimizer=replace(stage.optimizer, warmup_steps=steps[name] // 10))
        for name, stage in plan.recipe.folders().items()
    )
    made = replace(plan, recipe=replace(plan.recipe, model=model, stage=stages))
    made.save(out)
    return made
