"""Streaming: each frame as it is decided, and members that end early by `stop=`."""

import numpy as np

import enma_fast
from enma_fast.data import example

model, history = enma_fast.load_model("combined-fast"), example()
threshold = 0.69


def reached(number: int, frame: np.ndarray) -> np.ndarray:
    """Members, of [K, 128, 1], whose amplitude has reached the threshold: when is what we want to know."""
    return np.abs(frame).max(axis=(1, 2)) >= threshold


options = {"num_members": 64, "seed": 0}
for number, frame in enumerate(enma_fast.stream(model, history, stop=reached, **options)):
    going_on = np.isfinite(frame).all(axis=(1, 2)).sum()
    print(f"frame {number}: {going_on} of 64 members go on")

# The frame that stopped a member stays, later ones are NaN; members that go on have the bits that they have without it.
stopped = enma_fast.forecast(model, history, stop=reached, **options).values
free = enma_fast.forecast(model, history, **options).values
frames = np.isfinite(stopped).all(axis=(2, 3)).sum(axis=1)
kept = np.isfinite(stopped)
assert np.array_equal(stopped[kept], free[kept])
half = np.median(frames)
print(f"members end after {frames.min()} to {frames.max()} of {free.shape[1]} frames, half of them by {half:g}")
