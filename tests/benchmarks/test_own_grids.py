"""Forecasts on domains of other sizes: their scores."""

import pytest
import torch

from benchmarks import own_grids
from benchmarks.own_networks import HISTORY


class _Knows:
    """A model that is given the truth, and whose members are off by a share of it."""

    def __init__(self) -> None:
        self.asked = []

    def at_grid(self, points):
        self.asked.append(points)
        return self


@pytest.mark.parametrize("points", [128, 64])
def test_errors_are_of_the_mean_of_the_members_on_the_domain_asked_for(monkeypatch, points):
    made = []

    def solve(*arguments, **given):
        made.append(torch.randn(4, own_grids.KS_WINDOW, given["points"], generator=torch.Generator().manual_seed(0)))
        return made[-1].numpy()

    def members(model, *, history, num_members, num_frames):
        truth = made[-1][:, None, -num_frames:, :, None]
        assert torch.equal(history, made[-1][:, :HISTORY, :, None])
        factors = torch.linspace(0.9, 1.3, num_members).view(1, -1, 1, 1, 1)
        return factors * truth

    monkeypatch.setattr(own_grids, "kuramoto_sivashinsky", solve)
    monkeypatch.setattr(own_grids, "sample_fields", members)
    model = _Knows()
    found = own_grids.row(model, points, 4)
    assert model.asked == ([] if points == 128 else [points])
    assert found["mean"] == pytest.approx(0.1, rel=1e-4)
    assert found["median"] == pytest.approx(0.1, rel=1e-4)
    # Frames of chance differ from each other by the root of two.
    assert found["persistence"] == pytest.approx(2**0.5, rel=0.1)
    spread = float(torch.linspace(0.9, 1.3, own_grids.MEMBERS).std())
    assert found["spread_skill"] == pytest.approx((17 / 16) ** 0.5 * spread / 0.1, rel=1e-4)
