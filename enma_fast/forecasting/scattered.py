"""Where scattered observations lie: checked coordinates, as shifted members see them, and points drawn from a grid.

Legend: B trajectories, L observed frames, P points of a frame, d space dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..config import CodecConfig, ModelConfig
from ..data import DOMAIN_TOLERANCE, FieldFile, read_readings, unmasked
from ..errors import EnmaError, first_line
from ..models.model import Model
from ..sampling.noise import trajectory_seed
from ..sampling.shifts import View
from ..utils.text import counted
from .analysis import MOST_TOGETHER
from .labelled_field import later


def coordinates(name: str, value: np.ndarray | Tensor, model: Model, *, of_frames: bool = False) -> Tensor:
    """Checked coordinates ``[P, d]`` fp32 on the model's device.

    With `of_frames` also those that differ between frames, ``[L, P, d]`` or ``[B, L, P, d]``; NaN stands for a point
    that is not there. `EnmaError` for a model that reads whole grids alone, another shape, points outside the domain,
    more of them than can be used together, and a frame without a point.
    """
    options = model.config.codec
    require_scattered(name, model)
    try:
        value = value if isinstance(value, Tensor) else np.asarray(unmasked(name, value), np.float32)
    except (TypeError, ValueError) as error:
        raise EnmaError(
            f"{name} is no array of numbers ({first_line(error)}); [points, {options.dims}] is expected"
        ) from error
    points = torch.as_tensor(value, dtype=torch.float32, device=model.latent_mean.device)
    dims = (2, 3, 4) if of_frames else (2,)
    if points.ndim not in dims or not points.numel() or points.shape[-1] != options.dims:
        others = ", with frames, or trajectories and frames, before it if each has its own" if of_frames else ""
        raise EnmaError(f"{name} has shape {tuple(points.shape)}; [points, {options.dims}] is expected{others}")
    if of_frames:
        require_together(name, model, points.shape[-2])
    absent = points.isnan().all(-1) if points.ndim > 2 else torch.zeros(len(points), dtype=torch.bool)
    if not torch.isfinite(points[~absent]).all():
        remedy = "leave the point out by NaN in all of its coordinates" if points.ndim > 2 else "leave the point out"
        raise EnmaError(f"{name} holds a coordinate that is not finite; correct it, or {remedy}")
    for i, length in enumerate(options.lengths):
        x, rounding = points[..., i][~absent], DOMAIN_TOLERANCE * length
        beyond = x[(x < -rounding) | (x > length + rounding)]
        if len(beyond):
            raise EnmaError(f"{name} has {beyond[0]:.6g}; the domain is 0 to {length:.6g} along dimension {i}")
    if points.ndim > 2 and (empty := absent.all(-1)).any():
        *row, frame = empty.nonzero()[0].tolist()
        of = f" of trajectory {row[0]}" if row else ""
        raise EnmaError(f"{name}: frame {frame}{of} has no point; give one at least, or leave the frame out")
    return points.clamp(torch.zeros(options.dims).to(points), torch.tensor(options.lengths).to(points))


def require_scattered(name: str, model: Model) -> None:
    """Raise `EnmaError` for a model that reads whole grids alone."""
    if not model.reads_points:
        raise EnmaError(
            f"{name}: the model {model.config.name!r} has no interpolation, and its checkpoint no covariance; it works "
            "on its grid only"
        )


def require_errors(errors: Sequence[float], config: CodecConfig, *, scattered: bool) -> None:
    """Raise `EnmaError` for errors of observations that have none, and unless there is one of all or each channel."""
    if errors and (not scattered or config.at_points):
        of = "values at scattered points, for a model without an interpolation"
        raise EnmaError(f"observation_error: is that of {of}; leave it out")
    if len(errors) not in (0, 1, config.field_channels):
        expected = "one" if config.field_channels == 1 else f"one, or {config.field_channels}"
        raise EnmaError(f"observation_error has {len(errors)} numbers; give {expected}")


def require_together(name: str, model: Model, count: int) -> None:
    """Raise `EnmaError` for more points of a frame than a field is estimated from at once."""
    if not model.config.codec.at_points and count > MOST_TOGETHER:
        raise EnmaError(
            f"{name} has {count} points a frame; at most {MOST_TOGETHER} are estimated from together: give some of them"
        )


def moved(points: Tensor, view: View, options: CodecConfig) -> Tensor:
    """Coordinates ``[..., d]`` of points in the field as a view shows it."""
    if not view.moves:
        return points
    if not any(options.periodic):
        mirrored, ends = (torch.tensor(x, device=points.device) for x in (view.amount, options.lengths))
        new_points = torch.where(mirrored > 0, ends - points, points)
        return new_points.flip(-1) if view.exchanged else new_points
    steps = [a * x / n for a, x, n in zip(view.amount, options.lengths, options.grid, strict=True)]
    lengths, ring, step = (torch.tensor(x, device=points.device) for x in (options.lengths, options.periodic, steps))
    new_points = points + step
    # A sum that rounding leaves just below the end is the beginning.
    around = ring & (new_points >= lengths * (1 - DOMAIN_TOLERANCE))
    return torch.where(around, (new_points - lengths).clamp_min(0), new_points)


def drawn_places(
    grid: tuple[int, ...], numbers: Sequence[int], *, count: int, num_frames: int, seed: int, context: bool = False
) -> np.ndarray:
    """Numbers ``[B, L, P]`` of the grid points that are observed in each frame of these trajectories, all different.

    They depend on the seed, the number of the trajectory, whether it serves as a context, and the frame.
    """
    points = math.prod(grid)
    if not 1 <= count <= points:
        raise EnmaError(f"points is {count}; 1 to {points}, the points of the grid, are expected")
    drawn = []
    for number in numbers:
        choose = np.random.Generator(np.random.Philox(key=[trajectory_seed(seed, number), int(context)]))
        drawn.append(choose.random((num_frames, points)).argsort(-1)[:, :count])
    return np.array(drawn, np.int64).reshape(-1, num_frames, count)


def readings_for(config: ModelConfig, path: str | Path) -> FieldFile:
    """Read a table of readings (`data.readings`) for a model.

    Returns
    -------
    FieldFile
        `points` ``[n, L, P, d]`` and `u` ``[n, L, P, c]``; grid, domain and times are those of the model's forecast.

    Raises
    ------
    EnmaError
        As `data.read_readings`, and for fewer than 3 frames.
    """
    tok = config.codec
    readings = read_readings(path, lengths=tok.lengths, num_channels=tok.field_channels, needed_by=config.name)
    num_frames = readings.u.shape[1]
    if num_frames < 3:
        raise EnmaError(f"{path}: holds {counted(num_frames, 'frame')}; {config.name} needs at least 3")
    return FieldFile(
        path=readings.path,
        name=readings.path.stem,
        u=readings.u,
        points=readings.points,
        channels=readings.channels,
        times=later(0.0, np.arange(num_frames), interval=config.frame_interval),
        coords=tuple(np.arange(n) * spacing for n, spacing in zip(tok.grid, tok.spacings, strict=True)),
        lengths=tok.lengths,
        periodic=tok.periodic,
        parameters={},
        environment=None,
    )
