"""Each operator under pytest-benchmark: ours beside its plain PyTorch reference, after both were found right.

pytest --benchmark-only

A round makes as many calls as take about ROUND seconds, for one call of an operator may take less than the clock shows.
"""

from __future__ import annotations

import importlib
import math
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch

from benchmarks.cases import CASES
from enma_fast.ops._backend import best

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
# bf16 products in plain PyTorch take seconds on a processor without bf16 instructions, so fp32 is what both can do.
DTYPE = torch.bfloat16 if DEVICE.type == "cuda" else torch.float32
EAGER = "eager-bf16" if DEVICE.type == "cuda" else "eager-fp32"
ROUND = 0.05
# A call of these in plain PyTorch takes seconds on two cores.
LARGE = {("flow_head", 2048), ("frame_layer", 256)}
SIZES = [
    pytest.param(name, rows, marks=[pytest.mark.large] if (name, rows) in LARGE else [])
    for name, (_, sizes) in CASES.items()
    for rows in sizes
]


def calls_a_round(run: Callable[[], object]) -> int:
    """So many calls take about ROUND seconds; the first call, which may compile, is not counted."""
    run()
    begin = time.perf_counter()
    run()
    return min(1000, math.ceil(ROUND / max(time.perf_counter() - begin, 1e-9)))


@pytest.mark.parametrize("contender", ["ours", EAGER])
@pytest.mark.parametrize(("name", "rows"), SIZES)
def test_op(benchmark: Any, name: str, rows: int, contender: str) -> None:
    operator = importlib.import_module(f"enma_fast.ops.{name}")
    if best(operator.candidates(DEVICE, DTYPE)) == "reference":
        pytest.skip(f"ours is {EAGER} here: no other implementation of {name} serves {DEVICE.type}")
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
        benchmark.extra_info |= {
            "by": "ours" if contender == "ours" else "PyTorch",
            "dtype": str(DTYPE),
            "threads": torch.get_num_threads(),
            "error": error,
        }
        benchmark.pedantic(timed, warmup_rounds=1, rounds=11, iterations=calls_a_round(timed))
