"""What is said of a choice among implementations: what a user could have, and does not."""

import logging

import pytest
import torch

from enma_fast.ops import _backend
from enma_fast.ops._backend import choose, cuda_problem


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
