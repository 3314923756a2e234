"""What is said of a choice among implementations: what a user could have, and does not."""

import logging
import os
import subprocess
import sys

import pytest
import torch

from enma_fast.errors import EnmaError
from enma_fast.models.layers import RMSNorm
from enma_fast.ops import _backend
from enma_fast.ops._backend import choose, cuda_problem
from enma_fast.ops.rms_norm import rms_norm
from enma_fast.ops.swiglu import swiglu

from .._extension import NATIVE, needs_native


@pytest.fixture(autouse=True)
def nothing_said_before():
    _backend._say_once.cache_clear()


def test_nobody_misses_what_serves_another_kind_of_device(caplog):
    caplog.set_level(logging.INFO, logger="enma_fast")
    candidates = {"cuda": cuda_problem(torch.device("cpu")), "native": None, "reference": None}
    assert choose("norm", candidates, None) == "native"
    assert not caplog.records


def test_what_is_missing_is_said_once(caplog):
    caplog.set_level(logging.INFO, logger="enma_fast")
    candidates = {"cuda": cuda_problem(torch.device("cpu")), "native": "is not built", "reference": None}
    for _ in range(2):
        assert choose("norm", candidates, None) == "reference"
    assert caplog.messages == ["norm runs as 'reference', not as 'native': is not built"]


@needs_native
def test_the_environment_names_the_instruction_set() -> None:
    asks = """
import os
from enma_fast.errors import EnmaError
from enma_fast.ops._backend import native, extension

try:
    extension()
except EnmaError as error:
    print(error)
os.environ["ENMA_ISA"] = "scalar"
print(native().cpu_isa())
"""
    done = subprocess.run(
        [sys.executable, "-c", asks],
        env=os.environ | {"ENMA_ISA": "abacus"},
        capture_output=True,
        text=True,
        check=True,
    )
    refused, chosen = done.stdout.splitlines()
    assert refused.startswith("ENMA_ISA: isa 'abacus' is unknown; expected one of scalar, ")
    assert chosen == "scalar"


@pytest.mark.skipif(NATIVE is None, reason="needs the compiled extension")
@pytest.mark.parametrize(
    "run",
    [
        lambda x: rms_norm(x, torch.ones(8), eps=1e-5, backend="native"),
        lambda x: swiglu(x, backend="native"),
        lambda x: RMSNorm(8)(x),
    ],
)
def test_a_second_derivative_is_an_error_and_not_zero(run):
    x = torch.randn(3, 8, requires_grad=True)
    (first,) = torch.autograd.grad((run(x) ** 3).sum(), x, create_graph=True)
    assert first.abs().max() > 0
    with pytest.raises(EnmaError, match="'reference'"):
        torch.autograd.grad(first.square().sum(), x)


def test_the_reference_is_differentiable_twice():
    x = torch.randn(3, 8, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(8, dtype=torch.float64)
    assert torch.autograd.gradgradcheck(lambda x: rms_norm(x, weight, eps=1e-5, backend="reference"), x)


@pytest.mark.slow
@pytest.mark.skipif(NATIVE is None, reason="needs the compiled extension")
def test_a_compiled_layer_is_one_graph():
    """The choice of an implementation leaves the compiler nothing that it has to break at."""
    weight = torch.ones(8)
    layer = torch.compile(
        lambda x: swiglu(rms_norm(x, weight, eps=1e-5)), backend="aot_eager", fullgraph=True, dynamic=False
    )
    x = torch.randn(3, 8)
    assert torch.equal(layer(x), swiglu(rms_norm(x, weight, eps=1e-5)))
