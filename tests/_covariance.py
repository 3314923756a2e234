"""Statistics of fields on small grids of any kind."""

import torch

from enma_fast.models.covariance import FieldCovariance

GRIDS = {
    "ring": ((8,), (1.5,), (True,)),
    "odd ring": ((7,), (1.5,), (True,)),
    "walls": ((6,), (2.0,), (False,)),
    "plane": ((8, 5), (2.0, 1.0), (True, False)),
    "odd plane": ((5, 6), (2.0, 1.0), (True, True)),
}


def covariance_on(name: str, channels: int = 1, seed: int = 0) -> FieldCovariance:
    """Any statistics on a grid."""
    grid, lengths, periodic = GRIDS[name]
    generator = torch.Generator().manual_seed(seed)
    shape = (*(n // 2 + 1 if p else n for n, p in zip(grid, periodic, strict=True)), channels)
    deviation, correlation = (torch.rand(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    return FieldCovariance(torch.zeros(channels).double(), deviation, correlation, grid, lengths, periodic)


def points_of(name: str) -> torch.Tensor:
    grid, lengths, periodic = GRIDS[name]
    axes = [
        torch.arange(n).double() * length / (n if p else n - 1)
        for n, length, p in zip(grid, lengths, periodic, strict=True)
    ]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).reshape(-1, len(grid))
