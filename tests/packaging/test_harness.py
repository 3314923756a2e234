"""The promises of tests/conftest.py itself."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_uninitialised_floats_are_nan(dtype: torch.dtype) -> None:
    assert torch.empty(129, dtype=dtype).isnan().all()
    assert torch.empty_like(torch.zeros(3, 5, dtype=dtype)).isnan().all()


def test_uninitialised_integers_are_absurd() -> None:
    assert (torch.empty(7, dtype=torch.int64) == torch.iinfo(torch.int64).max).all()


@pytest.mark.parametrize("repeat", [0, 1])
def test_global_generators_start_from_the_seed(repeat: int) -> None:
    expected = torch.randn(4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(torch.randn(4), expected, rtol=0, atol=0)
    assert np.random.rand() == np.random.RandomState(0).rand()  # noqa: NPY002


@given(st.integers())
def test_properties_run_beside_the_seed_fixture(number: int) -> None:
    assert isinstance(number, int)


def test_threads_are_few() -> None:
    assert torch.get_num_threads() <= 2


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a CUDA device")
def test_asking_for_gpu_tests_without_a_gpu_is_an_error(root: Path) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", __file__]
    run = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert run.returncode == pytest.ExitCode.USAGE_ERROR
    assert "no CUDA device is visible" in run.stderr
