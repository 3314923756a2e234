"""Steps of equations of neighbours: those of the extension, with which an equation is learned, and those of PyTorch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from enma_fast.models.floors.lattice import LatticePropagator, fast_steps
from enma_fast.models.floors.terms import Terms
from tests._extension import NATIVE, each_isa, needs_native

STEPS = 6


def problem(grid: tuple[int, ...], channels: int, *, chosen: int, rows: int = 5) -> tuple[LatticePropagator, Tensor]:
    """A propagator for each row's own coefficients of all linear and some other terms, and waves `[B, c, *K]`."""
    generator = torch.Generator().manual_seed(0)
    terms = Terms(grid, channels, lattice=True)
    local = [j for j in range(terms.num_linear, terms.num) if terms.local([j])]
    active = [*range(terms.num_linear), *local[:: max(1, len(local) // chosen)]]
    coefficients = torch.zeros(rows, terms.num, dtype=torch.float64)
    coefficients[:, active] = 2e-3 * torch.randn(rows, len(active), generator=generator, dtype=torch.float64)
    # No linear term changes a wave more than another.
    alone = torch.eye(terms.num, dtype=torch.float64)[: terms.num_linear]
    coefficients[:, : terms.num_linear] *= 100 / terms.rates(alone).abs().flatten(1).amax(1)
    coefficients[-1, active[-1]] = 0
    fields = torch.randn(rows, channels, *grid, generator=generator)
    return LatticePropagator(terms, coefficients, STEPS, active), torch.fft.rfftn(fields, dim=terms.axes)


@needs_native
@pytest.mark.parametrize(("grid", "channels"), [((32,), 1), ((33,), 2), ((12, 17), 1), ((16, 8), 2)])
def test_the_extension_takes_the_same_steps(grid: tuple[int, ...], channels: int) -> None:
    propagator, waves = problem(grid, channels, chosen=4)
    exact = propagator(waves.to(torch.complex128))
    slow = propagator(waves)
    with fast_steps():
        fast = propagator(waves)
        # The extension has no float64.
        assert torch.equal(propagator(waves.to(torch.complex128)), exact)
    unit = float(exact.abs().max())
    assert not torch.equal(fast, slow)
    assert float((fast - exact).abs().max()) < max(2 * float((slow - exact).abs().max()), 1e-6 * unit)
    # The fields move: frames that stay as they are would agree too.
    assert float((exact - waves).abs().max()) > 1e-2 * unit
    assert torch.equal(propagator(waves), slow)


@needs_native
def test_a_row_has_the_same_bits_alone_and_by_several_threads() -> None:
    propagator, waves = problem((16, 8), 2, chosen=5)
    fields, coefficients = torch.fft.irfftn(waves, s=(16, 8), dim=(-2, -1)), propagator.coefficients.float()
    assert NATIVE is not None
    one, *others = (NATIVE.lattice_steps(fields, coefficients, STEPS, threads=threads) for threads in (1, 2, 3))
    assert all(torch.equal(other, one) for other in others)
    assert torch.equal(NATIVE.lattice_steps(fields[2:3], coefficients[2:3], STEPS), one[2:3])


@needs_native
@each_isa
def test_every_instruction_set(isa: str) -> None:
    propagator, waves = problem((12, 17), 2, chosen=5)
    fields = torch.fft.irfftn(waves, s=(12, 17), dim=(-2, -1)).contiguous()
    assert NATIVE is not None
    after = NATIVE.lattice_steps(fields, propagator.coefficients.float(), STEPS, isa=isa)
    expected = torch.fft.irfftn(propagator(waves), s=(12, 17), dim=(-2, -1))
    torch.testing.assert_close(after, expected, rtol=1e-4, atol=1e-5)


@needs_native
def test_what_it_cannot_do_is_refused() -> None:
    assert NATIVE is not None
    steps, terms = NATIVE.lattice_steps, Terms((8, 8), 1, lattice=True)
    fields, coefficients = torch.zeros(2, 1, 8, 8), torch.zeros(2, terms.num)
    with pytest.raises(ValueError, match="steps is"):
        steps(fields, coefficients, 0)
    with pytest.raises(ValueError, match="fields"):
        steps(fields[0, 0], coefficients, 1)
    with pytest.raises(ValueError, match="coefficients"):
        steps(fields, coefficients[:, 1:], 1)
    with pytest.raises(ValueError, match="fields"):
        steps(fields.double(), coefficients, 1)
    # The potential of a flow depends on the whole field.
    coefficients[:, next(j for j in range(terms.num_linear, terms.num) if not terms.local([j]))] = 1
    with pytest.raises(ValueError, match="potential"):
        steps(fields, coefficients, 1)
