"""The demonstration: a shipped model forecasts unseen trajectories from the shipped test files."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..data import FieldFile, read, shipped_file
from ..data.selection import spread_rows
from ..drawing.plots import save_figure
from ..errors import EnmaError
from ..evaluation.scoring import paper_table, score_forecast
from ..forecasting.file_forecast import FileForecast
from ..forecasting.request import INITIAL_VALUE, ForecastRequest
from ..forecasting.sink import Sink
from ..forecasting.store_layout import file_hashes, layout_of, provenance
from ..models.checkpoint import available, load_config, load_model
from ..store.create import create_store
from ..store.layout import OUTSIDE
from .report import StoreReader, store_figure

CHECKPOINT = "combined-fast"
STORE, FIGURE = "forecast.zarr", "demo.png"
# Ensemble size of all forecasts but the first.
FEWER_MEMBERS = 16
# Trajectories of a demonstration.
TRAJECTORIES = 12


def run(
    out: Path,
    *,
    members: int = 64,
    trajectories: int | None = None,
    seed: int = 0,
    checkpoint: str | Path = CHECKPOINT,
    points: int | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> dict[str, Any]:
    """Forecast, score, and write `<out>/forecast.zarr` and `<out>/demo.png`, in place of those of an earlier run.

    `members` is the ensemble size of the forecast that is stored. `trajectories` are their number, spread over the
    environments of the test file; by default `TRAJECTORIES`, or as many as it holds. Of each observed frame the model
    sees `points` grid points, by default all. `progress` is called with (members
    done, members, name of the forecast).

    Returns
    -------
    dict
        The scores of the temporal task in distribution, as from `enma_fast.score`; `rows`, the scores of all forecasts;
        `paper`, the paper's figures for each of them; `store` and `figure`, the files; `figure_trajectory`, the number
        of the trajectory of median error, which is drawn.
    """
    model = load_model(checkpoint)
    name = model.config.dataset
    inside, outside = (read(shipped_file(name, split)) for split in ("test-in", "test-out"))
    trajectories = min(TRAJECTORIES, len(inside), len(outside)) if trajectories is None else trajectories
    in_rows, out_rows = (_spread_over(data, trajectories) for data in (inside, outside))
    fewer = ForecastRequest(num_members=min(members, FEWER_MEMBERS), seed=seed, trajectories=in_rows, points=points)
    # One trajectory at a time, so that progress is seen.
    request = replace(fewer, num_members=members, chunk=max(1, members))
    main = FileForecast(model, inside, request)
    forecasts = {
        "temporal, in distribution": main,
        "temporal, out of distribution": FileForecast(model, outside, replace(fewer, trajectories=out_rows)),
        "initial value, in distribution": FileForecast(model, inside, replace(fewer, task=INITIAL_VALUE)),
    }
    total = trajectories * sum(each.request.num_members for each in forecasts.values())
    results: list[dict[str, Any]] = []

    def run_one(label: str, *sinks: Sink) -> None:
        before = sum(trajectories * row["num_members"] for row in results)
        size = forecasts[label].request.num_members

        def report(done: int, _: int) -> None:
            if progress is not None:
                progress(before + done * size, total, label)

        # Trajectories out of distribution are shown on purpose, and the table says how many were recognised.
        results.append(score_forecast(forecasts[label], warn=False, progress=report, sinks=sinks))

    words = ["enma-fast", "demo", "--checkpoint", str(checkpoint), "--members", str(members), "--seed", str(seed)]
    words += ["--trajectories", str(trajectories), *(() if points is None else ("--points", str(points)))]
    attributes = provenance(main, checkpoint, shlex.join(words)) | file_hashes(main)
    unlike_training = main.outside_training(warn=False)
    if unlike_training is not None:
        attributes[OUTSIDE] = unlike_training
    with create_store(out / STORE, layout_of(main, attributes), force=True) as store:
        first_label, *others = forecasts
        run_one(first_label, store)
    for label in others:
        run_one(label)
    reader = StoreReader(out / STORE)
    place = reader.place_of_median_error()
    seen = f"{request.num_history} frames" + ("" if points is None else f" seen at {points} points")
    title = f"{model.config.name}: {members}-member forecast of an unseen trajectory from {seen}"
    if trajectories > 1:
        title += f" (trajectory {reader.numbers[place]} of the file, of median error among {trajectories})"
    save_figure(store_figure(reader, place=place, title=title), out / FIGURE)
    return {
        **results[0],
        "rows": results,
        "paper": [paper_table(row) for row in results],
        "store": str(out / STORE),
        "figure": str(out / FIGURE),
        "figure_trajectory": reader.numbers[place],
    }


def shipped_model(pde: str) -> str:
    """Name of the shipped model of an equation: the one that is called as the equation, or else its one-pass model.

    `EnmaError` lists the equations that have one.
    """
    equations = {name: load_config(name).dataset for name in available()}
    models = {equation: name for name, equation in equations.items() if name.endswith("-fast")}
    models |= {equation: name for name, equation in equations.items() if name == equation.replace("_", "-")}
    if pde not in models:
        raise EnmaError(f"--pde '{pde}': no model of it is shipped; use one of {', '.join(sorted(models))}")
    return models[pde]


def _spread_over(data: FieldFile, count: int) -> list[int]:
    """Choose `count` trajectories spread over a file, so that they come from different environments."""
    if not 1 <= count <= len(data):
        raise EnmaError(f"trajectories is {count}; {data.path.name} holds 1 to {len(data)}")
    return spread_rows(len(data), count).tolist()
