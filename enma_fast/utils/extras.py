"""Packages of optional extras, imported on first use."""

from importlib import import_module
from typing import Any

from ..errors import EnmaError


def load_extra(module: str, extra: str) -> Any:
    """Import a module of an extra.

    Raises
    ------
    EnmaError
        When it is not installed; the line says how to install it.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise EnmaError(f"{error.name} is not installed; run: pip install 'enma-fast[{extra}]'") from error
