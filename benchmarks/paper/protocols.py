"""The cases that tables are made of: what a method sees of each trajectory, what it forecasts, and how that is scored.

| protocol      | data                   | members | the method sees                              | scores           |
|---------------|------------------------|---------|----------------------------------------------|------------------|
| `whole`       | all trajectories       | 16      | as the task says (`forecasting.file_forecast`) | `metrics.SCORES` |
| `calibration` | the first 120          | 64      | the same                                     | the same         |
| `shipped`     | the shipped test files | 16      | the same                                     | the same         |
| `zebra`       | the first 120          | 20      | frame 0, and 10 frames of another trajectory | `ZebraScores`    |
| `features`    | all trajectories       | 1       | another trajectory                           | `features`       |

Models that see scattered points have a protocol for each share of them (`scattered`).

`zebra` is how Zebra's authors measure uncertainty (`tests/test_uncertainty_1d_rmsce.py` of `LouisSerrano/zebra`): one
context, one frame, 9 frames forecast, the CRPS of `properscoring`, and the RMSCE of uncertainty-toolbox for batches of
10 trajectories, averaged.

A method is a function of `evaluation.baselines.Observations`, so models and baselines are measured alike.

Shape suffixes: B trajectories, K members, T frames, c channels; `*x` points.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from enma_fast.data import FieldFile, dataset_split, read
from enma_fast.errors import EnmaError
from enma_fast.evaluation.baselines import Method, Observations
from enma_fast.evaluation.metrics import Scores, crps, relative_l2, rmsce
from enma_fast.evaluation.physics import Physics
from enma_fast.evaluation.solver import solver_fidelity
from enma_fast.forecasting.members import sample_fields
from enma_fast.forecasting.request import GENERATION, HISTORY, INITIAL_VALUE, TEMPORAL, Task
from enma_fast.models.model import Model
from enma_fast.utils.text import counted

from .features import distribution_scores, training_file

# Scores that a row of a score file keeps.
KEPT = ("rel_l2", "rel_l2_median", "rel_l2_q90", "rel_l2_member", "crps", "crps_relative", "rmsce", "spread_skill")
# Trajectories of a file that calibration and generation are measured on.
CALIBRATED = 120
# Zebra's protocol: frames of a window and of a context, and trajectories whose calibration is one number.
ZEBRA_WINDOW, ZEBRA_BATCH = 10, 10
# Values of forecasts that are in memory at a time.
_MOST_VALUES = 1 << 24


@dataclass(frozen=True, kw_only=True)
class Case:
    """One row of a score file before it is measured."""

    protocol: str
    task: Task
    split: str
    members: int
    limit: int | None = None

    @property
    def window(self) -> int | None:
        """Frames that are used of each trajectory, observed ones included; None for all."""
        return ZEBRA_WINDOW if self.protocol == "zebra" else None


CASES: tuple[Case, ...] = (
    *(
        Case(protocol=protocol, task=task, split=split, members=16)
        for protocol in ("whole", "shipped")
        for task in (TEMPORAL, INITIAL_VALUE)
        for split in ("test-in", "test-out")
    ),
    *(
        Case(protocol="calibration", task=task, split="test-in", members=64, limit=CALIBRATED)
        for task in (TEMPORAL, INITIAL_VALUE)
    ),
    Case(protocol="zebra", task=INITIAL_VALUE, split="test-in", members=20, limit=CALIBRATED),
    Case(protocol="whole", task=GENERATION, split="test-in", members=1, limit=CALIBRATED),
    Case(protocol="features", task=GENERATION, split="test-in", members=1),
)


def of_model(model: Model) -> Method:
    """A model as a method, with its own settings of the sampler."""

    def forecast(given: Observations) -> Tensor:
        return sample_fields(
            model,
            given.history,
            context=given.context,
            warn=False,
            num_members=given.num_members,
            num_frames=given.num_frames,
            trajectories=given.trajectories,
            seed=given.seed,
            task=TEMPORAL if given.context is None else GENERATION if given.history is None else INITIAL_VALUE,
        )

    return forecast


def measure(
    method: Method, data: FieldFile, case: Case, *, seed: int = 0, progress: Callable[[int, int], None] | None = None
) -> dict[str, Any]:
    """Measure a method in one case.

    Parameters
    ----------
    method : a function of `Observations`
    data : the whole test file of the case's split, or the shipped one for the protocol `shipped`; for `features` the
        training file is in the same folder
    seed : of the noise
    progress : called with (trajectories done, trajectories)

    Returns
    -------
    dict
        `protocol`, `task`, `split`, `members`, `trajectories`, `frames` (forecast), the scores of `KEPT` that the
        protocol defines, `physics` (`physics.Physics.result`), `solver_fidelity` of generated trajectories (`fpd`,
        `precision` and `recall` in its place for `features`), and `cpu_seconds_per_member` (of the method alone, over
        all threads: what else the machine does hardly changes it).

    Raises
    ------
    EnmaError
        If no frame is left to forecast after the observed ones, or if the protocol is `features`, and there is no
        training file or no feature network of the equation.
    """
    numbers = data.trajectories[: case.limit]
    count = len(numbers)
    total = min(case.window or len(data.times), len(data.times))
    observed = HISTORY if case.task.num_observed is None else case.task.num_observed
    if total <= observed:
        raise EnmaError(
            f"{data.path}: holds {counted(total, 'frame')}, of which a method sees {observed} in the task "
            f"{case.task.name}; give a file of at least {observed + 1}"
        )
    scores: Scores | ZebraScores = ZebraScores() if case.protocol == "zebra" else Scores()
    equation, _ = dataset_split(data.name)
    physics = Physics(equation, data.domain, len(data.channels))
    seconds, members, first_members = 0.0, 0, []
    for rows in _batches(count, case, total - observed, math.prod(data.u.shape[2:])):
        trajectories = [numbers[place] for place in rows]
        others = data.places([data.context_for(i) for i in trajectories]) if case.task.needs_context else None
        given = Observations(
            history=data.u[rows, :observed] if observed else None,
            context=None if others is None else data.u[others, :total],
            num_frames=total - observed,
            num_members=case.members,
            trajectories=trajectories,
            seed=seed,
        )
        clock = time.process_time()
        samples = torch.as_tensor(method(given))
        seconds += time.process_time() - clock
        members += samples.shape[0] * samples.shape[1]
        scores.update(samples, data.u[rows, observed:total], given.history)
        for place, each in zip(rows, samples.numpy(force=True), strict=True):
            physics.add([each], data.u[place, observed:total], data.u[place, :observed])
        if not case.task.has_truth:
            first_members.append(samples[:, 0].numpy(force=True))
        if progress is not None:
            progress(rows[-1] + 1, count)
    result = scores.result()
    row: dict[str, Any] = {
        "protocol": case.protocol,
        "task": case.task.name,
        "split": case.split,
        "members": members // count,
        "trajectories": count,
        "frames": total - observed,
    }
    if case.task.has_truth:
        row |= {name: result[name] for name in KEPT if result.get(name) is not None}
    elif case.protocol == "features":
        train = training_file(equation, data.path.parent)
        if train is None:
            raise EnmaError(f"{data.path}: lacks {equation}-train.h5 beside it, or {equation} a feature network")
        row |= distribution_scores(equation, read(train), np.concatenate(first_members))
    else:
        distance = solver_fidelity(equation, data, numbers, np.concatenate(first_members))
        row |= {} if distance is None else {"solver_fidelity": distance}
    found_physics = physics.result(has_truth=case.task.has_truth)
    return {**row, "physics": found_physics, "cpu_seconds_per_member": seconds / members}


def _batches(count: int, case: Case, frames: int, points: int) -> Iterator[list[int]]:
    """Places of trajectories whose forecasts fit in memory together, at most 16; 10 for Zebra's calibration."""
    at_once = max(1, min(16, _MOST_VALUES // (case.members * frames * points)))
    size = ZEBRA_BATCH if case.protocol == "zebra" else at_once
    for first in range(0, count, size):
        yield list(range(first, min(first + size, count)))


class ZebraScores:
    """Zebra's scores: `crps` not fair, `rmsce` of each batch, both averaged over trajectories, beside our `rel_l2`."""

    def __init__(self) -> None:
        self._errors: list[float] = []
        self._crps = self._rmsce = 0.0

    def update(self, ensemble: Tensor, truth: np.ndarray, observed: np.ndarray | None = None) -> None:
        """Add a batch: `ensemble` `[B, K, T, *x, c]` and `truth` `[B, T, *x, c]`; `observed` is not used."""
        self._errors += relative_l2(ensemble.mean(1), truth).tolist()
        self._crps += len(truth) * float(crps(ensemble, truth, fair=False))
        self._rmsce += len(truth) * (float(rmsce(ensemble, truth)) if ensemble.shape[1] > 1 else math.nan)

    def result(self) -> dict[str, float | None]:
        """`rel_l2`, its median `rel_l2_median`, `crps`, and `rmsce` (None of one member)."""
        count = len(self._errors)
        calibration = self._rmsce / count
        return {
            "rel_l2": float(np.mean(self._errors)),
            "rel_l2_median": float(np.median(self._errors)),
            "crps": self._crps / count,
            "rmsce": None if math.isnan(calibration) else calibration,
        }
