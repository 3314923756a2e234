"""Random fields as frames 0: their spectrum, with and without a context, and bits of (seed, member) alone."""

from dataclasses import replace

import pytest
import torch

from enma_fast.models.decoders.gaussian import FIELD_STEP, random_fields
from enma_fast.ops.philox_normal import philox_normal

from ..._covariance import GRIDS, covariance_on
from ..._extension import needs_native

FAR_GRIDS = {
    **GRIDS,
    "one point": ((1,), (1.0,), (False,)),
    "uneven sides": ((12, 6), (1.0, 1.5), (True, False)),
}


def statistics(name, channels=2, seed=0):
    """Any, with a mean, on one of the grids."""
    grid, lengths, periodic = FAR_GRIDS[name]
    if name in GRIDS:
        made = covariance_on(name, channels, seed)
    else:
        shape = (*(n // 2 + 1 if p else n for n, p in zip(grid, periodic, strict=True)), channels)
        deviation = torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        made = replace(
            covariance_on("ring", channels),
            deviation=deviation,
            correlation=torch.zeros_like(deviation),
            grid=grid,
            lengths=lengths,
            periodic=periodic,
        )
    return replace(made, mean=torch.linspace(3, -1, channels).double())


def frames_on(covariance, count, seed=5):
    shape = (count, *covariance.grid, covariance.channels)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) + covariance.mean.float()


def draw(covariance, count, frame=None, seed=7):
    frames = None if frame is None else frame.expand(count, *frame.shape)
    seeds = torch.full((count,), seed)
    return random_fields(covariance, frames, seeds=seeds, members=torch.arange(count))


def shell_means(covariance, squares_Mc):
    """Means of the squares of the waves of each shell."""
    shells = covariance.shells
    return torch.stack([squares_Mc[shells == s].mean(0) for s in shells.unique()])


@pytest.mark.parametrize("name", GRIDS)
def test_many_fields_have_the_mean_and_the_spectrum_of_the_statistics(name):
    covariance = statistics(name)
    fields = draw(covariance, 1500)
    assert fields.dtype == torch.float32
    amplitudes = covariance.amplitudes(fields.double() - covariance.mean).flatten(1, -2)
    power, _ = covariance.by_wave
    torch.testing.assert_close(amplitudes.square().mean(0), power, rtol=0.18, atol=1e-6)
    torch.testing.assert_close(amplitudes.mean(0), torch.zeros_like(power), rtol=0, atol=0.11)
    # Waves, and channels, vary apart.
    each = (amplitudes / power.sqrt()).flatten(1)
    between = each.T @ each / len(each) - torch.eye(each.shape[1]).double()
    assert between.fill_diagonal_(0).abs().max() < 0.14


@pytest.mark.parametrize("name", GRIDS)
def test_a_context_gives_its_shells_their_power(name):
    covariance = statistics(name)
    # The statistics of an environment whose fields are smoother, and ten times as large.
    power, _ = covariance.by_wave
    number = covariance.shells[:, None].double()
    own = 100 * power * torch.exp(-number)
    signs = torch.where(torch.arange(len(own)) % 2 == 0, 1.0, -1.0).double()
    # Each shell has exactly its power.
    frame = covariance.on_grid((own.sqrt() * signs[:, None]).T).movedim(0, -1) + covariance.mean
    fields = draw(covariance, 1500, frame)
    amplitudes = covariance.amplitudes(fields.double() - covariance.mean).flatten(1, -2)
    found = amplitudes.square().mean(0)
    waves = torch.stack([(covariance.shells == s).sum() for s in covariance.shells.unique()])[:, None]
    whole = own.sum(0) / power.sum(0)
    before = shell_means(covariance, own) / shell_means(covariance, power)
    expected = torch.exp((waves * before.log() + 4 * whole.log()) / (waves + 4)) * shell_means(covariance, power)
    torch.testing.assert_close(shell_means(covariance, found), expected, rtol=0.18, atol=1e-6)
    # Within a shell the statistics share it out.
    within = found / power
    for s in covariance.shells.unique():
        shell = within[covariance.shells == s]
        torch.testing.assert_close(shell, shell.mean(0).expand_as(shell), rtol=0.35, atol=0)


@pytest.mark.parametrize("name", FAR_GRIDS)
def test_a_field_depends_on_its_seed_and_member_alone(name):
    covariance = statistics(name)
    frames = frames_on(covariance, 5)
    seeds, members = torch.tensor([3, 3, 9, 2**32 - 1, 3]), torch.tensor([0, 1, 0, 2**32 - 1, 0])
    for given in (None, frames):
        fields = random_fields(covariance, given, seeds=seeds, members=members)
        for i in range(5):
            row = None if given is None else given[i : i + 1]
            alone = random_fields(covariance, row, seeds=seeds[i : i + 1], members=members[i : i + 1])
            assert torch.equal(alone[0], fields[i])
        assert torch.equal(fields[0], fields[4]) == (given is None)
        assert not torch.equal(fields[0], fields[1])
        assert not torch.equal(fields[0], fields[2])


def test_the_noise_has_words_of_its_own():
    covariance = statistics("plane")
    normals = philox_normal(
        seed=11, members=torch.tensor([4]), frame=0, mask_step=FIELD_STEP, tokens=torch.arange(40), channels=2
    )[0]
    power, _ = covariance.by_wave
    amplitudes = (normals.double() * power.sqrt()).T
    expected = covariance.mean + covariance.on_grid(amplitudes).movedim(0, -1)
    found = random_fields(covariance, seeds=torch.tensor([11]), members=torch.tensor([4]))
    torch.testing.assert_close(found[0], expected.float())


def test_what_never_varies_is_its_mean():
    covariance = statistics("plane")
    deviation = covariance.deviation.clone()
    deviation[..., 1] = 0
    covariance = replace(covariance, deviation=deviation)
    fields = draw(covariance, 4, frames_on(covariance, 1)[0])
    assert (fields[..., 1] == covariance.mean[1]).all()
    assert fields[..., 0].std() > 0.1
    # A context that is constant, as a field at rest: no member moves.
    fields = draw(covariance, 4, covariance.mean.float().expand(*covariance.grid, 2))
    torch.testing.assert_close(fields, covariance.mean.float().expand_as(fields))


def test_a_shift_of_the_context_around_rings_changes_nothing():
    covariance = statistics("odd plane")
    frame = frames_on(covariance, 1)[0]
    fields, shifted = (draw(covariance, 3, x) for x in (frame, frame.roll((2, 3), (0, 1))))
    torch.testing.assert_close(fields, shifted, rtol=1e-5, atol=1e-5)


@needs_native
@pytest.mark.parametrize("name", FAR_GRIDS)
def test_the_extension_draws_the_fields_of_the_reference(name):
    covariance = statistics(name)
    keys = {"seeds": torch.tensor([7, 7, 2**31]), "members": torch.tensor([0, 3, 1])}
    for frames in (None, frames_on(covariance, 3)):
        ours, expected = (
            random_fields(covariance, frames, **keys, backend=backend) for backend in ("native", "reference")
        )
        assert ours.shape == expected.shape
        assert (ours - expected).abs().max() <= 1e-6 * expected.abs().max()
