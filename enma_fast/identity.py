"""Which run a store on disk is of, and what of it that is written once can be written again.

The ledger says which members and statistics there are; this is about metadata, coordinates, observations and truth.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from .chunks import settled
from .errors import EnmaError, first_line
from .extras import load_extra
from .output import (
    AXES,
    DAMAGED,
    OUTSIDE,
    Layout,
    attributes_of,
    made,
    read_forecast,
    real_path,
    require_format,
    root_of,
    write_metadata,
)


def differences(path: Path, layout: Layout) -> list[str]:
    """What tells the store at `path` from one of this layout, for people; empty if it is the same.

    Raises
    ------
    EnmaError
        If there is no forecast store at `path`, or it cannot be read; what is noted as damaged is not looked at.
    """
    load_extra("zarr", "store")
    found, damaged = root_of(path)["attributes"], damaged_files(path)
    require_format(path, found)
    own = json.loads(json.dumps(attributes_of(layout)))
    # What is used of the files has a hash of its own, and what lies outside the training follows from it and the model.
    says_nothing = {"command", "history", "title", "references", "further_versions", "data_sha256", "context_sha256"}
    says_nothing.add(OUTSIDE)
    keys = sorted((own.keys() | found.keys()) - says_nothing)
    told = [
        f"{key} is {_short(found.get(key))} there, {_short(own.get(key))} here"
        for key in keys
        if found.get(key) != own.get(key)
    ]
    axes = {"trajectory": np.asarray(layout.trajectories), "time": np.asarray(layout.times, np.float64)}
    for name, values in (axes | dict(zip(AXES, layout.coords, strict=False))).items():
        if not any(file.startswith(f"{name}/") for file in damaged) and not _holds(path, name, values):
            told.append("its trajectories are others" if name == "trajectory" else f"its {name} is another")
    # The hash of all that is forecast follows from most of the others.
    return [text for text in told if len(told) == 1 or not text.startswith("input_sha256")]


def layout_at(path: Path) -> Layout:
    """The layout of the store at `path`, as far as its metadata tell: without observations, truth and columns.

    Raises
    ------
    EnmaError
        As `read_forecast`.
    """
    dataset = read_forecast(path, partial=True)
    attributes = dataset.attrs
    try:
        keeps = attributes["keeps"].split(", ")
        return Layout(
            channels=attributes["channels"],
            times=dataset["time"].to_numpy(),
            coords=[dataset[axis].to_numpy() for axis in AXES if axis in dataset.coords],
            trajectories=dataset["trajectory"].to_numpy().tolist(),
            num_members=attributes["num_members"],
            first_member=attributes["first_member"],
            keep_members="members" in keeps,
            shard=attributes["shard"],
            statistics="mean" in keeps,
            quantiles=attributes["quantiles"],
            thresholds=attributes["thresholds"],
            attributes=attributes,
        )
    except Exception as error:
        # A damaged coordinate, or metadata of another hand.
        reason = first_line(error)
        raise EnmaError(
            f"{path}: its metadata cannot be read ({reason}); write the forecast again by --force"
        ) from error


def damaged_files(path: Path) -> list[str]:
    """Files of what is written once that were found damaged."""
    try:
        return [str(name) for name in json.loads((path / DAMAGED).read_bytes())]
    except FileNotFoundError:
        return []
    except (ValueError, TypeError):
        raise EnmaError(f"{path / DAMAGED}: is damaged; run: enma-fast verify {path}") from None


def mend(path: Path, layout: Layout) -> None:
    """Write anew the files that are noted as damaged; no other."""
    path, names = real_path(path), damaged_files(path)
    if not names:
        return
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with made(temporary, layout):
            pass
        root, fresh = root_of(path), root_of(temporary)
        with settled(path):
            if root["consolidated_metadata"] != fresh["consolidated_metadata"]:
                write_metadata(path, {**fresh, "attributes": root["attributes"]})
            for file in sorted(temporary.rglob("*")):
                name = file.relative_to(temporary)
                if str(name) in names and file.is_file():
                    (path / name).parent.mkdir(exist_ok=True)
                    os.replace(file, path / name)
        (path / DAMAGED).unlink()
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _holds(path: Path, name: str, values: np.ndarray) -> bool:
    """Whether the store has a coordinate of these values."""
    if not (path / name).is_dir():
        return False
    try:
        return np.array_equal(load_extra("zarr", "store").open_array(path / name, mode="r")[...], values)
    except Exception as error:
        # Zarr and its codecs raise many kinds.
        raise EnmaError(
            f"{path}: its {name} cannot be read ({first_line(error)}); run: enma-fast verify {path}"
        ) from error


def _short(value: Any) -> str:
    text = "nothing" if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
