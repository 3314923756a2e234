"""Reading a forecast store: as an `xarray.Dataset`, its layout, and the list of its damaged files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import EnmaError, first_line
from ..utils.extras import load_extra
from ..utils.files import read_file
from ..utils.names import SPACE
from .chunks import chunk_name, chunk_problem
from .layout import DAMAGED, LEDGER, Layout
from .metadata import read_json, read_metadata, repeated


def read_forecast(path: str | Path, *, partial: bool = False) -> Any:
    """Open a forecast store as an `xarray.Dataset` that reads values on demand.

    Parameters
    ----------
    path : folder of the store
    partial : open an unfinished or damaged store too; values that are not yet written read as NaN

    Raises
    ------
    EnmaError
        If there is no forecast store of this version at `path`, if it is unfinished or damaged, or if the `[store]`
        extra is missing.
    """
    path = Path(path)
    load_extra("zarr", "store")
    xarray = load_extra("xarray", "store")
    root = read_metadata(path)
    for file, state, what in ((LEDGER, "not finished", "continue"), (DAMAGED, "damaged", "repair")):
        if not partial and (path / file).exists():
            raise EnmaError(f"{path}: is {state}; {what} it: {repeated(path, root['attributes'])}")
    with zarr_errors(path):
        # Only the arrays of the consolidated metadata are opened, and these have been checked.
        # A unit of the user's, such as seconds, does not make a time of a field.
        dataset = xarray.open_zarr(path, chunks=None, consolidated=True, zarr_format=3, decode_times=False)
    for name, size in dataset.sizes.items():
        if size:
            check_coordinate(path, name)
        if not partial and name in dataset.coords and not np.isfinite(dataset[name].to_numpy()).all():
            raise EnmaError(f"{path}: its {name} is not finite, so it has no places; forecast it again")
    return dataset


def check_coordinate(path: Path, name: str) -> None:
    """`EnmaError` if the file of a coordinate is missing, which Zarr would read as NaN or zeros."""
    with zarr_errors(path, f"its {name}"):
        if not (path / name / chunk_name(0)).is_file():
            raise FileNotFoundError("its file is missing")


@contextmanager
def zarr_errors(path: Path, name: str = "") -> Iterator[None]:
    """Turn any error inside the block into an `EnmaError`: Zarr and its codecs raise many kinds for damaged files.

    `path` is the folder of the store, and `name` what was read, if not the whole store.
    """
    try:
        yield
    except Exception as error:
        what = f"{name} " if name else ""
        raise EnmaError(f"{path}: {what}cannot be read ({first_line(error)}); run: enma-fast verify {path}") from error


def is_missing(path: Path, dataset: Any, name: str, place: int, member: int) -> bool:
    """True if there is no file for a variable of a trajectory, or for one of its members.

    Zarr reads a missing file as NaN, so the values do not tell it from a forecast of NaN.
    """
    index = [0] * dataset[name].ndim
    index[0] = place
    if "realization" in dataset[name].dims:
        index[1] = member // dataset.attrs["shard"]
    return not (path / name / chunk_name(*index)).exists()


def read_layout(path: Path, root: Mapping[str, Any]) -> Layout:
    """Read the layout of the store at `path`, whose metadata are `root`: without observations, truth and columns.

    A coordinate whose file is damaged has the values 0, 1, ... there. `EnmaError` if the metadata make no layout.
    """
    attributes, arrays = root["attributes"], root["consolidated_metadata"]["metadata"]
    keeps = attributes["keeps"].split(", ")
    try:
        return Layout(
            channels=attributes["channels"],
            times=_coordinate(path, "time", arrays["time"]),
            coords=[_coordinate(path, axis, arrays[axis]) for axis in SPACE if axis in arrays],
            trajectories=_coordinate(path, "trajectory", arrays["trajectory"]).tolist(),
            num_members=attributes["num_members"],
            first_member=attributes["first_member"],
            keep_members="members" in keeps,
            shard=attributes["shard"],
            statistics="mean" in keeps,
            quantiles=attributes["quantiles"],
            thresholds=attributes["thresholds"],
            attributes=attributes,
        )
    except EnmaError as error:
        raise EnmaError(f"{path}: {error}") from None


def _coordinate(path: Path, name: str, array: Mapping[str, Any]) -> np.ndarray:
    """Values of a coordinate, which is in one file."""
    (count,), dtype = array["shape"], np.dtype(array["data_type"]).newbyteorder("<")
    try:
        data = read_file(path / name / chunk_name(0))
    except OSError:
        return np.arange(count)
    whole = chunk_problem(data, count * dtype.itemsize, chunks=1, size=None) is None
    return np.frombuffer(data, dtype, count) if whole else np.arange(count)


def damaged_files(path: Path) -> list[str]:
    """Files that `verify --mark` has listed as damaged: metadata, coordinates, observations and truth."""
    try:
        names = read_json(path / DAMAGED)
        # A store with this file is refused, so one without a name in it would be neither whole nor repairable.
        if not isinstance(names, list) or not names:
            raise ValueError
        return [str(name) for name in names]
    except FileNotFoundError:
        return []
    except (OSError, ValueError):
        raise EnmaError(f"{path / DAMAGED}: is damaged; run: enma-fast verify {path}") from None
