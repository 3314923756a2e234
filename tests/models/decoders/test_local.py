"""The local decoder: its arithmetic, its symmetry, what it sees of the past, and what it starts from."""

import itertools
import re

import numpy as np
import pytest
import torch

from enma_fast.config import LinearConfig
from enma_fast.errors import EnmaError
from enma_fast.models.decoders.decoder import first_past, next_past, with_past
from enma_fast.models.decoders.local import PAST, LocalDecoder
from enma_fast.models.masked_transformer import MaskedTransformer
from enma_fast.models.patches import patchify, unpatchify
from enma_fast.training.inherit import inherit
from enma_fast.utils.dataclass_json import replace

from ..._tiny import CONFIGS, random_model, shaken

NAMES = ("line-local", "plane-local", "line-fourier", "plane-fourier")


def untrained(name):
    config = CONFIGS[name]
    torch.manual_seed(0)
    return LocalDecoder(config, config.step, MaskedTransformer(config)).double().eval().requires_grad_(False)


def made(name):
    return shaken(untrained(name))


def inputs(name, batch=2):
    config, generator = CONFIGS[name], torch.Generator().manual_seed(1)
    past = (batch, PAST, config.num_tokens, config.token_channels)
    condition = torch.randn(batch, config.num_tokens, config.context.width, generator=generator).double()
    return condition, torch.randn(past, generator=generator).double()


def on_grid(tokens, config):
    flat = unpatchify(tokens, config.codec.token_grid, config.context.patch)
    return flat.unflatten(2, config.codec.token_grid)


def convolved(x, weight, periodic):
    """A convolution of `[*grid, inward]` in loops."""
    grid, dims = x.shape[:-1], len(periodic)
    out = np.zeros((*grid, weight.shape[0]))
    for place in itertools.product(*map(range, grid)):
        for tap in itertools.product(range(3), repeat=dims):
            other = [p + t - 1 for p, t in zip(place, tap, strict=True)]
            if any(not ring and not 0 <= o < n for o, n, ring in zip(other, grid, periodic, strict=True)):
                continue
            other = tuple(o % n for o, n in zip(other, grid, strict=True))
            out[place] += weight[(..., *tap)] @ x[other]
    return out


def filtered(x, parts):
    """`[*grid, inward]` through a filter, one wave at a time: each is read off, multiplied and put back."""
    grid, modes = x.shape[:-1], parts.shape[-3]
    places = np.stack(np.meshgrid(*(np.arange(n) / n for n in grid), indexing="ij"), -1)
    waves = [range(1 - modes, modes)] * (len(grid) - 1) + [range(modes)]
    out = np.zeros((*grid, parts.shape[-1]))
    for wave in itertools.product(*waves):
        phase = np.exp(2j * np.pi * places @ wave)[..., None]
        amplitude = (x / phase).reshape(-1, x.shape[-1]).mean(0)
        real, imaginary = parts[(slice(None), *wave)]
        made = (phase * (amplitude @ (real + 1j * imaginary))).real
        # The conjugate of a wave beyond the mean along the last dimension is the same wave of a real field.
        out += made if wave[-1] == 0 else 2 * made
    return out


def normalised(x, weight, eps=1e-5):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * weight


@pytest.mark.parametrize("name", NAMES)
def test_the_arithmetic_in_loops(name):
    config, decoder = CONFIGS[name], made(name)
    condition, past = inputs(name, batch=1)
    w = {key: value.numpy() for key, value in decoder.state_dict().items()}
    periodic = config.codec.periodic
    features = condition.numpy() @ w["features.weight"].T + w["features.bias"]
    x = on_grid(torch.from_numpy(features)[:, None], config)[0, 0].numpy()
    frames = on_grid(past, config)[0].numpy()
    x = x + convolved(np.concatenate(list(frames), -1), w["frames.conv.weight"], periodic)
    for i in range(config.step.layers):
        y = normalised(x, w[f"blocks.{i}.norm.weight"])
        if f"blocks.{i}.filter" in w:
            gate, up = np.split(y @ w[f"blocks.{i}.gate_up.weight"].T, 2, -1)
            up = up + filtered(y, w[f"blocks.{i}.filter"])
        else:
            gate, up = np.split(convolved(y, w[f"blocks.{i}.gate_up.conv.weight"], periodic), 2, -1)
        x = x + (gate / (1 + np.exp(-gate)) * up) @ w[f"blocks.{i}.down.weight"].T
    expected = frames[-1] + normalised(x, w["norm.weight"]) @ w["read.weight"].T + w["read.bias"]
    found = on_grid(decoder.tokens_of(condition, past)[:, None], config)[0, 0].numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("name", "axis", "moves"),
    [
        ("line-local", 0, True),
        ("plane-local", 0, True),
        ("plane-local", 1, False),
        ("line-fourier", 0, True),
        ("plane-fourier", 0, True),
        ("plane-fourier", 1, True),
    ],
)
def test_shifts_commute_around_a_ring_and_not_along_a_wall(name, axis, moves):
    config, decoder = CONFIGS[name], made(name)
    condition, past = inputs(name)
    patch = config.context.patch
    grid = config.codec.token_grid

    def shifted(tokens_BTNC):
        fields = tokens_BTNC.unflatten(2, config.token_grid)
        return fields.roll(1, 2 + axis).flatten(2, 1 + len(grid))

    found = decoder.tokens_of(shifted(condition[:, None])[:, 0], shifted(past))
    expected = shifted(decoder.tokens_of(condition, past)[:, None])[:, 0]
    assert torch.allclose(found, expected) is moves
    assert len(patch) == len(grid)


@pytest.mark.parametrize("name", NAMES)
def test_an_untrained_decoder_repeats_the_last_frame(name):
    condition, past = inputs(name)
    assert torch.equal(untrained(name).tokens_of(condition, past), past[:, -1])


def test_the_past_of_each_frame():
    frames = torch.arange(1.0, 5.0).view(1, 4, 1, 1)
    assert with_past(frames, 2).flatten(1).tolist() == [[0, 0, 0, 1, 1, 2, 2, 3]]
    assert with_past(frames, 0).shape == (1, 4, 0, 1, 1)
    history = inputs("plane-local")[1]
    assert torch.equal(first_past(history[:, :0], history.shape[1]), torch.zeros_like(history))
    one = first_past(history[:, :1], 2)
    assert torch.equal(one[:, 1], history[:, 0])
    assert not one[:, 0].any()
    longer = torch.cat([history, history + 1], 1)
    assert torch.equal(first_past(longer, 2), longer[:, -2:])
    assert first_past(longer, 0).shape == (2, 0, *history.shape[2:])
    # Frame by frame it is the past of all frames at once.
    past = first_past(longer[:, :0], 2)
    for t, expected in enumerate(with_past(longer, 2).unbind(1)):
        assert torch.equal(past, expected)
        past = next_past(past, longer[:, t])
    assert next_past(first_past(longer, 0), longer[:, 0]).shape[1] == 0


def test_patches_come_back():
    config = CONFIGS["plane-local"]
    past = inputs("plane-local")[1]
    grid, patch = config.codec.token_grid, config.context.patch
    assert torch.equal(patchify(unpatchify(past, grid, patch), grid, patch), past)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"step.width": 24}, "step.width"),
        ({"step.layers": 0}, "step.layers"),
        ({"trunk": None}, "trunk"),
        ({"step.modes": 0}, "step.modes"),
        ({"step.modes": 9}, "step.modes"),
        ({"step.modes": 2, "codec.periodic": (False,)}, "step.modes"),
    ],
)
def test_sizes_that_cannot_be_are_refused(changes, named):
    with pytest.raises(EnmaError, match=rf"^ModelConfig: (.*: )?{re.escape(named)}\b"):
        replace(CONFIGS["line-local"], changes)


def test_a_model_begins_with_the_transformers_of_one_without_a_local_decoder():
    config = CONFIGS["line-local"]
    linear = random_model(replace(config, {"step": LinearConfig()}), seed=1)
    model = random_model(config, seed=2)
    drawn = {name: value.clone() for name, value in model.state_dict().items()}
    inherit(model, linear, source="it")
    for name, value in model.state_dict().items():
        own = name.startswith("dynamics.step.") and not name.startswith("dynamics.step.noise.")
        assert torch.equal(value, (drawn if own else linear.state_dict())[name]), name
    # And back: the layer that reads tokens begins with the means of the flow head.
    again = random_model(linear.config, seed=3)
    inherit(again, model, source="it")
    means = model.dynamics.initial.moments.weight[: config.token_channels]
    assert torch.equal(again.dynamics.step.read.weight, means)
    assert torch.equal(again.dynamics.context.embed.weight, linear.dynamics.context.embed.weight)
