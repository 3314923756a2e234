"""Noise and token order: every random word is a pure function of (seed, member, frame, mask step, token, channel).

So member k has the same noise alone, in any chunk, on any rank and after a run is resumed. No value is read back from
the device, so everything here can be captured in a CUDA graph; seed, frame and mask step may then be int64 tensors that
are overwritten between replays.

`ops/philox_normal.py` documents the layout of the normals. Five mask steps are reserved for other words::

    0xFFFFFFFF  token order:      key (seed, member), counter (0, token, 0xFFFFFFFF, frame), word w0
    0xFFFFFFFE  trajectory seed:  key (seed mod 2^32, seed >> 32),
                                  counter (index mod 2^32, index >> 32, 0xFFFFFFFE, 0), word w0
    0xFFFFFFFD  what scattered observations leave open: normals with the number of the draw as member, and the wave as
    0xFFFFFFFC  token; the same of a context (`forecasting/analysis.py`)
    0xFFFFFFFB  frame 0 as a random field: normals of frame 0 with the wave as token (`models/decoders/gaussian.py`)
"""

from __future__ import annotations

from ..errors import EnmaError
from ..ops.philox_normal import MASK32, philox

TRAJECTORY_STEP = 0xFFFFFFFE


def trajectory_seed(seed: int, index: int) -> int:
    """Seed of trajectory number `index` of a file, so that each trajectory has independent noise.

    `seed` is that of the whole run, taken modulo 2^64, and `index` is `0 .. 2^64 - 1`, or an `EnmaError` is raised. The
    result is in `0 .. 2^32 - 1` and differs from `seed` for index 0 too. Among `n` trajectories, some two share a seed
    with probability about `n^2 / 2^33`.
    """
    if not 0 <= index < 2**64:
        raise EnmaError(f"trajectory index is {index}: it must be between 0 and 2^64 - 1")
    return int(philox(index & MASK32, index >> 32, TRAJECTORY_STEP, 0, seed & MASK32, (seed >> 32) & MASK32)[0])
