"""Numbers below 1.2e-38 in magnitude, with which processors compute many times slower than with others."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ..ops import _backend


@contextmanager
def flush_subnormals() -> Iterator[None]:
    """Take subnormal numbers for zero on the CPU, in this thread and those that compute for it.

    Gradients of a model that has learned much are full of them (docs/notes/subnormals.md). Without the extension, or
    where the processor cannot, the other threads, or all, keep them.
    """
    before = bool(torch.tensor([1e-39]).mul(1.0) == 0)
    _flush(True)
    try:
        yield
    finally:
        _flush(before)


def _flush(flush: bool) -> None:
    module = _backend.extension()
    if module is None:
        torch.set_flush_denormal(flush)
    else:
        module.flush_subnormals(flush, torch.get_num_threads())
