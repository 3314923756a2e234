"""Scores of a field file against scores put together by hand, and what a file must have to be scored."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from enma_fast.config import ModelConfig
from enma_fast.data import EQUATIONS, FieldFile, dataset_split, read, read_numbered, shipped_file, write
from enma_fast.data.equations import advection
from enma_fast.data.spectral import refine
from enma_fast.errors import EnmaError
from enma_fast.evaluation import metrics, solver
from enma_fast.evaluation.scoring import paper_table, score, score_forecast
from enma_fast.evaluation.solver import solver_fidelity
from enma_fast.evaluation.store_scores import score_store
from enma_fast.forecasting import file_forecast
from enma_fast.forecasting.file_forecast import FileForecast, check_file
from enma_fast.forecasting.members import sample_fields
from enma_fast.forecasting.request import TASKS, ForecastRequest
from enma_fast.models.checkpoint import PRETRAINED
from enma_fast.models.model import Model
from enma_fast.training.recipes import RECIPES
from enma_fast.utils.extras import load_extra
from tests._made import create_store

from .._tiny import COMBINED, CONFIGS, in_one_pass, waves

CONFIG = COMBINED
ERRORS = ("rel_l2", "rel_l2_member", "rmse")


def untrained(config: ModelConfig) -> Model:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Model(config).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def model() -> Model:
    return untrained(CONFIG)


@pytest.fixture(scope="module")
def data() -> FieldFile:
    """Five trajectories, of which three and two share an environment."""
    return replace(read(PRETRAINED / "combined-test-in.h5", select=range(5)), environment=np.array([0, 0, 0, 1, 1]))


def by_hand(model: Model, data: FieldFile, task: str, **options: Any) -> tuple[torch.Tensor, np.ndarray]:
    """Samples and truth of all trajectories, from one call of `forecast`."""
    # The next trajectory of the environment, cyclically: 0 1 2 and 3 4 share one each.
    context = data.u[[1, 2, 0, 4, 3]]
    seen = {"temporal": 3, "initial-value": 1, "generation": 0}[task]
    samples = sample_fields(
        model,
        data.u[:, :seen] if seen else None,
        context=None if task == "temporal" else context,
        num_frames=20 - seen,
        trajectories=range(5),
        **options,
    )
    return samples, data.u[:, seen:]


@pytest.mark.parametrize("config", [CONFIG, in_one_pass(CONFIG)], ids=["flow", "linear"])
@pytest.mark.parametrize("task", TASKS)
def test_scores_are_those_of_the_metrics(data: FieldFile, task: str, config: ModelConfig) -> None:
    model = untrained(config)
    result = score(model, data, task=task, num_members=3, seed=5, chunk=4)
    samples, truth = by_hand(model, data, task, num_members=3, seed=5)
    expected = {name: float(getattr(metrics, name)(samples, truth)) for name in ("crps", "rmsce", "spread_skill")}
    expected["rel_l2"] = float(metrics.relative_l2(samples.mean(1), truth).mean())
    per_frame = metrics.crps(samples, truth, per_frame=True).tolist()
    if task == "generation":
        assert all(result[name] is None for name in ERRORS)
        assert result["per_frame"]["rmse"] == [None] * 20
        del expected["rel_l2"]
    for name, value in expected.items():
        assert result[name] == pytest.approx(value, rel=1e-4), name
    assert result["per_frame"]["crps"] == pytest.approx(per_frame, rel=1e-4)
    assert sum(result["rank_histogram"]) == pytest.approx(1)
    assert (result["num_members"], result["num_trajectories"], result["seed"]) == (3, 5, 5)
    assert (result["history"], result["num_frames"]) == (20 - len(per_frame), len(per_frame))
    assert result["num_parameters"] == sum(p.numel() for p in model.parameters())
    assert (result["dataset"], result["split"], result["task"]) == ("combined", "test-in", task)
    assert result["seconds_per_member"] > 0


def test_all_tasks_have_the_same_keys_of_plain_data(model: Model, data: FieldFile) -> None:
    results = [score(model, data, task=task, num_members=2, limit=9) for task in TASKS]
    assert {tuple(result) for result in results} == {tuple(results[0])}
    assert len({tuple(result["per_frame"]) for result in results}) == 1
    assert [json.loads(json.dumps(result, allow_nan=False)) for result in results] == results
    assert all(result["num_trajectories"] == 5 for result in results)


def test_one_member_has_no_calibration(model: Model, data: FieldFile) -> None:
    result = score(model, data, num_members=1, limit=2)
    assert result["rmsce"] is result["spread_skill"] is result["rank_histogram"] is None
    assert result["rel_l2"] == pytest.approx(result["rel_l2_member"])


@pytest.mark.parametrize("task", TASKS)
def test_members_do_not_depend_on_company(model: Model, data: FieldFile, task: str) -> None:
    def members(rows: Sequence[int], count: int, chunk: int) -> torch.Tensor:
        request = ForecastRequest(task=TASKS[task], num_members=count, trajectories=rows, seed=1, chunk=chunk)
        parts = list(FileForecast(model, data, request).samples())
        assert [i for part, _ in parts for i in part] == list(rows)
        return torch.cat([samples for _, samples in parts])

    everyone = members(range(5), 4, 256)
    torch.testing.assert_close(members([3], 2, 1)[0], everyone[3, :2], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(members([4, 1], 4, 4), everyone[[4, 1]], rtol=1e-4, atol=1e-5)
    # Different trajectories and different members have different noise.
    assert (everyone[:, 0] - everyone[:, 1]).abs().amax(dim=(1, 2, 3)).min() > 1e-6


def test_sink_and_progress_see_every_trajectory_once(model: Model, data: FieldFile) -> None:
    seen, calls = [], []
    forecast = FileForecast(model, data, ForecastRequest(num_members=2, chunk=4, trajectories=[4, 0, 2]))

    class Seen:
        def add(self, trajectory: int, members: range, values: torch.Tensor) -> None:
            assert members == range(len(values))
            seen.append((trajectory, values))

    score_forecast(forecast, sinks=[Seen()], progress=lambda done, total: calls.append((done, total)))
    assert [(place, len(values)) for place, values in seen] == [(0, 2), (1, 2), (2, 2)]
    assert calls == [(2, 3), (3, 3)]
    again = torch.cat([samples for _, samples in forecast.samples()])
    assert torch.equal(torch.stack([values for _, values in seen]), again)


@pytest.mark.parametrize("task", TASKS)
def test_trajectories_that_were_read_by_number_have_the_scores_of_the_whole_file(model: Model, task: str) -> None:
    path = PRETRAINED / "combined-test-in.h5"
    request = ForecastRequest(task=TASKS[task], num_members=2, trajectories=[2, 3])
    whole = score_forecast(FileForecast(model, read(path), request))
    part = read_numbered(path, [2, 3], contexts=True)
    assert part.numbers is not None
    assert part.numbers.tolist() == [2, 3]
    for found in (score(model, part, task=task, num_members=2), score_forecast(FileForecast(model, part, request))):
        assert {**found, "seconds_per_member": 0.0} == {**whole, "seconds_per_member": 0.0}
    assert score(model, part, task=task, num_members=2, limit=1)["num_trajectories"] == 1


class Unfinished(torch.Tensor):
    """Samples that a GPU still makes: whoever takes them off it waits for 5 seconds of the clock."""

    waited: ClassVar[list[int]] = []

    def cpu(self) -> torch.Tensor:  # type: ignore[override]
        self.waited.append(5)
        return self.as_subclass(torch.Tensor)


def test_the_time_of_a_member_is_that_of_its_work(
    model: Model, data: FieldFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    forecast = FileForecast(model, data, ForecastRequest(num_members=2, chunk=4, trajectories=[0, 1]))
    made = list(forecast.samples())
    monkeypatch.setattr(
        FileForecast, "samples", lambda _: ((part, samples.as_subclass(Unfinished)) for part, samples in made)
    )
    monkeypatch.setattr(Unfinished, "waited", [])
    monkeypatch.setattr(file_forecast, "time", SimpleNamespace(perf_counter=lambda: sum(Unfinished.waited)))
    assert score_forecast(forecast)["seconds_per_member"] == 5 / 4


def test_observed_frames_that_are_not_used_are_said_once(
    model: Model, data: FieldFile, caplog: pytest.LogCaptureFixture
) -> None:
    score(model, data, num_members=2, chunk=2, num_history=3)
    score(model, data, num_members=2, chunk=2, task="initial-value", num_history=4)
    assert caplog.records == []
    score(model, data, num_members=2, chunk=2, num_history=4)
    (record,) = caplog.records
    assert record.getMessage().startswith("history: of its 4 frames the first 3 are used; tiny joins frames after the ")


def test_the_solver_agrees_with_its_own_trajectories(data: FieldFile) -> None:
    rows = range(len(data))
    assert solver_fidelity("combined", data, rows, data.u) < 1e-3
    wrong = {**data.parameters, "gamma": data.parameters["gamma"] + 0.2}
    distance = solver_fidelity("combined", replace(data, parameters=wrong), rows, data.u)
    # The same distance, from the solver itself.
    solved = EQUATIONS["combined"].solve(refine(data.u[:, 0].astype(float), 2, 1), wrong).copy()
    expected = metrics.relative_l2(data.u, solved).mean()
    assert distance == pytest.approx(float(expected), rel=1e-5)
    assert distance > 0.1


@pytest.mark.filterwarnings("error")
def test_a_solution_that_blows_up_has_no_distance(caplog: pytest.LogCaptureFixture) -> None:
    data = read(shipped_file("gray_scott", "test-in"), select=[0, 1])
    assert solver_fidelity("gray_scott", data, range(2), 1e3 * data.u) is None
    assert not caplog.records


def test_solver_fidelity_of_another_equation() -> None:
    values = {"alpha": np.array([1.3, -4.0])}
    u0 = advection.initial_conditions("val", seed=0, group=0)[:2]
    u = advection.solve(u0, values)[:, :, ::2][..., None]
    data = replace(read(PRETRAINED / "combined-test-in.h5", select=[0, 1]), parameters=values, lengths=(1.0,))
    assert solver_fidelity("advection", data, range(2), u) < 1e-6
    assert solver_fidelity("advection", replace(data, parameters={"alpha": values["alpha"] + 1}), range(2), u) > 0.5
    assert solver_fidelity("combined", data, range(2), u) is None, "the file lacks beta, gamma and delta"
    assert solver_fidelity("heat", data, range(2), u) is None


@pytest.mark.parametrize(
    "changes",
    [
        {"lengths": (1.0,)},
        {"periodic": (False,)},
        {"channels": ("v",)},
        {"times": 0.1 * np.arange(20)},
        {"u": np.ones((5, 20, 96, 1), np.float32)},
        {"u": np.ones((5, 21, 128, 1), np.float32)},
    ],
    ids=str,
)
def test_trajectories_that_the_solver_does_not_make_have_no_fidelity(data: FieldFile, changes: dict[str, Any]) -> None:
    other = replace(data, **changes)
    assert solver_fidelity("combined", other, range(5), other.u) is None


def test_a_solver_that_is_not_installed_is_named(
    data: FieldFile, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    needy = replace(EQUATIONS["combined"], solve=lambda *_: load_extra("no_solver_of_this_name", "data"))
    monkeypatch.setattr(solver, "EQUATIONS", {"combined": needy})
    assert solver_fidelity("combined", data, range(5), data.u) is None
    assert "solver_fidelity is left out: no_solver_of_this_name is not installed" in caplog.text


@pytest.mark.parametrize("error", [ZeroDivisionError("by zero"), OSError("no table"), MemoryError()])
def test_a_solver_that_fails_costs_its_own_score_alone(
    error: Exception, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise error

    data = read(shipped_file("gray_scott", "test-in"), select=[0, 1])
    broken = replace(EQUATIONS["gray_scott"], solve=fail)
    monkeypatch.setattr(solver, "EQUATIONS", {"gray_scott": broken})
    assert solver_fidelity("gray_scott", data, range(2), data.u) is None
    said = f"the solver of gray_scott fails ({str(error) or 'MemoryError'})"
    assert f"solver_fidelity is left out: {said}" in caplog.text


@pytest.mark.parametrize("num_points", [1, 7, 8, 128])
def test_refine_keeps_points_and_waves(num_points: int, rng: np.random.Generator) -> None:
    u = rng.normal(size=(3, num_points))
    fine = refine(u, 2, -1)
    assert fine.shape == (3, 2 * num_points)
    np.testing.assert_allclose(fine[:, ::2], u, atol=1e-12)
    x = np.arange(2 * num_points) * np.pi / num_points
    wave = (num_points - 1) // 2
    smooth = 0.3 + np.sin(wave * x + 0.4)
    np.testing.assert_allclose(refine(smooth[None, ::2], 2, -1)[0], smooth, atol=1e-12)


def test_dataset_and_split_stand_in_the_name() -> None:
    assert dataset_split("combined-test-in") == ("combined", "test-in")
    assert dataset_split("gray-scott-train") == ("gray-scott", "train")
    assert dataset_split("my-fields") == ("my-fields", None)


def test_paper_rows_belong_to_data_set_task_and_split() -> None:
    result = {"dataset": "combined", "task": "temporal", "split": "test-in"}
    rows = {row["model"]: row for row in paper_table(result)}
    assert rows["ENMA"] == {"model": "ENMA", "rel_l2": 7.86e-3, "rmsce": 8.68e-2, "crps": 1.7e-3}
    assert rows["FNO"] == {"model": "FNO", "rel_l2": 0.133}
    outside = {row["model"]: row for row in paper_table({**result, "split": "test-out"})}
    assert outside["ENMA"] == {"model": "ENMA", "rel_l2": 0.102}, "the paper has no calibration out of distribution"
    initial = paper_table({**result, "task": "initial-value"})
    assert [row["rel_l2"] for row in initial] == [0.579, 0.096, 0.0478, 0.0156]
    assert paper_table({**result, "task": "generation"}) == [{"model": "ENMA", "solver_fidelity": 0.081}]
    for other in ({"split": None}, {"dataset": "my-fields"}, {"task": "generation", "split": "test-out"}):
        assert paper_table({**result, **other}) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"u": np.zeros((2, 20, 64, 1), np.float32)}, "the"),
        ({"channels": ("u", "v")}, "holds"),
        ({"periodic": (False,)}, "boundary_conditions"),
        ({"lengths": (1.0,)}, "the"),
        ({"times": np.arange(20) * 0.1}, "dimensions/time"),
    ],
)
def test_a_file_of_another_kind_is_refused(data: FieldFile, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(EnmaError) as error:
        check_file(CONFIG, replace(data, **changes))
    assert str(error.value).startswith(f"{data.path}: {message}")


def test_a_file_that_fits_passes_for_the_preset(data: FieldFile) -> None:
    check_file(RECIPES["combined-small"].model, data)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "dreaming"}, "task 'dreaming'"),
        ({"num_members": 0}, "members"),
        ({"chunk": 0}, "chunk"),
        ({"limit": 0}, "limit"),
        ({"num_history": 2}, "history"),
        ({"num_history": 20}, "frames"),
    ],
)
def test_cases_that_cannot_be_are_refused(model: Model, data: FieldFile, options: dict[str, Any], message: str) -> None:
    with pytest.raises(EnmaError) as error:
        score(model, data, **options)
    assert message in str(error.value)


def test_the_paper_is_no_match_for_another_number_of_frames() -> None:
    known = {"dataset": "combined", "task": "temporal", "split": "test-in", "history": 3}
    assert paper_table({**known, "num_frames": 17})
    assert not paper_table({**known, "num_frames": 1})
    assert not paper_table({**known, "history": 16, "num_frames": 4})
    assert paper_table({**known, "task": "dreaming", "num_frames": 17}) == []
    assert paper_table({**known, "task": "initial-value", "history": 1, "num_frames": 19})
    assert not paper_table({**known, "task": "initial-value", "history": 3, "num_frames": 17})


def test_what_was_only_observed_cannot_be_scored(model: Model, data: FieldFile) -> None:
    known = replace(data, u=data.u[:, :3], times=data.times[:3])
    with pytest.raises(EnmaError, match="frames after"):
        score(model, known)


@pytest.mark.parametrize("task", ["initial-value", "generation"])
def test_a_context_needs_environments(model: Model, data: FieldFile, task: str) -> None:
    request = ForecastRequest(task=TASKS[task])
    with pytest.raises(EnmaError, match="lacks scalars/environment"):
        FileForecast(model, replace(data, environment=None), request).check()
    with pytest.raises(EnmaError, match="alone"):
        FileForecast(model, replace(data, environment=np.arange(5)), request).check()
    FileForecast(model, replace(data, environment=None), ForecastRequest()).check()


def test_shorter_files_are_scored_to_their_end(model: Model, data: FieldFile) -> None:
    short = replace(data, u=data.u[:, :8], times=data.times[:8])
    result = score(model, short, num_members=2, limit=1)
    assert (result["num_frames"], len(result["per_frame"]["crps"])) == (5, 5)


def test_shipped_test_files_are_what_the_generator_makes(tmp_path: Path) -> None:
    from enma_fast.data import generate
    from enma_fast.data.splits import environments

    for split, groups, spacing in (("test-in", 120, 10), ("test-out", 12, 1)):
        # The first groups do not depend on how many there are.
        made = read(generate("combined", split, groups=spacing + 1, out_dir=tmp_path))
        path = PRETRAINED / f"combined-{split}.h5"
        shipped = read(path)
        assert (shipped.name, len(shipped)) == (f"combined-{split}", 24)
        assert path.stat().st_size <= 700_000
        # Two trajectories of each of a dozen environments, evenly spread.
        expected = environments(EQUATIONS["combined"], split, groups=groups, seed=0)[::spacing].repeat(2)
        np.testing.assert_array_equal(shipped.environment, expected + (1_000_000 if split == "test-out" else 0))
        assert [shipped.context_for(i) for i in range(24)] == [i + 1 - 2 * (i % 2) for i in range(24)]
        rows = [0, 1, 10 * spacing, 10 * spacing + 1]
        np.testing.assert_allclose(shipped.u[:4], made.u[rows], atol=1e-5)
        for name, values in made.parameters.items():
            np.testing.assert_array_equal(shipped.parameters[name][:4], values[rows])


def test_a_file_of_several_channels_has_scores_of_each(tmp_path: Path) -> None:
    """As a store of the same members has them."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Model(CONFIGS["plane"]).eval().requires_grad_(False)
    tok = model.config.codec
    given: dict[str, Any] = {"times": model.config.frame_interval * np.arange(8), "periodic": list(tok.periodic)}
    axes = zip(tok.grid, tok.lengths, tok.periodic, strict=True)
    given["coords"] = [np.linspace(0, length, n, endpoint=not wraps) for n, length, wraps in axes]
    fields = waves(3, 1, 8, tok).numpy()
    given["t0_fields"] = {name: fields[..., c] for c, name in enumerate("uv")}
    data = read(write(tmp_path / "air.h5", name="air", scalars={"environment": np.zeros(3)}, units={"v": "K"}, **given))
    with create_store(
        tmp_path / "run.zarr",
        channels=data.channels,
        times=data.times[3:],
        coords=data.coords,
        trajectories=range(3),
        num_members=3,
        observed=data.u[:, :3],
        observed_times=data.times[:3],
        truth=data.u[:, 3:],
        units=data.units,
        attributes={"task": "temporal", "observed_frames": 3},
    ) as store:
        forecast = FileForecast(model, data, ForecastRequest(num_members=3))
        found = score_forecast(forecast, sinks=[store])["channels"]
    assert {name: row["unit"] for name, row in found.items()} == {"u": "1", "v": "K"}
    assert all(found["v"][name] > 0 for name in ("rel_l2", "crps", "spread_skill", "rmse"))
    for name, row in score_store(tmp_path / "run.zarr")["channels"].items():
        for key, value in row.items():
            assert value == (value if isinstance(value, str) else pytest.approx(found[name][key], rel=1e-10)), key
    assert score(model, data, task="generation", num_members=3)["channels"]["u"]["rel_l2"] is None
