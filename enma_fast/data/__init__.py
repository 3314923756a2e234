"""Data: equations (one file each in `equations/`), their splits, field files (HDF5 in The Well layout), and readings.

Importing this package needs NumPy only; h5py (`pip install enma_fast[data]`) is loaded on first use, and an equation
when it is asked for.

An equation is a file in `equations/`, a kind of file a reader here. Nothing here knows a model.
"""

from ..domain import SPACING_TOLERANCE
from .checks import check_values, constant_channels, leave_out
from .equations import EQUATIONS
from .fields import FieldFile, decimals, is_even
from .generator import generate, output_path
from .importing import FIRST_FRAME, SERIES, ImportOptions, import_fields
from .missing import NETCDF_FILL, attributes, require_present, unmasked
from .readings import DOMAIN_TOLERANCE, Readings, is_readings, read_readings
from .shipped import PRETRAINED, example, remedy_for, shipped_file, shipped_paths
from .splits import DEFAULT_GROUPS, dataset_split
from .subset import spread_out, subset
from .well import count, describe, read, read_numbered, write, write_fields

__all__ = [
    "DEFAULT_GROUPS",
    "DOMAIN_TOLERANCE",
    "EQUATIONS",
    "FIRST_FRAME",
    "NETCDF_FILL",
    "PRETRAINED",
    "SERIES",
    "SPACING_TOLERANCE",
    "FieldFile",
    "ImportOptions",
    "Readings",
    "attributes",
    "check_values",
    "constant_channels",
    "count",
    "dataset_split",
    "decimals",
    "describe",
    "example",
    "generate",
    "import_fields",
    "is_even",
    "is_readings",
    "leave_out",
    "output_path",
    "read",
    "read_numbered",
    "read_readings",
    "remedy_for",
    "require_present",
    "shipped_file",
    "shipped_paths",
    "spread_out",
    "subset",
    "unmasked",
    "write",
    "write_fields",
]
