"""How fast this processor multiplies matrices in each number format: measured, since its flags do not say.

Some processors have instructions for bf16 and run them at half the rate of fp32, others have none and emulate them a
hundred times slower. So both are timed: products as PyTorch multiplies them (training), and the flow head as the
extension does (sampling on a CPU). That takes milliseconds, once for a processor and these versions: the rates are kept
in the user's cache folder.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..utils.files import write_atomic
from ..utils.system import machine, versions
from . import _flow_head_native
from ._backend import instruction_set
from .flow_plan import BlockWeights, FlowPlan, HeadWeights

FORMATS = {"fp32": torch.float32, "bf16": torch.bfloat16}
# Rows, and width of square weights: those of a training step, on a GPU large enough to fill it, and of the flow head.
TRAINING = {"cpu": (256, 256), "cuda": (4096, 4096)}
HEAD = (32, 128)
# Products where a format has no instructions take as long as this many: such a format is timed twice. Not once, since
# the first product of a format may take as long while code for it is generated (oneDNN: 30 ms, a product 0.2 ms).
SLOW = 20.0
ROUNDS = 7


@dataclass(frozen=True, kw_only=True)
class Rates:
    """FLOP/s in each number format, ``fp32`` and ``bf16``; `head` is empty where the extension does not serve."""

    products: dict[str, float]
    head: dict[str, float]

    @property
    def training(self) -> str:
        """The fastest format of products in training."""
        return max(self.products, key=self.products.__getitem__)

    @property
    def sampling(self) -> str:
        """The fastest format of weights while sampling."""
        rates = self.head or self.products
        return max(rates, key=rates.__getitem__)


def measured(device: torch.device) -> Rates:
    """Rates of this processor, or of this GPU; measured once and then read from the cache folder."""
    return _measured(device.type, device.index or 0)


@functools.cache
def _measured(kind: str, index: int) -> Rates:
    device = torch.device(kind, index) if kind == "cuda" else torch.device(kind)
    try:
        # By the XDG convention.
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "enma_fast"
    except RuntimeError:
        # Neither the environment nor the system names a home.
        return probe(device)
    path = folder / f"rates-{_key(device)}.json"
    try:
        document = json.loads(path.read_text())
        return Rates(products=_positive(document["products"]), head=_positive(document["head"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        rates = probe(device)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, json.dumps({"products": rates.products, "head": rates.head}).encode())
    except OSError:
        # A folder that cannot be written costs the next process a few milliseconds.
        pass
    return rates


def probe(device: torch.device) -> Rates:
    """Rates of one core of this processor, or of this GPU, measured now; random numbers and threads stay."""
    if device.type != "cpu":
        with torch.inference_mode(), torch.random.fork_rng([device.index or 0]):
            return Rates(products=_rates(_product, device), head={})
    # One thread: two that share a busy core wait for each other, which says nothing of a format. A thread that first
    # computes meanwhile keeps one.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode(), torch.random.fork_rng([]):
            return Rates(products=_rates(_product, device), head=_head_rates())
    finally:
        torch.set_num_threads(threads)


def _positive(rates: dict[str, Any]) -> dict[str, float]:
    """Rates as read from a file; `ValueError` if they are not such."""
    numbers = {name: float(rate) for name, rate in rates.items()}
    if not set(numbers) <= set(FORMATS) or any(not rate > 0 for rate in numbers.values()):
        raise ValueError("no rates")
    return numbers


def _key(device: torch.device) -> str:
    """Name of a file for this processor, its instructions, and the versions that multiply."""
    hardware, software = machine(), versions()
    name = hardware["cpu"] if device.type == "cpu" else torch.cuda.get_device_name(device)
    chosen = instruction_set() if device.type == "cpu" else None
    parts = [name, hardware["simd"], hardware["torch_simd"], chosen, software["torch"], software["enma-fast"]]
    return hashlib.sha256(json.dumps([device.type, *parts]).encode()).hexdigest()[:16]


def _head_rates() -> dict[str, float]:
    """Rates of the flow head in native code, of those formats that it takes."""
    served = [name for name, dtype in FORMATS.items() if _flow_head_native.problem(torch.device("cpu"), dtype) is None]
    return _rates(_head, torch.device("cpu"), served) if len(served) == len(FORMATS) else {}


Work = tuple[Callable[[], object], float]


def _product(dtype: torch.dtype, device: torch.device) -> Work:
    rows, width = TRAINING[device.type]
    # Autocast rounds activations to bf16 before the product.
    x, weight = torch.randn(rows, width, device=device), torch.randn(width, width, device=device).to(dtype)
    return lambda: x.to(dtype) @ weight, 2.0 * rows * width * width


def _head(dtype: torch.dtype, device: torch.device) -> Work:
    rows, W = HEAD
    C = 4

    def weight(*shape: int) -> torch.Tensor:
        return (torch.randn(shape) * shape[-1] ** -0.5).to(dtype)

    block = BlockWeights(
        modulation_weight=weight(3 * W, W),
        modulation_bias=weight(3 * W),
        up_weight=weight(W, W),
        up_bias=weight(W),
        down_weight=weight(W, W),
        down_bias=weight(W),
    )
    weights = HeadWeights(
        condition_weight=weight(W, W),
        condition_bias=weight(W),
        inward_weight=weight(W, C),
        inward_bias=weight(W),
        blocks=(block,),
        modulation_weight=weight(2 * W, W),
        modulation_bias=weight(2 * W),
        outward_weight=weight(C, W),
        outward_bias=weight(C),
    )
    steps = 4
    plan = FlowPlan(weights=weights, time_RW=weight(steps, W), moves=(1 / steps,) * steps, moves_per_step=1)
    c, noise = weight(rows, W), torch.randn(rows, C)
    return lambda: _flow_head_native.run(c, noise, plan), 2.0 * rows * W * (W + steps * (7 * W + 2 * C))


def _rates(
    work_of: Callable[[torch.dtype, torch.device], Work], device: torch.device, names: list[str] | None = None
) -> dict[str, float]:
    """Best rate of each format, in turn."""
    works = {name: work_of(FORMATS[name], device) for name in names or FORMATS}
    best = dict.fromkeys(works, float("inf"))
    for turn in range(ROUNDS):
        for name, (run, _) in works.items():
            if turn > 1 and best[name] > SLOW * min(best.values()):
                continue
            best[name] = min(best[name], seconds(run, device))
    return {name: works[name][1] / shortest for name, shortest in best.items()}


def seconds(run: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call, until the device is done with it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    begin = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begin
