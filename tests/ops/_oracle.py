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
    _assert_comparable(ours, exact)
    if exact.numel() == 0:
        return
    error = (ours.double() - exact).abs().max().item()
    allowed = 2 * (same_dtype.double() - exact).abs().max().item() + floor
    assert error <= allowed, f"error {error:.3e}, allowed {allowed:.3e}"


def assert_norm_close_as_reference(ours: Tensor, same_dtype: Tensor, exact: Tensor) -> None:
    """``|ours - exact| <= 2 |same_dtype - exact|`` in Euclidean norms; all finite, same shape.

    For long chains of operations: the largest of their few hundred errors is luck, and its ratio to the reference's
    was 0.24 to 3.3 over the ISAs of a processor, that of the norms 0.47 to 1.52.
    """
    _assert_comparable(ours, exact)
    error, allowed = torch.dist(ours.double(), exact).item(), 2 * torch.dist(same_dtype.double(), exact).item()
    assert error <= allowed, f"error {error:.3e}, allowed {allowed:.3e}"


def _assert_comparable(ours: Tensor, exact: Tensor) -> None:
    assert ours.shape == exact.shape, f"shape {list(ours.shape)}, expected {list(exact.shape)}"
    assert exact.dtype == torch.float64
    assert torch.isfinite(ours).all(), "the kernel left NaN or infinity"


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
