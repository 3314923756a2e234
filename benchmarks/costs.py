"""Error against the CPU time of a member: shipped models, and the data's own solver with coarser steps and grids.

    python -m benchmarks.costs --out costs.json        # and costs.png; minutes on one thread

All forecast the shipped test trajectories of each equation. A model sees 3 frames and samples 16 members, encoding and
decoding included; its error is that of their mean. The solver is given what a model has to infer, the parameters, and
starts at frame 0. Its first setting made the data, up to rounding, so that its error is no measure. Settings that
diverge are left out. Seconds are of this process on the processor, the median over rounds that take turns.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.harness import interleave, machine
from benchmarks.rows import save
from enma_fast.data import FieldFile, read
from enma_fast.data.equations import EQUATIONS, advection, combined, gray_scott, vorticity, wave
from enma_fast.data.shipped import shipped_file
from enma_fast.data.spectral import refine
from enma_fast.drawing.plots import save_figure
from enma_fast.evaluation.metrics import relative_l2
from enma_fast.evaluation.scoring import score_forecast
from enma_fast.forecasting.file_forecast import FileForecast
from enma_fast.forecasting.request import ForecastRequest
from enma_fast.models.checkpoint import available, load_model
from enma_fast.utils.extras import load_extra

MEMBERS, OBSERVED = 16, 3
# The model that fits an equation, and the network, of each; one of them may not be shipped.
MODELS = {name: (name.replace("_", "-"), f"{name.replace('_', '-')}-fast") for name in EQUATIONS}
# Beyond this a setting of the solver has diverged.
DIVERGED = 1.0

Solve = Callable[[np.ndarray, dict[str, np.ndarray]], np.ndarray]


def solvers() -> dict[str, dict[str, Solve]]:
    """Settings of each equation's solver: the data's own first."""

    def on_points(u0: np.ndarray, parameters: dict[str, np.ndarray], *, points: int, steps: int) -> np.ndarray:
        start = refine(u0[..., 0].astype(float), points // u0.shape[1], -1)
        return combined.solve(start, parameters, steps_per_frame=steps)[..., None]

    def flow(u0: np.ndarray, parameters: dict[str, np.ndarray], *, steps: float, scale: float) -> np.ndarray:
        spacing = vorticity.FRAME_SPACING
        return vorticity.integrate(
            u0, parameters["nu"], num_frames=vorticity.NUM_FRAMES, spacing=spacing, steps=steps / scale, refine=scale
        )

    return {
        "advection": {"exact": lambda u0, parameters: advection.solve(u0[..., 0], parameters)[..., None]},
        "combined": {
            f"{points} points, {steps} steps": partial(on_points, points=points, steps=steps)
            for points, steps in ((256, 20), (256, 5), (128, 20), (128, 10), (128, 5), (128, 2), (128, 1))
        },
        "gray_scott": {
            f"{steps} steps": partial(gray_scott.solve, steps_per_frame=steps) for steps in (50, 25, 16, 12, 10, 8)
        },
        "wave": {f"{steps} steps": partial(wave.solve, steps_per_frame=steps) for steps in (16, 8, 6, 4, 3, 2)},
        "vorticity": {
            f"steps / {1 / steps:g}, points x {scale:g}": partial(flow, steps=steps, scale=scale)
            for steps, scale in ((1, 1), (1 / 2, 1), (1 / 4, 1), (1 / 2, 3 / 4), (1 / 4, 3 / 4), (1 / 4, 1 / 2))
        },
    }


def error_of(solved: np.ndarray, truth: np.ndarray) -> float:
    """Mean relative L2 error over the frames that models forecast; infinite where the solver diverged."""
    if not np.isfinite(solved).all():
        return math.inf
    return float(relative_l2(solved[:, OBSERVED:], truth[:, OBSERVED:]).mean())


def measure(equation: str, data: FieldFile, *, rounds: int, seed: int = 0) -> list[dict[str, Any]]:
    """A row for each model and setting: its kind, error and seconds."""
    assert data.parameters is not None
    rows: list[dict[str, Any]] = []
    runs: dict[str, Callable[[], Any]] = {}
    shares: dict[str, int] = {}
    parameters = {name: np.asarray(values, np.float64) for name, values in data.parameters.items()}
    for kind, name in zip(("equation", "network"), MODELS[equation], strict=True):
        if name not in available():
            continue
        forecast = FileForecast(load_model(name), data, ForecastRequest(num_members=MEMBERS, seed=seed))
        rows.append({"kind": kind, "name": name, "rel_l2": score_forecast(forecast, warn=False)["rel_l2"]})
        runs[name], shares[name] = partial(forecast.sample, forecast.request), MEMBERS * len(data)
    for name, solve in solvers()[equation].items():
        with np.errstate(all="ignore"):
            error = error_of(solve(data.u[:, 0], parameters), data.u)
        if error < DIVERGED:
            rows.append({"kind": "solver", "name": name, "rel_l2": error})
            runs[name], shares[name] = partial(solve, data.u[:, 0], parameters), len(data)
    seconds = interleave(runs, rounds=rounds, processor=True)
    return [row | {"seconds_per_member": statistics.median(seconds[row["name"]]) / shares[row["name"]]} for row in rows]


def figure(results: dict[str, list[dict[str, Any]]]) -> Any:
    """Error against seconds, a panel for each equation; the data's own setting of the solver is a line."""
    figures, ticker = load_extra("matplotlib.figure", "plots"), load_extra("matplotlib.ticker", "plots")
    looks = {"equation": ("o", "#1f6fb4"), "network": ("s", "#d1762b"), "solver": ("x", "#444444")}
    drawing = figures.Figure(figsize=(13, 3.2), layout="constrained")
    for axes, (equation, rows) in zip(
        drawing.subplots(1, len(results), squeeze=False)[0], results.items(), strict=True
    ):
        for kind, (marker, colour) in looks.items():
            some = [row for row in rows if row["kind"] == kind]
            own, shown = (some[:1], some[1:]) if kind == "solver" else ([], some)
            for row in own:
                axes.axvline(1e3 * row["seconds_per_member"], color=colour, linestyle=":", label="solver of the data")
            label = "solver, coarser" if kind == "solver" else f"model: {kind}"
            places = [1e3 * row["seconds_per_member"] for row in shown], [row["rel_l2"] for row in shown]
            axes.plot(*places, marker, linestyle="", color=colour, label=label if shown else None)
        axes.set(title=equation, xscale="log", yscale="log", xlabel="CPU ms a member")
        axes.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 3)))
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(ticker.StrMethodFormatter("{x:g}"))
            axis.set_minor_formatter(ticker.NullFormatter())
        axes.spines[["top", "right"]].set_visible(False)
        axes.margins(0.15)
    drawing.axes[0].set_ylabel("relative L2 error")
    handles: dict[str, Any] = {}
    for axes in drawing.axes:
        lines, labels = axes.get_legend_handles_labels()
        handles |= dict(zip(labels, lines, strict=True))
    drawing.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=len(handles), frameon=False)
    return drawing


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.costs", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--equations", nargs="+", default=list(MODELS), choices=list(MODELS), metavar="NAME")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--limit", type=int, help="the first trajectories of each file")
    parser.add_argument("--out", type=Path, required=True, help="JSON file; the picture has the same name")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    results = {}
    for equation in options.equations:
        data = read(shipped_file(equation, "test-in"), select=slice(options.limit))
        results[equation] = measure(equation, data, rounds=options.rounds)
        for row in results[equation]:
            print(f"{equation:10}  {json.dumps(row)}", file=sys.stderr)
    rows = [{"equation": equation, **row} for equation, found in results.items() for row in found]
    what = {"case": "costs", "members": MEMBERS, "threads": options.threads, "rounds": options.rounds}
    save([what | {"rows": rows, "machine": machine()}], options.out)
    save_figure(figure(results), options.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
