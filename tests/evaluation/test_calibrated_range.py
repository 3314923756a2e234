"""The range of the spread-skill ratio that a calibrated ensemble would have."""

import itertools

import numpy as np
import pytest
import torch

from enma_fast.evaluation.metrics import Scores, spread_skill

from .test_metrics import CALIBRATED, gaussian


def of_units(*units, members, seed=0):
    """Trajectories in these units, whose truths are like their members."""
    return [
        torch.tensor(units).view(-1, *[1] * (part.ndim - 1)) * part
        for part in gaussian(len(units), 1, 2, 1, members=members, seed=seed)
    ]


def test_the_range_of_the_ratio_is_that_of_members_in_place_of_the_truth():
    ensemble, truth = of_units(1.0, 3.0, 10.0, members=6)
    scores = Scores()
    scores.update(ensemble, truth)
    ratios = []
    for chosen in itertools.product(range(6), repeat=3):
        one = torch.stack([members[k] for members, k in zip(ensemble, chosen, strict=True)])
        others = [torch.cat([members[:k], members[k + 1 :]]) for members, k in zip(ensemble, chosen, strict=True)]
        ratios.append(spread_skill(torch.stack(others), one).item())
    found = [scores.result()[name] for name in CALIBRATED]
    assert found == pytest.approx(np.quantile(ratios, [0.05, 0.95]).tolist(), rel=0.1)


@pytest.mark.parametrize("units", [[1.0] * 20, [1.0] * 19 + [20.0]], ids=["alike", "one-rules"])
def test_the_range_of_the_ratio_holds_calibrated_ensembles_nine_times_in_ten(units):
    inside = 0
    for seed in range(200):
        scores = Scores()
        scores.update(*of_units(*units, members=16, seed=seed))
        result = scores.result()
        inside += result["spread_skill_low"] < result["spread_skill"] < result["spread_skill_high"]
    assert inside / 200 == pytest.approx(0.9, abs=0.06)
