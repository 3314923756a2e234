"""Comparing a store on disk with the layout of a run: a run continues only a store of its own."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import EnmaError, first_line
from ..utils.extras import load_extra
from .layout import FINGERPRINT, OUTSIDE, Layout, store_attributes
from .metadata import AXES, DIGEST, METADATA, digest_of, is_protected, read_metadata
from .read import damaged_files


def differences(path: Path, layout: Layout, *, complete: Callable[[], Layout] | None = None) -> list[str]:
    """Where the store at `path` differs from one of this layout, for people; empty if it is the same.

    Parameters
    ----------
    path, layout : the store, and what it is to be
    complete : gives the layout with the hashes of its files, which are asked for where the attributes are damaged

    Raises
    ------
    EnmaError
        If there is no forecast store at `path`, or it cannot be read; what is noted as damaged is not looked at.
    """
    load_extra("zarr", "store")
    found, damaged = read_metadata(path)["attributes"], damaged_files(path)
    own = json.loads(json.dumps(store_attributes(layout)))
    told = _attributes_differ(found, own)
    if is_protected(found) and found.get(DIGEST) != digest_of(found):
        whole = store_attributes(complete() if complete is not None else layout)
        if whole[DIGEST] != found.get(DIGEST) and told:
            raise EnmaError(
                f"{path}: its attributes are damaged, and this is not surely the command that began it "
                f"({'; '.join(told)}); repeat that very command, or begin anew by --force"
            )
        if METADATA not in damaged:
            raise EnmaError(f"{path}: its attributes are damaged; run: enma-fast verify {path} --mark")
        told = []
    axes = {"trajectory": np.asarray(layout.trajectories), "time": np.asarray(layout.times, np.float64)}
    for name, values in (axes | dict(zip(AXES, layout.coords, strict=False))).items():
        if not any(file.startswith(f"{name}/") for file in damaged) and not _holds(path, name, values):
            told.append("its trajectories are others" if name == "trajectory" else f"its {name} is another")
    # The hash of all that is forecast follows from most of the others.
    return [text for text in told if len(told) == 1 or not text.startswith("input_sha256")]


def _attributes_differ(found: Mapping[str, Any], own: Mapping[str, Any]) -> list[str]:
    # What is used of the files has a hash of its own, and what lies outside the training follows from it and the model.
    says_nothing = {"command", "history", "title", "references", "further_versions", "data_sha256", "context_sha256"}
    says_nothing.add(OUTSIDE)
    keys = own.keys() | found.keys()
    # Older stores have no fingerprint: that of their instructions, `arithmetic`, is compared.
    old = set() if FINGERPRINT in found and FINGERPRINT in own else {FINGERPRINT}
    return [
        f"{key} is {_short(found.get(key))} there, {_short(own.get(key))} here"
        for key in sorted(keys - says_nothing - {DIGEST} - old)
        if found.get(key) != own.get(key)
    ]


def _holds(path: Path, name: str, values: np.ndarray) -> bool:
    """Whether the store has a coordinate of these values."""
    try:
        group = load_extra("zarr", "store").open_group(path, mode="r", use_consolidated=True, zarr_format=3)
        return name in group and np.array_equal(group[name][...], values)
    except Exception as error:
        # Zarr and its codecs raise many kinds.
        raise EnmaError(
            f"{path}: its {name} cannot be read ({first_line(error)}); run: enma-fast verify {path}"
        ) from error


def _short(value: Any) -> str:
    text = "nothing" if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
