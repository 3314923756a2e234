"""Contents of stores, and stores of them."""

from pathlib import Path
from typing import Any

import numpy as np

from enma_fast.store.layout import Layout
from tests._made import create_store

CHANNELS = ("u", "v")


def contents(rng: np.random.Generator, space: tuple[int, ...] = (7,)) -> dict[str, Any]:
    """Arguments of `create_store` for 3 trajectories of 2 channels, and the samples of 4 members."""
    fields = {
        "samples": rng.normal(size=(3, 4, 5, *space, 2)),
        "observed": rng.normal(size=(3, 2, *space, 2)),
        "truth": rng.normal(size=(3, 5, *space, 2)),
    }
    return {
        **{name: values.astype(np.float32) for name, values in fields.items()},
        "channels": CHANNELS,
        "times": 0.1 + 0.05 * np.arange(5),
        "observed_times": [0.0, 0.05],
        "coords": [np.linspace(0, 1 + i, n) for i, n in enumerate(space)],
        "trajectories": [3, 8, 11],
        "columns": {"alpha": np.array([0.5, 0.6, 0.7]), "environment": np.array([4, 4, 9])},
    }


def write(path: Path, given: dict[str, Any], **options: Any) -> None:
    """Write a store, two trajectories and then one."""
    given = dict(given)
    samples = given.pop("samples")
    with create_store(path, num_members=4, **given, **options) as store:
        store.put(0, samples[:2])
        store.put(2, samples[2:])


def layout(rng: np.random.Generator, **options: Any) -> Layout:
    given = contents(rng)
    del given["samples"]
    return Layout(num_members=4, **{**given, **options})
