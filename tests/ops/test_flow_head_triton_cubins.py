"""The kernels of `flow_head` at the paper's size: no spills, within the limits of GPUs, on the tensor cores."""

from __future__ import annotations

import pytest
import torch

from enma_fast.ops._flow_head_triton import regime_of, run
from tests.ops._cubin import CAPABILITIES, SHARED_LIMIT, report
from tests.ops.test_flow_head_triton import make_plan

# Rows, and the token channels that go with them.
CASES = [(3, 4), (64, 16), (4096, 16)]


def _launch(dtype: torch.dtype) -> None:
    size = {"D": 512, "W": 512, "L": 3, "moves": (0.5, 1.0), "moves_per_step": 2, "dtype": dtype}
    plans = {C: make_plan(C=C, **size) for C in (4, 16)}
    for rows, C in CASES:
        run(torch.empty(rows, 512, dtype=dtype), torch.empty(rows, C), plans[C])
    assert {regime_of(rows) for rows, _ in CASES} == {"small", "medium"}


def cases_bfloat16() -> None:
    """Every kernel of each regime, on the tensor cores."""
    _launch(torch.bfloat16)


def cases_float32() -> None:
    """Every kernel of each regime, on the fp32 units."""
    _launch(torch.float32)


def many_channels() -> None:
    """The heads of models that are derived for planes of several channels."""
    plan = make_plan(C=256, D=256, W=256, L=1, moves=(0.5, 1.0), moves_per_step=2, dtype=torch.bfloat16)
    for rows in (3, 64):
        run(torch.empty(rows, 256, dtype=torch.bfloat16), torch.empty(rows, 256), plan)


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 89])
def test_many_channels_fit_the_shared_memory(capability: int) -> None:
    pytest.importorskip("triton")
    cubins = report("tests.ops.test_flow_head_triton_cubins:many_channels", capability)
    assert {"_move_kernel"} < {cubin["kernel"] for cubin in cubins}
    for cubin in cubins:
        assert cubin["shared"] <= SHARED_LIMIT[capability], cubin
        assert cubin["spills"] == 0, cubin


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("capability", CAPABILITIES)
def test_cubins(capability: int, dtype: str) -> None:
    pytest.importorskip("triton")
    cubins = report(f"tests.ops.test_flow_head_triton_cubins:cases_{dtype}", capability)
    # 2 evaluations of 3 blocks, in one chunk, one and two.
    assert len(cubins) == 3 * (2 * (2 * 3 + 1) + 2) + 2 * (1 + 1 + 2)
    for cubin in cubins:
        assert cubin["spills"] == 0, cubin
        assert cubin["stack"] == 0, cubin
        assert cubin["shared"] <= SHARED_LIMIT[capability], cubin
        assert cubin["registers"] * 32 * cubin["num_warps"] <= 65536, cubin
        products = cubin["kernel"] != "_inputs_kernel"
        assert (cubin["tensor_core"] > 0) == (products and dtype == "bfloat16"), cubin
        # Hopper's and Blackwell's fast products need 64 rows; kernels for fewer have 4 warps.
        many = cubin["num_warps"] == 8 or cubin["kernel"] == "_linear_kernel"
        expected = cubin["tensor_core"] if many and capability >= 90 else 0
        assert cubin["warp_group"] == expected, cubin
