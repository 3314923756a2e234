"""Parts that all benchmarks share: interleaved timing, ceilings of the machine, and where a number was measured."""

from __future__ import annotations

import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from enma_fast.utils import system


def interleave(
    contenders: Mapping[str, Callable[[], Any]], *, rounds: int, synchronise: bool = False
) -> dict[str, list[float]]:
    """Seconds of each contender in each round: A B C A B C ..., after one round that is not counted.

    With `synchronise` the clock stops when the GPU has finished, not when the launches return.
    """

    def seconds_of(run: Callable[[], Any]) -> float:
        if synchronise:
            torch.cuda.synchronize()
        begin = time.perf_counter()
        run()
        if synchronise:
            torch.cuda.synchronize()
        return time.perf_counter() - begin

    for run in contenders.values():
        seconds_of(run)
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, run in contenders.items():
            seconds[name].append(seconds_of(run))
    return seconds


def ratios(seconds: dict[str, list[float]], ours: str) -> dict[str, dict[str, float]]:
    """Per baseline: median seconds, and median, least and greatest of the ratios of one round to ours."""
    out = {}
    for name, values in seconds.items():
        if name != ours:
            each = [b / a for a, b in zip(seconds[ours], values, strict=True)]
            out[name] = {
                "seconds": statistics.median(values),
                "ratio": statistics.median(each),
                "ratio_min": min(each),
                "ratio_max": max(each),
            }
    return out


def gemm_rate(
    dtype: torch.dtype, *, size: int = 1024, seconds: float = 0.5, device: torch.device | None = None
) -> float:
    """Best FLOP/s of square matrix products of this dtype, with the current number of threads."""
    a = torch.randn(size, size, device=device).to(dtype)
    on_gpu = a.is_cuda
    best, begin = float("inf"), time.perf_counter()
    while time.perf_counter() - begin < seconds or best == float("inf"):
        start = time.perf_counter()
        a @ a
        if on_gpu:
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def machine() -> dict[str, Any]:
    """Where a number was measured: `enma_fast.utils.system.machine`, the versions that matter, and the commit."""
    commit = subprocess.run(
        ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"],
        capture_output=True,
        text=True,
        check=False,
    )
    used = system.versions()
    return {**system.machine(), "torch": used["torch"], "python": used["python"], "commit": commit.stdout.strip()}
