"""What is said of a choice among implementations: what a user could have, and does not."""

import logging
import os
import subprocess
import sys

import pytest
import torch

from enma_fast.ops import _backend
from enma_fast.ops._backend import choose, cuda_problem

from .._extension import needs_native


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
