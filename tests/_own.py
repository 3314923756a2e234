"""Data that a user could have."""

from pathlib import Path

import numpy as np

from enma_fast.data import write

SPEED, INTERVAL = 0.8, 0.05


def advected(count: int, frames: int = 8, points: int = 16, seed: int = 0, *, speed: float = SPEED) -> np.ndarray:
    """Waves `[count, frames, points]` that move at a constant speed around a ring of length 1."""
    rng = np.random.default_rng(seed)
    x, t = np.arange(points) / points, np.arange(frames) * INTERVAL
    u = np.zeros((count, frames, points))
    for k in (1, 2):
        height, phase = rng.normal(size=(count, 1, 1)) / k, rng.uniform(0, 2 * np.pi, (count, 1, 1))
        u += height * np.sin(2 * np.pi * k * (x - speed * t[:, None]) + phase)
    return u.astype(np.float32)


def steepened(count: int, frames: int = 8, points: int = 16, seed: int = 0) -> np.ndarray:
    """Waves `[count, frames, points]` of two fields that move at speeds of their own, of which no equation is known.

    Only an angle between the two is seen, and it is steep.
    """
    one, other = (
        advected(count, frames, points, seed + i, speed=speed) for i, speed in enumerate((SPEED, 0.5 * SPEED))
    )
    angle = np.unwrap(np.angle(one + 1j * other))
    return np.sin(angle + 0.5 * np.sin(2 * angle)).astype(np.float32)


def save(
    path: Path,
    *fields: np.ndarray,
    environment: list[int] | None = None,
    columns: dict[str, np.ndarray] | None = None,
    **more: object,
) -> Path:
    """A field file of these channels `[n, T, *x]` on rings of length 1, with columns `[n]`."""
    dims = fields[0].ndim - 2
    settings = {
        "times": INTERVAL * np.arange(fields[0].shape[1]),
        "coords": [np.arange(n) / n for n in fields[0].shape[2:]],
        "periodic": [True] * dims,
        "units": None,
        **more,
    }
    return write(
        path,
        name=path.stem,
        scalars={"environment": np.arange(len(fields[0])) if environment is None else environment, **(columns or {})},
        t0_fields={"uvw"[c]: values for c, values in enumerate(fields)},
        **settings,
    )
