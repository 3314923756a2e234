"""Data: one module per equation, the splits, and field files (HDF5 in The Well layout).

Importing this package needs NumPy only; h5py, JAX and exponax (`pip install enma_fast[data]`) are loaded on
first use.
"""

from .fields import FieldFile
from .generator import EQUATIONS, generate
from .splits import DEFAULT_GROUPS, dataset_split
from .well import describe, read, write

__all__ = ["DEFAULT_GROUPS", "EQUATIONS", "FieldFile", "dataset_split", "describe", "generate", "read", "write"]
