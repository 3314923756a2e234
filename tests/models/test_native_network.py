"""The network of field models in the extension: against PyTorch in float64, edges, sizes, and bits of a row."""

import pytest
import torch

from enma_fast.config import FieldConfig
from enma_fast.models.field_step import FieldNetwork
from enma_fast.models.grid_layers import Edge
from enma_fast.ops._backend import native
from enma_fast.utils.dataclass_json import to_json

from .._extension import each_isa, needs_native

pytestmark = needs_native

P, W, O = Edge.PERIODIC, Edge.WALL, Edge.OPEN
INWARD, OUTWARD, CONDITION, ROWS = 7, 3, 5, 5
# Over the error of PyTorch in float32, which tiles of four points exceed by the size of their weights.
MOST_ERROR = 20


def network(grid, edges, **sizes):
    torch.manual_seed(0)
    made = FieldNetwork(grid, edges, INWARD, OUTWARD, FieldConfig(**{"width": 24, "layers": 2, **sizes}), CONDITION)
    for name, p in made.named_parameters():
        if name.endswith("scale"):
            torch.nn.init.uniform_(p, 0.5, 1.5)
        else:
            torch.nn.init.normal_(p, std=p[0].numel() ** -0.5 if p.ndim > 1 else 0.3)
    return made.requires_grad_(False)


class Packed:
    """A network packed for the extension."""

    def __init__(self, made):
        self.network = native().FieldNetwork(
            to_json(made.config),
            grid=list(made.grid),
            edges=[str(edge) for edge in made.edges],
            channels=made.channels,
            parameters=dict(made.named_parameters()),
        )

    def __call__(self, x, condition, noise, isa=""):
        given = (None if part is None else part.contiguous() for part in (x, condition, noise))
        return self.network.run(*given, threads=torch.get_num_threads(), isa=isa)


def given(made):
    generator = torch.Generator().manual_seed(1)
    shapes = ((ROWS, *made.grid, INWARD), (ROWS, CONDITION), made.noise_shape(ROWS))
    x, condition, noise = (torch.randn(shape, generator=generator) for shape in shapes)
    return x, condition, noise if made.config.noise else None


def assert_as_in_float64(made, isa="", **absent):
    x, condition, noise = given(made)
    condition, noise = absent.get("condition", condition), absent.get("noise", noise)
    got, ours = Packed(made)(x, condition, noise, isa=isa), made(x, condition, noise)
    exact = made.double()(*(None if part is None else part.double() for part in (x, condition, noise)))
    assert got.dtype == torch.float32
    assert float((got - exact).abs().max()) < MOST_ERROR * float((ours - exact).abs().max())


@pytest.mark.parametrize("edge", list(Edge))
@pytest.mark.parametrize(
    ("points", "sizes"),
    [
        (1, {"block": 1}),
        (13, {"block": 1}),
        (32, {"block": 4, "noise": 0}),
        (21, {"block": 4, "width": 64, "layers": 3}),
        (19, {"middle_layers": 2, "middle_width": 40}),
    ],
)
def test_lines(edge, points, sizes):
    assert_as_in_float64(network((points,), (edge,), **sizes))


@pytest.mark.parametrize("edges", [(a, b) for a in Edge for b in Edge])
@pytest.mark.parametrize(
    ("grid", "sizes"),
    [((9, 14), {}), ((11, 7), {"layers": 3, "middle_layers": 1, "middle_width": 32}), ((3, 2), {"width": 16})],
)
def test_planes(edges, grid, sizes):
    assert_as_in_float64(network(grid, edges, **sizes))


@each_isa
def test_instruction_sets(isa):
    assert_as_in_float64(network((17, 10), (P, W), middle_layers=1), isa)
    assert_as_in_float64(network((37,), (O,), width=16), isa)


@pytest.mark.parametrize("absent", ["condition", "noise"])
def test_without(absent):
    assert_as_in_float64(network((16, 8), (P, P)), **{absent: None})


@pytest.mark.parametrize("grid", [(12,), (40, 36)])
def test_bits_of_a_row_depend_on_no_other_and_on_no_thread(grid):
    made = network(grid, (W,) * len(grid))
    packed, (x, condition, noise) = Packed(made), given(made)
    whole, threads = packed(x, condition, noise), torch.get_num_threads()
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            for row in range(ROWS):
                part = slice(row, row + 1)
                assert torch.equal(packed(x[part], condition[part], noise[part]), whole[part])
            assert torch.equal(packed(x, condition, noise), whole)
    finally:
        torch.set_num_threads(threads)


def test_shapes_are_checked():
    made = network((16,), (P,))
    packed, (x, condition, noise) = Packed(made), given(made)
    for bad in ((x[:, :8], condition, noise), (x, condition[:2], noise), (x, condition, noise[:, 1:])):
        with pytest.raises(ValueError, match="field_network"):
            packed(*bad)
