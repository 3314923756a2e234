"""What a step is told: drivers at its frames, shifted and mirrored with fields, and masks."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from enma_fast.config import KnownInput, SamplingConfig
from enma_fast.errors import EnmaError
from enma_fast.models import field_step
from enma_fast.models.checkpoint import load_model
from enma_fast.models.contexts.physics import shared_rows
from enma_fast.models.drivers import Told
from enma_fast.models.grid_layers import Edge
from enma_fast.sampling.engine import Engine
from enma_fast.training.measured_symmetries import mirrors, shift_axes

from .._tiny import CONFIGS
from .._told import GRID, KNOWN, arrays, model


def test_a_step_is_told_of_its_frame_and_of_the_one_before():
    made, given = model(), arrays()
    made.drivers.learn(given)
    drivers = made.told(given, 3)
    scaled = {name: (x - x.mean()) / x.std() for name, x in given.items()}
    heat, wind = scaled["heat"], scaled["wind"]
    inputs = drivers.since(2).at(3).inputs
    assert inputs.shape == (3, *GRID, 6)
    expected = [scaled["nu"][:, 0], wind[:, 5], scaled["depth"][:, 0], heat[:, 5], wind[:, 4], heat[:, 4]]
    for k, values in enumerate(expected):
        np.testing.assert_allclose(inputs[..., k], np.broadcast_to(values, (3, *GRID)), rtol=1e-4, atol=1e-5)
    # Each trajectory may begin at a frame of its own.
    apart = drivers[torch.tensor([2, 0])].since(torch.tensor([1, 4])).at(2).inputs
    np.testing.assert_allclose(apart[0, ..., 3], heat[2, 3], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(apart[1, ..., 3], heat[0, 6], rtol=1e-4, atol=1e-5)
    numbers = drivers.numbers()
    np.testing.assert_allclose(numbers[:, 0], scaled["nu"].ravel(), rtol=1e-4)
    np.testing.assert_allclose(numbers[:, 1], 0, atol=1e-5)


def test_maps_move_with_the_fields_and_numbers_do_not():
    made, given = model(), arrays()
    drivers = made.told(given, 3)
    plain, inputs = drivers.at(1).inputs, drivers.rolled(0, 2).at(1).inputs
    torch.testing.assert_close(inputs[..., :2], plain[..., :2])
    torch.testing.assert_close(inputs[..., 2:4], plain[..., 2:4].roll(2, 1))
    inputs = drivers.mirrored(1, (1, 1, -1, 1)).at(1).inputs
    torch.testing.assert_close(inputs[..., :2], plain[..., :2])
    torch.testing.assert_close(inputs[..., 2], -plain[..., 2].flip(2))
    torch.testing.assert_close(inputs[..., 3], plain[..., 3].flip(2))


def test_forecasts_that_are_told_otherwise_differ_from_the_step_on(monkeypatch):
    monkeypatch.setattr(field_step, "known_share", lambda correction, off: torch.ones(len(off)))
    made, given = model(), arrays(1)
    z = made.encode(torch.randn(1, 3, *GRID, 1))

    def frames(**changes):
        told = made.told({**given, **changes}, 1)
        one = torch.zeros(1, dtype=torch.int64)
        settings = SamplingConfig(temperature=0.0)
        steps = Engine(made.dynamics, backend="reference").trajectory(
            [Told(z, told)], num_latents=7, seeds=one, members=one, settings=settings
        )
        return torch.stack(list(steps), 1)

    plain, heat = frames(), given["heat"].copy()
    heat[:, 5] += 1
    later = frames(heat=heat)
    torch.testing.assert_close(later[:, :2], plain[:, :2], rtol=0, atol=0)
    assert not torch.equal(later[:, 2], plain[:, 2])
    assert not torch.equal(frames(nu=given["nu"] + 1)[:, 0], plain[:, 0])


def test_rows_that_are_told_otherwise_are_not_one():
    made, given = model(), arrays(2)
    z = made.encode(torch.randn(1, 3, *GRID, 1)).expand(4, -1, -1, -1)
    told = made.told(given, 2)[torch.tensor([0, 0, 1, 1])]
    index, first = shared_rows([Told(z, told)])
    assert (index.tolist(), first.tolist()) == ([0, 0, 1, 1], [0, 2])


def test_places_without_values_stay_so_and_tell_nothing():
    made = model((), masked=True)
    there = torch.ones(*GRID, 1, dtype=torch.bool)
    there[2:4, 1] = False
    made.codec.take_mask(there)
    u = torch.randn(2, 3, *GRID, 1)
    land = torch.where(there, u, torch.nan)
    assert torch.equal(made.encode(u), made.encode(land))
    assert torch.equal(made.decode(made.encode(u), 3).isnan(), land.isnan())
    rows = torch.zeros(2, dtype=torch.int64)
    steps = Engine(made.dynamics).trajectory(
        [Told(made.encode(u), made.told({}, 2))], num_latents=6, seeds=rows, members=rows
    )
    frames = made.decode(torch.stack(list(steps), 1))
    assert torch.equal(frames.isnan(), ~there.expand_as(frames))
    step = made.dynamics.step.model
    added = step.correction(u, (u[:, -1])[..., None], torch.randn(2, 32), known=made.told({}, 2).at(3))
    assert bool((added[:, ~there] == 0).all())
    assert bool((added[:, there] != 0).any())


def test_a_checkpoint_keeps_scales_and_mask(tmp_path):
    made = model(masked=True)
    made.drivers.learn(arrays())
    made.codec.mask[0, 0] = False
    made.save(tmp_path)
    again = load_model(tmp_path)
    assert again.config == made.config
    torch.testing.assert_close(again.drivers.mean, made.drivers.mean, rtol=0, atol=0)
    assert torch.equal(again.codec.mask, made.codec.mask)
    assert model(()).drivers is None
    assert not [name for name in model(()).state_dict() if name.startswith(("drivers", "codec"))]


def test_only_field_models_are_told():

    with pytest.raises(EnmaError, match="known inputs"):
        replace(CONFIGS["relative"], known=KNOWN[:1])
    with pytest.raises(EnmaError, match="nu, nu"):
        model((KNOWN[0], KNOWN[0]))


def test_mirror_images_have_the_sign_of_what_forces_them():
    """Increments that follow a forcing: upside down in the mirror, the forcing has to be too."""
    generator = torch.Generator().manual_seed(0)
    force = torch.randn(40, 24, generator=generator)
    force = (force.roll(1, 1) + 2 * force + force.roll(-1, 1)) / 4
    u = [torch.randn(40, 24, generator=generator)]
    for _ in range(5):
        u.append(u[-1] - 0.1 * u[-1] * (u[-1].roll(-1, 1) - u[-1].roll(1, 1)) + 0.3 * force)
    fields = torch.stack(u, 1)[..., None]
    made = model((KnownInput(name="f", in_space=True),), grid=(24,))
    assert mirrors(fields, [Edge.PERIODIC], made.told({"f": force[:, None]}, 40)) == {0: (-1, -1)}


def test_a_coast_forbids_shifts_along_its_axis():
    u, mask = torch.randn(60, 5, 12, 10, 1, generator=torch.Generator().manual_seed(0)), torch.ones(12, 10, 1) > 0
    mask[:, :2] = False
    both = [Edge.PERIODIC, Edge.PERIODIC]
    assert shift_axes(u * mask, both) == [0, 1]
    assert shift_axes(u * mask, both, mask) == [0]


def test_a_network_that_is_told_is_heard_though_known_frames_do_not_show_it():
    step, shares = model().dynamics.step.model, torch.tensor([0.4, 0.8, 1.0])
    added, off = torch.ones(3, 1, *GRID, 2), shares.view(3, 1, *(1,) * len(GRID), 1).expand(3, 1, *GRID, 2)
    step.learn_usual(added, off, own=True)
    assert float(step.usual[0]) > 0.4
    step.learn_usual(added, off, own=True, told=True)
    assert float(step.usual[0]) == pytest.approx(0.3)
