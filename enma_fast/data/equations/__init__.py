"""Equations, one file each: every module in this folder defines an `EQUATION`, and is found by its name."""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Iterator, Mapping

from ...errors import EnmaError
from ..equation import Equation


class _Folder(Mapping[str, Equation]):
    """The equations of this folder by the names of their files, each imported when it is asked for."""

    def __getitem__(self, name: str) -> Equation:
        if name not in _names(*__path__):
            raise KeyError(name)
        entry: Equation = importlib.import_module(f"{__name__}.{name}").EQUATION
        if entry.name != name:
            raise EnmaError(f"equations/{name}.py: its EQUATION is named '{entry.name}'; give it the name of the file")
        return entry

    def __iter__(self) -> Iterator[str]:
        return iter(_names(*__path__))

    def __len__(self) -> int:
        return len(_names(*__path__))


@functools.cache
def _names(*folders: str) -> tuple[str, ...]:
    return tuple(module.name for module in pkgutil.iter_modules(folders))


EQUATIONS: Mapping[str, Equation] = _Folder()
