"""Blocks are sampled in the memory there is: by fewer rows where that changes nothing, and else not at all."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from enma_fast.errors import EnmaError, out_of_memory
from enma_fast.forecasting.file_forecast import FileForecast
from enma_fast.forecasting.request import ForecastRequest
from enma_fast.sampling import native
from enma_fast.sampling.engine import engine_for
from enma_fast.sampling.native import NativeSampler
from enma_fast.store.layout import LEDGER, member_file
from enma_fast.store.ledger import Ledger, write_ledger

from .._files import contents
from .._runs import prepare


@pytest.fixture
def at_most(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Rows that fit from now on; gives the list of what is tried."""
    sample, tried = FileForecast.sample, []

    def set_limit(limit: int, error: Exception | None = None) -> list[int]:
        def limited(forecast: FileForecast, part: ForecastRequest, **options: Any) -> torch.Tensor:
            tried.append(min(part.chunk, len(part.trajectories or ()) * part.num_members))
            if tried[-1] > limit:
                raise error or MemoryError()
            return sample(forecast, part, **options)

        monkeypatch.setattr(FileForecast, "sample", limited)
        return tried

    return set_limit


@pytest.fixture
def dependent(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sampler whose results depend, and here surely, on how many rows go together."""
    sample = FileForecast.sample
    monkeypatch.setattr(native, "problem", lambda device, dtype, head_dim: "is not to serve here")

    def depending(forecast: FileForecast, part: ForecastRequest, **options: Any) -> torch.Tensor:
        return sample(forecast, part, **options) + 1e-3 * part.num_members

    monkeypatch.setattr(FileForecast, "sample", depending)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("x"), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), True),
        (RuntimeError("std::bad_alloc"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("shapes differ"), False),
        (ValueError("memory"), False),
    ],
)
def test_out_of_memory_is_recognised(error: Exception, expected: bool) -> None:
    assert out_of_memory(error) == expected


ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory"),
    MemoryError(),
    RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried to"),
    RuntimeError("std::bad_alloc"),
]


@pytest.mark.each_value
@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("keep_members", [True, False])
def test_too_little_memory(
    test_in: Path,
    tiny: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    at_most: Any,
    error: Exception,
    keep_members: bool,
) -> None:
    common = {"checkpoint": tiny, "num_members": 11, "trajectories": [4, 5], "chunk": 16, "keep_members": keep_members}
    prepare(test_in, tmp_path / "whole.zarr", **common).execute()
    tried = at_most(3, error)
    out, seen = tmp_path / "run.zarr", []

    def stop(done: int, total: int) -> None:
        seen.append(done)
        if len(seen) == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(test_in, out, **common).execute(stop)
    warnings = [record.getMessage() for record in caplog.records]
    # A block has 11 rows, however many a chunk may have.
    assert tried[:3] == [11, 5, 2]
    assert warnings == [f"out of memory: {n} rows at a time from now on; no result changes" for n in (5, 2)]
    ledger = Ledger(out / LEDGER, 22 if keep_members else 2)
    assert ledger.chunk == 2
    ledger.close()
    tried.clear()
    caplog.clear()
    prepare(test_in, out, **common).execute()
    # A later run knows.
    assert set(tried) <= {1, 2}
    assert not caplog.records
    assert contents(out) == contents(tmp_path / "whole.zarr")


def test_one_member_that_is_too_much(
    test_in: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*arguments: object, **options: object) -> None:
        raise MemoryError("of 3 GB")

    monkeypatch.setattr(FileForecast, "sample", never)
    with pytest.raises(EnmaError, match="--device"):
        prepare(test_in, tmp_path / "run.zarr", checkpoint=tiny, num_members=5, trajectories=[0]).execute()
    monkeypatch.undo()
    assert prepare(test_in, tmp_path / "run.zarr", checkpoint=tiny, num_members=5, trajectories=[0]).execute()


def test_other_errors_are_not_taken_for_it(
    test_in: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: object, **options: object) -> None:
        raise RuntimeError("shapes cannot be multiplied")

    monkeypatch.setattr(FileForecast, "sample", broken)
    with pytest.raises(RuntimeError, match="shapes"):
        prepare(test_in, tmp_path / "run.zarr", checkpoint=tiny, num_members=5, trajectories=[0]).execute()


def test_a_plan_finds_out_too_and_the_run_knows(
    test_in: Path, tiny: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, at_most: Any
) -> None:
    common = {"checkpoint": tiny, "num_members": 40, "trajectories": [4], "chunk": 16}
    prepare(test_in, tmp_path / "whole.zarr", **common).execute()
    tried = at_most(5)
    run = prepare(test_in, tmp_path / "run.zarr", **common)
    plan = run.plan(measure=True)
    assert tried == [16, 8, 4, 4, 4]
    assert (plan.chunk, plan.members_missing) == (4, 40)
    assert plan.memory["fields"] == 3 * 4 * 17 * 128 * 4

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run.execute(stop)
    assert len(caplog.records) == 2
    tried.clear()
    again = prepare(test_in, tmp_path / "run.zarr", **common)
    assert again.plan(measure=True).chunk == 4
    again.execute()
    assert set(tried) == {4}
    assert len(caplog.records) == 2, "it is said once"
    assert contents(tmp_path / "run.zarr") == contents(tmp_path / "whole.zarr")


@pytest.mark.parametrize(("members", "select"), [(40, [4]), (3, [4, 5, 6, 7, 8])])
def test_a_plan_holds_one_chunk_at_a_time(
    test_in: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, members: int, select: list[int]
) -> None:
    """Rows in memory are counted where they take it."""
    original, asked = NativeSampler.trajectory, []

    def limited(sampler: NativeSampler, *arguments: Any, seeds: torch.Tensor, **options: Any) -> Any:
        asked.append(len(seeds))
        if sum(asked) > 4:
            asked.clear()
            raise MemoryError
        try:
            yield from original(sampler, *arguments, seeds=seeds, **options)
        finally:
            asked.clear()

    monkeypatch.setattr(NativeSampler, "trajectory", limited)
    run = prepare(test_in, tmp_path / "run.zarr", checkpoint=tiny, num_members=members, trajectories=select, chunk=16)
    assert run.plan(measure=True).chunk in (3, 4)


@pytest.mark.parametrize(("members", "select", "chunk"), [(20, [4], 8), (3, [4, 5, 6], 7)])
def test_the_memory_of_a_short_chunk_tells_that_of_a_whole_one(
    test_in: Path, tiny: Path, tmp_path: Path, members: int, select: list[int], chunk: int
) -> None:
    run = prepare(
        test_in, tmp_path / "run.zarr", checkpoint=tiny, num_members=members, trajectories=select, chunk=chunk
    )
    plan = run.plan(measure=True)
    run.sampler.sample(run._blocks()[0])
    planned = engine_for(run.sampler.forecast.model.dynamics).planned_bytes()
    assert planned["keys_values"] > 0
    assert {name: plan.memory[name] for name in planned} == planned


def test_where_rows_depend_on_their_number_a_block_is_repeated_whole(
    test_in: Path, tiny: Path, tmp_path: Path, dependent: None, at_most: Any
) -> None:
    common = {"checkpoint": tiny, "num_members": 11, "trajectories": [4, 5], "chunk": 6}
    out = tmp_path / "run.zarr"
    run = prepare(test_in, out, **common)
    run.execute()
    whole = contents(out)
    assert "reference, chunk 6, " in run.layout.attributes["arithmetic"]
    told = prepare(test_in, tmp_path / "other.zarr", **common, command="enma-fast forecast").layout.attributes
    assert told["command"] == "enma-fast forecast --chunk 6"
    member_file(out, "u", run.layout, 0, 2).unlink()
    member_file(out, "u", run.layout, 1, 9).unlink()
    write_ledger(out / LEDGER, np.array([i not in (2, 20) for i in range(22)]))
    before = {path: path.stat().st_mtime_ns for path in (out / "u").glob("c.*")}
    tried = at_most(6)
    assert prepare(test_in, out, **common).execute()["members_sampled"] == 2
    assert tried == [6, 5]
    assert contents(out) == whole
    assert {path: path.stat().st_mtime_ns for path in before} == before, "what was there is not written again"
    with pytest.raises(EnmaError, match="arithmetic"):
        prepare(test_in, out, **{**common, "chunk": 7}).plan()


def test_where_rows_depend_on_their_number_it_stays(
    test_in: Path, tiny: Path, tmp_path: Path, dependent: None, at_most: Any
) -> None:
    at_most(5)
    run = prepare(test_in, tmp_path / "run.zarr", checkpoint=tiny, num_members=11, trajectories=[4], chunk=8)
    with pytest.raises(EnmaError, match="--chunk"):
        run.execute()
