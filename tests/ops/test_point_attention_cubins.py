"""The point_attention kernels compiled for GPUs: registers, spills and shared memory."""

import importlib.util

import pytest
import torch

from ._cubin import SHARED_LIMIT, report

HEAD_DIMS = (16, 32, 64, 128)


# Queries, points and period: in whole blocks on a ring, and beside them on an interval.
RING, INTERVAL = ((256, 1024), 1.0), ((257, 1021), 0.0)


def cubin_cases(domains=(RING, INTERVAL)):
    """Forward and backward of the models' interpolation and of wider heads."""
    from enma_fast.kernels.point_attention import launch_forward
    from enma_fast.kernels.point_attention_backward import launch_backward, query_blocks

    for dtype in (torch.bfloat16, torch.float32):
        for head_dim in HEAD_DIMS:
            for (num_queries, num_points), period in domains:
                q = torch.zeros(1, 1, num_queries, head_dim, dtype=dtype)
                k = torch.zeros(1, 1, num_points, head_dim, dtype=dtype)
                at, places = torch.zeros(1, 1, num_queries, 2), torch.zeros(1, 1, num_points, 2)
                lse = at[..., 0].contiguous()
                arguments = {
                    "query_points": at[0, 0],
                    "points": places[0, 0],
                    "slopes": torch.zeros(1),
                    "valid": torch.zeros(1, num_points, dtype=torch.uint8),
                    "periods": (period, period),
                }
                launch_forward(q, k, k, **arguments, out=q, lse=lse)
                parts = {"slopes_grad": torch.zeros(1, 1, query_blocks(q, k))}
                parts |= {"query_points_grad": at, "points_grad": places}
                grads = {"q_grad": q, "k_grad": k, "v_grad": k} | parts
                launch_backward(q, k, k, **arguments, out_grad=q, lse=lse, delta=lse, **grads)


def ring_cases():
    cubin_cases([RING])


def interval_cases():
    cubin_cases([INTERVAL])


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton")
@pytest.mark.parametrize(
    ("cases", "capability"),
    [
        pytest.param("interval", 80, marks=pytest.mark.long),
        ("cubin", 90),
        pytest.param("ring", 100, marks=pytest.mark.long),
    ],
)
def test_cubins_stay_within_limits(cases, capability):
    found = report(f"tests.ops.test_point_attention_cubins:{cases}_cases", capability)
    assert len(found) == 2 * len(HEAD_DIMS) * 3 * (1 + (cases == "cubin"))
    for i, kernel in enumerate(found):
        assert kernel["spills"] == 0, kernel
        assert kernel["stack"] == 0, kernel
        assert kernel["shared"] <= SHARED_LIMIT[capability], kernel
        assert kernel["registers"] * 32 * kernel["num_warps"] <= 65536, kernel
        if i < len(found) // 2:
            assert kernel["tensor_core"] > 0, kernel
