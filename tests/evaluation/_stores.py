"""Small field files of two channels, and stores of random members of their trajectories."""

from pathlib import Path
from typing import Any

import numpy as np

from enma_fast.data import FieldFile, read, write
from enma_fast.models.checkpoint import sha256
from tests._made import create_store

NUMBERS, SEEN = [1, 4, 5], 2
CHANNELS = ("u", "v")


def fields_file(path: Path, space: tuple[int, ...] = (7,), **changes: Any) -> FieldFile:
    """A field file of 6 trajectories, 6 frames and 2 channels."""
    rng = np.random.default_rng(5)
    given = {
        "name": "waves-test-in",
        "times": 0.05 * np.arange(6),
        "coords": [np.arange(n) / n for n in space],
        "periodic": [True] * len(space),
        "scalars": {"environment": np.zeros(6, np.int64)},
        "t0_fields": {name: rng.normal(size=(6, 6, *space)).astype(np.float32) for name in CHANNELS},
    }
    return read(write(path, **{**given, **changes}))


def store_of(path: Path, data: FieldFile, rows: list[int] = NUMBERS, *, members: int = 5, **changes: Any) -> np.ndarray:
    """Write a store of random members of some trajectories of a file; returns them, `[B, K, T, *x, c]`."""
    shape = (len(rows), members, len(data.times) - SEEN, *data.u.shape[2:])
    samples = changes.pop("samples", np.random.default_rng(8).normal(size=shape).astype(np.float32))
    given = {
        "channels": data.channels,
        "times": data.times[SEEN:],
        "coords": data.coords,
        "trajectories": rows,
        "num_members": members,
        "first_member": 10,
        "observed": data.u[rows, :SEEN],
        "observed_times": data.times[:SEEN],
        "truth": data.u[rows, SEEN:],
        "attributes": {
            "task": "temporal",
            "observed_frames": SEEN,
            "model": "a model",
            "seed": 3,
            "data_name": data.name,
            "data_sha256": sha256(data.path),
        },
    }
    with create_store(path, **{**given, **changes}) as store:
        if samples is not None:
            store.put(0, samples)
    return samples
