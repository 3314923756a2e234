"""The user's own data: the derived model, and a training that is resumed and learns."""

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

from enma_fast.data import FieldFile, read
from enma_fast.data.selection import share_of
from enma_fast.errors import EnmaError
from enma_fast.evaluation.scoring import score
from enma_fast.forecasting.file_forecast import FileForecast
from enma_fast.models.checkpoint import WEIGHTS, load_model, locate, sha256
from enma_fast.models.codecs.conv import ConvCodec
from enma_fast.models.model import Model
from enma_fast.training import own_model, own_plan
from enma_fast.training.dynamics import DynamicsStage
from enma_fast.training.own_model import prepare_own, train_own
from enma_fast.training.own_plan import (
    Plan,
    Request,
    affordable_share,
    affordable_shifts,
    affordable_validations,
    shares,
)
from enma_fast.training.own_recipe import SIZES, derived_recipe
from enma_fast.training.ranks import Rank
from enma_fast.training.recipes import RECIPES
from enma_fast.training.run import _context_rows
from enma_fast.training.tokenizer import TokenizerStage, TokenizerTask

from .._own import advected, save, tiny
from .._tiny import CONFIGS, model, waves, waves_file

ADVECTED = derived_recipe(
    "own",
    size="small",
    grid=(16,),
    lengths=(1.0,),
    periodic=(True,),
    mean=(0.0,),
    scale=(1.0,),
    num_frames=8,
    frame_interval=0.1,
)


def derived(grid: tuple[int, ...], periodic: tuple[bool, ...], **changes: object) -> Model:
    settings = {"size": "small", "mean": (0.0,), "scale": (1.0,), "num_frames": 8, "frame_interval": 0.1, **changes}
    return Model(derived_recipe("own", grid=grid, lengths=(1.0,) * len(grid), periodic=periodic, **settings).model)


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


def test_a_model_is_derived_for_lines_and_planes() -> None:
    line = derived((128,), (True,)).config
    assert (line.token_grid, line.token_channels, line.context.positions) == ((4,), 16, "rotary")
    plane = derived((54, 18), (True, False), mean=(288.0, 1e5), scale=(10.0, 1e3))
    assert (plane.config.token_grid, plane.config.context.positions) == ((9, 9), "sincos")
    assert plane.config.codec.field_channels == 2
    u = torch.tensor([288.0, 1e5]) + torch.tensor([10.0, 1e3]) * torch.randn(2, 8, 54, 18, 2)
    assert plane.decode(plane.encode(u), 8).shape == u.shape
    sizes = [sum(p.numel() for p in derived((64,), (True,), size=size).parameters()) for size in SIZES]
    assert sizes[0] < sizes[1] < sizes[2]
    assert derived((128,), (True,), shift=False).config.context.positions == "sincos"


@pytest.mark.parametrize(
    ("dims", "frames", "window"), [(1, 5, None), (1, 11, None), (1, 20, 11), (2, 6, None), (2, 12, 11)]
)
def test_a_tokenizer_trains_on_windows_of_long_trajectories(dims: int, frames: int, window: int | None) -> None:
    shape = {
        "grid": (16,) * dims,
        "lengths": (1.0,) * dims,
        "periodic": (True,) * dims,
        "mean": (0.0,),
        "scale": (1.0,),
    }
    recipes = {s: derived_recipe("own", size=s, **shape, num_frames=frames, frame_interval=0.1) for s in SIZES}
    assert recipes["paper"].first(TokenizerStage).window is None
    trained = recipes["small"].first(TokenizerStage)
    assert trained.window == window
    fields = torch.randn(4, frames, *(16,) * dims, 1)
    made = Model(recipes["small"].model)
    task = TokenizerTask(made, trained, train=waves_file(made.config, fields), val=fields)
    loss, _ = task.loss(task.module, torch.Generator().manual_seed(0), Rank())
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in task.module.parameters())


def test_a_grid_that_cannot_be_halved_names_the_nearest() -> None:
    with pytest.raises(
        EnmaError, match=r"grid 96 x 49 cannot be halved.* to 96 x 48 or 96 x 50 points: .* --crop y=0:48$"
    ):
        derived((96, 49), (True, True))
    with pytest.raises(EnmaError, match=r"grid 5 cannot be halved.* to 8 points$"):
        derived((5,), (True,))
    with pytest.raises(EnmaError, match="grid 2048 x 2048 makes 16384 tokens a frame; coarsen it"):
        derived((2048, 2048), (True, True))
    with pytest.raises(EnmaError, match="have 4 frames; at least 5 are needed"):
        derived((32,), (True,), num_frames=4)
    with pytest.raises(EnmaError, match="size 'huge' is unknown; use one of small, base, paper"):
        derived((32,), (True,), size="huge")


def test_the_tokenizer_standardises_each_channel() -> None:
    plain = derived((16, 8), (True, True), mean=(0.0, 0.0), scale=(1.0, 1.0)).codec
    scaled = ConvCodec(replace(plain.config, field_mean=(288.0, -1e5), field_scale=(10.0, 1e3)))
    scaled.load_state_dict(plain.state_dict())
    mean, scale = torch.tensor([288.0, -1e5]), torch.tensor([10.0, 1e3])
    # The fields after rounding to float32 with the large mean.
    u = torch.randn(2, 8, 16, 8, 2)
    u = ((u * scale + mean) - mean) / scale
    torch.testing.assert_close(scaled.encode(u * scale + mean), plain.encode(u), rtol=1e-4, atol=1e-4)
    z = plain.encode(u)
    torch.testing.assert_close(scaled.decode(z), plain.decode(z) * scale + mean)
    noise = torch.randn_like(z)
    torch.testing.assert_close(scaled(u * scale + mean, noise), plain(u, noise), rtol=1e-3, atol=1e-4)
    assert scaled.state_dict().keys() == plain.state_dict().keys()


def test_scored_trajectories_are_spread_over_the_test_data(monkeypatch: pytest.MonkeyPatch) -> None:
    config = CONFIGS["relative"]
    data = waves_file(config, waves(6, 2, config.num_frames, config.codec))

    def exact(forecast: FileForecast, *, warn: bool, sinks: list) -> dict:
        numbers = list(forecast.trajectories)
        for place, number in enumerate(numbers):
            sinks[0].add(place, range(1), torch.from_numpy(data.u[number, None, 3:]))
        return {"trajectories": numbers}

    monkeypatch.setattr(own_model, "score_forecast", exact)
    row = own_model._scores(model("relative"), data, {}, "temporal", 4)
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


def test_shifts_fit_the_minutes() -> None:
    # A fifth of the minutes is for encoding, once at least; this tokenizer has 8 shifts.
    recipe = RECIPES["combined-fast"]
    assert recipe.model.codec.space_factor == 8
    given = ((None, 100.0), (100, 100.0), (25, 100.0), (10, 100.0), (1, 100.0))
    assert [affordable_shifts(recipe, minutes, seconds) for minutes, seconds in given] == [None, None, 3, 1, 1]
    still = replace(recipe, stage=(replace(recipe.first(DynamicsStage), augment=()),))
    assert affordable_shifts(still, 1, 100.0) is None


def test_what_is_measured_on_fits_the_minutes() -> None:
    # Two fifths of the minutes, a tenth of the usual trajectories at least.
    assert [affordable_share(minutes, 480.0) for minutes in (None, 100, 20, 10, 1)] == [1.0, 1.0, 1.0, 0.5, 0.1]
    assert [share_of(24, share) for share in (1.0, 0.5, 0.1, 0.01)] == [24, 12, 2, 1]


def test_validations_fit_the_minutes() -> None:
    # A fifth of the minutes is for them, and each stage has one at least.
    assert [affordable_validations(minutes, 100.0) for minutes in (None, 100, 25, 10, 1)] == [4, 4, 3, 1, 1]


@pytest.fixture
def planned(tmp_path: Path) -> Callable[..., tuple[Plan, Path]]:
    """Prepare a run of so many steps in a new folder, for advection."""
    made = prepare_own(save(tmp_path / "advected.h5", advected(80)), tmp_path / "prepared", Request())

    def prepare(name: str, **steps: int) -> tuple[Plan, Path]:
        out = shutil.copytree(tmp_path / "prepared", tmp_path / name)
        return tiny(made, out, steps), out

    return prepare


def test_a_plan_of_another_version_is_refused_in_one_line(planned: Callable, tmp_path: Path) -> None:
    plan, out = planned("old", tokenizer=12, dynamics=11, forecasts=11)
    path, source = out / "plan.json", tmp_path / "advected.h5"
    known = json.loads(path.read_text())
    assert prepare_own(source, out, Request()) == plan
    known["recipe"]["model"]["context"]["gone"] = 3
    for content, where in (
        (json.dumps(known).encode(), r"recipe.model.context.gone: unknown key"),
        (b"{", "invalid JSON: EOF while parsing an object"),
        (b"\xff", "'utf-8' codec can't decode byte"),
    ):
        path.write_bytes(content)
        with pytest.raises(EnmaError, match=rf"plan.json: this run was begun with another .* \({where}.*\); finish it"):
            prepare_own(source, out, Request())


@pytest.mark.slow
def test_a_run_that_was_stopped_goes_on_to_the_same_model(planned: Callable, tmp_path: Path) -> None:
    plan, straight = planned("straight", tokenizer=12, dynamics=11, forecasts=11)
    notes: list[str] = []
    metrics = train_own(plan, straight, command="enma-fast train", progress=lambda *seen: notes.append(seen[2]))
    assert {note.split()[0] for note in notes} == {*shares(plan.recipe), "scoring"}
    assert any("validation" in note for note in notes)
    plan, broken = planned("broken", tokenizer=12, dynamics=11, forecasts=11)

    def stop(done: float, total: float, note: str) -> None:
        if note.startswith("dynamics"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_own(plan, broken, command="enma-fast train", progress=stop)
    with pytest.raises(EnmaError, match="this run has no checkpoint yet; let it finish first"):
        locate(broken)
    again = prepare_own(tmp_path / "advected.h5", broken, Request())
    assert again == plan
    rows = train_own(again, broken, command="enma-fast train")["rows"]
    assert rows[0]["rel_l2"] == metrics["rows"][0]["rel_l2"]
    weights = Path("checkpoint") / WEIGHTS
    assert sha256(broken / weights) == sha256(straight / weights)
    # A finished run is read.
    assert train_own(again, broken, command="other")["rows"] == rows
    assert load_model(straight).config.name == "advected"
    card = (straight / "checkpoint" / "README.md").read_text()
    assert "| temporal | u | 1 |" in card
    assert "climatology | its median" in card
    with pytest.raises(EnmaError, match="begun with size small, not base; choose another --out or the same options"):
        prepare_own(tmp_path / "advected.h5", broken, Request(size="base"))
    other = save(tmp_path / "other.h5", advected(80, seed=1))
    with pytest.raises(EnmaError, match="begun with other data than"):
        prepare_own(other, broken, Request())
    with pytest.raises(EnmaError, match="exists and is no run of `enma-fast train`"):
        prepare_own(other, tmp_path, Request())


@pytest.mark.slow
def test_a_model_of_advection_beats_persistence(planned: Callable) -> None:
    plan, out = planned("run", tokenizer=300, dynamics=60, forecasts=150)
    (row,) = train_own(plan, out, command="enma-fast train")["rows"]
    assert row["task"] == "temporal"
    assert row["persistence"]["rel_l2"] > 0.5
    assert row["rel_l2"] < 0.5 * row["persistence"]["rel_l2"]
    assert row["rel_l2"] < 0.5 * row["climatology"]["rel_l2"]
    test: FieldFile = read(out / "data" / "advected-test-in.h5")
    assert len(test) == row["num_trajectories"] == 8
    forecast = read(out / "data" / "advected-train.h5").u.mean(0)[3:]
    errors = row["channels"]["u"]
    assert errors["climatology_rmse"] == pytest.approx(float(np.sqrt(np.square(forecast - test.u[:, 3:]).mean())), 1e-5)
    assert row["climatology"]["rmse"] == pytest.approx(errors["climatology_rmse"], rel=1e-5)
    # Half of the points of each frame tell its two waves.
    at_points = score(load_model(out), test, num_members=row["num_members"], points=8)
    assert at_points["rel_l2"] < 1.1 * row["rel_l2"]


@pytest.mark.parametrize("minutes", [1e300, float("inf"), float("nan"), 0.0, -1.0])
def test_minutes_that_nobody_has_are_refused(minutes: float) -> None:
    with pytest.raises(EnmaError, match=r"^minutes is"):
        own_plan.Request(minutes=minutes)


def test_too_few_minutes_are_refused_with_the_numbers_of_the_plan() -> None:
    each = {"tokenizer": 0.5, "dynamics": 1.25, "forecasts": 3.0}
    with pytest.raises(EnmaError) as refused:
        own_plan._with_steps(ADVECTED, own_plan.Request(minutes=1), each, 98.4)
    said = str(refused.value)
    assert said.startswith("minutes is 1: that leaves fewer than 10 steps for a stage of this model on this machine")
    assert said.endswith(
        "(the work beside the steps takes 98.4 s, and a step 0.5 s (tokenizer), 1.2 s (dynamics), 3 s (forecasts))"
    )
