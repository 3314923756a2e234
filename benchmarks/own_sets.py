"""Sets of fields for `benchmarks.own_data`, by short solvers in numpy that share no code with the models.

| set       | equation                                                                                          |
|-----------|---------------------------------------------------------------------------------------------------|
| `ks`      | Kuramoto-Sivashinsky, `u_t = -u u_x - u_xx - u_xxxx`, periodic; training data are one series      |
| `burgers` | `u_t = -u u_x + nu u_xx + f(x)`, periodic; each trajectory has its own `nu` and `f`, not told      |
| `burgers-told` | the same trajectories, whose `nu` and `f` are known inputs                                    |
| `shallow` | rotating shallow water, `H_t = -div(H v)`, `v_t = -v.grad v - k x v - grad H`, walls in y          |

Sets of the package's equations are by its own solvers. All compute in float64, and the files hold float32. Shape
suffixes: B trajectories, T frames, F waves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType

import numpy as np

from enma_fast.data import FIRST_FRAME, SERIES, write
from enma_fast.data.equations import EQUATIONS
from enma_fast.data.generator import generate

SPLITS = ("train", "test-in")
KS_POINTS, KS_LENGTH, KS_STEP = 128, 64.0, 1.0
# Frames before the first that is kept: by then the series has forgotten how it began.
KS_SPIN_UP = 100
BURGERS_POINTS, BURGERS_STEP = 128, 0.1
SHALLOW_GRID, SHALLOW_LENGTHS, SHALLOW_STEP = (96, 64), (6.0, 4.0), 0.15
_VISCOSITY = 2e-3
# Frames of the windows that the series of Kuramoto-Sivashinsky is cut into, and of its test trajectories.
KS_WINDOW = 12


def write_set(name: str, folder: Path, *, seed: int = 0) -> Path:
    """Write `NAME-train.h5` and `NAME-test-in.h5` into a folder, if they are not there, and return the folder."""
    for i, split in enumerate(SPLITS):
        if not (path := folder / f"{name}-{split}.h5").is_file():
            folder.mkdir(parents=True, exist_ok=True)
            SETS[name](path, split, np.random.default_rng([seed, i]))
    return folder


def kuramoto_sivashinsky(
    series: int,
    frames: int,
    rng: np.random.Generator,
    *,
    points: int = KS_POINTS,
    spin_up: int = KS_SPIN_UP,
    steps: int = 40,
) -> np.ndarray:
    """Frames `[B, T, points]` of series after their spin-up, by so many steps a frame; the spacing stays the same."""
    k_F = 2 * np.pi / (KS_LENGTH * points / KS_POINTS) * np.arange(points // 2 + 1)
    kept_F = k_F < 2 / 3 * k_F[-1]

    def slope(v_BF: np.ndarray) -> np.ndarray:
        u = np.fft.irfft(v_BF * kept_F, n=points)
        return -0.5j * k_F * kept_F * np.fft.rfft(u * u)

    v_BF = np.fft.rfft(0.1 * rng.standard_normal((series, points))) * (np.arange(len(k_F)) < 12)
    v_BF[:, 0] = 0
    found = _frames(v_BF, k_F**2 - k_F**4, slope, KS_STEP / steps, steps, spin_up + frames)
    return np.fft.irfft(found[:, spin_up:], n=points)


def burgers(
    trajectories: int, rng: np.random.Generator, *, frames: int = 20, steps: int = 32
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Frames `[B, T, 128]`, every fourth of 512 points, and their `nu [B, 1, 1]` and `f [B, 1, 128]`.

    `nu` is log-uniform in [0.01, 0.1], and `f` has three waves up to 0.5.
    """
    fine = 4 * BURGERS_POINTS
    x, k_F = 2 * np.pi / fine * np.arange(fine), np.arange(fine // 2 + 1)
    kept_F = k_F < fine / 3

    def waves(most: int, amplitude: Callable[[int], np.ndarray]) -> np.ndarray:
        return sum(
            amplitude(n) * np.sin(n * x + rng.uniform(0, 2 * np.pi, (trajectories, 1))) for n in range(1, most + 1)
        )

    nu_B1 = np.exp(rng.uniform(np.log(0.01), np.log(0.1), (trajectories, 1)))
    start = waves(4, lambda n: rng.normal(size=(trajectories, 1)) / n)
    force = waves(3, lambda n: rng.uniform(-0.5, 0.5, (trajectories, 1)))
    force_BF = np.fft.rfft(force)

    def slope(v_BF: np.ndarray) -> np.ndarray:
        u = np.fft.irfft(v_BF * kept_F, n=fine)
        return -0.5j * k_F * kept_F * np.fft.rfft(u * u) + force_BF

    found = _frames(np.fft.rfft(start), -nu_B1 * k_F**2, slope, BURGERS_STEP / steps, steps, frames)
    step = fine // BURGERS_POINTS
    return np.fft.irfft(found, n=fine)[..., ::step], {"nu": nu_B1[..., None], "f": force[:, None, ::step]}


def _frames(
    v_BF: np.ndarray, linear_BF: np.ndarray, slope: Callable[[np.ndarray], np.ndarray], h: float, steps: int, count: int
) -> np.ndarray:
    """Frames `[B, T, F]` of `v_t = linear v + slope(v)`: Runge-Kutta of order 4 with the linear part exact."""
    half = np.exp(linear_BF * h / 2)
    frames = [v_BF]
    for _ in range(count - 1):
        for _ in range(steps):
            a = slope(v_BF)
            b = slope(half * (v_BF + h / 2 * a))
            c = slope(half * v_BF + h / 2 * b)
            d = slope(half * (half * v_BF + h * c))
            v_BF = half * (half * (v_BF + h / 6 * a) + h / 3 * (b + c)) + h / 6 * d
        frames.append(v_BF)
    return np.stack(frames, 1)


def shallow_water(trajectories: int, rng: np.random.Generator, *, frames: int = 20, steps: int = 8) -> np.ndarray:
    """Frames `[B, T, 96, 64, 3]` of height above its mean of 1 and both velocities; gravity and rotation are 1.

    Four humps of height on a jet. Slip walls stand half a cell outside the grid: there `v` is odd, and all else even.
    """
    dx, dy = (length / n for length, n in zip(SHALLOW_LENGTHS, SHALLOW_GRID, strict=True))
    x, y = ((np.arange(n) + 0.5) * d for n, d in zip(SHALLOW_GRID, (dx, dy), strict=True))

    def uniform(low: float, high: float) -> np.ndarray:
        return rng.uniform(low, high, (trajectories, 1, 1))

    height = np.ones((trajectories, *SHALLOW_GRID))
    for _ in range(4):
        away = (x[:, None] - uniform(0, SHALLOW_LENGTHS[0]) + 3) % SHALLOW_LENGTHS[0] - 3
        square = away**2 + (y - uniform(0.4, 3.6)) ** 2
        height += uniform(-0.2, 0.2) * np.exp(-square / (2 * uniform(0.2, 0.5) ** 2))
    jet = uniform(-0.3, 0.3) * np.sin(np.pi * y / SHALLOW_LENGTHS[1]) * np.ones_like(height)
    state = np.stack([height, jet, np.zeros_like(height)])

    def along_x(q: np.ndarray) -> np.ndarray:
        return (np.roll(q, -1, -2) - np.roll(q, 1, -2)) / (2 * dx)

    def along_y(q: np.ndarray, sign: int) -> np.ndarray:
        ghosts = np.concatenate([sign * q[..., :1], q, sign * q[..., -1:]], -1)
        return (ghosts[..., 2:] - ghosts[..., :-2]) / (2 * dy)

    def diffused(q: np.ndarray, sign: int) -> np.ndarray:
        ghosts = np.concatenate([sign * q[..., :1], q, sign * q[..., -1:]], -1)
        second = (ghosts[..., 2:] - 2 * q + ghosts[..., :-2]) / dy**2
        return _VISCOSITY * (second + (np.roll(q, -1, -2) - 2 * q + np.roll(q, 1, -2)) / dx**2)

    def slope(state: np.ndarray) -> np.ndarray:
        h, u, v = state
        # As a divergence: what leaves a cell enters its neighbour, so mass is conserved to rounding.
        return np.stack(
            [
                diffused(h, 1) - along_x(h * u) - along_y(h * v, -1),
                diffused(u, 1) - u * along_x(u) - v * along_y(u, 1) + v - along_x(h),
                diffused(v, -1) - u * along_x(v) - v * along_y(v, -1) - u - along_y(h, 1),
            ]
        )

    found, h = [state], SHALLOW_STEP / steps
    for _ in range(frames - 1):
        for _ in range(steps):
            a = slope(state)
            b = slope(state + h / 2 * a)
            c = slope(state + h / 2 * b)
            state = state + h / 6 * (a + 2 * b + 2 * c + slope(state + h * c))
        found.append(state)
    fields = np.moveaxis(np.stack(found, 2), 0, -1)
    return fields - np.array([1.0, 0, 0])


def _write_ks(path: Path, split: str, rng: np.random.Generator) -> None:
    """Training: all windows of one series of 600 frames. Test: the first frames of 60 other series."""
    count = {"train": 600, "test-in": KS_WINDOW}[split]
    found = kuramoto_sivashinsky(1 if split == "train" else 60, count, rng)
    series = np.arange(len(found))
    first = np.zeros(len(found), dtype=int)
    if split == "train":
        first = np.arange(count - KS_WINDOW + 1)
        found, series = np.stack([found[0, i : i + KS_WINDOW] for i in first]), np.zeros(len(first), dtype=int)
    scalars = {SERIES: series, FIRST_FRAME: first}
    x = KS_LENGTH / KS_POINTS * np.arange(KS_POINTS)
    _write(path, {"u": found}, step=KS_STEP, coords=[x], periodic=[True], scalars=scalars)


def _write_burgers(path: Path, split: str, rng: np.random.Generator, *, told: bool = False) -> None:
    found, known = burgers({"train": 1000, "test-in": 60}[split], rng)
    x = 2 * np.pi / BURGERS_POINTS * np.arange(BURGERS_POINTS)
    _write(
        path,
        {"u": found},
        step=BURGERS_STEP,
        coords=[x],
        periodic=[True],
        scalars={"nu": known["nu"].ravel()} if told else {},
        known=known if told else {},
    )


def _write_shallow(path: Path, split: str, rng: np.random.Generator) -> None:
    # A few at a time stay in the cache.
    parts = [shallow_water(4, rng) for _ in range({"train": 160, "test-in": 20}[split] // 4)]
    channels = dict(zip("huv", np.moveaxis(np.concatenate(parts), -1, 0), strict=True))
    coords = [(np.arange(n) + 0.5) * length / n for n, length in zip(SHALLOW_GRID, SHALLOW_LENGTHS, strict=True)]
    _write(path, channels, step=SHALLOW_STEP, coords=coords, periodic=[True, False], scalars={})


def _write_equation(path: Path, split: str, rng: np.random.Generator, *, equation: str) -> None:
    """Environments of 10 trajectories of an equation of the package, whose parameters no method is told.

    Its own seed makes the splits, as only those of one seed are sure to have different environments.
    """
    del rng
    made = generate(equation, split, groups={"train": 60, "test-in": 12}[split], out_dir=path.parent)
    assert made == path


def _write(
    path: Path,
    channels: dict[str, np.ndarray],
    *,
    step: float,
    coords: list[np.ndarray],
    periodic: list[bool],
    scalars: dict[str, np.ndarray],
    known: Mapping[str, np.ndarray] = MappingProxyType({}),
) -> None:
    fields = {name: values.astype(np.float32) for name, values in channels.items()}
    count, frames = next(iter(fields.values())).shape[:2]
    write(
        path,
        name=path.stem,
        times=step * np.arange(frames),
        coords=coords,
        periodic=periodic,
        scalars={"environment": np.arange(count), **scalars},
        t0_fields=fields,
        known=known,
    )


SETS = {
    "ks": _write_ks,
    "burgers": _write_burgers,
    "burgers-told": partial(_write_burgers, told=True),
    "shallow": _write_shallow,
    **{name: partial(_write_equation, equation=name) for name in EQUATIONS},
}
