"""The frame step under test: models, tasks, the reference sampler in any dtype, and a stand-in for a CUDA graph."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from enma_fast.models.model import Dynamics
from enma_fast.ops import _backend, frame_attention
from enma_fast.sampling import reference as reference_sampler
from enma_fast.sampling.static_step import StaticStep

from ._tiny import CONFIGS, shaken

LATENTS = 5
# Observed frames of the target and of a context.
TASKS: dict[str, tuple[int, int | None]] = {"temporal": (2, None), "initial-value": (1, 4), "generation": (0, 4)}


def build(name: str) -> Dynamics:
    """Dynamics with random weights everywhere."""
    torch.manual_seed(0)
    return shaken(Dynamics(CONFIGS[name])).eval().requires_grad_(False)


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Trajectories `[G, T, N, C]` to go on from, and the noise keys of their members."""

    segments: list[Tensor]
    seeds: Tensor
    members: Tensor

    @property
    def first(self) -> int:
        return self.segments[-1].shape[1]

    @property
    def groups(self) -> int:
        return self.segments[-1].shape[0]

    def to(self, device: torch.device) -> Problem:
        segments = [segment.to(device) for segment in self.segments]
        return Problem(segments=segments, seeds=self.seeds.to(device), members=self.members.to(device))


def problem(dynamics: Dynamics, task: str, *, groups: int = 2, members: int = 2, seed: int = 7) -> Problem:
    """`members` members of each of `groups` trajectories."""
    generator = torch.Generator().manual_seed(seed)
    N, C = dynamics.config.num_tokens, dynamics.config.token_channels
    observed, context = TASKS[task]
    counts = [observed] if context is None else [context, observed]
    return Problem(
        segments=[torch.randn(groups, count, N, C, generator=generator) for count in counts],
        seeds=torch.arange(3, 3 + groups).repeat_interleave(members),
        members=torch.arange(members).repeat(groups),
    )


def make_step(
    dynamics: Dynamics, given: Problem, *, spare: int = 0, dtype: torch.dtype | None = None, **settings: Any
) -> StaticStep:
    """A step of the size of a problem, with room for `spare` frames more."""
    return StaticStep(
        dynamics,
        rows=len(given.seeds),
        groups=given.groups,
        prefix_frames=sum(segment.shape[1] + 1 for segment in given.segments) + spare,
        own_frames=LATENTS - given.first - 1 + spare,
        initial=given.first == 0 or spare > 0,
        settings=dataclasses.replace(dynamics.config.sampling, **settings) if settings else dynamics.config.sampling,
        dtype=dtype,
    )


def generate(step: Any, given: Problem) -> Tensor:
    """All generated frames `[B, T, N, C]`."""
    step.begin(given.segments, seeds=given.seeds, members=given.members, first=given.first)
    return torch.stack([step.frame(last=t == LATENTS - 1).clone() for t in range(given.first, LATENTS)], dim=1)


def reference(dynamics: Dynamics, given: Problem, settings: Any = None) -> Tensor:
    """The frames of `reference.trajectory`."""
    per_group = len(given.seeds) // given.groups
    segments = [segment.repeat_interleave(per_group, 0) for segment in given.segments]
    frames = reference_sampler.trajectory(
        dynamics,
        segments[-1],
        num_latents=LATENTS,
        seeds=given.seeds,
        members=given.members,
        context=segments[0] if len(segments) > 1 else None,
        settings=settings,
    )
    return torch.stack(list(frames), dim=1)


def in_float64(given: Problem) -> Problem:
    """The same numbers in float64."""
    return dataclasses.replace(given, segments=[segment.double() for segment in given.segments])


class Tape(TorchDispatchMode):
    """A CUDA graph on a CPU: the operations of one call, repeated on the same tensors without its Python.

    Every number that Python held at the time of the recording is on the tape, so a step that is not fit for a graph
    gives a wrong frame. Attention runs as its Triton kernels under the interpreter, which read lengths from memory.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any], Any]] = []
        self.paused = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not self.paused:
            self.calls.append((func, args, kwargs or {}, out))
        return out

    def launch(self, function: Callable[..., None]) -> Callable[..., None]:
        """A launcher of Triton kernels, on the tape as one operation."""

        def recorded(*args: Any, **kwargs: Any) -> None:
            self.paused = True
            function(*args, **kwargs)
            self.paused = False
            self.calls.append((function, args, kwargs, None))

        return recorded

    def replay(self) -> None:
        for func, args, kwargs, before in self.calls:
            after = func(*args, **kwargs)
            pairs = zip(before, after, strict=True) if isinstance(before, tuple | list) else [(before, after)]
            for kept, new in pairs:
                # Views and results written in place are where they were.
                if isinstance(kept, Tensor) and kept.untyped_storage().data_ptr() != new.untyped_storage().data_ptr():
                    kept.copy_(new)


class TapeRecorder:
    """The recorder of `graphs.CapturedStep` on a CPU."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.monkeypatch = monkeypatch
        self.warm_ups = self.replays = 0
        # Operations of each recording.
        self.nodes: list[int] = []
        self.closed = False

    def warm_up(self, run: Callable[[], object]) -> None:
        self.warm_ups += 1
        with self._graph_operators():
            run()

    def record(self, run: Callable[[], object]) -> Callable[[], None]:
        tape = Tape()
        with self._graph_operators(tape), tape:
            run()
        self.nodes.append(len(tape.calls))

        def replay() -> None:
            self.replays += 1
            with torch.inference_mode():
                tape.replay()

        return replay

    def close(self) -> None:
        self.closed = True

    @contextlib.contextmanager
    def _graph_operators(self, tape: Tape | None = None) -> Iterator[None]:
        """Operators made of recordable operations."""
        kernels = _backend.kernel("frame_attention")

        class Recorded:
            launch_prefix = staticmethod(tape.launch(kernels.launch_prefix) if tape else kernels.launch_prefix)
            launch_suffix = staticmethod(tape.launch(kernels.launch_suffix) if tape else kernels.launch_suffix)

        def best(candidates: dict[str, str | None]) -> str:
            return "triton" if "sdpa" in candidates else "reference"

        with self.monkeypatch.context() as patch:
            patch.setattr(_backend, "best", best)
            patch.setattr(frame_attention, "kernel", lambda stem: Recorded)
            yield
