"""The frame step as CUDA graphs: captured once, then one launch per frame.

    step = CapturedStep(StaticStep(...))    a graph for each kind of frame (fed back or the last), in one private pool
    step.begin(...)                         history and context: of lengths that are seen again, one launch too
    step.frame()                            one launch
    step.close()                            frees graphs and pool; the static buffers belong to the StaticStep

`try_capture` does the first line, and returns the uncaptured step if that fails; `Engine.captured` says so.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ..errors import EnmaError
from .static_plan import StaticPlan
from .static_step import FrameKind, StaticStep

logger = logging.getLogger(__name__)

# The first call compiles and packs; the second does what the capture does.
WARM_UPS = 2


class Recorder(Protocol):
    """Interface that records a call and repeats it: `CudaRecorder`, or a stand-in without a GPU."""

    def warm_up(self, run: Callable[[], object]) -> None:
        """Run on the stream of the recordings, without recording."""

    def record(self, run: Callable[[], object]) -> Callable[[], None]:
        """Record the work of `run` on the device; the returned function repeats it."""

    def close(self) -> None:
        """Free the recordings."""


class CudaRecorder:
    """CUDA graphs of one device that share a private pool and a side stream."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()
        self._graphs: list[torch.cuda.CUDAGraph] = []

    def warm_up(self, run: Callable[[], object]) -> None:
        """Run on the side stream."""
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.device(self._device), torch.cuda.stream(self._stream):
            run()
        current.wait_stream(self._stream)

    def record(self, run: Callable[[], object]) -> Callable[[], None]:
        """Capture a graph; the returned function launches it on the current stream."""
        graph = torch.cuda.CUDAGraph()
        index = torch.cuda.current_device() if self._device.index is None else self._device.index
        generator = torch.cuda.default_generators[index]
        # A capture that fails leaves the generator as it is within one, and it draws no number ever after.
        before = generator.clone_state()
        try:
            with torch.cuda.device(self._device), torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
                run()
        except BaseException:
            generator.graphsafe_set_state(before)
            raise
        self._graphs.append(graph)
        return graph.replay

    def close(self) -> None:
        """Wait for the graphs and destroy them; their pool is freed with the last one."""
        torch.cuda.synchronize(self._device)
        for graph in self._graphs:
            graph.reset()
        self._graphs.clear()


class _Reading(NamedTuple):
    """A recording of `StaticStep.read_segments`, and the tensors that it reads."""

    segments: list[Tensor]
    replay: Callable[[], None]


class CapturedStep:
    """A `StaticStep` whose frames are replayed from CUDA graphs; same interface, same bits.

    Every kind of frame is run twice, so that kernels compile and operators pack their weights, and is then recorded. A
    trajectory of the step that has begun is discarded. The second time that history and context have the same lengths,
    as in the second chunk of an ensemble, reading them is recorded; later ones are one launch.
    """

    def __init__(self, step: StaticStep, *, recorder: Recorder | None = None) -> None:
        if recorder is None:
            if step.device.type != "cuda":
                raise EnmaError(f"step is on {step.device}; CUDA graphs need a CUDA device")
            recorder = CudaRecorder(step.device)
        self._step, self._recorder = step, recorder
        self._replays: dict[FrameKind, Callable[[], None]] = {}
        # By lengths and types of the segments; None where these were seen once, or cannot be recorded.
        self._readings: dict[Hashable, _Reading | None] = {}
        self._records_readings = True
        try:
            for kind in step.kinds():
                for _ in range(WARM_UPS):
                    # A run appends its frame to the cache; the reset makes the next one overwrite it.
                    step.reset()
                    recorder.warm_up(functools.partial(step.run, kind))
            step.reset()
            for kind in step.kinds():
                self._replays[kind] = recorder.record(functools.partial(step.run, kind))
        except BaseException:
            self.close()
            raise
        step.reset()

    @property
    def plan(self) -> StaticPlan:
        """Static buffers of the step; the pool of the graphs is not counted."""
        return self._step.plan

    @torch.inference_mode()
    def begin(self, segments: Sequence[Tensor], *, seeds: Tensor, members: Tensor, first: int) -> None:
        """Like :meth:`StaticStep.begin`: inputs are checked, and copied to the buffers that the graphs read."""
        self._step.check(segments, seeds, members, first)
        kind = (first, *((segment.shape[1], segment.dtype) for segment in segments))
        reading = self._readings.get(kind)
        if reading is None and kind in self._readings and self._records_readings:
            reading = self._record_reading(segments, first)
        if self._replays:
            self._readings[kind] = reading
        if reading is None:
            self._step.read_segments(segments, first=first)
        else:
            for there, given in zip(reading.segments, segments, strict=True):
                there.copy_(given)
            reading.replay()
        self._step.start(segments, seeds, members, first)

    def _record_reading(self, segments: Sequence[Tensor], first: int) -> _Reading | None:
        """Record how segments of these lengths are read. If that fails, None, and none is recorded any more."""
        try:
            copies = [segment.clone() for segment in segments]
            read = functools.partial(self._step.read_segments, copies, first=first)
            self._recorder.warm_up(read)
            return _Reading(copies, self._recorder.record(read))
        except RuntimeError as error:
            self._records_readings = False
            _warn_once("histories are read", str(error).partition("\n")[0])
            return None

    def frame(self, *, last: bool = False) -> Tensor:
        """Like :meth:`StaticStep.frame`, in one launch."""
        if not self._replays:
            raise EnmaError("the captured step is closed; make a new one")
        self._replays[self._step.advance(last=last)]()
        return self._step.tokens_BNC

    def close(self) -> None:
        """Free the graphs; the step itself can still be used."""
        self._replays, self._readings = {}, {}
        self._recorder.close()
        self._step.reset()


def try_capture(step: StaticStep, *, recorder: Recorder | None = None) -> CapturedStep | StaticStep:
    """Capture the step as graphs, or return it unchanged if that fails; each reason is logged once."""
    try:
        return CapturedStep(step, recorder=recorder)
    # Torch raises RuntimeError for an operation that a graph cannot hold, and when the device is out of memory.
    except (EnmaError, RuntimeError) as error:
        _warn_once("frames run", str(error).partition("\n")[0])
        return step


@functools.cache
def _warn_once(what: str, reason: str) -> None:
    logger.warning("%s without a CUDA graph: %s", what, reason)
