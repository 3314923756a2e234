"""What a model is told of trajectories beside their fields: drivers, and where fields have values.

A driver is a named array that broadcasts over trajectories, frames and space: a parameter of the physics, a series, a
static map, a forcing. A step from frame t - 1 to t reads each driver at t, and at t - 1 too where it varies in time.

Legend: B trajectories, T frames, K inputs of a step, c channels; `*x` space.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from ..config import ModelConfig
from ..errors import EnmaError
from ..utils.devices import num_chosen

_TINY = 1e-12


class Known(NamedTuple):
    """What a step is told: inputs `[B, *x, K]`, and the places `[*x, c]` with values, None if all have some."""

    inputs: Tensor
    mask: Tensor | None


@dataclass(frozen=True, eq=False)
class Drivers:
    """Standardised drivers of B trajectories.

    Attributes
    ----------
    values : arrays `[B or 1, T or 1, *x or 1s]`
    in_time : which of them vary in time
    mask : True where fields have values, `[*x, c]`; None if everywhere
    grid : `*x`
    count : B
    start : frame that counts as 0, for all or `[B]`
    """

    values: tuple[Tensor, ...]
    in_time: tuple[bool, ...]
    mask: Tensor | None
    grid: tuple[int, ...]
    count: int
    start: int | Tensor = 0

    def __getitem__(self, rows: Any) -> Self:
        """Those of some of the trajectories."""
        start = self.start[rows] if isinstance(self.start, Tensor) else self.start
        values = tuple(v if len(v) == 1 else v[rows] for v in self.values)
        return replace(self, values=values, count=num_chosen(self.count, rows), start=start)

    def since(self, frame: int | Tensor) -> Self:
        """The same, with this frame, or one of each trajectory `[B]`, as frame 0."""
        return replace(self, start=frame)

    def at(self, frame: int) -> Known:
        """What the step is told that makes a frame; before the first and after the last driver these stay."""
        inputs = [self._of(v, self.start + frame) for v in self.values]
        inputs += [
            self._of(v, self.start + frame - 1) for v, varies in zip(self.values, self.in_time, strict=True) if varies
        ]
        if self.mask is not None:
            inputs.append(self.mask.to(torch.float32).mean(-1).expand(self.count, *self.grid))
        return Known(torch.stack(inputs, -1), self.mask)

    def packed(self) -> tuple[list[Tensor], Tensor | None]:
        """Each driver `[B or 1, T or 1, points or 1]` and the mask `[points, c]`, in fp32 for the extension."""
        drivers = []
        for v in self.values:
            alike = all(n == 1 for n in v.shape[2:])
            drivers.append((v if alike else v.expand(*v.shape[:2], *self.grid)).flatten(2).float().contiguous())
        return drivers, None if self.mask is None else self.mask.flatten(0, -2).float().contiguous()

    def numbers(self) -> Tensor:
        """Means over space of the drivers that do not vary in time, `[B, m]`."""
        still = [v for v, varies in zip(self.values, self.in_time, strict=True) if not varies]
        means = [v[:, 0].flatten(1).mean(1).expand(self.count) for v in still]
        return torch.stack(means, -1) if means else torch.zeros(self.count, 0)

    def rolled(self, axis: int, by: int) -> Self:
        """The same, with what varies along an axis of space moved around it."""
        return replace(self, values=tuple(v.roll(by, 2 + axis) for v in self.values))

    def mirrored(self, axis: int, signs: Sequence[int]) -> Self:
        """The same in a mirror across an axis of space, each driver times its sign there."""
        return replace(self, values=tuple(v.flip(2 + axis) * s for v, s in zip(self.values, signs, strict=True)))

    def alike(self, row: int, other: int) -> bool:
        """Whether two trajectories are told the same."""
        return all(len(v) == 1 or torch.equal(v[row], v[other]) for v in self.values)

    def _of(self, values: Tensor, frame: int | Tensor) -> Tensor:
        last = values.shape[1] - 1
        if isinstance(frame, Tensor) and last:
            rows = torch.arange(self.count, device=values.device) * (len(values) > 1)
            of_frame = values[rows, frame.clamp(0, last)]
        else:
            of_frame = values[:, 0 if not last else min(max(int(frame), 0), last)]
        return of_frame.expand(self.count, *self.grid)


@dataclass(frozen=True, eq=False)
class Told:
    """Latent frames ``[B, T, N, C]`` of a trajectory with its drivers, in place of them alone."""

    frames: Tensor
    drivers: Drivers

    def __getitem__(self, rows: Tensor) -> Told:
        return Told(self.frames[rows], self.drivers[rows])


Segment = Tensor | Told


def frames_of(segment: Segment) -> Tensor:
    """The latent frames of a segment."""
    return segment.frames if isinstance(segment, Told) else segment


def drivers_of(segment: Segment) -> Drivers | None:
    """What is told of a segment."""
    return segment.drivers if isinstance(segment, Told) else None


def num_inputs(config: ModelConfig) -> int:
    """Inputs K of a step."""
    return sum(1 + driver.in_time for driver in config.known) + config.codec.masked


class DriverScales(nn.Module):
    """Means and standard deviations of the drivers in the training data."""

    mean: Tensor
    std: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("mean", torch.zeros(len(config.known)))
        self.register_buffer("std", torch.ones(len(config.known)))

    @torch.no_grad()
    def learn(self, arrays: Mapping[str, Any]) -> None:
        """Measure arrays `[n or 1, T or 1, *x or 1s]` by name; NaN counts nothing."""
        for i, driver in enumerate(self.config.known):
            values = torch.as_tensor(arrays[driver.name]).double()
            values = values[~values.isnan()]
            self.mean[i] = values.mean()
            self.std[i] = values.std(correction=0).clamp_min(_TINY)

    def forward(self, arrays: Mapping[str, Any], count: int, mask: Tensor | None) -> Drivers:
        """Standardised drivers of so many trajectories; 0 where an array is NaN.

        `EnmaError` for an array that is missing.
        """
        values = []
        for i, driver in enumerate(self.config.known):
            if driver.name not in arrays:
                raise EnmaError(f"{self.config.name} was told {driver}, which is not given")
            given = torch.as_tensor(arrays[driver.name]).to(self.mean)
            values.append(((given - self.mean[i]) / self.std[i]).nan_to_num(0.0))
        return Drivers(
            tuple(values), tuple(driver.in_time for driver in self.config.known), mask, self.config.codec.grid, count
        )
