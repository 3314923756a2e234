"""Blocks of a run are sampled in the memory there is, and the memory and time of a block are measured.

Where no row sees another (`independent`), a block that does not fit is sampled by fewer rows at a time with the same
results. Elsewhere the number of rows decides how sums are rounded: it is part of a run's identity, and stays.

Shape suffixes: B trajectories, K members, T frames.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch

from ..errors import EnmaError, first_line
from ..forecasting.file_forecast import FileForecast
from ..forecasting.members import Stop
from ..forecasting.memory import in_memory
from ..models.codecs.native import native_codec
from ..ops import instruction_set
from ..sampling.engine import engine_for
from .blocks import Block
from .fingerprint import fingerprint, made_up_member


class BlockSampler:
    """Samples blocks of a checked forecast, `chunk` rows at a time.

    `name` is that of the weights and config, by which their fingerprint is known again.

    Attributes
    ----------
    chunk
        Rows at a time; halves where they do not fit, with a warning, and the new number is given to `remember`.
    independent
        True if no row's result depends on those beside it.
    arithmetic
        Everything that decides how results are rounded, in words.
    """

    def __init__(self, forecast: FileForecast, *, name: str) -> None:
        self.forecast, self.name = forecast, name
        model, request = forecast.model, forecast.request
        self.chunk = request.rows
        self.forget()
        self._engine = engine_for(model.dynamics, dtype=request.dtype, backend=request.backend)
        if self.device != "cpu":
            # On a GPU a first frame shows which backend works there.
            made_up_member(model, settings=request.settings, dtype=request.dtype)
        self._begun_by = self._engine.arithmetic
        self.independent = self._begun_by == "native"
        how = self._begun_by if self.independent else f"{self._begun_by}, chunk {request.rows}"
        # Fields differ by rounding from those of a version that had no native tokenizer or no folded decoder.
        if native_codec(model.codec) is not None:
            tokenizer = ", native tokenizer"
        else:
            tokenizer = ", folded decoder" if model.codec.prepared_end() else ""
        self.arithmetic = f"{how}, {_instructions(next(model.parameters()).device)}{tokenizer}"

    @property
    def device(self) -> str:
        """Kind of device that samples."""
        return next(self.forecast.model.parameters()).device.type

    def fingerprint(self) -> str:
        """The fingerprint of the arithmetic that samples, as it is set in this process now."""
        request = self.forecast.request
        return fingerprint(self.forecast.model, self.name, settings=request.settings, dtype=request.dtype)

    def forget(self) -> None:
        """Remember no smaller chunk from now on."""
        self.remember: Callable[[int], None] = lambda chunk: None

    def parts(self, block: Block, parts: Sequence[Block]) -> Iterator[tuple[Block, np.ndarray]]:
        """Yield each of some parts of a block, and its members `[B, K, T, *x, c]`."""
        if self.independent or not parts:
            yield from ((part, self.sample(part)) for part in parts)
            return
        whole = self.sample(block)
        for part in parts:
            yield part, whole[part.b - block.b : part.b_end - block.b, part.k - block.k : part.k_end - block.k]

    def sample(
        self, block: Block, *, first_chunk: bool = False, num_frames: int | None = None, stop: Stop | None = None
    ) -> np.ndarray:
        """Members of a block `[B, K, T, *x, c]`, or of its first chunk; `num_frames` of them, by default all.

        `stop` is as that of `enma_fast.forecast`. `EnmaError` if a single row does not fit the memory, or a chunk that
        must not become smaller.
        """

        def sampled(chunk: int) -> np.ndarray:
            chosen = block.first_rows(chunk) if first_chunk else block
            part = chosen.part_of(self.forecast.request, chunk=chunk)
            part = part if num_frames is None else replace(part, num_frames=num_frames)
            members = self.forecast.sample(part, stop=stop).cpu().numpy()
            self._check_arithmetic()
            return members

        rows = (block.b_end - block.b) * (block.k_end - block.k)
        return in_memory(sampled, self.chunk, rows=rows, independent=self.independent, halved=self._halve)

    def measure(self, block: Block) -> tuple[dict[str, int], float]:
        """Bytes by their purpose, and seconds a member, from a chunk of a block and few frames."""
        # All memory is taken at the first frame, and the weights are packed. Chunks that are stopped together are all
        # in memory, so there is one.
        self.sample(block, first_chunk=True, stop=lambda number, frame: True)
        block = block.first_rows(self.chunk)
        memory = self._engine.planned_bytes()
        frames, factor = self.forecast.num_frames, self.forecast.model.config.codec.time_factor
        short, long = min(frames, factor), min(frames, 2 * factor)
        seconds = []
        for length in (short, long):
            clock = time.perf_counter()
            self.sample(block, num_frames=length)
            seconds.append(time.perf_counter() - clock)
        # The two lengths differ by the time of the frames between.
        per_frame = max(0.0, seconds[1] - seconds[0]) / max(1, long - short)
        whole = seconds[1] + (frames - long) * per_frame
        return memory, whole / (block.b_end - block.b) / (block.k_end - block.k)

    def _check_arithmetic(self) -> None:
        """Refuse members by another backend than the run began with, which rounds differently."""
        if (now := self._engine.arithmetic) != self._begun_by:
            raise EnmaError(
                f"the run began with members by {self._begun_by!r}, which has failed; {now!r} rounds differently, so "
                "begin anew: --force"
            )

    def _halve(self, chunk: int, error: Exception) -> None:
        """Remember a smaller chunk, or refuse it where it would round results differently."""
        if not self.independent:
            raise EnmaError(
                f"{self.chunk} rows at a time do not fit the memory ({first_line(error)}); on this device their number "
                f"decides how results are rounded, so begin anew: --chunk {chunk} --force"
            ) from error
        self.chunk = chunk
        self.remember(chunk)


def _instructions(device: torch.device) -> str:
    """The GPU, or the instruction sets that PyTorch and the extension use."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{torch.backends.cpu.get_cpu_capability()} {instruction_set() or ''}".strip()
