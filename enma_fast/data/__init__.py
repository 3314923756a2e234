"""Data: equations (one file each in `equations/`), their splits, field files (HDF5 in The Well layout), and readings.

Importing this package needs NumPy only; h5py (`pip install enma_fast[data]`) is loaded on first use, and an equation
when it is asked for.

An equation is a file in `equations/`, a kind of file a reader here. Nothing here knows a model.
"""

from ..domain import SPACING_TOLERANCE as SPACING_TOLERANCE
from .checks import check_values as check_values
from .checks import constant_channels as constant_channels
from .checks import leave_out as leave_out
from .equations import EQUATIONS as EQUATIONS
from .fields import FieldFile as FieldFile
from .fields import decimals as decimals
from .fields import is_even as is_even
from .generator import generate as generate
from .generator import output_path as output_path
from .importing import FIRST_FRAME as FIRST_FRAME
from .importing import SERIES as SERIES
from .importing import ImportOptions as ImportOptions
from .importing import import_fields as import_fields
from .missing import NETCDF_FILL as NETCDF_FILL
from .missing import attributes as attributes
from .missing import require_present as require_present
from .missing import unmasked as unmasked
from .readings import DOMAIN_TOLERANCE as DOMAIN_TOLERANCE
from .readings import Readings as Readings
from .readings import is_readings as is_readings
from .readings import read_readings as read_readings
from .shipped import PRETRAINED as PRETRAINED
from .shipped import example as example
from .shipped import remedy_for as remedy_for
from .shipped import shipped_file as shipped_file
from .shipped import shipped_paths as shipped_paths
from .shipped import warn_of_leaving as warn_of_leaving
from .splits import DEFAULT_GROUPS as DEFAULT_GROUPS
from .splits import dataset_split as dataset_split
from .subset import spread_out as spread_out
from .subset import subset as subset
from .well import count as count
from .well import describe as describe
from .well import read as read
from .well import read_numbered as read_numbered
from .well_writing import write as write
from .well_writing import write_fields as write_fields
