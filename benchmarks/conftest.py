"""Benchmarks run where they are asked for, by `pytest --benchmark-only`, and end in one table.

Tables of pytest-benchmark, with its statistics, come with `--benchmark-verbose`, `--benchmark-columns` or
`--benchmark-compare`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from enma_fast.utils.system import machine

# Of each row of the table the seconds of a call by contender: median, and distance between the quartiles.
ROWS = pytest.StashKey[dict[str, dict[str, tuple[float, float]]]]()


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    config.stash[ROWS] = {}
    if hasattr(config.option, "benchmark_quiet"):
        asked = config.option.benchmark_columns or config.option.benchmark_compare
        config.option.benchmark_quiet = config.option.benchmark_quiet or not asked


def pytest_ignore_collect(config: pytest.Config) -> bool | None:
    """A benchmark among tests would time their settings; a file that is named is collected all the same."""
    return None if config.getoption("benchmark_only", False) else True


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out large benchmarks unless they are asked for."""
    if "large" not in config.getoption("-m"):
        left_out = [item for item in items if item.get_closest_marker("large")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not item.get_closest_marker("large")]


@pytest.fixture(autouse=True)
def _kept_for_the_table(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    benchmark = request.node.funcargs.get("benchmark")
    if benchmark is not None and benchmark.stats is not None:
        row = request.config.stash[ROWS].setdefault(benchmark.group, {})
        row[benchmark.extra_info["by"]] = benchmark.stats["median"], benchmark.stats["iqr"]


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """One row for each operation and size: the median time of a call, how far it scatters, and the ratio."""
    rows = config.stash[ROWS]
    if not rows:
        return
    here = machine()
    terminalreporter.section("benchmarks")
    terminalreporter.write_line(f"{here['gpu'] or here['cpu']}, {torch.get_num_threads()} threads; median of a call")
    terminalreporter.write_line(f"{'':44}{'ours':>18}{'PyTorch':>18}{'ratio':>8}")
    for name, seconds in rows.items():
        ours, plain = (seconds.get(by) for by in ("ours", "PyTorch"))
        ratio = f"{plain[0] / ours[0]:.2f}" if ours and plain else ""
        terminalreporter.write_line(f"{name:44}{shown(ours):>18}{shown(plain):>18}{ratio:>8}")


def shown(seconds: tuple[float, float] | None) -> str:
    """A median and half the distance of the quartiles, in percent of it."""
    if seconds is None:
        return ""
    median, distance = seconds
    unit, scale = next((pair for pair in (("s", 1.0), ("ms", 1e-3)) if median >= pair[1]), ("us", 1e-6))
    return f"{median / scale:.3g} {unit} +-{50 * distance / median:.0f}%"
