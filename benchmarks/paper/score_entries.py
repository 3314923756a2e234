"""Checks of the entries of a score file (`score_files`), whose texts become cells of tables in Markdown."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from enma_fast.utils.names import name_problem
from enma_fast.utils.text import shown

# The text that a cell can hold, and the largest number.
_TEXT, _MOST = re.compile(r"[^<>|`\x00-\x1f\x7f]{0,200}"), 1e30


def wrong_entry(file: dict[str, Any]) -> str | None:
    """Name of an entry of a score file that no measurement gives; None if there is none."""
    for name, fits in _ENTRIES.items():
        if not fits(file[name]):
            return name
    for i, row in enumerate(file["rows"]):
        if not isinstance(row, dict):
            return f"rows[{i}]"
        for name in {**_OF_ROW, **row}:
            # A score may be undefined, such as the calibration of one member; its median then is absent.
            fits = _OF_ROW.get(name, _is_number if name.endswith("_median") else _is_score)
            if not fits(row.get(name)):
                return f"rows[{i}].{shown(name)}"
    return None


def _is_number(value: Any) -> bool:
    """True for a finite number that a score can be."""
    return type(value) in (int, float) and abs(value) < _MOST


def _is_score(value: Any) -> bool:
    return value is None or _is_number(value)


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and _TEXT.fullmatch(value) is not None


def _is_machine(value: Any) -> bool:
    if not isinstance(value, dict) or not isinstance(versions := value.get("versions", {}), dict) or "gpu" not in value:
        return False
    texts = [value.get("cpu"), value["gpu"] or "", *versions, *(version or "" for version in versions.values())]
    return _is_count(value.get("threads")) and all(map(_is_text, texts))


def _is_physics(value: Any) -> bool:
    if not isinstance(value, dict) or not isinstance(quantities := value.get("quantities", []), list):
        return False
    numbers = [number for name, number in value.items() if name != "quantities"]
    for each in quantities:
        if not isinstance(each, dict) or not _is_text(each.get("name")) or not {"violation", "truth"} <= set(each):
            return False
        numbers += [each["violation"], each["truth"]]
    return all(map(_is_score, numbers))


# What makes an entry of a score file, and of its rows, one; other entries of a row are scores.
_ENTRIES: dict[str, Callable[[Any], bool]] = {
    "method": _is_text,
    "kind": lambda value: value in ("model", "baseline"),
    "equation": lambda value: isinstance(value, str) and name_problem(value) is None and _is_text(value),
    "seed": lambda value: type(value) is int and abs(value) < 2**64,
    "cpu_seconds": _is_number,
    "num_parameters": _is_count,
    "weights": lambda value: value is None or _is_text(value),
    "data": lambda value: isinstance(value, dict) and all(map(_is_text, [*value, *value.values()])),
    "machine": _is_machine,
    "rows": lambda value: isinstance(value, list),
}
_OF_ROW: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("protocol", "task"), _is_text),
    "split": lambda value: value in ("test-in", "test-out"),
    **dict.fromkeys(("members", "trajectories", "frames"), _is_count),
    "physics": lambda value: value is None or _is_physics(value),
}
