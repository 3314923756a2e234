"""A GPU's failures, raised by a stand-in on the CPU: every forecast ends on a rung that works, and says once why."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from enma_fast.errors import EnmaError
from enma_fast.models.model import Model
from enma_fast.ops import _backend
from enma_fast.ops._backend import choose, plain
from enma_fast.sampling import engine, ladder, static_sampler, static_step
from enma_fast.sampling.batch_invariant import map_rows
from enma_fast.sampling.engine import engine_for
from enma_fast.sampling.ladder import Ladder, ladder_of, rungs_of
from enma_fast.training.rollouts import rollout_scores

from .._tiny import distance, waves
from .._tiny import model as tiny_model
from ._stand_in import CLOSE, KERNEL_FAILURES, CompilationError, StandIn, StandInRecorder, forecast, warnings_of

CAPTURE = "operation not permitted when stream is capturing"

pytestmark = pytest.mark.usefixtures("one_thread")


def test_what_works_is_proved_once_and_says_nothing(
    device: StandIn, model: Model, caplog: pytest.LogCaptureFixture
) -> None:
    expected = forecast(model, backend="reference")
    for _ in range(2):
        assert distance(forecast(model), expected) < CLOSE
    assert engine_for(model.dynamics).backend == "graph"
    # Another size is another recording, and no other proof.
    assert distance(forecast(model, members=3)[:2], expected) < CLOSE
    assert device.proofs == 1
    assert not warnings_of(caplog)


def test_a_capture_that_fails_ends_on_the_step(device: StandIn, model: Model, caplog: pytest.LogCaptureFixture) -> None:
    expected = forecast(model, backend="reference")
    device.recorder = StandInRecorder(RuntimeError(f"{CAPTURE}\nlong explanation"))
    for _ in range(2):
        assert distance(forecast(model), expected) < CLOSE
        assert engine_for(model.dynamics).backend == "static"
    assert (device.recorder.recorded, device.proofs) == (1, 1)
    assert warnings_of(caplog) == [
        f"frames are sampled by 'static' from now on; 'graph' fails: RuntimeError: {CAPTURE}"
    ]
    # An engine of new weights begins where that one stands.
    model.dynamics.context.embed.bias.add_(0.0)
    forecast(model)
    assert device.recorder.recorded == 1


def test_validations_of_a_training_record_each_size_once(
    device: StandIn, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields = waves(2, 3, model.config.num_frames, model.config.codec, seed=2)
    given: dict[str, Any] = {"val": fields[:3], "contexts": fields[3:], "members": 2}
    made, recorded = [], []
    for _ in range(3):
        for weight in model.dynamics.parameters():
            weight.data *= 1.02
            weight.add_(0.0)
        made.append(rollout_scores(model, **given))
        recorded.append(device.recorder.recorded)
    # Of forecasts from 3 frames, and from 1 and a context, whose reading is recorded in the second validation.
    assert (device.steps, device.proofs) == (2, 1)
    assert recorded == [recorded[0], recorded[0] + 2, recorded[0] + 2]
    # A copy of the model has steps of its own.
    other = copy.deepcopy(model)
    assert rollout_scores(other, **given) == made[-1] != made[0]
    assert device.steps == 4
    # Where they take too much memory each size takes the place of the other.
    monkeypatch.setattr(static_sampler, "MOST_BYTES", 1)
    assert rollout_scores(model, **given) == made[-1]
    assert rollout_scores(model, **given) == made[-1]
    assert device.steps == 4 + 3


def test_a_trajectory_in_use_keeps_its_weights(device: StandIn, model: Model) -> None:
    codec = model.config
    words = torch.zeros(1, dtype=torch.int64)
    given: dict[str, Any] = {"num_latents": 5, "seeds": words, "members": words}
    history = [torch.randn(1, 2, codec.num_tokens, codec.token_channels, generator=torch.Generator().manual_seed(3))]
    expected = list(engine_for(model.dynamics).trajectory(history, **given))
    frames = engine_for(model.dynamics).trajectory(history, **given)
    begun = [next(frames)]
    model.dynamics.context.embed.weight.mul_(1.5)
    other = list(engine_for(model.dynamics).trajectory(history, **given))
    assert torch.equal(torch.stack([*begun, *frames]), torch.stack(expected))
    again = list(engine_for(model.dynamics).trajectory(history, **given))
    assert torch.equal(torch.stack(other), torch.stack(again))
    assert distance(torch.stack(other), torch.stack(expected)) > 1e-3


@pytest.mark.parametrize("name", KERNEL_FAILURES)
def test_kernels_that_fail_end_on_plain_pytorch(
    name: str, device: StandIn, model: Model, caplog: pytest.LogCaptureFixture
) -> None:
    expected = forecast(model, backend="reference")
    device.break_kernels(KERNEL_FAILURES[name])
    for _ in range(2):
        assert torch.equal(forecast(model), expected)
        assert engine_for(model.dynamics).backend == "reference"
    # A step for each rung above, once.
    assert (device.steps, device.proofs) == (2, 0)
    failure = KERNEL_FAILURES[name]()
    reason = f"{type(failure).__name__}: {str(failure).splitlines()[0]}"
    assert warnings_of(caplog) == [
        f"frames are sampled by {lower!r} from now on; {upper!r} fails: {reason}"
        for upper, lower in (("graph", "static"), ("static", "reference"))
    ]


def test_kernels_that_give_other_values_end_on_plain_pytorch(
    device: StandIn, model: Model, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = forecast(model, backend="reference")
    swiglu = static_step.swiglu
    monkeypatch.setattr(static_step, "swiglu", lambda *given: 1.5 * swiglu(*given))
    assert torch.equal(forecast(model), expected)
    assert device.proofs == 2
    assert all("differs from the reference by" in warning for warning in warnings_of(caplog))
    monkeypatch.setattr(static_step, "swiglu", lambda *given: swiglu(*given) * float("nan"))
    ladder_of.cache_clear()
    assert torch.equal(forecast(model), expected)


def test_a_failure_of_a_later_size_ends_there_too(
    device: StandIn, model: Model, caplog: pytest.LogCaptureFixture
) -> None:
    expected = forecast(model, members=3, backend="reference")
    assert distance(forecast(model), expected[:2]) < CLOSE
    device.break_kernels(KERNEL_FAILURES["triton"])
    assert torch.equal(forecast(model, members=3), expected)
    assert len(warnings_of(caplog)) == 2


def test_a_kernel_of_later_frames_fails_before_the_first(
    device: StandIn, model: Model, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = forecast(model, backend="reference")
    run = static_step.StaticStep.run

    def fails_at_the_last(step: static_step.StaticStep, kind: Any) -> Tensor:
        if kind.last:
            raise KERNEL_FAILURES["triton"]()
        return run(step, kind)

    monkeypatch.setattr(static_step.StaticStep, "run", fails_at_the_last)
    assert torch.equal(forecast(model), expected)
    assert (device.proofs, len(warnings_of(caplog))) == (0, 2)


@pytest.mark.parametrize("rung", ladder.RUNGS)
def test_a_pinned_rung_is_the_only_one(
    rung: str, device: StandIn, model: Model, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = forecast(model, backend="reference")
    monkeypatch.setenv(ladder.VARIABLE, rung)
    assert distance(forecast(model), expected) < CLOSE
    assert engine_for(model.dynamics).backend == ladder.RUNGS[rung]
    ladder_of.cache_clear()
    device.break_kernels(KERNEL_FAILURES["no compiler"])
    other = tiny_model("relative-fast")
    if rung == "eager":
        assert torch.equal(forecast(other), expected)
    else:
        with pytest.raises(EnmaError, match=r"compiler.*ENMA_GPU"):
            forecast(other)
    assert not warnings_of(caplog)


def test_a_rung_that_cannot_be_pinned_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    problems = {"graph": "does not know the kind 'field'", "static": None}
    monkeypatch.setenv(ladder.VARIABLE, "graph")
    with pytest.raises(EnmaError, match=r"ENMA_GPU=graph.*field"):
        rungs_of(problems)
    monkeypatch.setenv(ladder.VARIABLE, "cuda")
    with pytest.raises(EnmaError, match=r"cuda.*eager"):
        rungs_of(problems)
    monkeypatch.delenv(ladder.VARIABLE)
    assert rungs_of(problems) == ("static", "reference")


@pytest.mark.parametrize("error", [EnmaError("seeds has shape [2]"), torch.OutOfMemoryError("CUDA out of memory")])
def test_errors_of_the_request_leave_no_rung(error: Exception) -> None:
    steps = Ladder("frames are sampled", ("graph", "reference"))

    def fails(rung: str) -> None:
        raise error

    with pytest.raises(type(error)):
        steps.climb(fails)
    assert steps.rung == "graph"


def test_the_last_rung_passes_its_error_on() -> None:
    steps = Ladder("frames are sampled", ("graph", "reference"))

    def fails(rung: str) -> None:
        raise KeyError(rung)

    with pytest.raises(KeyError, match="reference"):
        steps.climb(fails)


def test_fields_are_encoded_without_kernels_where_these_fail(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The meta device is one that is no CPU."""
    monkeypatch.setattr(_backend, "_find_interpreter", lambda: False)
    tried = []

    def function(rows: Tensor) -> Tensor:
        name = choose("an operator", {"triton": None, "native": "is for CPUs", "reference": None}, None)
        tried.append(name)
        if name == "triton":
            raise CompilationError("at 1:1: no")
        return rows + 1

    def recordings(kind: Any, run: Any, inputs: Any) -> Tensor:
        raise RuntimeError(CAPTURE)

    rows, steps = torch.zeros(2, 3, device="meta"), Ladder("fields", ("graph", "static", "reference"))
    for _ in range(2):
        given: dict[str, Any] = {"operation": "encode", "block": 1, "recordings": recordings, "ladder": steps}
        assert map_rows(function, rows, **given).shape == (2, 3)
    assert steps.rung == "reference"
    assert len(warnings_of(caplog)) == 2
    assert tried == ["triton", "reference", "reference"]


def test_plain_operators_launch_no_kernel_of_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_backend, "_find_interpreter", lambda: False)
    found = {"cuda": None, "triton": None, "flash": None, "native": None, "reference": None}
    assert choose("operator", found, None) == "cuda"
    with plain():
        assert choose("operator", found, None) == "native"
        assert choose("operator", found | {"native": "is for CPUs"}, None) == "reference"
        # One that is asked for runs.
        assert choose("operator", found, "triton") == "triton"
        with plain(False):
            assert choose("operator", found, None) == "cuda"
    assert choose("operator", found, None) == "cuda"


def test_between_two_frames_of_the_reference_operators_are_as_before(model: Model) -> None:
    codec = model.config
    frames = engine.Engine(model.dynamics, backend="reference").trajectory(
        [torch.randn(1, 2, codec.num_tokens, codec.token_channels)],
        num_latents=4,
        seeds=torch.zeros(1, dtype=torch.int64),
        members=torch.zeros(1, dtype=torch.int64),
    )
    for _ in frames:
        assert not _backend._plain.get()


class Kernels:
    """Stands in for the module of a kernel."""

    def __init__(self, launch: Callable[..., None]) -> None:
        self.launch_forward = launch


def _wrong(*_: Any, y: Tensor, **__: Any) -> None:
    y.fill_(1.0)


def _failing(*_: Any, **__: Any) -> None:
    raise CompilationError("Python.h: No such file or directory\ncompilation terminated")


@pytest.mark.parametrize(
    ("launch", "reason"),
    [(_failing, "CompilationError: Python.h: No such file or directory"), (_wrong, "its first kernel gives wrong")],
)
def test_triton_that_cannot_run_is_passed_over_with_one_warning(
    launch: Callable[..., None], reason: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(_backend, "kernel", lambda stem: Kernels(launch))
    cpu = torch.device("cpu")
    _backend.first_kernel_failure.cache_clear()
    for _ in range(2):
        failure = _backend.first_kernel_failure(cpu)
        assert failure is not None
        assert reason in failure
    _backend.first_kernel_failure.cache_clear()
    (warning,) = warnings_of(caplog)
    assert reason in warning


def test_triton_that_runs_has_no_problem() -> None:
    if not _backend.interpreted():
        pytest.skip("the interpreter stands in for a GPU")
    _backend.first_kernel_failure.cache_clear()
    assert _backend.first_kernel_failure(torch.device("cpu")) is None
    _backend.first_kernel_failure.cache_clear()
