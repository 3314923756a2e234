"""Blocks of a run, sampled in the memory there is, and what a block takes.

Where no row sees another (`independent`), a block that does not fit is sampled by fewer rows at a time with the same
results. Elsewhere the number of rows decides how sums are rounded: it is part of a run's identity, and stays.

Shape suffixes: B trajectories, K members, T frames.
"""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from ..data import FieldFile
from ..errors import EnmaError, first_line
from ..forecasting.tasks import Case, forecast_rows, num_frames
from ..models.folding import folded_end
from ..models.model import Model
from ..ops import extension
from ..sampling.engine import engine_for
from .blocks import Block
from .fingerprint import fingerprint

log = logging.getLogger("enma_fast")

# What allocators and libraries say that have no memory left: PyTorch's on the CPU, C++, CUDA, cuBLAS.
_NO_MEMORY = ("can't allocate memory", "bad_alloc", "bad allocation", "out of memory", "STATUS_ALLOC_FAILED")


class BlockSampler:
    """Samples blocks of trajectories `rows` of a file, `chunk` rows at a time.

    Attributes
    ----------
    chunk
        Rows at a time; halves where they do not fit, which is then said and given to `remember`.
    independent
        Whether no row's result depends on those beside it.
    arithmetic
        What decides how results are rounded.
    """

    def __init__(self, model: Model, data: FieldFile, case: Case, rows: Sequence[int], *, name: str = "") -> None:
        self.model, self.data, self.case, self.rows = model, data, case, list(rows)
        # By which a fingerprint is known again; without one, that of this object.
        self.name = name or str(id(self))
        self.chunk = case.chunk
        self.forget()
        self._engine = engine_for(model.dynamics, dtype=case.dtype)
        self.independent = self._engine.backend == "native"
        how = self._engine.backend if self.independent else f"{self._engine.backend}, chunk {case.chunk}"
        # Fields from a folded decoder differ by rounding from those of a version that had none.
        folded = ", folded decoder" if folded_end(model.tokenizer) else ""
        self.arithmetic = f"{how}, {_instructions(next(model.parameters()).device)}{folded}"

    @property
    def device(self) -> str:
        """Kind of device that samples."""
        return next(self.model.parameters()).device.type

    def fingerprint(self) -> str:
        """The fingerprint of the arithmetic that samples, as it is set in this process now."""
        return fingerprint(self.model, self.name, settings=self.case.settings, dtype=self.case.dtype)

    def forget(self) -> None:
        """Have nothing remembered from now on."""
        self.remember: Callable[[int], None] = lambda chunk: None

    def parts(self, block: Block, parts: Sequence[Block]) -> Iterator[tuple[Block, np.ndarray]]:
        """Each of some parts of a block, and its members `[B, K, T, *x, c]`."""
        if self.independent or not parts:
            yield from ((part, self.sample(part)) for part in parts)
            return
        whole = self.sample(block)
        for part in parts:
            yield part, whole[part.b - block.b : part.b_end - block.b, part.k - block.k : part.k_end - block.k]

    def sample(self, block: Block, *, first_chunk: bool = False, **options: Any) -> np.ndarray:
        """Members of a block `[B, K, T, *x, c]`, or of its first chunk; `options` as those of `forecast_rows`.

        Raises
        ------
        EnmaError
            If a single row does not fit the memory, or so many that may not be fewer.
        """
        while True:
            part = self._first_chunk(block) if first_chunk else block
            try:
                return self._sample(part, **options)
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                rows = min(self.chunk, (part.b_end - part.b) * (part.k_end - part.k))
                self._refuse(rows, error)
            self.chunk = rows // 2
            self.remember(self.chunk)
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            log.warning("out of memory: %d rows at a time from now on; no result changes", self.chunk)

    def measure(self, block: Block) -> tuple[dict[str, int], float]:
        """Bytes by what they are for, and seconds a member, from a chunk of a block and few frames."""
        # All memory is taken at the first frame, and the weights are packed. Chunks that are stopped together are all
        # in memory, so there is one.
        self.sample(block, first_chunk=True, stop=lambda number, frame: True)
        block = self._first_chunk(block)
        memory = self._engine.planned_bytes()
        frames = num_frames(self.model.config, self.data, self.case)
        factor = self.model.config.tokenizer.time_factor
        short, long = min(frames, factor), min(frames, 2 * factor)
        seconds = []
        for length in (short, long):
            clock = time.perf_counter()
            self.sample(block, frames=length)
            seconds.append(time.perf_counter() - clock)
        # What two lengths differ in is the time of the frames between.
        per_frame = max(0.0, seconds[1] - seconds[0]) / max(1, long - short)
        whole = seconds[1] + (frames - long) * per_frame
        return memory, whole / (block.b_end - block.b) / (block.k_end - block.k)

    def _first_chunk(self, block: Block) -> Block:
        """Whole trajectories of a block, or members of its first, that are at most a chunk."""
        K = block.k_end - block.k
        b_end = min(block.b_end, block.b + max(1, self.chunk // K))
        return replace(block, b_end=b_end, k_end=block.k + min(K, self.chunk))

    def _sample(self, block: Block, **options: Any) -> np.ndarray:
        samples = forecast_rows(
            self.model,
            self.data,
            self.case,
            rows=self.rows[block.b : block.b_end],
            members=range(block.k, block.k_end),
            chunk=self.chunk,
            **options,
        )
        return samples.cpu().numpy()

    def _refuse(self, rows: int, error: Exception) -> None:
        reason = first_line(error)
        if rows == 1:
            raise EnmaError(f"one member does not fit the memory ({reason}); use another --device") from error
        if not self.independent:
            raise EnmaError(
                f"{rows} rows at a time do not fit the memory ({reason}); on this device their number decides how "
                f"results are rounded, so begin anew: --chunk {rows // 2} --force"
            ) from error


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a GPU or in the machine."""
    text = str(error)
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(words in text for words in _NO_MEMORY)


def _instructions(device: torch.device) -> str:
    """What runs the arithmetic: the GPU, or the instruction sets that PyTorch and the extension use."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    own = extension()
    return f"{torch.backends.cpu.get_cpu_capability()} {'' if own is None else own.cpu_isa()}".strip()
