"""Field models on grids of another size, with the spacing that they were trained with."""

import pytest
import torch

from enma_fast.config import SamplingConfig
from enma_fast.errors import EnmaError
from enma_fast.forecasting.members import sample_fields

from .._tiny_field import field_model, waves


def resizable(grid=(16,), periodic=(True,), floor="waves"):
    made = field_model(grid=grid, periodic=periodic, floor=floor)
    made.dynamics.step.model.residuals.zero_()
    return made


@pytest.mark.parametrize(("grid", "floor"), [((16,), "persistence"), ((16,), "diffusion"), ((12, 8), "diffusion")])
def test_fields_side_by_side_are_forecast_as_each_of_them(grid, floor):
    made = resizable(grid, (True,) * len(grid), floor)
    larger = made.at_grid(*(2 * n for n in grid))
    assert larger.config.codec.lengths == tuple(2 * length for length in made.config.codec.lengths)
    assert larger.config.codec.spacings == pytest.approx(made.config.codec.spacings)
    u = waves(made.config, 2)[:, :3]
    tiled = u.repeat(1, 1, *(2,) * len(grid), 1)
    still = SamplingConfig(temperature=0.0)
    small, large = (
        sample_fields(one, history, num_frames=4, num_members=1, settings=still, warn=False)
        for one, history in ((made, u), (larger, tiled))
    )
    again = small.repeat(1, 1, 1, *(2,) * len(grid), 1)
    changed = float((again - tiled[:, None, -1:]).norm())
    assert changed > 0
    assert float((large - again).norm()) < 2e-2 * changed


def test_walls_stay_walls():
    made = resizable((12, 9), (True, False), "persistence")
    larger = made.at_grid(12, 17)
    assert larger.config.codec.lengths == pytest.approx(
        (made.config.codec.lengths[0], 2 * made.config.codec.lengths[1])
    )
    history = torch.randn(1, 3, 12, 17, made.config.codec.field_channels, generator=torch.Generator().manual_seed(0))
    assert torch.isfinite(sample_fields(larger, history, num_frames=3, num_members=2, warn=False)).all()


def test_what_is_of_its_grid_is_refused():
    for made, grid, reason in (
        (resizable(), (32,), "the floor 'waves', which is of its grid"),
        (resizable(floor="persistence"), (32, 32), r"grid is \[32, 32\]; .* has 1 axes"),
        (field_model(grid=(16,), periodic=(True,), floor="persistence"), (32,), "residuals of single steps, which"),
    ):
        with pytest.raises(EnmaError, match=reason):
            made.at_grid(*grid)
