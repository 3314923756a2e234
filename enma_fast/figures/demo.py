"""The demonstration: a shipped model forecasts unseen trajectories from the shipped test files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..data import FieldFile, read, shipped_file
from ..errors import EnmaError
from ..evaluation.scoring import paper_table, score_case
from ..forecasting.tasks import Case, file_hashes, layout_of, outside_training, provenance
from ..models.checkpoint import load_model
from ..store.create import create_store
from ..store.layout import OUTSIDE
from .plots import save_figure
from .report import store_figure

CHECKPOINT = "combined-fast"
STORE, FIGURE = "forecast.zarr", "demo.png"
# Ensemble size of all forecasts but the first.
FEWER_MEMBERS = 16


def run(
    out: Path,
    *,
    members: int = 64,
    trajectories: int = 12,
    seed: int = 0,
    checkpoint: str | Path = CHECKPOINT,
    progress: Callable[[int, int, str], None] | None = None,
) -> dict[str, Any]:
    """Forecast, score, and write `<out>/forecast.zarr` and `<out>/demo.png`, in place of those of an earlier run.

    Parameters
    ----------
    out : folder of the results
    members : ensemble size of the forecast that is stored
    trajectories : number of trajectories, spread over the environments of the test file
    seed : seed of the noise
    checkpoint : name of a shipped model, or folder of a checkpoint
    progress : called with (members done, members, name of the forecast)

    Returns
    -------
    dict
        The scores of the temporal task in distribution, as from `enma_fast.score`; `rows`, the scores of all forecasts;
        `paper`, the paper's figures for each of them; `store` and `figure`, the files.
    """
    model = load_model(checkpoint)
    name = model.config.dataset
    inside, outside = (read(shipped_file(name, split)) for split in ("test-in", "test-out"))
    # One trajectory at a time, so that the progress is visible.
    main = Case(members=members, seed=seed, chunk=max(1, members))
    fewer = min(members, FEWER_MEMBERS)
    cases = [
        ("temporal, in distribution", inside, main),
        ("temporal, out of distribution", outside, Case(members=fewer, seed=seed)),
        ("initial value, in distribution", inside, Case(task="initial-value", members=fewer, seed=seed)),
    ]
    total = trajectories * sum(case.members for _, _, case in cases)
    results: list[dict[str, Any]] = []

    def forecast(label: str, data: FieldFile, case: Case, **keywords: Any) -> None:
        before = sum(trajectories * row["num_members"] for row in results)

        def report(done: int, _: int) -> None:
            if progress is not None:
                progress(before + done * case.members, total, label)

        rows = spread_rows(data, trajectories)
        # Trajectories out of distribution are included on purpose; the table says how many are recognised.
        results.append(score_case(model, data, case, rows=rows, warn=False, progress=report, **keywords))

    rows = spread_rows(inside, trajectories)
    attributes = provenance(checkpoint, inside, main, rows, "enma-fast demo") | file_hashes(inside, main)
    outside_numbers = outside_training(model, inside, main, rows, warn=False)
    if outside_numbers is not None:
        attributes[OUTSIDE] = outside_numbers
    layout = layout_of(model.config, inside, main, rows=rows, attributes=attributes)
    with create_store(out / STORE, layout, force=True) as store:
        forecast(*cases[0], sink=store.put)
    for case in cases[1:]:
        forecast(*case)
    title = f"{model.config.name}: {members}-member forecast of an unseen trajectory from {main.history} frames"
    save_figure(store_figure(out / STORE, title=title), out / FIGURE)
    return {
        **results[0],
        "rows": results,
        "paper": [paper_table(row) for row in results],
        "store": str(out / STORE),
        "figure": str(out / FIGURE),
    }


def spread_rows(data: FieldFile, count: int) -> list[int]:
    """Choose `count` trajectories spread over a file, so that they come from different environments."""
    if not 1 <= count <= len(data):
        raise EnmaError(f"trajectories is {count}; {data.path.name} holds 1 to {len(data)}")
    return [i * len(data) // count for i in range(count)]
