"""Field files: HDF5 in the layout of The Well (https://polymathic-ai.org/the_well/data_format).

    root                   @dataset_name @grid_type @n_spatial_dims @n_trajectories @simulation_parameters
    dimensions             @spatial_dims; time [T], x [X], ...                        float32, or float64 if need be
    boundary_conditions    <dim>_periodic: @bc_type @associated_dims; mask [X]        bool
    scalars                @field_names; one [n] per PDE parameter                    float32
                           environment [n] @columns                                   int64
    t0_fields              @field_names; scalar fields [n, T, X, ...]                 float32
    t1_fields              @field_names; vector fields [n, T, X, ..., component]      float32

A field may have the attribute `units`, which The Well has not; without it the unit is "1". Trajectories with the
same `environment` share the PDE and its parameters; `columns`, which The Well has not, names those that it was made
from. Tensor fields (`t2_fields`) and scalars that vary in time are
not read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from ..errors import EnmaError
from ..utils.bounds import MOST_COMPONENTS, MOST_TRAJECTORIES
from ..utils.extras import load_extra
from ..utils.names import SPACE
from ..utils.untrusted import Limits
from . import hdf5, pdebench
from .fields import FieldArray, FieldFile, FieldSource, axis, context_number, decimals, select_rows
from .missing import unmasked
from .splits import dataset_split

_GROUPS = ("dimensions", "boundary_conditions", "scalars", "t0_fields", "t1_fields")
_DESCRIBE_BYTES = 64 << 20


def read(
    path: str | Path,
    *,
    select: slice | Sequence[int] | np.ndarray | Callable[[FieldSource], Sequence[int]] | None = None,
    fields: Sequence[str] | None = None,
) -> FieldFile:
    """Read a field file of The Well's layout, or a 1-D file of PDEBench.

    Parameters
    ----------
    path : the HDF5 file
    select : trajectories to read, a slice, a list of numbers, or a function of the open file that gives one; all by
        default
    fields : names of scalar and vector fields, in the wanted channel order; by default all, scalars first

    Raises
    ------
    EnmaError
        If the file is missing, not HDF5, truncated, lacks a group, dataset or attribute, has a wrong shape or
        dtype, or holds values that are not finite. The line names the file, the place in it and the fix.
    """
    path = Path(path)

    def work(file: Any, more: Limits) -> dict[str, Any]:
        source = _source(file, path, fields)
        chosen = select(source) if callable(select) else select
        return source.load(select_rows(chosen, source.num_trajectories, path), more).parts()

    return FieldFile(path=path, **hdf5.read_file(path, work))


def count(path: str | Path) -> int:
    """Number of trajectories of a field file; reads no values. Raises as `read`."""
    path = Path(path)
    found: int = hdf5.read_file(path, lambda file, _: _source(file, path, None).num_trajectories)
    return found


def channels_of(path: str | Path) -> dict[str, tuple[str, ...]]:
    """Names of the fields of a field file, and of the channels of each; reads no values. Raises as `read`."""
    path = Path(path)

    def work(file: Any, more: Limits) -> dict[str, tuple[str, ...]]:
        arrays = _source(file, path, None).arrays
        return {a.where.rpartition("/")[2] if "/" in a.where else a.channels[0]: a.channels for a in arrays}

    found: dict[str, tuple[str, ...]] = hdf5.read_file(path, work)
    return found


def read_numbered(
    path: str | Path, numbers: Sequence[int] | Callable[[int], Sequence[int]], *, contexts: bool = False
) -> FieldFile:
    """Read trajectories of a field file, which keep their numbers, and with `contexts` their context trajectories.

    `numbers` may be a function of how many the file holds. `EnmaError` as `read`; with `contexts`, if a trajectory has
    none.
    """
    path = Path(path)

    def work(file: Any, more: Limits) -> dict[str, Any]:
        source = _source(file, path, None)
        chosen = numbers(source.num_trajectories) if callable(numbers) else numbers
        every, rows = np.arange(source.num_trajectories), select_rows(chosen, source.num_trajectories, path)
        found = {context_number(path, source.environment, int(i), every) for i in rows if contexts}
        rows = np.union1d(rows, sorted(found)).astype(np.int64)
        return replace(source.load(rows, more), numbers=rows, total=source.num_trajectories).parts()

    return FieldFile(path=path, **hdf5.read_file(path, work))


def describe(path: str | Path) -> dict[str, Any]:
    """Describe the contents of a field file; reads every value, in pieces, so damage is found.

    Returns
    -------
    dict of plain data for JSON: file, layout, name, split (None if the name has none), trajectories, groups (None
    without environments), frames, time [first, last], points, lengths, periodic, channels, units and rms per
    channel, parameters (name -> [min, max]).

    Raises
    ------
    EnmaError
        As `read`.
    """
    path = Path(path)
    found: dict[str, Any] = hdf5.read_file(path, lambda file, more: _description(_source(file, path, None), more))
    return found


def _description(source: FieldSource, more: Limits) -> dict[str, Any]:
    points = [len(x) for x in source.coords]
    values_each = len(source.times) * int(np.prod(points))
    step = max(1, _DESCRIBE_BYTES // (4 * values_each * len(source.channels)))
    squares = np.zeros(len(source.channels))
    more(source.num_bytes(source.num_trajectories))
    for first in range(0, source.num_trajectories, step):
        u = source.load(np.arange(first, min(first + step, source.num_trajectories))).u
        squares += np.square(u, dtype=np.float64).reshape(-1, u.shape[-1]).sum(axis=0)
    rms = np.sqrt(squares / (source.num_trajectories * values_each))
    groups = None if source.environment is None else len(np.unique(source.environment))
    return {
        "file": str(source.path),
        "layout": source.layout,
        "name": source.name,
        "split": dataset_split(source.name)[1],
        "trajectories": source.num_trajectories,
        "groups": groups,
        "frames": len(source.times),
        "time": [float(source.times[0]), float(source.times[-1])],
        "points": points,
        "lengths": list(source.domain.lengths),
        "periodic": list(source.periodic),
        "channels": list(source.channels),
        "units": source.units,
        "rms": dict(zip(source.channels, rms.tolist(), strict=True)),
        "parameters": {key: [float(v.min()), float(v.max())] for key, v in source.parameters.items()},
    }


def write(
    path: str | Path,
    *,
    t0_fields: Mapping[str, np.ndarray],
    t1_fields: Mapping[str, np.ndarray] | None = None,
    units: Mapping[str, str] | None = None,
    environment_by: Sequence[str] = (),
    **header: Any,
) -> Path:
    """Write a field file in one step: it appears complete or not at all.

    Parameters
    ----------
    t0_fields, t1_fields : name -> [n, T, x..] and [n, T, x.., component]
    units : name of a field -> its unit, where it has one
    environment_by : names of the columns by whose values the environments are numbered
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
    return path


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


def _source(file: Any, path: Path, fields: Sequence[str] | None) -> FieldSource:
    if pdebench.is_pdebench(file):
        if fields is not None and list(fields) != ["u"]:
            raise EnmaError(f"{path}: PDEBench's 1-D files hold one field, named 'u' here; ask for fields=['u']")
        return pdebench.source(file, path)
    if not any(key in file for key in _GROUPS):
        raise EnmaError(f"{path}: is no field file in The Well's layout; {hdf5.import_first(path)}")
    groups = {key: hdf5.get(file, key, "group") for key in _GROUPS}
    if (grid_type := hdf5.text(file, "grid_type")) != "cartesian":
        raise EnmaError(f"{path}: attribute grid_type is '{grid_type}'; only cartesian grids are read")
    num_trajectories = hdf5.number(file, "n_trajectories", most=MOST_TRAJECTORIES)
    dims = hdf5.names(groups["dimensions"], "spatial_dims")
    if not 1 <= len(dims) <= len(SPACE) or len(set(dims)) < len(dims):
        raise EnmaError(f"{path}: dimensions@spatial_dims names {len(dims)} dimensions; name 1 to 3, each once")
    wraps = _periodic_dims(groups["boundary_conditions"])
    coords = tuple(
        axis(hdf5.get(groups["dimensions"], d, "dataset"), f"dimensions/{d}", path, periodic=d in wraps) for d in dims
    )
    scalars = _scalars(groups["scalars"], num_trajectories, path)
    given = {key: hdf5.attribute(file, key, default=()) for key in hdf5.names(file, "simulation_parameters")}
    constants = {
        key: np.broadcast_to(decimals(np.asarray(value)), num_trajectories)
        for key, value in given.items()
        if np.ndim(value) == 0 and isinstance(value, np.number) and np.isfinite(value)
    }
    environment = scalars.pop("environment", None)
    columns: tuple[str, ...] = ()
    if environment is not None and "columns" in groups["scalars"]["environment"].attrs:
        columns = tuple(hdf5.names(groups["scalars"]["environment"], "columns"))
    return FieldSource(
        path=path,
        layout="the_well",
        name=hdf5.text(file, "dataset_name"),
        num_trajectories=num_trajectories,
        times=axis(hdf5.get(groups["dimensions"], "time", "dataset"), "dimensions/time", path, fewest=1),
        coords=coords,
        periodic=tuple(d in wraps for d in dims),
        parameters={**constants, **scalars},
        environment=environment,
        environment_by=columns,
        arrays=_arrays(groups, dims, fields, path),
    )


def _periodic_dims(boundaries: Any) -> set[str]:
    wraps: set[str] = set()
    for key in boundaries:
        group = hdf5.get(boundaries, key, "group")
        if hdf5.text(group, "bc_type").lower() == "periodic":
            wraps.update(hdf5.names(group, "associated_dims"))
    return wraps


def _scalars(group: Any, num_trajectories: int, path: Path) -> dict[str, np.ndarray]:
    """Scalars that do not vary in time, one value per trajectory each."""
    scalars = {}
    for key in hdf5.names(group, "field_names"):
        dataset = hdf5.get(group, key, "dataset")
        if hdf5.flag(dataset, "time_varying", default=False):
            continue
        integer = key == "environment"
        if dataset.dtype.kind not in ("iu" if integer else "fiu"):
            wanted = "int64" if integer else "float32"
            raise EnmaError(f"{path}: scalars/{key} has dtype {dataset.dtype}; write it as {wanted}")
        values = dataset[()].astype(np.int64) if integer else decimals(dataset[()])
        if hdf5.flag(dataset, "sample_varying", default=True):
            if values.shape != (num_trajectories,):
                raise EnmaError(
                    f"{path}: scalars/{key} has shape {values.shape}, expected {(num_trajectories,)}; "
                    "write one value per trajectory"
                )
        elif values.size == 1:
            values = np.broadcast_to(values.reshape(()), num_trajectories)
        else:
            raise EnmaError(f"{path}: scalars/{key} does not vary but has shape {values.shape}; write one value")
        if not np.isfinite(values).all():
            row = int(np.argmin(np.isfinite(values)))
            raise EnmaError(f"{path}: scalars/{key} is {values[row]} at trajectory {row}; write a finite value")
        scalars[key] = values
    return scalars


def _arrays(
    groups: Mapping[str, Any], dims: list[str], fields: Sequence[str] | None, path: Path
) -> tuple[FieldArray, ...]:
    found = {}
    for rank in (0, 1):
        group = groups[f"t{rank}_fields"]
        for key in hdf5.names(group, "field_names"):
            where = f"t{rank}_fields/{key}"
            dataset = hdf5.get(group, key, "dataset")
            channels: tuple[str, ...] = (key,)
            if rank:
                components = dataset.shape[-1] if dataset.ndim else 0
                if components > MOST_COMPONENTS:
                    raise EnmaError(f"{path}: {where} has {components} components; at most {MOST_COMPONENTS} are read")
                names = dims if components == len(dims) else range(components)
                channels = tuple(f"{key}_{name}" for name in names)
            dim_varying = hdf5.flags(dataset, "dim_varying", default=[True] * len(dims))
            if len(dim_varying) != len(dims):
                raise EnmaError(
                    f"{path}: {where}@dim_varying has {len(dim_varying)} flags for {len(dims)} dimensions; "
                    "write one for each"
                )
            found[key] = FieldArray(
                dataset=dataset,
                where=where,
                channels=channels,
                vector=bool(rank),
                sample_varying=hdf5.flag(dataset, "sample_varying", default=True),
                time_varying=hdf5.flag(dataset, "time_varying", default=True),
                dim_varying=dim_varying,
                unit=hdf5.text(dataset, "units") if "units" in dataset.attrs else "1",
            )
    wanted = list(found) if fields is None else list(fields)
    for key in wanted:
        if key not in found:
            raise EnmaError(f"{path}: has no field '{key}'; it holds {', '.join(found) or 'none'}")
    return tuple(found[key] for key in wanted)


def _create_dataset(group: Any, key: str, value: np.ndarray, **attributes: bool) -> None:
    dataset = group.create_dataset(key, data=value)
    for attribute, flag in attributes.items():
        dataset.attrs[attribute] = flag


def _string_array(names: Any) -> np.ndarray:
    return np.array(list(names), dtype=load_extra("h5py", "data").string_dtype())
