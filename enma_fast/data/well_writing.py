"""Writing field files in the layout of The Well (`well` reads it and says what it is)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from ..errors import EnmaError
from ..utils.extras import load_extra
from ..utils.names import SPACE
from . import hdf5
from .fields import FieldFile
from .missing import unmasked


def write(
    path: str | Path,
    *,
    t0_fields: Mapping[str, np.ndarray],
    t1_fields: Mapping[str, np.ndarray] | None = None,
    units: Mapping[str, str] | None = None,
    environment_by: Sequence[str] = (),
    known: Mapping[str, np.ndarray] = MappingProxyType({}),
    **header: Any,
) -> Path:
    """Write a field file in one step: it appears complete or not at all.

    Parameters
    ----------
    t0_fields, t1_fields : name -> [n, T, x..] and [n, T, x.., component]
    units : name of a field -> its unit, where it has one
    environment_by : names of the columns by whose values the environments are numbered
    known : drivers by name, [n or 1, T or 1, x or 1..]; one that is a scalar too is marked there
    header : `name`, the `dataset_name`; `times` [T]; `coords` and `periodic`, one per space dimension; `scalars`, name
        -> [n], of which `environment` is stored as int64 and the others as float32

    Raises
    ------
    EnmaError
        If a field's shape does not fit the axes, or the file cannot be written.
    """
    path = Path(path)
    axes = (*list(header["scalars"].values())[:1], header["times"], *header["coords"])
    sizes = tuple(map(len, axes))
    with hdf5.create_file(path) as file:
        write_header(file, **header)
        if environment_by:
            file["scalars/environment"].attrs["columns"] = _string_array(environment_by)
        for rank, fields in enumerate((t0_fields, t1_fields or {})):
            for key, value in fields.items():
                if value.shape[: len(sizes)] != sizes or value.ndim != len(sizes) + rank:
                    component = ", component" if rank else ""
                    raise EnmaError(
                        f"{path}: t{rank}_fields/{key} has shape {value.shape}; the axes ask for {sizes}{component}"
                    )
            shapes = {key: value.shape for key, value in fields.items()}
            datasets = create_fields(file, shapes, rank=rank, num_spatial_dims=len(header["coords"]), units=units or {})
            for dataset, value in zip(datasets, fields.values(), strict=True):
                dataset[...] = unmasked(f"{path}: {dataset.name.strip('/')}", value)
        for key, value in known.items():
            _write_known(file, key, value)
    return path


def _write_known(file: Any, key: str, value: np.ndarray) -> None:
    """A driver: a mark on a scalar that is there, a scalar if it is the same everywhere, or else a field."""
    if key in file["scalars"]:
        file[f"scalars/{key}"].attrs["known"] = True
        return
    varying = [size > 1 for size in value.shape]
    in_space = any(varying[2:])
    group = file["t0_fields" if in_space else "scalars"]
    group.attrs["field_names"] = _string_array([*hdf5.names(group, "field_names"), key])
    shape = [size for size, varies in zip(value.shape, varying, strict=True) if varies]
    flags = {"sample_varying": varying[0], "time_varying": varying[1], "known": True}
    _create_dataset(group, key, value.reshape(shape).astype(np.float32), **flags)
    group[key].attrs["dim_varying"] = np.array(varying[2:])


def write_fields(path: str | Path, data: FieldFile, *, name: str) -> Path:
    """Write what a `FieldFile` holds by `write`, each channel as a scalar field.

    Without environments, every trajectory is one of its own.
    """
    environment = np.arange(len(data)) if data.environment is None else data.environment
    return write(
        path,
        name=name,
        times=data.times,
        coords=data.coords,
        periodic=data.periodic,
        # A parameter of that name would be taken for the environments.
        scalars={"environment": environment, **{k: v for k, v in data.parameters.items() if k != "environment"}},
        t0_fields={channel: data.u[..., c] for c, channel in enumerate(data.channels)},
        units=data.units,
        environment_by=data.environment_by,
        known=data.known,
    )


def write_header(
    file: Any,
    *,
    name: str,
    times: np.ndarray,
    coords: Sequence[np.ndarray],
    periodic: Sequence[bool],
    scalars: Mapping[str, np.ndarray],
) -> None:
    """Write everything but the fields to an open `h5py.File`: attributes, dimensions, boundaries, scalars."""
    dims = SPACE[: len(coords)]
    counts = {len(value) for value in scalars.values()}
    if len(counts) != 1:
        raise EnmaError(f"{name}: scalars must hold one value per trajectory each; their lengths are {sorted(counts)}")
    file.attrs["dataset_name"] = name
    file.attrs["grid_type"] = "cartesian"
    file.attrs["n_spatial_dims"] = len(coords)
    file.attrs["n_trajectories"] = counts.pop()
    # The Well keeps here what is constant over the file; our parameters vary and are scalars.
    file.attrs["simulation_parameters"] = _string_array(())

    dimensions = file.create_group("dimensions")
    dimensions.attrs["spatial_dims"] = _string_array(dims)
    _create_dataset(dimensions, "time", _stored_axis(times), sample_varying=False)
    for dim, x in zip(dims, coords, strict=True):
        _create_dataset(dimensions, dim, _stored_axis(x), sample_varying=False, time_varying=False)

    boundaries = file.create_group("boundary_conditions")
    for dim, x, wraps in zip(dims, coords, periodic, strict=True):
        group = boundaries.create_group(f"{dim}_{'periodic' if wraps else 'open'}")
        group.attrs["associated_dims"] = _string_array((dim,))
        group.attrs["associated_fields"] = _string_array(())
        group.attrs["bc_type"] = "PERIODIC" if wraps else "OPEN"
        group.attrs["sample_varying"] = False
        group.attrs["time_varying"] = False
        mask = np.zeros(len(x), dtype=bool)
        mask[[0, -1]] = True
        group.create_dataset("mask", data=mask)

    group = file.create_group("scalars")
    group.attrs["field_names"] = _string_array(scalars)
    for key, value in scalars.items():
        value = np.asarray(value, np.int64 if key == "environment" else np.float32)
        _create_dataset(group, key, value, sample_varying=True, time_varying=False)


def _stored_axis(values: np.ndarray) -> np.ndarray:
    """Positions as float32, or as they are where that would move them by a thousandth of a step."""
    exact = np.asarray(values, np.float64)
    short = exact.astype(np.float32)
    if len(exact) > 1 and np.abs(short - exact).max() > 1e-3 * np.abs(np.diff(exact)).min():
        return exact
    return short


def create_fields(
    file: Any,
    shapes: Mapping[str, tuple[int, ...]],
    *,
    rank: int,
    num_spatial_dims: int,
    units: Mapping[str, str] = MappingProxyType({}),
) -> list[Any]:
    """Create the float32 datasets of `t<rank>_fields` and return them, to be filled piece by piece."""
    group = file.create_group(f"t{rank}_fields")
    group.attrs["field_names"] = _string_array(shapes)
    datasets = []
    for key, shape in shapes.items():
        dataset = group.create_dataset(key, shape=shape, dtype=np.float32)
        dataset.attrs["dim_varying"] = np.ones(num_spatial_dims, dtype=bool)
        dataset.attrs["sample_varying"] = True
        dataset.attrs["time_varying"] = True
        if units.get(key, "1") != "1":
            dataset.attrs["units"] = units[key]
        datasets.append(dataset)
    return datasets


def _create_dataset(group: Any, key: str, value: np.ndarray, **attributes: bool) -> None:
    dataset = group.create_dataset(key, data=value)
    for attribute, flag in attributes.items():
        dataset.attrs[attribute] = flag


def _string_array(names: Any) -> np.ndarray:
    return np.array(list(names), dtype=load_extra("h5py", "data").string_dtype())
