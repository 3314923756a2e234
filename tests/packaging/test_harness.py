"""The promises of tests/conftest.py itself."""

import contextlib
import itertools
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from .._cases import spared


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


class Case:
    """What of an item of pytest decides whether it is left out."""

    def __init__(self, indices: dict[str, int], marks: dict[str, object]) -> None:
        self.nodeid = f"test_it[{indices}]"
        self.callspec = SimpleNamespace(indices=indices)
        self.get_closest_marker = marks.get


def cases(*names: str, slow: int | None = None, **counts: int) -> list[Case]:
    """Cases of a test marked `each_value(*names)` with so many values of each argument; one value of `a` is slow."""
    found = []
    for places in itertools.product(*map(range, counts.values())):
        indices = dict(zip(counts, places, strict=True))
        marks = {"each_value": SimpleNamespace(args=names)} | ({"slow": True} if indices["a"] == slow else {})
        found.append(Case(indices, marks))
    return found


def kept(items: list[Case]) -> list[tuple[int, ...]]:
    left_out = spared(items)
    return [tuple(item.callspec.indices.values()) for item in items if item not in left_out]


def test_few_cases_show_every_value() -> None:
    found = kept(cases(a=4, b=3, c=2))
    assert len(found) == 4
    assert [values[2] for values in found].count(0) == 2, "each value as often as the others"
    assert [set(values) for values in zip(*found, strict=True)] == [{0, 1, 2, 3}, {0, 1, 2}, {0, 1}]
    found = kept(cases("c", a=4, b=3, c=2))
    assert len(found) == 8
    for c in (0, 1):
        some = [values for values in found if values[2] == c]
        assert [set(values) for values in zip(*some, strict=True)] == [{0, 1, 2, 3}, {0, 1, 2}, {c}]


def test_a_slow_case_shows_nothing_for_the_others() -> None:
    found = kept(cases(a=2, b=3, slow=0))
    assert [values for values in found if values[0] == 1] == [(1, 0), (1, 1), (1, 2)]
    plain = cases(a=2, b=2)
    for item in plain:
        item.get_closest_marker = {}.get
    assert spared(plain) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a CUDA device")
def test_asking_for_gpu_tests_without_a_gpu_is_refused(request: pytest.FixtureRequest, root: Path) -> None:
    conftest = request.config.pluginmanager.get_plugin(str(root / "tests/conftest.py"))
    for expression, refused in (("gpu", True), ("gpu and not slow", True), ("not gpu", False), ("", False)):
        config = SimpleNamespace(
            getoption=lambda name, expression=expression: expression,
            hook=SimpleNamespace(pytest_deselected=lambda items: None),
        )
        with pytest.raises(pytest.UsageError, match="no CUDA device") if refused else contextlib.nullcontext():
            conftest.pytest_collection_modifyitems(config, [])


def test_tests_that_run_where_the_kernels_do_are_gpu_tests_where_there_is_one(
    request: pytest.FixtureRequest, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    conftest = request.config.pluginmanager.get_plugin(str(root / "tests/conftest.py"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    marked: list[str] = []
    items = [Case({}, {}) for _ in range(2)]
    for item, fixtures in zip(items, (["device", "rng"], ["rng"]), strict=True):
        item.fixturenames = fixtures
        item.add_marker = lambda name, item=item: marked.append(f"{name} {item.fixturenames[0]}")
    config = SimpleNamespace(getoption=lambda name: "gpu", hook=SimpleNamespace(pytest_deselected=lambda items: None))
    conftest.pytest_collection_modifyitems(config, items)
    assert marked == ["gpu device"]


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a CUDA device")
def test_asking_for_gpu_tests_without_a_gpu_is_an_error(root: Path) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", __file__]
    run = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert run.returncode == pytest.ExitCode.USAGE_ERROR
    assert "no CUDA device is visible" in run.stderr
