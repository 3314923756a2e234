"""What a method sees of each trajectory of a case."""

from dataclasses import replace

import numpy as np
import pytest

from benchmarks.paper.protocols import Case, measure
from enma_fast.data import PRETRAINED, read, read_numbered
from enma_fast.errors import EnmaError
from enma_fast.evaluation.baselines import Observations
from enma_fast.forecasting.request import INITIAL_VALUE, TEMPORAL, Task


@pytest.mark.parametrize("task", [TEMPORAL, INITIAL_VALUE])
def test_a_method_sees_trajectories_that_were_read_by_number(task: Task) -> None:
    path = PRETRAINED / "combined-test-in.h5"
    whole, part, seen = read(path), read_numbered(path, [2, 3], contexts=True), []

    def method(given: Observations) -> np.ndarray:
        seen.append(given)
        return whole.u[[2, 3], None, 20 - given.num_frames :]

    row = measure(method, part, Case(protocol="whole", task=task, split="test-in", members=1))
    assert (row["trajectories"], row["rel_l2"]) == (2, 0)
    (given,) = seen
    assert given.trajectories == [2, 3]
    assert given.history is not None
    np.testing.assert_array_equal(given.history, whole.u[[2, 3], : given.history.shape[1]])
    if task.needs_context:
        np.testing.assert_array_equal(given.context, whole.u[[whole.context_for(i) for i in (2, 3)]])
    else:
        assert given.context is None


@pytest.mark.parametrize(
    ("task", "frames", "said"),
    [
        (TEMPORAL, 3, "holds"),
        (TEMPORAL, 2, "holds"),
        (INITIAL_VALUE, 1, "holds"),
    ],
)
def test_a_case_without_a_frame_to_forecast_is_refused(task: Task, frames: int, said: str) -> None:
    data = read(PRETRAINED / "combined-test-in.h5")
    data = replace(data, u=data.u[:, :frames], times=data.times[:frames])
    with pytest.raises(EnmaError, match=f"^{data.path}: {said}"):
        measure(lambda given: given.history, data, Case(protocol="whole", task=task, split="test-in", members=1))
