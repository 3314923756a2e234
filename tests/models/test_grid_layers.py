"""Layers on grids: padding by the kind of edge, blocks of points, convolutions, and symmetries of gated blocks."""

import pytest
import torch
from torch.nn import functional as F

from enma_fast.models.grid_layers import (
    Edge,
    GatedBlock,
    GridConvolution,
    edge_marks,
    fitted_grid,
    from_blocks,
    pad_axis,
    to_blocks,
)

P, W, O = Edge.PERIODIC, Edge.WALL, Edge.OPEN
GRIDS = {1: (10,), 2: (6, 8), 3: (4, 6, 2)}


def fields(grid, channels=3, batch=2):
    return torch.randn(batch, *grid, channels, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize(
    ("edge", "expected"),
    [(P, [3, 4, 1, 2, 3, 4, 1]), (W, [0, 0, 1, 2, 3, 4, 0]), (O, [1, 1, 1, 2, 3, 4, 4])],
)
def test_what_lies_beyond_an_edge(edge, expected):
    x = torch.tensor([1.0, 2, 3, 4]).view(1, 4, 1)
    assert pad_axis(x, 1, 2, 1, edge).flatten().tolist() == expected


def test_a_periodic_axis_goes_around_more_than_once():
    x = torch.tensor([1.0, 2]).view(1, 2, 1)
    assert pad_axis(x, 1, 3, 4, P).flatten().tolist() == [2, 1, 2, 1, 2, 1, 2, 1, 2]


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_blocks_are_lossless(dims):
    x = fields(GRIDS[dims])
    y = to_blocks(x, 2)
    assert y.shape == (2, *(n // 2 for n in GRIDS[dims]), 3 * 2**dims)
    assert torch.equal(from_blocks(y, 2), x)


def test_a_block_holds_neighbours():
    x = torch.arange(24.0).view(1, 4, 6, 1)
    assert to_blocks(x, 2)[0, 1, 2].tolist() == [16, 17, 22, 23]


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("edge", [P, W, O])
def test_convolution_is_that_of_a_padded_grid(dims, edge):
    layer = GridConvolution(3, 4, [edge] * dims).double()
    x = fields(GRIDS[dims])
    mode = {P: "circular", W: "constant", O: "replicate"}[edge]
    padded = F.pad(x.movedim(-1, 1), (1, 1) * dims, mode=mode)
    expected = (F.conv1d, F.conv2d, F.conv3d)[dims - 1](padded, layer.weight).movedim(1, -1)
    torch.testing.assert_close(layer(x), expected)


def test_each_axis_has_its_own_edge():
    layer = GridConvolution(1, 1, [P, W]).double()
    x = fields((6, 8), 1)
    assert torch.allclose(layer(x.roll(2, 1)), layer(x).roll(2, 1))
    assert not torch.allclose(layer(x.roll(2, 2)), layer(x).roll(2, 2))


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_a_gated_block_moves_with_its_fields_and_feels_its_condition(dims):
    torch.manual_seed(0)
    block = GatedBlock(4, [P] * dims, condition=5).double()
    torch.nn.init.normal_(block.down.weight)
    x, z = fields(GRIDS[dims], 4), torch.randn(2, 5, dtype=torch.float64)
    for axis in range(1, 1 + dims):
        torch.testing.assert_close(block(x.roll(1, axis), z), block(x, z).roll(1, axis))
    assert not torch.allclose(block(x, z), block(x, z.flip(0)))
    assert torch.autograd.gradcheck(block, (x[:1, :2, ...].requires_grad_(), z[:1].requires_grad_()))


def test_marks_are_near_edges_that_do_not_close():
    assert edge_marks((4, 6), [P, P]) is None
    marks = edge_marks((6, 6), [P, W])[0, ..., 0]
    assert marks.tolist() == [[1, 1, 0, 0, 1, 1]] * 6
    assert edge_marks((6, 6), [O, W])[0, 0, 0, 0] == 2


def test_a_grid_is_prolonged_to_whole_blocks():
    assert fitted_grid((7, 8, 1), 4) == (8, 8, 4)
