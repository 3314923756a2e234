"""A GPU's stand-in on the CPU, whose engines climb the whole ladder and fail as a GPU's do."""

from __future__ import annotations

import logging
import subprocess
from collections.abc import Callable
from typing import Any

import pytest
from torch import Tensor

from enma_fast.forecasting.members import sample_fields
from enma_fast.models.model import Model
from enma_fast.sampling import cuda_graphs, engine, static_sampler, static_step
from enma_fast.sampling.cuda_graphs import CapturedStep

from .._tiny import waves

# Rounding of fp32 over the frames of a tiny model.
CLOSE = 2e-3


class CompilationError(Exception):
    """Stands in for Triton's, which is no RuntimeError."""


KERNEL_FAILURES: dict[str, Callable[[], Exception]] = {
    "triton": lambda: CompilationError("at 12:4: unsupported operand\nb_h = tl.load(p_x)"),
    "no compiler": lambda: RuntimeError("Failed to find C compiler. Please specify via CC environment variable."),
    "no Python.h": lambda: subprocess.CalledProcessError(1, ["gcc", "main.c"]),
    "no ptxas": lambda: FileNotFoundError(2, "No such file or directory", "ptxas"),
}


class StandInRecorder:
    """A CUDA graph that runs its work anew; `failure` is raised in place of a recording."""

    def __init__(self, failure: Exception | None) -> None:
        self.failure = failure
        self.recorded = 0

    def warm_up(self, run: Callable[[], object]) -> None:
        run()

    def record(self, run: Callable[[], object]) -> Callable[[], None]:
        self.recorded += 1
        if self.failure is not None:
            raise self.failure
        run()

        def replay() -> None:
            run()

        return replay

    def close(self) -> None:
        pass


class StandIn:
    """A device whose engines climb the whole ladder, on the CPU."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.monkeypatch, self.recorder = monkeypatch, StandInRecorder(None)
        self.proofs = self.steps = self.rows = 0
        device = self

        class Captured(CapturedStep):
            def __init__(self, step: Any) -> None:
                super().__init__(step, recorder=device.recorder)

        class Step(static_step.StaticStep):
            def __init__(self, *arguments: Any, **options: Any) -> None:
                device.steps += 1
                super().__init__(*arguments, **options)
                device.rows = self.size.rows

        prove = engine.Engine._prove

        def proved(*arguments: Any) -> None:
            device.proofs += 1
            prove(*arguments)

        monkeypatch.setattr(cuda_graphs, "WARM_UPS", 1)
        monkeypatch.setattr(static_sampler, "CapturedStep", Captured)
        monkeypatch.setattr(static_sampler, "StaticStep", Step)
        monkeypatch.setattr(engine.Engine, "_prove", proved)
        every = {"native": "is for CPUs", "graph": None, "static": None, "reference": None}
        monkeypatch.setattr(engine, "candidates", lambda *_: dict(every))

    def break_kernels(self, failure: Callable[[], Exception]) -> None:
        """A kernel of the static step raises this."""

        def raises(*_: Any, **__: Any) -> None:
            raise failure()

        self.monkeypatch.setattr(static_step, "heads_", raises)


def forecast(model: Model, *, members: int = 2, **given: Any) -> Tensor:
    history = waves(1, 1, 3, model.config.codec, seed=1)[0]
    return sample_fields(model, history, num_members=members, num_frames=4, **given)


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
