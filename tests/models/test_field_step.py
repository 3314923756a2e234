"""The field decoder and the context of its physics: what they add, symmetries, members, bounds, and that they learn."""

import pytest
import torch

from enma_fast.config import FieldConfig, PhysicsConfig
from enma_fast.models.contexts.physics import PhysicsEncoder
from enma_fast.models.field_step import FieldStep
from enma_fast.models.grid_layers import Edge

P, W, O = Edge.PERIODIC, Edge.WALL, Edge.OPEN
SMALL = {"width": 8, "layers": 2, "middle_width": 8, "member": 4}


def decoder(grid, edges, channels=2, views=0, **more):
    torch.manual_seed(0)
    made = FieldStep(grid, edges, channels, FieldConfig(**{**SMALL, **more}), condition=6, views=views)
    for name, p in made.named_parameters():
        if name.endswith(("down.weight", "head.weight")):
            torch.nn.init.normal_(p, std=0.3)
    return made.double().requires_grad_(False)


def past(grid, channels=2, batch=3):
    shape = (batch, 3, *grid, channels)
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def condition(batch=3):
    return torch.randn(batch, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


@pytest.mark.parametrize(
    ("grid", "edges", "levels"),
    [
        ((12,), [P], 0),
        ((12,), [O], 1),
        ((8, 12), [P, W], 1),
        ((7, 5), [W, O], 1),
        ((9,), [P], 0),
        ((4, 6, 5), [P, W, O], 1),
    ],
)
def test_any_grid_gives_frames_of_its_size(grid, edges, levels):
    made = decoder(grid, edges, middle_layers=levels).roll(past(grid), condition(), 2)
    assert made.shape == (3, 2, *grid, 2)
    assert torch.isfinite(made).all()
    assert not torch.equal(made[:, 0], past(grid)[:, -1])


@pytest.mark.parametrize("levels", [0, 1])
def test_fields_on_a_periodic_axis_move_together_by_whole_blocks(levels):
    grid, model = (16, 12), decoder((16, 12), [P, W], middle_layers=levels)
    x, z = past(grid), condition()
    shift = 4 if levels else 2
    torch.testing.assert_close(model.roll(x.roll(shift, 2), z, 2), model.roll(x, z, 2).roll(shift, 2))
    assert not torch.allclose(model.roll(x.roll(shift, 3), z, 2), model.roll(x, z, 2).roll(shift, 3))


def test_trajectories_do_not_feel_each_other():
    model, x, z = decoder((8, 8), [P, P]), past((8, 8)), condition()
    torch.testing.assert_close(model.roll(x[1:2], z[1:2], 2), model.roll(x, z, 2)[1:2])


def test_units_do_not_matter_once_scales_are_learned():
    grid, fields = (8, 8), past((8, 8), batch=20)
    model, other = decoder(grid, [P, P]), decoder(grid, [P, P])
    unit, offset = torch.tensor([1e3, 1e-3], dtype=torch.float64), torch.tensor([5.0, -2.0], dtype=torch.float64)
    model.scales.learn(fields)
    other.scales.learn(fields * unit + offset)
    x, z = past(grid), condition()
    torch.testing.assert_close(other.roll(x * unit + offset, z, 3), model.roll(x, z, 3) * unit + offset)


def test_a_floor_is_forecast_and_what_is_added_is_scaled_by_the_factor():
    grid = (8, 8)
    model, x, z = decoder(grid, [P, P], views=1), past(grid), condition()
    model.scales.low.fill_(-100), model.scales.high.fill_(100)

    def floor(frames):
        base = 0.5 * frames[:, -1]
        return base, base[..., None]

    none, whole = torch.zeros(3).double(), torch.ones(3).double()
    alone = model.roll(x, z, 2, floor=floor, factor=none)
    torch.testing.assert_close(alone, torch.stack([0.5 * x[:, -1], 0.25 * x[:, -1]], 1))
    one, half = (model.roll(x, z, 1, floor=floor, factor=f) for f in (whole, whole / 2))
    torch.testing.assert_close(half - alone[:, :1], (one - alone[:, :1]) / 2)
    torch.testing.assert_close(one, model.roll(x, z, 1, floor=floor))


def test_members_differ_by_their_numbers_and_by_noise():
    grid = (8, 8)
    model, x, z = decoder(grid, [P, P], noise=2), past(grid, batch=1), condition(1)

    def roll(seed=0, *, spread=1.0, member=None):
        generator = torch.Generator().manual_seed(seed)

        def draw(*shape):
            return spread * torch.randn(1, *shape, generator=generator)

        return model.roll(x, model.condition(z, member), 2, draw=draw)

    assert torch.equal(roll(0), roll(0))
    assert not torch.equal(roll(0), roll(1))
    still = roll(0, spread=0.0)
    assert torch.equal(still, roll(1, spread=0.0))
    assert (roll(0, spread=0.1) - still).norm() < (roll(0) - still).norm()
    member = torch.ones(1, 4, dtype=torch.float64)
    assert not torch.equal(roll(0, spread=0.0, member=member), still)


def test_forecasts_stay_near_the_values_of_training():
    grid = (8,)
    model, z = decoder(grid, [P], channels=1), condition()
    model.scales.error.fill_(1e4)
    made = model.roll(past(grid, 1).clamp(0, 1), z, 50)
    assert float(made.min()) >= -0.5
    assert float(made.max()) <= 1.5


def test_windows_of_a_context_have_no_order_and_no_place():
    torch.manual_seed(0)
    context = PhysicsEncoder((8, 12), [P, W], 2, PhysicsConfig(width=8, hidden=8), 3).double()
    windows = torch.randn(3, 4, 3, 8, 12, 2, dtype=torch.float64)
    told = torch.randn(3, 3, dtype=torch.float64)
    z = context(windows, told)
    assert z.shape == (3, 32)
    torch.testing.assert_close(context(windows.flip(1), told), z)
    torch.testing.assert_close(context(windows.roll(2, 3), told), z)
    assert not torch.allclose(context(windows.roll(2, 4), told), z)
    assert not torch.allclose(context(windows.flip(2), told), z)
    assert not torch.allclose(context(windows, told.flip(0)), z)
    torch.testing.assert_close(context(windows[1:2], told[1:2]), z[1:2])


def test_speeds_are_read_from_the_observed_frames():
    """Waves carried at a speed of their own: told by the windows alone, a model learns to carry them on."""
    torch.manual_seed(0)
    grid, generator = (16,), torch.Generator().manual_seed(3)
    context = PhysicsEncoder(grid, [P], 1, PhysicsConfig(width=16, hidden=32), 0)
    model = FieldStep(grid, [P], 1, FieldConfig(width=16, layers=2, noise=0, member=0), condition=32)

    def batch(count):
        phase, speed = torch.rand(2, count, 1, 1, generator=generator)
        place = torch.arange(16) / 16 * 2 * torch.pi
        return (place + 6 * phase + speed * torch.arange(6)[:, None]).sin()[..., None]

    for scales in (context.scales, model.scales):
        scales.learn(batch(100))
    optimizer = torch.optim.AdamW([*context.parameters(), *model.parameters()], lr=3e-3, weight_decay=0)

    def error(fields):
        made = model.roll(fields[:, :3], context(fields[:, None, :3], fields.new_zeros(len(fields), 0)), 3)
        return (made - fields[:, 3:]).square().mean().sqrt()

    for _ in range(150):
        optimizer.zero_grad()
        error(batch(32)).backward()
        optimizer.step()
    fields = batch(200)
    still = (fields[:, 2:3] - fields[:, 3:]).square().mean().sqrt()
    assert float(error(fields).detach()) < 0.15 * float(still)
