"""The user's own data: the derived model, and a training that keeps to its time, can be stopped, and learns."""

import json
import shutil
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("h5py", reason="needs the [data] extra")

import enma_fast
from enma_fast.config import BlocksConfig, ModelConfig
from enma_fast.data import FieldFile, read
from enma_fast.errors import EnmaError
from enma_fast.evaluation.scoring import score
from enma_fast.forecasting.file_forecast import FileForecast
from enma_fast.models.checkpoint import load_model
from enma_fast.models.model import Model
from enma_fast.training import own_model, own_plan
from enma_fast.training.field_stage import FLOOR
from enma_fast.training.loop import RunOptions
from enma_fast.training.own_card import notes
from enma_fast.training.own_model import prepare_own, train_own
from enma_fast.training.own_plan import Plan, Request, with_kind
from enma_fast.training.own_recipe import SIZES, derived_recipe
from enma_fast.training.recipes import read_recipe
from enma_fast.training.run import _context_rows

from .._clock import count_readings
from .._own import advected, save, steepened
from .._tiny import CONFIGS, model, waves, waves_file


def derived(
    grid: tuple[int, ...], periodic: tuple[bool, ...], moments: dict[str, object] | None = None, **changes: object
) -> ModelConfig:
    settings = {"size": "small", "num_frames": 8, "frame_interval": 0.1, **changes}
    moments = moments or {"field_mean": (0.0,), "field_scale": (1.0,)}
    codec = BlocksConfig(grid=grid, lengths=(1.0,) * len(grid), periodic=periodic, block=1, frames=1, **moments)
    return derived_recipe("own", codec, **settings).model


def test_validation_has_contexts_where_training_has(tmp_path: Path) -> None:
    def rows(environment: list[int], *, trained: bool) -> list[int] | None:
        data = read(save(tmp_path / "a.h5", advected(len(environment)), environment=environment))
        found = _context_rows(data, np.arange(len(data)), trained=trained)
        return None if found is None else found.tolist()

    assert rows([0, 0, 1, 1], trained=True) == rows([0, 0, 1, 1], trained=False) == [1, 0, 3, 2]
    assert rows([0, 1, 2], trained=True) is None
    assert rows([0, 0, 1], trained=False) is None
    with pytest.raises(EnmaError, match="trajectory 2 is alone in its group"):
        rows([0, 0, 1], trained=True)


@pytest.mark.parametrize(
    ("grid", "periodic"),
    [
        ((7,), (False,)),
        ((128,), (True,)),
        ((15, 18), (True, False)),
        ((64, 50), (True, True)),
        ((6, 7, 5), (True,) * 3),
    ],
)
def test_a_model_is_derived_for_any_grid(grid: tuple[int, ...], periodic: tuple[bool, ...]) -> None:
    config = derived(grid, periodic, {"field_channels": 2, "field_mean": (288.0, 1e5), "field_scale": (10.0, 1e3)})
    made = Model(config)
    u = torch.tensor([288.0, 1e5]) + torch.tensor([10.0, 1e3]) * torch.randn(1, 3, *grid, 2)
    torch.testing.assert_close(made.decode(made.encode(u), 3), u)
    sizes = [sum(p.numel() for p in Model(derived(grid, periodic, size=size)).parameters()) for size in SIZES]
    assert sizes[0] < sizes[1]


def test_planes_on_which_signals_move_far_have_a_coarse_level() -> None:
    levels = {side: derived((side, side), (True, True)).step for side in (32, 64, 256)}
    assert [levels[side].middle_layers > 0 for side in levels] == [False, True, True]
    assert [levels[side].block for side in levels] == [2, 2, 4]


def test_a_model_that_cannot_be_derived_says_why() -> None:
    with pytest.raises(EnmaError, match="have 4 frames; at least 5 are needed"):
        derived((32,), (True,), num_frames=4)
    with pytest.raises(EnmaError, match="size 'huge' is unknown; use one of small, base"):
        derived((32,), (True,), size="huge")


def test_scored_trajectories_are_spread_over_the_test_data(monkeypatch: pytest.MonkeyPatch) -> None:
    config = CONFIGS["relative"]
    data = waves_file(config, waves(6, 2, config.num_frames, config.codec))

    now = [0.0]

    def exact(forecast: FileForecast, *, warn: bool, sinks: tuple = ()) -> dict:
        numbers = list(forecast.trajectories)
        # Half a second each.
        now[0] += 0.5 * len(numbers)
        for place, number in enumerate(numbers):
            for sink in sinks:
                sink.add(place, range(1), torch.from_numpy(data.u[number, None, 3:]))
        return {"trajectories": numbers}

    monkeypatch.setattr(own_model, "score_forecast", exact)
    monkeypatch.setattr(own_model.time, "monotonic", lambda: now[0])
    row = own_model._scores(model("relative"), data, {}, "temporal", 2.0)
    assert row["trajectories"] == [0, 3, 6, 9]
    # The truth is that of the same ones.
    assert row["channels"]["u"]["rmse"] == 0


def test_moments_are_exact_and_take_no_copy_of_the_data() -> None:
    u = (50 + np.random.default_rng(0).standard_normal((400, 10, 40, 2)) * [1, 20]).astype(np.float32)
    tracemalloc.start()
    try:
        mean, std = own_plan._moments(u)
        assert tracemalloc.get_traced_memory()[1] < u.nbytes
    finally:
        tracemalloc.stop()
    np.testing.assert_allclose(mean, u.mean(axis=(0, 1, 2), dtype=np.float64), rtol=1e-12)
    np.testing.assert_allclose(std, u.std(axis=(0, 1, 2), dtype=np.float64), rtol=1e-12)


@pytest.fixture
def planned(tmp_path: Path) -> Callable[..., tuple[Plan, Path]]:
    """Prepare a run of so many minutes in a new folder, for waves that steepen."""

    def prepare(name: str, minutes: float = 0.1, fields: np.ndarray | None = None, **more: object) -> tuple[Plan, Path]:
        path = save(tmp_path / f"{name}.h5", steepened(80) if fields is None else fields, **more)
        return prepare_own(path, tmp_path / name, Request(minutes=minutes)), tmp_path / name

    return prepare


def test_a_plan_of_another_version_is_refused_in_one_line(planned: Callable, tmp_path: Path) -> None:
    plan, out = planned("old")
    path, source = out / "plan.json", tmp_path / "old.h5"
    request = Request(minutes=0.1)
    known = json.loads(path.read_text())
    assert prepare_own(source, out, request) == plan
    known["recipe"]["model"]["context"]["gone"] = 3
    for content, where in (
        (json.dumps(known).encode(), r"recipe.model.context.gone: unknown key"),
        (b"{", "invalid JSON: EOF while parsing an object"),
        (b"\xff", "'utf-8' codec can't decode byte"),
    ):
        path.write_bytes(content)
        with pytest.raises(EnmaError, match=rf"plan.json: this run was begun with another .* \({where}.*\); finish it"):
            prepare_own(source, out, request)


def test_a_linear_equation_needs_no_network(planned: Callable) -> None:
    # With minutes enough for every floor, on slow machines too; a floor that is right needs none of the rest.
    environments = np.arange(20).repeat(2).tolist()
    plan, out = planned("linear", minutes=5.0, fields=advected(40), environment=environments)
    assert plan.right
    assert plan.linear == "waves"
    found = train_own(plan, out, command="enma-fast train")
    assert found["training"]["stages"]["field"]["steps"] == 0
    assert [row["task"] for row in found["rows"]] == ["temporal", "initial-value"]
    for row in found["rows"]:
        assert row["rel_l2"] < 1e-3 < row["methods"]["damped persistence"]["rel_l2"]
    assert any("right" in note for note in notes(plan, found))
    again = read_recipe(out / "recipe.toml")
    assert again == plan.recipe


def test_a_network_that_is_behind_the_best_floor_gives_way_to_it(planned: Callable) -> None:
    plan, out = planned("behind", minutes=0.4)
    assert plan.best not in ("persistence", "damped persistence")
    # No time is left for a network.
    plan = replace(plan, recipe=with_kind(plan.recipe, "persistence"), seconds=1e9)
    (out / "field" / FLOOR).unlink()
    found = train_own(plan, out, command="enma-fast train")
    assert found["alone"]
    assert found["floor"] == load_model(out).config.context.floor == plan.best
    assert any(f"{plan.best} alone forecasts" in note for note in notes(plan, found))
    (row,) = found["rows"]
    others = {name: part["rel_l2"] for name, part in row["methods"].items()}
    assert row["rel_l2_member"] < 0.9 * others["persistence"]
    assert row["rel_l2"] < 1.1 * others["linear"]


@pytest.mark.slow
def test_a_run_that_was_stopped_has_a_model_and_goes_on(planned: Callable, tmp_path: Path) -> None:
    plan, out = planned("stopped", minutes=0.1)

    def stop(done: float, total: float, note: str) -> None:
        if "validation" in note:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_own(plan, out, command="enma-fast train", progress=stop)
    test: FieldFile = read(out / "data" / "stopped-test-in.h5")
    stopped = score(load_model(out), test, num_members=2)
    assert np.isfinite(stopped["rel_l2"])
    rows = train_own(prepare_own(tmp_path / "stopped.h5", out, Request(minutes=0.1)), out, command="a")["rows"]
    # A finished run is read.
    assert train_own(plan, out, command="other")["rows"] == rows
    with pytest.raises(EnmaError, match=r"begun with minutes 0\.1, not 10\.0; choose another --out"):
        prepare_own(tmp_path / "stopped.h5", out, Request())
    other = save(tmp_path / "other.h5", advected(80, seed=1))
    with pytest.raises(EnmaError, match="begun with other data than"):
        prepare_own(other, out, Request(minutes=0.1))
    with pytest.raises(EnmaError, match="exists and is no run of `enma-fast train`"):
        prepare_own(other, shutil.copytree(out / "data", tmp_path / "folder"), Request())


@pytest.mark.slow
def test_time_is_kept_and_the_model_learns_what_is_not_linear(
    planned: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = count_readings(monkeypatch, 0.06, ("monotonic", "perf_counter", "process_time"))
    plan, out = planned("run", minutes=1.0)
    (row,) = train_own(plan, out, command="enma-fast train")["rows"]
    assert clock() < 80
    assert row["task"] == "temporal"
    others = {name: part["rel_l2"] for name, part in row["methods"].items()}
    assert set(others) == {"persistence", "climatology", "damped persistence", "linear"}
    assert row["rel_l2"] < 0.8 * min(others.values())
    test: FieldFile = read(out / "data" / "run-test-in.h5")
    assert len(test) == row["num_trajectories"] == 8
    forecast = read(out / "data" / "run-train.h5").u.mean(0)[3:]
    errors = row["channels"]["u"]
    assert errors["climatology_rmse"] == pytest.approx(float(np.sqrt(np.square(forecast - test.u[:, 3:]).mean())), 1e-5)
    assert row["methods"]["climatology"]["rmse"] == pytest.approx(errors["climatology_rmse"], rel=1e-5)
    again = score(load_model(out), test, num_members=row["num_members"])
    assert again["rel_l2"] == pytest.approx(row["rel_l2"], rel=1e-5)
    card = (out / "checkpoint" / "README.md").read_text()
    assert "| temporal | model |" in card


def test_close_forecasts_and_few_scores_are_said_in_words(planned: Callable) -> None:
    plan, _ = planned("words")
    linear = {"rel_l2": 0.505}
    row = {"task": "temporal", "rel_l2": 0.5, "methods": {"persistence": {"rel_l2": 1.0}, "linear": linear}}

    def said(scored: int = 8) -> list[str]:
        return [note for note in notes(plan, {"rows": [row | {"num_trajectories": scored}]}) if "temporal" in note]

    assert said() == ["Task temporal: the error of linear is 1.0 % above the model's."]
    linear["rel_l2"] = 0.4
    assert said() == ["Task temporal: the error of linear is 20.0 % below the model's."]
    linear["rel_l2"] = 0.6
    assert said() == []
    assert said(5) == ["Task temporal: scored on 5 of 8 trajectories, since the time was over."]
    assert "The equation of the training data: u_t = - 1 u_x." in notes(
        plan, {"rows": [], "equation": ["u_t = - 1 u_x"]}
    )


@pytest.mark.parametrize("minutes", [1e300, float("inf"), float("nan"), 0.0, -1.0])
def test_minutes_that_nobody_has_are_refused(minutes: float) -> None:
    with pytest.raises(EnmaError, match=r"^minutes is"):
        own_plan.Request(minutes=minutes)


def test_windows_that_are_forecast_share_no_frames_with_those_that_floors_are_learned_from(tmp_path: Path) -> None:
    first = np.arange(40) % 20
    columns = {"series": np.arange(40) // 20, "first_frame": first}
    data = read(save(tmp_path / "a.h5", advected(40), columns=columns))
    folds = own_plan.window_folds(data)
    assert folds is not None
    assert sorted(torch.cat([held for _, held in folds]).tolist()) == list(range(40))
    for rest, held in folds:
        assert len(rest)
        near = (data.parameters["series"][rest][:, None] == data.parameters["series"][held]) & (
            abs(first[rest][:, None] - first[held]) < 8
        )
        assert not near.any()
    assert own_plan.window_folds(read(save(tmp_path / "b.h5", advected(4)))) is None


def test_a_model_is_trained_on_fields_in_memory_and_saved(tmp_path: Path) -> None:
    data = read(save(tmp_path / "ring.h5", advected(24)))
    notes: list[str] = []
    made = enma_fast.train(data, tmp_path / "run", minutes=0.05, progress=lambda done, total, note: notes.append(note))
    assert "scoring" in notes
    made.save(tmp_path / "copy")
    again = enma_fast.load_model(tmp_path / "copy")
    given = data.u[:1, :3]
    expected = enma_fast.forecast(made, given, num_members=2).values
    np.testing.assert_array_equal(enma_fast.forecast(again, given, num_members=2).values, expected)
    # A finished run is read.
    assert enma_fast.train(data, tmp_path / "run", minutes=0.05).config == made.config
    with pytest.raises(EnmaError, match="minutes"):
        enma_fast.train(data, tmp_path / "run", minutes=0.06)


def test_the_network_is_trained_on_a_device_and_one_that_is_not_there_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, out = read(save(tmp_path / "ring.h5", advected(24))), tmp_path / "run"
    with pytest.raises(EnmaError, match=r"^device abacus:"):
        enma_fast.train(data, out, minutes=0.05, device="abacus")
    assert not out.exists()
    seen: list[RunOptions] = []

    def stopped(recipe: object, *, options: RunOptions, **more: object) -> None:
        seen.append(options)
        raise KeyboardInterrupt

    monkeypatch.setattr(own_model, "train", stopped)
    monkeypatch.setattr(own_model, "can_use", lambda device: device == "cuda")
    with pytest.raises(KeyboardInterrupt):
        enma_fast.train(data, out, minutes=0.05, device="cuda")
    assert [options.device for options in seen] == ["cuda"]


def test_a_data_set_of_xarray_is_trained_as_its_file_is(tmp_path: Path) -> None:
    xr = pytest.importorskip("xarray", reason="needs the [store] extra")
    u, speed = advected(24), np.linspace(1, 2, 24)
    coords = {"time": 0.05 * np.arange(8), "x": np.arange(16) / 16}
    data = xr.Dataset({"u": (("trajectory", "time", "x"), u), "speed": ("trajectory", speed)}, coords)
    data.to_netcdf(tmp_path / "dataset.nc", engine="h5netcdf")
    facts = {"known": ["speed"], "periodic": ["x"]}
    made = [
        enma_fast.train(source, tmp_path / f"run-{i}", minutes=0.05, **facts)
        for i, source in enumerate((data, str(tmp_path / "dataset.nc")))
    ]
    for config in (each.config for each in made):
        assert config.codec.periodic == (True,)
        assert [driver.name for driver in config.known] == ["speed"]
        assert config.frame_interval == pytest.approx(0.05)
    assert enma_fast.train(data, tmp_path / "run-0", minutes=0.05, **facts).config == made[0].config
    with pytest.raises(EnmaError, match="other data"):
        enma_fast.train(data, tmp_path / "run-0", minutes=0.05, known=["speed"])
