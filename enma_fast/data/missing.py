"""Missing values: masked entries and the numbers that stand for one are no observations."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from ..errors import EnmaError

# Attributes by which NetCDF's conventions say what stands for a missing value.
FILL_ATTRIBUTES = ("_FillValue", "missing_value")
# Attributes by which they say between which numbers a value is none that is missing.
VALID_ATTRIBUTES = ("valid_range", "valid_min", "valid_max")
# NetCDF's fill value of floats that were never written.
NETCDF_FILL = np.float32(9.969209968386869e36)

# Numbers that data sets use for missing values, some without a word in the file.
USUAL_FILLS = (-999, -9999, -99999, 9999, 99999, -32767, -32768, 1e20, -1e20, 9.999e20, 1e30, -1e30, -1e34, 1e36)


def present(values: np.ndarray, marks: Iterable[Any] = ()) -> np.ndarray:
    """Mask of the values that are observations: neither NetCDF's fill value nor a number among `marks`."""
    observed = values != NETCDF_FILL
    for mark in marks:
        number = np.asarray(mark)
        if number.dtype.kind in "fiu" and number.size == 1 and np.isfinite(number).all():
            with np.errstate(over="ignore", invalid="ignore"):
                absent = number.astype(values.dtype).reshape(())
            # A number that integers cannot hold becomes another one, which stands for nothing.
            if values.dtype.kind == "f" or absent == number:
                observed &= values != absent
    return observed


def in_place(mask: np.ndarray) -> bool:
    """Whether `[n, T, ...]` is False at the same places in all frames of all trajectories, not at all of them."""
    first_frame = mask[:1, :1]
    return bool(first_frame.any() and (mask == first_frame).all())


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
    """Raise `EnmaError` if a value equals the fill value that the attributes name, or is outside their valid range."""
    if values.dtype.kind not in "fiu":
        return
    observed = present(values, [about.get(mark) for mark in FILL_ATTRIBUTES])
    if not observed.all():
        at = _first(~observed)
        raise EnmaError(
            f"{name} holds {values[at]}, the number of a missing value, first at {at}; "
            "fill such values, for example by interpolation, or leave them out"
        )
    require_valid(name, values, about)


def require_valid(name: str, values: np.ndarray, about: Mapping[str, Any]) -> None:
    """Raise `EnmaError` if a value is outside the valid range that the attributes name."""
    outside = invalid(values, about)
    if outside.any():
        at = _first(outside)
        said = ", ".join(f"{mark} {np.asarray(about[mark]).tolist()}" for mark in VALID_ATTRIBUTES if mark in about)
        raise EnmaError(
            f"{name} holds {values[at]} at {at}, outside its {said}, so the value is missing; "
            "fill such values, for example by interpolation, or leave them out, or correct the attribute"
        )


def invalid(values: np.ndarray, about: Mapping[str, Any]) -> np.ndarray:
    """Mask of the values outside the valid range that attributes of NetCDF's conventions name.

    `values` are unpacked; `about` may say by `scale_factor`, `add_offset` and `dtype` how they were packed.
    """
    outside = np.zeros(values.shape, bool)
    if values.dtype.kind not in "fiu":
        return outside
    ends = np.ravel(about.get("valid_range", [])).tolist()
    ends = ends if len(ends) == 2 else [about.get("valid_min"), about.get("valid_max")]
    bounds = [_unpacked(bound, values.dtype, about) for bound in ends]
    if all(bound is not None for bound in bounds):
        # A negative scale exchanges them.
        bounds = sorted(bounds)
    for bound, beyond in zip(bounds, (np.less, np.greater), strict=True):
        if bound is not None:
            outside |= beyond(values, bound)
    return outside


def _unpacked(bound: Any, dtype: np.dtype[Any], about: Mapping[str, Any]) -> Any:
    """A bound as the values are unpacked, if it is of the type that they are packed in; None if it is no number."""
    number = np.asarray(bound)
    if number.dtype.kind not in "fiu" or number.size != 1 or not np.isfinite(number).all():
        return None
    number, packed = number.reshape(()), np.dtype(about.get("dtype", dtype))
    if number.dtype.kind in "iu" and packed.kind in "iu" and str(about.get("_Unsigned")).lower() == "true":
        number = number.astype(np.int64) % (1 << 8 * packed.itemsize)
    scale, offset = about.get("scale_factor"), about.get("add_offset")
    if (scale is None and offset is None) or (number.dtype.kind == "f") != (packed.kind == "f"):
        return number[()]
    # In the steps of xarray, so that a value at the bound is within.
    unpacked = np.array(number, dtype)
    unpacked *= 1 if scale is None else scale
    unpacked += 0 if offset is None else offset
    return unpacked[()]


def _first(mask: np.ndarray) -> tuple[int, ...]:
    return tuple(int(i) for i in np.argwhere(mask)[0])
