"""The lossless codec: it is the network of convolutions that it was, and comes back to the bit for any block."""

import itertools

import pytest
import torch

from enma_fast.config import BlocksConfig, ConvConfig
from enma_fast.models.codecs.blocks import BlocksCodec
from enma_fast.models.codecs.conv import ConvCodec

from ._codecs import field

GRID, LENGTHS, PERIODIC = (8, 12), (1.0, 2.0), (True, False)


def blocks(dims, channels, block=2, frames=2, **changes):
    return BlocksConfig(
        grid=GRID[:dims],
        lengths=LENGTHS[:dims],
        periodic=PERIODIC[:dims],
        field_channels=channels,
        block=block,
        frames=frames,
        **changes,
    )


def convolutions(config):
    """Strided convolutions whose weights put the values of a block beside each other, and back."""
    values, dims, s, c = config.latent_channels, config.dims, config.block, config.field_channels
    made = ConvCodec(
        ConvConfig(
            grid=config.grid,
            lengths=config.lengths,
            periodic=config.periodic,
            field_channels=c,
            field_mean=config.field_mean,
            field_scale=config.field_scale,
            latent_channels=values,
            width=values,
            max_width=values,
            layers=("time",),
            kernel_ends=3,
            stride_ends=s,
            variational=False,
        )
    ).requires_grad_(False)
    for weight in made.parameters():
        weight.zero_()
    outward = made.conv_out.conv if s == 1 else made.conv_out.conv.conv
    for (number, place), channel in itertools.product(enumerate(itertools.product(range(s), repeat=dims)), range(c)):
        value = channel * s**dims + number
        made.conv_in.conv.weight[(value, channel, -1, *(1 + i for i in place))] = 1
        outward.weight[(value, value, -1, *(1,) * dims)] = 1
    # Of two frames the earlier one first.
    frame = c * s**dims
    pair, apart = made.down[0].conv.weight, made.up[0].conv.conv.weight
    for value in range(frame):
        pair[value, value, -2] = pair[frame + value, value, -1] = 1
        apart[value, value] = apart[2 * frame + value, frame + value] = 1
    for layer in (made.to_latent, made.from_latent):
        layer.weight.fill_diagonal_(1)
    return made


@pytest.mark.parametrize("frames", [1, 2, 5, 6])
@pytest.mark.parametrize(
    ("dims", "channels", "block"), [(1, 1, 1), (1, 1, 2), (1, 3, 2), (2, 1, 1), (2, 1, 2), (2, 2, 2)]
)
def test_it_is_a_network_of_convolutions_to_the_bit(dims, channels, block, frames):
    units = {"field_mean": (0.5,) * channels, "field_scale": (3.0,) * channels}
    for config in (blocks(dims, channels, block), blocks(dims, channels, block, **units)):
        made, network = BlocksCodec(config), convolutions(config)
        u = field(config, frames)
        z = made.encode(u)
        assert torch.equal(z, network.encode(u))
        assert z.dtype == torch.float32
        z = torch.randn_like(z)
        assert torch.equal(made.decode(z), network.decode(z))
        assert torch.equal(made.decode(z, frames), network.decode(z, frames))


@pytest.mark.parametrize("num_frames", [1, 4, 5, 9])
@pytest.mark.parametrize(
    ("dims", "channels", "block", "frames"),
    [(1, 2, 4, 2), (1, 1, 1, 1), (1, 1, 2, 3), (2, 1, 4, 2), (2, 2, 2, 4), (2, 3, 1, 1)],
)
def test_fields_come_back_to_the_bit(dims, channels, block, frames, num_frames):
    config = blocks(dims, channels, block, frames)
    made = BlocksCodec(config)
    u = field(config, num_frames)
    z = made.encode(u)
    places = torch.Size(config.token_grid).numel()
    assert z.shape == (2, config.latent_frames(num_frames), places, channels * block**dims * frames)
    assert torch.equal(made.decode(z, num_frames), u)
    # Place (1, ..) of latent 1 holds the second block along each dimension, in the frames after frame 0.
    if num_frames > frames:
        held = u[:, 1 : 1 + frames, *(slice(block, 2 * block),) * dims]
        place = z.unflatten(2, config.token_grid)[:, 1, *(1,) * dims]
        assert torch.equal(place.sort(-1).values, held.flatten(1).sort(-1).values)


def test_it_has_nothing_to_store():
    assert not BlocksCodec(blocks(2, 1, field_mean=(0.5,), field_scale=(3.0,))).state_dict()
