"""Baselines without a model are what their closed forms say."""

from dataclasses import replace

import numpy as np

from enma_fast.data import FieldFile
from enma_fast.evaluation.baselines import BASELINES, Observations, baselines

SEEN, FRAMES = 3, 4


def forecasts(train: FieldFile, u: np.ndarray) -> dict[str, np.ndarray]:
    given = Observations(
        history=u[:, :SEEN], context=None, num_frames=FRAMES, num_members=1, trajectories=range(len(u)), seed=0
    )
    return {name: np.asarray(method(given)) for name, method in baselines(train).items()}


def test_they_repeat_the_last_frame_or_the_mean_of_training(data: FieldFile) -> None:
    # Trajectories a + t b of two amplitudes: their mean at frame t is (mean a) + t (mean b).
    t = np.arange(SEEN + FRAMES, dtype=np.float32)[:, None, None]
    shape = np.array([1.0, -2.0, 0.5], np.float32)[:, None]
    a, b = (np.array(values, np.float32)[:, None, None, None] for values in ([1, 3], [0.5, -0.25]))
    u = (a + b * t) * shape
    train = replace(data, u=u, parameters={}, numbers=None)
    made = forecasts(train, u[1:])
    assert tuple(made) == BASELINES
    np.testing.assert_array_equal(made["persistence"], np.stack([u[1:, 2]] * FRAMES, 1)[:, None])
    expected = (2 + 0.125 * t[SEEN:]) * shape
    np.testing.assert_allclose(made["climatology"], expected[None, None], rtol=1e-6)
    # Windows of a series have no common clock, so the mean is that of frames 0 to 6.
    windows = forecasts(replace(train, parameters={"first_frame": np.arange(2)}), u)["climatology"]
    assert windows.shape == (2, 1, FRAMES, 3, 1)
    np.testing.assert_allclose(windows, np.broadcast_to((2 + 0.125 * 3) * shape, windows.shape), rtol=1e-6)
