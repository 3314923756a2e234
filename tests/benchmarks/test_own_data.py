"""The comparison on own data: its solvers, its two networks and its scores."""

import itertools
import json
import math

import numpy as np
import pytest
import torch

from benchmarks import own_data
from benchmarks.own_data import MEMBERS, Totals, measure
from benchmarks.own_networks import HISTORY, NETWORKS, fit, relative_errors
from benchmarks.own_results import (
    BY_TIME,
    COLUMNS,
    EQUATION,
    EXACT,
    FIELD,
    METHODS,
    QUICK_SECONDS,
    RESULTS,
    TIMED,
    broken,
    load,
)
from benchmarks.own_sets import SETS, burgers, kuramoto_sivashinsky, shallow_water


def test_kuramoto_sivashinsky_agrees_with_half_the_step():
    coarse, fine = (kuramoto_sivashinsky(2, 6, np.random.default_rng(0), spin_up=25, steps=steps) for steps in (40, 80))
    assert coarse.shape == (2, 6, 128)
    assert fine.std() > 0.5
    np.testing.assert_allclose(coarse, fine, atol=1e-3)
    np.testing.assert_allclose(fine.mean(-1), 0, atol=1e-12)


def test_larger_domains_of_kuramoto_sivashinsky_have_the_same_physics():
    small, large = (kuramoto_sivashinsky(20, 3, np.random.default_rng(0), points=points) for points in (128, 256))
    assert large.shape == (20, 3, 256)
    assert large.std() == pytest.approx(small.std(), rel=0.1)
    step = [np.diff(u, axis=-1).std() for u in (small, large)]
    assert step[0] == pytest.approx(step[1], rel=0.1)


def test_burgers_agrees_with_half_the_step_and_keeps_its_momentum():
    (coarse, known), (fine, _) = (burgers(3, np.random.default_rng(0), frames=6, steps=n) for n in (32, 64))
    assert coarse.shape == (3, 6, 128)
    np.testing.assert_allclose(coarse, fine, atol=1e-5)
    # Every fourth point of waves far below the 64th has their mean.
    np.testing.assert_allclose(fine.mean(-1), 0, atol=1e-3)
    assert np.abs(fine[:, -1] - fine[:, 0]).max() > 0.1
    # Euler's small steps with what is told are the equation.
    u, k = fine[:, 0], np.arange(65)
    for _ in range(4000):
        slope, bend = (np.fft.irfft(factor * np.fft.rfft(u), n=128) for factor in (1j * k, -(k**2)))
        u = u + 0.1 / 4000 * (-u * slope + known["nu"][:, 0] * bend + known["f"][:, 0])
    np.testing.assert_allclose(u, fine[:, 1], atol=2e-3)


def test_shallow_water_keeps_its_mass_and_agrees_with_half_the_step():
    coarse, fine = (shallow_water(2, np.random.default_rng(0), frames=6, steps=steps) for steps in (8, 16))
    assert coarse.shape == (2, 6, 96, 64, 3)
    np.testing.assert_allclose(coarse, fine, atol=1e-5)
    mass = coarse[..., 0].mean((2, 3))
    np.testing.assert_allclose(mass, np.repeat(mass[:, :1], 6, axis=1), atol=1e-13)
    assert np.abs(coarse[:, -1, ..., 0] - coarse[:, 0, ..., 0]).max() > 0.05


def _moving_waves(grid: tuple[int, ...], periodic: tuple[bool, ...]) -> torch.Tensor:
    """Waves `[B, 8, *x, 1]` that move along x, with other phases and amplitudes each, weaker towards a wall."""
    draws = torch.Generator().manual_seed(0)
    phase, amplitude = (torch.rand(24, 1, *(1 for _ in grid), generator=draws) for _ in range(2))
    x = torch.arange(grid[0]) / grid[0]
    t = torch.arange(8.0).reshape(8, *(1 for _ in grid)) / 16
    x = x.reshape(-1, *(1 for _ in grid[1:])).expand(grid)
    fields = (0.5 + amplitude) * torch.sin(2 * math.pi * (x - t + phase))
    for axis, ring in enumerate(periodic):
        if not ring:
            shape = [-1 if i == axis else 1 for i in range(len(grid))]
            fields = fields * torch.linspace(0.5, 1, grid[axis]).reshape(shape)
    return fields[..., None]


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize(
    ("grid", "periodic"), [((48,), (True,)), pytest.param((24, 24), (True, False), marks=pytest.mark.slow)]
)
def test_networks_learn_a_moving_wave(kind, grid, periodic):
    fields = _moving_waves(grid, periodic)
    steps = 40
    # A clock that ticks once a look: so many steps, whatever the machine.
    clock = itertools.count().__next__
    model = fit(kind, fields[:20], periodic, seconds=steps, learning_rate=4e-3, seed=0, clock=clock)
    held = fields[20:]
    with torch.no_grad():
        made = model(held[:, :HISTORY], 5)
    persistence = held[:, 2:3].expand(-1, 5, *grid, 1)
    error = relative_errors(made, held[:, HISTORY:]).mean()
    assert error < 0.3 * relative_errors(persistence, held[:, HISTORY:]).mean()


@pytest.mark.parametrize("kind", NETWORKS)
def test_networks_use_the_maps_that_they_are_told(kind):
    draws = torch.Generator().manual_seed(0)
    force = torch.randn(24, 1, 1, 1, generator=draws) * torch.sin(2 * math.pi * torch.arange(48)[:, None] / 48)
    fields = force * torch.arange(8.0).reshape(8, 1, 1) + 0.1 * torch.randn(24, 1, 48, 1, generator=draws)
    clock = itertools.count().__next__
    model = fit(kind, fields, (True,), seconds=60, learning_rate=4e-3, seed=0, clock=clock, told_Bxk=force[:, 0])
    # Three equal frames say nothing of the force.
    still = fields[:, :1].expand(-1, HISTORY, -1, -1)
    with torch.no_grad():
        apart = model(still, 1, force[:, 0]) - model(still, 1, -force[:, 0])
    assert float((apart[:, 0] * force[:, 0]).mean()) > 0.1 * float(force.square().mean())


@pytest.mark.parametrize("kind", NETWORKS)
def test_networks_know_no_place_on_a_periodic_axis(kind):
    fields = _moving_waves((64,), (True,))
    model = fit(kind, fields, (True,), seconds=2, learning_rate=1e-3, seed=0, clock=itertools.count().__next__)
    with torch.no_grad():
        made, moved = (model(fields[:2, :HISTORY].roll(shift, 2), 3) for shift in (0, 4))
    torch.testing.assert_close(moved, made.roll(4, 2), rtol=1e-4, atol=1e-5)


def test_members_like_the_truth_are_calibrated():
    draws = torch.Generator().manual_seed(0)
    totals = Totals()
    for count in (3, 5):
        values = torch.randn(count, MEMBERS + 1, 4, 2000, 1, generator=draws)
        totals.add(values[:, 1:], values[:, 0])
    found = totals.result()
    assert found["spread_skill"] == pytest.approx(1, abs=0.02)
    assert found["coverage_50"] == pytest.approx(0.5, abs=0.01)
    assert found["coverage_90"] == pytest.approx(15 / 17, abs=0.01)
    # CRPS of a normal distribution by itself.
    assert found["crps"] == pytest.approx(1 / math.sqrt(math.pi), abs=0.01)


def test_one_member_has_its_absolute_error_and_no_spread():
    truth = torch.ones(2, 3, 4, 1)
    totals = Totals()
    totals.add(1.5 * truth[:, None], truth)
    assert totals.result() == {
        "rel_l2": 0.5,
        "rel_l2_median": 0.5,
        "crps": 0.5,
        "spread_skill": None,
        "coverage_50": None,
        "coverage_90": None,
    }


def test_other_threads_are_refused(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    with pytest.raises(SystemExit, match="OMP_NUM_THREADS"):
        own_data.main(["--set", "ks"])


def test_a_row_that_is_not_the_committed_one_is_said():
    committed = [row for row in load(RESULTS) if row["seconds"] == QUICK_SECONDS]
    assert {row["method"] for row in committed} >= {"persistence", "linear", FIELD}
    assert broken(committed, committed) == []
    for row in committed:
        limits = TIMED if row["method"] in BY_TIME else EXACT
        for key, most in limits.items():
            near, far = ({**row, key: row[key] * factor} for factor in (0.999 * most, 1.001 * most))
            assert broken([near], committed) == []
            for wrong in (far, {**row, key: row[key] / (1.001 * most)}, {**row, key: math.nan}):
                (said,) = broken([wrong], committed)
                assert said.startswith(f"{row['set']}, {row['method']}: {key} is ")
    (said,) = broken([{**committed[0], "seed": 7}], committed)
    assert "is not in" in said


def test_a_quick_run_ends_with_what_does_not_hold(monkeypatch, capsys):
    committed = [row for row in load(RESULTS) if row["seconds"] == QUICK_SECONDS]
    asked, factor = [], 1.0

    def measured(name, work, *, seconds, seed, groups):
        asked.append((name, FIELD in groups))
        yield from ({**row, "crps": row["crps"] * factor} for row in committed if row["set"] == name)

    monkeypatch.setattr(own_data, "measure", measured)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    own_data.main(["--quick"])
    assert f"{len(committed)} rows are" in capsys.readouterr().out
    assert ("ks", True) in asked
    factor = 2.0
    with pytest.raises(SystemExit, match="ks"):
        own_data.main(["--quick"])


@pytest.mark.slow
def test_every_method_is_measured(tmp_path):
    rows = list(measure("ks", tmp_path, seconds=3, seed=0, groups=own_data.GROUPS))
    # Three seconds are too few to try the equation.
    assert {row["method"] for row in rows} == {*METHODS} - {EQUATION}
    for row in rows:
        assert all(row[key] is None or math.isfinite(row[key]) for key in COLUMNS), row["method"]
        assert (row["coverage_50"] is None) == (row["method"] != FIELD)
    json.dumps(rows)
    assert SETS.keys() >= {row["set"] for row in rows}
