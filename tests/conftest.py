"""Settings of every test: few threads, a fixed seed, poisoned memory, GPU tests skipped with a reason."""

import importlib.metadata
import importlib.util
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# cuBLAS reads it once, when it starts; without it deterministic mode warns on every GPU matrix product.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

# Beside another worker, or on a busy machine, a second thread spins for a core that is taken: a small product takes
# 50 ms. Programs that tests start inherit this.
os.environ.update(
    {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    if "PYTEST_XDIST_WORKER" in os.environ or os.getloadavg()[0] > (os.cpu_count() or 1)
    else {}
)

import numpy as np
import pytest
import torch

from ._cases import spared
from ._interpreter import patch_once
from ._memory import give_back, make_pages_huge

SEED = 0
SHARED = "PYTEST_XDIST_WORKER" in os.environ
MAX_THREADS = 2


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Settings of every test; benchmarks run without them."""
    if config.getoption("benchmark_only", False):
        return
    # Triton's decorator reads it once. Without a GPU its kernels run on CPU tensors, one program after the other.
    if not torch.cuda.is_available():
        os.environ.setdefault("TRITON_INTERPRET", "1")
    if importlib.util.find_spec("triton") and "TRITON_INTERPRET" in os.environ:
        patch_once()
    # Its loops over sizes take int() of arrays with one element, which NumPy 2.4 refuses. Drop when triton >= 3.7.
    if importlib.util.find_spec("triton") and importlib.metadata.version("triton").startswith("3.6."):
        from triton.runtime import interpreter

        def patch(tensor: Any, scope: Any, patch: Callable[[Any, Any], None] = interpreter._patch_lang_tensor) -> None:
            patch(tensor, scope)
            scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

        interpreter._patch_lang_tensor = patch

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


def pytest_ignore_collect(config: pytest.Config) -> bool | None:
    """No test is a benchmark, so none is looked at where benchmarks alone are asked for."""
    return config.getoption("benchmark_only", False) or None


def pytest_addoption(parser: pytest.Parser) -> None:
    """Several processes divide the tests where there is no pytest-xdist (benchmarks/gpu_tests.py)."""
    parser.addoption("--share", metavar="I/N", help="run every N-th of the tests from the I-th on")


def slow_files_first(items: list[pytest.Item]) -> None:
    """Sort whole files, by their share of slow tests: no worker is left with a long file at the end."""
    counts: dict[str, list[int]] = {}
    for item in items:
        count = counts.setdefault(item.nodeid.partition("::")[0], [0, 0])
        count[0] += any(item.get_closest_marker(name) for name in ("slow", "kill"))
        count[1] += 1
    shares = {file: slow / tests for file, (slow, tests) in counts.items()}
    items.sort(key=lambda item: -shares[item.nodeid.partition("::")[0]])


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out long tests unless asked for, skip GPU tests where there is no GPU, refuse a run that asked for them.

    Tests of operators that run where the Triton kernels do are GPU tests where there is one.
    """
    for item in spared(items):
        item.add_marker("slow")
    if "long" not in config.getoption("-m"):
        left_out = [item for item in items if item.get_closest_marker("long")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not item.get_closest_marker("long")]
    if SHARED:
        slow_files_first(items)
    if torch.cuda.is_available():
        for item in items:
            if "device" in getattr(item, "fixturenames", ()):
                item.add_marker("gpu")
        return
    expression = config.getoption("-m")
    if "gpu" in expression and "not gpu" not in expression:
        raise pytest.UsageError(f"-m {expression!r} asks for GPU tests and no CUDA device is visible")
    skip = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(skip)


@pytest.hookimpl(trylast=True)
def pytest_collection_finish(session: pytest.Session) -> None:
    """Of a share of the tests keep that; all modules are there, a few tests alone fork too seldom for it to pay."""
    if share := session.config.getoption("--share"):
        number, count = map(int, share.split("/"))
        session.items[:] = session.items[number::count]
    if len(session.items) > 100:
        make_pages_huge()


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Give back what a file has freed: a fork copies the tables of all memory."""
    if nextitem is None or nextitem.path != item.path:
        give_back()


@pytest.fixture(autouse=True)
def _fixed_seed() -> None:
    """The global generators start every test from the same state, in any order of tests."""
    random.seed(SEED)
    np.random.seed(SEED)  # noqa: NPY002 (third-party code under test may use the global generator)
    torch.manual_seed(SEED)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """For sizes at which more threads gain nothing, and wait for each other where the machine is busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures of a report are made and not drawn, which takes most of its time; for tests of what is beside them."""

    def svg(figure: Any, label: str) -> str:
        assert figure.axes
        return f'<svg aria-label="{label}"></svg>'

    monkeypatch.setattr("enma_fast.figures.report.page._inline_svg", svg)


@pytest.fixture
def generator() -> torch.Generator:
    """A CPU generator with a fixed seed."""
    return torch.Generator().manual_seed(SEED)


@pytest.fixture
def rng() -> np.random.Generator:
    """A numpy generator with a fixed seed."""
    return np.random.default_rng(SEED)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoint of an untrained model of about ten thousand parameters, for the Combined data set."""
    from ._tiny_checkpoint import save_tiny

    folder = tmp_path_factory.mktemp("tiny") / "checkpoint"
    save_tiny(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_fast(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoint of the same with the one-pass decoder."""
    from ._tiny_checkpoint import save_tiny

    folder = tmp_path_factory.mktemp("tiny-fast") / "checkpoint"
    save_tiny(folder, "combined-fast")
    return folder


@pytest.fixture(scope="session")
def test_in() -> Path:
    """The shipped test file: 12 environments of 2 trajectories."""
    from enma_fast.models.checkpoint import PRETRAINED

    return PRETRAINED / "combined-test-in.h5"
