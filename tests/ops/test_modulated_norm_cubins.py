"""What the launchers of modulated_norm would start on a GPU: no spills at the widths of the models."""

from __future__ import annotations

import itertools

import pytest
import torch

from enma_fast.ops._backend import kernel
from tests.ops._cubin import SHARED_LIMIT, report


def cubin_cases() -> None:
    """The paper's width, the small model's, and the widest row; with everything given."""
    for dtype, (R, W) in itertools.product((torch.bfloat16, torch.float32), [(1024, 512), (1024, 192), (64, 4096)]):
        x, y, h, residual = torch.empty(4, R, W, dtype=dtype)
        shift, scale, gate = torch.empty(R, 3 * W, dtype=dtype).chunk(3, dim=-1)
        weight, stats = torch.empty(W, dtype=dtype), torch.empty(2, R)
        kernel("modulated_norm").launch_forward(
            x, weight, shift, scale, residual, gate, rms=False, eps=1e-6, y=y, h=h, stats=stats
        )
        for one_row in (False, True):
            rows = 1 if one_row else R
            # Gradients of all: of shift, scale and gate row-wise, or summed.
            kernel("modulated_norm_backward").launch_backward(
                y,
                h,
                x,
                stats,
                weight,
                scale[:rows],
                residual,
                gate[:rows],
                rms=False,
                grad_x=torch.empty(R, W, dtype=dtype),
                grad_weight=torch.empty(1, W, dtype=dtype),
                grad_shift=torch.empty(1 if one_row else 0, W, dtype=dtype),
                grad_scale=torch.empty(rows, W, dtype=dtype),
                grad_residual=torch.empty(R, W, dtype=dtype),
                grad_gate=torch.empty(rows, W, dtype=dtype),
            )


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90, 100])
def test_cubins(capability: int) -> None:
    pytest.importorskip("triton")
    cubins = report("tests.ops.test_modulated_norm_cubins:cubin_cases", capability)
    assert len(cubins) == 18
    for cubin in cubins:
        assert cubin["spills"] == 0, cubin
        assert cubin["stack"] == 0, cubin
        assert cubin["shared"] <= SHARED_LIMIT[capability], cubin
        assert cubin["registers"] * 32 * cubin["num_warps"] <= 65536, cubin
