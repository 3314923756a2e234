"""The two-reference rule: a kernel may be as far from the float64 result as twice the plain code of its own dtype.

And threads keep its bits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def assert_close_as_reference(ours: Tensor, same_dtype: Tensor, exact: Tensor, *, floor: float) -> None:
    """``max|ours - exact| <= 2 max|same_dtype - exact| + floor``; all finite, same shape.

    Parameters
    ----------
    ours
        What the kernel returned.
    same_dtype
        The reference run in the kernel's dtype.
    exact
        The reference run in float64 on the same (rounded) inputs.
    floor
        Absolute slack for cases where the plain code happens to be exact; a few ulps of the result.
    """
    assert ours.shape == exact.shape, f"shape {list(ours.shape)}, expected {list(exact.shape)}"
    assert exact.dtype == torch.float64
    if exact.numel() == 0:
        return
    assert torch.isfinite(ours).all(), "the kernel left NaN or infinity"
    error = (ours.double() - exact).abs().max().item()
    allowed = 2 * (same_dtype.double() - exact).abs().max().item() + floor
    assert error <= allowed, f"error {error:.3e}, allowed {allowed:.3e}"


def assert_threads_keep_bits(compute: Callable[[], Sequence[Tensor]]) -> None:
    """The tensors that ``compute`` returns have the same bits on one, two and three threads."""
    results, threads = [], torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(compute())
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert torch.equal(a, b)
