"""Augmentations: what each makes of a batch, that ranks share it, and what is refused by name."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from enma_fast.data import EQUATIONS, generate, read
from enma_fast.errors import EnmaError
from enma_fast.training.augment import (
    Amplitude,
    Augmentation,
    Batch,
    Boost,
    CutContexts,
    Damping,
    Emphasis,
    LateStart,
    Mirror,
    Scattered,
    Shift,
    Strides,
    check_augmentations,
)
from enma_fast.training.dynamics import DynamicsStage
from enma_fast.training.forecasts import ForecastStage
from enma_fast.training.loop import step_generator
from enma_fast.training.tokenizer import TokenizerStage
from enma_fast.utils.dataclass_json import from_json, to_json

from .._tiny import COMBINED, CONFIGS, SQUARE, between_walls, forecast_task, stage, waves, waves_file

LINE = CONFIGS["relative"]
WALLS = between_walls(LINE)


def batch_of(u, config=LINE, mine=slice(None), segments=1, parameters=None):
    """A batch of these trajectories, the same ones in each segment."""
    times = torch.arange(u.shape[1]).double()
    part = {name: values[mine] for name, values in (parameters or {}).items()}
    return Batch(config, [u[mine] for _ in range(segments)], [dict(part) for _ in range(segments)], times, len(u), mine)


def test_a_shift_moves_each_trajectory_by_itself():
    u = torch.randn(64, 3, 32, 1)
    batch = batch_of(u, segments=2)
    Shift()(batch, step_generator(0, 0))
    found = []
    for moved in batch.fields:
        turns = torch.stack([u.roll(s, dims=2) for s in range(32)])
        which = (turns - moved).abs().amax((2, 3, 4)).argmin(0)
        assert torch.equal(turns[which, torch.arange(64)], moved)
        found.append(which)
    assert len(found[0].unique()) > 20
    assert not torch.equal(*found), "a context has a place of its own"


@pytest.mark.parametrize(
    ("name", "tokenizer", "count"), [("relative", {}, 2), ("plane", {}, 4), ("plane", SQUARE, 8)], ids=str
)
def test_batches_between_walls_are_seen_in_all_views(name, tokenizer, count):
    config = between_walls(CONFIGS[name], **tokenizer)
    axes = tuple(range(2, 2 + config.codec.dims))
    u = torch.randn(3, 2, *config.codec.grid, 1, generator=torch.Generator().manual_seed(0))
    ways = set()
    for step in range(100):
        batch = batch_of(u, config, segments=2)
        Mirror()(batch, step_generator(0, step))
        assert torch.equal(*batch.fields), "context and target are seen in the same view"
        images = {}
        for exchanged in (False, True) if count == 8 else (False,):
            for flips in range(2 ** len(axes)):
                back = batch.fields[0].transpose(2, 3) if exchanged else batch.fields[0]
                images[exchanged, flips] = torch.equal(
                    back.flip([axis for i, axis in enumerate(axes) if flips >> i & 1]), u
                )
        (way,) = [way for way, there in images.items() if there]
        ways.add(way)
    assert len(ways) == count


def test_batches_begin_late_and_skip_frames():
    frames = np.arange(8)
    parts = []
    for step in range(200):
        batch = batch_of(torch.arange(8.0).view(1, 8, 1, 1).expand(2, 8, 32, 1))
        for augmentation in (LateStart(share=0.5), Strides(steps=(1, 3))):
            augmentation(batch, step_generator(1, step))
        part = batch.fields[0][0, :, 0, 0].numpy()
        np.testing.assert_array_equal(batch.times, part)
        parts.append(part)
    assert min(map(len, parts)) == 2
    assert {int(part[1] - part[0]) for part in parts} == {1, 3}
    assert 0.4 < np.mean([part[0] > 0 for part in parts]) < 0.6
    assert max(part[0] for part in parts) < len(frames) // 2
    # A part ends with a whole latent frame; whole trajectories end as they do.
    for part in parts:
        if part[0] == 0 and part[1] == 1:
            assert len(part) == len(frames)
        elif len(part) > 2:
            assert len(part) % 2 == 1


def test_some_contexts_are_short():
    """Half of the batches see a whole context, the others its first 3, 5, 7 or 8 frames; targets are always whole."""
    seen = []
    for step in range(400):
        batch = batch_of(torch.randn(2, 8, 32, 1), segments=2)
        CutContexts()(batch, step_generator(0, step))
        assert batch.fields[1].shape[1] == 8
        seen.append(batch.fields[0].shape[1])
        alone = batch_of(torch.randn(2, 8, 32, 1))
        CutContexts(share=1.0)(alone, step_generator(0, step))
        assert alone.fields[0].shape[1] == 8
    # Of 3 to 8 frames, those of whole latent frames.
    counts = np.bincount(seen, minlength=9) / 400
    np.testing.assert_allclose(counts, [0, 0, 0, 1 / 6, 0, 1 / 6, 0, 1 / 12, 7 / 12], atol=0.08)


def test_symmetries_carry_solutions_to_solutions(tmp_path: Path) -> None:
    data = read(generate("advection", "val", out_dir=tmp_path, groups=1))
    config = replace(LINE, dataset="advection")
    for augmentation in (Amplitude(between=(0.5, 2.0)), Boost(deviation=1.0)):
        batch = batch_of(torch.from_numpy(data.u), config, segments=2, parameters=data.parameters)
        augmentation(batch, step_generator(0, 0))
        u, alpha = batch.fields[0].numpy(), batch.parameters[0]["alpha"]
        assert torch.equal(*batch.fields), "a context is of the same physics"
        assert not np.allclose(u, data.u)
        expected = EQUATIONS["advection"].solve(u[:, 0].astype(np.float64), {"alpha": alpha})
        np.testing.assert_allclose(u, expected, atol=1e-5)


def test_a_boost_adds_each_environment_once_more_as_a_solution_of_its_own(tmp_path: Path) -> None:
    data = read(generate("advection", "val", out_dir=tmp_path, groups=3))
    config, boost, count = replace(LINE, dataset="advection"), Boost(deviation=2.0), len(data)
    both = boost.with_copies(data, config, seed=5)
    assert len(both) == 2 * count
    np.testing.assert_array_equal(both.u[:count], data.u)
    assert len(np.unique(both.environment)) == 2 * len(np.unique(data.environment))
    change = both.parameters["alpha"][count:] - data.parameters["alpha"]
    for environment in np.unique(data.environment):
        assert np.ptp(change[data.environment == environment]) < 1e-12
    assert len(np.unique(change.round(9))) == 3
    expected = EQUATIONS["advection"].solve(
        both.u[count:, 0].astype(np.float64), {"alpha": both.parameters["alpha"][count:]}
    )
    np.testing.assert_allclose(both.u[count:], expected, atol=1e-5)
    np.testing.assert_array_equal(boost.with_copies(data, config, seed=5).u, both.u)


def test_environments_are_drawn_in_proportion_to_powers_of_their_parameters(monkeypatch):
    """Here to 1 / (rate speed^2): a quarter as often where the speed is doubled, twice where the rate is halved."""
    groups = forecast_task("relative").groups
    speed, rate = torch.ones(12), torch.ones(12)
    speed[groups[0]], rate[groups[1]] = 2.0, 0.5
    task = forecast_task(
        "relative",
        batch=2_000,
        augment=(Emphasis(powers=(("rate", -1.0), ("speed", -2.0))),),
        parameters={"speed": speed.numpy(), "rate": rate.numpy()},
    )
    seen = []
    monkeypatch.setattr(task.model, "encode", lambda u: seen.append(u) or u)
    task.tokens(step_generator(0, 0), slice(None), paired=True)
    rows = [(u[:, None] == task.train[None]).flatten(2).all(-1).int().argmax(1) for u in seen]
    group = torch.zeros(12, dtype=torch.long)
    for i, members in enumerate(groups):
        group[members] = i
    counts = torch.bincount(group[rows[1]], minlength=6).double() / 2_000
    expected = torch.tensor([0.25, 2.0, 1.0, 1.0, 1.0, 1.0], dtype=torch.float64)
    torch.testing.assert_close(counts, expected / expected.sum(), atol=0.03, rtol=0)
    assert torch.equal(group[rows[0]], group[rows[1]])


@pytest.mark.parametrize(
    "augmentation",
    [
        Shift(),
        Mirror(),
        LateStart(share=0.5),
        Strides(steps=(1, 2)),
        CutContexts(),
        Damping(rates=((2.0, 0.5),), share=0.5),
        Amplitude(between=(0.5, 2.0)),
    ],
    ids=lambda augmentation: augmentation.kind,
)
def test_ranks_share_a_batch(augmentation: Augmentation) -> None:
    config = replace(WALLS if augmentation.kind == "mirror" else LINE, dataset="advection")
    u, parameters = torch.randn(6, 8, 32, 1), {"alpha": np.linspace(1, 2, 6)}
    for step in range(3):
        found = []
        for mine in (slice(None), slice(0, 3), slice(3, 6)):
            batch = batch_of(u, config, mine, segments=2, parameters=parameters)
            augmentation(batch, step_generator(0, step))
            found.append(batch.fields)
        for whole, *parts in zip(*found, strict=True):
            torch.testing.assert_close(whole, torch.cat(parts), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("augmentation", "config", "reason"),
    [
        (Shift(), WALLS, "walls on all sides"),
        (Mirror(), LINE, "domain is periodic"),
        (Damping(rates=((2.0, 1.0),), share=0.1), WALLS, "walls"),
        (Amplitude(between=(0.5, 2.0)), LINE, "equation of waves declares no such symmetry"),
        (Boost(deviation=0.1), replace(COMBINED, dataset="vorticity"), "equation of vorticity declares no such"),
        (Strides(steps=(1, 8)), LINE, "a stride of 8 leaves 1 of 8 frames"),
        (Emphasis(powers=(("nu", 1.0),)), LINE, "no parameter 'nu'"),
        (Emphasis(powers=(("rate", 0.5),)), LINE, "not above 0 and finite"),
    ],
    ids=lambda given: getattr(given, "kind", None),
)
def test_what_the_data_do_not_allow_is_refused_by_name(augmentation, config, reason) -> None:
    data = waves_file(config, waves(6, 2, 8, config.codec))
    data = replace(data, parameters={"rate": np.linspace(-1, 1, 12)}, times=np.arange(8))
    with pytest.raises(EnmaError, match=rf"stage forecasts: augmentation {augmentation.kind}: .*{reason}"):
        check_augmentations([augmentation], data, config, stage="forecasts", known=ForecastStage.augmentations)


@pytest.mark.parametrize(
    ("kind", "augmentation"), [(DynamicsStage, Amplitude(between=(1.0, 2.0))), (TokenizerStage, Strides(steps=(2,)))]
)
def test_a_stage_refuses_what_it_does_not_have(kind, augmentation) -> None:
    data = waves_file(LINE, waves(6, 2, 8, LINE.codec))
    trained = stage(kind, LINE, augment=(augmentation,))
    with pytest.raises(EnmaError, match=f"augmentation {augmentation.kind}: it is no augmentation of this stage"):
        check_augmentations(trained.augment, data, LINE, stage=trained.kind, known=trained.augmentations)
    with pytest.raises(EnmaError, match="augmentation shift: it is there twice"):
        check_augmentations([Shift(), Shift()], data, LINE, stage=trained.kind, known=trained.augmentations)


@pytest.mark.parametrize(
    ("make", "entry"),
    [
        (lambda: Amplitude(between=(0.0, 1.0)), "amplitude.between"),
        (lambda: Boost(deviation=-1.0), "boost.deviation"),
        (lambda: Strides(steps=()), "strides.steps"),
        (lambda: LateStart(share=1.5), "late-start.share"),
        (lambda: CutContexts(share=-0.5), "cut-contexts.share"),
        (lambda: Damping(rates=((9.0, 1.0),), share=0.5), "damping.rates"),
        (lambda: Scattered(share=2.0), "scattered.share"),
    ],
)
def test_settings_that_make_no_sense_are_refused(make, entry) -> None:
    with pytest.raises(EnmaError, match=rf"^{entry} is"):
        make()


def test_they_are_read_back_by_their_tags() -> None:
    trained = stage(ForecastStage, LINE, augment=(Mirror(), Strides(steps=(1, 2)), Emphasis(powers=(("nu", -1.0),))))
    assert from_json(ForecastStage, to_json(trained)) == trained
    with pytest.raises(EnmaError, match=r"augment\.0"):
        from_json(ForecastStage, to_json(trained).replace('"mirror"', '"mirrored"'))
