"""Parts that all benchmarks share: interleaved timing, ceilings of the machine, and where a number was measured."""

from __future__ import annotations

import math
import os
import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch

from enma_fast.ops._backend import TRY
from enma_fast.ops.recordings import Recorder
from enma_fast.utils import system

# Seconds that a turn takes, or one call if that takes longer.
TURN = 0.02
# Calls of an operator in one graph.
REPEATS = 20


def interleave(
    contenders: Mapping[str, Callable[[], Any]],
    *,
    rounds: int,
    synchronise: bool = False,
    processor: bool = False,
) -> dict[str, list[float]]:
    """Seconds of a call of each contender in each round: A B C A B C ..., after one that is not counted.

    A short one is called so often that its turn lasts about 20 ms, or it would pay for caches that the one before it
    left.
    With `synchronise` the clock is the GPU's: from the first of its work to the last, not to when the launches return.
    With `processor` it is that of this process' time on the processor.
    """
    seconds_of = gpu_seconds if synchronise else processor_seconds if processor else _seconds
    calls = {name: _calls(run, seconds_of) for name, run in contenders.items()}
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, run in contenders.items():
            seconds[name].append(seconds_of(partial(_repeat, run, calls[name])) / calls[name])
    return seconds


def _calls(run: Callable[[], Any], seconds_of: Callable[[Callable[[], Any]], float]) -> int:
    """Calls that fill a turn, by the shorter of two: the first is the slower one."""
    seconds = seconds_of(run)
    if seconds < 10 * TURN:
        seconds = min(seconds, seconds_of(run))
    return max(1, math.ceil(TURN / max(seconds, 1e-6)))


def _repeat(run: Callable[[], Any], times: int) -> None:
    for _ in range(times):
        run()


def _seconds(run: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def processor_seconds(run: Callable[[], Any]) -> float:
    """Seconds of this process in a call."""
    begin = time.process_time()
    run()
    return time.process_time() - begin


def gpu_seconds(run: Callable[[], Any]) -> float:
    """Seconds between two events on the current stream, one before the work of `run` and one after it."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    begin.record()
    run()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3


def graphed(run: Callable[[], Any], recorder: Recorder) -> Callable[[], None] | None:
    """REPEATS calls one after the other as one CUDA graph, without the time of their launches; None where they fail.

    Timed by itself, an operator of a few microseconds is the time that Python takes to call it.
    """

    def calls() -> None:
        for _ in range(REPEATS):
            run()

    try:
        recorder.warm_up(run)
        return recorder.record(calls)
    # Triton's errors are no RuntimeErrors.
    except Exception:
        return None


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


def gemm_rate(dtype: torch.dtype, *, seconds: float = 0.5, device: torch.device | None = None) -> float:
    """Best FLOP/s of square matrix products of this dtype: of 1024, on a GPU 8192, by the current number of threads."""
    on_gpu = device is not None and device.type == "cuda"
    size = 8192 if on_gpu else 1024
    a = torch.randn(size, size, device=device).to(dtype)
    best, begin = float("inf"), time.perf_counter()
    while time.perf_counter() - begin < seconds or best == float("inf"):
        best = min(best, (gpu_seconds if on_gpu else _seconds)(lambda: a @ a))
    return 2 * size**3 / best


def machine() -> dict[str, Any]:
    """Where a number was measured: `system.machine`, versions, commit, and ENMA_GPU_TRY if it is set."""
    used = system.versions()
    found = {**system.machine(), "torch": used["torch"], "python": used["python"]}
    asked = os.environ.get(TRY)
    return {**found, "commit": system.commit() or "unknown", **({"tried": asked} if asked else {})}
