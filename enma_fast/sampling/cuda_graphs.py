"""The frame step as CUDA graphs: captured once, then one launch per frame.

    step = CapturedStep(StaticStep(...))    a graph for each kind of frame (fed back or the last), in one private pool
    step.begin(...)                         history and context: of lengths that are seen again, one launch too
    step.frame()                            one launch
    step.load(dynamics)                     other weights, and the same graphs
    step.close()                            frees graphs and pool; the static buffers belong to the StaticStep

What cannot be recorded raises the error of Torch, and the caller does without graphs (`ladder`). `Recordings` are the
graphs of what has the same shapes again and again: histories here, the codec in `map_rows`.
"""

from __future__ import annotations

import functools
import math
import threading
from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ..errors import EnmaError
from ..models.codecs.codec import Codec
from ..models.layers import prepared
from ..models.model import Dynamics
from .static_plan import StaticPlan
from .static_step import FrameKind, StaticStep

# The first call compiles and packs; the second does what the capture does.
WARM_UPS = 2
# Most recordings of one kind, which all keep their memory, and most values of a field whose encoding and decoding are
# recorded: with 32 channels of fp32 an activation of it is 128 MB. Larger ones spend their time in kernels.
MOST_RECORDINGS, MOST_VALUES = 16, 1 << 20
# Kinds of calls that are remembered to have been seen once.
_MOST_SEEN = 64


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
            # What other threads do on the device ends no capture of a mode of this thread.
            capture = torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local")
            with torch.cuda.device(self._device), capture:
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


class _Recording(NamedTuple):
    """A recorded call, the tensors that it reads, and the one that it writes, if it gives one."""

    inputs: list[Tensor]
    out: Tensor | None
    replay: Callable[[], None]


class Recordings:
    """Calls that are recorded when their kind is seen for the second time, and are one launch from then on.

    A call is a function of tensors that gives a tensor or None. All calls of one kind have inputs of the same shapes
    and types, and do the same work on the device. All calls are on one stream, since a recording has one memory.
    """

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._known: dict[Hashable, _Recording] = {}
        # Kinds that were seen once, the last of them.
        self._once: dict[Hashable, None] = {}
        self._records, self._lock = True, threading.Lock()

    def __call__(
        self, kind: Hashable, run: Callable[[Sequence[Tensor]], Tensor | None], inputs: Sequence[Tensor]
    ) -> Tensor | None:
        """The result of ``run(inputs)``."""
        with self._lock:
            recording = self._known.get(kind)
            if recording is None and self._records and len(self._known) < MOST_RECORDINGS:
                recording = self._seen(kind, run, inputs)
            if recording is not None:
                for there, given in zip(recording.inputs, inputs, strict=True):
                    there.copy_(given)
                recording.replay()
                return None if recording.out is None else recording.out.clone()
        return run(inputs)

    def _seen(
        self, kind: Hashable, run: Callable[[Sequence[Tensor]], Tensor | None], inputs: Sequence[Tensor]
    ) -> _Recording | None:
        """The recording of a kind that was seen before; None, and it is noted, for a new one."""
        if kind not in self._once:
            if len(self._once) == _MOST_SEEN:
                del self._once[next(iter(self._once))]
            self._once[kind] = None
            return None
        copies = [given.clone() for given in inputs]
        made: list[Tensor | None] = []
        self._recorder.warm_up(functools.partial(run, copies))
        replay = self._recorder.record(lambda: made.append(run(copies)))
        del self._once[kind]
        recording = self._known[kind] = _Recording(copies, made[0], replay)
        return recording

    def clear(self) -> None:
        """Forget all recordings, and record no more."""
        self._known, self._once, self._records = {}, {}, False


def codec_recordings(codec: Codec, *, rows: int, frames: int) -> Recordings | None:
    """Recordings of encoding and decoding with the weights that a codec has now; None without a GPU.

    Also None for more than `MOST_VALUES` of so many rows and frames on its grid, under autocast, and on another stream
    than the device's default.
    """
    device, config = codec.device, codec.config
    if device.type != "cuda" or rows * frames * math.prod(config.grid) * config.field_channels > MOST_VALUES:
        return None
    # A recording keeps the arithmetic of its time, and its memory is of one stream.
    if torch.is_autocast_enabled("cuda") or torch.cuda.current_stream(device) != torch.cuda.default_stream(device):
        return None
    kind = ("recordings", torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32)
    return prepared(codec, kind, lambda: Recordings(CudaRecorder(device)))


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
        self._readings = Recordings(recorder)
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

    @property
    def device(self) -> torch.device:
        """Device of the step."""
        return self._step.device

    @torch.inference_mode()
    def begin(self, segments: Sequence[Tensor], *, seeds: Tensor, members: Tensor, first: int) -> None:
        """Like :meth:`StaticStep.begin`: inputs are checked, and copied to the buffers that the graphs read."""
        self._step.check(segments, seeds, members, first)
        kind = (first, *((segment.shape[1], segment.dtype) for segment in segments))
        self._readings(kind, functools.partial(self._step.read_segments, first=first), segments)
        self._step.start(segments, seeds, members, first)

    def frame(self, *, last: bool = False) -> Tensor:
        """Like :meth:`StaticStep.frame`, in one launch."""
        if not self._replays:
            raise EnmaError("the captured step is closed; make a new one")
        self._replays[self._step.advance(last=last)]()
        return self._step.tokens_BNC

    def load(self, dynamics: Dynamics) -> None:
        """Like :meth:`StaticStep.load`; the graphs read the new weights."""
        self._step.load(dynamics)

    def close(self) -> None:
        """Free the graphs; the step itself can still be used."""
        self._replays = {}
        self._readings.clear()
        self._recorder.close()
        self._step.reset()
