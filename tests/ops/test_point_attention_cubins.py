"""The point_attention kernels compiled for GPUs: registers, spills and shared memory."""

import importlib.util

import pytest
import torch

from ._cubin import SHARED_LIMIT, report

HEAD_DIMS = (16, 32, 64, 128)


def cubin_cases(sizes=((256, 1024), (257, 1021))):
    """Forward and backward of the models' interpolation and of wider heads."""
    from enma_fast.kernels.point_attention import launch_forward
    from enma_fast.kernels.point_attention_backward import launch_backward, query_blocks

    for dtype in (torch.bfloat16, torch.float32):
        for head_dim in HEAD_DIMS:
            for (num_queries, num_points), power, period in zip(sizes, (1, 2), (1.0, 0.0), strict=True):
                q = torch.zeros(1, 1, num_queries, head_dim, dtype=dtype)
                k = torch.zeros(1, 1, num_points, head_dim, dtype=dtype)
                at, places = torch.zeros(1, 1, num_queries, 2), torch.zeros(1, 1, num_points, 2)
                lse = at[..., 0].contiguous()
                arguments = {
                    "query_points": at[0, 0],
                    "points": places[0, 0],
                    "slopes": torch.zeros(1),
                    "valid": torch.zeros(1, num_points, dtype=torch.uint8),
                    "power": power,
                    "periods": (period, period),
                }
                launch_forward(q, k, k, **arguments, out=q, lse=lse)
                parts = {"slopes_grad": torch.zeros(1, 1, query_blocks(q, k))}
                parts |= {"query_points_grad": at, "points_grad": places}
                grads = {"q_grad": q, "k_grad": k, "v_grad": k} | parts
                launch_backward(q, k, k, **arguments, out_grad=q, lse=lse, delta=lse, **grads)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton")
@pytest.mark.parametrize("capability", [80, 90, 100])
def test_cubins_stay_within_limits(capability):
    found = report("tests.ops.test_point_attention_cubins:cubin_cases", capability)
    assert len(found) == 2 * len(HEAD_DIMS) * 2 * 3
    for i, kernel in enumerate(found):
        assert kernel["spills"] == 0, kernel
        assert kernel["stack"] == 0, kernel
        assert kernel["shared"] <= SHARED_LIMIT[capability], kernel
        assert kernel["registers"] * 32 * kernel["num_warps"] <= 65536, kernel
        if i < len(found) // 2:
            assert kernel["tensor_core"] > 0, kernel
