"""The frame step as CUDA graphs: captured once, then one launch per frame.

    step = CapturedStep(StaticStep(...))    a graph for each kind of frame (fed back or the last), in one private pool
    step.begin(...)                         history and context: of lengths that are seen again, one launch too
    step.frame()                            one launch
    step.load(dynamics)                     other weights, and the same graphs
    step.close()                            frees graphs and pool; the static buffers belong to the StaticStep

What cannot be recorded raises the error of Torch, and the caller does without graphs (`ladder`). Histories here and the
codec in `map_rows` are `ops.recordings`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..errors import EnmaError
from ..models.codecs.codec import Codec
from ..models.layers import recordings_of
from ..models.model import Dynamics
from ..ops.recordings import CudaRecorder, Recorder, Recordings
from .static_plan import StaticPlan
from .static_step import FrameKind, StaticStep

# The first call compiles and packs; the second does what the capture does.
WARM_UPS = 2
# Most values of a field whose encoding and decoding are recorded: with 32 channels of fp32 an activation of it is
# 128 MB. Larger ones spend their time in kernels.
MOST_VALUES = 1 << 20


def codec_recordings(codec: Codec, *, rows: int, frames: int) -> Recordings | None:
    """Recordings of encoding and decoding (`layers.recordings_of`).

    None, too, for more than `MOST_VALUES` of so many rows and frames on the codec's grid.
    """
    if rows * frames * math.prod(codec.config.grid) * codec.config.field_channels > MOST_VALUES:
        return None
    return recordings_of(codec, codec.device)


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
