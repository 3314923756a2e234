"""The codec of the extension: PyTorch's numbers, and bits that depend on nothing but the row and its past."""

import copy
import gc
import json
import os
import re
import subprocess
import sys
import weakref

import numpy as np
import pytest
import torch
from torch.nn.utils.parametrizations import weight_norm

from enma_fast.config import BlocksConfig
from enma_fast.forecasting.members import sample_fields
from enma_fast.models.codecs import native as module
from enma_fast.models.codecs.interpolation import grid_points
from enma_fast.models.codecs.native import NativeCodec, native_codec
from enma_fast.utils.dataclass_json import replace, to_json

from ..._extension import ISAS, NATIVE, each_isa, needs_native
from ..._tiny import CONFIGS, LINE, PLANE, shaken, waves, with_points
from ..._tiny import model as tiny_model
from ...ops._oracle import assert_close_as_reference
from .test_folding import FOLDED, STAY

pytestmark = needs_native


def codec(options, *, shake=0.2, **changes):
    torch.manual_seed(1)
    return shaken(options.made()(replace(options, changes)), scale=shake).eval().requires_grad_(False)


# Those with a linear end, which is folded; walls, channels, units of the field; nothing at full resolution; no VAE.
CODECS = {("plane of rings" if name == "plane" else name): made for name, made in FOLDED.items()} | {
    "line": codec(LINE),
    "walls": codec(LINE, grid=[64], periodic=[False], layers=["space", "space", "residual", "time"]),
    "few": codec(LINE, grid=[16], layers=["space", "space", "residual"]),
    "plane": codec(PLANE),
    "units": codec(PLANE, field_mean=[0.5, -2.0], field_scale=[3.0, 0.1]),
    "coarse": codec(PLANE, grid=[16, 32], stride_ends=2, kernel_ends=3, layers=["space", "residual", "time"]),
    "points": codec(with_points(LINE), shake=0.1),
    "plane of points": codec(with_points(PLANE), shake=0.1, field_mean=[0.5, -2.0], field_scale=[3.0, 0.1]),
    "blocks": codec(BlocksConfig(grid=(32,), field_channels=2)),
    "plane of blocks": codec(
        BlocksConfig(grid=(12, 6), lengths=(1.0, 1.0), periodic=(True, False), block=3, frames=4),
        field_mean=[0.5],
        field_scale=[3.0],
    ),
    "flat": codec(LINE, variational=False, layers=["time", "residual", "space", "time", "residual"]),
}


def fields(made, rows=3, frames=6):
    torch.manual_seed(2)
    return torch.randn(rows, frames, *made.config.grid, made.config.field_channels)


def latents(made, rows=3, frames=4):
    torch.manual_seed(3)
    N = int(torch.tensor(made.config.token_grid).prod())
    return torch.randn(rows, frames, N, made.config.latent_channels)


def readings(made, rows=3, frames=6, most=9):
    """Values and points of 5 to `most` of them a frame, NaN where one is not there."""
    torch.manual_seed(4)
    values = torch.randn(rows, frames, most, made.config.field_channels)
    points = torch.rand(rows, frames, most, made.config.dims) * torch.tensor(made.config.lengths)
    points[torch.rand(rows, frames, most).argsort(-1) >= torch.randint(5, most + 1, (rows, frames, 1))] = torch.nan
    return values, points


def exactly(made):
    return copy.deepcopy(made).double()


@each_isa
@pytest.mark.each_value
@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("frames", [1, 2, 5, 6])
def test_it_is_the_encoder(name, frames, isa):
    made = CODECS[name]
    u = fields(made, frames=frames)
    exact = exactly(made).encode(u.double()).double()
    ours = NativeCodec(made).encode(u, isa=isa)
    assert ours.shape == exact.shape
    assert ours.dtype == torch.float32
    assert_close_as_reference(ours, made.encode(u), exact, floor=1e-6 * exact.abs().max().item())


@each_isa
@pytest.mark.each_value
@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("frames", [1, 2, 5])
def test_it_is_the_decoder(name, frames, isa):
    made = CODECS[name]
    z = latents(made, frames=frames)
    exact = exactly(made).decode(z.double()).double()
    ours = NativeCodec(made).decode(z, exact.shape[1], isa=isa)
    assert ours.shape == exact.shape
    assert ours.dtype == torch.float32
    # In the first frames the bias has come through fewer frames than later.
    assert_close_as_reference(ours, made.decode(z), exact, floor=1e-6 * exact.abs().max().item())


@each_isa
@pytest.mark.parametrize("name", ["points", "plane of points"])
@pytest.mark.parametrize("frames", [1, 5, 6])
def test_it_is_the_encoder_of_scattered_points(name, frames, isa):
    made = CODECS[name]
    values, points = readings(made, frames=frames)
    seen = ~points.isnan().any(-1)
    exact = exactly(made).encode(values.double(), points.nan_to_num().double(), seen).double()
    reference = made.encode(values, points.nan_to_num(), seen)
    values[~seen] = torch.nan
    packed = NativeCodec(made)
    ours = packed.encode(values, points, isa=isa)
    assert_close_as_reference(ours, reference, exact, floor=1e-6 * exact.abs().max().item())
    for row in range(len(values)):
        assert torch.equal(packed.encode(values[row : row + 1], points[row : row + 1], isa=isa)[0], ours[row])
    # Points of all frames, and those of the grid.
    shared = points[0, 0][seen[0, 0]]
    fixed = values[:1, :1, seen[0, 0]]
    assert torch.equal(packed.encode(fixed, shared, isa=isa), packed.encode(fixed, shared[None, None], isa=isa))
    u = fields(made, frames=frames)
    on_grid = packed.encode(u.flatten(2, -2), grid_points(made.config), isa=isa)
    assert torch.equal(on_grid, packed.encode(u, isa=isa))


@each_isa
@pytest.mark.parametrize("name", ["three", "coarse", "flat", "plane", "points"])
def test_bits_depend_on_a_row_and_its_past_alone(name, isa):
    made = NativeCodec(CODECS[name])
    u, z = fields(made.codec, rows=5, frames=9), latents(made.codec, rows=5)
    frames = made.codec.config.time_factor * 3 + 1
    encoded, decoded = made.encode(u, isa=isa), made.decode(z, frames, isa=isa)
    count = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            assert torch.equal(made.encode(u, isa=isa), encoded)
            assert torch.equal(made.decode(z, frames, isa=isa), decoded)
    finally:
        torch.set_num_threads(count)
    for row in range(5):
        assert torch.equal(made.encode(u[row : row + 1], isa=isa), encoded[row : row + 1])
        assert torch.equal(made.decode(z[row : row + 1], frames, isa=isa), decoded[row : row + 1])
    # Latent frames that are whole after 5 fields, and the fields of 2 latent frames.
    whole = made.codec.config.whole_latents(5)
    assert torch.equal(made.encode(u[:, :5], isa=isa)[:, :whole], encoded[:, :whole])
    some = made.codec.config.time_factor + 1
    assert torch.equal(made.decode(z[:, :2], some, isa=isa), decoded[:, :some])


@pytest.mark.parametrize("name", [*CODECS, *STAY])
def test_the_linear_end_is_folded_where_python_folds_it(name):
    made = CODECS[name] if name in CODECS else codec(LINE, **STAY[name])
    assert NativeCodec(made).folded == (made.prepared_end() is not None)


@pytest.mark.parametrize("name", ["three", "two", "plane of rings"])
@pytest.mark.parametrize("bias", [300.0, 3e4])
def test_large_biases_take_nothing_from_the_weights(name, bias):
    made = copy.deepcopy(CODECS[name])
    made.conv_out.conv.bias.fill_(bias)
    z = latents(made)
    exact = exactly(made).decode(z.double()).double()
    assert_close_as_reference(NativeCodec(made).decode(z, exact.shape[1]), made.decode(z), exact, floor=0.0)


ENCODE = """
import hashlib, sys, torch
from enma_fast.models.checkpoint import load_model
from enma_fast.models.codecs.native import NativeCodec

codec = load_model("advection-points").codec
made = NativeCodec(codec)
u = torch.randn(3, 4, *codec.config.grid, 1, generator=torch.Generator().manual_seed(0))
for isa in sys.argv[1:]:
    z = made.encode(u, isa=isa)
    print(hashlib.sha256(z.numpy().tobytes() + made.decode(z, 4, isa=isa).numpy().tobytes()).hexdigest())
"""


def test_there_is_room_for_vectors_wider_than_the_chosen_ones():
    wider = [isa for isa in ISAS if isa in ("scalar", "avx2", "avx512")]
    if len(wider) == 1:
        pytest.skip("this processor has no wide vectors")

    def hashes(chosen):
        words = [sys.executable, "-c", ENCODE, *wider]
        done = subprocess.run(words, env=os.environ | {"ENMA_ISA": chosen}, capture_output=True, text=True, check=True)
        return done.stdout.split()

    expected = hashes("")
    assert len(expected) == len(wider)
    assert hashes("scalar") == expected


@each_isa
def test_numbers_that_are_none_stay_none(isa):
    made = NativeCodec(CODECS["three"])
    u, z = fields(made.codec), latents(made.codec)
    u[1, 2, 5], z[1, 1, 3] = np.nan, np.nan
    encoded, decoded = made.encode(u, isa=isa), made.decode(z, 7, isa=isa)
    assert encoded[1].isnan().any()
    assert decoded[1].isnan().any()
    for row in (0, 2):
        assert encoded[row].isfinite().all()
        assert decoded[row].isfinite().all()
    assert decoded[1, :1].isfinite().all()


def test_weights_that_have_changed_are_packed_again():
    made = copy.deepcopy(CODECS["line"])
    packed = native_codec(made)
    assert native_codec(made) is packed
    for layer in (made.conv_out.conv, made.down[0].conv.conv):
        layer.weight.mul_(1.5)
        assert native_codec(made) is not packed
        packed, z, u = native_codec(made), latents(made), fields(made)
        assert (packed.decode(z, 7) - made.decode(z)).abs().max() < 1e-4
        assert (packed.encode(u) - made.encode(u)).abs().max() < 1e-4
    copied = copy.deepcopy(made)
    copied.conv_out.conv.bias.add_(1.0)
    assert (native_codec(copied).decode(z, 7) - copied.decode(z)).abs().max() < 1e-4
    assert set(copied.state_dict()) == set(made.state_dict())


def test_weights_may_lie_in_any_order():
    made = copy.deepcopy(CODECS["line"]).to(memory_format=torch.channels_last)
    assert not made.down[0].conv.conv.weight.is_contiguous()
    z = latents(made)
    assert (native_codec(made).decode(z, 7) - made.decode(z)).abs().max() < 1e-4


def test_a_codec_is_freed_with_what_was_packed():
    made = copy.deepcopy(CODECS["line"])
    gc.disable()
    try:
        known = weakref.ref(native_codec(made))
        del made
        assert known() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("name", ["plane", "plane of points"])
def test_it_keeps_no_memory_of_the_codec(name):
    made = copy.deepcopy(CODECS[name])
    for module_ in made.modules():
        # What packing is given is a copy, and freed after it.
        for key, p in module_.named_parameters(recurse=False):
            if p.ndim == 2 and key == "weight":
                setattr(module_, key, torch.nn.Parameter(p.detach().t().contiguous().t(), requires_grad=False))
    packed, u, z = NativeCodec(made), fields(made), latents(made)
    expected = packed.encode(u), packed.decode(z, 3)
    for p in made.parameters():
        p.data = torch.full_like(p, torch.nan)
    taken = [torch.full((n,), torch.nan) for n in (8, 16, 48, 64, 256, 4096) for _ in range(64)]
    assert torch.equal(packed.encode(u), expected[0])
    assert torch.equal(packed.decode(z, 3), expected[1])
    del taken


def test_whom_it_does_not_serve(monkeypatch):
    assert native_codec(exactly(CODECS["line"])) is None
    mixed, bound = copy.deepcopy(CODECS["line"]), copy.deepcopy(CODECS["line"])
    mixed.to_latent.double()
    weight_norm(bound.from_latent)
    assert native_codec(mixed) is None
    assert native_codec(bound) is None
    monkeypatch.setattr(module, "native_problem", lambda device: "was not built")
    assert native_codec(CODECS["line"]) is None


def parameters_of(made):
    return {f"codec.{name}": p.detach() for name, p in made.named_parameters()}


def test_what_it_was_not_given_or_does_not_know_is_refused():
    made = CODECS["line"]
    config, given, name = to_json(made.config), parameters_of(made), "codec.conv_in.conv.bias"
    NATIVE.Codec(config, given)
    for changes in (
        {"codec.gain": torch.zeros(1)},
        {name: None},
        {name: torch.zeros(3)},
        {name: torch.zeros(8).double()},
        {name: torch.zeros(8).bfloat16()},
        {name: torch.zeros(16)[::2]},
        {name: torch.zeros(8, device="meta")},
        {name: [0.0] * 8},
    ):
        parameters = {key: p for key, p in (given | changes).items() if p is not None}
        # The engine names them as format 2 does.
        with pytest.raises(ValueError, match=re.escape(next(iter(changes)).removeprefix("tokenizer."))):
            NATIVE.Codec(config, parameters)
    for changes, named in (
        ({"layers": ["pool"]}, "layers"),
        ({"gain": 1}, "gain"),
        ({"grid": [32, 32, 32]}, "grid"),
        ({"periodic": []}, "periodic"),
        ({"kernel": 4}, "kernel"),
    ):
        with pytest.raises(ValueError, match=named):
            NATIVE.Codec(json.dumps(json.loads(config) | changes), given)
    with pytest.raises(ValueError, match="config"):
        NATIVE.Codec(config[:-3], given)


def test_calls_that_do_not_fit_are_refused():
    made = CODECS["line"]
    packed, u, z = NativeCodec(made)._packed, fields(made), latents(made)
    for call, named in (
        (lambda: packed.encode(u[..., 0], threads=1), "fields"),
        (lambda: packed.encode(u.double(), threads=1), "fields"),
        (lambda: packed.encode(u[:, :0], threads=1), "fields"),
        (lambda: packed.encode(u[:0], threads=1), "fields"),
        (lambda: packed.encode(u[0, 0, 0], threads=1), "fields"),
        (lambda: packed.encode(u.transpose(0, 1), threads=1), "fields"),
        (lambda: packed.encode(u.to("meta"), threads=1), "fields"),
        (lambda: packed.encode(u, threads=1, isa="sse9"), "sse9"),
        (lambda: packed.encode(u, torch.zeros(*u.shape[:3], 1), threads=1), "points"),
        (lambda: packed.decode(z[:, :, 1:].contiguous(), 3, threads=1), "latents"),
        (lambda: packed.decode(z, 0, threads=1), "frames is 0"),
        (lambda: packed.decode(z, -1, threads=1), "frames is -1"),
        (lambda: packed.decode(z, 8, threads=1), "frames is 8"),
        (lambda: packed.decode(z, 2**40, threads=1), "frames is"),
    ):
        with pytest.raises(ValueError, match=named):
            call()
    scattered = NativeCodec(CODECS["points"])._packed
    values, points = readings(CODECS["points"])
    for given, where, named in (
        (values, points[:, :5].contiguous(), "points"),
        (values, points[:, :, :8].contiguous(), "fields"),
        (values, points[..., 0].contiguous(), "points"),
        (values, points.double(), "points"),
        (values[..., :0], points, "fields"),
    ):
        with pytest.raises(ValueError, match=named):
            scattered.encode(given, where, threads=1)


@pytest.mark.parametrize("name", ["paper", "plane", "line-local", "points", "plane-paper"])
def test_forecasts_are_those_without_it(name, monkeypatch):
    made = tiny_model(name)
    history = waves(2, 2, 3, CONFIGS[name].codec)[0]
    ours = sample_fields(made, history, num_members=3, seed=4, num_frames=9, warn=False)
    monkeypatch.setattr("enma_fast.forecasting.encoding.native_codec", lambda codec: None)
    plain = sample_fields(made, history, num_members=3, seed=4, num_frames=9, warn=False)
    assert not torch.equal(ours, plain)
    assert (ours - plain).abs().max() <= 2e-4 * plain.abs().max()
