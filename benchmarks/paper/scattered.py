"""What a model makes of fields of which it sees some points: reconstruction, and forecasts (paper, table 1).

Shape suffixes: B trajectories, T frames, c channels; `*x` space.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from enma_fast.data import FieldFile
from enma_fast.data.selection import share_of
from enma_fast.evaluation.metrics import relative_l2
from enma_fast.evaluation.scoring import score_forecast
from enma_fast.forecasting.analysis import analyse
from enma_fast.forecasting.file_forecast import FileForecast
from enma_fast.forecasting.request import ForecastRequest
from enma_fast.models.codecs.codec import Codec
from enma_fast.models.codecs.interpolation import grid_points
from enma_fast.models.covariance import FieldCovariance
from enma_fast.models.model import Model

# Shares of the grid points, of which the last is less than training shows.
SHARES = (1.0, 0.5, 0.2, 0.1)
# Trajectories that are encoded at a time.
_ROWS = 50
# Of a forecast that is scored.
_MEMBERS = 16


def protocol_of(share: float, *, shipped: bool = False) -> str:
    """Name of the protocol in which a model sees a share of the points, of the shipped test files or of whole ones."""
    return f"{'shipped, ' if shipped else ''}{share:.0%} of points"


@torch.inference_mode()
def reconstruction_errors(
    codec: Codec, fields: Tensor, *, share: float, seed: int, covariance: FieldCovariance | None = None
) -> Tensor:
    """Relative L2 error ``[B]`` on the grid of fields ``[B, T, *x, c]``, each seen at a random share of its points.

    A trajectory has the same points in all of its frames, as in training. A codec of whole grids encodes
    what optimal interpolation with this `covariance` makes of them, or the whole grid.
    """
    config = codec.config
    points = grid_points(config).to(fields.device)
    count, errors = share_of(len(points), share), []
    for u, index in drawn_points(fields, count=count, seed=seed):
        values = u.flatten(2, -2).gather(2, index[:, None, :, None].expand(-1, u.shape[1], -1, u.shape[-1]))
        if config.at_points:
            latents = codec.encode(values, points[index])
        elif count == len(points):
            latents = codec.encode(u)
        else:
            assert covariance is not None
            seen = zip(values.cpu(), points[index].cpu(), strict=True)
            analyses = torch.cat([analyse(covariance, each, where)[0] for each, where in seen])
            latents = codec.encode(analyses.to(u.device))
        reconstruction = codec.decode(latents, u.shape[1])
        errors.append(relative_l2(reconstruction, u))
    return torch.cat(errors)


def drawn_points(fields: Tensor, *, count: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Parts of fields ``[B, T, ...]``, and the grid points ``[B, P]`` at which each trajectory is seen in all frames.

    The grid of the fields may be in a row or not.
    """
    generator, points = torch.Generator().manual_seed(seed), math.prod(fields.shape[2:-1])
    for u in fields.split(_ROWS):
        yield u, torch.rand(len(u), points, generator=generator).argsort(-1)[:, :count].to(u.device)


def measure_points(
    model: Model,
    data: FieldFile,
    share: float,
    *,
    split: str,
    seed: int = 0,
    shipped: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """A row of a score file: reconstruction of whole trajectories, and forecasts from 3 frames with other points each.

    Parameters
    ----------
    model : with an interpolation, or a covariance
    data : the test file of the split, the packaged one if `shipped`
    share : of the grid points, above 0 and at most 1
    seed : of the forecasts
    progress : called with (trajectories forecast, trajectories)
    """
    points = share_of(math.prod(model.config.codec.grid), share)
    request = ForecastRequest(num_members=_MEMBERS, seed=seed, points=points)
    scores = score_forecast(FileForecast(model, data, request), warn=False, progress=progress)
    fields = torch.from_numpy(data.u).to(model.latent_mean.device)
    error = reconstruction_errors(model.codec, fields, share=share, seed=seed, covariance=model.covariance)
    return {
        "protocol": protocol_of(share, shipped=shipped),
        "task": request.task.name,
        "split": split,
        "members": _MEMBERS,
        "trajectories": len(data),
        "frames": scores["num_frames"],
        "reconstruction": error.mean().item(),
        "reconstruction_median": error.median().item(),
        **{name: scores[name] for name in ("rel_l2", "rel_l2_median", "rel_l2_member", "crps", "spread_skill")},
    }
