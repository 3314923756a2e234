"""Check fields and convert them to float64 arrays of points.

Shape suffixes: B trajectories, K members, T forecast frames, P points (one value each: a place and a channel).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...errors import EnmaError

Array = Tensor | np.ndarray[Any, Any]


def float64(values: Array) -> Tensor:
    return torch.as_tensor(values).detach().to(torch.float64)


def checked(ensemble: Array, truth: Array, *, min_members: int = 1) -> tuple[Tensor, Tensor]:
    """Ensemble `[B, K, T, *x, c]` and truth `[B, T, *x, c]` as float64 `[B, K, T, P]` and `[B, T, P]`.

    `EnmaError` if shapes do not match, a value is not finite, or there are fewer than `min_members`.
    """
    members, fields = float64(ensemble), float64(truth)
    shapes = f"ensemble is {list(members.shape)} and truth {list(fields.shape)}"
    if fields.ndim < 3 or members.ndim != fields.ndim + 1 or members[:, :1].shape != fields[:, None].shape:
        raise EnmaError(f"{shapes}: expected [B, K, T, *x, c] and [B, T, *x, c]")
    if fields.numel() == 0 or members.numel() == 0:
        raise EnmaError(f"{shapes}: there is nothing to score")
    if members.shape[1] < min_members:
        raise EnmaError(f"{shapes}: one member has no spread; sample at least {min_members}")
    require_finite("ensemble", members)
    require_finite("truth", fields)
    return members.flatten(3), fields.flatten(2).to(members.device)


def where_there(values: Array, mask: np.ndarray) -> Any:
    """Values `[..., *x, c]` at the places where a mask `[*x, c]` has some, `[..., P, 1]`."""
    places = torch.from_numpy(np.flatnonzero(mask))
    flat = values.reshape(*values.shape[: values.ndim - mask.ndim], mask.size)
    return flat[..., places if isinstance(values, Tensor) else places.numpy(), None]


def require_finite(name: str, values: Tensor) -> None:
    finite = torch.isfinite(values)
    if finite.all():
        return
    place = (~finite).nonzero()[0].tolist()
    raise EnmaError(
        f"{name} holds {float(values[tuple(place)])} at index {place}: a score needs finite values, "
        f"so drop that trajectory or repair it"
    )


def require_nonzero(truth: Tensor) -> None:
    zero_B = (truth == 0).flatten(1).all(1)
    if zero_B.any():
        raise EnmaError(zero_truth(int(zero_B.nonzero()[0])))


def zero_truth(place: int) -> str:
    return (
        f"truth of trajectory {place} is zero throughout: its relative L2 error is not defined, so drop that trajectory"
    )


def pool(sums_T: Tensor, per_frame: bool) -> Tensor:
    return sums_T if per_frame else sums_T.sum(0)
