"""Tests with many cases: `make test` runs some that show every value of every argument, `make test-full` all."""

from collections import Counter, defaultdict
from collections.abc import Iterable

import pytest

MARK = "each_value"


def spared(items: Iterable[pytest.Item]) -> list[pytest.Item]:
    """Cases that `make test` leaves out: of tests marked `each_value`, those that show no value that others do not.

    The mark may name arguments; then the others' values are shown with each value of these.
    """
    groups = defaultdict(list)
    for item in items:
        mark = item.get_closest_marker(MARK)
        if mark is not None and not any(item.get_closest_marker(name) for name in ("slow", "kill", "long")):
            fixed = tuple(value for name, value in _values(item) if name in mark.args)
            groups[item.nodeid.partition("[")[0], fixed].append(item)
    return [item for cases in groups.values() for item in _spared(cases)]


def _values(case: pytest.Item) -> list[tuple[str, int]]:
    """Each argument with its value, by identity: all cases have the very objects that `parametrize` was given."""
    return [(name, id(value)) for name, value in case.callspec.params.items()]


def _spared(cases: list[pytest.Item]) -> list[pytest.Item]:
    values = {case: set(_values(case)) for case in cases}
    shown: Counter[tuple[str, int]] = Counter()
    left = list(cases)
    while any(values[case] - shown.keys() for case in left):
        # The most new values, and of those that are not new the ones shown least.
        chosen = max(left, key=lambda case: (len(values[case] - shown.keys()), -sum(shown[v] for v in values[case])))
        left.remove(chosen)
        shown.update(values[chosen])
    return left
