"""A request has its bounds and defaults from one place, and every door has them from it."""

import inspect
from dataclasses import FrozenInstanceError, asdict, fields, replace

import numpy as np
import pytest
import torch

import enma_fast
from enma_fast.config import SamplingConfig
from enma_fast.errors import EnmaError
from enma_fast.forecasting import request as request_module
from enma_fast.forecasting.request import (
    GENERATION,
    INITIAL_VALUE,
    TASKS,
    TEMPORAL,
    ForecastRequest,
    dtype_named,
    task_named,
)
from enma_fast.sampling import engine
from enma_fast.sampling.static_plan import chunk_for
from enma_fast.training.recipes import RECIPES

from .._tiny import CONFIGS, model

BAD = [
    ("num_members", 0),
    ("num_members", -3),
    ("num_members", 2.0),
    ("num_members", True),
    ("num_members", 2**32 + 1),
    ("first_member", -1),
    ("first_member", 1.5),
    ("first_member", 2**32 - 15),
    ("num_frames", 0),
    ("num_frames", 2.5),
    ("num_frames", True),
    ("num_frames", 30_001),
    ("num_history", "three"),
    ("seed", 1.5),
    ("seed", "x"),
    ("seed", 2**64),
    ("seed", -(2**63) - 1),
    ("chunk", 0),
    ("dtype", "fastest"),
    ("dtype", np.float32),
    ("dtype", np.dtype("float32")),
    ("trajectories", 5),
    ("trajectories", [3, 3]),
]


@pytest.mark.parametrize(("name", "value"), BAD)
def test_a_value_out_of_bounds_is_refused_by_its_name(name: str, value: object) -> None:
    with pytest.raises(EnmaError, match=rf"^{name} ") as caught:
        ForecastRequest(**{name: value})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("number", [-1, 1.5, "a", True])
def test_trajectories_are_whole_numbers(number: object) -> None:
    with pytest.raises(EnmaError, match=r"^a trajectory is "):
        ForecastRequest(trajectories=[0, number])


def test_settings_that_would_hang_are_refused() -> None:
    with pytest.raises(EnmaError, match=r"^settings: sampling\.flow_steps is "):
        ForecastRequest(settings=replace(SamplingConfig(), flow_steps=10**6))


BAD_SETTINGS = [
    *((name, value) for name in ("mask_steps", "flow_steps", "shifts") for value in (0, -1, 2.5)),
    *((name, True) for name in ("mask_steps", "shifts", "temperature")),
    ("mask_steps", None),
    ("flow_steps", "3"),
    ("temperature", -1),
    ("temperature", float("nan")),
    ("temperature", float("inf")),
    ("temperature", "x"),
    ("temperature", None),
]


@pytest.mark.parametrize(("name", "value"), BAD_SETTINGS)
def test_settings_that_mean_nothing_are_refused_by_their_name(name: str, value: object) -> None:
    settings = replace(SamplingConfig(), **{name: value})
    with pytest.raises(EnmaError, match=rf"^settings: sampling\.{name} is ") as caught:
        ForecastRequest(settings=settings)
    assert "\n" not in str(caught.value)
    # A model has no others.
    with pytest.raises(EnmaError, match=rf"^relative: sampling\.{name} is "):
        replace(CONFIGS["relative"], sampling=settings)


def test_settings_are_a_config() -> None:
    with pytest.raises(EnmaError, match=r"^settings: sampling is a dict; a SamplingConfig is expected$"):
        ForecastRequest(settings={"temperature": 0.5})  # type: ignore[arg-type]
    # Numbers of numpy are numbers.
    settings = SamplingConfig(mask_steps=np.int64(3), temperature=np.float32(0), shifts=np.int32(1))  # type: ignore[arg-type]
    assert ForecastRequest(settings=settings).settings == settings


def test_what_is_just_within_the_bounds_is_taken() -> None:
    request = ForecastRequest(num_members=2**32, num_frames=30_000, seed=2**64 - 1, chunk=1, trajectories=range(3))
    assert (len(request.members), request.trajectories) == (2**32, (0, 1, 2))
    assert ForecastRequest(first_member=2**32 - 16).members[-1] == 2**32 - 1


def test_a_request_does_not_change() -> None:
    request = ForecastRequest(trajectories=[4, 2])
    with pytest.raises(FrozenInstanceError):
        request.seed = 3  # type: ignore[misc]
    assert hash(request) == hash(ForecastRequest(trajectories=(4, 2)))


def test_a_part_has_the_noise_of_the_whole() -> None:
    whole = ForecastRequest(trajectories=[4, 2, 9], first_member=10, num_members=6, seed=5, chunk=64)
    part = whole.part(slice(1, 3), slice(2, 4), chunk=8)
    assert (part.trajectories, part.members, part.chunk) == ((2, 9), range(12, 14), 8)
    changed = {"trajectories", "first_member", "num_members", "chunk"}
    assert {k: v for k, v in asdict(part).items() if k not in changed} == {
        k: v for k, v in asdict(whole).items() if k not in changed
    }


def test_tasks_have_names_and_what_the_model_sees() -> None:
    assert list(TASKS) == ["temporal", "initial-value", "generation"]
    assert (task_named(None), task_named(None, has_contexts=True)) == (TEMPORAL, INITIAL_VALUE)
    seen = [ForecastRequest(task=task, num_history=5).num_observed for task in TASKS.values()]
    assert seen == [5, 1, 0]
    assert [task.needs_context for task in TASKS.values()] == [False, True, True]
    assert not GENERATION.has_truth
    with pytest.raises(EnmaError, match=r"^task 'weather' is unknown"):
        task_named("weather")


@pytest.mark.parametrize(("precision", "dtype"), [(None, None), ("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_a_precision_is_a_dtype(precision: str | None, dtype: torch.dtype | None) -> None:
    assert dtype_named(precision) == dtype
    assert ForecastRequest(dtype=dtype).precision == (precision or "model")
    with pytest.raises(EnmaError, match=r"^precision 'fp8' is unknown"):
        dtype_named("fp8")


def test_forecasts_that_no_machine_holds_are_refused() -> None:
    with pytest.raises(EnmaError, match=r"use fewer at a time$"):
        ForecastRequest(num_members=2**32).check_memory(CONFIGS["relative"], 5)
    ForecastRequest(num_members=2**32).check_memory(CONFIGS["relative"], 5, at_once=1)


def test_the_numbers_of_members_take_memory_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_module, "memory", lambda: 10**11)
    with pytest.raises(EnmaError, match=r"use fewer at a time$"):
        ForecastRequest(num_members=2**32).check_memory(CONFIGS["points"], 1, num_points=1)
    ForecastRequest(num_members=2**29).check_memory(CONFIGS["points"], 1, num_points=1)


def test_the_memory_of_forecasts_on_a_gpu_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_module, "memory", lambda: 10**14)
    monkeypatch.setattr(request_module, "gpu_memory", lambda device: 10**11)
    request, gpu = ForecastRequest(num_members=2**32), torch.device("cuda", 1)
    with pytest.raises(EnmaError, match="GPU"):
        request.check_memory(CONFIGS["points"], 1, num_points=1, device=gpu)
    request.check_memory(CONFIGS["points"], 1, num_points=1, device=torch.device("cpu"))
    request.check_memory(CONFIGS["points"], 1, num_points=1, at_once=2**29, device=gpu)


# Keywords of `score` and the fields of the request that they are.
NAMES = {"history": "num_history", "members": "num_members"}


@pytest.mark.parametrize("door", [enma_fast.forecast, enma_fast.stream, enma_fast.score])
def test_every_door_has_the_defaults_of_the_request(door: object) -> None:
    known = {field.name: field.default for field in fields(ForecastRequest)}
    given = inspect.signature(door).parameters  # type: ignore[arg-type]
    names = NAMES if door is enma_fast.score else {}
    shared = {names.get(name, name): p.default for name, p in given.items() if p.default is not inspect.Parameter.empty}
    # One member of an array and all rows of a stream at a time are defaults of these functions alone.
    own = set() if door is enma_fast.score else {"num_members"} | ({"chunk"} if door is enma_fast.stream else set())
    found = {name: value for name, value in shared.items() if name in known and name not in own | {"task"}}
    assert found == {name: known[name] for name in found}
    assert len(found) >= 5


def test_a_gpu_has_its_own_chunk_and_number_format(monkeypatch: pytest.MonkeyPatch) -> None:
    made = model()
    assert ForecastRequest().on(made) == ForecastRequest(settings=made.config.sampling)
    assert ForecastRequest().rows == 64
    # A GPU of 50 MiB of level-2 cache, by what the request asks of it.
    monkeypatch.setattr(engine, "weights_dtype", lambda dynamics, dtype, backend: dtype or torch.bfloat16)
    monkeypatch.setattr(engine, "rows_at_once", lambda dynamics, num_frames: 256)
    there = ForecastRequest().on(made)
    assert (there.dtype, there.rows, there.precision) == (torch.bfloat16, 256, "bf16")
    asked = ForecastRequest(dtype=torch.float32, chunk=8)
    assert asked.on(made) == replace(asked, settings=made.config.sampling)


def test_the_chunk_of_a_gpu_goes_by_its_cache() -> None:
    combined, vorticity = (RECIPES[name].model for name in ("combined-paper", "vorticity-paper"))
    h100, a100, l4 = (megabytes << 20 for megabytes in (50, 40, 48))
    assert [chunk_for(combined, num_frames=20, cache=cache, free=70 << 30) for cache in (h100, a100, l4)] == [
        256,
        128,
        256,
    ]
    assert chunk_for(vorticity, num_frames=20, cache=h100, free=70 << 30) == 128
