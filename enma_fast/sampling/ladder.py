"""The ladder of ways to compute on a GPU, the fastest first: one that fails is left for the next one down.

    graph       captured CUDA graphs, one launch a frame
    static      the step that they contain, launch by launch
    reference   PyTorch's own operations, without Triton and the extension (``eager`` in ENMA_GPU)

A rung fails by any error: of Triton, a compiler, a driver, a capture. Two are passed on, since they are of the request:
`EnmaError`, and memory that ran out. The rung that works is remembered as long as the process runs.
"""

from __future__ import annotations

import functools
import logging
import os
import threading
from collections.abc import Callable, Hashable, Mapping
from typing import TypeVar

from ..config import CodecConfig
from ..errors import EnmaError, first_line, out_of_memory

logger = logging.getLogger(__name__)

RUNGS = {"graph": "graph", "static": "static", "eager": "reference"}
# Names the only rung to stand on.
VARIABLE = "ENMA_GPU"

_T = TypeVar("_T")


class Ladder:
    """Rungs from the fastest to the one that always works, and the one that is stood on.

    Attributes
    ----------
    what
        What is computed, as the subject of a message.
    proved
        True where this rung has given what it should.
    """

    def __init__(self, what: str, rungs: tuple[str, ...]) -> None:
        self.what, self.proved = what, False
        self._rungs, self._lock = rungs, threading.Lock()

    @property
    def rung(self) -> str:
        """The rung that is stood on."""
        return self._rungs[0]

    def climb(self, attempt: Callable[[str], _T]) -> _T:
        """The result of an attempt on a rung, the first one down from here on which it succeeds.

        Raises
        ------
        EnmaError
            If the only rung fails; names the reason.
        """
        while True:
            rung = self.rung
            try:
                return attempt(rung)
            # Triton's errors, and those of the compilers that it calls, have no class in common.
            except Exception as error:
                if isinstance(error, EnmaError) or out_of_memory(error):
                    raise
                self._leave(rung, error)

    def _leave(self, rung: str, error: Exception) -> None:
        reason = f"{type(error).__name__}: {first_line(error)}"
        with self._lock:
            # Another thread may have left it meanwhile.
            if rung != self.rung:
                return
            if len(self._rungs) == 1:
                if os.environ.get(VARIABLE):
                    raise EnmaError(
                        f"{self.what} by {rung!r} alone, which fails: {reason}; unset {VARIABLE}"
                    ) from error
                raise error
            self._rungs, self.proved = self._rungs[1:], False
        logger.warning("%s by %r from now on; %r fails: %s", self.what, self.rung, rung, reason)


@functools.cache
def ladder_of(what: str, rungs: tuple[str, ...], *of: Hashable) -> Ladder:
    """The ladder of this process for what is computed, by model, format and device."""
    return Ladder(what, rungs)


def rungs_of(problems: Mapping[str, str | None]) -> tuple[str, ...]:
    """The rungs that have no problem and, last, the reference; or the only one that ENMA_GPU names.

    `EnmaError` if it names none, or one that has a problem.
    """
    asked = os.environ.get(VARIABLE)
    if not asked:
        return (*(rung for rung in ("graph", "static") if problems[rung] is None), "reference")
    if asked not in RUNGS:
        raise EnmaError(f"{VARIABLE} is {asked!r}; expected one of {', '.join(RUNGS)}")
    rung = RUNGS[asked]
    if rung != "reference" and (problem := problems[rung]) is not None:
        raise EnmaError(f"{VARIABLE}={asked} cannot run: {problem}")
    return (rung,)


def ladder_of_codec(codec: CodecConfig, backend: str | None) -> Ladder:
    """The ladder of encoding and decoding fields, or the only rung that a `backend` names."""
    rungs = rungs_of(dict.fromkeys(("graph", "static"))) if backend is None else (backend,)
    return ladder_of("fields are encoded and decoded", rungs, codec)
