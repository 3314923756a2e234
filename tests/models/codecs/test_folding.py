"""The linear end of a decoder as one convolution: the same numbers where it is worth it, and no row sees another."""

import copy

import pytest
import torch

from enma_fast.forecasting.members import sample_fields
from enma_fast.models.codecs.conv import ConvCodec
from enma_fast.models.codecs.folding import FoldedEnd, fold_end, folded_end
from enma_fast.models.model import Model
from enma_fast.training.recipes import RECIPES
from enma_fast.utils.dataclass_json import replace

from ..._tiny import COMBINED, LINE, shaken, waves
from ...ops._oracle import assert_close_as_reference

SPACE = ("space", "space", "space", "residual", "time", "residual")


def codec(options, **changes):
    torch.manual_seed(0)
    return shaken(ConvCodec(replace(options, changes))).eval().requires_grad_(False)


# Codecs with a linear end: one, two and three layers; a plane; two channels of the field.
FOLDED = {
    "one": codec(LINE, grid=[64], layers=["space", "residual", "time"]),
    "late": codec(LINE, grid=[64], layers=["space", "residual", "space", "time"]),
    "two": codec(LINE, grid=[64], layers=["space", "space", "residual", "time", "residual"]),
    "three": codec(LINE, grid=[128], layers=SPACE, max_width=32, width=16),
    "channels": codec(LINE, grid=[128], layers=SPACE, field_channels=2, kernel_ends=5),
    "plane": codec(
        LINE,
        grid=[32, 48],
        lengths=[1.0, 2.0],
        periodic=[True, True],
        width=16,
        max_width=16,
        layers=["space", "space", "residual", "time"],
    ),
}


# An end that is not linear, walls, fewer tokens than it reaches, and more arithmetic than before.
STAY = {
    "residual": {"layers": ["residual", "space", "residual"]},
    "walls": {"layers": ["space", "residual"], "periodic": [False]},
    "few": {"layers": ["space", "space", "residual"], "grid": [16]},
    "work": {"layers": ["space", "space", "residual"], "grid": [128], "field_channels": 16},
}


def latents(made, rows=3, frames=4):
    N = torch.tensor(made.config.token_grid).prod()
    return torch.randn(rows, frames, int(N), made.config.latent_channels)


@pytest.mark.parametrize("frames", [1, 2, 5])
@pytest.mark.parametrize("name", FOLDED)
def test_it_is_the_decoder(name, frames):
    made = FOLDED[name]
    end = fold_end(made)
    assert isinstance(end, FoldedEnd)
    z = latents(made, frames=frames)
    wide = copy.deepcopy(made).double()
    exact = wide.decode(z.double()).double()
    ours = made.decode(z, end=end)
    assert ours.shape == exact.shape
    # In the first frames the bias has come through fewer frames than later.
    assert_close_as_reference(ours, made.decode(z), exact, floor=1e-6 * exact.abs().max().item())
    folded = wide.decode(z.double(), end=fold_end(wide))
    assert (folded - exact).abs().max() <= 1e-6 * exact.abs().max()
    assert torch.equal(made.decode(z, 1, end=end), ours[:, :1])


@pytest.mark.parametrize("name", STAY)
def test_elsewhere_the_decoder_stays(name):
    assert fold_end(codec(LINE, **STAY[name])) is None


@pytest.mark.slow
def test_presets_that_are_folded():
    configs = {name: preset.model.codec for name, preset in RECIPES.items() if preset.model.codec.kind == "conv"}
    made = {name for name, config in configs.items() if fold_end(ConvCodec(config)) is not None}
    assert made == {"combined-small", "combined-fast", "advection-small", "advection-fast", "vorticity-small"}


def test_weights_that_have_changed_are_folded_again():
    made = copy.deepcopy(FOLDED["two"])
    end = folded_end(made)
    assert folded_end(made) is end
    for layer in (made.conv_out.conv, made.up[-1].conv.conv):
        layer.weight.mul_(1.5)
        assert folded_end(made) is not end
        end, z = folded_end(made), latents(made)
        assert (made.decode(z, end=end) - made.decode(z)).abs().max() < 1e-4
    copied = copy.deepcopy(made)
    copied.conv_out.conv.bias.add_(1.0)
    z = latents(made)
    assert (copied.decode(z, end=folded_end(copied)) - copied.decode(z)).abs().max() < 1e-4
    assert set(copied.state_dict()) == set(made.state_dict())


def test_a_member_alone_has_the_bits_of_many(one_thread, monkeypatch):
    monkeypatch.setattr("enma_fast.forecasting.encoding.native_codec", lambda codec: None)
    torch.manual_seed(0)
    config = replace(COMBINED, {"codec.layers": list(SPACE), "codec.max_width": 8, "context.patch": [2]})
    made = shaken(Model(config), scale=0.1).eval().requires_grad_(False)
    assert folded_end(made.codec) is not None
    history = waves(1, 1, 3, config.codec)[0]
    many = sample_fields(made, history, num_members=19, seed=2)
    for member in (0, 7, 8, 18):
        assert torch.equal(sample_fields(made, history, first_member=member, seed=2)[0], many[member])
    torch.set_num_threads(2)
    assert torch.equal(sample_fields(made, history, num_members=19, seed=2, chunk=5), many)
