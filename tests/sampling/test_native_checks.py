"""The native sampler checks its input: every parameter is known, sizes match, and calls come in order."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from enma_fast.models.model import Dynamics
from enma_fast.models.schedule import mask_schedule
from enma_fast.ops import sampler as operator
from enma_fast.sampling.native import NativeSampler

from .._extension import needs_native
from .._static import build

pytestmark = [needs_native, pytest.mark.usefixtures("one_thread")]


def pack(dynamics: Dynamics, **changes: Any) -> Any:
    """The binding of the transformers with arguments as `NativeSampler` gives them, some of them changed."""
    config = dynamics.config
    parameters = {
        name: parameter
        for name, parameter in (dict(dynamics.named_parameters()) | changes.pop("parameters", {})).items()
        if parameter is not None and not name.startswith("flow.velocity.")
    }
    rotary = dynamics.temporal.rotary
    arguments = {
        "tokens": config.num_tokens,
        "heads": config.dynamics.heads,
        "concat": dynamics.spatial.concat,
        "epsilon": dynamics.spatial.norm.eps,
        "places": dynamics.temporal.places,
        "rotary": None if rotary is None else torch.stack(rotary.tables(torch.arange(8))),
        "masked_rotary": dynamics.spatial.rotary,
        "grid": list(config.tokenizer.token_grid),
        "patch": list(config.dynamics.patch),
        "periodic": list(config.tokenizer.periodic),
    }
    return operator.pack(parameters, **arguments | changes)


def test_bad_weights_are_named() -> None:
    dynamics = build("paper")
    weight = dynamics.temporal.blocks[0].attention.qkv.weight
    name, places = "temporal.blocks.0.attention.qkv.weight", dynamics.temporal.places
    pack(dynamics)
    for parameters, message in (
        ({name: weight.double()}, f"{name} is Double"),
        ({name: weight.bfloat16()}, f"{name} is BFloat16"),
        ({name: weight[:-1].contiguous()}, f"{name} is Float.*expected contiguous"),
        ({name: weight.T.contiguous().T}, f"{name} is Float.*expected contiguous"),
        ({name: weight.repeat(1, 2)[:, ::2]}, f"{name} is Float.*expected contiguous"),
        ({name: weight.to("meta")}, f"{name}.*on meta"),
        ({name: None}, f"parameter {name} is missing"),
        ({"spatial.mask": None}, "parameter spatial.mask is missing"),
        # A parameter that is not read would be missing from every forecast.
        ({"spatial.gate": weight}, "parameter spatial.gate is not known here"),
        ({"temporal.blocks.7.norm_2.weight": weight}, "parameter temporal.blocks.7.norm_2.weight is not known here"),
        ({"read.weight": torch.zeros(4, 32)}, "parameter spatial.noise.weight is missing"),
        ({"spatial.noise.weight": torch.zeros(32, 4)}, "parameter spatial.noise.weight is not known here"),
        ({"temporal.blocks.0.norm_1.weight": None}, "temporal has no blocks"),
        ({"temporal.embed.weight": dynamics.temporal.embed.weight.double()}, "weights are Double"),
        ({"temporal.embed.weight": torch.zeros(32)}, "expected a matrix"),
    ):
        with pytest.raises(ValueError, match=message):
            pack(dynamics, parameters=parameters)
    for changes, message in (
        ({"tokens": 0}, "0 tokens"),
        ({"heads": 0}, "0 heads"),
        ({"heads": 3}, "3 heads"),
        ({"heads": 16}, "16 heads; expected a head dim that 4 divides"),
        ({"tokens": 4}, "places has shape"),
        ({"places": places.double()}, "places has shape"),
        ({"places": places[:, :-1]}, "places has shape"),
        ({"rotary": torch.zeros(2, 64, 7)}, "rotary has shape"),
        ({"rotary": torch.zeros(1, 64, 8)}, "rotary has shape"),
        ({"rotary": torch.zeros(4)}, "rotary has shape"),
        ({"masked_rotary": torch.zeros(2, 8, 8)}, "masked_rotary has shape"),
    ):
        with pytest.raises(ValueError, match=message):
            pack(dynamics, **changes)


def test_bad_local_heads_are_named() -> None:
    dynamics = build("plane-local")
    pack(dynamics)
    window, read = "local.blocks.0.gate_up.conv.weight", dynamics.local.read.weight
    for parameters, message in (
        ({window: torch.zeros(32, 16, 3)}, f"{window} is Float"),
        ({window: None}, f"parameter {window} is missing"),
        ({"local.frames.conv.weight": torch.zeros(16, 6)}, "expected a convolution's"),
        ({"local.frames.conv.weight": torch.zeros(16, 7, 3, 3)}, "reads 7 channels of past frames"),
        ({"local.read.weight": torch.zeros(3, 24)}, "width 24; expected a multiple of 16"),
        ({"local.read.weight": read[:2].contiguous()}, "a token has 12 channels; expected 8"),
        ({"local.blocks.2.norm.weight": torch.zeros(8)}, "local.blocks.2.norm.weight is Float"),
        ({"local.gain": read}, "parameter local.gain is not known here"),
    ):
        with pytest.raises(ValueError, match=message):
            pack(dynamics, parameters=parameters)
    for changes, message in (
        ({"grid": [4, 2]}, "a latent grid of 2 tokens; expected 8"),
        ({"grid": [8, 5]}, "patch 2 does not divide the grid 5"),
        ({"patch": [2]}, "grid, patch and periodic of 1 or 2 dimensions"),
        ({"grid": [8, 2, 2], "patch": [2, 2, 1], "periodic": [True] * 3}, "of 1 or 2 dimensions"),
    ):
        with pytest.raises(ValueError, match=message):
            pack(dynamics, **changes)


def test_bad_filters_are_named() -> None:
    dynamics = build("plane-fourier")
    pack(dynamics)
    name, given = "local.blocks.3.filter", dynamics.local.blocks[3].filter.detach()
    for value, message in (
        (given[0, 0, 0], "expected a filter's"),
        (torch.zeros(2, 5, 3, 16, 16), "has 3 modes; expected those of the others, at most 2"),
        (given[:, :, :1].contiguous(), "has 1 modes; expected those of the others"),
        (given[:, :2].contiguous(), f"{name} is Float"),
    ):
        with pytest.raises(ValueError, match=message):
            pack(dynamics, parameters={name: value})
    with pytest.raises(ValueError, match="has 2 modes; expected those of the others, at most 0"):
        pack(dynamics, periodic=[True, False])


def test_a_parameter_that_is_new_in_the_model_is_refused() -> None:
    dynamics = build("relative")
    NativeSampler(dynamics, dtype=torch.float32)
    dynamics.temporal.blocks[1].register_parameter("gain", torch.nn.Parameter(torch.ones(32)))
    with pytest.raises(ValueError, match=r"parameter temporal.blocks.1.gain is not known here"):
        NativeSampler(dynamics, dtype=torch.float32)


def session_of(dynamics: Dynamics, packed: Any, **changes: Any) -> Any:
    """Two members of two trajectories, two shared frames and one of their own."""
    counts = changes.get("counts", mask_schedule(dynamics.config.num_tokens, 3))
    plan = dynamics.flow.velocity.plan(steps=2, method="euler")
    arguments = {
        "counts": counts,
        "rows": 2,
        "groups": 2,
        "prefix_frames": 2,
        "own_frames": 1,
        "temperature": 1.0,
        "threads": 1,
    }
    return operator.session(packed, changes.pop("plans", [plan] * len(counts)), **arguments | changes)


def test_bad_sessions_are_named() -> None:
    dynamics = build("relative")
    packed = pack(dynamics)
    plan = build("plane").flow.velocity.plan(steps=2, method="euler")
    halves = dynamics.flow.velocity.plan(steps=2, method="euler").to(torch.bfloat16)
    for changes, message in (
        ({"rows": 0}, "0 rows"),
        ({"groups": 0}, "0 groups"),
        ({"prefix_frames": 0}, "0 and 1 frames"),
        ({"own_frames": -1}, "2 and -1 frames"),
        ({"threads": 0}, "0 threads"),
        ({"rows": 1 << 22}, "too many at a time"),
        ({"own_frames": 2**31 - 1}, "too many"),
        ({"own_frames": 7}, "tables hold 8 frames; 9 are asked for"),
        ({"counts": [4, 3]}, "do not decide 8 tokens"),
        ({"counts": [9]}, "do not decide 8 tokens"),
        ({"counts": [9, -1]}, "do not decide 8 tokens"),
        ({"counts": [8, 0]}, "do not decide 8 tokens"),
        ({"counts": []}, "do not decide 8 tokens"),
        ({"plans": []}, "one head each"),
        # Only a one-pass model does without.
        ({"plans": [], "counts": []}, "do not decide 8 tokens"),
        ({"plans": [plan] * 3}, "a flow head does not fit"),
        ({"plans": [halves] * 3}, "a flow head does not fit"),
        ({"teams": "all"}, "teams is 'all'"),
        ({"isa": "avx1024"}, "isa 'avx1024' is unknown"),
    ):
        with pytest.raises(ValueError, match=message):
            session_of(dynamics, packed, **changes)


def test_bad_calls_are_named_and_change_nothing() -> None:
    dynamics = build("relative")
    N, C = dynamics.config.num_tokens, dynamics.config.token_channels
    session = session_of(dynamics, pack(dynamics))
    z, keys, out = torch.randn(2, N, C), torch.arange(2), torch.empty(2, N, C)

    def refused(message: str, method: str, *arguments: Any) -> None:
        with pytest.raises(ValueError, match=message):
            getattr(session, method)(*arguments)

    refused("0 of 2 shared frames are read", "read", z)
    refused("0 of 2 shared frames are read", "begin", keys, keys, keys, 1)
    refused("call begin first", "frame", out, False)
    refused("segment is -1", "start_segment", -1)
    session.start_segment(0)
    for bad in (z.double(), z[:1], z[:, :-1], z[..., :-1], z.mT.contiguous().mT, z.to("meta")):
        refused("frame is", "read", bad)
    session.read(z)
    refused("2 of 2 shared frames are read", "read", z)
    refused("2 shared frames are read", "start_segment", 1)
    for bad in (keys[:1], keys.int(), keys.view(1, 2), torch.arange(4)[::2]):
        for place in range(3):
            arguments = [keys] * 3
            arguments[place] = bad
            refused(r"seeds, members and groups are int64 \[2\]", "begin", *arguments, 1)
    refused("group is 2; there are 2", "begin", keys, keys, keys + 1, 1)
    refused("group is -1; there are 2", "begin", keys, keys, keys - 1, 1)
    refused("first frame is -1", "begin", keys, keys, keys, -1)
    session.begin(keys, keys, keys, 1)
    for bad in (out.double(), out[:1], out[:, :-1], out.mT.contiguous().mT, out.to("meta"), out[None][:0]):
        refused("out is", "frame", bad, False)
    frames = [torch.empty(2, N, C) for _ in range(2)]
    session.frame(frames[0], False)
    refused("1 of 1 frames are made", "frame", out, False)
    refused("1 of 1 frames are made", "frame", torch.stack(frames), True)
    session.frame(frames[1], True)
    refused("no frame is left", "frame", out, True)
    # The session goes on like one that never refused anything.
    clean = session_of(dynamics, pack(dynamics))
    clean.start_segment(0)
    clean.read(z)
    clean.begin(keys, keys, keys, 1)
    for z_BNC in frames:
        clean.frame(out, z_BNC is frames[1])
        assert torch.equal(out, z_BNC)


def test_frame_0_needs_mask_steps() -> None:
    dynamics = build("relative-fast")
    keys = torch.arange(2)
    session = session_of(dynamics, pack(dynamics), plans=[], counts=[])
    session.start_segment(0)
    session.read(torch.randn(2, dynamics.config.num_tokens, dynamics.config.token_channels))
    with pytest.raises(ValueError, match="frame 0 takes mask steps, and there are none"):
        session.begin(keys, keys, keys, 0)
    session.begin(keys, keys, keys, 1)


def test_bad_heads_of_frame_0_are_named() -> None:
    dynamics = build("plane-first")
    pack(dynamics)
    for name, value, message in (
        ("first.frames.conv.weight", torch.zeros(16, 9, 3, 3), "reads 2 past frames"),
        ("first.features.weight", torch.zeros(63, 32), r"first\.features\.weight is Float"),
        ("first.read.weight", torch.zeros(3, 24), "width 24; expected a multiple of 16"),
        ("first.blocks.0.filter", torch.zeros(2, 5, 3, 16, 16), "has 3 modes"),
        ("read.weight", None, "a head of frame 0 is of one-pass models"),
    ):
        with pytest.raises(ValueError, match=message):
            pack(dynamics, parameters={name: value})
