"""Each operator under pytest-benchmark: ours beside its plain PyTorch reference, after both were found right.

pytest benchmarks --benchmark-only
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks.cases import CASES

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
# bf16 products in plain PyTorch take seconds on a processor without bf16 instructions, so fp32 is what both can do.
DTYPE = torch.bfloat16 if DEVICE.type == "cuda" else torch.float32


@pytest.mark.parametrize("contender", ["ours", "eager-fp32"])
@pytest.mark.parametrize(("name", "rows"), [(name, rows) for name, (_, sizes) in CASES.items() for rows in sizes])
def test_op(benchmark: Any, name: str, rows: int, contender: str) -> None:
    with torch.no_grad():
        case = CASES[name][0](rows, DTYPE, DEVICE, compiled=False)
        run = case.contenders[contender]
        error = (run().double() - case.exact).abs().max().item()
        assert error <= case.allowance, f"{contender} is wrong by {error:.2e}; {case.allowance:.2e} is allowed"

        def timed() -> None:
            run()
            if DEVICE.type == "cuda":
                torch.cuda.synchronize()

        benchmark.group = f"{name}, {rows} rows"
        benchmark.extra_info |= {"dtype": str(DTYPE), "threads": torch.get_num_threads(), "error": error}
        benchmark.pedantic(timed, warmup_rounds=1, rounds=5)
