"""Checks of operator arguments: one line that names the argument, what was expected and what was given."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import EnmaError


def expect(
    op: str,
    name: str,
    tensor: Tensor,
    *,
    shape: Sequence[int | None] | None = None,
    dtype: torch.dtype | Sequence[torch.dtype] | None = None,
    device: torch.device | None = None,
) -> None:
    """Raise `EnmaError` unless `tensor` has this shape (None: any size), one of these dtypes, and this device."""
    if shape is not None:
        fits = tensor.ndim == len(shape) and all(b in (None, a) for a, b in zip(tensor.shape, shape, strict=True))
        if not fits:
            wanted = ", ".join("*" if n is None else str(n) for n in shape)
            raise EnmaError(f"{op}: {name} has shape {list(tensor.shape)}; expected [{wanted}]")
    if dtype is not None:
        dtypes = (dtype,) if isinstance(dtype, torch.dtype) else tuple(dtype)
        if tensor.dtype not in dtypes:
            raise EnmaError(
                f"{op}: {name} is {dtype_name(tensor.dtype)}; expected {' or '.join(map(dtype_name, dtypes))}"
            )
    if device is not None and tensor.device != device:
        raise EnmaError(f"{op}: {name} is on {tensor.device}; expected {device}")


def dtype_name(dtype: torch.dtype) -> str:
    """``float32``, not ``torch.float32``."""
    return str(dtype).removeprefix("torch.")
