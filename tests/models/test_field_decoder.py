"""Field models in the slots: forecasts through the engine, members, missing frames, and checkpoints."""

import math

import numpy as np
import pytest
import torch

import enma_fast
from enma_fast.config import BlocksConfig, FieldConfig, ModelConfig, PhysicsConfig, SamplingConfig
from enma_fast.errors import EnmaError
from enma_fast.models.checkpoint import load_model, save_model
from enma_fast.models.contexts.physics import FieldTokens, shared_rows
from enma_fast.models.floors.ladder import known_share
from enma_fast.models.model import Model
from enma_fast.sampling.engine import Engine

SMALL = {"width": 8, "layers": 2, "middle_width": 8}


def config(*, grid=(16,), periodic=(True,), floor="waves", channels=1, block=1, **step):
    lengths = tuple(float(n) for n in grid)
    return ModelConfig(
        name="field-tiny",
        dataset="waves",
        num_frames=8,
        codec=BlocksConfig(
            grid=grid, lengths=lengths, periodic=periodic, field_channels=channels, block=block, frames=1
        ),
        context=PhysicsConfig(floor=floor, patch=(1,) * len(grid), width=8, hidden=8),
        step=FieldConfig(**{**SMALL, **step}),
    )


def carried(count, frames=8, seed=0):
    """Waves that are carried, each at a speed of its own, `[B, T, 16, 1]`."""
    generator = torch.Generator().manual_seed(seed)
    phase, speed = torch.rand(2, count, 1, 1, generator=generator)
    place = torch.arange(16) / 16 * 2 * math.pi
    return (place + 6 * phase + speed * torch.arange(frames)[:, None]).sin()[..., None]


def model(**more):
    torch.manual_seed(0)
    made = Model(config(**more)).requires_grad_(False).eval()
    fields = carried(40)
    if made.config.codec.grid == (16,) and made.config.codec.field_channels == 1:
        made.dynamics.context.floor.learn(fields)
        for scales in (made.dynamics.context.encoder.scales, made.dynamics.step.model.scales):
            scales.learn(fields)
    return made


def shaken(made):
    for name, p in made.named_parameters():
        if name.endswith(("down.weight", "head.weight")):
            torch.nn.init.normal_(p, std=0.3, generator=torch.Generator().manual_seed(1))
    return made


def trajectory(made, history, members, *, frames=6, context=None, **settings):
    segments = [made.encode(part) for part in (context, history) if part is not None]
    rows = torch.arange(len(history)).repeat_interleave(len(members))
    keys = torch.tensor(members).repeat(len(history))
    steps = Engine(made.dynamics).trajectory(
        segments,
        num_latents=frames,
        seeds=rows * 0 + 7,
        members=keys,
        groups=rows,
        settings=SamplingConfig(**settings),
    )
    return made.decode(torch.stack(list(steps), 1)).unflatten(0, (len(history), len(members)))


@pytest.mark.parametrize(("grid", "block"), [((8,), 2), ((6, 4), 1), ((6, 4), 2)])
def test_tokens_are_fields(grid, block):
    made = Model(config(grid=grid, periodic=(True,) * len(grid), floor="persistence", channels=2, block=block))
    u = torch.randn(2, 3, *grid, 2)
    fields, z = FieldTokens(made.config), made.encode(u)
    assert torch.equal(fields.of(z), u)
    assert torch.equal(fields.tokens(u[:, 1]), z[:, 1])


@pytest.mark.parametrize(
    ("grid", "periodic", "floor"),
    [
        ((7, 5), (True, False), "vibration"),
        ((4, 6, 5), (True, True, True), "waves"),
        ((6, 5, 5), (False,) * 3, "diffusion"),
    ],
)
def test_fields_of_any_dimension_and_size(grid, periodic, floor):
    made = Model(config(grid=grid, periodic=periodic, floor=floor, channels=2, middle_layers=1)).eval()
    history = torch.randn(2, 3, *grid, 2, generator=torch.Generator().manual_seed(0))
    forecasts = trajectory(made, history, [0, 1], frames=5)
    assert forecasts.shape == (2, 2, 2, *grid, 2)
    assert torch.isfinite(forecasts).all()
    torch.testing.assert_close(
        trajectory(made, history[1:], [1], frames=5)[0, 0], forecasts[1, 1], atol=1e-5, rtol=1e-4
    )


def test_without_noise_and_correction_the_floor_is_forecast():
    made = model()
    torch.nn.init.zeros_(made.dynamics.step.model.network.head.weight)
    u = carried(3, frames=10, seed=5)
    forecasts = trajectory(made, u[:, :3], [0], frames=10, temperature=0.0)[:, 0]
    torch.testing.assert_close(forecasts, u[:, 3:], atol=0.01, rtol=0)
    alone = trajectory(made, u[:, :1], [0], frames=10, context=carried(3, seed=5), temperature=0.0)[:, 0]
    torch.testing.assert_close(alone, u[:, 1:], atol=0.02, rtol=0)


def test_a_member_does_not_depend_on_the_others():
    made = shaken(model())
    history = carried(2, frames=3, seed=5)
    many = trajectory(made, history, [0, 1, 2, 3])
    torch.testing.assert_close(trajectory(made, history, [2])[:, 0], many[:, 2])
    torch.testing.assert_close(trajectory(made, history[1:], [3, 1])[0, 0], many[1, 3])
    assert not torch.allclose(many[:, 0], many[:, 1])
    still = trajectory(made, history, [0, 1], temperature=0.0)
    torch.testing.assert_close(still[:, 0], still[:, 1])


@pytest.mark.parametrize("noise", [0, 2])
@pytest.mark.parametrize("member", [0, 4])
def test_each_source_of_spread_can_be_left_out(noise, member):
    made = shaken(model(floor="persistence", noise=noise, member=member))
    # Of a trajectory whose known frames contradict the correction nothing is drawn.
    members = trajectory(made, carried(8, frames=3, seed=5), [0, 1])
    assert torch.allclose(members[:, 0], members[:, 1], atol=1e-5) is (noise == member == 0)


@pytest.mark.parametrize("known", [1, 2, 3, 5])
def test_any_number_of_known_frames_is_continued(known):
    made = shaken(model())
    u = carried(2, frames=7, seed=5)
    context = carried(2, seed=5) if known < 3 else None
    forecasts = trajectory(made, u[:, :known], [0, 1], frames=9, context=context)
    assert forecasts.shape == (2, 2, 9 - known, 16, 1)
    assert torch.isfinite(forecasts).all()


def test_a_correction_that_was_wrong_counts_less_than_one_that_was_right():
    """A network that adds what the known frames contradict is not heard, once its usual share is known."""
    made = shaken(model(floor="persistence", noise=0, member=0))
    decoder, u = made.dynamics.step, carried(4, frames=3, seed=5)
    step, read = decoder.model, made.dynamics.context.begin([made.encode(u)], room=0)
    share = known_share(*step.known_forecasts(read.windows, read.numbers, read.forecast(), first=True))
    step.usual.fill_(1.0)
    torch.testing.assert_close(decoder.reliance(read)[0], share)
    assert len(share[share > 0]) > 1
    step.usual.fill_(float(share[share > 0].min()) / 2)
    assert torch.equal(decoder.reliance(read)[0], (share > 0).float())


def test_members_are_further_apart_where_known_frames_were_forecast_badly():
    made = shaken(model(floor="persistence"))
    decoder, u = made.dynamics.step, carried(4, frames=8, seed=5)
    step = decoder.model
    step.size.zero_()
    read = made.dynamics.context.begin([made.encode(u[:, :3])], room=0)
    _, misfit = decoder.reliance(read)
    # Of the second and the third frame, each by the one before.
    torch.testing.assert_close(
        misfit, (read.windows[:, 0, 1:] - read.windows[:, 0, :-1]).flatten(1).square().mean(1).sqrt()
    )
    added, off = step.known_forecasts(read.windows, read.numbers, read.forecast(), first=True)
    step.learn_usual(added, off, own=True)
    usual = float(misfit.log().mean().exp())
    assert float(step.misfit[0]) == pytest.approx(usual)
    torch.testing.assert_close(step.factor(misfit, own=True), step.spread[0] * (misfit / usual).sqrt())
    # A misfit beyond all bounds counts as the largest one.
    assert float(step.factor(misfit.new_tensor([1e9]), own=True)) == pytest.approx(float(step.spread[0]) * 8**0.5)
    step.size.fill_(1.0)
    step.misfit.fill_(float(decoder.reliance(read)[1].mean()))

    def apart():
        return trajectory(made, u[:, :3], range(4), frames=5).std(1).flatten(1).mean(1)

    relative, usually = decoder.reliance(read)[1] / step.misfit[0], apart()
    step.misfit.fill_(1e-9)
    assert bool((apart() > usually).all())
    assert float(relative.max()) > 1.2 * float(relative.min())


def test_members_share_what_is_inferred():
    x = torch.tensor([1.0, 1, 2, 2, 2, 1])[:, None]
    index, first = shared_rows([x, torch.zeros(6, 0)])
    assert index.tolist() == [0, 0, 1, 1, 1, 2]
    assert first.tolist() == [0, 2, 5]


@pytest.mark.parametrize("floor", ["persistence", "linear inverse model", "waves", "vibration", "diffusion"])
def test_a_model_forecasts_from_its_checkpoint(floor, tmp_path):
    made = shaken(model(floor=floor))
    made.dynamics.step.model.usual.fill_(0.5)
    made.dynamics.step.model.misfit.fill_(0.1)
    save_model(made, tmp_path / "field-tiny")
    loaded = load_model(tmp_path / "field-tiny")
    history = carried(1, frames=3, seed=5)[0].numpy()
    ensembles = [enma_fast.forecast(m, history, num_frames=6, num_members=3, seed=1) for m in (made, loaded)]
    fields = [ensemble.numpy() for ensemble in ensembles]
    assert np.array_equal(*fields)
    assert fields[0].std(0).max() > 0


def test_a_trajectory_of_which_nothing_is_known_is_refused():
    made = model()
    with pytest.raises(EnmaError, match="history"):
        made.dynamics.context.begin([made.encode(carried(1)), made.encode(carried(1))[:, :0]], room=0)


def test_configs_that_cannot_be():
    with pytest.raises(EnmaError, match="floor"):
        Model(config(floor="tides"))
    with pytest.raises(EnmaError, match="floor"):
        Model(config(periodic=(False,), floor="waves"))


def test_members_draw_sums_of_residuals():
    made, history = model(), carried(2, frames=3)
    step = made.dynamics.step.model
    step.spread.zero_()
    alike = trajectory(made, history, [0, 1], frames=4)
    assert torch.equal(alike[:, 0], alike[:, 1])
    # A shift of all places by one number.
    step.residuals[0] = 0.01
    off = (trajectory(made, history, [0, 1], frames=4) - alike)[:, :, 0]
    assert (off.mean((2, 3)).abs() > 1e-4).all()
    assert (off - off.mean((2, 3), keepdim=True)).abs().max() < 1e-5
    # Two members draw opposite ones; the next two draw others.
    torch.testing.assert_close(off[:, 0], -off[:, 1], rtol=0, atol=1e-6)
    third = (trajectory(made, history, [2], frames=4) - alike[:, :1])[:, 0, 0]
    assert not torch.allclose(off[:, 0].abs(), third.abs(), atol=1e-4)
    still = trajectory(made, history, [0], frames=4, temperature=0.0)
    torch.testing.assert_close(still[:, 0], alike[:, 0])
