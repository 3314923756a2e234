"""The kernels that the launchers of rms_norm start on a GPU: no spills at the widths of the models."""

from __future__ import annotations

import itertools

import pytest
import torch

from enma_fast.ops._backend import kernel
from tests.ops._cubin import CAPABILITIES, SHARED_LIMIT, report


def cubin_cases() -> None:
    """The paper's width, the small model's, and the widest row; a row and a sum, and all gradients."""
    for dtype, (R, W) in itertools.product((torch.bfloat16, torch.float32), [(1024, 512), (1024, 192), (64, 4096)]):
        x, y, h, residual = torch.empty(4, R, W, dtype=dtype)
        weight, rstd = torch.empty(W, dtype=dtype), torch.empty(R)
        kernels = kernel("rms_norm")
        kernels.launch_forward(x, weight, None, eps=1e-6, y=y, h=h, rstd=rstd)
        kernels.launch_forward(x, weight, residual, eps=1e-6, y=y, h=h, rstd=rstd[:0])
        kernels.launch_backward(y, x, rstd, weight, grad_x=h, grad_weight=torch.empty(W, dtype=dtype))


@pytest.mark.slow
@pytest.mark.parametrize("capability", CAPABILITIES)
def test_cubins(capability: int) -> None:
    pytest.importorskip("triton")
    cubins = report("tests.ops.test_rms_norm_cubins:cubin_cases", capability)
    assert len(cubins) == 18
    for cubin in cubins:
        assert cubin["spills"] == 0, cubin
        assert cubin["stack"] == 0, cubin
        assert cubin["shared"] <= SHARED_LIMIT[capability], cubin
        assert cubin["registers"] * 32 * cubin["num_warps"] <= 65536, cubin
