"""Generate a data set: environments from `splits`, solutions from the equation, layout from `well_writing`."""

from __future__ import annotations

import hashlib
import importlib
import io
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import EnmaError, first_line
from ..utils.extras import load_extra
from ..utils.files import read_file, remove, write_file
from ..utils.untrusted import read_arrays, reason
from . import equation as protocol
from . import equations, hdf5, spectral, splits, well_writing
from .equation import Equation, Values
from .equations import EQUATIONS

# The solver always sees whole chunks, so that a trajectory does not depend on how many groups were asked for.
_GROUPS_PER_CHUNK = 8
# Attributes of a generated file, beside those of The Well: the seed, and the key of all that its values depend on.
_SEED, _KEY = "seed", "generated_from"
# Packages whose release may change the last bits of a solution.
_SOLVE_BY = ("enma-fast", "numpy")


def output_path(
    equation: str,
    split: str,
    out_dir: str | Path,
    *,
    groups: int | None = None,
    seed: int = 0,
    force: bool = False,
) -> Path:
    """The file that :func:`generate` makes; `EnmaError` if it would refuse these arguments, or another file is there.

    A file that the same call has made is no other one. With `force` any file may be there.
    """
    path = _path(equation, split, out_dir)
    _, values = _environments(equation, split, groups, seed)
    if not force:
        _is_made(path, _key(_origin(equation, split, seed), values))
    return path


def generate(
    equation: str,
    split: str,
    *,
    groups: int | None = None,
    seed: int = 0,
    out_dir: str | Path,
    force: bool = False,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Solve one split of an equation and write it as `<out_dir>/<equation>-<split>.h5` (The Well layout).

    Trajectories go to the file a few groups at a time, so memory does not grow with their number. What was solved stays
    in a hidden folder next to the file until that is complete, so the same call resumes after an interruption. A file
    that the same call has made before is left as it is: its attributes `seed` and `generated_from` say so.

    Parameters
    ----------
    equation : one of `EQUATIONS`
    split : "train", "val", "test-in" or "test-out"
    groups : environments of 10 trajectories each; by default 1200, 60, 120, 12 (paper, section C), or as many as the
        equation has
    seed : same seed, same arrays (to the last bit on one machine); the first groups do not depend on `groups`
    out_dir : made if missing
    force : replace a file of that name, in one step, also one of the same call; a failed run leaves it alone
    workers : processes that solve, this one among them; the file is the same for any number. Others are spawned, so a
        script that asks for more than one keeps its calls below `if __name__ == "__main__"`
    progress : called with (groups done, groups)

    Raises
    ------
    EnmaError
        On an unknown equation or split, a negative seed, or too few or many groups or workers. On a missing `[data]`
        extra, another file of that name, a solver that fails, or a solution that is not finite.
    """
    if workers < 1:
        raise EnmaError(f"workers is {workers}, at least one process has to solve")
    path = _path(equation, split, out_dir)
    numbers, values = _environments(equation, split, groups, seed)
    origin = _origin(equation, split, seed)
    if not force and _is_made(path, _key(origin, values)):
        return path
    problem, groups = EQUATIONS[equation], len(numbers)
    size = splits.TRAJECTORIES_PER_GROUP
    # Environments out of distribution are numbered after those in distribution.
    environment = numbers + (problem.inside.count if split == "test-out" else 0)
    scalars = {"environment": environment, **values}
    parts = path.with_name(f".{path.stem}.parts")
    chunks = [
        [min(g, groups - 1) for g in range(first, first + _GROUPS_PER_CHUNK)]
        for first in range(0, groups, _GROUPS_PER_CHUNK)
    ]
    files = [_part(parts, origin, chunk, values) for chunk in chunks]
    with hdf5.create_file(path) as file, _helped(workers - 1, equation, split, seed, chunks, values, files):
        well_writing.write_header(
            file,
            name=path.stem,
            times=problem.times,
            coords=problem.coords,
            periodic=problem.periodic,
            scalars={name: np.repeat(value, size) for name, value in scalars.items()},
        )
        file.attrs[_SEED], file.attrs[_KEY] = seed, _key(origin, values)
        fields = _create_fields(file, problem, groups * size)
        for n, (chunk, part) in enumerate(zip(chunks, files, strict=True)):
            u = _kept(part, _shape(problem, chunk))
            if u is None:
                u = _solved(problem, split, seed, chunk, values).astype(np.float32)
                if _is_whole(chunk):
                    _keep(part, u)
            first, last = chunk[0], chunk[-1] + 1
            for c, dataset in enumerate(fields):
                dataset[first * size : last * size] = u[: (last - first) * size, ..., c]
            if progress is not None:
                progress(last + sum(_GROUPS_PER_CHUNK for later in files[n + 1 :] if later.exists()), groups)
    remove(parts)
    return path


def _path(equation: str, split: str, out_dir: str | Path) -> Path:
    if equation not in EQUATIONS:
        raise EnmaError(f"equation '{equation}' is unknown; use one of {', '.join(EQUATIONS)}")
    splits.check_split(split)
    return Path(out_dir) / f"{equation}-{split}.h5"


def _environments(equation: str, split: str, groups: int | None, seed: int) -> tuple[np.ndarray, Values]:
    """Numbers and parameters of the environments of a split, by default of as many as the paper has."""
    problem = EQUATIONS[equation]
    groups = splits.default_groups(problem, split) if groups is None else groups
    numbers = splits.environments(problem, split, groups=groups, seed=seed)
    return numbers, problem.environments(split).checked(numbers, split, seed)


def _origin(equation: str, split: str, seed: int) -> bytes:
    """A hash of what all trajectories of a split depend on: code, versions of packages, and the seed."""
    modules = (importlib.import_module(f"{equations.__name__}.{equation}"), protocol, spectral, splits)
    sources = [Path(str(module.__file__)).read_bytes() for module in modules]
    on = (equation, split, seed, [_version(name) for name in _SOLVE_BY], sources)
    return hashlib.sha256(repr(on).encode()).digest()


def _key(origin: bytes, values: Values) -> str:
    """A short hash of all that the trajectories of some environments depend on."""
    digest = hashlib.sha256(origin)
    for name, value in values.items():
        digest.update(name.encode() + np.ascontiguousarray(value).tobytes())
    return digest.hexdigest()[:12]


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "none"


def _is_made(path: Path, key: str) -> bool:
    """True if a call of this key has made the file, False if there is none; `EnmaError` for another one."""
    if not os.path.lexists(path):
        return False
    is_same = False
    load_extra("h5py", "data")
    with suppress(EnmaError):
        is_same = hdf5.read_file(path, lambda file, _: _KEY in file.attrs and hdf5.text(file, _KEY) == key)
    if not is_same:
        raise EnmaError(f"{path}: is there already; give another --out, or replace it by --force")
    return True


def _is_whole(chunk: list[int]) -> bool:
    """Whether a chunk has other groups in all its places; one at the end is filled with the last group."""
    return len(set(chunk)) == len(chunk)


def _part(parts: Path, origin: bytes, chunk: list[int], values: Values) -> Path:
    """Where the solutions of a chunk are kept until the file is complete."""
    return parts / f"{chunk[0]}-{_key(origin, {name: value[chunk] for name, value in values.items()})}.npy"


@contextmanager
def _helped(
    helpers: int,
    equation: str,
    split: str,
    seed: int,
    chunks: list[list[int]],
    values: Values,
    files: list[Path],
) -> Iterator[None]:
    """Let other processes solve chunks from the last on, and keep them where this process looks when it comes there.

    Nothing is lost with a helper that fails: what it has not kept is solved by this process, which tells the error.
    """
    left = [(chunk, part) for chunk, part in zip(chunks, files, strict=True) if _is_whole(chunk) and not part.exists()]
    # The first one left is solved here.
    helpers = min(helpers, len(left) - 1)
    spawn = multiprocessing.get_context("spawn")
    processes = [
        spawn.Process(
            target=_help, args=(os.getpid(), equation, split, seed, values, left[:0:-1][n::helpers]), daemon=True
        )
        for n in range(helpers)
    ]
    try:
        try:
            for process in processes:
                process.start()
        except OSError as error:
            # Not an error of the file, which is open meanwhile.
            raise EnmaError(
                f"workers: {helpers + 1} processes cannot be started ({reason(error)}); ask for fewer"
            ) from error
        yield
    finally:
        started = [process for process in processes if process.pid is not None]
        for process in started:
            process.terminate()
        for process in started:
            process.join()


def _help(
    parent: int, equation: str, split: str, seed: int, values: Values, left: list[tuple[list[int], Path]]
) -> None:
    """Solve and keep chunks that are not there yet, as long as the process that asked for it lives."""
    # An interruption is the business of that process.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for chunk, part in left:
        if os.getppid() != parent:
            return
        if not part.exists():
            # The other process comes to the same error here.
            with suppress(EnmaError):
                _keep(part, _solved(EQUATIONS[equation], split, seed, chunk, values).astype(np.float32))


def _keep(part: Path, u: np.ndarray) -> None:
    part.parent.mkdir(exist_ok=True)
    stream = io.BytesIO()
    np.save(stream, u)
    write_file(part, stream.getvalue())


def _kept(part: Path, shape: tuple[int, ...]) -> np.ndarray | None:
    """The solutions that an interrupted call has kept, or None if there are none, or not whole."""
    try:
        u = read_arrays(io.BytesIO(read_file(part)))["u"]
    except (OSError, ValueError, KeyError):
        return None
    return u if u.shape == shape and u.dtype == np.float32 else None


def _create_fields(file: Any, problem: Equation, num_trajectories: int) -> list[Any]:
    """One empty scalar field for each channel."""
    shape, dims = (num_trajectories, problem.num_frames, *problem.grid), len(problem.grid)
    shapes = dict.fromkeys(problem.channels, shape)
    fields = well_writing.create_fields(file, shapes, rank=0, num_spatial_dims=dims, units=problem.channels)
    well_writing.create_fields(file, {}, rank=1, num_spatial_dims=dims)
    return fields


def _shape(problem: Equation, chunk: list[int]) -> tuple[int, ...]:
    """The shape `[B, T, *x, c]` of the trajectories of some groups."""
    return len(chunk) * splits.TRAJECTORIES_PER_GROUP, problem.num_frames, *problem.grid, len(problem.channels)


def _solved(problem: Equation, split: str, seed: int, chunk: list[int], values: Values) -> np.ndarray:
    """Trajectories of some groups of a split, float64 [B, T, *x, c]."""
    size = splits.TRAJECTORIES_PER_GROUP
    repeated = {name: np.repeat(value[chunk], size) for name, value in values.items()}
    try:
        u0 = np.concatenate([problem.initial_conditions(split, seed=seed, group=g) for g in chunk])
        if problem.spin_up is not None:
            u0 = problem.spin_up(u0, repeated)
        u = problem.solve(u0, repeated)
    except (OSError, RuntimeError) as error:
        # Not an error of the file, which is open meanwhile.
        raise EnmaError(
            f"equation {problem.name}: its solver fails at the groups {chunk[0]} to {chunk[-1]} of '{split}' "
            f"({first_line(error)}); correct equations/{problem.name}.py, or what it needs"
        ) from error
    expected = _shape(problem, chunk)
    if u.shape != expected:
        raise EnmaError(f"equation {problem.name}: solve gives {u.shape}; its grid and channels ask for {expected}")
    finite = np.isfinite(u).reshape(len(u), -1).all(axis=1)
    if not finite.all():
        bad = int(np.argmin(finite)) // size
        parameters = ", ".join(f"{name} {value[chunk[bad]]:g}" for name, value in values.items())
        raise EnmaError(
            f"equation {problem.name}: the solution of group {chunk[bad]} of '{split}' is not finite ({parameters}); "
            "the solver needs smaller steps, or the parameters other ranges"
        )
    return u
