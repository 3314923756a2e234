"""The physics of a trajectory as a vector: what windows of three frames show of it.

A window is three successive frames, of the observed ones or of a context trajectory. A floor is fitted to all of them.
Convolutions look at the last frame of each, its last change and the change of that, each in units of its root mean
square. The means and the logarithms of the energies of their channels, with what the floor and the drivers tell, go
through a small network; attention weighs the windows.

Legend: B rows, W windows, T frames, N tokens per frame, C channels of a token, c physical channels, F numbers of a
floor and of drivers, Z numbers of the context; `*x` space.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ...config import ModelConfig, PhysicsConfig
from ...errors import EnmaError
from ..drivers import Drivers, Segment, drivers_of, frames_of
from ..field_step import PAST, Forecast, Scales
from ..floors.choice import kinds
from ..floors.ladder import Floor, evenly, forecaster
from ..grid_layers import Edge, GatedStack, GridConvolution, edge_marks, fitted_grid, from_blocks, pad_axis, to_blocks

# Numbers that tell the physics, and the most windows that they are read from.
NUMBERS, _WINDOWS = 32, 6
# Numbers beyond these limits tell no more.
_LIMIT = 8.0
_TINY = 1e-6


@dataclass
class Physics:
    """What the decoder of the next frame is told, and keeps from frame to frame.

    Rows that read the same frames, as members of a trajectory do, share what was inferred: `index [B]` is its place.

    Attributes
    ----------
    numbers : [R, Z]
    floor, state : the forecast in closed form, and what it inferred
    windows : [R, W, 3, *x, c] that both were inferred from
    observed : [R, L, *x, c], the last frames that were observed, 3 at most
    own : whether these are of the trajectory itself
    frames : known and decided frames of the trajectory
    told : drivers of the trajectory
    told_windows : those of each window, from its first frame on
    kept : what the decoder draws and infers once
    """

    numbers: Tensor
    floor: Floor
    state: Any
    windows: Tensor
    observed: Tensor
    own: bool
    index: Tensor
    frames: int
    told: Drivers | None
    told_windows: list[Drivers | None]
    kept: dict[str, Any] = field(default_factory=dict)

    def forecast(self) -> Forecast:
        """The floor's forecast of the next frame, for each of the inferred rows."""
        return forecaster(self.floor, self.state)


class PhysicsEncoder(nn.Module):
    """Windows `[B, W, 3, *x, c]`, and numbers of a floor and of drivers `[B, F]`, to `[B, Z]`."""

    _marks: Tensor | None

    def __init__(
        self, grid: Sequence[int], edges: Sequence[Edge], channels: int, own: PhysicsConfig, told: int
    ) -> None:
        super().__init__()
        self.grid, self.edges, self.block = tuple(grid), tuple(edges), own.block
        self.inner = fitted_grid(grid, own.block)
        self.scales = Scales(channels)
        marks = edge_marks(grid, edges)
        marks = marks if marks is None else to_blocks(self._prolonged(marks), own.block)
        self.register_buffer("_marks", marks, persistent=False)
        inward = PAST * channels * own.block ** len(self.grid) + (0 if marks is None else marks.shape[-1])
        width = 2 * own.width + told
        self.stem = GridConvolution(inward, own.width, edges)
        self.stack = GatedStack(own.layers, own.width, edges)
        self.norm = nn.LayerNorm(width)
        self.features = nn.Sequential(nn.Linear(width, own.hidden), nn.SiLU())
        self.attention = nn.Linear(own.hidden, 1)
        self.read = nn.Sequential(nn.Linear(own.hidden, own.hidden), nn.SiLU(), nn.Linear(own.hidden, NUMBERS))

    def forward(self, windows: Tensor, told_BF: Tensor) -> Tensor:
        B, W = windows.shape[:2]
        x0, x1, x2 = windows.flatten(0, 1).unbind(1)
        s = self.scales
        x = torch.cat([(x2 - s.mean) / s.std, (x2 - x1) / s.change, (x2 - 2 * x1 + x0) / s.bend], -1)
        h = to_blocks(self._prolonged(x), self.block)
        if self._marks is not None:
            h = torch.cat([h, self._marks.to(h.dtype).expand(len(h), *self._marks.shape[1:])], -1)
        h = self.stack(self.stem(h)).flatten(1, -2)
        h = h.to(torch.promote_types(h.dtype, torch.float32))
        parts = [h.mean(1), (h.square().mean(1) + _TINY).log(), told_BF.to(h.dtype).repeat_interleave(W, 0)]
        f = self.features(self.norm(torch.cat(parts, -1)).clamp(-_LIMIT, _LIMIT)).unflatten(0, (B, W))
        read: Tensor = self.read((f * self.attention(f).softmax(1)).sum(1))
        return read.to(h.dtype)

    def _prolonged(self, x: Tensor) -> Tensor:
        for axis, (n, m, edge) in enumerate(zip(self.grid, self.inner, self.edges, strict=True), start=1):
            x = pad_axis(x, axis, 0, m - n, edge)
        return x


class PhysicsContext(nn.Module):
    """The context of field models: a floor, and numbers that shift a network's gates."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        own, codec = config.context, config.codec
        assert isinstance(own, PhysicsConfig)
        self.fields = FieldTokens(config)
        makers = kinds(codec)
        if own.floor not in makers:
            raise EnmaError(f"{config.name}: context.floor is {own.floor!r}; this grid has {', '.join(makers)}")
        self.floor, self.name = makers[own.floor](), own.floor
        assert isinstance(self.floor, nn.Module)
        told = self.floor.num_features + sum(not driver.in_time for driver in config.known)
        self.encoder = PhysicsEncoder(codec.grid, self.fields.edges, codec.field_channels, own, told)

    @property
    def of_grid(self) -> str | None:
        return None if self.floor.local else f"the floor {self.name!r}"

    def begin(self, segments: Sequence[Segment], *, room: int) -> Physics:
        """Read whole segments ``[B, T_i, N, C]``: perhaps a context, then the known frames, at least one."""
        del room
        index, first = shared_rows(segments)
        each = [segment[first] for segment in segments]
        *others, own = (self.fields.of(frames_of(segment)) for segment in each)
        if not own.shape[1]:
            raise EnmaError(
                "history: frames are None; a field model continues a trajectory of which one frame is known"
            )
        source = own if own.shape[1] >= PAST or not others else others[0]
        windows = self.windows_of(source)
        state = self.floor.infer(windows, own=source is own)
        told, of_source = drivers_of(each[-1]), drivers_of(each[-1] if source is own else each[0])
        numbers = self.encoder(windows.to(own.dtype), self.told(state, windows, told))
        return Physics(
            numbers,
            self.floor,
            state,
            windows,
            own[:, -PAST:],
            source is own,
            index,
            own.shape[1],
            told,
            [None if of_source is None else of_source.since(t) for t in window_starts(source.shape[1])],
        )

    def told(self, state: Any, windows: Tensor, drivers: Drivers | None) -> Tensor:
        """Numbers `[B, F]` of the floor, and of the drivers of the trajectories."""
        features = self.floor.features(state, windows)
        return features if drivers is None else torch.cat([features, drivers.numbers().to(features)], -1)

    def begin_members(self, segments: Sequence[Segment], members: int) -> tuple[Physics, Tensor]:
        """Read whole segments for so many members of each trajectory; also the numbers ``[B, Z]``."""
        read = self.begin(segments, room=0)
        read.index = read.index.repeat_interleave(members)
        return read, read.numbers

    def condition(self, read: Physics) -> Physics:
        """What the decoder of the next frame is told."""
        return read

    def advance(self, read: Physics, z_BNC: Tensor) -> None:
        """Count the frame ``[B, N, C]`` that was decided; it tells nothing new."""
        del z_BNC
        read.frames += 1

    def windows_of(self, frames: Tensor) -> Tensor:
        """Windows `[B, W, 3, *x, c]` of frames `[B, T, *x, c]`, evenly spread; before fewer frames is the first one."""
        starts, missing = window_starts(frames.shape[1]), max(0, PAST - frames.shape[1])
        frames = torch.cat([frames[:, :1]] * missing + [frames], 1)
        return torch.stack([frames[:, t + missing : t + missing + PAST] for t in starts], 1)


class FieldTokens:
    """Fields in place of the tokens of codec `blocks`, with single frames."""

    def __init__(self, config: ModelConfig) -> None:
        codec = config.codec
        self.grid, self.channels, self.block = codec.grid, codec.field_channels, codec.space_factor
        self.edges = Edge.of(codec.periodic)

    def of(self, z: Tensor) -> Tensor:
        """``[B, T, N, C]`` to `[B, T, *x, c]`."""
        B, T = z.shape[:2]
        places = tuple(n // self.block for n in self.grid)
        blocks = z.reshape(B * T, *places, self.channels, self.block ** len(places)).transpose(-1, -2).flatten(-2)
        return from_blocks(blocks, self.block).unflatten(0, (B, T))

    def tokens(self, u: Tensor) -> Tensor:
        """`[B, *x, c]` to ``[B, N, C]``."""
        blocks = to_blocks(u, self.block).unflatten(-1, (-1, self.channels)).transpose(-1, -2)
        return blocks.flatten(-2).flatten(1, -2)


def window_starts(frames: int) -> list[int]:
    """First frames of the windows of so many frames, evenly spread; below 0 where there are too few."""
    last = frames - PAST
    return evenly(last + 1, _WINDOWS).tolist() if last > 0 else [last]


def shared_rows(segments: Sequence[Segment]) -> tuple[Tensor, Tensor]:
    """For each row the place of its like among those that differ from the row before, and the rows of these."""
    frames, told = [frames_of(segment) for segment in segments], [drivers_of(segment) for segment in segments]
    new = torch.ones(len(frames[0]), dtype=torch.bool, device=frames[0].device)
    for row in range(1, len(new)):
        alike = all(torch.equal(x[row], x[row - 1]) for x in frames)
        new[row] = not (alike and all(drivers is None or drivers.alike(row, row - 1) for drivers in told))
    return new.cumsum(0) - 1, torch.nonzero(new)[:, 0]
