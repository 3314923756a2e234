"""Cheaper settings of the sampler: what each saves and what it costs in accuracy.

    python -m benchmarks.pareto --checkpoint combined-small --threads 2 --json --out pareto.png

Every setting forecasts the same trajectories of the shipped test file with the same noise, and is scored. Then all of
them forecast one chunk of those trajectories in turn (A B C A B C ...), from observed fields to forecast fields;
seconds are the median over rounds. Settings that differ in the temperature only do the same work and share one time.
Own settings are also sampled by plain PyTorch (eager), and by it with masked transformer and heads under
`torch.compile` (compiled; the minutes that this takes are not counted). All encode and decode alike.
`--beside` adds other models with their own settings, such as a one-pass model, and `--solver` a line for the numerical
solver with parameters fitted to the observed frames (`benchmarks/classical.py`).
A setting is in the Pareto set of an error (to five digits) if no other is as good in both seconds and error and better
in one.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import classical
from benchmarks.harness import interleave, machine
from benchmarks.trajectory import compiled_copy
from enma_fast.config import SamplingConfig
from enma_fast.data import FieldFile, read
from enma_fast.drawing.plots import save_figure
from enma_fast.errors import EnmaError
from enma_fast.evaluation.scoring import score_forecast
from enma_fast.forecasting.file_forecast import FileForecast
from enma_fast.forecasting.request import ForecastRequest
from enma_fast.models.checkpoint import PRETRAINED, load_model
from enma_fast.models.model import Model
from enma_fast.utils.extras import load_extra

OWN = "own"
# The same settings by plain PyTorch, and by it with masked transformer and heads compiled.
EAGER, COMPILED = ", eager", ", compiled"
ERRORS = ("rel_l2", "crps")


def grid(own: SamplingConfig, *, one_pass: bool = False) -> dict[str, SamplingConfig]:
    """The model's own settings first, then what is cheaper or cooler; none stands twice.

    A one-pass model has no steps to save.
    """
    most, steps = own.mask_steps, own.flow_steps
    few = {n for n in (1, 2, 3, 4, 6, 10) if n < steps}
    masks = sorted({m for m in (1, 2, most // 2, 3 * most // 4) if 1 <= m < most})
    changes: list[dict[str, Any]] = [{}]
    if not one_pass:
        changes += [{"flow_steps": n} for n in sorted(few)]
        changes += [{"mask_steps": m} for m in masks]
        changes += [{"mask_steps": m, "flow_steps": n} for m in masks for n in sorted(few & {1, 2})]
    changes += [{"temperature": own.temperature * share} for share in (0.0, 0.5, 0.75, 0.9)]
    found: dict[str, SamplingConfig] = {}
    for change in changes:
        settings = dataclasses.replace(own, **change)
        if settings not in found.values():
            found[label(own, settings)] = settings
    return found


def label(own: SamplingConfig, settings: SamplingConfig) -> str:
    """The settings that differ from the model's own, in a few words."""
    words = []
    if settings.mask_steps != own.mask_steps:
        words.append(f"mask {settings.mask_steps}")
    if settings.flow_steps != own.flow_steps:
        words.append(f"flow {settings.flow_steps}")
    if settings.temperature != own.temperature:
        words.append(f"temperature {settings.temperature:.3g}")
    return ", ".join(words) or OWN


def pareto_set(points: Mapping[str, Sequence[float]]) -> list[str]:
    """Names of the points, all coordinates the lower the better, that no other dominates.

    One point dominates another if it is nowhere worse and somewhere better; equal points do not dominate each other.
    """

    def dominates(p: Sequence[float], q: Sequence[float]) -> bool:
        return all(a <= b for a, b in zip(p, q, strict=True)) and any(a < b for a, b in zip(p, q, strict=True))

    return [name for name, q in points.items() if not any(dominates(p, q) for p in points.values())]


def front(table: Sequence[Mapping[str, Any]], error: str) -> list[str]:
    """The Pareto set of seconds and an error, whose rounding by one implementation or another makes no better point."""
    return pareto_set({row["name"]: (row["seconds_per_member"], float(f"{row[error]:.5g}")) for row in table})


def rows_by_environment(environment: np.ndarray | None, count: int, limit: int) -> list[int]:
    """`limit` of `count` trajectories, as evenly as can be over the environments, in order."""
    group = np.zeros(count, dtype=np.int64) if environment is None else environment
    place = [int((group[:i] == group[i]).sum()) for i in range(count)]
    return sorted(sorted(range(count), key=lambda i: (place[i], i))[:limit])


def compiled_model(model: Model) -> Model:
    """A copy whose masked transformer and heads are compiled; the first forecast compiles them."""
    twin = copy.deepcopy(model)
    twin.dynamics = compiled_copy(model.dynamics)
    return twin


def measure(
    model: Model,
    data: FieldFile,
    *,
    members: int,
    limit: int,
    rounds: int,
    seed: int,
    chunk: int,
    beside: Sequence[Model] = (),
    solver: bool = False,
    compiled: bool = False,
) -> dict[str, Any]:
    """Scores and times of all settings, and of other models' own: the result without the machine."""
    rows = rows_by_environment(data.environment, len(data), limit)
    settings = grid(model.config.sampling, one_pass="flow_steps" not in model.config.step.settings)
    models = dict.fromkeys(settings, model)
    for other in beside:
        name = other.config.name
        if name in models:
            raise EnmaError(f"--beside: two points are named {name!r}; give each model once")
        settings[name], models[name] = other.config.sampling, other
    for name in (OWN, *(other.config.name for other in beside)):
        settings[f"{name}{EAGER}"], models[f"{name}{EAGER}"] = settings[name], models[name]
        if compiled:
            settings[f"{name}{COMPILED}"], models[f"{name}{COMPILED}"] = settings[name], compiled_model(models[name])
    request = ForecastRequest(num_members=members, seed=seed, chunk=chunk, trajectories=rows)
    backends = {name: "reference" if name.endswith((EAGER, COMPILED)) else None for name in settings}
    forecasts = {
        name: FileForecast(models[name], data, dataclasses.replace(request, settings=chosen, backend=backends[name]))
        for name, chosen in settings.items()
    }
    scores = {name: score_forecast(forecast) for name, forecast in forecasts.items()}

    # The first case of each amount of work stands for all of them.
    work = {
        name: (id(models[name]), backends[name], dataclasses.replace(chosen, temperature=1.0))
        for name, chosen in settings.items()
    }
    timed = {chosen: name for name, chosen in reversed(work.items())}
    part = rows[: max(1, chunk // members)]
    few = {name: dataclasses.replace(forecast.request, trajectories=part) for name, forecast in forecasts.items()}
    runs = {
        name: lambda name=name, forecast=forecast: forecast.sample(few[name]) for name, forecast in forecasts.items()
    }
    seconds = interleave(
        {name: runs[name] for name in settings if name in timed.values()},
        rounds=rounds,
        synchronise=model.latent_mean.is_cuda,
    )

    table = []
    for name in settings:
        each = [s / (len(part) * members) for s in seconds[timed[work[name]]]]
        gain = [a / b for a, b in zip(seconds[OWN], seconds[timed[work[name]]], strict=True)]
        table.append(
            {
                "name": name,
                "decoder": models[name].config.step.kind,
                "sampling": dataclasses.asdict(settings[name]),
                "seconds_per_member": statistics.median(each),
                "seconds_min": min(each),
                "seconds_max": max(each),
                "speedup": statistics.median(gain),
                "speedup_min": min(gain),
                "speedup_max": max(gain),
                **{key: scores[name][key] for key in (*ERRORS, "spread_skill")},
            }
        )
    return {
        "case": "pareto",
        "model": model.config.name,
        "data": data.name,
        "task": "temporal",
        "history": scores[OWN]["history"],
        "num_frames": scores[OWN]["num_frames"],
        "num_trajectories": len(rows),
        "timed_trajectories": len(part),
        "members": members,
        "chunk": chunk,
        "seed": seed,
        "threads": torch.get_num_threads(),
        "rounds": rounds,
        "rows": table,
        "solver": classical.measure(data, rows=rows, observed=scores[OWN]["history"], members=members, seed=seed)
        if solver
        else None,
        "pareto": {error: front(table, error) for error in ERRORS},
    }


def lines(result: dict[str, Any]) -> list[str]:
    """The table for people; a star marks the Pareto set of that error."""
    head = ("", "s/member", "least", "greatest", "speed-up", "rel_l2", "crps", "spread/skill")
    cells = []
    for row in result["rows"]:
        times = (f"{row[key]:.4g}" for key in ("seconds_per_member", "seconds_min", "seconds_max"))
        errors = (f"{row[key]:.4g}" + " *"[row["name"] in result["pareto"][key]] for key in ERRORS)
        skill = "-" if row["spread_skill"] is None else f"{row['spread_skill']:.3f}"
        cells.append((row["name"], *times, f"{row['speedup']:.2f}x", *errors, skill))
    if (row := result["solver"]) is not None:
        times = (f"{row[key]:.4g}" for key in ("seconds_per_member", "seconds_min", "seconds_max"))
        cells.append((row["name"], *times, "-", *(f"{row[key]:.4g}  " for key in ERRORS), f"{row['spread_skill']:.3f}"))
    widths = [max(map(len, column)) for column in zip(head, *cells, strict=True)]
    return [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
        for row in (head, *cells)
    ]


def figure(result: dict[str, Any]) -> Any:
    """Each error, and spread over skill, against seconds per member; Pareto points are named."""
    matplotlib = load_extra("matplotlib", "plots")
    figures, ticker = load_extra("matplotlib.figure", "plots"), load_extra("matplotlib.ticker", "plots")
    rows = {row["name"]: row for row in result["rows"]}
    titles = {"rel_l2": "relative L2 of the mean", "crps": "CRPS", "spread_skill": "spread / skill"}
    style = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.titlelocation": "left"}
    either = [name for name in rows if any(name in front for front in result["pareto"].values())]
    with matplotlib.rc_context(style):
        drawing = figures.Figure(figsize=(15, 5.2), layout="constrained")
        for axes, (key, title) in zip(drawing.subplots(1, 3), titles.items(), strict=True):
            _panel(axes, rows, key, result["pareto"].get(key, either), result["solver"])
            axes.set(title=title, xlabel="seconds per member", xscale="log")
            axes.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
            axes.xaxis.set_major_formatter(ticker.StrMethodFormatter("{x:g}"))
            axes.xaxis.set_minor_locator(ticker.NullLocator())
        threads = f"{result['threads']} thread{'s' * (result['threads'] != 1)}"
        drawing.suptitle(
            f"{result['model']}, {result['data']}: {result['num_trajectories']} trajectories, {result['members']} "
            f"members, {threads}",
            x=0.01,
            ha="left",
        )
    return drawing


def _panel(axes: Any, rows: dict[str, Any], key: str, front: list[str], solver: dict[str, Any] | None) -> None:
    x = {name: row["seconds_per_member"] for name, row in rows.items()}
    y = {name: row[key] for name, row in rows.items() if row[key] is not None}
    front = sorted((name for name in front if name in y), key=lambda name: x[name])
    axes.scatter([x[n] for n in y], list(y.values()), s=18, color="#9aa7b3", label="settings")
    line = "-" if key in ERRORS else ""
    if not line:
        axes.axhline(1.0, color="#999999", linewidth=0.8, linestyle="--")
    # Between two settings there is nothing to have, hence a staircase.
    axes.plot(
        *([values[n] for n in front] for values in (x, y)),
        marker="o",
        linestyle=line,
        drawstyle="steps-post",
        color="#1f6fb4",
        markersize=5,
        label="Pareto set" if line else "in a Pareto set",
    )
    if solver is not None and solver[key] is not None:
        axes.plot(solver["seconds_per_member"], solver[key], "x", color="#222222", label="fitted solver", zorder=3)
    if OWN in y:
        axes.plot(x[OWN], y[OWN], "D", color="#c2452d", markersize=8, label="the model's own", zorder=3)
    for name in dict.fromkeys([*front, OWN]):
        if name in y:
            axes.annotate(
                name,
                (x[name], y[name]),
                xytext=(4, 5),
                textcoords="offset points",
                fontsize=8,
                rotation=50,
                rotation_mode="anchor",
            )
    axes.margins(x=0.12, y=0.25)
    axes.legend(frameon=False, fontsize=8)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.pareto", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", default="combined-small", help="a shipped model by name, or a folder")
    parser.add_argument("--beside", nargs="+", default=[], help="other models, a point each with their own settings")
    parser.add_argument(
        "--solver", action="store_true", help="a line for the numerical solver with fitted parameters (Combined only)"
    )
    parser.add_argument(
        "--no-compile", action="store_true", help="leave out torch.compile, which takes minutes on a CPU"
    )
    parser.add_argument("--members", type=int, default=16)
    parser.add_argument("--limit", type=int, default=60, help="trajectories, evenly over the environments of the file")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--chunk", type=int, default=256, help="trajectories x members sampled at a time")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", action="store_true", help="the last line is one JSON object")
    parser.add_argument("--out", type=Path, help="picture to write: .png, .pdf or .svg")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = load_model(options.checkpoint, device=options.device)
    data = read(PRETRAINED / f"{model.config.dataset}-test-in.h5")
    result = measure(
        model,
        data,
        members=options.members,
        limit=options.limit,
        rounds=options.rounds,
        seed=options.seed,
        chunk=options.chunk,
        beside=[load_model(checkpoint, device=options.device) for checkpoint in options.beside],
        solver=options.solver,
        compiled=not options.no_compile,
    )
    print("\n".join(lines(result)), file=sys.stderr if options.json else sys.stdout)
    if options.json:
        print(json.dumps(result | {"machine": machine()}), flush=True)
    if options.out is not None:
        save_figure(figure(result), options.out)


if __name__ == "__main__":
    main()
