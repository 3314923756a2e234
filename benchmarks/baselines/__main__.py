"""Train and measure one baseline: `python -m benchmarks.baselines NAME EQUATION --seconds S --seed N --data DIR`.

`own` is no baseline: it is what `enma-fast train FILE --minutes` makes of the training data in as much time. It plans
its steps for time by the clock, where the baselines count processor time, and keeps a part of the trajectories for
validation and test.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.classical import PROBLEMS, ensemble
from benchmarks.paper.protocols import CASES, Case, of_model
from benchmarks.paper.scattered import SHARES, measure_points
from benchmarks.paper.score_files import score_file, write_score_file
from enma_fast.data import FieldFile, count, read
from enma_fast.errors import EnmaError
from enma_fast.evaluation.baselines import Method, Observations, climatology, persistence
from enma_fast.models.checkpoint import load_model
from enma_fast.models.model import Model
from enma_fast.training.own_model import prepare_own, train_own
from enma_fast.training.own_plan import Request
from enma_fast.training.run import data_file

from .scattered import ReadsPoints, measure_points_of
from .training import Network, num_parameters, reference, train, training_data

# Of the protocols, the rows of the paper's table 1: those of a method that reads scattered points.
POINTS = "points"
# The last is no forecast: the test trajectories themselves, as the generated ones of the protocol `features`.
UNTRAINED = ("persistence", "climatology", "solver", "truth")
OWN = "own"


def networks() -> dict[str, Callable[[Any, FieldFile], Network]]:
    """The baselines that are trained, by name."""
    from .fno import Fno
    from .gino import Gino
    from .latent_flow import LatentFlow
    from .transformer import Transformer

    return {"fno": Fno, "gino": Gino, "transformer": Transformer, "latent-flow": LatentFlow}


def solver(equation: str) -> Method:
    """The equation's solver with parameters fitted to the observed frames, or to the context."""
    if equation not in PROBLEMS:
        raise EnmaError(f"solver: the parameters of {equation} are not fitted; use one of {', '.join(PROBLEMS)}")
    problem = PROBLEMS[equation]

    def method(given: Observations) -> np.ndarray:
        assert given.history is not None
        members = [
            ensemble(
                history[..., 0],
                members=given.num_members,
                num_frames=given.num_frames,
                seed=given.seed + number,
                problem=problem,
                context_TX=None if given.context is None else given.context[i, ..., 0],
            )
            for i, (number, history) in enumerate(zip(given.trajectories, given.history, strict=True))
        ]
        return np.stack(members)[..., None].astype(np.float32)

    return method


def untrained(name: str, equation: str, data_dir: Path) -> Method:
    """A baseline that has no weights."""
    if name == "climatology":
        return climatology(training_data(data_dir, equation))
    if name == "truth":
        u = read(data_file(data_dir, equation, "test-in")).u
        return lambda given: u[list(given.trajectories)][:, None]
    return persistence if name == "persistence" else solver(equation)


def cases(tasks: Sequence[str], *, members: int | None, limit: int | None, protocols: Sequence[str] = ()) -> list[Case]:
    """The cases of the tables that a baseline can be measured in, of all protocols or of some; `EnmaError` for none."""
    found = [
        dataclasses.replace(
            case,
            members=case.members if members is None else members,
            limit=case.limit if limit is None else min(limit, case.limit or limit),
        )
        for case in CASES
        if case.task.name in tasks and (not protocols or case.protocol in protocols)
    ]
    if not found and set(protocols) != {POINTS}:
        known = sorted({case.protocol for case in CASES if case.task.name in tasks})
        raise EnmaError(f"--protocols: {', '.join(protocols)} has no case of this method; use of {', '.join(known)}")
    return found


def at_points(
    method: Model | ReadsPoints, equation: str, *, data_dir: Path, limit: int | None, seed: int
) -> list[dict[str, Any]]:
    """Rows of the first so many trajectories of test-in, of which each of `SHARES` of the points is seen."""
    path = data_file(data_dir, equation, "test-in")
    data = read(path, select=range(count(path))[: limit or None])
    measured = measure_points if isinstance(method, Model) else measure_points_of
    return [measured(method, data, share, split="test-in", seed=seed) for share in SHARES]


def own(equation: str, *, data_dir: Path, seconds: float, seed: int) -> tuple[Model, float]:
    """A model that the library trains by itself, and its processor time, with that of planning and scoring."""
    request, begin = Request(minutes=seconds / 60, seed=seed), time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        plan = prepare_own(data_file(data_dir, equation, "train"), Path(folder), request)
        train_own(plan, Path(folder), command=f"python -m benchmarks.baselines {OWN} {equation}")
        return load_model(folder), time.process_time() - begin


def run(
    name: str,
    equation: str,
    *,
    data_dir: Path,
    seconds: float,
    seed: int = 0,
    limit: int | None = None,
    protocols: Sequence[str] = (),
    state: Path | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> dict[str, Any]:
    """Train and measure a baseline, and return its score file."""
    reads_points = name == OWN or hasattr(networks().get(name), "from_points")
    if POINTS in protocols and not reads_points:
        raise EnmaError(f"--protocols: {name} reads no scattered points; leave {POINTS} out")
    shared = {"kind": "baseline", "method": name, "equation": equation, "data_dir": data_dir, "seed": seed}
    if name in UNTRAINED:
        method = untrained(name, equation, data_dir)
        tasks = ("generation",) if name == "truth" else ("temporal", "initial-value")
        # The distance of the truth from the solver's own trajectories is 0.
        protocols = ("features",) if name == "truth" else protocols
        measured = cases(tasks, members=None if name == "solver" else 1, limit=limit, protocols=protocols)
        found = score_file(method, **shared, cpu_seconds=0.0, num_parameters=0, cases=measured, progress=progress)
        return found
    if name == OWN:
        measured = cases(("temporal", "initial-value"), members=None, limit=limit, protocols=protocols)
        model, cpu_seconds = own(equation, data_dir=data_dir, seconds=seconds, seed=seed)
        points = at_points(model, equation, data_dir=data_dir, limit=limit, seed=seed) if POINTS in protocols else []
        return score_file(
            of_model(model),
            **shared | {"kind": "model"},
            known=points,
            cpu_seconds=cpu_seconds,
            num_parameters=num_parameters(model),
            cases=measured,
            progress=progress,
        )
    torch.manual_seed(seed)
    data = training_data(data_dir, equation)
    network = networks()[name](reference(equation), data)
    members = 1 if network.deterministic else None
    measured = cases(network.tasks, members=members, limit=limit, protocols=protocols)
    trained = train(network, data, seconds=seconds, seed=seed, state=state)
    points = []
    if reads_points and (not protocols or POINTS in protocols):
        points = at_points(network, equation, data_dir=data_dir, limit=limit, seed=seed)
    found = score_file(
        network.forecast(),
        **shared,
        known=points,
        cpu_seconds=trained.cpu_seconds,
        num_parameters=num_parameters(network.module),
        cases=measured,
        progress=progress,
    )
    tenth = max(1, trained.steps // 10)
    return found | {
        "steps": trained.steps,
        "batch": network.config.batch,
        "loss_first": float(np.mean(trained.losses[:tenth])),
        "loss_last": float(np.mean(trained.losses[-tenth:])),
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=(*UNTRAINED, *networks(), OWN))
    parser.add_argument("equation")
    parser.add_argument("--data", type=Path, required=True, help="folder of <equation>-train.h5 and the test files")
    parser.add_argument("--seconds", type=float, default=120.0, help="CPU seconds of training")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--state", type=Path, help="file to save the training in every few minutes, and to go on from")
    parser.add_argument("--limit", type=int, help="measure the first so many trajectories of each file")
    parser.add_argument(
        "--protocols",
        nargs="+",
        default=(),
        choices=sorted({case.protocol for case in CASES} | {POINTS}),
        help="measure in these alone (benchmarks.paper.protocols), or from scattered points",
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="folder to write the score file to")
    parser.add_argument("--json", action="store_true", help="the score file as the last line of standard output")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.state is not None and given.name in (*UNTRAINED, OWN):
        sys.exit(f"error: --state is for a network that is trained here; {given.name} is not")
    try:
        found = run(
            given.name,
            given.equation,
            data_dir=given.data,
            seconds=given.seconds,
            seed=given.seed,
            limit=given.limit,
            protocols=given.protocols,
            state=given.state,
            progress=lambda done, total, case: print(case, file=sys.stderr) if done >= total else None,
        )
    except EnmaError as error:
        sys.exit(f"error: {error}")
    if given.out is not None:
        print(write_score_file(found, given.out), file=sys.stderr)
    if given.json:
        print(json.dumps(found, allow_nan=False))
        return
    for row in found["rows"]:
        shown = ", ".join(f"{key} {row[key]:.3g}" for key in ("rel_l2", "rel_l2_median", "crps", "rmsce") if key in row)
        print(f"{row['protocol']}, {row['task']}, {row['split']}: {shown}")


if __name__ == "__main__":
    main()
