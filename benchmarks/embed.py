"""libenma beside the Python engine, for `benchmarks.compare embed`.

    python -m benchmarks.compare embed --preset combined-fast --members 1,16,64 --json

Both forecast the same members of one trajectory on one thread, from observed fields to fields, in turn; the weights
are the shipped ones, or random ones of the preset's size. What is counted is processor time, which other programs on
the machine disturb least.

* ``ours_s``, ``against``: a forecast as long as the model's training, by member, medians over rounds
* ``open_s``: opening the checkpoint, its hashes included, the least of all rounds
* ``call_s``: a step that hands out a frame which is decoded already: a call without arithmetic, by ctypes, whose
  arguments are made before; the least wall time
* ``memory_bytes``: what opening and forecasts of up to so many members add to resident memory; ``weights_bytes``: the
  checkpoint's file
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from ctypes import byref
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.forecast import SEED, random_model, wave
from benchmarks.harness import interleave, processor_seconds, ratios
from enma_fast.commands.embed import PREFIX
from enma_fast.errors import EnmaError
from enma_fast.forecasting.members import sample_fields
from enma_fast.models.checkpoint import PRETRAINED, available, load_model, save_model
from enma_fast.training.recipes import find_recipe
from tests.runtime._libenma import SONAME, Library, Tensor

LIBRARY = PREFIX / "lib" / SONAME
# Rounding of the convolutions, as a part of the largest value.
TOLERANCE = 2e-5


def resident() -> int:
    """Bytes of resident memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def checkpoint(preset: str, folder: Path) -> Path:
    """The shipped checkpoint of a preset, or one of random weights in `folder`."""
    if preset in available():
        return PRETRAINED / preset
    save_model(random_model(find_recipe(preset).model), folder)
    return folder


def call_seconds(session: Any, history: np.ndarray) -> float:
    """Least wall time of a step whose frame is there already."""
    seconds = []
    step = session.library.dll.enma_session_step
    frame = np.empty((session.num_members, *session.frame_shape), np.float32)
    out = byref(Tensor.of(frame))
    for _ in range(20):
        session.observe(history)
        session.step(frame)
        for _ in range(1, session.progress()[1]):
            before = time.perf_counter()
            step(session.handle, out)
            seconds.append(time.perf_counter() - before)
    return min(seconds)


def measure(preset: str, members: list[int], *, rounds: int, library: Path = LIBRARY) -> Iterator[dict[str, Any]]:
    """One row for each number of members; `EnmaError` without the library, or where the two forecasts differ."""
    if not library.exists():
        raise EnmaError(f"{library} is missing: install with a compiler, or give --library of `make libenma`")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as made:
        folder = checkpoint(preset, Path(made) / "checkpoint")
        model = load_model(folder)
        observed = wave(model.config)
        history = observed[0].numpy()
        library_of_c = Library(library)
        before = resident()
        open_s = min(processor_seconds(lambda: library_of_c.open(folder).close()) for _ in range(rounds))
        opened = library_of_c.open(folder)
        memory = {}
        # Before Python packs weights of its own.
        for count in members:
            opened.forecast(history, num_members=count, seed=SEED)
            memory[count] = resident() - before
        for count in members:

            def by_python(count: int = count) -> np.ndarray:
                return sample_fields(model, observed, num_members=count, seed=SEED)[0].numpy()

            def by_c(count: int = count) -> np.ndarray:
                return opened.forecast(history, num_members=count, seed=SEED)

            found = by_c()
            error = np.abs(found - (expected := by_python())).max() / np.abs(expected).max()
            # NaN is wrong too.
            if not error <= TOLERANCE:
                raise EnmaError(
                    f"{count} members of {preset} differ by {error:.1e} of the largest value; no time is reported"
                )
            whole = interleave({"ours": by_c, "python": by_python}, rounds=rounds, processor=True)
            seconds = {name: [each / count for each in rounds_of] for name, rounds_of in whole.items()}
            row = {"case": "embed", "preset": preset, "rows": count, "ours_s": statistics.median(seconds["ours"])}
            row |= {"per": "member", "against": ratios(seconds, "ours"), "error": float(error)}
            row |= {"call_s": call_seconds(opened.session(num_members=count), history), "open_s": open_s}
            row |= {"memory_bytes": memory[count], "rounds": rounds, "threads": 1}
            yield row | {"weights_bytes": (folder / "model.safetensors").stat().st_size}


def line(row: dict[str, Any]) -> str:
    """One row of the table for people."""
    python = row["against"]["python"]
    return (
        f"{row['preset']:<16} {row['rows']:>4} members: {1e3 * row['ours_s']:.2f} ms a member, Python "
        f"{1e3 * python['seconds']:.2f} ms, {python['ratio']:.2f}x ({python['ratio_min']:.2f} to "
        f"{python['ratio_max']:.2f}); a call {1e6 * row['call_s']:.1f} us, open {1e3 * row['open_s']:.0f} ms, "
        f"{row['memory_bytes'] / 1e6:.1f} MB"
    )
