"""Latent frames of the training data, which the dynamics are trained on and which are computed once.

Legend: S sub-token shifts, B batch, T latent frames, N tokens per frame, C latent channels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..config import CodecConfig
from ..models.checkpoint import read_tensors, write_tensors
from ..models.codecs.codec import Codec
from ..models.codecs.interpolation import grid_points
from .augment import Scattered, roll


@dataclass(frozen=True)
class Latents:
    """Latent frames ``z [S, n, T, N, C]`` (fp16) of trajectories, for every shift by less than a token.

    ``scattered`` are those of the same fields observed at random points; mean and std are those of ``z`` alone.
    """

    z: Tensor
    environment: Tensor
    mean: Tensor
    std: Tensor
    scattered: Tensor | None = None

    def save(self, path: Path) -> None:
        """Write to safetensors."""
        write_tensors(path, {name: tensor for name, tensor in vars(self).items() if tensor is not None})

    @classmethod
    def load(cls, path: Path) -> Latents:
        """Read back."""
        return cls(**read_tensors(path)[0])


def sub_token_shifts(options: CodecConfig, *, shift: bool, most: int | None = None) -> list[tuple[int, ...]]:
    """Shifts by less than a token, in grid points of each dimension; none across walls. At most `most`, evenly spaced.

    On a plane those along the diagonal, which have every place of a token in either axis: all would be their square.
    """
    factor = options.space_factor if shift and any(options.periodic) else 1
    count = factor if most is None else min(most, factor)
    return [tuple(i * factor // count if ring else 0 for ring in options.periodic) for i in range(count)]


@torch.no_grad()
def encode_all(
    codec: Codec,
    u: Tensor,
    environment: Tensor,
    *,
    shift: bool,
    most_shifts: int | None = None,
    scattered: Scattered | None = None,
    seed: int = 0,
) -> Latents:
    """Encode trajectories ``[n, T, *grid, c]`` once, or for the shifts of :func:`sub_token_shifts`.

    With `scattered` each is encoded once more from such a share of its points, drawn by `seed`.
    """
    generator, options = torch.Generator().manual_seed(seed), codec.config
    shifts = sub_token_shifts(options, shift=shift, most=most_shifts)
    shape = (len(shifts), len(u), options.latent_frames(u.shape[1]), math.prod(options.token_grid))
    z = torch.empty(*shape, options.latent_channels, dtype=torch.float16, device=u.device)
    at_points = None if scattered is None else torch.empty_like(z)
    sums = torch.zeros(2, options.latent_channels, dtype=torch.float64, device=u.device)
    # More at a time leave the cache of a core, and take 1.7 to 2.4 times as long (docs/notes/encoding-batch.md).
    batches = torch.arange(len(u)).split(16 if u.device.type == "cpu" else 256)
    for s, amounts in enumerate(shifts):
        for rows in batches:
            place = slice(int(rows[0]), int(rows[-1]) + 1)
            rolled = roll(u[place], [torch.full((len(rows),), a) for a in amounts])
            encoded = codec.encode(rolled)
            z[s, place] = encoded
            flat = encoded.flatten(0, -2).double()
            sums += torch.stack([flat.sum(0), flat.square().sum(0)])
            if at_points is not None:
                assert scattered is not None
                at_points[s, place] = _encode_scattered(codec, rolled, scattered, generator)
    count = z[..., 0].numel()
    mean, square = sums / count
    std = ((square - mean.square()).clamp_min(0) * count / (count - 1)).sqrt()
    return Latents(z, environment, mean.float(), std.float(), at_points)


def _encode_scattered(codec: Codec, u: Tensor, scattered: Scattered, generator: torch.Generator) -> Tensor:
    """Latent frames of fields ``[B, T, *grid, c]`` at random points, for half of them the same in all frames."""
    points, (B, T) = grid_points(codec.config), u.shape[:2]
    count = scattered.counts(B, len(points), generator)[..., None]
    order = torch.rand(B, T, len(points), generator=generator)
    order = torch.where(torch.rand(B, 1, 1, generator=generator) < 0.5, order, order[:, :1])
    index = order.argsort(-1)[..., : int(count.max())]
    valid = (torch.arange(index.shape[-1]) < count).expand_as(index)
    return codec.encode(values_at(u, index), points[index].to(u.device), valid.to(u.device))


def values_at(u: Tensor, places: Tensor) -> Tensor:
    """Values ``[B, T, P, c]`` of fields ``[B, T, *grid, c]`` at grid points by number, ``[B, T, P]``."""
    return u.flatten(2, -2).gather(2, places[..., None].expand(*places.shape, u.shape[-1]).to(u.device))
