"""Domains: positions, sizes from positions, and what makes two of them the same."""

from types import SimpleNamespace

import numpy as np
import pytest

from enma_fast.domain import Domain
from enma_fast.errors import EnmaError


@pytest.mark.parametrize(
    ("grid", "lengths", "periodic"),
    [((8,), (1.0,), (True,)), ((5,), (2.0,), (False,)), ((4, 7, 2), (2.0, 0.5, 3.0), (False, True, False))],
)
def test_positions_have_the_size_that_they_were_made_of(
    grid: tuple[int, ...], lengths: tuple[float, ...], periodic: tuple[bool, ...]
) -> None:
    domain = Domain(grid, lengths, periodic)
    for x, n, length, ring in zip(domain.coords, grid, lengths, periodic, strict=True):
        # A ring leaves out its right end.
        np.testing.assert_allclose(x, np.linspace(0, length, n, endpoint=not ring), rtol=1e-15)
    found = Domain.of_coords([3 + x for x in domain.coords], periodic)
    assert (found.grid, found.periodic) == (grid, periodic)
    np.testing.assert_allclose(found.lengths, lengths)
    assert Domain.of(SimpleNamespace(grid=list(grid), lengths=list(lengths), periodic=list(periodic))) == domain


def test_sizes_are_the_same_up_to_a_thousandth() -> None:
    line = Domain((8,), (2.0,), (True,))
    assert line.same_size(Domain((16,), (2.0019,), (False,)))
    assert not line.same_size(Domain((8,), (2.003,), (True,)))
    assert not line.same_size(Domain((8, 8), (2.0, 2.0), (True, True)))


@pytest.mark.parametrize(
    "given", [((8, 8), (1.0,), (True, True)), ((8,), (1.0,), ()), ((), (), ()), ((2,) * 4, (1.0,) * 4, (True,) * 4)]
)
def test_entries_of_other_dimensions_are_refused(given: tuple) -> None:
    with pytest.raises(EnmaError, match="periodic"):
        Domain(*given)
