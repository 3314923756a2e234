"""Missing values: masked entries and the numbers that stand for one are no observations."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from ..errors import EnmaError

# Attributes by which NetCDF's conventions say what stands for a missing value.
FILL_ATTRIBUTES = ("_FillValue", "missing_value")
# NetCDF's fill value of floats that were never written.
NETCDF_FILL = np.float32(9.969209968386869e36)

# Numbers that data sets use for missing values, some without a word in the file.
USUAL_FILLS = (-999, -9999, -99999, 9999, 99999, -32767, -32768, 1e20, -1e20, 9.999e20, 1e30, -1e30, -1e34, 1e36)


def present(values: np.ndarray, marks: Iterable[Any] = ()) -> np.ndarray:
    """Mask of the values that are observations: neither NetCDF's fill value nor a number among `marks`."""
    found = values != NETCDF_FILL
    for mark in marks:
        number = np.asarray(mark)
        if number.dtype.kind in "fiu" and number.size == 1 and np.isfinite(number).all():
            with np.errstate(over="ignore", invalid="ignore"):
                absent = number.astype(values.dtype).reshape(())
            # A number that integers cannot hold becomes another one, which stands for nothing.
            if values.dtype.kind == "f" or absent == number:
                found &= values != absent
    return found


def undeclared_fill(values: np.ndarray) -> np.floating[Any] | None:
    """A usual number of missing values that is farther from all other values than these are from each other."""
    for extreme, other in ((values.min(), np.min), (values.max(), np.max)):
        if extreme in np.asarray(USUAL_FILLS, dtype=values.dtype):
            rest = values[values != extreme]
            # Without two others there is no distance to compare with.
            if rest.size and (spread := np.ptp(rest)) > 0 and abs(extreme - other(rest)) > spread:
                return extreme
    return None


def unmasked(name: str, value: Any) -> np.ndarray:
    """The values as a numpy array; `EnmaError` if an entry is masked."""
    # A variable of netCDF4 gives a masked array when it is sliced, and drops the mask when it is converted.
    array = value[...] if hasattr(value, "ncattrs") else value
    if isinstance(array, np.ma.MaskedArray):
        if np.ma.is_masked(array):
            raise EnmaError(
                f"{name} is masked, {np.ma.count_masked(array)} of {array.size} values are missing, first at "
                f"{_first(np.ma.getmaskarray(array))}; fill them, for example by interpolation, or leave them out"
            )
        array = array.data
    return np.asarray(array)


def attributes(value: Any) -> dict[str, Any]:
    """Attributes of a variable of xarray, h5py, h5netcdf or netCDF4; an array has none."""
    if hasattr(value, "ncattrs"):
        return {name: value.getncattr(name) for name in value.ncattrs()}
    return dict(getattr(value, "attrs", None) or {})


def require_present(name: str, values: np.ndarray, about: Mapping[str, Any]) -> None:
    """Raise `EnmaError` if a value equals the fill value that the attributes name."""
    if values.dtype.kind not in "fiu":
        return
    found = present(values, [about.get(mark) for mark in FILL_ATTRIBUTES])
    if not found.all():
        at = _first(~found)
        raise EnmaError(
            f"{name} holds {values[at]}, the number of a missing value, first at {at}; "
            "fill such values, for example by interpolation, or leave them out"
        )


def _first(mask: np.ndarray) -> tuple[int, ...]:
    return tuple(int(i) for i in np.argwhere(mask)[0])
