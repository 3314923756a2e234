"""The run that a store on disk is of, and what of it that is written once can be written again.

The ledger says which members and statistics there are; this is about metadata, coordinates, observations and truth.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import EnmaError, first_line
from ..utils.extras import load_extra
from ..utils.files import make_folder, move_into, remove
from .checksums import CHECKSUMS, read_checksums, write_checksums
from .chunks import settled
from .inventory import files_of
from .layout import DAMAGED, OUTSIDE, Layout, attributes_of, made, read_forecast, write_metadata
from .location import real_path
from .metadata import AXES, DIGEST, METADATA, digest_of, is_protected, read_json, root_of

# Of the arithmetic that samples members, as `arithmetic` tells it.
FINGERPRINT = "fingerprint"
# That of a CPU, which is a hash of sampled bits; that of a GPU lists settings.
_PROBE = re.compile(r"[0-9a-f]{16}")


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
    found, damaged = root_of(path)["attributes"], damaged_files(path)
    own = json.loads(json.dumps(attributes_of(layout)))
    told = _attributes_differ(found, own)
    if is_protected(found) and found.get(DIGEST) != digest_of(found):
        whole = attributes_of(complete() if complete is not None else layout)
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
    if all(_PROBE.fullmatch(str(attributes.get(FINGERPRINT))) for attributes in (found, own)):
        # Fingerprints of sampled bits are compared, so the release of this package need not be.
        found, own = _without_release(found), _without_release(own)
    # Older stores have no fingerprint: that of their instructions, `arithmetic`, is compared.
    old = set() if FINGERPRINT in found and FINGERPRINT in own else {FINGERPRINT}
    return [
        f"{key} is {_short(found.get(key))} there, {_short(own.get(key))} here"
        for key in sorted(keys - says_nothing - {DIGEST} - old)
        if found.get(key) != own.get(key)
    ]


def _without_release(attributes: Mapping[str, Any]) -> dict[str, Any]:
    return {**attributes, "versions": re.sub(r"^enma-fast [^,]*, ", "", str(attributes.get("versions")))}


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
        return [str(name) for name in read_json(path / DAMAGED)]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError):
        raise EnmaError(f"{path / DAMAGED}: is damaged; run: enma-fast verify {path}") from None


def repair(path: Path, layout: Layout) -> None:
    """Write anew the files that are marked as damaged; no other. `layout` with the hashes of its files."""
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
                if str(name) in names and name != Path(CHECKSUMS) and file.is_file():
                    if len(name.parts) > 1 and not (path / name.parent).is_dir():
                        make_folder(path / name.parent)
                    move_into(file, path / name)
            if CHECKSUMS in names:
                # As the files are now: that they were another's before would not be noticed.
                values = [file.checksum() for file in files_of(path, layout)]
                write_checksums(path, np.array([*values, *read_checksums(temporary)[len(values) :]], np.uint32))
        (path / DAMAGED).unlink()
    finally:
        remove(temporary)


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
