"""The frame step under test: models, tasks, the reference sampler in any dtype, and a stand-in for a CUDA graph."""

from __future__ import annotations

import contextlib
import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from enma_fast.models.decoders import flow
from enma_fast.models.model import Dynamics
from enma_fast.ops import _backend
from enma_fast.ops.flow_head import flow_head_ref
from enma_fast.ops.flow_plan import FlowPlan
from enma_fast.sampling import reference as reference_sampler
from enma_fast.sampling.settings import Size
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
    size = Size(
        rows=len(given.seeds),
        groups=given.groups,
        prefix_frames=sum(segment.shape[1] + 1 for segment in given.segments) + spare,
        own_frames=LATENTS - given.first - 1 + spare,
        slots=dynamics.config.slots(0 if spare else given.first),
        settings=dataclasses.replace(dynamics.config.sampling, **settings) if settings else dynamics.config.sampling,
    )
    return StaticStep(dynamics, size, dtype=dtype)


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
        segments,
        num_latents=LATENTS,
        seeds=given.seeds,
        members=given.members,
        settings=settings,
    )
    return torch.stack(list(frames), dim=1)


def in_float64(given: Problem) -> Problem:
    """The same numbers in float64."""
    return dataclasses.replace(given, segments=[segment.double() for segment in given.segments])


# Memory from the pool of the graph, and numbers that operators read on a CPU alone to check them.
FREE = {f"aten.{name}" for name in ("new_empty", "empty", "empty_like", "item", "aminmax")}
# Kernels of csrc/core/cuda/flow_head.cu: conditions, modulations, and the loop over the evaluations.
HEAD_LAUNCHES = 3
_best = _backend.best


@dataclass(frozen=True)
class Launch:
    """One launch on the tape."""

    function: Callable[..., None]
    node: str

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        self.function(*args, **kwargs)


class Tape(TorchDispatchMode):
    """A CUDA graph on a CPU: the operations of one call, repeated on the same tensors without its Python.

    Every number that Python held at the time of the recording is on the tape, so a step that is not fit for a graph
    gives a wrong frame. Operators run as their Triton kernels under the interpreter, each launch one entry.
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
            name = getattr(getattr(args[0], "fn", None), "__name__", "flow_head") if args else "flow_head"
            self.calls.append((Launch(function, name), args, kwargs, None))

        return recorded

    @property
    def nodes(self) -> Counter[str]:
        """Nodes that a graph would hold, by name: launches of kernels, and operations of PyTorch that are no views."""
        return Counter(filter(None, map(_node, self.calls)))

    def replay(self) -> None:
        for func, args, kwargs, before in self.calls:
            after = func(*args, **kwargs)
            pairs = zip(before, after, strict=True) if isinstance(before, tuple | list) else [(before, after)]
            for kept, new in pairs:
                # Views and results written in place are where they were.
                if isinstance(kept, Tensor) and kept.untyped_storage().data_ptr() != new.untyped_storage().data_ptr():
                    kept.copy_(new)


def _node(call: tuple[Any, ...]) -> str | None:
    """Name of the node that one entry of a tape is; None for one that launches nothing."""
    func, args, kwargs, out = call
    if isinstance(func, Launch):
        return func.node
    name = str(func.overloadpacket)
    # The kernels of an operator are entries of their own.
    if name in FREE or name.startswith("enma_fast."):
        return None
    given = {x.untyped_storage().data_ptr() for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
    results = [x.untyped_storage().data_ptr() for x in tree_leaves(out) if isinstance(x, Tensor)]
    return None if not func._schema.is_mutable and given.issuperset(results) else name


class TapeRecorder:
    """The recorder of `graphs.CapturedStep` on a CPU."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.monkeypatch = monkeypatch
        self.warm_ups = self.replays = 0
        # Nodes of each recording.
        self.nodes: list[Counter[str]] = []
        self.closed = False

    def warm_up(self, run: Callable[[], object]) -> None:
        # By the CPU's own operators: there is nothing to compile, and the interpreter takes seconds for a frame.
        self.warm_ups += 1
        run()

    def record(self, run: Callable[[], object]) -> Callable[[], None]:
        tape = Tape()
        with self._graph_operators(tape), tape:
            run()
        self.nodes.append(tape.nodes)

        def replay() -> None:
            self.replays += 1
            with torch.inference_mode():
                tape.replay()

        return replay

    def close(self) -> None:
        self.closed = True

    @contextlib.contextmanager
    def _graph_operators(self, tape: Tape | None = None) -> Iterator[None]:
        """Operators as a GPU runs them: their Triton kernels, and the flow head as the launches of its CUDA kernels."""

        def best(candidates: dict[str, str | None]) -> str | None:
            return "triton" if candidates.get("triton", "") is None else _best(candidates)

        def head(c: Tensor, noise: Tensor, *, plan: FlowPlan) -> Tensor:
            out = torch.empty_like(noise)
            launches = [lambda: None] * (HEAD_LAUNCHES - 1) + [lambda: out.copy_(flow_head_ref(c, noise, plan=plan))]
            for launch in launches if tape is None else map(tape.launch, launches):
                launch()
            return out

        with self.monkeypatch.context() as patch:
            patch.setattr(_backend, "best", best)
            patch.setattr(flow, "flow_head", head)
            if tape is not None:
                from triton.runtime.interpreter import GridExecutor

                run = GridExecutor.__call__
                patch.setattr(
                    GridExecutor, "__call__", lambda grid, *given, **options: tape.launch(run)(grid, *given, **options)
                )
            yield
