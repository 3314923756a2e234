"""The engine checks what Python hands over: every parameter is known, sizes match, and calls come in order."""

from __future__ import annotations

import gc
import json
import re
from typing import Any

import pytest
import torch

from enma_fast.config import SamplingConfig
from enma_fast.models.model import Dynamics
from enma_fast.ops._backend import native
from enma_fast.sampling.native import NativeSampler
from enma_fast.utils.dataclass_json import to_json

from .._extension import needs_native
from .._static import build

pytestmark = [needs_native, pytest.mark.usefixtures("one_thread")]

QKV = "context.blocks.0.attention.qkv.weight"
SETTINGS = SamplingConfig(mask_steps=3, flow_steps=2)


def pack(
    dynamics: Dynamics, parameters: dict[str, Any] | None = None, *, number_format: str = "fp32", **config: Any
) -> Any:
    """The engine's weights as `NativeSampler` packs them, some parameters changed or, with None, left out.

    Entries of the config have two underscores in place of a dot.
    """
    document = json.loads(to_json(dynamics.config))
    for key, value in config.items():
        *path, last = key.split("__")
        node = document
        for part in path:
            node = node[part]
        node[last] = value
    given = {name: p.detach() for name, p in dynamics.named_parameters()} | (parameters or {})
    named = {f"dynamics.{name}": p for name, p in given.items() if p is not None}
    return native().Dynamics(json.dumps(document), named, number_format)


def refused(name: str, dynamics: Dynamics, parameters: dict[str, Any] | None = None, **config: Any) -> None:
    with pytest.raises(ValueError, match=re.escape(name)) as error:
        pack(dynamics, parameters, **config)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["paper", "relative-fast", "plane-local", "line-fourier", "points"])
def test_every_parameter_is_asked_for_in_its_shape(name: str) -> None:
    dynamics = build(name)
    pack(dynamics)
    parameters = dict(dynamics.named_parameters())
    assert len(parameters) > 30
    for key, p in parameters.items():
        # The engine names them as format 2 does.
        name = key.split(".", 1)[1]
        refused(name, dynamics, {key: None})
        refused(name, dynamics, {key: p[..., :-1].contiguous()})
        refused(name, dynamics, {key: p[None]})


def test_bad_weights_are_named() -> None:
    dynamics = build("paper")
    weight = dynamics.context.blocks[0].attention.qkv.weight
    for bad in (
        weight.double(),
        weight.bfloat16(),
        weight.int(),
        weight[:0],
        weight.T.contiguous().T,
        weight.repeat(1, 2)[:, ::2],
        weight.to("meta"),
        weight.tolist(),
    ):
        refused("blocks.0.attention.qkv.weight", dynamics, {QKV: bad})
    # A parameter that is not read would be missing from every forecast.
    for unknown in ("trunk.gate", "context.blocks.7.norm_2.weight", "initial.read.weight", "step.velocity.time.4.bias"):
        refused(unknown, dynamics, {unknown: weight})


@pytest.mark.parametrize(
    ("name", "changes", "named"),
    [
        ("paper", {"context__heads": 0}, "context.heads"),
        ("paper", {"context__heads": 3}, "context.width"),
        ("paper", {"context__heads": 16}, "context.width"),
        ("paper", {"context__width": 16}, "dynamics.context.embed.weight"),
        ("paper", {"context__layers": 1}, "dynamics.context.blocks.1."),
        ("paper", {"context__kind": "state-space"}, "context.kind"),
        ("paper", {"trunk__layers": 3}, "dynamics.trunk.blocks.2."),
        ("paper", {"trunk": None}, "trunk"),
        ("paper", {"step": {"kind": "linear"}}, "dynamics.step."),
        ("paper", {"step__kind": "two-pass"}, "step.kind"),
        ("paper", {"step__gain": 1}, "step.gain"),
        ("paper", {"gain": 1}, "gain"),
        ("paper", {"initial": {"kind": "linear"}}, "dynamics.initial."),
        ("relative", {"context__heads": 8}, "context.width"),
        ("relative", {"context__patch": [3]}, "context.patch"),
        ("relative", {"context__patch": [2, 2]}, "context.patch"),
        ("plane-local", {"step__width": 24}, "step.width"),
        ("plane-local", {"step__layers": 1}, "dynamics.step.blocks.1."),
        ("plane-local", {"codec__grid": [16, 10]}, "context.patch"),
        ("plane-fourier", {"step__modes": 1}, "dynamics.step.blocks.0.filter"),
        ("plane-fourier", {"step__modes": 3}, "step.modes"),
        ("plane-fourier", {"codec__periodic": [True, False]}, "step.modes"),
    ],
)
def test_configs_that_do_not_fit_are_named(name: str, changes: dict[str, Any], named: str) -> None:
    refused(named, build(name), **changes)


def test_formats_are_those_of_weights() -> None:
    dynamics = build("relative")
    assert pack(dynamics, number_format="bf16").bytes < pack(dynamics).bytes
    refused("fp16", dynamics, number_format="fp16")


def test_a_parameter_that_is_new_in_the_model_is_refused() -> None:
    dynamics = build("relative")
    NativeSampler(dynamics, dtype=torch.float32)
    dynamics.context.blocks[1].register_parameter("gain", torch.nn.Parameter(torch.ones(32)))
    with pytest.raises(ValueError, match=r"context\.blocks\.1\.gain"):
        NativeSampler(dynamics, dtype=torch.float32)


def session_of(packed: Any, **changes: Any) -> Any:
    """Two members of two trajectories, two shared frames and one of their own; settings by name."""
    settings = json.dumps(json.loads(to_json(SETTINGS)) | changes.pop("settings", {}))
    sizes = {"rows": 2, "groups": 2, "prefix_frames": 2, "own_frames": 1, "first_frame": 1, "threads": 1}
    return packed.session(**sizes | {"settings": settings} | changes)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"rows": 0}, "0 members"),
        ({"rows": 1 << 22}, "4194304 members"),
        ({"rows": 1 << 40}, "members"),
        ({"groups": 0}, "0 trajectories"),
        ({"groups": 1 << 40}, "trajectories"),
        ({"prefix_frames": 0}, "0 and 1 latent frames"),
        ({"own_frames": -1}, "2 and -1 latent frames"),
        ({"own_frames": 2**31 - 1}, "latent frames"),
        # Their sum wraps around.
        ({"prefix_frames": 1 << 62, "own_frames": 1 << 62}, "latent frames"),
        ({"first_frame": -1}, "-1"),
        ({"threads": 0}, "threads is 0"),
        ({"threads": 100_000}, "threads is 100000"),
        ({"isa": "avx1024"}, "isa 'avx1024'"),
        ({"settings": {"temperature": float("nan")}}, "settings"),
        ({"settings": {"temperature": -1.0}}, "temperature"),
        ({"settings": {"mask_steps": 0}}, "mask_steps"),
        ({"settings": {"flow_steps": 0}}, "flow_steps"),
        ({"settings": {"flow_steps": 1001}}, "flow_steps"),
        ({"settings": {"gain": 1}}, "gain"),
    ],
    ids=str,
)
def test_bad_sessions_are_named(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        session_of(pack(build("relative")), **changes)


def test_numbers_that_no_session_counts_are_refused() -> None:
    packed = pack(build("relative"))
    for changes in ({"rows": 2.5}, {"rows": 1 << 64}, {"threads": 1 << 40}, {"threads": None}):
        with pytest.raises(TypeError):
            session_of(packed, **changes)


def test_bad_calls_are_named_and_change_nothing() -> None:
    dynamics = build("relative")
    N, C = dynamics.config.num_tokens, dynamics.config.token_channels
    packed = pack(dynamics)
    session = session_of(packed)
    z, keys, out = torch.randn(2, N, C), torch.arange(2), torch.empty(2, N, C)

    def refused(message: str, method: str, *arguments: Any) -> None:
        with pytest.raises(ValueError, match=message):
            getattr(session, method)(*arguments)

    refused("0 of 2 shared frames are read", "read", z)
    refused("0 of 2 shared frames are read", "begin", keys, keys, keys)
    refused("call begin first", "frame", out, False)
    refused("segment is -1", "start_segment", -1)
    refused("segment is 2", "start_segment", 2)
    session.start_segment(0)
    for bad in (z.double(), z[:1], z[:, :-1], z[..., :-1], z.mT.contiguous().mT, z.to("meta")):
        refused("frame is|frame has", "read", bad)
    session.read(z)
    refused("2 of 2 shared frames are read", "read", z)
    refused("2 shared frames are read", "start_segment", 1)
    for bad in (keys[:1], keys.int(), keys.view(1, 2), torch.arange(4)[::2], keys.to("meta")):
        for place, name in enumerate(("seeds", "members", "groups")):
            arguments = [keys] * 3
            arguments[place] = bad
            refused(f"{name} is|{name} has", "begin", *arguments)
    refused("groups has .* not below 2", "begin", keys, keys, keys + 1)
    refused("groups has .* not below 2", "begin", keys, keys, keys - 1)
    session.begin(keys, keys, keys)
    for bad in (out.double(), out[:1], out[:, :-1], out.mT.contiguous().mT, out.to("meta"), out[None][:0]):
        refused("out is|out has", "frame", bad, False)
    frames = [torch.empty(2, N, C) for _ in range(2)]
    session.frame(frames[0], False)
    refused("1 of 1 frames are made", "frame", out, False)
    refused("1 of 1 frames are made", "frame", torch.stack(frames), True)
    session.frame(frames[1], True)
    refused("no frame is left", "frame", out, True)
    # The session goes on like one that never refused anything.
    clean = session_of(packed)
    clean.start_segment(0)
    clean.read(z)
    clean.begin(keys, keys, keys)
    for z_BNC in frames:
        clean.frame(out, z_BNC is frames[1])
        assert torch.equal(out, z_BNC)


@pytest.mark.parametrize("name", ["relative", "paper-fast", "line-local"])
def test_a_session_keeps_what_it_reads(name: str) -> None:
    """The weights, where nobody else has them any more, and other settings were asked for."""
    dynamics = build(name)
    keys, C = torch.zeros(2, dtype=torch.int64), dynamics.config.token_channels
    frames = []
    for alone in (False, True):
        packed = pack(dynamics)
        session = session_of(packed, prefix_frames=1, first_frame=0)
        if alone:
            session_of(packed, first_frame=0, settings={"flow_steps": 5, "mask_steps": 2})
            del packed
            gc.collect()
        session.start_segment(0)
        session.begin(keys, torch.arange(2), keys)
        frames.append(torch.empty(2, dynamics.config.num_tokens, C))
        session.frame(frames[-1], True)
    assert torch.equal(*frames)
    assert frames[0].isfinite().all()


def test_weights_may_be_let_go() -> None:
    """They are packed when they are given."""
    dynamics = build("relative")
    keys, C = torch.zeros(2, dtype=torch.int64), dynamics.config.token_channels
    frames = []
    for let_go in (False, True):
        given = {f"dynamics.{name}": p.detach().clone() for name, p in dynamics.named_parameters()}
        packed = native().Dynamics(to_json(dynamics.config), given, "fp32")
        if let_go:
            given.clear()
            gc.collect()
            taken = [torch.full(p.shape, torch.nan) for p in dynamics.parameters() for _ in range(4)]
        session = session_of(packed, prefix_frames=1, first_frame=0, settings={"flow_steps": 3})
        session.start_segment(0)
        session.begin(keys, torch.arange(2), keys)
        frames.append(torch.empty(2, dynamics.config.num_tokens, C))
        session.frame(frames[-1], True)
    del taken
    assert torch.equal(*frames)
