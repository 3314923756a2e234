"""Imports of optional packages, on first use."""

from importlib import import_module
from typing import Any

from ..errors import EnmaError


def load_extra(module: str, extra: str) -> Any:
    """Import a module that an extra of the package installs; an `EnmaError` says how to install one that is missing."""
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise EnmaError(f"{error.name} is not installed; run: pip install 'enma-fast[{extra}]'") from error
