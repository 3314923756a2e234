"""What forecasts are told of their trajectories, checked against what a model takes.

Legend: B trajectories, T frames; `*x` space.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from ..config import KnownInput, ModelConfig
from ..data import FieldFile
from ..data.drivers import TIME, prolonged, real_numbers, turns_of
from ..errors import EnmaError
from ..models.drivers import Drivers
from ..models.model import Model
from ..utils.names import SPACE
from ..utils.text import counted, times

# Axes of labelled arrays, in the order of a driver's.
_AXES = ("trajectory", "time", *SPACE)


def told(model: Model, given: Mapping[str, Any], *, count: int, frames: int, argument: str) -> Drivers | None:
    """What a model is told of so many trajectories and frames, observed and forecast; None of fields alone.

    A driver is an array `[T, *x]`, without time or space where it does not vary in them, and with an axis of
    trajectories before these where it varies over them; `time` are dates, for the time of day and year. `EnmaError`
    names a driver that is missing, unknown, too short or of another shape.
    """
    config = model.config
    names = [driver.name for driver in config.known]
    if TIME in given:
        turns = turns_of(np.asarray(given[TIME]))
        given = {name: values for name, values in given.items() if name != TIME}
        given |= {name: values for name, values in turns.items() if name in names}
    if unknown := [name for name in given if name not in names]:
        takes = f"it takes {', '.join(names)}" if names else "it takes nothing but fields"
        raise EnmaError(f"{argument}: {config.name} is not told {unknown[0]}; {takes}")
    if lacking := [driver for driver in config.known if driver.name not in given]:
        said = ", ".join(f"{driver.name} ({driver.kind} {_shape(config, driver, frames)})" for driver in lacking)
        raise EnmaError(f"{argument}: lacks what {config.name} was told in training: {said}")
    arrays = {driver.name: _array(config, driver, given[driver.name], argument) for driver in config.known}
    arrays = prolonged(arrays, frames)
    for driver in config.known:
        _check(model, driver, arrays[driver.name], count=count, frames=frames, argument=argument)
    drivers = model.told(arrays, count)
    assert drivers is None or len(drivers.values) == len(names)
    return drivers


def _shape(config: ModelConfig, driver: KnownInput, frames: int) -> str:
    parts = ["B", *([str(frames)] if driver.in_time else []), *(map(str, config.codec.grid) if driver.in_space else [])]
    return f"[{', '.join(parts)}]"


def _array(config: ModelConfig, driver: KnownInput, given: Any, argument: str) -> np.ndarray:
    """A driver as float32 `[B or 1, T or 1, *x or 1s]`."""
    if dims := [axis for axis in _AXES if axis in getattr(given, "dims", ())]:
        given = given.transpose(*dims)
    values = given.numpy(force=True) if isinstance(given, torch.Tensor) else np.asarray(given)
    values, space = real_numbers(driver.name, values, where=argument), config.codec.dims
    if values.ndim == 2 + space:
        return values
    own = driver.in_time + space * driver.in_space
    if values.ndim not in (own, own + 1):
        raise EnmaError(
            f"{argument}: {driver.name} has shape {list(values.shape)}; a {driver.kind} of {config.name} has "
            f"{_shape(config, driver, config.num_frames)}, without B if it is the same for all"
        )
    rows = values.shape[:1] if values.ndim > own else (1,)
    rest = values.shape[values.ndim - own :]
    in_time = rest[:1] if driver.in_time else (1,)
    return values.reshape(*rows, *in_time, *(rest[driver.in_time :] if driver.in_space else (1,) * space))


def _check(model: Model, driver: KnownInput, values: np.ndarray, *, count: int, frames: int, argument: str) -> None:
    grid = model.config.codec.grid
    wrong = None
    if len(values) not in (1, count):
        wrong = f"is of {len(values)} trajectories; there are {count}"
    elif driver.in_time and values.shape[1] < frames:
        wrong = (
            f"has {counted(values.shape[1], 'frame')}; the observed and the forecast ones are {frames}, in all of "
            "which it has to be known"
        )
    elif not driver.in_time and values.shape[1] > 1:
        wrong = f"has {values.shape[1]} frames; in the training of {model.config.name} it did not vary in time"
    elif any(have not in (1, n) for have, n in zip(values.shape[2:], grid, strict=True)):
        wrong = f"is of {times(values.shape[2:])} points; the grid has {times(grid)}"
    if wrong is not None:
        raise EnmaError(f"{argument}: {driver.name} {wrong}")
    mask = model.codec.mask
    gaps = np.isnan(values).any(axis=(0, 1))
    missing = gaps if mask is None else gaps & mask.numpy(force=True).all(-1)
    if np.isinf(values).any() or missing.any():
        raise EnmaError(f"{argument}: {driver.name} holds a value that is missing or infinite; fill such values")


def check_mask(model: Model, data: FieldFile) -> None:
    """Raise `EnmaError` if a file has no values where the model forecasts some."""
    if (mask := data.mask) is None:
        return
    needed = np.ones_like(mask) if model.codec.mask is None else model.codec.mask.numpy(force=True)
    if (needed & ~mask).any():
        raise EnmaError(
            f"{data.path}: has no values at {int((needed & ~mask).sum()):,} places where {model.config.name} has "
            "some; fill them, for example by interpolation"
        )
