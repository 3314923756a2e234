"""Whether `torch.compile` compiles the steps of a stage: as asked for, or on a GPU where that is faster there."""

from __future__ import annotations

import logging
import statistics
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import first_line
from ..ops.rates import seconds
from .ranks import Rank

log = logging.getLogger("enma_fast")

Forward = Callable[..., Any]
# Computes a loss and its gradient by a module, or by its compiled twin.
Trial = Callable[[Forward], Tensor]

# Trials that compile and warm up, and those after them whose median counts.
_WARM_UPS, _TRIALS = 2, 7
# Relative difference of the two losses that rounding may make.
_ROUNDING = 0.02


def chosen_forward(module: nn.Module, *, asked: bool | None, device: torch.device, trial: Trial, rank: Rank) -> Forward:
    """The module, or its compiled twin.

    Parameters
    ----------
    asked
        True for the twin, False for the module, None for the faster one on a GPU and the module on a CPU.
    trial
        Is timed with both; the gradients that it leaves do not count.
    rank
        The first one chooses for all.
    """
    if asked is False or (asked is None and device.type != "cuda"):
        return module
    compiled = compile_module(module)
    faster = True if asked else rank.by_first(lambda: is_faster(compiled, module, trial, device))
    return compiled if faster else module


def compile_module(module: nn.Module) -> Forward:
    """The module under `torch.compile`, with the same weights; it compiles when it is called."""
    # The operators' choices are cached and do not change while a stage trains, so Dynamo may trace them.
    warnings.filterwarnings("ignore", message="Dynamo detected a call to a `functools.lru_cache`", category=UserWarning)
    return torch.compile(module)


def is_faster(compiled: Forward, module: Forward, trial: Trial, device: torch.device) -> bool:
    """True if a trial takes less time by the compiled module and gives the same loss up to rounding; says which."""
    expected, eager = _timed(module, trial, device)
    try:
        loss, quick = _timed(compiled, trial, device)
    # Dynamo's errors, and those of the compilers that it calls, have no class in common.
    except Exception as error:
        log.warning("steps are not compiled: %s: %s", type(error).__name__, first_line(error))
        return False
    same = abs(loss - expected) <= _ROUNDING * abs(expected)
    chosen = "compiled" if same and quick < eager else "not compiled"
    log.info("steps are %s: %.1f ms compiled, %.1f ms without", chosen, 1e3 * quick, 1e3 * eager)
    if not same:
        log.warning("steps are not compiled: the loss would be %.6g instead of %.6g", loss, expected)
    return chosen == "compiled"


def _timed(forward: Forward, trial: Trial, device: torch.device) -> tuple[float, float]:
    """Loss of a trial, and the median of its seconds."""
    losses = [float(trial(forward).detach()) for _ in range(_WARM_UPS)]
    return losses[-1], statistics.median(seconds(lambda: trial(forward), device) for _ in range(_TRIALS))
