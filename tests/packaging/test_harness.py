"""The promises of tests/conftest.py itself."""

import contextlib
import importlib
import os
import subprocess
import sys
import textwrap
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


ABC = {"a": ["x", 1, (2,), [3]], "b": [0.5, None, {}], "c": [False, True]}


@pytest.mark.each_value
@pytest.mark.parametrize("a", ABC["a"], ids=str)
@pytest.mark.parametrize("b", ABC["b"], ids=str)
@pytest.mark.parametrize("c", ABC["c"], ids=str)
def test_all(a: object, b: object, c: bool) -> None:
    assert a in ABC["a"]


@pytest.mark.each_value("c")
@pytest.mark.parametrize("a", ABC["a"], ids=str)
@pytest.mark.parametrize("b", ABC["b"], ids=str)
@pytest.mark.parametrize("c", ABC["c"], ids=str)
def test_each_c(a: object, b: object, c: bool) -> None:
    assert b in ABC["b"]


@pytest.mark.each_value
@pytest.mark.parametrize("a", [pytest.param("x", marks=pytest.mark.slow), "y"])
@pytest.mark.parametrize("b", ABC["b"], ids=str)
def test_one_is_slow(a: str, b: object) -> None:
    assert a in ("x", "y")


def kept(module: pytest.Module, name: str) -> list[dict[str, object]]:
    """Arguments of the cases of a test here that `make test` runs."""
    cases = [item for item in module.collect() if item.originalname == name]
    left_out = spared(cases)
    return [case.callspec.params for case in cases if case not in left_out and not case.get_closest_marker("slow")]


def shows_all(found: list[dict[str, object]], **expected: list[object]) -> bool:
    return all(all(value in [case[name] for case in found] for value in values) for name, values in expected.items())


def test_few_cases_show_every_value(request: pytest.FixtureRequest) -> None:
    found = kept(request.node.parent, "test_all")
    assert len(found) == 4
    assert shows_all(found, **ABC)
    assert [case["c"] for case in found].count(True) == 2, "each value as often as the others"
    found = kept(request.node.parent, "test_each_c")
    assert len(found) == 8
    for c in (False, True):
        some = [case for case in found if case["c"] is c]
        assert len(some) == 4
        assert shows_all(some, a=ABC["a"], b=ABC["b"])


def test_a_slow_case_shows_nothing_for_the_others(request: pytest.FixtureRequest) -> None:
    found = kept(request.node.parent, "test_one_is_slow")
    assert [case["a"] for case in found] == ["y"] * 3
    assert shows_all(found, b=ABC["b"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a CUDA device")
def test_asking_for_gpu_tests_without_a_gpu_is_refused(request: pytest.FixtureRequest, root: Path) -> None:
    conftest = request.config.pluginmanager.get_plugin(str(root / "tests/conftest.py"))
    for expression, refused in (("gpu", True), ("gpu and not slow", True), ("not gpu", False), ("", False)):
        config = SimpleNamespace(
            getoption=lambda name, expression=expression: expression,
            hook=SimpleNamespace(pytest_deselected=lambda items: None),
        )
        with pytest.raises(pytest.UsageError, match="CUDA device") if refused else contextlib.nullcontext():
            conftest.pytest_collection_modifyitems(config, [])


def test_tests_that_run_where_the_kernels_do_are_gpu_tests_where_there_is_one(
    request: pytest.FixtureRequest, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    conftest = request.config.pluginmanager.get_plugin(str(root / "tests/conftest.py"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    marked: list[str] = []
    items = [
        SimpleNamespace(
            nodeid=fixtures[0],
            fixturenames=fixtures,
            get_closest_marker=lambda name: None,
            add_marker=lambda name, fixtures=fixtures: marked.append(f"{name} {fixtures[0]}"),
        )
        for fixtures in (["device", "rng"], ["rng"])
    ]
    config = SimpleNamespace(getoption=lambda name: "gpu", hook=SimpleNamespace(pytest_deselected=lambda items: None))
    conftest.pytest_collection_modifyitems(config, items)
    assert marked == ["gpu device"]


def collected(root: Path, *arguments: str) -> tuple[list[str], str]:
    """The tests that pytest would run at the root, and the last line of the process."""
    probe = """
        import sys, pytest, torch
        status = pytest.main(["-q", "--collect-only", "-p", "no:cacheprovider", *sys.argv[1:]])
        print(status.value, torch.are_deterministic_algorithms_enabled())
    """
    command = [sys.executable, "-c", textwrap.dedent(probe), *arguments]
    # Benchmarks are not for processes that share the tests.
    alone = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    done = subprocess.run(command, cwd=root, env=alone, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    return [line for line in lines if "::" in line], lines[-1]


def test_benchmarks_alone_are_run_where_they_are_asked_for(root: Path) -> None:
    pytest.importorskip("pytest_benchmark")
    found, last = collected(root, "--benchmark-only")
    assert {name.partition("::")[0] for name in found} == {"benchmarks/test_ops.py", "benchmarks/test_sampling.py"}
    assert last == "0 False", "settings of tests slow benchmarks down"
    operators = importlib.import_module("benchmarks.test_ops")
    assert operators.LARGE
    assert not [name for name in found for op, rows in operators.LARGE if f"[{op}-{rows}-" in name]


@pytest.mark.slow
def test_no_benchmark_is_run_among_tests(root: Path, request: pytest.FixtureRequest) -> None:
    assert request.config.getini("testpaths") == ["tests", "benchmarks"]
    found, last = collected(root, "tests/packaging/test_release.py", "benchmarks")
    assert {name.partition("::")[0] for name in found} == {"tests/packaging/test_release.py"}
    assert last == "0 True"


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a CUDA device")
def test_asking_for_gpu_tests_without_a_gpu_is_an_error(root: Path) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", __file__]
    run = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert run.returncode == pytest.ExitCode.USAGE_ERROR
    assert "no CUDA device is visible" in run.stderr
