"""Layers on grids of 1 to 3 dimensions, channels last, with an edge of its own kind at each axis.

A `periodic` axis goes on at its other end. A `wall` has zeros beyond it, and an `open` edge repeats its last value.

Legend: B batch, C channels, W width, Z numbers of a condition, d dimensions, p points of a block; `*x` space.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import StrEnum

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..ops import fused_in_training
from ..ops.swiglu import swiglu

KERNEL = 3
# Points from an edge that is not periodic at which networks are told so.
_MARKED = 2
_CONVOLUTIONS = {2: F.conv2d, 3: F.conv3d}


class Edge(StrEnum):
    """What lies beyond both ends of an axis."""

    PERIODIC = "periodic"
    WALL = "wall"
    OPEN = "open"

    @classmethod
    def of(cls, periodic: Sequence[bool]) -> tuple[Edge, ...]:
        """Those of a model's axes: the ones that are not periodic are walls."""
        return tuple(cls.PERIODIC if ring else cls.WALL for ring in periodic)


def pad_axis(x: Tensor, axis: int, before: int, after: int, edge: Edge) -> Tensor:
    """Points beyond both ends of an axis."""
    n = x.shape[axis]
    if before == after == 0:
        return x
    match edge:
        case Edge.PERIODIC:
            if max(before, after) > n:
                return x.index_select(axis, torch.arange(-before, n + after, device=x.device) % n)
            return torch.cat([x.narrow(axis, n - before, before), x, x.narrow(axis, 0, after)], axis)
        case Edge.OPEN:
            first, last = x.narrow(axis, 0, 1), x.narrow(axis, n - 1, 1)
            return torch.cat([*[first] * before, x, *[last] * after], axis)
        case Edge.WALL:
            shape = list(x.shape)
            parts = []
            for count in (before, after):
                shape[axis] = count
                parts.append(x.new_zeros(shape))
            return torch.cat([parts[0], x, parts[1]], axis)


def pad_grid(x: Tensor, amount: int, edges: Sequence[Edge]) -> Tensor:
    """`[B, *x, C]` with `amount` points beyond both ends of each axis."""
    for axis, edge in enumerate(edges, start=1):
        x = pad_axis(x, axis, amount, amount, edge)
    return x


def edge_marks(grid: Sequence[int], edges: Sequence[Edge]) -> Tensor | None:
    """How many edges that are not periodic are near each point, `[1, *x, 1]` on the CPU; None where there is none."""
    if all(edge is Edge.PERIODIC for edge in edges):
        return None
    marks = torch.zeros(*grid, device="cpu")
    for axis, (n, edge) in enumerate(zip(grid, edges, strict=True)):
        if edge is not Edge.PERIODIC:
            place = torch.arange(n, device="cpu")
            near = ((place < _MARKED) | (place >= n - _MARKED)).float()
            marks += near.view([-1 if i == axis else 1 for i in range(len(grid))])
    return marks[None, ..., None]


def to_blocks(x: Tensor, size: int) -> Tensor:
    """`[B, *x, C]` to `[B, *x / p, p^d C]`: the points of a block become channels."""
    dims = x.ndim - 2
    shape = [x.shape[0]]
    for n in x.shape[1:-1]:
        shape += [n // size, size]
    order = [0, *range(1, 2 * dims, 2), *range(2, 2 * dims + 1, 2), 2 * dims + 1]
    return x.reshape(*shape, x.shape[-1]).permute(order).flatten(1 + dims)


def from_blocks(x: Tensor, size: int) -> Tensor:
    """Inverse of :func:`to_blocks`."""
    dims = x.ndim - 2
    split = x.reshape(*x.shape[:-1], *(size,) * dims, x.shape[-1] // size**dims)
    order = [0, *(i for axis in range(dims) for i in (1 + axis, 1 + dims + axis)), 1 + 2 * dims]
    return split.permute(order).reshape(x.shape[0], *(n * size for n in x.shape[1:-1]), split.shape[-1])


class GridConvolution(nn.Module):
    """Convolution by `3^d` weights, `[B, *x, inward]` to `[B, *x, outward]`."""

    def __init__(self, inward: int, outward: int, edges: Sequence[Edge]) -> None:
        super().__init__()
        self.edges = tuple(edges)
        self.weight = nn.Parameter(torch.empty(outward, inward, *(KERNEL,) * len(self.edges)))
        nn.init.normal_(self.weight, std=(inward * KERNEL ** len(self.edges)) ** -0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = pad_grid(x, KERNEL // 2, self.edges)
        if len(self.edges) == 1:
            # A product over neighbours side by side: libraries run narrow 1-D convolutions slowly.
            n = x.shape[1] - KERNEL + 1
            near = torch.cat([x.narrow(1, i, n) for i in range(KERNEL)], -1)
            return F.linear(near, self.weight.movedim(-1, 1).flatten(1))
        return _CONVOLUTIONS[len(self.edges)](x.movedim(-1, 1), self.weight).movedim(1, -1)


class GatedBlock(nn.Module):
    """x + W_out (silu(a) * b), where a and b are a convolution of the normalised x, shifted by a condition."""

    def __init__(self, width: int, edges: Sequence[Edge], *, condition: int = 0) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))
        self.gate_up = GridConvolution(width, 2 * width, edges)
        self.down = nn.Linear(width, width, bias=False)
        self.shift = nn.Linear(condition, 2 * width) if condition else None
        nn.init.zeros_(self.down.weight)
        if self.shift is not None:
            nn.init.normal_(self.shift.weight, std=0.1 * condition**-0.5)
            nn.init.zeros_(self.shift.bias)

    def forward(self, x: Tensor, condition_BZ: Tensor | None = None) -> Tensor:
        y = self.gate_up(normalised(x, self.scale))
        if self.shift is not None and condition_BZ is not None:
            y = y + on_grid(self.shift(condition_BZ), y)
        return x + self.down(swiglu(y, backend=None if fused_in_training(y) else "reference"))


class GatedStack(nn.Module):
    """Gated blocks, one after the other; none change nothing."""

    def __init__(self, layers: int, width: int, edges: Sequence[Edge], condition: int = 0) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([GatedBlock(width, edges, condition=condition) for _ in range(layers)])

    def forward(self, x: Tensor, condition_BZ: Tensor | None = None) -> Tensor:
        for block in self.blocks:
            x = block(x, condition_BZ)
        return x


def normalised(x: Tensor, scale: Tensor) -> Tensor:
    """Channels of mean 0 and variance 1, times a scale; in one kernel, in the type of x."""
    return F.layer_norm(x, scale.shape, scale.to(x.dtype))


def on_grid(values_BC: Tensor, like: Tensor) -> Tensor:
    """Values of each trajectory at every point of `[B, *x, C]`."""
    return values_BC.to(like.dtype).view(len(values_BC), *(1,) * (like.ndim - 2), -1)


class Halve(nn.Module):
    """Blocks of 2 points of each axis to one point."""

    def __init__(self, inward: int, outward: int, dims: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outward, inward * 2**dims))
        nn.init.normal_(self.weight, std=(inward * 2**dims) ** -0.5)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(to_blocks(x, 2), self.weight)


class Double(nn.Module):
    """One point to a block of 2 points of each axis."""

    def __init__(self, inward: int, outward: int, dims: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outward * 2**dims, inward))
        nn.init.normal_(self.weight, std=0.5 * inward**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        return from_blocks(F.linear(x, self.weight), 2)


def fitted_grid(grid: Sequence[int], size: int) -> tuple[int, ...]:
    """The grid with each axis prolonged to a multiple of `size`."""
    return tuple(math.ceil(n / size) * size for n in grid)
