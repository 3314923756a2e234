"""A field model on a grid of another size, with the spacing that it was trained with.

Its convolutions, and the laws of vibrations and diffusion, know the distance between points and not their number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import torch

from ..config import BlocksConfig, PhysicsConfig
from ..errors import EnmaError
from .model import Model

_RESIDUALS = "dynamics.step.model.residuals"


def resized(model: Model, grid: Sequence[int]) -> Model:
    """A copy of a field model for fields with another number of points on each axis.

    The spacing stays, so the domain is larger or smaller. Its frame interval stays too. Forecasts do not warn of fields
    outside the training data, as it knows none of this size.

    Raises
    ------
    EnmaError
        If the model is no field model, or is one of its own grid: of a mask, of a floor of places or of waves of the
        domain, or with residuals of single steps.
    """
    config, codec, context = model.config, model.config.codec, model.config.context
    if not isinstance(codec, BlocksConfig) or not isinstance(context, PhysicsConfig):
        raise EnmaError(
            f"{config.name} is of one grid; only field models take another size, as `train FILE` makes them"
        )
    grid = tuple(int(n) for n in grid)
    if len(grid) != codec.dims:
        raise EnmaError(f"grid is {list(grid)}; {config.name} has {codec.dims} axes")
    if codec.masked:
        raise EnmaError(f"{config.name} has a mask, which is of its grid; train on the other grid")
    assert codec.lengths is not None
    if not cast(Any, model.dynamics.context).floor.local:
        raise EnmaError(f"the floor of {config.name}, {context.floor}, is of its grid; train on the other grid")
    # Between walls a length is that of the steps between the points.
    steps = [(n, m) if wraps else (n - 1, m - 1) for n, m, wraps in zip(codec.grid, grid, codec.periodic, strict=True)]
    lengths = tuple(length * new / old for length, (old, new) in zip(codec.lengths, steps, strict=True))
    made = Model(replace(config, codec=replace(codec, grid=grid, lengths=lengths))).requires_grad_(False).eval()
    tensors, wanted = model.state_dict(), made.state_dict()
    if bool(tensors[_RESIDUALS].any()):
        raise EnmaError(f"{config.name} adds residuals to its members, which are of its grid; train on the other grid")
    tensors[_RESIDUALS] = torch.zeros_like(wanted[_RESIDUALS])
    made.load_state_dict(tensors)
    return made
