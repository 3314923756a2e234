"""All scores of the trajectories of one task: of all channels together, of each channel, and of the physics.

Shape suffixes: B trajectories, K members, T forecast frames.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from ..data import dataset_split
from ..forecasting.file_forecast import FileForecast
from .channel_scores import ChannelScores
from .metrics import SCORES, Scores
from .metrics.arrays import Array, where_there
from .physics import Physics

# In a state, the names of what belongs to single channels begin so.
_OF_CHANNELS = "channels."


class TaskScores:
    """Scores of members that are sampled or read; without `physics` (of fields too large for it) that part is None."""

    def __init__(self, channels: Sequence[str], physics: Physics | None) -> None:
        self.all, self.of_channels, self.physics = Scores(), ChannelScores(channels), physics

    @property
    def num_trajectories(self) -> int:
        """Trajectories so far."""
        return self.all.num_trajectories

    def state(self) -> dict[str, np.ndarray]:
        """All but the physics as plain arrays, for `restore` in another process."""
        return self.all.state() | {f"{_OF_CHANNELS}{name}": x for name, x in self.of_channels.state().items()}

    def restore(self, state: Mapping[str, Array]) -> None:
        """Take a state; further updates give the same bits. `EnmaError` if it is of others."""
        own = {name: values for name, values in state.items() if not name.startswith(_OF_CHANNELS)}
        others = {name.removeprefix(_OF_CHANNELS): values for name, values in state.items() if name not in own}
        scores, of_channels = Scores.restore(own), ChannelScores.restore(others, self.of_channels.channels)
        self.all, self.of_channels = scores, of_channels

    def result(self, units: Mapping[str, str], *, has_truth: bool) -> dict[str, Any]:
        """Scores as plain data: those of `Scores.result`, `channels`, `physics` and `rank_histogram`."""
        scores = self.all.result()
        if not has_truth:
            leave_out_errors(scores)
        return {
            **scores,
            "channels": self.of_channels.result(units, has_truth=has_truth),
            "physics": None if self.physics is None else self.physics.result(has_truth=has_truth),
            "rank_histogram": self.all.rank_histogram().tolist() if self.all.num_members > 1 else None,
        }


class FileScores(TaskScores):
    """A sink of the forecasts of a field file: its frames are the truth."""

    def __init__(self, forecast: FileForecast) -> None:
        data = forecast.data
        equation, _ = dataset_split(data.name)
        super().__init__(data.channels, Physics(equation, data.domain, len(data.channels)))
        self._mask = data.mask
        self._forecast, self._places = forecast, data.places(forecast.trajectories)
        # Of generated trajectories the first members, `[T, *x, c]`.
        self.first_members: list[np.ndarray] = []

    def add(self, trajectory: int, members: range, values: torch.Tensor) -> None:
        """Take all members of a trajectory; trajectories come in order."""
        field, seen = self._forecast.data.u[self._places[trajectory]], self._forecast.num_observed
        truth, on_cpu = field[seen : self._forecast.num_total], values.cpu()
        observed = field[None, :seen] if seen else None
        assert self.physics is not None
        self.physics.add([on_cpu.numpy(force=True)], truth, field[:seen])
        members_1KTx, truth_1Tx = values[None], truth[None]
        self.of_channels.update(on_cpu[None], truth_1Tx, observed, mask=self._mask)
        if self._mask is not None:
            members_1KTx, truth_1Tx = (where_there(u, self._mask) for u in (members_1KTx, truth_1Tx))
            observed = None if observed is None else where_there(observed, self._mask)
        self.all.update(members_1KTx, truth_1Tx, observed)
        if not self._forecast.request.task.has_truth:
            self.first_members.append(on_cpu[0].numpy())


def leave_out_errors(result: dict[str, Any]) -> None:
    """Set the errors against a truth to None, those of each frame too: generated trajectories have none."""
    errors, per_frame = [name for name, score in SCORES.items() if score.needs_truth], result["per_frame"]
    result |= dict.fromkeys(errors)
    per_frame |= {name: [None] * len(values) for name, values in per_frame.items() if name in errors}
