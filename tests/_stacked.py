"""The values of a forecast store as one array."""

from typing import Any

import numpy as np


def stacked(dataset: Any, suffix: str = "") -> np.ndarray | None:
    """Stack the variables of all channels, such as `u_truth` for suffix "_truth", along a new last axis."""
    names = [name + suffix for name in dataset.attrs["channels"]]
    if any(name not in dataset for name in names):
        return None
    return np.stack([dataset[name].to_numpy() for name in names], axis=-1)
