"""One child for all files, and a line of what was tried."""

from collections.abc import Iterator
from typing import Any

import pytest

from ._runner import Runner

KEY = pytest.StashKey[Runner]()


@pytest.fixture(scope="session")
def runner(request: pytest.FixtureRequest) -> Iterator[Runner]:
    """Runs command lines in a child."""
    made = Runner()
    request.config.stash[KEY] = made
    yield made
    made.close()


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """How many cases ended how."""
    runner = config.stash.get(KEY, None)
    if runner is not None:
        ends = ", ".join(f"{name} {count}" for name, count in sorted(runner.counts.items()))
        terminalreporter.write_line(f"fuzz: {runner.counts.total()} cases; {ends}")
