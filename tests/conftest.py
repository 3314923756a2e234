"""What every test stands on: few threads, a fixed seed, poisoned memory, GPU tests skipped with a reason."""

import importlib.util
import os
import random

# cuBLAS reads it once, when it starts; without it deterministic mode warns on every GPU matrix product.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import numpy as np
import pytest
import torch

SEED = 0
MAX_THREADS = 2

# Triton's decorator reads it once. Without a GPU its kernels run on CPU tensors, one program after the other.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

torch.set_num_threads(min(MAX_THREADS, torch.get_num_threads()))
torch.set_num_interop_threads(1)

# torch.empty is NaN (or the largest integer) under test, so code that reads what it never wrote is seen. The
# fill needs deterministic mode; warn_only, as an op without a deterministic variant is no failure of ours.
torch.use_deterministic_algorithms(True, warn_only=True)
torch.utils.deterministic.fill_uninitialized_memory = True

# Bare GPU machines run the tests without the property-testing package.
if importlib.util.find_spec("hypothesis"):
    from hypothesis import settings

    # The same examples on every run and machine; no time limit per example: compilation falls on the first.
    settings.register_profile("enma", deadline=None, derandomize=True, database=None, max_examples=25)
    settings.load_profile("enma")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip GPU tests where there is no GPU; refuse a run that asked for them."""
    if torch.cuda.is_available():
        return
    expression = config.getoption("-m")
    if "gpu" in expression and "not gpu" not in expression:
        raise pytest.UsageError(f"-m {expression!r} asks for GPU tests and no CUDA device is visible")
    skip = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(skip)


@pytest.fixture(autouse=True)
def _fixed_seed() -> None:
    """The global generators start every test from the same state, in any order of tests."""
    random.seed(SEED)
    np.random.seed(SEED)  # noqa: NPY002 (third-party code under test may use the global generator)
    torch.manual_seed(SEED)


@pytest.fixture
def generator() -> torch.Generator:
    """A CPU generator with a fixed seed."""
    return torch.Generator().manual_seed(SEED)


@pytest.fixture
def rng() -> np.random.Generator:
    """A numpy generator with a fixed seed."""
    return np.random.default_rng(SEED)
