"""Traces of a forecast's parts in a program in C++ over libtorch, for `benchmarks.embed_others`."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.cpp_extension import include_paths, library_paths

from enma_fast.errors import EnmaError

SOURCE = Path(__file__).with_name("libtorch_frame.cpp")


class Held(nn.Module):
    """Tensors by name, for a program that opens it."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        for name, values in tensors.items():
            self.register_buffer(name, values)

    def forward(self) -> int:
        return 0


def compiled(folder: Path) -> Path:
    """The program, compiled against the libtorch of this installation; `EnmaError` if it cannot be."""
    if shutil.which("g++") is None:
        raise EnmaError("needs g++")
    program = folder / "libtorch_frame"
    includes = [f"-isystem{path}" for path in include_paths()]
    libraries = [flag for path in library_paths() for flag in (f"-L{path}", f"-Wl,-rpath,{path}")]
    command = ["g++", "-std=c++20", "-O1", "-Wno-psabi", *includes, str(SOURCE), *libraries]
    command += ["-ltorch", "-ltorch_cpu", "-lc10", "-o", str(program)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise EnmaError(f"does not compile: {done.stderr.strip().partition(chr(10))[0]}")
    return program


class Program:
    """Forecasts of one set of members by the program, which waits between them."""

    def __init__(
        self,
        program: Path,
        parts: tuple[Any, Any],
        tensors: Mapping[str, Tensor],
        folder: Path,
        *,
        shape: Sequence[int],
    ) -> None:
        paths = [folder / f"{name}.pt" for name in ("step", "decoder", "start")]
        for part, path in zip((*parts, torch.jit.script(Held(tensors))), paths, strict=True):
            torch.jit.save(part, str(path))
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self._frames = folder / "frames.bin"
        self._frames.unlink(missing_ok=True)
        self._shape = tuple(shape)
        self._running = subprocess.Popen([program, *paths, self._frames], text=True, **pipes)  # type: ignore[call-overload]

    def __enter__(self) -> Program:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._running.stdin.close()
        self._running.wait()
        self._running.stdout.close()

    def forecast(self) -> float:
        """Its processor time in seconds."""
        self._running.stdin.write("\n")
        self._running.stdin.flush()
        answer = self._running.stdout.readline().strip()
        if not answer:
            raise EnmaError(f"{SOURCE.name} ended with status {self._running.wait()}")
        return float(answer)

    def frames(self, observed: int) -> np.ndarray:
        """Members' frames `[B, T, *grid, c]` after the observed ones, of the first forecast, which wrote them."""
        return np.fromfile(self._frames, dtype=np.float32).reshape(self._shape)[:, observed:]
