"""Memory of a GPU that runs out, by a stand-in: chunks are halved, and what cannot be halved says so."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch

from enma_fast.errors import EnmaError
from enma_fast.forecasting.api import stream
from enma_fast.models.model import Model
from enma_fast.sampling import static_sampler, static_step
from enma_fast.sampling.engine import engine_for

from .._tiny import distance, waves
from ._stand_in import CLOSE, StandIn, forecast, warnings_of

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("where", ["the capture", "a kernel"])
def test_memory_that_runs_out_halves_the_chunk_and_leaves_no_rung(
    where: str, device: StandIn, model: Model, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = forecast(model, members=8, backend="reference")

    def fits(rows: int) -> None:
        if rows > 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    if where == "the capture":
        record = device.recorder.record
        # It follows the step that was made last.
        monkeypatch.setattr(device.recorder, "record", lambda run: (fits(device.rows), record(run))[1])
    else:
        heads = static_step.heads_
        monkeypatch.setattr(static_step, "heads_", lambda x, *a, **k: (fits(len(x)), heads(x, *a, **k))[1])
    assert distance(forecast(model, members=8, chunk=16), expected) < CLOSE
    assert engine_for(model.dynamics).backend == "graph"
    # 16 rows are asked for, and 8 are there.
    told = "out of memory: {} rows at a time; on this device results are rounded differently"
    assert warnings_of(caplog) == [told.format(n) for n in (4, 2)]


def test_members_that_are_in_memory_together_are_too_many(device: StandIn, model: Model) -> None:
    device.break_kernels(lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"))
    history = waves(1, 1, 3, model.config.codec, seed=1)[0]
    with pytest.raises(EnmaError, match="fewer"):
        next(stream(model, history, num_members=4, num_frames=4))
    with pytest.raises(EnmaError, match="fewer"):
        forecast(model, stop=lambda number, frame: False)


def test_steps_of_other_sizes_make_room(
    device: StandIn, model: Model, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    there: weakref.WeakSet[static_step.StaticStep] = weakref.WeakSet()

    class Alone(static_sampler.StaticStep):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            if there:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            super().__init__(*arguments, **options)
            there.add(self)

    monkeypatch.setattr(static_sampler, "StaticStep", Alone)
    expected = forecast(model, members=3, backend="reference")
    for members in (2, 3, 2):
        assert distance(forecast(model, members=members), expected[:members]) < CLOSE
    assert device.steps == 3
    assert not warnings_of(caplog)


def test_a_member_that_does_not_fit_says_so(device: StandIn, model: Model) -> None:
    device.break_kernels(lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"))
    with pytest.raises(EnmaError, match="CUDA"):
        forecast(model)
    assert engine_for(model.dynamics).backend == "graph"
