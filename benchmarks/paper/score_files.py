"""Score files: what a method reached on an equation, with all that a reader needs to weigh it. Tables are made of them.

A score file is JSON with

| key              | what                                                                                         |
|------------------|----------------------------------------------------------------------------------------------|
| `method`, `kind` | name in tables; "model" of this library, or "baseline"                                        |
| `equation`       | name of the equation                                                                         |
| `seed`           | of training for a baseline; of the noise for a shipped model, which was trained once          |
| `cpu_seconds`    | of training, over all threads; 0 where nothing is trained                                     |
| `num_parameters` | that training changes; 0 where there are none                                                 |
| `weights`        | SHA-256 of a shipped model's weights; None for a baseline                                     |
| `data`           | SHA-256 of each field file by its name, `combined-test-in.h5`, or `shipped/combined-test-in.h5` |
| `machine`        | processor, threads and versions where the seconds were measured                               |
| `rows`           | of `protocols.measure`                                                                        |

Those of the tables are in `scores` beside this module, and below it in `ten-minutes` those of methods that had ten
minutes of one thread each.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from enma_fast.data import EQUATIONS, FieldFile, count, read, shipped_file, shipped_paths, spread_out
from enma_fast.errors import EnmaError
from enma_fast.evaluation.baselines import Method
from enma_fast.forecasting.request import GENERATION
from enma_fast.models.checkpoint import METRICS, WEIGHTS, available, hashes, load_model, locate, sha256
from enma_fast.models.model import Model
from enma_fast.training.card import is_closed_form
from enma_fast.utils.files import complete_file
from enma_fast.utils.system import machine, versions
from enma_fast.utils.untrusted import parse_json, read_bytes

from .features import training_file
from .protocols import CALIBRATED, CASES, KEPT, Case, measure, of_model
from .scattered import SHARES, measure_points, protocol_of
from .score_entries import wrong_entry

# What makes score files, and pages of them.
COMMAND = "python -m benchmarks.paper tables"
FOLDER = Path(__file__).parent / "scores"
# Below the folder of the others.
TEN_MINUTES = "ten-minutes"
# Relative difference of a score that another processor, or another number of threads, may make.
TOLERANCE = 0.02
# Relative errors below which all is rounding.
_ROUNDING = 1e-4
# What the tables call a model that has the name of its equation alone: it finds the equation in data and solves it.
EQUATION = "equation"
# Members of the cases that score all trajectories.
_MEMBERS = 16
# Relative L2 distance of the same trajectory generated on another machine: solvers give equal bits on one alone.
_SAME_FIELDS = 1e-3
# Scores of a row that are compared.
_CHECKED = ("rel_l2", "rel_l2_median", "rel_l2_member", "crps", "rmsce", "spread_skill", "reconstruction")
# Largest score file.
_MOST_BYTES = 1 << 24
_KEYS = ("method", "kind", "equation", "seed", "cpu_seconds", "num_parameters", "weights", "data", "machine", "rows")


def read_score_files(folder: str | Path | None = None) -> list[dict[str, Any]]:
    """The score files of a folder, by default those of the tables, in the order of their names.

    Raises
    ------
    EnmaError
        If the folder holds none, or one is not a score file; the line names it.
    """
    folder = FOLDER if folder is None else Path(folder)
    paths = sorted(folder.glob("*.json"))
    if not paths:
        raise EnmaError(f"{folder}: holds no score file; make one by {COMMAND} --measure MODEL --data DIR")
    return [_read(path) for path in paths]


def read_ten_minutes(folder: str | Path | None = None) -> list[dict[str, Any]]:
    """The score files of methods that had ten minutes each, below the folder of `read_score_files`; or none."""
    below = (FOLDER if folder is None else Path(folder)) / TEN_MINUTES
    return read_score_files(below) if any(below.glob("*.json")) else []


def measure_model(
    checkpoint: str | Path,
    data_dir: str | Path,
    *,
    seed: int = 0,
    progress: Callable[[int, int, str], None] | None = None,
) -> dict[str, Any]:
    """Measure a checkpoint in all cases of `protocols.CASES` and return its score file.

    Rows of whole files that the checkpoint's card has (`metrics.json`) are taken from it; the others are measured.

    Parameters
    ----------
    checkpoint : name of a shipped model, or folder
    data_dir : folder of `<equation>-test-in.h5` and `<equation>-test-out.h5`
    seed : of the noise
    progress : called with (trajectories done, trajectories, the case)
    """
    model, folder = load_model(checkpoint), locate(checkpoint)
    equation = model.config.dataset
    if equation not in EQUATIONS:
        raise EnmaError(
            f"{checkpoint}: is a model of {equation!r}; the tables have {', '.join(EQUATIONS)}. "
            "Score it by: enma-fast score"
        )
    metrics = json.loads((folder / METRICS).read_text(encoding="utf-8")) if (folder / METRICS).is_file() else {}
    # A card may have scored fewer trajectories than the cases ask for.
    rows = [
        _row_of_card(row)
        for row in metrics.get("rows", ())
        if row["seed"] == seed and not row["packed"] and row["limit"] in _limits_of_card(row)
    ]
    scored = {(row["protocol"], row["task"], row["split"]) for row in rows}
    if rows:
        _require_data_of_card(equation, Path(data_dir))
    if model.reads_points:
        rows += _rows_at_points(model, Path(data_dir), seed, progress)
    training = metrics.get("training", {})
    return score_file(
        of_model(model),
        method=_method_of(model.config.name, equation),
        kind="model",
        equation=equation,
        data_dir=data_dir,
        seed=seed,
        cpu_seconds=_cpu_seconds(training),
        num_parameters=0 if is_closed_form(training) else sum(p.numel() for p in model.parameters()),
        weights=hashes(checkpoint)[WEIGHTS],
        cases=[case for case in CASES if (case.protocol, case.task.name, case.split) not in scored],
        known=rows,
        progress=progress,
    )


def score_file(
    method_function: Method,
    *,
    method: str,
    kind: str,
    equation: str,
    data_dir: str | Path,
    seed: int,
    cpu_seconds: float,
    num_parameters: int,
    weights: str | None = None,
    cases: Iterable[Case] = CASES,
    known: Sequence[dict[str, Any]] = (),
    progress: Callable[[int, int, str], None] | None = None,
) -> dict[str, Any]:
    """Measure a method in some cases and return its score file; the cases whose files are not there are left out.

    Those of `features` also need the training file, and a feature network of the equation.

    `known` are rows that have been measured before.

    Raises
    ------
    EnmaError
        If the folder holds no test file of the equation.
    """
    files: dict[str, FieldFile] = {}
    rows = list(known)
    hashed = {}
    for row in known:
        if (path := _file_of(equation, row["protocol"], row["split"], Path(data_dir))) is not None:
            hashed[_key(row["protocol"], path)] = path
    for case in cases:
        if (path := _file_of(equation, case.protocol, case.split, Path(data_dir))) is None:
            continue
        if case.protocol == "features":
            if (train := training_file(equation, Path(data_dir))) is None:
                continue
            hashed[train.name] = train
        key = _key(case.protocol, path)
        hashed[key] = path
        data = files[key] if key in files else files.setdefault(key, read(path))
        name = f"{case.protocol}, {case.task.name}, {case.split}"

        def update(done: int, total: int, name: str = name) -> None:
            if progress is not None:
                progress(done, total, name)

        rows.append(measure(method_function, data, case, seed=seed, progress=update))
    if not rows:
        raise EnmaError(f"{data_dir}: holds no {equation}-test-in.h5; make it by enma-fast data generate {equation}")
    return {
        "method": method,
        "kind": kind,
        "equation": equation,
        "seed": seed,
        "cpu_seconds": cpu_seconds,
        "num_parameters": num_parameters,
        "weights": weights,
        "data": {key: sha256(path) for key, path in sorted(hashed.items())},
        "machine": {**machine(), "versions": versions()},
        "rows": rows,
    }


def write_score_file(file: dict[str, Any], folder: str | Path) -> Path:
    """Write a score file as `<equation>-<method>-<seed>.json` into a folder, in place of an older one."""
    path = Path(folder) / f"{file['equation']}-{file['method']}-{file['seed']}.json"
    rows = ",\n  ".join(json.dumps(_rounded(row), allow_nan=False) for row in file["rows"])
    # One row a line, after what a baseline adds to the keys of every file.
    others = {key: value for key, value in file.items() if key != "rows"}
    head = json.dumps({**others, "rows": []}, indent=1, allow_nan=False).removesuffix("[]\n}")
    with complete_file(path, remedy="choose another --out") as temporary:
        temporary.write_text(f"{head}[\n  {rows}\n ]\n}}\n", encoding="utf-8")
    return path


def check(
    files: Sequence[dict[str, Any]],
    *,
    tolerance: float = TOLERANCE,
    progress: Callable[[int, int, str], None] | None = None,
) -> list[dict[str, Any]]:
    """Measure the shipped models on the shipped test files again and compare with their score files.

    Parameters
    ----------
    files : score files
    tolerance : relative difference of a score that is allowed
    progress : called with (trajectories done, trajectories, the case)

    Returns
    -------
    list of dict
        `model`, `what`, `expected`, `found` and `agrees`: one entry for the weights, one for each shipped test file,
        and one for each score.
    """
    entries: list[dict[str, Any]] = []
    for file in files:
        name = model_name(file)
        if file["kind"] == "model" and name in available():
            entries += _checked(name, file, tolerance, progress)
    return entries


def model_name(file: dict[str, Any]) -> str:
    """Name of the model whose score file this is, if it is one of a shipped model."""
    equation = file["equation"].replace("_", "-")
    return equation if file["method"] == EQUATION else f"{equation}-{file['method']}"


def _method_of(name: str, equation: str) -> str:
    """What the tables call a model: the end of its name after that of the equation."""
    dashed = equation.replace("_", "-")
    return EQUATION if name == dashed else name.removeprefix(f"{dashed}-")


def _cpu_seconds(training: dict[str, Any]) -> float:
    """CPU seconds of the training that a card tells; on older cards each stage has a machine of its own."""

    def seconds(stage: dict[str, Any]) -> float:
        where = stage if "machine" in stage else training
        clock = float(stage["seconds"] * where["ranks"] * where["machine"]["threads"])
        return float(stage.get("cpu_seconds", clock))

    return sum(map(seconds, training.get("stages", training).values()), 0.0)


def _checked(
    name: str, file: dict[str, Any], tolerance: float, progress: Callable[[int, int, str], None] | None
) -> Iterator[dict[str, Any]]:
    def entry(what: str, expected: Any, actual: Any, agrees: bool) -> dict[str, Any]:
        return {"model": name, "what": what, "expected": expected, "found": actual, "agrees": agrees}

    def compared(what: str, row: dict[str, Any], new_row: dict[str, Any]) -> Iterator[dict[str, Any]]:
        for score in (score for score in _CHECKED if score in row):
            # Errors of rounding are those of a processor, and no others are calibrated.
            error = max(row.get("rel_l2", 1.0), new_row.get("rel_l2", 1.0))
            agrees = error < _ROUNDING or math.isclose(row[score], new_row[score], rel_tol=tolerance)
            yield entry(f"{what}: {score}", row[score], new_row[score], agrees)

    digest = hashes(name)[WEIGHTS]
    yield entry("weights", file["weights"], digest, file["weights"] == digest)
    model = load_model(name)
    method = of_model(model)
    expected = {(row["task"], row["split"]): row for row in file["rows"] if row["protocol"] == "shipped"}
    for case in (case for case in CASES if case.protocol == "shipped" and (case.task.name, case.split) in expected):
        path, row = shipped_file(file["equation"], case.split), expected[case.task.name, case.split]
        if case.task.name == "temporal":
            committed, digest = file["data"].get(_key("shipped", path)), sha256(path)
            yield entry(path.name, committed, digest, committed == digest)

        def update(done: int, total: int, what: str = f"{name}, {case.task.name}, {case.split}") -> None:
            if progress is not None:
                progress(done, total, what)

        new_row = measure(method, read(path), case, seed=file["seed"], progress=update)
        yield from compared(f"{case.task.name}, {case.split}", row, new_row)
    rows = {row["protocol"]: row for row in file["rows"]}
    for share in (share for share in SHARES if protocol_of(share, shipped=True) in rows):
        row = rows[protocol_of(share, shipped=True)]
        data = read(shipped_file(file["equation"], row["split"]))
        new_row = measure_points(model, data, share, split=row["split"], seed=file["seed"], shipped=True)
        yield from compared(f"{share:.0%} of points", row, new_row)


def _rows_at_points(
    model: Model, data_dir: Path, seed: int, progress: Callable[[int, int, str], None] | None
) -> list[dict[str, Any]]:
    """Rows of a model that sees shares of the points, of the first trajectories of test-in and of the shipped file."""
    rows = []
    for shipped, protocol in ((False, "whole"), (True, "shipped")):
        path = _file_of(model.config.dataset, protocol, "test-in", data_dir)
        # An analysis for each trajectory and frame is what takes the time.
        data = None if path is None else read(path, select=range(count(path))[:CALIBRATED])
        for share in SHARES if data is not None else ():

            def update(done: int, total: int, what: str = protocol_of(share, shipped=shipped)) -> None:
                if progress is not None:
                    progress(done, total, what)

            assert data is not None
            rows.append(
                measure_points(model, data, share, split="test-in", seed=seed, shipped=shipped, progress=update)
            )
    return rows


def _file_of(equation: str, protocol: str, split: str, data_dir: Path) -> Path | None:
    name = f"{equation}-{split}.h5"
    files = shipped_paths("*.h5") if protocol.startswith("shipped") else [data_dir / name]
    return next((path for path in files if path.name == name and path.is_file()), None)


def _key(protocol: str, path: Path) -> str:
    """Name of a field file in `data`."""
    return f"shipped/{path.name}" if protocol.startswith("shipped") else path.name


def _limits_of_card(row: dict[str, Any]) -> tuple[int | None, ...]:
    """How many trajectories a row of a card has at most where it is one of the cases: None for all of them."""
    fewer = row["num_members"] > _MEMBERS or row["task"] == GENERATION.name
    return (None, CALIBRATED) if fewer else (None,)


def _row_of_card(row: dict[str, Any]) -> dict[str, Any]:
    """A row of a card's metrics as one of a score file, but for its seconds, which are of the clock."""
    protocol = "calibration" if row["num_members"] > _MEMBERS else "whole"
    scores = ("solver_fidelity",) if row["task"] == GENERATION.name else KEPT
    return {
        "protocol": protocol,
        "task": row["task"],
        "split": row["split"],
        "members": row["num_members"],
        "trajectories": row["num_trajectories"],
        "frames": row["num_frames"],
        **{name: row[name] for name in scores if row.get(name) is not None},
    }


def _require_data_of_card(equation: str, data_dir: Path) -> None:
    """Raise `EnmaError` unless the shipped test files are parts of those of a folder, as they are of the card's."""
    for split in ("test-in", "test-out"):
        whole, part = (_file_of(equation, protocol, split, data_dir) for protocol in ("whole", "shipped"))
        if whole and part and (said := _difference(spread_out(whole), read(part))):
            raise EnmaError(
                f"{whole}: is not the file that {part.name} of the package is a part of ({said}); generate it again"
            )


def _difference(actual: FieldFile, expected: FieldFile) -> str | None:
    """What distinguishes the trajectories of two files; None where they are the same up to rounding."""
    if actual.u.shape != expected.u.shape:
        return f"its shape is {actual.u.shape}, not {expected.u.shape}"
    if not np.array_equal(np.asarray(actual.environment), np.asarray(expected.environment)):
        return "its environments are others"
    axes = tuple(range(1, expected.u.ndim))
    distance = np.sqrt(np.square(actual.u - expected.u, dtype=np.float64).sum(axes))
    size = np.sqrt(np.square(expected.u, dtype=np.float64).sum(axes))
    wrong = distance > _SAME_FIELDS * size
    return f"{wrong.sum()} of {len(wrong)} trajectories differ by more than {_SAME_FIELDS:g}" if wrong.any() else None


def _read(path: Path) -> dict[str, Any]:
    try:
        content = parse_json(read_bytes(path, most=_MOST_BYTES))
    except EnmaError:
        raise
    except ValueError as error:
        raise EnmaError(f"{path}: is not JSON ({error}); make it again by {COMMAND} --measure") from None
    missing = [key for key in _KEYS if key not in content] if isinstance(content, dict) else list(_KEYS)
    if missing:
        raise EnmaError(f"{path}: is no score file, it lacks {', '.join(missing)}; make it again or move it away")
    if (wrong := wrong_entry(content)) is not None:
        raise EnmaError(f"{path}: {wrong} is not what a score file has there; make it again or move it away")
    return dict(content)


def _rounded(row: dict[str, Any]) -> dict[str, Any]:
    """The row with five digits of each number."""

    def short(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: short(each) for key, each in value.items()}
        if isinstance(value, list):
            return [short(each) for each in value]
        return float(f"{value:.5g}") if isinstance(value, float) else value

    return dict(short(row))
