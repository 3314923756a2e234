"""The demonstration: the shipped model forecasts trajectories it has never seen, from the test files beside it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from .checkpoint import PRETRAINED, load_model
from .data import FieldFile, read
from .errors import EnmaError
from .metrics import Scores
from .output import read_forecast, stacked
from .plots import forecast_figure, save_figure
from .scoring import paper_table, score_case
from .tasks import Case, open_store, provenance

CHECKPOINT = "combined-small"
STORE, FIGURE = "forecast.zarr", "demo.png"
# Ensemble size of the rows beside the main one.
FEWER_MEMBERS = 16


def run(
    out: Path,
    *,
    members: int = 64,
    trajectories: int = 6,
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
        results.append(score_case(model, data, case, rows=rows, progress=report, **keywords))

    rows = spread_rows(inside, trajectories)
    attributes = provenance(checkpoint, inside, "enma-fast demo")
    with open_store(out / STORE, model.config, inside, main, rows=rows, attributes=attributes, force=True) as store:
        forecast(*cases[0], sink=store.put)
    for case in cases[1:]:
        forecast(*case)
    title = f"{model.config.name}: {members}-member forecast of an unseen trajectory from {main.history} frames"
    save_figure(store_figure(out / STORE, scores=results[0], title=title), out / FIGURE)
    return {
        **results[0],
        "rows": results,
        "paper": [paper_table(row) for row in results],
        "store": str(out / STORE),
        "figure": str(out / FIGURE),
    }


def store_figure(
    path: Path,
    *,
    place: int = 0,
    channel: int = 0,
    truth: np.ndarray | None = None,
    scores: dict[str, Any] | None = None,
    title: str = "",
) -> Any:
    """The figure of one trajectory of a forecast store.

    Parameters
    ----------
    path : store
    place : which trajectory of the store
    channel : which channel
    truth : `[B, T, *x, c]` where the store holds none
    scores : of all trajectories, for the panels on calibration; made here if there is a truth
    """
    dataset = read_forecast(path)
    ensemble = stacked(dataset)
    assert ensemble is not None
    if not 0 <= place < len(ensemble):
        raise EnmaError(f"{path}: has no trajectory at place {place}; it holds {len(ensemble)}")
    known, seen = stacked(dataset, "_truth"), stacked(dataset, "_observed")
    truth = known if truth is None else truth
    if scores is None and truth is not None:
        pooled = Scores()
        pooled.update(ensemble, truth)
        ranks = pooled.rank_histogram().tolist() if pooled.num_members > 1 else None
        scores = {**pooled.result(), "rank_histogram": ranks}
    return forecast_figure(
        ensemble[place, ..., channel],
        times=dataset["time"].to_numpy(),
        coords=[dataset[axis].to_numpy() for axis in "xyz"[: ensemble.ndim - 4]],
        observed=None if seen is None else seen[place, ..., channel],
        observed_times=None if seen is None else dataset["observed_time"].to_numpy(),
        truth=None if truth is None else truth[place, ..., channel],
        scores=scores,
        name=dataset.attrs["channels"][channel],
        title=title,
    )


def shipped_file(dataset: str, split: str) -> Path:
    """A shipped test file, or an `EnmaError` that lists them."""
    path = PRETRAINED / f"{dataset}-{split}.h5"
    if not path.is_file():
        known = ", ".join(p.stem for p in sorted(PRETRAINED.glob("*.h5"))) or "none"
        raise EnmaError(f"{dataset}-{split}: no test file of this name is shipped (shipped: {known})")
    return path


def spread_rows(data: FieldFile, count: int) -> list[int]:
    """`count` trajectories spread over a file, so that they come from different environments."""
    if not 1 <= count <= len(data):
        raise EnmaError(f"trajectories is {count}; {data.path.name} holds 1 to {len(data)}")
    return [i * len(data) // count for i in range(count)]
