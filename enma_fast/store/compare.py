"""Comparing a store on disk with the layout of a run: a run continues only a store of its own."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import EnmaError
from ..utils.extras import load_extra
from ..utils.names import SPACE
from ..utils.text import shortened
from .layout import FINGERPRINT, OUTSIDE, TOGETHER, Layout, store_attributes
from .metadata import DIGEST, METADATA, digest_of, is_protected, read_metadata
from .read import check_coordinate, damaged_files, zarr_errors

# The fingerprint of a CPU, a hash of sampled bits; that of a GPU lists settings.
_PROBE = re.compile(r"[0-9a-f]{16}")


def differences(path: Path, layout: Layout, *, complete: Callable[[], Layout] | None = None) -> list[str]:
    """Describe each difference between the store at `path` and the layout that it should have; empty if there is none.

    `complete` returns the layout with the hashes of its files, and is called only if the attributes are damaged. Files
    that are marked as damaged are not read. `EnmaError` if there is no forecast store at `path`, or it cannot be read.
    """
    load_extra("zarr", "store")
    stored, damaged = read_metadata(path)["attributes"], damaged_files(path)
    own = json.loads(json.dumps(store_attributes(layout)))
    differing = _attributes_differ(stored, own)
    if is_protected(stored) and stored.get(DIGEST) != digest_of(stored):
        whole = store_attributes(complete() if complete is not None else layout)
        if whole[DIGEST] != stored.get(DIGEST) and differing:
            raise EnmaError(
                f"{path}: its attributes are damaged, and this may not be the command that began it "
                f"({'; '.join(differing)}); repeat that command, or start again with --force"
            )
        if METADATA not in damaged:
            raise EnmaError(f"{path}: its attributes are damaged; run: enma-fast verify {path} --mark")
        differing = []
    axes = {"trajectory": np.asarray(layout.trajectories), "time": np.asarray(layout.times, np.float64)}
    for name, values in (axes | dict(zip(SPACE, layout.coords, strict=False))).items():
        if not any(file.startswith(f"{name}/") for file in damaged) and not _holds(path, name, values):
            differing.append("its trajectories differ" if name == "trajectory" else f"its coordinate {name} differs")
    # Most other differences change the hash of the input too.
    return [text for text in differing if len(differing) == 1 or not text.startswith("input_sha256")]


def _attributes_differ(stored: Mapping[str, Any], own: Mapping[str, Any]) -> list[str]:
    # The used part of the files has a hash of its own; the trajectories outside the training data follow from it and
    # the model, and the frames of a latent from the model alone.
    ignored = {"command", "history", "title", "references", "further_versions", "data_sha256", "context_sha256"}
    ignored |= {OUTSIDE, TOGETHER}
    keys = own.keys() | stored.keys()
    fingerprint = str(stored.get(FINGERPRINT))
    # A complete store is compared without a fingerprint of this process.
    if _PROBE.fullmatch(fingerprint) and _PROBE.fullmatch(str(own.get(FINGERPRINT, fingerprint))):
        # Fingerprints of sampled bits are compared, so the release of this package need not be.
        stored, own = _without_release(stored), _without_release(own)
    # Older stores have no fingerprint; their attribute `arithmetic` names the instruction set and is compared.
    old = set() if FINGERPRINT in stored and FINGERPRINT in own else {FINGERPRINT}
    return [
        f"{key} is {_text(stored.get(key))} there, {_text(own.get(key))} here"
        for key in sorted(keys - ignored - {DIGEST} - old)
        if stored.get(key) != own.get(key)
    ]


def _without_release(attributes: Mapping[str, Any]) -> dict[str, Any]:
    return {**attributes, "versions": re.sub(r"^enma-fast [^,]*, ", "", str(attributes.get("versions")))}


def _holds(path: Path, name: str, values: np.ndarray) -> bool:
    """True if the store has a coordinate with these values."""
    with zarr_errors(path, f"its {name}"):
        group = load_extra("zarr", "store").open_group(path, mode="r", use_consolidated=True, zarr_format=3)
        array = group.get(name)
    if array is None:
        return False
    check_coordinate(path, name)
    with zarr_errors(path, f"its {name}"):
        return np.array_equal(array[...], values)


def _text(value: Any) -> str:
    return "nothing" if value is None else shortened(str(value))
