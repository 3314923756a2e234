"""Sets of trajectories by their features: closed forms, known sets, and the shipped feature network."""

import shutil

import numpy as np
import pytest
import torch

from benchmarks.paper.distribution import frechet_distance, precision_recall
from benchmarks.paper.features import NUM_FEATURES, features, training_file, weights_of
from benchmarks.paper.protocols import CASES, measure
from benchmarks.paper.score_files import score_file
from enma_fast.data import PRETRAINED, read
from enma_fast.errors import EnmaError
from enma_fast.forecasting.request import GENERATION

CASE = next(case for case in CASES if case.protocol == "features")


def test_the_frechet_distance_of_moved_and_stretched_sets(rng):
    a = rng.normal(size=(200, 5))
    centred = a - a.mean(0)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-12)
    assert frechet_distance(a, a + np.arange(5)) == pytest.approx(30, rel=1e-10)
    factors = np.array([0.5, 1, 2, 3, 0])
    # Gaussians whose covariances commute: the sum of (s - r)^2 over the axes.
    axes = np.linalg.svd(centred, full_matrices=False)[0] * np.sqrt(199)
    expected = ((factors - 1) ** 2).sum()
    assert frechet_distance(axes, axes * factors) == pytest.approx(expected, rel=1e-10)


def test_the_frechet_distance_is_that_of_the_formula(rng):
    linalg = pytest.importorskip("scipy.linalg")
    a, b = (rng.normal(size=(n, 6)) @ rng.normal(size=(6, 6)) + rng.normal(size=6) for n in (40, 70))
    s, r = np.cov(a.T), np.cov(b.T)
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(s + r - 2 * linalg.sqrtm(s @ r).real)
    assert frechet_distance(a, torch.from_numpy(b)) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(b, a) == pytest.approx(expected, rel=1e-9)
    few = frechet_distance(a[:3], b[:4])
    assert np.isfinite(few)
    assert few > 0


def test_precision_and_recall_of_known_sets():
    line = np.arange(10.0)[:, None]
    assert precision_recall(line, line) == (1, 1)
    assert precision_recall(line, line + 100) == (0, 0)
    # Balls of the line reach 2 to 3 to both sides of it; those of the five points from 0 to 0.4 reach 0.2 to 0.3.
    one_place = np.arange(5)[:, None] / 10
    assert precision_recall(line, one_place) == (1, 0.1)
    assert precision_recall(one_place, line) == (0.1, 1)
    # Half of the samples are far off: the third neighbour of an end is 3 away, of a point inside 2.
    assert precision_recall(line, np.concatenate([line[:5], line[:5] + 1000])) == (0.5, 0.8)
    assert precision_recall(line, line[::-1] + 2.5) == (1, 1)
    assert precision_recall(line, line + 3.5) == (0.9, 0.9)


def test_sets_that_do_not_compare_are_refused():
    with pytest.raises(EnmaError, match="shapes"):
        frechet_distance(np.zeros((4, 2)), np.zeros((4, 3)))
    with pytest.raises(EnmaError, match="samples"):
        precision_recall(np.zeros((4, 2)), np.zeros((3, 2)))


def test_the_shipped_features_know_the_physics_and_not_the_place():
    data = read(PRETRAINED / "combined-test-in.h5")
    found = features("combined", data.u)
    assert found.shape == (len(data), NUM_FEATURES)
    torch.testing.assert_close(found, features("combined", np.roll(data.u, 8, axis=2)), rtol=1e-4, atol=1e-5)
    # Trajectories of one environment lie nearer to each other than to others.
    apart = torch.cdist(found, found)
    same = torch.from_numpy(data.environment[:, None] == data.environment) & ~torch.eye(len(data), dtype=torch.bool)
    assert apart[same].mean() < 0.5 * apart[torch.from_numpy(data.environment[:, None] != data.environment)].mean()
    assert weights_of("combined").stat().st_size < 300_000


def test_generated_trajectories_are_compared_with_the_training_file(tmp_path):
    for split in ("train", "test-in"):
        shutil.copy(PRETRAINED / "combined-test-in.h5", tmp_path / f"combined-{split}.h5")
    data = read(tmp_path / "combined-test-in.h5")
    seen = []

    def truth(given):
        seen.append(given)
        return data.u[list(given.trajectories)][:, None]

    row = measure(truth, data, CASE)
    assert (row["fpd"], row["precision"], row["recall"]) == (pytest.approx(0, abs=1e-9), 1, 1)
    assert (row["task"], row["trajectories"], row["frames"]) == (GENERATION.name, 24, 20)
    assert seen[0].history is None
    np.testing.assert_array_equal(seen[0].context[0], data.u[1])
    tripled = measure(lambda given: 3 * truth(given), data, CASE)
    assert tripled["fpd"] > 0.1
    assert tripled["precision"] < 0.5
    shared = {"method": "truth", "kind": "baseline", "equation": "combined", "seed": 0, "cases": [CASE]}
    found = score_file(truth, **shared, data_dir=tmp_path, cpu_seconds=0.0, num_parameters=0)
    assert set(found["data"]) == {"combined-train.h5", "combined-test-in.h5"}
    assert found["rows"][0]["fpd"] == row["fpd"]


def test_without_a_training_file_there_is_nothing_to_compare_with(tmp_path):
    shutil.copy(PRETRAINED / "combined-test-in.h5", tmp_path)
    assert training_file("combined", tmp_path) is None
    shared = {"method": "truth", "kind": "baseline", "equation": "combined", "seed": 0, "cases": [CASE]}
    with pytest.raises(EnmaError, match="holds no"):
        score_file(lambda given: None, **shared, data_dir=tmp_path, cpu_seconds=0.0, num_parameters=0)
    with pytest.raises(EnmaError, match=r"combined-train\.h5"):
        measure(
            lambda given: np.zeros((len(given.trajectories), 1, 20, 128, 1), np.float32),
            read(tmp_path / "combined-test-in.h5"),
            CASE,
        )
