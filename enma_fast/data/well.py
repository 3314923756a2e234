"""Field files: HDF5 in the layout of The Well (https://polymathic-ai.org/the_well/data_format).

    root                   @dataset_name @grid_type @n_spatial_dims @n_trajectories @simulation_parameters
    dimensions             @spatial_dims; time [T], x [X], ...                        float32, or float64 if need be
    boundary_conditions    <dim>_periodic: @bc_type @associated_dims; mask [X]        bool
    scalars                @field_names; one [n] per PDE parameter, [n, T] per series float32
                           environment [n] @columns                                   int64
    t0_fields              @field_names; scalar fields [n, T, X, ...]                 float32
    t1_fields              @field_names; vector fields [n, T, X, ..., component]      float32

A field may have the attribute `units`, which The Well has not; without it the unit is "1". Trajectories with the
same `environment` share the PDE and its parameters; `columns`, which The Well has not, names those that it was made
from. Scalars and fields with the attribute `known`, which The Well has not, are drivers: models are told them, and they
are no channels. As in The Well they may be constant in time, over the trajectories and along axes. NaN that stays in
place in all frames is a mask. Tensor fields (`t2_fields`) and other scalars that vary in time are not read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import EnmaError
from ..utils.bounds import MOST_COMPONENTS, MOST_TRAJECTORIES
from ..utils.names import SPACE
from ..utils.untrusted import Limits
from . import hdf5, pdebench
from .fields import FieldArray, FieldFile, FieldSource, axis, context_number, decimals, select_rows
from .splits import dataset_split

_GROUPS = ("dimensions", "boundary_conditions", "scalars", "t0_fields", "t1_fields")
_DESCRIBE_BYTES = 64 << 20


def read(
    path: str | Path,
    *,
    select: slice | Sequence[int] | np.ndarray | Callable[[FieldSource], Sequence[int]] | None = None,
    fields: Sequence[str] | None = None,
    known: Sequence[str] = (),
) -> FieldFile:
    """Read a field file of The Well's layout, or a 1-D file of PDEBench.

    Parameters
    ----------
    path : the HDF5 file
    select : trajectories to read, a slice, a list of numbers, or a function of the open file that gives one; all by
        default
    fields : names of scalar and vector fields, in the wanted channel order; by default all, scalars first
    known : names of parameters, series and fields that models are told; those that the file marks are always

    Raises
    ------
    EnmaError
        If the file is missing, not HDF5, truncated, lacks a group, dataset or attribute, has a wrong shape or
        dtype, or holds values that are not finite. The line names the file, the place in it and the fix.
    """
    path = Path(path)

    def work(file: Any, more: Limits) -> dict[str, Any]:
        source = _source(file, path, fields, known)
        chosen = select(source) if callable(select) else select
        return source.load(select_rows(chosen, source.num_trajectories, path), more).parts()

    return FieldFile(path=path, **hdf5.read_file(path, work))


def count(path: str | Path) -> int:
    """Number of trajectories of a field file; reads no values. Raises as `read`."""
    path = Path(path)
    total: int = hdf5.read_file(path, lambda file, _: _source(file, path, None).num_trajectories)
    return total


def channels_of(path: str | Path) -> dict[str, tuple[str, ...]]:
    """Names of the fields of a field file, and of the channels of each; reads no values. Raises as `read`."""
    path = Path(path)

    def work(file: Any, more: Limits) -> dict[str, tuple[str, ...]]:
        arrays = _source(file, path, None).arrays
        return {a.where.rpartition("/")[2] if "/" in a.where else a.channels[0]: a.channels for a in arrays}

    channels: dict[str, tuple[str, ...]] = hdf5.read_file(path, work)
    return channels


def read_numbered(
    path: str | Path,
    numbers: Sequence[int] | Callable[[int], Sequence[int]],
    *,
    contexts: bool = False,
    known: Sequence[str] = (),
) -> FieldFile:
    """Read trajectories of a field file, which keep their numbers, and with `contexts` their context trajectories.

    `numbers` may be a function of how many the file holds, `known` is as that of `read`. `EnmaError` as `read`; with
    `contexts`, if a trajectory has none.
    """
    path = Path(path)

    def work(file: Any, more: Limits) -> dict[str, Any]:
        source = _source(file, path, None, known)
        chosen = numbers(source.num_trajectories) if callable(numbers) else numbers
        every, rows = np.arange(source.num_trajectories), select_rows(chosen, source.num_trajectories, path)
        context_rows = {context_number(path, source.environment, int(i), every) for i in rows if contexts}
        rows = np.union1d(rows, sorted(context_rows)).astype(np.int64)
        return replace(source.load(rows, more), numbers=rows, total=source.num_trajectories).parts()

    return FieldFile(path=path, **hdf5.read_file(path, work))


def describe(path: str | Path) -> dict[str, Any]:
    """Describe the contents of a field file; reads every value, in pieces, so damage is found.

    Returns
    -------
    dict
        Plain data for JSON:

        * file, layout, name, and split (None if the name has none);
        * trajectories, groups (None without environments), frames, time [first, last], points, lengths, periodic;
        * channels, units and rms per channel, masked (share of the places that have no values);
        * parameters (name -> [min, max]) and known (names).

    Raises
    ------
    EnmaError
        As `read`.
    """
    path = Path(path)
    description: dict[str, Any] = hdf5.read_file(path, lambda file, more: _description(_source(file, path, None), more))
    return description


def _description(source: FieldSource, more: Limits) -> dict[str, Any]:
    points = [len(x) for x in source.coords]
    values_each = len(source.times) * int(np.prod(points))
    step = max(1, _DESCRIBE_BYTES // (4 * values_each * len(source.channels)))
    squares, mask = np.zeros(len(source.channels)), None
    more(source.num_bytes(source.num_trajectories))
    for first in range(0, source.num_trajectories, step):
        u = source.load(np.arange(first, min(first + step, source.num_trajectories))).u
        mask = np.isfinite(u[0, 0]) if mask is None else mask
        squares += np.nansum(np.square(u, dtype=np.float64).reshape(-1, u.shape[-1]), axis=0)
    assert mask is not None
    shares = mask.reshape(-1, mask.shape[-1]).mean(axis=0)
    rms = np.sqrt(squares / (source.num_trajectories * values_each * shares))
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
        "known": [*source.told, *(name for array in source.known for name in array.channels)],
        "masked": float(1 - shares.min()),
    }


def _source(file: Any, path: Path, fields: Sequence[str] | None, known: Sequence[str] = ()) -> FieldSource:
    if "tensor" in file and "dimensions" not in file:
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
    series, arrays = _series(groups["scalars"], dims), _arrays(groups, dims, path)
    told = _told(groups["scalars"], scalars, known)
    drivers = _drivers({**series, **arrays}, known)
    if lacking := [key for key in known if key not in {*told, *drivers}]:
        held = ", ".join([*constants, *scalars, *series, *arrays]) or "nothing"
        raise EnmaError(f"{path}: has no '{lacking[0]}' that a model could be told; it holds {held}")
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
        arrays=_chosen(path, arrays, [key for key in arrays if key not in drivers] if fields is None else fields),
        known=tuple(drivers.values()),
        told=told,
    )


def _told(group: Any, scalars: Mapping[str, np.ndarray], known: Sequence[str]) -> tuple[str, ...]:
    """Names of the parameters that models are told."""
    marked = [key for key in scalars if hdf5.flag(group[key], "known", default=False)]
    return tuple(dict.fromkeys([*marked, *(key for key in known if key in scalars)]))


def _drivers(arrays: Mapping[str, FieldArray], known: Sequence[str]) -> dict[str, FieldArray]:
    """The series and fields that models are told."""
    marked = [key for key, array in arrays.items() if hdf5.flag(array.dataset, "known", default=False)]
    return {key: arrays[key] for key in dict.fromkeys([*marked, *known]) if key in arrays}


def _chosen(path: Path, arrays: Mapping[str, FieldArray], wanted: Sequence[str]) -> tuple[FieldArray, ...]:
    """The fields that are channels."""
    for key in wanted:
        if key not in arrays:
            raise EnmaError(f"{path}: has no field '{key}'; it holds {', '.join(arrays) or 'none'}")
    return tuple(arrays[key] for key in wanted)


def _series(group: Any, dims: Sequence[str]) -> dict[str, FieldArray]:
    """Scalars that vary in time."""
    series = {}
    for key in hdf5.names(group, "field_names"):
        dataset = hdf5.get(group, key, "dataset")
        if hdf5.flag(dataset, "time_varying", default=False):
            series[key] = FieldArray(
                dataset=dataset,
                where=f"scalars/{key}",
                channels=(key,),
                sample_varying=hdf5.flag(dataset, "sample_varying", default=True),
                dim_varying=(False,) * len(dims),
            )
    return series


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


def _arrays(groups: Mapping[str, Any], dims: list[str], path: Path) -> dict[str, FieldArray]:
    """All scalar and vector fields."""
    arrays = {}
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
            arrays[key] = FieldArray(
                dataset=dataset,
                where=where,
                channels=channels,
                vector=bool(rank),
                sample_varying=hdf5.flag(dataset, "sample_varying", default=True),
                time_varying=hdf5.flag(dataset, "time_varying", default=True),
                dim_varying=dim_varying,
                unit=hdf5.text(dataset, "units") if "units" in dataset.attrs else "1",
            )
    return arrays
