"""Implementations of an operator that run here."""

from collections.abc import Mapping

import pytest


def usable(name: str, candidates: Mapping[str, str | None]) -> str:
    """The implementation `name`; the test is skipped where the operator says why it cannot run."""
    if candidates[name] is not None:
        pytest.skip(f"{name}: {candidates[name]}")
    return name
