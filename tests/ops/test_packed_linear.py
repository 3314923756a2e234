"""Linear layers over packed weights: values by the two-reference rule, the error of silu, bits by row."""

import pytest
import torch

from enma_fast.errors import EnmaError
from enma_fast.ops._backend import extension
from enma_fast.ops.packed_linear import _native, candidates, pack_linear, packed_linear, packed_linear_ref

from ._oracle import assert_close_as_reference

CPU = torch.device("cpu")
PROBLEM = candidates(CPU, torch.float32)["native"]
needs_extension = pytest.mark.skipif(PROBLEM is not None, reason=str(PROBLEM))
ISAS = extension().cpu_isas() if PROBLEM is None else []
ACTIVATIONS = [None, "silu", "swiglu"]
# Weights, inputs.
DTYPES = [(torch.float32, torch.float32), (torch.bfloat16, torch.bfloat16), (torch.bfloat16, torch.float32)]


def layer(n: int, k: int, *, activation: str | None, dtype: torch.dtype, bias: bool = True):
    rows = 2 * n if activation == "swiglu" else n
    weight = (torch.randn(rows, k) / k**0.5).to(dtype)
    return pack_linear(weight, torch.randn(rows).to(dtype) if bias else None, activation=activation)


def native(x, packed, isa, threads=1):
    """The kernels of one instruction set."""
    bf16 = packed.weight.dtype == torch.bfloat16
    return extension().packed_linear(
        x, packed.packed, n=packed.outputs, bf16=bf16, activation=packed.activation or "", threads=threads, isa=isa
    )


def in_float64(packed):
    bias = None if packed.bias is None else packed.bias.double()
    return pack_linear(packed.weight.double(), bias, activation=packed.activation)


@needs_extension
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtypes", DTYPES, ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_values_by_the_two_reference_rule(isa, dtypes, activation):
    weight_dtype, x_dtype = dtypes
    for rows, n, k in ((1, 1, 1), (3, 17, 33), (13, 129, 7), (50, 48, 64), (6, 31, 1025)):
        packed = layer(n, k, activation=activation, dtype=weight_dtype, bias=rows != 3)
        x = torch.randn(rows, k).to(x_dtype)
        ours = native(x, packed, isa)
        assert ours.dtype == x_dtype
        exact = packed_linear_ref(x.double(), in_float64(packed))
        # Inputs are rounded to bf16 where bf16 is multiplied: the rule's plain code then does the same.
        rounds = weight_dtype == torch.bfloat16 and isa.endswith("bf16")
        plain = packed_linear_ref(x.bfloat16() if rounds else x, packed)
        # A few ulps of the result.
        largest = exact.abs().max().item()
        floor = 1e-6 + 2**-21 * largest if x_dtype == torch.float32 else 2**-8 * largest
        if rounds and x_dtype == torch.float32:
            floor = 2**-8 * largest + 2**-8
        assert_close_as_reference(ours, plain, exact, floor=floor)


@needs_extension
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_bits_of_a_row_depend_on_nothing_else(isa, dtype):
    packed = layer(70, 45, activation="swiglu", dtype=dtype)
    x = torch.randn(500, 45).to(dtype)
    whole = native(x, packed, isa)
    assert torch.equal(whole, native(x, packed, isa, threads=2))
    for first, count in ((0, 1), (499, 1), (7, 2), (5, 13), (90, 49), (100, 129)):
        for threads in (1, 2, 5):
            part = native(x[first : first + count], packed, isa, threads)
            assert torch.equal(part, whole[first : first + count]), (first, count, threads)


@needs_extension
@pytest.mark.parametrize("isa", ISAS)
def test_silu_within_two_ulp(isa):
    # One input of weight 1: the layer is its activation.
    packed = pack_linear(torch.ones(1, 1), activation="silu")
    x = torch.cat([torch.linspace(-87, 87, 200_001), torch.randn(50_000), torch.tensor([0.0, -0.0, 1e-30, -1e-30])])
    ours = native(x[:, None].contiguous(), packed, isa)[:, 0].double()
    exact = torch.nn.functional.silu(x.double())
    ulp = torch.finfo(torch.float32).eps * exact.abs().clamp_min(torch.finfo(torch.float32).tiny)
    assert ((ours - exact).abs() / ulp).max() <= 2
    far = torch.tensor([[-1e30], [-200.0], [-88.5], [89.0], [200.0], [1e30], [float("inf")], [float("nan")]])
    y = native(far, packed, isa)[:, 0]
    assert y[0].isfinite()
    assert y[1:3].abs().max() < 1e-34
    assert torch.equal(y[3:7], far[3:7, 0])
    assert y[7].isnan()


@needs_extension
def test_leading_shapes_strides_and_empty():
    packed = layer(5, 6, activation=None, dtype=torch.float32)
    for x in (torch.randn(6), torch.randn(2, 3, 6), torch.randn(6, 4).T, torch.randn(4, 9)[:, 1:7], torch.randn(0, 6)):
        y = packed_linear(x, packed, backend="native")
        torch.testing.assert_close(y, packed_linear_ref(x, packed))
        assert torch.equal(y, packed_linear(x, packed, backend="native"))


@needs_extension
def test_operator_passes_opcheck():
    for dtype in (torch.float32, torch.bfloat16):
        packed = layer(9, 7, activation="silu", dtype=dtype)
        arguments = (torch.randn(4, 7).to(dtype), packed.packed, 9, dtype == torch.bfloat16, "silu")
        torch.library.opcheck(_native, arguments, test_utils=("test_schema", "test_faketensor"))


@needs_extension
def test_gradients_fall_back_or_refuse():
    packed = layer(3, 4, activation="silu", dtype=torch.float32)
    x = torch.randn(2, 4, requires_grad=True)
    packed_linear(x, packed).sum().backward()
    assert x.grad is not None
    with pytest.raises(EnmaError, match="no backward"):
        packed_linear(x, packed, backend="native")
    with torch.no_grad():
        packed_linear(x, packed, backend="native")


def test_reference_serves_what_native_cannot():
    packed = layer(3, 4, activation="swiglu", dtype=torch.float64)
    x = torch.randn(5, 4, dtype=torch.float64)
    assert torch.equal(packed_linear(x, packed), packed_linear_ref(x, packed))
    with pytest.raises(EnmaError, match=r"native.*float32 and bfloat16"):
        packed_linear(x, packed, backend="native")


def test_bad_arguments_are_named():
    weight, x = torch.randn(4, 3), torch.randn(2, 3)
    with pytest.raises(EnmaError, match="activation is 'gelu'"):
        pack_linear(weight, activation="gelu")
    with pytest.raises(EnmaError, match="weight has shape"):
        pack_linear(torch.randn(3, 3), activation="swiglu")
    with pytest.raises(EnmaError, match="bias has shape"):
        pack_linear(weight, torch.randn(3))
    with pytest.raises(EnmaError, match="x has shape"):
        packed_linear(torch.randn(2, 4), pack_linear(weight))
    with pytest.raises(EnmaError, match="x is bfloat16"):
        packed_linear(x.bfloat16(), pack_linear(weight))
    with pytest.raises(EnmaError, match="unknown"):
        packed_linear(x, pack_linear(weight), backend="magic")
