"""Sessions of the extension refuse arguments that would crash or hang them."""

import gc
from pathlib import Path
from typing import Any

import pytest
import torch

import enma_fast
from enma_fast.ops import _flow_head_native
from enma_fast.ops._backend import extension, native
from enma_fast.sampling.native import NativeSampler

from .._tiny import model

ROOT = Path(enma_fast.__file__).parents[1]


def outdated() -> bool:
    """True if the extension is older than its source."""
    found = extension()
    source = ROOT / "csrc/torch/sampler.cpp"
    return found is None or (source.is_file() and source.stat().st_mtime > Path(found.__file__).stat().st_mtime)


pytestmark = pytest.mark.skipif(outdated(), reason="needs the extension compiled from these sources: make install")


@pytest.fixture(scope="module")
def sampler() -> NativeSampler:
    return NativeSampler(model("relative").dynamics, dtype=torch.float32)


def arguments(sampler: NativeSampler, **changes: Any) -> dict[str, Any]:
    head = _flow_head_native.packed(sampler._plan(1, "midpoint"))
    tokens = sampler.dynamics.config.num_tokens
    return {
        "sampler": sampler._packed,
        "rows": 2,
        "groups": 1,
        "prefix_frames": 3,
        "own_frames": 2,
        "counts": [tokens],
        "heads": (head,),
        "temperature": 1.0,
        "threads": 1,
        **changes,
    }


def test_arguments_out_of_bounds_are_refused(sampler: NativeSampler) -> None:
    made = native().SamplerSession
    made(**arguments(sampler))
    head = arguments(sampler)["heads"][0]
    tokens = sampler.dynamics.config.num_tokens
    for changes in (
        {"heads": (None,)},
        # The sum of these counts is right, modulo 2^32.
        {"counts": [2**31 - 1, 2**31 - 1, tokens + 2], "heads": (head,) * 3},
        {"threads": 100_000},
        {"temperature": float("nan")},
    ):
        with pytest.raises(ValueError, match="sampler: "):
            made(**arguments(sampler, **changes))
    # A list could be emptied while the session lives.
    with pytest.raises(TypeError):
        made(**arguments(sampler, heads=[head]))


def test_a_session_keeps_its_heads(sampler: NativeSampler) -> None:
    given = arguments(sampler)
    session = native().SamplerSession(**given)
    del given
    sampler._plans.clear()
    gc.collect()
    session.start_segment(0)
    with pytest.raises(ValueError, match="sampler: segment is 2; expected 0 or 1"):
        session.start_segment(2)
    seeds = torch.zeros(2, dtype=torch.int64)
    with pytest.raises(ValueError, match="sampler: "):
        session.begin(seeds, seeds, seeds, 2**40)
