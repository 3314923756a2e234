"""`enma-fast train FILE` on a periodic plane: what is derived, and a training whose second stage is the head alone."""

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("h5py", reason="needs the [data] extra")

from enma_fast.config import LocalConfig
from enma_fast.models.checkpoint import load_model
from enma_fast.training.augment import CutContexts, found
from enma_fast.training.dynamics import DynamicsStage
from enma_fast.training.head import HeadStage
from enma_fast.training.own_model import prepare_own, train_own
from enma_fast.training.own_plan import Request, shares
from enma_fast.training.own_recipe import derived_recipe
from enma_fast.training.recipes import Recipe

from .._own import advected, save, tiny


def derived(grid: tuple[int, ...], periodic: tuple[bool, ...], channels: int = 1, **settings: object) -> Recipe:
    shape = {"grid": grid, "lengths": (1.0,) * len(grid), "periodic": periodic}
    fields = {"mean": (0.0,) * channels, "scale": (1.0,) * channels, "num_frames": 12, "frame_interval": 0.1}
    return derived_recipe("own", **{"size": "small"} | shape | fields | settings)


def test_only_fine_periodic_planes_have_a_head_of_their_own() -> None:
    for recipe in (
        derived((128,), (True,)),
        derived((64, 64), (True, False)),
        derived((64, 64), (True, True), shift=False),
        derived((256, 64), (True, True)),
        derived((64, 32), (True, True)),
        derived((64, 64), (True, True), size="paper"),
    ):
        assert recipe.model.step.kind == "linear"
        assert list(shares(recipe)) == ["tokenizer", "dynamics", "forecasts"]
    for size, width in (("small", 32), ("base", 48)):
        recipe = derived((128, 64), (True, True), channels=2, size=size)
        model = recipe.model
        assert model.codec.kind == "blocks"
        assert (model.codec.token_grid, model.codec.latent_channels) == ((64, 32), 16)
        # As many tokens as the model with a trained tokenizer has.
        coarse = derived((128, 64), (True, True), channels=2, size=size, shift=False)
        assert model.num_tokens == coarse.model.num_tokens
        local = model.step
        assert isinstance(local, LocalConfig)
        assert (local.width, local.modes) == (width, 8)
        assert list(shares(recipe)) == ["dynamics", "head", "forecasts"]
    for each in (shares(recipe), shares(coarse)):
        assert sum(each.values()) == pytest.approx(1)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Planes of few points count as fine ones, so that a training takes seconds."""
    monkeypatch.setattr("enma_fast.training.own_recipe._FINE_SIDES", (8, 128))


@pytest.mark.usefixtures("small")
def test_few_frames_leave_one_to_forecast() -> None:
    head = derived((16, 16), (True, True), num_frames=5).first(HeadStage)
    assert (head.history, head.frames) == ((1, 2), 2)


@pytest.mark.usefixtures("small")
def test_a_plane_is_trained_through_its_head(tmp_path: Path) -> None:
    """Waves along one axis, the same along the other; the head alone is most of it."""
    u = np.repeat(advected(80)[..., None], 8, -1)
    source, out = save(tmp_path / "plane.h5", u), tmp_path / "run"
    plan = tiny(prepare_own(source, out, Request()), out, {"dynamics": 2, "head": 60, "forecasts": 2})
    notes: list[str] = []
    found = train_own(plan, out, command="enma-fast train", progress=lambda *seen: notes.append(seen[2]))
    assert {note.split()[0] for note in notes} == {"dynamics", "head", "forecasts", "scoring"}
    assert list(found["training"]["stages"]) == ["dynamics", "head", "forecasts"]
    (row,) = found["rows"]
    assert row["rel_l2"] < 0.5 * row["persistence"]["rel_l2"]
    assert load_model(out).config.codec.kind == "blocks"
    assert "| head | 60 |" in (out / "checkpoint" / "README.md").read_text()


@pytest.mark.usefixtures("small")
def test_a_head_goes_on_with_the_contexts_that_its_dynamics_saw(tmp_path: Path) -> None:
    """A stage without contexts does not change how short ones may be."""
    environment = np.arange(40).repeat(2).tolist()
    source = save(tmp_path / "plane.h5", np.repeat(advected(80)[..., None], 8, -1), environment=environment)
    out = tmp_path / "run"
    plan = tiny(prepare_own(source, out, Request()), out, {"dynamics": 1, "head": 1, "forecasts": 1})
    assert plan.contexts
    shortest = found(plan.recipe.first(DynamicsStage).augment, CutContexts).shortest
    train_own(plan, out, command="enma-fast train")
    for stage in ("dynamics", "head", "forecasts"):
        config = json.loads((out / stage / "checkpoint" / "config.json").read_text())
        assert config["shortest_context"] == shortest, stage
