"""Own data: a model of Kuramoto-Sivashinsky on domains of other sizes, with the spacing of its training.

    OMP_NUM_THREADS=1 python -m benchmarks.own_grids

It trains on the data of `benchmarks.own_data`, and prints the table of the page `docs/own-data-results.md`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

import enma_fast
from benchmarks.own_networks import HISTORY, relative_errors
from benchmarks.own_sets import KS_POINTS, KS_WINDOW, kuramoto_sivashinsky, write_set
from enma_fast.evaluation.metrics import spread_skill
from enma_fast.forecasting.members import sample_fields
from enma_fast.models.model import Model
from enma_fast.utils.text import markdown_table

POINTS, MEMBERS, SERIES = (64, 128, 192, 256, 512), 16, 60


def row(model: Model, points: int, count: int = SERIES) -> dict[str, float]:
    """Scores on so many series of a domain of so many points: means and medians are over series."""
    rng = np.random.default_rng([0, points])
    fields = torch.from_numpy(kuramoto_sivashinsky(count, KS_WINDOW, rng, points=points)[..., None]).float()
    past, truth = fields[:, :HISTORY], fields[:, HISTORY:]
    sized = model if points == KS_POINTS else model.at_grid(points)
    members = sample_fields(sized, history=past, num_members=MEMBERS, num_frames=truth.shape[1])
    errors, still = (relative_errors(u, truth) for u in (members.mean(1), past[:, -1:]))
    return {
        "mean": float(errors.mean()),
        "median": float(errors.median()),
        "persistence": float(still.mean()),
        "spread_skill": float(spread_skill(members, truth)),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """See the module."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.own_grids", description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=120.0, help="CPU seconds of training")
    parser.add_argument("--work", type=Path, default=Path("out/own-grids"), help="folder for data and the run")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    run = given.work / f"run-{given.seconds:g}"
    if not run.exists():
        enma_fast.train(write_set("ks", given.work) / "ks-train.h5", run, minutes=given.seconds / 60, seed=0)
    model = enma_fast.load_model(run)
    rows = []
    for points in POINTS:
        found = row(model, points)
        name = f"{points}, as in training" if points == KS_POINTS else str(points)
        errors = [f"{found[key]:.1e}" for key in ("mean", "median")]
        rows.append([name, *errors, f"{found['persistence']:.2f}", f"{found['spread_skill']:.2f}"])
    print(markdown_table(["points", "relative error", "its median", "persistence", "spread/skill"], rows))


if __name__ == "__main__":
    main()
