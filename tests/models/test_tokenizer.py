"""The tokenizer: nothing depends on a later frame, shifts by whole tokens commute, the loss is its formula."""

from dataclasses import replace

import pytest
import torch

from enma_fast.config import TokenizerConfig
from enma_fast.errors import EnmaError
from enma_fast.models.tokenizer import ExpandSpace, ExpandTime, Tokenizer, pad_space, patchify, unpatchify

from .._tiny import CONFIGS, LINE, PLANE, distance, shaken

hypothesis = pytest.importorskip("hypothesis")
st = pytest.importorskip("hypothesis.strategies")

OPTIONS = {
    "line": LINE,
    "plane": PLANE,
    "points": CONFIGS["points"].tokenizer,
    "strided": replace(PLANE, kernel_ends=3, stride_ends=2, layers=("space", "residual", "time")),
    "two-times": replace(LINE, layers=("space", "time", "residual", "time")),
}


def build(options, seed=0):
    torch.manual_seed(seed)
    return shaken(Tokenizer(options), seed).eval().requires_grad_(False)


def field(options, frames, batch=2):
    return torch.randn(batch, frames, *options.grid, options.field_channels)


@pytest.fixture(params=OPTIONS)
def options(request):
    return OPTIONS[request.param]


@pytest.fixture
def tokenizer(options):
    return build(options)


@pytest.mark.parametrize("frames", [1, 2, 3, 8, 9])
def test_shapes(tokenizer, options, frames):
    z = tokenizer.encode(field(options, frames))
    tokens = torch.Size(options.token_grid).numel()
    assert z.shape == (2, options.latent_frames(frames), tokens, options.latent_channels)
    whole = (z.shape[1] - 1) * options.time_factor + 1
    assert tokenizer.decode(z).shape == (2, whole, *options.grid, options.field_channels)
    out = tokenizer.decode(z, frames)
    assert out.shape == (2, frames, *options.grid, options.field_channels)
    assert out.dtype == torch.float32
    # Cropping only drops frames.
    assert torch.equal(out, tokenizer.decode(z)[:, :frames])


@pytest.mark.parametrize(("frames", "latents"), [(20, 11), (50, 26), (30, 16)])
def test_latent_frames_of_the_paper(frames, latents):
    config = TokenizerConfig()
    tokenizer = build(config)
    assert tokenizer.encode(field(config, frames, batch=1)).shape == (1, latents, 16, 4)


def test_no_latent_depends_on_a_later_frame(tokenizer, options):
    u = field(options, 9)
    z = tokenizer.encode(u)
    for t in range(9):
        changed = u.clone()
        changed[:, t] += torch.randn_like(u[:, t])
        holder = -(-t // options.time_factor)
        new = tokenizer.encode(changed)
        assert torch.equal(new[:, :holder], z[:, :holder])
        assert distance(new[:, holder], z[:, holder]) > 1e-3


def test_latents_of_a_beginning_are_a_beginning_of_the_latents(tokenizer, options):
    u = field(options, 9)
    z = tokenizer.encode(u)
    for frames in (1, 5, 9):
        assert distance(tokenizer.encode(u[:, :frames]), z[:, : options.latent_frames(frames)]) < 1e-5


def test_no_frame_depends_on_a_later_latent(tokenizer, options):
    z = torch.randn(2, 4, torch.Size(options.token_grid).numel(), options.latent_channels)
    u = tokenizer.decode(z)
    for j in range(4):
        changed = z.clone()
        changed[:, j] += torch.randn_like(z[:, j])
        first = 0 if j == 0 else (j - 1) * options.time_factor + 1
        new = tokenizer.decode(changed)
        assert torch.equal(new[:, :first], u[:, :first])
        assert distance(new[:, first], u[:, first]) > 1e-3


def test_a_half_filled_latent_repeats_the_last_frame():
    tokenizer = build(LINE)
    u = field(LINE, 4)
    assert torch.equal(tokenizer.encode(u), tokenizer.encode(torch.cat([u, u[:, -1:]], dim=1)))


def shifted_encode_differs(tokenizer, options, points):
    """How far encoding fails to commute with shifts by `points` grid points along axis 0."""
    u = field(options, 3)
    grid = (2, 2, *options.token_grid, -1)
    z = tokenizer.encode(u.roll(points, dims=2)).view(grid)
    return distance(z, tokenizer.encode(u).view(grid).roll(points // options.space_factor, dims=2))


@pytest.mark.parametrize("options", [LINE, PLANE, OPTIONS["strided"]], ids=["line", "plane", "strided"])
def test_shifts_by_whole_tokens_commute_around_the_ring(options):
    tokenizer = build(options)
    for tokens in (1, 3):
        assert shifted_encode_differs(tokenizer, options, tokens * options.space_factor) < 1e-5
    z = torch.randn(2, 3, torch.Size(options.token_grid).numel(), options.latent_channels)
    moved = z.view(2, 3, *options.token_grid, -1).roll(1, dims=2).flatten(2, -2)
    expected = tokenizer.decode(z).roll(options.space_factor, dims=2)
    assert distance(tokenizer.decode(moved), expected) < 1e-5


def test_shifts_by_a_part_of_a_token_do_not_commute():
    assert shifted_encode_differs(build(LINE), LINE, 1) > 1e-2


@pytest.mark.parametrize("periodic", [(False, True), (False, False)])
def test_shifts_do_not_commute_at_a_wall(periodic):
    options = replace(PLANE, periodic=periodic)
    assert shifted_encode_differs(build(options), options, options.space_factor) > 1e-2


def test_padding_goes_around_the_ring_and_is_zero_at_a_wall():
    x = torch.arange(1.0, 7.0).view(1, 1, 1, 2, 3)
    expected = [[0, 0, 0, 0, 0], [3, 1, 2, 3, 1], [6, 4, 5, 6, 4], [0, 0, 0, 0, 0]]
    assert pad_space(x, 1, (False, True))[0, 0, 0].tolist() == expected
    expected = [[0, 4, 5, 6, 0], [0, 1, 2, 3, 0], [0, 4, 5, 6, 0], [0, 1, 2, 3, 0]]
    assert pad_space(x, 1, (True, False))[0, 0, 0].tolist() == expected


def test_expanding_space_puts_each_channel_at_its_place():
    layer = ExpandSpace(1, 1, PLANE, kernel=PLANE.kernel)
    with torch.no_grad():
        layer.conv.conv.weight.zero_()
        layer.conv.conv.bias.copy_(torch.arange(4.0))
    out = layer(torch.zeros(1, 1, 1, 2, 2))
    assert out[0, 0, 0].tolist() == [[0, 1, 0, 1], [2, 3, 2, 3], [0, 1, 0, 1], [2, 3, 2, 3]]


def test_expanding_time_drops_the_first_frame():
    layer = ExpandTime(1, 1, LINE)
    with torch.no_grad():
        layer.conv.conv.weight.fill_(1.0)
        layer.conv.conv.bias.copy_(torch.tensor([0.25, 0.5]))
    out = layer(torch.tensor([10.0, 20.0, 30.0]).view(1, 1, 3, 1))
    assert out.flatten().tolist() == [10.5, 20.25, 20.5, 30.25, 30.5]


def test_loss_is_its_formula():
    tokenizer = build(replace(LINE, kl_weight=0.3))
    u = field(LINE, 6, batch=3)
    mean, log_variance = tokenizer.posterior(u)
    noise = torch.randn_like(mean)
    loss, relative = tokenizer(u, noise)
    out = tokenizer.decode(mean + log_variance.exp().sqrt() * noise, 6)
    errors = [((a - b) ** 2).sum().sqrt() / (b**2).sum().sqrt() for a, b in zip(out, u, strict=True)]
    normal = torch.distributions.Normal
    kl = torch.distributions.kl_divergence(normal(mean, log_variance.exp().sqrt()), normal(0.0, 1.0)).mean()
    torch.testing.assert_close(relative, torch.stack(errors).mean(), rtol=1e-5, atol=0)
    torch.testing.assert_close(loss, relative + 0.3 * kl, rtol=1e-5, atol=0)


def test_a_plain_auto_encoder_ignores_the_noise():
    tokenizer = build(replace(LINE, variational=False))
    u = field(LINE, 5)
    mean, log_variance = tokenizer.posterior(u)
    assert mean.shape[-1] == LINE.latent_channels
    assert (log_variance == float("-inf")).all()
    loss, relative = tokenizer(u, torch.randn_like(mean))
    assert torch.equal(loss, relative)
    assert torch.equal(loss, tokenizer(u, torch.zeros_like(mean))[0])
    # Bit for bit equality would hang on how the error is summed.
    expected = (tokenizer.decode(mean, 5) - u).flatten(1).norm(dim=1) / u.flatten(1).norm(dim=1)
    torch.testing.assert_close(loss, expected.mean(), rtol=1e-6, atol=0)


def test_a_field_of_zeros_has_a_finite_loss():
    tokenizer = build(LINE).requires_grad_(True)
    u = torch.zeros(2, 3, 32, 1)
    loss, _ = tokenizer(u, torch.randn(2, 2, 16, 2))
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(p.grad).all() for p in tokenizer.parameters())


def test_loss_from_points_compares_on_the_grid():
    options = OPTIONS["points"]
    tokenizer = build(options)
    u = field(options, 4)
    index = torch.randperm(32)[:20].expand(2, -1)
    points = tokenizer.interpolation.regular[index]
    values = u[:, :, index[0]]
    noise = torch.zeros(2, 3, 16, options.latent_channels)
    _, relative = tokenizer(u, noise, points, values)
    out = tokenizer.decode(tokenizer.encode(values, points), 4)
    expected = (out - u).flatten(1).norm(dim=1) / u.flatten(1).norm(dim=1)
    torch.testing.assert_close(relative, expected.mean())


def test_every_parameter_is_trained(tokenizer, options):
    tokenizer.train().requires_grad_(True)
    u, points, values = field(options, 5), None, None
    if options.interpolation is not None:
        points, values = torch.rand(2, 9, options.dims), torch.randn(2, 5, 9, options.field_channels)
    noise = torch.randn_like(tokenizer.encode(u))
    tokenizer(u, noise, points, values)[0].backward()
    idle = {name for name, p in tokenizer.named_parameters() if p.grad is None or not p.grad.any()}
    # A softmax does not see what is added to all its scores.
    assert {name for name in idle if not name.endswith(("attend.bias", "_k.bias"))} == set()


def test_what_needs_interpolation_says_so():
    tokenizer = build(LINE)
    with pytest.raises(EnmaError, match="points: this tokenizer has no interpolation"):
        tokenizer.encode(torch.randn(1, 3, 7, 1), torch.rand(7, 1))
    with pytest.raises(EnmaError, match="query: this tokenizer has no interpolation"):
        tokenizer.decode(torch.randn(1, 2, 16, 2), query=torch.rand(7, 1))


def test_a_wrong_grid_is_named():
    with pytest.raises(EnmaError, match=r"field has the grid \(8, 16\); the tokenizer expects \(16, 8\)"):
        build(PLANE).encode(torch.randn(1, 3, 8, 16, 2))


@st.composite
def patches(draw):
    dims = draw(st.integers(1, 2))
    patch = tuple(draw(st.integers(1, 3)) for _ in range(dims))
    return tuple(p * draw(st.integers(1, 4)) for p in patch), patch


@hypothesis.given(sizes=patches())
def test_patchify_merges_neighbours_and_can_be_undone(sizes):
    grid, patch = sizes
    tokens, channels = torch.Size(grid).numel(), 2
    z = torch.arange(2.0 * 3 * tokens * channels).view(2, 3, tokens, channels)
    merged = patchify(z, grid, patch)
    assert merged.shape == (2, 3, tokens // torch.Size(patch).numel(), channels * torch.Size(patch).numel())
    assert torch.equal(unpatchify(merged, grid, patch), z)
    # Token by token: the patch that starts at i * patch, its places in order, each with all its channels.
    planes = z.view(2, 3, *(grid if len(grid) == 2 else (1, *grid)), channels)
    height, width = patch if len(patch) == 2 else (1, *patch)
    blocks = [
        planes[:, :, i : i + height, j : j + width].reshape(2, 3, -1)
        for i in range(0, planes.shape[2], height)
        for j in range(0, planes.shape[3], width)
    ]
    assert torch.equal(merged, torch.stack(blocks, dim=2))


def rearranging(dims, channels, stride):
    values = 2 * channels * stride**dims
    return TokenizerConfig(
        grid=(8, 12)[:dims],
        lengths=(1.0,) * dims,
        periodic=(True, False)[:dims],
        field_channels=channels,
        latent_channels=values,
        width=values,
        layers=("time",),
        kernel_ends=3,
        stride_ends=stride,
        variational=False,
    )


@pytest.mark.parametrize(("dims", "channels", "stride"), [(1, 1, 1), (1, 3, 2), (2, 1, 2), (2, 2, 2)])
def test_a_lossless_tokenizer_rearranges_blocks(dims, channels, stride):
    """Latent frame j holds the values of frames 2 j - 1 and 2 j, in blocks of neighbouring points."""
    options = rearranging(dims, channels, stride)
    assert options.lossless
    tokenizer = Tokenizer(options)
    u = field(options, 5)
    with torch.no_grad():
        z = tokenizer.encode(u)
        assert torch.equal(tokenizer.decode(z, 5), u)
    block = u[:, 3:5, *(slice(stride, 2 * stride),) * dims]
    second = z.unflatten(2, options.token_grid)[:, 2, *(1,) * dims]
    assert torch.equal(second.sort(-1).values, block.flatten(1).sort(-1).values)


@pytest.mark.parametrize(
    "changes",
    [
        {"variational": True},
        {"latent_channels": 4},
        {"layers": ("time", "residual")},
        {"kernel_ends": 1},
        {"interpolation": CONFIGS["points"].tokenizer.interpolation},
    ],
)
def test_other_tokenizers_are_not_lossless(changes):
    assert not replace(rearranging(2, 1, 2), **changes).lossless
