"""Choice of the implementation that runs an operator; the only place that looks for CUDA, Triton and the extension.

Triton launches on the current device, so each operator makes that of its tensors current: `torch.cuda.device_of`.

Each operator lists its implementations best first, with the reason why one cannot serve (None: it can)::

    candidates = {"triton": triton_problem(device), "native": native_problem(device), "reference": None}
    choose("flow_head", candidates, backend)
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import importlib
import importlib.util
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..errors import EnmaError, first_line, out_of_memory
from ._checks import dtype_name

logger = logging.getLogger(__name__)

F = TypeVar("F", bound=Callable[..., Any])
_Value = TypeVar("_Value")

# Implementations that launch no kernel of Triton or of the extension on a GPU.
_PLAIN = ("native", "reference")
_plain = contextvars.ContextVar("plain", default=False)

# Begins the problem of what serves another kind of device; nobody misses it.
_OTHER_DEVICE = "needs a CUDA device"

# Names faster ways to compute on a GPU, with commas between them; none has run on a GPU yet.
TRY = "ENMA_GPU_TRY"
WAYS = ("products", "launches", "remote", "fields")
# With fewer rows launches count for more than products.
LIBRARY_ROWS = 1024

# Types that training's operators take where a gradient is asked for; float64 is for tests.
FUSED = (torch.float32, torch.bfloat16)

# Schemas live in one namespace, torch.ops.enma_fast; `define` and `impl` cost 3 us a call, the decorators 12 and more.
_LIBRARY = torch.library.Library("enma_fast", "FRAGMENT")


def register(schema: str, run: Callable[..., Any], fake: Callable[..., Any]) -> Callable[..., Any]:
    """Define ``torch.ops.enma_fast.<name>``, run by `run` on every device and traced by `fake`; returns it.

    A second derivative, through the operator of a gradient (``<name>_backward``), is an error; without a rule it is 0.
    """
    name = schema.partition("(")[0]
    _LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    for key in ("CPU", "CUDA"):
        _LIBRARY.impl(name, run, key)
    torch.library.register_fake(f"enma_fast::{name}", fake, lib=_LIBRARY)
    if name.endswith("_backward"):

        def refuse(*_: Any) -> Any:
            op = name.removesuffix("_backward")
            raise EnmaError(f"{op}: is differentiable once; for second derivatives use backend='reference'")

        torch.library.register_autograd(f"enma_fast::{name}", refuse, lib=_LIBRARY)
    return getattr(torch.ops.enma_fast, name).default


def recorded(*tensors: Tensor | None) -> bool:
    """True if autograd or the compiler follows this call, which then goes through the registered operator."""
    if torch.compiler.is_compiling():
        return True
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)


def fused_in_training(x: Tensor) -> bool:
    """True where a gradient is asked for in a type of FUSED; sampling takes plain forms, whose bits are fixed."""
    return torch.is_grad_enabled() and x.requires_grad and x.dtype in FUSED


@contextlib.contextmanager
def inside(variable: contextvars.ContextVar[_Value], value: _Value) -> Iterator[None]:
    """Inside, this thread's variable has this value."""
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)


def plain(on: bool = True) -> contextlib.AbstractContextManager[None]:
    """On a GPU, operators that are asked for no implementation run as PyTorch's own operations inside."""
    return inside(_plain, on)


def tried(way: str) -> bool:
    """True if ENMA_GPU_TRY names one of `WAYS`; `EnmaError` if it names another."""
    asked = [name for name in os.environ.get(TRY, "").split(",") if name]
    if unknown := [name for name in asked if name not in WAYS]:
        raise EnmaError(f"{TRY} has {unknown[0]!r}; expected some of {', '.join(WAYS)}")
    return way in asked


def by_library(rows: int) -> bool:
    """True where products of so many rows on a GPU are to be those of cuBLASLt, which PyTorch calls."""
    return rows >= LIBRARY_ROWS and tried("products")


def choose(op: str, candidates: Mapping[str, str | None], backend: str | None) -> str:
    """The implementation to run: the first that can, or the one asked for.

    `EnmaError` if `backend` is no implementation of the operator or cannot serve these arguments; says why.
    """
    if backend is None:
        if not torch.compiler.is_compiling() and _plain.get():
            candidates = {name: problem for name, problem in candidates.items() if name in _PLAIN}
        name = best(candidates)
        if name is None:
            reasons = "; ".join(f"{name}: {problem}" for name, problem in candidates.items())
            raise EnmaError(f"{op}: no implementation can run here ({reasons})")
        if torch.compiler.is_compiling():
            # A message would break the graph.
            return name
        better = list(candidates)[: list(candidates).index(name)]
        passed_over = [(n, candidates[n] or "the interpreter is for tests") for n in better]
        _say_once(op, name, tuple(x for x in passed_over if not x[1].startswith(_OTHER_DEVICE)))
        return name
    if backend not in candidates:
        raise EnmaError(f"{op}: backend {backend!r} is unknown; expected one of {', '.join(candidates)}")
    problem = candidates[backend]
    if problem is not None:
        raise EnmaError(f"{op}: backend {backend!r} cannot run: {problem}")
    return backend


def by_dtype(
    problems: Mapping[str, str | None], dtype: torch.dtype, takes: Mapping[str, Sequence[torch.dtype]]
) -> dict[str, str | None]:
    """The problems of implementations; one that has none cannot serve if it takes other dtypes than this."""
    reasons = dict(problems)
    for name, dtypes in takes.items():
        if reasons[name] is None and dtype not in dtypes:
            reasons[name] = f"takes {', '.join(map(dtype_name, dtypes))}, not {dtype_name(dtype)}"
    return reasons


def best(candidates: Mapping[str, str | None]) -> str | None:
    """The first implementation that can run."""
    for name, problem in candidates.items():
        # The interpreter is for tests: on a CPU it serves only when asked for.
        if problem is None and not (name == "triton" and interpreted()):
            return name
    return None


@functools.cache
def _say_once(op: str, name: str, passed_over: tuple[tuple[str, str], ...]) -> None:
    for problem in dict.fromkeys(problem for _, problem in passed_over):
        better = " or ".join(repr(other) for other, reason in passed_over if reason == problem)
        logger.info("%s runs as %r, not as %s: %s", op, name, better, problem)


@functools.cache
def extension() -> ModuleType | None:
    """The compiled extension, or None in a pure-Python install; `EnmaError` if ENMA_ISA is not one of this machine."""
    if importlib.util.find_spec("enma_fast._C") is None:
        return None
    module = importlib.import_module("enma_fast._C")
    try:
        module.cpu_isa()
    except ValueError as error:
        raise EnmaError(str(error)) from None
    return module


def instruction_set() -> str | None:
    """What the extension's kernels are compiled for that run here; None in a pure-Python install."""
    module = extension()
    return None if module is None else module.cpu_isa()


def _constant(function: F) -> F:
    """Mark what a process never changes, so that `torch.compile` takes its result and does not trace imports.

    This is `torch.compiler.assume_constant_result`, which imports the compiler: more than a second that few need.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


@_constant
def extension_problem() -> str | None:
    """Why the extension cannot be used."""
    if extension() is None:
        return "the extension enma_fast._C is not built (install without ENMA_FAST_NO_EXT)"
    return None


def native() -> Any:
    """The compiled extension, after a list of candidates has said that it is there."""
    module = extension()
    assert module is not None, extension_problem()
    return module


def native_problem(device: torch.device) -> str | None:
    """Why the extension cannot serve tensors on this device."""
    if device.type != "cpu":
        return f"runs on the CPU, the tensors are on {device}"
    return extension_problem()


@functools.cache
def _find_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


@_constant
def _triton_installed() -> bool:
    return _find_triton()


@functools.cache
def _find_interpreter() -> bool:
    return _find_triton() and bool(importlib.import_module("triton").knobs.runtime.interpret)


@_constant
def interpreted() -> bool:
    """True if Triton kernels run on the CPU, one program after the other (TRITON_INTERPRET=1, for tests)."""
    return _find_interpreter()


def cuda_problem(device: torch.device) -> str | None:
    """Why what runs on CUDA devices alone cannot serve tensors on this device."""
    return None if device.type == "cuda" else f"{_OTHER_DEVICE}, the tensors are on {device}"


def triton_problem(device: torch.device) -> str | None:
    """Why Triton cannot serve tensors on this device."""
    if interpreted():
        return None
    if (problem := cuda_problem(device)) is not None:
        return problem
    return (
        _triton_failure(device) if _triton_installed() else "triton is not installed (pip install 'enma-fast[triton]')"
    )


@_constant
def _triton_failure(device: torch.device) -> str | None:
    return first_kernel_failure(device)


@functools.cache
def first_kernel_failure(device: torch.device) -> str | None:
    """Why Triton cannot run on a GPU: the reason that a first kernel gives, logged once.

    It needs a C compiler and the headers of Python, and a driver that takes what it compiles.
    """
    x, weight = torch.arange(16.0, device=device)[None], torch.ones(16, device=device)
    y, none = torch.zeros_like(x), x.new_empty(0)
    try:
        with torch.cuda.device_of(x):
            kernel("rms_norm").launch_forward(x, weight, None, eps=1e-5, y=y, h=none, rstd=none)
        if torch.allclose(y, x * x.square().mean().rsqrt(), rtol=1e-4):
            return None
        reason = "its first kernel gives wrong values"
    # Errors of Triton and of the compilers that it calls have no class in common.
    except Exception as error:
        if out_of_memory(error):
            raise
        reason = f"{type(error).__name__}: {first_line(error)}"
    logger.warning("triton cannot run on %s, operators of PyTorch do: %s", device, reason)
    return f"triton cannot run: {reason}"


def kernel(stem: str) -> ModuleType:
    """The module of Triton kernels `enma_fast.kernels.<stem>`; importing it imports Triton."""
    return importlib.import_module(f"enma_fast.kernels.{stem}")
