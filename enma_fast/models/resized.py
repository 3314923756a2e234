"""A field model on a grid of another size, with the spacing that it was trained with.

Its convolutions, and the laws of vibrations and diffusion, know the distance between points and not their number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..errors import EnmaError
from .model import Model


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
    config, codec = model.config, model.config.codec
    for part in (model.codec, model.dynamics.context, model.dynamics.step):
        if (reason := part.of_grid) is not None:
            raise EnmaError(f"{config.name} has {reason}, which is of its grid; train on the other grid")
    grid = tuple(int(n) for n in grid)
    if len(grid) != codec.dims:
        raise EnmaError(f"grid is {list(grid)}; {config.name} has {codec.dims} axes")
    assert codec.lengths is not None
    # Between walls a length is that of the steps between the points.
    steps = [(n, m) if wraps else (n - 1, m - 1) for n, m, wraps in zip(codec.grid, grid, codec.periodic, strict=True)]
    lengths = tuple(length * new / old for length, (old, new) in zip(codec.lengths, steps, strict=True))
    made = Model(replace(config, codec=replace(codec, grid=grid, lengths=lengths))).requires_grad_(False).eval()
    tensors = model.state_dict()
    # What has another shape there is as it was made.
    made.load_state_dict(
        {name: tensors[name] if tensors[name].shape == new.shape else new for name, new in made.state_dict().items()}
    )
    return made
