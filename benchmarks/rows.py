"""Rows of results in a JSON file that grows by one at a time, so that nothing that was measured is lost.

The standard library alone is imported: a bare machine writes rows before anything is installed.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

# Names the folder to which results and logs are copied as soon as they are there.
RESULTS = "ENMA_FAST_RESULTS"


def as_json(value: Any) -> str:
    """A result as JSON, in which numbers that are not finite are words."""

    def plain(part: Any) -> Any:
        if isinstance(part, dict):
            return {key: plain(each) for key, each in part.items()}
        if isinstance(part, list | tuple):
            return [plain(each) for each in part]
        return str(part) if isinstance(part, float) and not math.isfinite(part) else part

    return json.dumps(plain(value), allow_nan=False)


def save(rows: list[dict[str, Any]], path: Path) -> None:
    """Write what is known so far, and copy it to the folder that ENMA_FAST_RESULTS names."""
    data = as_json(rows) + "\n"
    kept = os.environ.get(RESULTS)
    for target in [path, *([Path(kept) / path.parent.name / path.name] if kept else [])]:
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f"{target.name}.part")
        part.write_text(data)
        part.replace(target)


def add(row: dict[str, Any], path: Path) -> None:
    """Add a row to those of a file."""
    before = json.loads(path.read_text()) if path.exists() else []
    save([*before, row], path)
