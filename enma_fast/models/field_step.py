"""Frames decided in field space: a floor's forecast, and what gated convolutions add to it.

    x_{t+1} = floor(x_t) + s network(x_t, x_t - x_{t-1}, x_t - 2 x_{t-1} + x_{t-2}, floor(x_t) - x_t, k; condition, ...)

Each input is in units of its own root mean square over the training data, `s` is that of the floor's error, and `k` is
what is told of the step (`models.drivers`). Without a floor the last frame stands for its forecast. White noise at each
step and numbers that a member keeps make members.

Legend: B trajectories (times members), C channels, F views of a floor, Z numbers of a condition, M numbers of a member;
`*x` space.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ..config import FieldConfig
from ..ops import tried
from .drivers import Drivers, Known
from .floors.ladder import known_share, widening
from .grid_layers import (
    Double,
    Edge,
    GatedStack,
    GridConvolution,
    Halve,
    edge_marks,
    fitted_grid,
    from_blocks,
    normalised,
    on_grid,
    pad_axis,
    to_blocks,
)
from .layers import recordings_of

# From past frames `[B, 3, *x, C]` to a floor's forecast of the next and its views `[B, *x, C, F]`.
Forecast = Callable[[Tensor], tuple[Tensor, Tensor]]
# Frames that a step reads, and residuals that members draw from.
PAST, PATTERNS = 3, 8
# Frames stay within the range of the training data and the observed frames, prolonged by this share of it.
_MARGIN = 0.5
# Part of the known shares of training data below which a network that is told drivers counts less.
_TOLD = 0.75
_TINY = 1e-12


class Scales(nn.Module):
    """Means and root mean squares of training data `[B, T, *x, C]`, for each channel, and their range."""

    mean: Tensor
    std: Tensor
    change: Tensor
    bend: Tensor
    error: Tensor
    low: Tensor
    high: Tensor
    view: Tensor

    def __init__(self, channels: int, views: int = 0) -> None:
        super().__init__()
        for name in ("mean", "low"):
            self.register_buffer(name, torch.zeros(channels))
        for name in ("std", "change", "bend", "error", "high"):
            self.register_buffer(name, torch.ones(channels))
        self.register_buffer("view", torch.ones(channels, views))

    @torch.no_grad()
    def learn_floor(self, past: Tensor, truth: Tensor, forecast: Forecast) -> None:
        """Measure how far a floor's forecasts are from the frames `truth [B, *x, C]`, and its views from `past`."""
        base, views = forecast(past)
        axes = tuple(range(truth.ndim - 1))
        self.error.copy_((base - truth).square().mean(axes).sqrt().clamp_min(_TINY))
        self.view.copy_(_known((views - past[:, -1][..., None]).square().mean(axes).sqrt()))

    @torch.no_grad()
    def learn(self, fields: Tensor) -> None:
        """Measure the training data, of three frames or more."""
        axes = tuple(range(fields.ndim - 1))
        change = fields[:, 1:] - fields[:, :-1]
        bend = change[:, 1:] - change[:, :-1]
        self.mean.copy_(fields.mean(axes))
        self.std.copy_(_known(fields.std(axes)))
        self.change.copy_(_known(change.square().mean(axes).sqrt()))
        self.bend.copy_(_known(bend.square().mean(axes).sqrt()))
        self.error.copy_(self.change)
        self.low.copy_(fields.amin(axes))
        self.high.copy_(fields.amax(axes))


def _known(scale: Tensor) -> Tensor:
    """Scales of channels; 1 where one is constant."""
    return torch.where(scale > _TINY, scale, torch.ones_like(scale))


class FieldNetwork(nn.Module):
    """Gated convolutions on blocks, `[B, *x, inward]` to `[B, *x, outward]`, under a condition `[B, Z]`."""

    def __init__(
        self, grid: Sequence[int], edges: Sequence[Edge], inward: int, outward: int, config: FieldConfig, Z: int
    ) -> None:
        super().__init__()
        self.grid, self.edges, self.config = tuple(grid), tuple(edges), config
        self.channels = (inward, outward, Z)
        dims, p, W = len(self.grid), config.block, config.width
        marks = edge_marks(grid, edges)
        self.inner = fitted_grid(grid, p * (2 if config.middle_layers else 1))
        marks = marks if marks is None else to_blocks(self._prolonged(marks), p)
        self.register_buffer("_marks", marks, persistent=False)
        channels = inward * p**dims + (0 if marks is None else marks.shape[-1])
        self.stem = GridConvolution(channels + config.noise, W, edges)
        if not self.stem.weight.is_meta:
            with torch.no_grad():
                self.stem.weight[:, channels:] *= 0.1
        half = (config.layers + 1) // 2 if config.middle_layers else config.layers
        self.first, self.last = GatedStack(half, W, edges, Z), GatedStack(config.layers - half, W, edges, Z)
        self.middle = GatedStack(config.middle_layers, config.middle_width, edges, Z)
        if config.middle_layers:
            self.coarsen, self.refine = Halve(W, config.middle_width, dims), Double(config.middle_width, W, dims)
        self.scale = nn.Parameter(torch.ones(W))
        self.head = nn.Linear(W, outward * p**dims, bias=False)
        # Before it is trained the floor alone is forecast.
        nn.init.zeros_(self.head.weight)

    _marks: Tensor | None

    def forward(self, x: Tensor, condition_BZ: Tensor | None, noise: Tensor | None = None) -> Tensor:
        """Noise `[B, *x / block, n]` is zeros where it is not given."""
        h = to_blocks(self._prolonged(x), self.config.block)
        parts = [h]
        if self._marks is not None:
            parts.append(self._marks.to(h.dtype).expand(len(h), *self._marks.shape[1:]))
        if self.config.noise:
            shape = (*h.shape[:-1], self.config.noise)
            parts.append(h.new_zeros(shape) if noise is None else noise.to(h.dtype))
        h = self.stem(torch.cat(parts, -1))
        h = self.first(h, condition_BZ)
        if self.config.middle_layers:
            h = h + self.refine(self.middle(self.coarsen(h), condition_BZ))
        h = self.last(h, condition_BZ)
        fields = from_blocks(self.head(normalised(h, self.scale)), self.config.block)
        return fields[(slice(None), *(slice(n) for n in self.grid))]

    def noise_shape(self, batch: int) -> tuple[int, ...]:
        return (batch, *(n // self.config.block for n in self.inner), self.config.noise)

    def _prolonged(self, x: Tensor) -> Tensor:
        for axis, (n, m, edge) in enumerate(zip(self.grid, self.inner, self.edges, strict=True), start=1):
            x = pad_axis(x, axis, 0, m - n, edge)
        return x


def answer(network: FieldNetwork, x: Tensor, condition_BZ: Tensor | None, noise: Tensor | None) -> Tensor:
    """What a network gives; on a GPU where ENMA_GPU_TRY names "fields" in one launch, with products in bf16."""
    recordings = None if torch.is_grad_enabled() or not tried("fields") else recordings_of(network, x.device)
    if recordings is None:
        return network(x, condition_BZ, noise)
    given = {"x": x, "condition_BZ": condition_BZ, "noise": noise}
    tensors = {name: part for name, part in given.items() if part is not None}

    def run(inputs: Sequence[Tensor]) -> Tensor:
        # Casts that a cache keeps would be of the recording alone.
        with torch.autocast(x.device.type, torch.bfloat16, cache_enabled=False):
            output: Tensor = network(**given | dict(zip(tensors, inputs, strict=True)))
        return output

    kind = tuple((name, part.shape) for name, part in tensors.items())
    output = recordings(kind, run, list(tensors.values()))
    assert output is not None
    return output


class FieldStep(nn.Module):
    """The next frame of fields `[*x, C]` from the last three and a condition."""

    usual: Tensor
    size: Tensor
    spread: Tensor
    misfit: Tensor
    residuals: Tensor

    def __init__(
        self,
        grid: Sequence[int],
        edges: Sequence[Edge],
        channels: int,
        config: FieldConfig,
        *,
        condition: int,
        views: int = 0,
        told: int = 0,
    ) -> None:
        super().__init__()
        self.config, self.channels = config, channels
        self.scales = Scales(channels, views)
        # Least known share that is usual: of a trajectory's own windows, and of another one's.
        self.register_buffer("usual", torch.zeros(2))
        # How much of the correction counts at most, and factors of what members draw, by the same windows.
        self.register_buffer("size", torch.ones(()))
        self.register_buffer("spread", torch.ones(2))
        # Usual misfit of forecasts of known frames, by the same windows.
        self.register_buffer("misfit", torch.ones(2))
        # Errors of single steps, of which members draw sums where they are too much alike without.
        self.register_buffer("residuals", torch.zeros(PATTERNS, *grid, channels))
        self.network = FieldNetwork(grid, edges, channels * (PAST + views) + told, channels, config, condition)
        self.member = nn.Linear(config.member, condition, bias=False) if config.member else None
        if self.member is not None:
            nn.init.normal_(self.member.weight, std=0.1 * config.member**-0.5)

    def condition(self, condition_BZ: Tensor, member_BM: Tensor | None = None) -> Tensor:
        """The condition of members, shifted by their numbers; of the mean member without."""
        if self.member is None or member_BM is None:
            return condition_BZ
        return condition_BZ + self.member(member_BM)

    def correction(
        self,
        past: Tensor,
        views: Tensor | None,
        condition_BZ: Tensor | None,
        noise: Tensor | None = None,
        known: Known | None = None,
    ) -> Tensor:
        """What is added to the floor's forecast, from `past [B, 3, *x, C]` and the floor's `views [B, *x, C, F]`."""
        s = self.scales
        x0, x1, x2 = past.unbind(1)
        parts = [(x2 - s.mean) / s.std, (x2 - x1) / s.change, (x2 - 2 * x1 + x0) / s.bend]
        if views is not None:
            parts.append(((views - x2[..., None]) / s.view).flatten(-2))
        if known is not None:
            parts.append(known.inputs.to(x2.dtype))
        correction = answer(self.network, torch.cat(parts, -1), condition_BZ, noise)
        correction = correction.to(torch.promote_types(correction.dtype, torch.float32)) * s.error
        return correction if known is None or known.mask is None else correction * known.mask

    def reliance(
        self,
        windows: Tensor,
        condition_BZ: Tensor,
        forecast: Forecast,
        *,
        first: bool,
        own: bool,
        told: Sequence[Drivers | None] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """How much of the correction counts for each trajectory `[B]`, and the misfit of known frames with it `[B]`.

        It counts less where it is of less use than usual. Arguments are those of :meth:`known_forecasts`; `own` says
        that the windows are of the trajectory itself.
        """
        added, off = self.known_forecasts(windows, condition_BZ, forecast, first=first, told=told)
        return self._reliance(known_share(added, off), added, off, 0 if own else 1)

    def _reliance(self, shares: Tensor, added: Tensor, off: Tensor, place: int) -> tuple[Tensor, Tensor]:
        """How much counts by these known shares `[B]`, and the root mean square of what known forecasts then lack."""
        share = self.size * (shares / self.usual[place].clamp_min(_TINY)).clamp(max=1)
        return share, (off - on_grid(share[:, None], added) * added).flatten(1).square().mean(1).sqrt()

    def factor(self, misfit: Tensor, *, own: bool) -> Tensor:
        """What multiplies the draws of members of trajectories with these misfits `[B]`."""
        place = 0 if own else 1
        return self.spread[place] * widening(misfit / self.misfit[place])

    def known_forecasts(
        self,
        windows: Tensor,
        condition_BZ: Tensor,
        forecast: Forecast,
        *,
        first: bool,
        told: Sequence[Drivers | None] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Corrections `[B, K, *x, C]` of forecasts of K known frames, and what the floor's forecasts of these lack.

        The last frame of each of the windows `[B, W, 3, *x, C]` is forecast, and the second one if `first`, for floors
        whose step reads one frame. What is `told` of a window begins with its first frame.
        """
        frames = [([0, 0, 1], 2)] + ([([0, 0, 0], 1)] if first else [])
        added, off = [], []
        each = told or [None] * windows.shape[1]
        for window, drivers in zip(windows.unbind(1), each, strict=True):
            for past, truth in frames:
                base, views = forecast(window[:, past])
                known = None if drivers is None else drivers.at(truth)
                added.append(self.correction(window[:, past], views, condition_BZ, known=known))
                off.append(window[:, truth] - base)
        return torch.stack(added, 1), torch.stack(off, 1)

    @torch.no_grad()
    def learn_usual(self, added: Tensor, off: Tensor, *, own: bool, told: bool = False) -> None:
        """Remember the known share that nine of ten trajectories like those of training exceed, and their mean misfit.

        Both are of their :meth:`known_forecasts`. Of one that is `told` what drives it, three quarters of the least
        share: it need not find out from the known frames.
        """
        place, shares = 0 if own else 1, known_share(added, off)
        self.usual[place] = _TOLD * shares.min() if told else shares.quantile(0.1)
        _, misfit = self._reliance(shares, added, off, place)
        self.misfit[place] = misfit.clamp_min(_TINY).log().mean().exp()

    def bounds(self, observed: Tensor) -> tuple[Tensor, Tensor]:
        """Least and greatest value of forecasts after frames `[B, T, *x, C]`, for each channel."""
        axes = tuple(range(1, observed.ndim - 1))
        low = torch.minimum(self.scales.low, observed.amin(axes, keepdim=True))[:, 0]
        high = torch.maximum(self.scales.high, observed.amax(axes, keepdim=True))[:, 0]
        margin = _MARGIN * (high - low)
        return low - margin, high + margin

    def frame(
        self,
        past: Tensor,
        condition_BZ: Tensor | None,
        floor: Forecast | None,
        bounds: tuple[Tensor, Tensor],
        *,
        corrected: bool = True,
        factor: Tensor | None = None,
        noise: Tensor | None = None,
        known: Known | None = None,
    ) -> Tensor:
        """The frame after `past [B, 3, *x, C]` within bounds.

        `floor` maps past frames to its forecast and its views. That is all unless it is to be `corrected`; `factor [B]`
        multiplies what is added to it.
        """
        base, views = (past[:, -1], None) if floor is None else floor(past)
        added = self.correction(past, views, condition_BZ, noise, known) if corrected else torch.zeros_like(base)
        if factor is not None:
            added = added * on_grid(factor[:, None], added)
        return torch.minimum(torch.maximum(base + added, bounds[0]), bounds[1])

    def roll(
        self,
        past: Tensor,
        condition_BZ: Tensor | None,
        steps: int,
        *,
        floor: Forecast | None = None,
        factor: Tensor | None = None,
        draw: Callable[..., Tensor] | None = None,
        told: Drivers | None = None,
    ) -> Tensor:
        """The frames `[B, steps, *x, C]` after `past [B, 3, *x, C]`, by :meth:`frame`.

        `draw` gives the noise of each step, `[B, *shape]` of the shape that it is called with. The first frame is told
        of as 0.
        """
        bounds, frames = self.bounds(past), []
        for step in range(steps):
            noise = None
            if draw is not None and self.config.noise:
                noise = draw(*self.network.noise_shape(len(past))[1:]).to(past.device)
            known = None if told is None else told.at(step)
            frame = self.frame(past, condition_BZ, floor, bounds, factor=factor, noise=noise, known=known)
            frames.append(frame)
            past = torch.cat([past[:, 1:], frame[:, None]], 1)
        return torch.stack(frames, 1)
