"""A small field model that is told a driver of each kind, and such drivers."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from enma_fast.config import BlocksConfig, FieldConfig, KnownInput, ModelConfig, PhysicsConfig
from enma_fast.data import FieldFile
from enma_fast.models.model import Model

KNOWN = (
    KnownInput(name="nu"),
    KnownInput(name="wind", in_time=True),
    KnownInput(name="depth", in_space=True),
    KnownInput(name="heat", in_time=True, in_space=True),
)
GRID = (6, 4)


def model(known=KNOWN, *, masked=False, grid=GRID):
    torch.manual_seed(0)
    codec = BlocksConfig(
        grid=grid, lengths=(1.0,) * len(grid), periodic=(True,) * len(grid), block=1, frames=1, masked=masked
    )
    made = Model(
        ModelConfig(
            name="told",
            dataset="waves",
            num_frames=8,
            codec=codec,
            context=PhysicsConfig(patch=(1,) * len(grid), width=8, hidden=8),
            step=FieldConfig(width=8, layers=1, noise=0, member=0),
            known=known,
        )
    )
    torch.nn.init.normal_(made.dynamics.step.model.network.head.weight, std=0.1)
    return made.eval().requires_grad_(False)


def arrays(count=3, frames=8, *, grid=GRID, seed=0):
    rng, ones = np.random.default_rng(seed), (1,) * len(grid)
    return {
        "nu": rng.normal(size=(count, 1, *ones)),
        "wind": rng.normal(size=(1, frames, *ones)),
        "depth": rng.normal(size=(1, 1, *grid)),
        "heat": rng.normal(size=(count, frames, *grid)),
    }


def field_file(count: int = 3, frames: int = 8, **changes: object) -> FieldFile:
    u = np.random.default_rng(1).normal(size=(count, frames, *GRID, 1)).astype(np.float32)
    data = FieldFile(
        path=Path("told-test-in.h5"),
        name="told-test-in",
        u=u,
        channels=("u",),
        times=0.05 * np.arange(frames),
        coords=tuple(np.arange(n) / n for n in GRID),
        lengths=(1.0, 1.0),
        periodic=(True, True),
        parameters={},
        environment=np.zeros(count, int),
        known={name: np.asarray(values, np.float32) for name, values in arrays(count, frames).items()},
    )
    return replace(data, **changes)
