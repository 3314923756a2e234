"""The rows of the paper's table 1 of a baseline that reads scattered points, at the points that the models see.

Legend: L observed frames, P points, c channels; `*x` the grid.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from benchmarks.paper.scattered import drawn_points, protocol_of
from enma_fast.data import FieldFile
from enma_fast.data.selection import share_of
from enma_fast.evaluation.metrics import Scores, relative_l2
from enma_fast.forecasting.request import HISTORY, TEMPORAL
from enma_fast.forecasting.scattered import drawn_places

# Scores of a row, of the one member of a deterministic method.
_KEPT = ("rel_l2", "rel_l2_median", "rel_l2_member", "crps")


class ReadsPoints(Protocol):
    """A baseline that reads scattered points."""

    def on_grid(self, u_BPc: Tensor, index_P: Tensor) -> Tensor:
        """Fields ``[B, *x, c]`` of which the points of these numbers are seen."""

    def from_points(self, u_BLPc: Tensor, index_LP: Tensor, num_frames: int) -> Tensor:
        """Frames ``[B, num_frames, *x, c]`` after those that are seen at these points."""


@torch.inference_mode()
def measure_points_of(
    method: ReadsPoints, data: FieldFile, share: float, *, split: str, seed: int = 0
) -> dict[str, Any]:
    """A row of a score file, as `benchmarks.paper.scattered.measure_points` makes it of a model.

    Parameters
    ----------
    method : a trained baseline
    data : trajectories of a test file
    share : of the grid points, above 0 and at most 1
    seed : of the points
    """
    fields = torch.from_numpy(data.u).flatten(2, -2)
    count = share_of(fields.shape[2], share)
    scores, errors = Scores(), []
    frames = fields.shape[1] - HISTORY
    for place, number in enumerate(data.trajectories):
        places = drawn_places(data.u.shape[2:-1], [number], count=count, num_frames=HISTORY, seed=seed)[0]
        index = torch.from_numpy(places)
        history = fields[place, :HISTORY].gather(1, index[..., None].expand(-1, -1, fields.shape[-1]))
        made = method.from_points(history[None], index, frames)
        scores.update(made[:, None], data.u[place : place + 1, HISTORY:], data.u[place : place + 1, :HISTORY])
    for u, index in drawn_points(fields, count=count, seed=seed):
        for each, where in zip(u, index, strict=True):
            made = method.on_grid(each[:, where], where)
            errors.append(relative_l2(made.flatten(1, -2)[None], each[None]))
    error, found = np.concatenate([np.asarray(e) for e in errors]), scores.result()
    return {
        "protocol": protocol_of(share),
        "task": TEMPORAL.name,
        "split": split,
        "members": 1,
        "trajectories": len(data),
        "frames": frames,
        "reconstruction": float(error.mean()),
        "reconstruction_median": float(np.median(error)),
        **{name: found[name] for name in _KEPT},
    }
