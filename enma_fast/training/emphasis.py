"""Which trajectories a training sees more often: by the parameters of their equation."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..data import FieldFile
from ..errors import EnmaError


def odds(
    train: FieldFile, emphasis: tuple[tuple[str, float], ...], *, option: str, rows: np.ndarray | slice = slice(None)
) -> Tensor | None:
    """How often each trajectory (of `rows`) is drawn, relative to the others; None without an emphasis.

    Odds are the product of the parameters' powers in `emphasis`.

    Raises
    ------
    EnmaError
        Begins with `option`, and names a parameter that the data do not have, or whose powers are not above 0 and
        finite.
    """
    if not emphasis:
        return None
    product = np.ones(len(train.u))[rows]
    for name, power in emphasis:
        if name not in train.parameters:
            known = ", ".join(train.parameters) or "none"
            raise EnmaError(f"{option}: {train.path} has no parameter {name!r} (it has: {known})")
        with np.errstate(all="ignore"):
            product *= np.asarray(train.parameters[name], dtype=np.float64)[rows] ** power
        if not (np.isfinite(product).all() and (product > 0).all()):
            raise EnmaError(
                f"{option}: {name} to the power of {power:g} is not above 0 and finite in all environments; take a "
                "parameter that is"
            )
    return torch.from_numpy(product / product.max())


def drawn(count: int, of: int, odds: Tensor | None, generator: torch.Generator) -> Tensor:
    """`count` of so many trajectories or environments at random, by their odds; all alike without."""
    if odds is None:
        return torch.randint(of, (count,), generator=generator)
    return torch.multinomial(odds, count, replacement=True, generator=generator)
