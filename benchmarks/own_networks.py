"""Two networks in plain PyTorch that `benchmarks.own_data` compares with: an FNO and a U-Net, and how they are trained.

    u_{t+1} = u_t + s network(u_{t-2}, u_{t-1}, u_t),    fields standardised, s the RMS change of a frame by channel

Both see coordinates along axes that are not periodic, so on periodic axes they know no place. They are trained by
AdamW on the relative L2 error of their own forecasts, of 1, 2, 4 and 8 frames from 0, 0.3, 0.5 and 0.7 of the time on
(as the field model's), with a cosine of the learning rate over the CPU seconds they are given.

Shape suffixes: B trajectories, L observed frames, T frames, c channels; `*x` points.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HISTORY = 3
# Share of the time from which on forecasts of so many frames are trained.
UNROLLED = ((0.0, 1), (0.3, 2), (0.5, 4), (0.7, 8))
_WARM_UP, _WEIGHT_DECAY = 0.03, 1e-4


class SpectralConv(nn.Module):
    """Product with learned complex matrices of the lowest waves along each axis; all others become zero."""

    def __init__(self, width: int, modes: int, dims: int) -> None:
        super().__init__()
        self.modes, self.dims = modes, dims
        shape = (width, width, *(2 * modes for _ in range(dims - 1)), modes)
        self.weight = nn.Parameter(torch.randn(*shape, 2) / width)

    def forward(self, h: Tensor) -> Tensor:
        axes, m = tuple(range(2, 2 + self.dims)), self.modes
        waves = torch.fft.rfftn(h, dim=axes)
        made = torch.zeros_like(waves)
        weight = torch.view_as_complex(self.weight)
        if self.dims == 1:
            made[..., :m] = torch.einsum("bix,iox->box", waves[..., :m], weight)
        else:
            rows = torch.cat([torch.arange(m), torch.arange(-m, 0)])
            made[:, :, rows, :m] = torch.einsum("bixy,ioxy->boxy", waves[:, :, rows, :m], weight)
        return torch.fft.irfftn(made, s=h.shape[2:], dim=axes)


class Fno(nn.Module):
    """Fourier neural operator (Li et al., 2021): four layers of a spectral and a pointwise convolution.

    Axes that are not periodic are lengthened by an eighth of zeros, as the authors do.
    """

    def __init__(self, inputs: int, outputs: int, periodic: tuple[bool, ...]) -> None:
        super().__init__()
        dims = len(periodic)
        width, modes = {1: (64, 24), 2: (32, 12)}[dims]
        conv = {1: nn.Conv1d, 2: nn.Conv2d}[dims]
        self.periodic = periodic
        self.lift, self.out = (
            conv(inputs, width, 1),
            nn.Sequential(conv(width, 2 * width, 1), nn.GELU(), conv(2 * width, outputs, 1)),
        )
        self.spectral = nn.ModuleList(SpectralConv(width, modes, dims) for _ in range(4))
        self.pointwise = nn.ModuleList(conv(width, width, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        grid = x.shape[2:]
        h = self.lift(x)
        ends = [0 if ring else n // 8 for n, ring in zip(grid, self.periodic, strict=True)]
        h = F.pad(h, [width for end in reversed(ends) for width in (0, end)])
        for i, (spectral, pointwise) in enumerate(zip(self.spectral, self.pointwise, strict=True)):
            h = spectral(h) + pointwise(h)
            h = F.gelu(h) if i < 3 else h
        return self.out(h[(..., *(slice(n) for n in grid))])


class Block(nn.Module):
    """Two convolutions of three points an axis, periodic where the axis is, beside a way straight through."""

    def __init__(self, inputs: int, width: int, periodic: tuple[bool, ...]) -> None:
        super().__init__()
        conv = {1: nn.Conv1d, 2: nn.Conv2d}[len(periodic)]
        self.periodic = periodic
        self.first, self.second = conv(inputs, width, 3), conv(width, width, 3)
        self.norm = nn.GroupNorm(8, width)
        self.through = conv(inputs, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = F.gelu(self.norm(self.first(self._edged(x))))
        return self.through(x) + self.second(self._edged(h))

    def _edged(self, x: Tensor) -> Tensor:
        for axis, ring in enumerate(reversed(self.periodic)):
            widths = [0, 0] * axis + [1, 1] + [0, 0] * (len(self.periodic) - 1 - axis)
            x = F.pad(x, widths, mode="circular" if ring else "constant")
        return x


class UNet(nn.Module):
    """U-Net of three levels: means of two points an axis on the way down, repeated points on the way up.

    Every axis has a multiple of 4 points.
    """

    def __init__(self, inputs: int, outputs: int, periodic: tuple[bool, ...], widths: tuple[int, ...] = ()) -> None:
        super().__init__()
        dims = len(periodic)
        widths = widths or {1: (48, 96, 128), 2: (24, 48, 96)}[dims]
        self.pool = {1: nn.AvgPool1d, 2: nn.AvgPool2d}[dims](2)
        self.down = nn.ModuleList(Block(a, b, periodic) for a, b in pairwise((inputs, *widths)))
        self.up = nn.ModuleList(Block(a + b, b, periodic) for a, b in pairwise(reversed(widths)))
        self.out = {1: nn.Conv1d, 2: nn.Conv2d}[dims](widths[0], outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        kept = []
        for i, block in enumerate(self.down):
            x = block(self.pool(x) if i else x)
            kept.append(x)
        for block, beside in zip(self.up, reversed(kept[:-1]), strict=True):
            x = block(torch.cat([F.interpolate(x, scale_factor=2, mode="nearest"), beside], 1))
        return self.out(x)


NETWORKS: dict[str, type[nn.Module]] = {"FNO": Fno, "U-Net": UNet}


class Stepper(nn.Module):
    """A network as a forecaster of standardised fields."""

    def __init__(self, kind: str, fields_BTxc: Tensor, periodic: tuple[bool, ...], *, told: int = 0) -> None:
        super().__init__()
        channels, grid = fields_BTxc.shape[-1], fields_BTxc.shape[2:-1]
        places = [
            torch.linspace(-1, 1, n).reshape([n if i == j else 1 for j in range(len(grid))]).expand(grid)
            for i, n in enumerate(grid)
            if not periodic[i]
        ]
        self.network = NETWORKS[kind](HISTORY * channels + told + len(places), channels, periodic)
        self.register_buffer("places", torch.stack(places) if places else torch.empty(0, *grid))
        changes = fields_BTxc[:, 1:] - fields_BTxc[:, :-1]
        self.register_buffer("scale", changes.square().mean(dim=tuple(range(changes.ndim - 1))).sqrt())

    def forward(self, history_BLxc: Tensor, num_frames: int, told_Bxk: Tensor | None = None) -> Tensor:
        """Frames `[B, num_frames, *x, c]` after three observed ones, with k maps that it is told."""
        frames = list(history_BLxc.unbind(1))
        places = self.places.expand(len(history_BLxc), *self.places.shape)
        if told_Bxk is not None:
            places = torch.cat([told_Bxk.movedim(-1, 1), places], 1)
        for _ in range(num_frames):
            seen = torch.cat([*(frame.movedim(-1, 1) for frame in frames[-HISTORY:]), places], 1)
            frames.append(frames[-1] + self.scale * self.network(seen).movedim(1, -1))
        return torch.stack(frames[history_BLxc.shape[1] :], 1)


def relative_errors(made: Tensor, truth: Tensor) -> Tensor:
    """Relative L2 error of each trajectory, `[B]`."""
    return (made - truth).flatten(1).norm(dim=1) / truth.flatten(1).norm(dim=1)


def fit(
    kind: str,
    fields_BTxc: Tensor,
    periodic: tuple[bool, ...],
    *,
    seconds: float,
    learning_rate: float,
    seed: int,
    clock: Callable[[], float] = time.process_time,
    told_Bxk: Tensor | None = None,
) -> Stepper:
    """A network trained on standardised trajectories, and maps that it is told, for so many seconds of a clock."""
    begun = clock()
    torch.manual_seed(seed)
    draws = torch.Generator().manual_seed(seed)
    model = Stepper(kind, fields_BTxc, periodic, told=0 if told_Bxk is None else told_Bxk.shape[-1])
    optimiser = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=_WEIGHT_DECAY)
    batch = {1: 32, 2: 8}[len(periodic)]
    while (share := (clock() - begun) / seconds) < 1:
        frames = min(max(n for since, n in UNROLLED if share >= since), fields_BTxc.shape[1] - HISTORY)
        count = max(4, batch // frames)
        rows = torch.randint(len(fields_BTxc), (count,), generator=draws)
        first = int(torch.randint(fields_BTxc.shape[1] - HISTORY - frames + 1, (), generator=draws))
        shown = fields_BTxc[rows, first : first + HISTORY + frames]
        told = None if told_Bxk is None else told_Bxk[rows]
        error = relative_errors(model(shown[:, :HISTORY], frames, told), shown[:, HISTORY:]).mean()
        for group in optimiser.param_groups:
            group["lr"] = learning_rate * min(1, share / _WARM_UP) * (1 + math.cos(math.pi * share)) / 2
        optimiser.zero_grad()
        error.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
    return model.eval()
