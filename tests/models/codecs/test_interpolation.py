"""Points <-> grid: no order of points, no padding and no other query point matters; near points weigh more."""

import itertools
import math
from dataclasses import replace

import pytest
import torch

from enma_fast.config import ConvConfig
from enma_fast.errors import EnmaError
from enma_fast.models.codecs.interpolation import Interpolation, PointEncoding, grid_points
from enma_fast.models.codecs.points import PointsCodec
from enma_fast.ops.point_attention import distance as point_distance
from enma_fast.ops.point_attention import point_attention, point_attention_ref

from ..._tiny import CONFIGS, INTERPOLATION, distance, shaken, waves

DOMAINS = {"points": (2 * math.pi,), "plane-paper": (2.0, 1.0)}


@pytest.fixture(params=DOMAINS)
def options(request):
    return CONFIGS[request.param].codec


@pytest.fixture
def layer(options):
    torch.manual_seed(0)
    return shaken(Interpolation(options)).eval().requires_grad_(False)


@pytest.fixture
def observed(options):
    """Values `[2, 3, 17, c]` at points `[2, 17, d]`."""
    points = torch.rand(2, 17, options.dims) * torch.tensor(options.lengths)
    return torch.randn(2, 3, 17, options.field_channels), points


def test_order_of_points_does_not_matter(layer, observed):
    u, points = observed
    order = torch.randperm(17)
    assert distance(layer.to_grid(u[:, :, order], points[:, order], None), layer.to_grid(u, points, None)) < 1e-5


def test_values_and_places_belong_together(layer, observed):
    u, points = observed
    order = torch.randperm(17)
    assert distance(layer.to_grid(u[:, :, order], points, None), layer.to_grid(u, points, None)) > 1e-2


def test_padding_does_not_matter(layer, observed):
    u, points = observed
    expected = layer.to_grid(u, points, None)
    more = torch.cat([u, torch.full_like(u[:, :, :5], 1e3)], dim=2)
    places = torch.cat([points, points[:, :5]], dim=1)
    valid = (torch.arange(22) < 17).expand(2, -1)
    assert distance(layer.to_grid(more, places, valid), expected) < 1e-5
    assert distance(layer.to_grid(more, places, None), expected) > 1e-2


def test_each_row_may_have_its_own_number_of_points(layer, observed):
    u, points = observed
    valid = torch.arange(17) < torch.tensor([[17], [6]])
    out = layer.to_grid(u, points, valid)
    assert distance(out[1:], layer.to_grid(u[1:, :, :6], points[1:, :6], None)) < 1e-5


def test_points_may_be_shared_by_the_batch(layer, observed):
    u, points = observed
    assert distance(layer.to_grid(u, points[0], None), layer.to_grid(u, points[:1].expand(2, -1, -1), None)) < 1e-5


def test_the_grid_is_the_default(layer, options):
    u = torch.randn(2, 3, *options.grid, options.field_channels)
    points = grid_points(options)
    assert torch.equal(layer.to_grid(u, None, None), layer.to_grid(u.flatten(2, -2), points, None))
    x = torch.randn(2, 3, *options.grid, INTERPOLATION.features)
    assert torch.equal(layer.to_points(x, None).flatten(2, -2), layer.to_points(x, points))


def test_frames_do_not_mix(layer, observed, options):
    u, points = observed
    out = layer.to_grid(u, points, None)
    assert distance(layer.to_grid(u[:, 1:2], points, None), out[:, 1:2]) < 1e-5
    x = torch.randn(2, 3, *options.grid, INTERPOLATION.features)
    query = torch.rand(7, options.dims)
    assert distance(layer.to_points(x[:, 1:2], query), layer.to_points(x, query)[:, 1:2]) < 1e-5


@pytest.mark.parametrize("batched", [False, True])
def test_decoding_some_points_is_some_of_the_decoded_points(layer, options, batched):
    x = torch.randn(2, 3, *options.grid, INTERPOLATION.features)
    query = torch.rand(*[2] * batched, 19, options.dims) * torch.tensor(options.lengths)
    some = [3, 4, 11, 0]
    assert distance(layer.to_points(x, query[..., some, :]), layer.to_points(x, query)[:, :, some]) < 1e-5
    assert distance(layer.to_points(x, query[..., 5:6, :]), layer.to_points(x, query)[:, :, 5:6]) < 1e-5


def test_a_query_per_row_is_that_rows_query(layer, options):
    x = torch.randn(2, 3, *options.grid, INTERPOLATION.features)
    query = torch.rand(2, 7, options.dims)
    rows = [layer.to_points(x[i : i + 1], query[i]) for i in range(2)]
    assert distance(layer.to_points(x, query), torch.cat(rows)) < 1e-5


def test_counts_that_differ_are_refused(layer, observed):
    u, points = observed
    with pytest.raises(EnmaError, match="field"):
        layer.to_grid(u, points[:, :16], None)


def test_slopes_and_heads_must_agree():
    options = replace(CONFIGS["points"].codec, interpolation=replace(INTERPOLATION, heads=4))
    with pytest.raises(EnmaError, match=r"slopes has 2 entries; heads is 4"):
        Interpolation(options)


def test_slopes_are_above_zero():
    options = replace(CONFIGS["points"].codec, interpolation=replace(INTERPOLATION, slopes=(0.0, 1.0)))
    with pytest.raises(EnmaError, match=r"slopes is \(0.0, 1.0\); every entry must be above 0"):
        Interpolation(options)


def test_slopes_start_as_configured():
    layer = Interpolation(CONFIGS["points"].codec)
    for raw in (layer.slopes_in, layer.slopes_out):
        torch.testing.assert_close(torch.nn.functional.softplus(raw), torch.tensor([1.0, 3.0]))
        assert raw.requires_grad


def test_grid_points_leave_out_the_end_of_a_ring_and_have_that_of_a_wall():
    def points(grid, lengths, periodic):
        return grid_points(ConvConfig(grid=grid, lengths=lengths, periodic=periodic)).tolist()

    assert points((4,), (2.0,), (True,)) == [[0.0], [0.5], [1.0], [1.5]]
    assert points((5,), (2.0,), (False,)) == [[0.0], [0.5], [1.0], [1.5], [2.0]]
    # Rows run over the last axis first, as flattening a field does.
    expected = [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]]
    assert points((2, 3), (2.0, 3.0), (True, True)) == expected
    assert points((2, 3), (1.0, 3.0), (False, True)) == expected


def test_point_encoding_is_its_formula():
    encoding = PointEncoding((2.0, 1.0))
    x = torch.rand(5, 2)
    bands = [math.pi * 2 ** (4 * i / 11) for i in range(12)]
    rows = []
    for a, b in x.tolist():
        row = []
        for scaled in (a - 1, 2 * b - 1):
            row += [math.sin(band * scaled) for band in bands] + [math.cos(band * scaled) for band in bands]
        rows.append(row)
    assert encoding.features == 48
    torch.testing.assert_close(encoding(x), torch.tensor(rows), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("periods", list(itertools.product((None, 1.5), (None, 0.7))))
def test_distance_is_to_the_nearest_image(periods, rng):
    a, b = rng.uniform(-1, 3, (6, 2)), rng.uniform(-1, 3, (9, 2))
    images = [[0.0] if p is None else [p * i for i in range(-8, 9)] for p in periods]
    expected = torch.tensor(
        [[min(math.hypot(*(x - y + shift)) for shift in itertools.product(*images)) for y in b] for x in a],
        dtype=torch.float64,
    )
    found = point_distance(torch.from_numpy(a), torch.from_numpy(b), periods=periods)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def attend(*, x_q, x_p, slopes, periods=(1.0,), valid=None):
    """Weights of the points: zero scores, and values that are one-hot."""
    shape_q, shape_p = (1, len(slopes), len(x_q), 2), (1, len(slopes), len(x_p), 2)
    return point_attention(
        torch.zeros(shape_q, dtype=torch.float64),
        torch.zeros(shape_p, dtype=torch.float64),
        torch.eye(len(x_p), dtype=torch.float64).expand(1, len(slopes), -1, -1),
        query_points=torch.tensor(x_q, dtype=torch.float64)[:, None],
        points=torch.tensor(x_p, dtype=torch.float64)[:, None],
        slopes=torch.tensor(slopes, dtype=torch.float64),
        periods=periods,
        valid=valid,
    )[0]


def test_nearer_points_weigh_more_by_the_formula():
    x_p = [0.1, 0.2, 0.45, 0.95]
    weights = attend(x_q=[0.1], x_p=x_p, slopes=[2.0, 5.0])
    distances = torch.tensor([0.0, 0.1, 0.35, 0.15], dtype=torch.float64)
    for head, slope in enumerate((2.0, 5.0)):
        torch.testing.assert_close(weights[head, 0], (-slope * distances).softmax(0))
        assert weights[head, 0].argsort(descending=True).tolist() == [0, 1, 3, 2]
    # Without the ring the last point is far.
    apart = attend(x_q=[0.1], x_p=x_p, slopes=[2.0], periods=(None,))
    assert apart[0, 0].argsort(descending=True).tolist() == [0, 1, 2, 3]


def test_padding_weighs_nothing():
    weights = attend(x_q=[0.1, 0.5], x_p=[0.1, 0.2, 0.45], slopes=[2.0], valid=torch.tensor([[True, False, True]]))
    assert torch.equal(weights[0, :, 1], torch.zeros(2, dtype=torch.float64))
    torch.testing.assert_close(weights.sum(-1), torch.ones(1, 2, dtype=torch.float64))


@pytest.mark.parametrize("periodic", [False, True])
def test_gradients_are_right_and_finite_at_coincident_points(periodic):
    def double(*shape):
        return torch.randn(*shape, dtype=torch.float64, requires_grad=True)

    points = torch.rand(2, 6, 2, dtype=torch.float64)
    query = torch.rand(2, 5, 2, dtype=torch.float64)
    query[:, :3] = points[:, :3]
    arguments = [
        double(2, 2, 5, 3),
        double(2, 2, 6, 3),
        double(2, 2, 6, 4),
        query.requires_grad_(),
        points.requires_grad_(),
        torch.tensor([0.5, 2.0], dtype=torch.float64, requires_grad=True),
    ]
    valid = torch.tensor([[True] * 6, [True] * 5 + [False]])

    def call(q, k, v, x_q, x_p, slopes):
        return point_attention_ref(
            q,
            k,
            v,
            query_points=x_q,
            points=x_p,
            slopes=slopes,
            periods=(1.0 if periodic else None, None),
            valid=valid,
        )

    assert torch.autograd.gradcheck(call, arguments)


def test_gradients_are_finite_in_fp32_at_coincident_points():
    x = torch.rand(4, 2, requires_grad=True)
    point_distance(x, x.detach().clone(), periods=(1.0, None)).sum().backward()
    assert torch.isfinite(x.grad).all()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"points": torch.zeros(4, 1)}, "points"),
        ({"query_points": torch.zeros(4, 1)}, "query_points"),
        ({"periods": (1.0, None)}, "points"),
    ],
)
def test_arguments_that_do_not_fit_are_named(changes, said):
    arguments = {
        "query_points": torch.zeros(3, 1),
        "points": torch.zeros(5, 1),
        "slopes": torch.ones(1),
        "periods": (None,),
    } | changes
    with pytest.raises(EnmaError, match=f"^point_attention: {said}"):
        point_attention(torch.zeros(1, 1, 3, 2), torch.zeros(1, 1, 5, 2), torch.zeros(1, 1, 5, 2), **arguments)


def test_fields_on_another_grid_are_refused():
    """Also where they have as many points."""
    config = CONFIGS["plane-paper"].codec
    made, u = PointsCodec(config), waves(1, 2, 3, config)
    assert made.encode(u).shape[0] == 2
    with pytest.raises(EnmaError, match="field"):
        made.encode(u.transpose(2, 3))
