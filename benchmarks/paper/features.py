"""Features of whole trajectories by a small network, in which generated trajectories are compared with training data.

The network learns to tell the parameters of the equation from a trajectory on a periodic line, as the paper's does for
its Frechet physics distance; the features are what its last layer reads. `benchmarks/features.py` trains it.

Shape suffixes: B trajectories, T frames, X points, c channels, F features.
"""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from enma_fast.data import FieldFile
from enma_fast.data.selection import spread_rows
from enma_fast.models.checkpoint import load_tensors, read_tensors

from .distribution import frechet_distance, precision_recall

NUM_FEATURES = 64
# Trajectories that are in the network at a time.
_AT_ONCE = 256


class FeatureNetwork(nn.Module):
    """Standardised parameters `[B, P]` of trajectories `[B, T, X, c]` on a ring.

    Convolutions run over the points, and the frames are their channels.
    """

    def __init__(self, frames: int, channels: int, parameters: int) -> None:
        super().__init__()
        widths = (frames * channels, NUM_FEATURES, NUM_FEATURES, NUM_FEATURES)
        self.convolutions = nn.ModuleList(nn.Conv1d(before, after, 5, stride=2) for before, after in pairwise(widths))
        self.hidden = nn.Linear(NUM_FEATURES, NUM_FEATURES)
        self.parameters_of = nn.Linear(NUM_FEATURES, parameters)

    def features(self, u_BTXc: Tensor) -> Tensor:
        """`[B, F]`, the same for a trajectory shifted by a multiple of 8 points."""
        h = u_BTXc.transpose(2, 3).flatten(1, 2)
        for convolution in self.convolutions:
            h = functional.silu(convolution(functional.pad(h, (2, 2), mode="circular")))
        return functional.silu(self.hidden(h.mean(-1)))

    def forward(self, u_BTXc: Tensor) -> Tensor:
        return self.parameters_of(self.features(u_BTXc))


def weights_of(equation: str) -> Path:
    """File of the feature network of an equation, which need not be there."""
    return Path(__file__).parent / f"{equation}-features.safetensors"


@cache
def _network(equation: str) -> FeatureNetwork:
    tensors, sizes = read_tensors(weights_of(equation))
    network = FeatureNetwork(*(int(sizes[name]) for name in ("frames", "channels", "parameters")))
    load_tensors(network, tensors, source=str(weights_of(equation)))
    return network.eval()


@torch.no_grad()
def features(equation: str, u_BTXc: np.ndarray) -> Tensor:
    """Features `[B, F]` of trajectories of an equation that has a feature network."""
    network = _network(equation)
    return torch.cat([network.features(part) for part in torch.from_numpy(u_BTXc).float().split(_AT_ONCE)])


def training_file(equation: str, folder: Path) -> Path | None:
    """The training data that generated trajectories are compared with; None without them or a feature network."""
    path = folder / f"{equation}-train.h5"
    return path if path.is_file() and weights_of(equation).is_file() else None


def distribution_scores(equation: str, train: FieldFile, generated_BTXc: np.ndarray) -> dict[str, float]:
    """Scores of generated trajectories against training data.

    `fpd` is the Frechet distance of the features to those of all training trajectories, `precision` and `recall` are
    taken against as many of them as there are generated ones, spread evenly over the file.
    """
    real, generated = features(equation, train.u), features(equation, generated_BTXc)
    precision, recall = precision_recall(real[spread_rows(len(real), len(generated))], generated)
    return {"fpd": frechet_distance(real, generated), "precision": precision, "recall": recall}
