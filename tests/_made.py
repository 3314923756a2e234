"""Stores that tests fill themselves."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from enma_fast.store import create
from enma_fast.store.forecast_store import ForecastStore
from enma_fast.store.layout import Layout


def create_store(
    path: Path, layout: Layout | None = None, *, force: bool = False, **contents: Any
) -> AbstractContextManager[ForecastStore]:
    """A store to be filled in the block, of a layout or of its attributes as keywords."""
    return create.create_store(path, layout or Layout(**contents), force=force)
