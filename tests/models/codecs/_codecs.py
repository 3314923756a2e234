"""Small codecs of every kind, with weights that do something, and fields for them."""

from dataclasses import replace

import torch

from enma_fast.config import BlocksConfig

from ..._tiny import CONFIGS, LINE, PLANE, distance, shaken

CONVOLUTIONS = {
    "line": LINE,
    "plane": PLANE,
    "points": CONFIGS["points"].codec,
    "strided": replace(PLANE, kernel_ends=3, stride_ends=2, layers=("space", "residual", "time")),
    "two-times": replace(LINE, layers=("space", "time", "residual", "time")),
}
BLOCKS = {
    "blocks": BlocksConfig(grid=(12,), field_channels=2),
    "plane of blocks": BlocksConfig(
        grid=(12, 6),
        lengths=(1.0, 1.0),
        periodic=(True, False),
        block=3,
        frames=4,
        field_mean=(0.5,),
        field_scale=(3.0,),
    ),
}
OPTIONS = CONVOLUTIONS | BLOCKS


def build(options, seed=0):
    torch.manual_seed(seed)
    return shaken(options.made()(options), seed).eval().requires_grad_(False)


def field(options, frames, batch=2):
    return torch.randn(batch, frames, *options.grid, options.field_channels)


def shifted_encode_differs(codec, options, points):
    """How far encoding fails to commute with shifts by `points` grid points along axis 0."""
    u = field(options, 3)
    grid = (2, 2, *options.token_grid, -1)
    z = codec.encode(u.roll(points, dims=2)).view(grid)
    return distance(z, codec.encode(u).view(grid).roll(points // options.space_factor, dims=2))
