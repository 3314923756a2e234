"""Work on a GPU that is recorded once as a CUDA graph, and is one launch from then on.

`Recordings` are the graphs of calls that come with the same shapes again and again.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

# Most recordings of one kind, which all keep their memory.
MOST_RECORDINGS = 16
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
        self._by_kind: dict[Hashable, _Recording] = {}
        # Kinds that were seen once, the last of them.
        self._once: dict[Hashable, None] = {}
        self._records, self._lock = True, threading.Lock()

    def __call__(
        self, kind: Hashable, run: Callable[[Sequence[Tensor]], Tensor | None], inputs: Sequence[Tensor]
    ) -> Tensor | None:
        """The result of ``run(inputs)``."""
        with self._lock:
            recording = self._by_kind.get(kind)
            if recording is None and self._records and len(self._by_kind) < MOST_RECORDINGS:
                recording = self._seen(kind, run, inputs)
            if recording is not None:
                for own, given in zip(recording.inputs, inputs, strict=True):
                    own.copy_(given)
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
        outputs: list[Tensor | None] = []
        self._recorder.warm_up(functools.partial(run, copies))
        replay = self._recorder.record(lambda: outputs.append(run(copies)))
        del self._once[kind]
        recording = self._by_kind[kind] = _Recording(copies, outputs[0], replay)
        return recording

    def clear(self) -> None:
        """Forget all recordings, and record no more."""
        self._by_kind, self._once, self._records = {}, {}, False
