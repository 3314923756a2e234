"""Tensors cross to the extension as pointer, shape, strides and type: which it takes, and whose memory results are."""

import copy
import gc
import mmap
import subprocess
import sys
import threading
import weakref
from pathlib import Path

import pytest
import torch

from .._extension import NATIVE, needs_native
from .._memory import give_back

pytestmark = needs_native

HALF = (torch.float32, torch.bfloat16)
STATM = Path("/proc/self/statm")


def norm(x, weight=None, *, keep=False):
    weight = torch.ones(x.shape[-1]) if weight is None else weight
    return NATIVE.rms_norm_forward(x, weight, None, 1e-5, keep)


def attention(q, k, v, valid=None):
    """Of `point_attention`, on a line without a period."""
    places = [torch.arange(x.shape[2]).float()[:, None] for x in (q, k)]
    return NATIVE.point_attention_forward(q, k, v, *places, torch.ones(q.shape[1]), valid, 1, [0.0], 1)


def test_strides_are_followed():
    wide = torch.randn(6, 20)
    for x in (wide[:, :8], wide[::2, 3:11], wide[1:, -8:], wide[:1, :8].expand(4, 8), wide[:4, :1]):
        assert not x.is_contiguous()
        assert torch.equal(norm(x)[0], norm(x.contiguous())[0])


def test_batch_and_heads_may_have_any_stride():
    q, k, v = (torch.randn(3, n, 2, 4).transpose(1, 2) for n in (5, 7, 7))
    for given in ((q, k, v), (q, k[:1].expand(3, -1, -1, -1), v), (q[:, :, 1::2], k[:, :, 2:], v[:, :, 2:])):
        dense = attention(*(x.contiguous() for x in given))
        assert all(torch.equal(a, b) for a, b in zip(attention(*given), dense, strict=True))
    with pytest.raises(ValueError, match="k has gaps"):
        attention(q, k.mT.contiguous().mT, v)


def test_strides_of_a_size_of_one_do_not_count():
    x = torch.randn(8).as_strided((1, 8), (3, 1))
    assert torch.equal(NATIVE.swiglu_forward(x), NATIVE.swiglu_forward(x.clone()))
    with pytest.raises(ValueError, match="x is"):
        NATIVE.swiglu_forward(torch.randn(8, 4).t())


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_a_size_may_be_zero(dtype):
    for rows, width in ((0, 8), (3, 0)):
        assert NATIVE.swiglu_forward(torch.empty(rows, width, dtype=dtype)).shape == (rows, width // 2)
    y, h, rstd = norm(torch.empty(0, 8), keep=True)
    assert (y.shape, h.shape, rstd.shape) == ((0, 8), (0, 8), (0,))
    q, k, v = (torch.empty(2, heads, 3, 4) for heads in (0, 0, 0))
    assert attention(q, k, v)[0].shape == (2, 0, 3, 4)
    out = torch.empty(5, 0, 2)
    NATIVE.philox_normal(*[torch.tensor(3)] * 4, torch.empty(0, dtype=torch.int64), out)


def test_tensors_of_autograd_are_read_and_not_followed():
    x, weight = torch.randn(5, 8), torch.randn(8)
    expected = norm(x, weight)[0]
    leaf, parameter = x.clone().requires_grad_(), torch.nn.Parameter(weight)
    for given in (leaf, leaf * 1, torch.nn.Parameter(x), torch.nn.Buffer(x)):
        y = norm(given, parameter)[0]
        assert type(y) is torch.Tensor
        assert y.dtype == torch.float32
        assert y.is_leaf
        assert not y.requires_grad
        assert torch.equal(y, expected)
    with torch.inference_mode():
        inference = x.clone()
        assert torch.equal(norm(inference, weight)[0], expected)
    y = norm(inference, weight)[0]
    assert not y.is_inference()
    assert torch.equal(y, expected)


def test_bools_and_whole_numbers_are_taken_where_they_are_asked_for():
    q, k, v = torch.randn(2, 1, 3, 4), torch.randn(2, 1, 5, 4), torch.randn(2, 1, 5, 4)
    valid = torch.tensor([[True, False, True, True, False], [False, True, True, True, True]])
    masked = v.masked_fill(~valid[:, None, :, None], torch.nan)
    assert torch.equal(attention(q, k, masked, valid)[0], attention(q, k, v, valid)[0])
    assert not torch.equal(attention(q, k, v, valid)[0], attention(q, k, v)[0])
    for bad in (valid.to(torch.uint8), valid.float(), valid.long()):
        with pytest.raises(ValueError, match="valid is"):
            attention(q, k, v, bad)
    words, tokens, out = [torch.tensor([1])] * 4, torch.arange(4), torch.empty(1, 4, 2)
    NATIVE.philox_normal(*words, tokens, out)
    expected = out.clone()
    NATIVE.philox_normal(*words, torch.arange(8).view(4, 2)[:, 0] // 2, out)
    assert torch.equal(out, expected)
    for bad in (tokens.int(), tokens.double(), tokens > 1):
        with pytest.raises(ValueError, match="tokens"):
            NATIVE.philox_normal(*words, bad, out)


@pytest.mark.filterwarnings("ignore")
def test_other_types_are_refused_by_the_name_of_the_argument(monkeypatch):
    # Some of them cannot be filled.
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)
    types = {x for x in vars(torch).values() if isinstance(x, torch.dtype)} - set(HALF)
    assert len(types) > 15
    for dtype in types:
        with pytest.raises(ValueError, match="x is") as error:
            NATIVE.swiglu_forward(torch.empty(2, 8, dtype=dtype))
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "make",
    [
        lambda x: x.to("meta"),
        lambda x: x.to_sparse(),
        lambda x: torch.nested.nested_tensor([x[0], x[1]]),
    ],
    ids=["meta", "sparse", "nested"],
)
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_tensors_without_memory_are_refused(make):
    with pytest.raises(ValueError, match="swiglu: x ") as error:
        NATIVE.swiglu_forward(make(torch.ones(2, 8)))
    assert "\n" not in str(error.value)


def test_tensors_inside_a_transform_are_refused():
    for transform in (torch.func.vmap, lambda f: torch.func.grad(lambda x: f(x).sum())):
        with pytest.raises(ValueError, match="x is"):
            transform(NATIVE.swiglu_forward)(torch.ones(3, 2, 8))


def test_what_is_no_tensor_is_refused():
    for bad in (None, 3.0, [[1.0] * 8], torch.ones(2, 8).numpy()):
        with pytest.raises(TypeError):
            NATIVE.swiglu_forward(bad)


def test_keys_of_weights_are_of_modules():
    """Also of one without memory."""
    layer = torch.nn.Linear(2, 2)
    key = NATIVE.weights_key(layer)
    assert NATIVE.weights_key(layer) == key
    layer.weight.data.add_(0.0)
    assert NATIVE.weights_key(layer) == key
    with torch.no_grad():
        layer.weight.add_(0.0)
    assert NATIVE.weights_key(layer) != key
    assert len(NATIVE.weights_key(layer.to("meta"))) == len(key)


HARD = """
import torch
from enma_fast import _C
x = torch.ones(2, 8)
x.untyped_storage().resize_(0)
for call in (lambda: _C.swiglu_forward(x), lambda: _C.weights_key(3)):
    try:
        call()
    except Exception as error:
        print(type(error).__name__)
"""


def test_what_could_crash_is_an_error():
    """In a process of its own: a tensor whose memory is freed, as those of sharded models are, and no module."""
    done = subprocess.run([sys.executable, "-c", HARD], capture_output=True, text=True)
    assert (done.returncode, done.stdout.split()) == (0, ["ValueError", "TypeError"]), done.stderr


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_a_result_has_memory_of_its_own(dtype):
    x = torch.randn(6, 64).to(dtype)
    y, expected = NATIVE.swiglu_forward(x), NATIVE.swiglu_forward(x.clone()).clone()
    del x
    gc.collect()
    taken = [torch.full((6, 64), torch.nan, dtype=dtype) for _ in range(64)]
    assert torch.equal(y, expected)
    del taken
    assert y.is_contiguous()
    assert y.storage_offset() == 0
    assert y.untyped_storage().nbytes() == y.numel() * dtype.itemsize
    assert torch.equal(copy.deepcopy(y), expected)
    part = y[2:4]
    del y
    assert torch.equal(part, expected[2:4])
    known = weakref.ref(NATIVE.swiglu_forward(expected))
    assert known() is None


def test_a_result_goes_on_in_autograd():
    y = NATIVE.swiglu_forward(torch.randn(3, 8))
    plain, version = y.clone(), y._version
    weight = torch.randn(3, 4, requires_grad=True)
    y.mul_(weight)
    assert y._version > version
    y.square().sum().backward()
    torch.testing.assert_close(weight.grad, 2 * weight.detach() * plain.square())
    # What was saved is known to have changed.
    saved = NATIVE.swiglu_forward(torch.randn(3, 8))
    product = (saved * weight).sum()
    saved.add_(1)
    with pytest.raises(RuntimeError, match="modified"):
        product.backward()
    leaf = NATIVE.swiglu_forward(torch.randn(3, 8)).requires_grad_()
    leaf.sum().backward()
    assert torch.equal(leaf.grad, torch.ones(3, 4))


@pytest.mark.skipif(not STATM.exists(), reason="reads Linux's count of pages")
def test_memory_of_results_is_freed():
    x = torch.ones(1 << 9, 1 << 10)

    def resident(calls):
        for _ in range(calls):
            NATIVE.swiglu_forward(x)
            with pytest.raises(ValueError, match="isa"):
                NATIVE.rms_norm_forward(x, x[0], None, 1e-5, True, isa="mmx")
        give_back()
        return int(STATM.read_text().split()[1]) * mmap.PAGESIZE

    before = resident(10)
    assert resident(100) < before + (16 << 20)


def test_memory_that_the_extension_asks_for_is_poisoned_under_test():
    """As that of torch.empty: a result that is not written in full shows."""
    x = torch.ones(2, 8)
    with torch.autograd.profiler.profile() as profile:
        NATIVE.swiglu_forward(x)
    assert {"aten::empty", "aten::fill_"} <= {event.name for event in profile.function_events}


def test_threads_call_at_once():
    inputs = [torch.randn(64, 256) for _ in range(4)]
    expected, found = [NATIVE.swiglu_forward(x) for x in inputs], {}

    def work(number):
        for _ in range(50):
            found[number] = NATIVE.swiglu_forward(inputs[number])

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(found[number], y) for number, y in enumerate(expected))
