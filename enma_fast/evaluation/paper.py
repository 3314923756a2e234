"""Scores that the ENMA paper reports, for comparison with this package's own."""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from typing import Any

from ..errors import EnmaError

_TASKS = {
    "temporal": "table2_temporal_conditioning",
    "initial-value": "table2_initial_value_with_context",
}
# Distance of generated Combined trajectories from the solver's own, of the text on generation; no table has it.
SOLVER_FIDELITY = 0.081
# The keys of the splits in the paper's table.
SPLITS = {"test-in": "in_d", "test-out": "out_d"}


def paper_source() -> str:
    """Citation of the scores, for the caption of a table."""
    return str(paper_figures()["source"])


def paper_scores(dataset: str, task: str, split: str) -> dict[str, float]:
    """Forecast errors of the paper's Table 2: model name -> relative L2 error, in the order of the table.

    `dataset` is "advection", "combined", "gray-scott", "wave" or "vorticity" (an underscore does as well), `task`
    "temporal" or "initial-value", `split` "test-in" (PDE parameters inside the training ranges) or "test-out".
    `EnmaError` for any other; the message lists the known ones.
    """
    table = paper_figures()[_lookup(_TASKS, task, "task")]
    column = _lookup(SPLITS, split, "split")
    datasets = {name.replace("_", "-"): name for name in next(iter(table.values()))}
    key = _lookup(datasets, dataset.replace("_", "-"), "dataset")
    return {model: float(scores[key][column]) for model, scores in table.items()}


def paper_uncertainty() -> dict[str, dict[str, float]]:
    """Calibration on the Combined equation, Table 4: model name -> `{"rmsce": ..., "crps": ...}`."""
    return {model: dict(scores) for model, scores in paper_figures()["table4_uncertainty_combined"].items()}


def _lookup(table: dict[str, str], name: str, what: str) -> str:
    if name not in table:
        choices = ", ".join(repr(other) for other in table)
        raise EnmaError(f"the paper has no {what} {name!r}: choose one of {choices}")
    return table[name]


@cache
def paper_figures() -> dict[str, Any]:
    """All of the paper's tables, as `pretrained/paper.json` has them."""
    text = (files("enma_fast") / "pretrained" / "paper.json").read_text(encoding="utf-8")
    return dict(json.loads(text))
