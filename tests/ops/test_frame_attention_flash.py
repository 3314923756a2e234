"""frame_attention by flash-attn: the calls fit the signatures of the released packages, and parts merge to the result.

The packages need a GPU to run. Their signatures are recorded here as their sources have them; a call that does not bind
to one, or that changes an argument beyond those named, fails.
"""

from __future__ import annotations

import inspect
import itertools
import sys
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from enma_fast.ops import _frame_attention_flash as flash
from enma_fast.ops.frame_attention import frame_attention_ref

from .test_frame_attention import arguments

# Module: its release and file, the parameters in order with their defaults, and the names of the count and of the flag
# that asks for the log-sum-exp.
RECORDED: dict[str, tuple[str, str, str, str]] = {
    "flash_attn.cute": (
        "flash-attn-4 4.0.0b30, flash_attn/cute/interface.py",
        "q, k, v, qv=None, cu_seqlens_q=None, cu_seqlens_k=None, max_seqlen_q=None, max_seqlen_k=None,"
        " min_seqlen_k=None, seqused_q=None, seqused_k=None, gather_kv_indices=None, page_table=None,"
        " softmax_scale=None, causal=False, window_size=(None, None), learnable_sink=None, softcap=0.0, num_splits=1,"
        " pack_gqa=None, deterministic=False, score_mod=None, score_mod_bwd=None, mask_mod=None,"
        " block_sparse_tensors=None, aux_tensors=None, aux_scalars=None, return_lse=False, scheduler_metadata=None,"
        " seqlen_k_per_split=None, disable_scheduler_metadata=False",
        "seqused_k",
        "return_lse",
    ),
    "flash_attn": (
        "flash-attn 2.8.3, flash_attn/flash_attn_interface.py",
        "q, k_cache, v_cache, k=None, v=None, rotary_cos=None, rotary_sin=None, cache_seqlens=None,"
        " cache_batch_idx=None, cache_leftpad=None, block_table=None, softmax_scale=None, causal=False,"
        " window_size=(-1, -1), softcap=0.0, rotary_interleaved=True, alibi_slopes=None, num_splits=0,"
        " return_softmax_lse=False",
        "cache_seqlens",
        "return_softmax_lse",
    ),
}
# Log-sum-exp of a row without keys.
EMPTY = {"flash_attn.cute": float("-inf"), "flash_attn": float("inf")}


def recorded(name: str) -> Callable[..., tuple[Tensor, Tensor]]:
    """A function with the recorded signature that computes what the package documents, in float64 on the CPU."""
    _, parameters, count, flag = RECORDED[name]
    signature = inspect.signature(eval(f"lambda {parameters}: None"))

    def attend(*given: Any, **named: Any) -> tuple[Tensor, Tensor]:
        bound = signature.bind(*given, **named)
        bound.apply_defaults()
        q, k, v = list(bound.arguments.values())[:3]
        counts = bound.arguments[count]
        assert bound.arguments[flag] is True
        for parameter in list(signature.parameters.values())[3:]:
            if parameter.name not in (count, flag):
                assert bound.arguments[parameter.name] == parameter.default, parameter.name
        assert q.shape[0] == k.shape[0] == len(counts)
        assert q.shape[2:] == k.shape[2:] == v.shape[2:]
        assert counts.dtype == torch.int32
        assert counts.is_contiguous()
        q, k, v = (x.transpose(1, 2).double() for x in (q, k, v))
        seen = torch.arange(k.shape[2]) < counts[:, None, None, None]
        scores = (q @ k.nan_to_num().transpose(-1, -2) * q.shape[-1] ** -0.5).masked_fill(~seen, float("-inf"))
        lse = scores.logsumexp(-1)
        # Rows without keys are NaN here: nothing may depend on what a package leaves there.
        out = (scores.softmax(-1) @ v.nan_to_num()).float().transpose(1, 2)
        return out, lse.masked_fill(lse == float("-inf"), EMPTY[name]).float()

    return attend


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Puts these packages, with the recorded functions, in the place of installed ones."""

    def put(*names: str) -> None:
        # flash-attn-4 alone leaves `flash_attn` a namespace without functions.
        package, cute = types.ModuleType("flash_attn"), types.ModuleType("flash_attn.cute")
        made: dict[str, Any] = {"flash_attn": package if names else None, "flash_attn.cute": None}
        if "flash_attn.cute" in names:
            made["flash_attn.cute"] = cute
        for name, function, _, _ in flash.PACKAGES:
            if name in names:
                setattr(made[name], function, recorded(name))
        for name, found in made.items():
            # None makes an import fail.
            monkeypatch.setitem(sys.modules, name, found)
        flash.choose.cache_clear()

    yield put
    flash.choose.cache_clear()


@pytest.mark.parametrize("name", RECORDED)
def test_calls_fit_the_recorded_signature(name: str, install: Callable[..., None]) -> None:
    install(name)
    attend = flash.choose(9)
    assert not isinstance(attend, str)
    own, given = arguments(6, 2, 5, 7, 3, 24, device=torch.device("cpu"))
    k, v = given["cache"]
    for length in torch.tensor([7, 1]):
        out, lse = flash.part(own[0], k, v, length, attend)
        keys = k[:, :, : int(length)].double()
        scores = own[0].double() @ keys.transpose(-1, -2) * 24**-0.5
        torch.testing.assert_close(lse, scores.logsumexp(-1).float())
        torch.testing.assert_close(out, (scores.softmax(-1) @ v[:, :, : int(length)].double()).float())


@pytest.mark.parametrize("name", RECORDED)
def test_parts_merge_to_the_result(name: str, install: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    install(name)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    own, given = arguments(6, 2, 5, 7, 3, 24, device=torch.device("cpu"))
    for S, P in itertools.product((0, 7), (0, 3)):
        lengths = {"length": torch.tensor(S), "prefix_length": torch.tensor(P)}
        expected = frame_attention_ref(*own, **given | lengths)
        torch.testing.assert_close(flash.run(*own, **given | lengths), expected)


def test_package_by_gpu(install: Callable[..., None]) -> None:
    install("flash_attn", "flash_attn.cute")
    assert [flash.choose(major) for major in (8, 9, 10)] == [flash._attend_2, flash._attend_4, flash._attend_4]
    install("flash_attn")
    assert flash.choose(10) is flash._attend_2
    assert "needs compute capability 8.0, the GPU has 7.x" in str(flash.choose(7))
    install("flash_attn.cute")
    assert flash.choose(9) is flash._attend_4
    said = str(flash.choose(8))
    assert "flash_attn.cute needs compute capability 9.0, the GPU has 8.x" in said
    assert "flash_attn has no flash_attn_with_kvcache" in said
    install()
    assert "flash_attn.cute cannot be imported" in str(flash.choose(9))
    assert "needs a CUDA device" in str(flash.problem(torch.device("cpu")))


@pytest.mark.parametrize("name", RECORDED)
def test_installed_package_has_the_recorded_parameters(name: str) -> None:
    found = pytest.importorskip(name)
    function = next(function for package, function, _, _ in flash.PACKAGES if package == name)
    if not hasattr(found, function):
        pytest.skip(f"{name} is no more than the namespace of another package")
    _, parameters, count, flag = RECORDED[name]
    ours = list(inspect.signature(eval(f"lambda {parameters}: None")).parameters)
    theirs = list(inspect.signature(getattr(found, function)).parameters)
    assert theirs[:3] == ours[:3]
    assert {count, flag} <= set(theirs)
