"""The demonstration: the shipped model forecasts trajectories it has never seen, from the test files beside it."""

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
# Ensemble size of the rows beside the main one.
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
    """Forecast, score, and write `<out>/forecast.zarr` and `<out>/demo.png`, replacing those of an earlier run.

    Parameters
    ----------
    out : folder of the results
    members : ensemble size of the forecast that is kept
    trajectories : how many are forecast, spread over the environments of the test file
    seed : of the noise
    checkpoint : shipped model or folder
    progress : called with (members done, members, what is being forecast)

    Returns
    -------
    dict
        The scores of the temporal task in distribution, as `enma_fast.score` gives them; `rows`, those and the scores
        of the other cases; `paper`, the paper's figures beside each row; `store` and `figure`, the files.
    """
    model = load_model(checkpoint)
    name = model.config.dataset
    inside, outside = (read(shipped_file(name, split)) for split in ("test-in", "test-out"))
    # One trajectory at a time, so that progress is seen.
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
        # Those out of distribution are there to be seen, and the table says how many were recognised.
        results.append(score_case(model, data, case, rows=rows, warn=False, progress=report, **keywords))

    rows = spread_rows(inside, trajectories)
    attributes = provenance(checkpoint, inside, main, rows, "enma-fast demo") | file_hashes(inside, main)
    strange = outside_training(model, inside, main, rows, warn=False)
    if strange is not None:
        attributes[OUTSIDE] = strange
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
    """`count` trajectories spread over a file, so that they come from different environments."""
    if not 1 <= count <= len(data):
        raise EnmaError(f"trajectories is {count}; {data.path.name} holds 1 to {len(data)}")
    return [i * len(data) // count for i in range(count)]
