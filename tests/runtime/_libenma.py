"""libenma, compiled from csrc for tests, and its functions through ctypes.

CC, CXX, FC and CXXFLAGS name other compilers, and flags such as those of a sanitizer: ``make embed`` uses them.
"""

from __future__ import annotations

import ctypes
import os
import platform
import re
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from ctypes import POINTER, byref, c_char_p, c_double, c_int32, c_int64, c_size_t, c_uint8, c_uint16, c_uint64, c_void_p
from pathlib import Path
from typing import Any

import numpy as np
import torch

import enma_fast
from enma_fast.ops._backend import native, native_problem

from .._extension import NATIVE
from .._objects import object_of

ROOT = Path(__file__).resolve().parents[2]
CSRC = ROOT / "csrc"
HEADER = (CSRC / "include/enma/enma.h").read_text()
SONAME = f"libenma.so.{re.search('ENMA_ABI_VERSION ([0-9]+)', HEADER)[1]}"
# Kernels that nothing here runs at length, where the extension says which ones it takes, are compiled the quick way.
KERNELS = {
    "avx512_bf16": ("gemm_avx512_bf16", "vector_kernels_avx512"),
    "avx512": ("gemm_avx512", "vector_kernels_avx512"),
    "avx2": ("gemm_avx2", "vector_kernels_avx2"),
    "scalar": ("gemm_scalar", "vector_kernels_portable"),
}
CC, CXX, FC = (os.environ.get(name, usual) for name, usual in (("CC", "gcc"), ("CXX", "g++"), ("FC", "gfortran")))
# Python runs the same code by the same compiler; others make the portable kernels alone, and PyTorch rounds otherwise.
SAME_CODE = NATIVE is not None and CXX == "g++"
# Rounding that is carried through a forecast, as a part of the largest value.
TOLERANCE = 1e-5
# ENMA_SMALL: half the time to compile, the same bits.
FLAGS = ["-std=c++20", "-O2", "-DENMA_SMALL", "-fPIC", "-fopenmp", "-fvisibility=hidden"]
FLAGS += ["-Wall", "-Wextra", "-Werror", "-Wno-psabi", f"-I{CSRC}", f"-I{CSRC / 'include'}"]
# As CMakeLists.txt: the bits depend on it.
FLAGS += ["-ffp-contract=off"] if platform.machine() == "x86_64" else []

ADDED = shlex.split(os.environ.get("CXXFLAGS", ""))
SANITIZED = any(flag.startswith("-fsanitize") for flag in ADDED)
# With its stand-in for the stack, g++ 12 aligns vectors of 64 bytes to 32 and then moves them as aligned.
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g1", "-O1"]
SANITIZERS += ["--param=asan-use-after-return=0"]
# Of kernels, as in `tests.ops._sanitizers`: half the time to compile.
QUICK = ["-fno-sanitize=null,alignment,object-size,vptr"]

OK, INVALID_ARGUMENT, CHECKPOINT, UNSUPPORTED, STATE, NO_MEMORY = range(6)


def sources() -> list[Path]:
    """C++ files of the library."""
    return [path for folder in ("core", "core/cpu", "runtime") for path in sorted((CSRC / folder).glob("*.cpp"))]


def run(command: list[str]) -> str:
    """Run a program that has to succeed; returns what it printed."""
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, (command, done.stdout[-2000:], done.stderr[-4000:])
    return done.stdout


def objects(folder: Path, added: list[str], compiler: str = CXX, made: Path | None = None) -> list[str]:
    """Compile every file of the library into a folder; kernels of wide vectors are not sanitized.

    No kernel is, nor compiled, where a build has `made` them.
    """
    mine = None
    if native_problem(torch.device("cpu")) is None:
        # Compilers other than GCC make the portable kernels alone.
        mine = KERNELS["scalar" if "clang" in compiler else native().cpu_isa()]
    others = {name for names in KERNELS.values() for name in names if mine and name not in mine}

    def compiled(path: Path) -> str:
        if made is not None and path.stem.startswith(("gemm_", "vector_kernels_")):
            return str(object_of(path, made))
        out = str(folder / f"{path.parent.name}_{path.stem}.o")
        quick = ["-O0"] if path.stem in others else []
        vectors = path.stem.startswith(("gemm_avx", "vector_kernels_avx"))
        flags = [flag for flag in added if not (vectors and "sanitize" in flag)]
        if path.stem in KERNELS["scalar"] and any("undefined" in flag for flag in flags):
            flags += QUICK
        # As CMakeLists.txt does, for the same bits; it would take a check from a sanitizer.
        flags += [] if any("undefined" in flag for flag in flags) else ["-fwrapv"]
        run([compiler, *FLAGS, *flags, *quick, "-c", str(path), "-o", out])
        return out

    # Those who wait for it have nothing to do.
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(compiled, sources()))


def installed() -> Path | None:
    """The library of `make install`; None if a source is newer, or compilers and flags are given."""
    library = Path(enma_fast.__file__).parent / "embed/lib" / SONAME
    if {"CC", "CXX", "CXXFLAGS"} & os.environ.keys() or not library.is_file():
        return None
    newest = max(path.stat().st_mtime for path in CSRC.rglob("*") if path.is_file())
    return library if library.stat().st_mtime > newest else None


def build(folder: Path) -> Path:
    """Compile and link the library into a folder."""
    library = folder / "libenma.so"
    script = f"-Wl,--version-script={CSRC / 'libenma.map'}"
    link = ["-shared", "-fopenmp", *ADDED, "-Wl,-z,defs", "-Wl,-z,nodelete", f"-Wl,-soname,{SONAME}", script]
    run([CXX, *link, *objects(folder, ADDED), "-o", str(library)])
    (folder / SONAME).symlink_to(library)
    return library


def assert_close(found: np.ndarray, expected: np.ndarray) -> None:
    """The numbers of Python, and its bits where it runs the same code."""
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= TOLERANCE * np.abs(expected).max()
    if SAME_CODE:
        assert np.array_equal(found, expected)


class Device(ctypes.Structure):
    _fields_ = (("device_type", c_int32), ("device_id", c_int32))


class DataType(ctypes.Structure):
    _fields_ = (("code", c_uint8), ("bits", c_uint8), ("lanes", c_uint16))


class Tensor(ctypes.Structure):
    """DLTensor of an array, which it keeps alive."""

    _fields_ = (
        ("data", c_void_p),
        ("device", Device),
        ("ndim", c_int32),
        ("dtype", DataType),
        ("shape", POINTER(c_int64)),
        ("strides", POINTER(c_int64)),
        ("byte_offset", c_uint64),
    )

    @classmethod
    def of(cls, array: np.ndarray) -> Tensor:
        sizes = (c_int64 * array.ndim)(*array.shape)
        strides = (c_int64 * array.ndim)(*(s // array.itemsize for s in array.strides))
        kind = {"f": 2, "i": 0}[array.dtype.kind]
        self = cls(
            array.ctypes.data, Device(1, 0), array.ndim, DataType(kind, 8 * array.itemsize, 1), sizes, strides, 0
        )
        self.kept = (array, sizes, strides)
        return self


class SessionOptions(ctypes.Structure):
    _fields_ = (
        ("struct_size", c_size_t),
        ("seed", c_uint64),
        ("trajectory", c_uint64),
        ("first_member", c_int64),
        ("num_members", c_int64),
        ("num_frames", c_int64),
        ("threads", c_int32),
        ("shifts", c_int32),
        ("temperature", c_double),
        ("isa", c_char_p),
    )


class Description(ctypes.Structure):
    _fields_ = (
        ("struct_size", c_size_t),
        ("name", c_char_p),
        ("weights_sha256", c_char_p),
        ("grid", c_int64),
        ("field_channels", c_int64),
        ("num_frames", c_int64),
        ("frame_interval", c_double),
        ("length", c_double),
        ("num_tokens", c_int64),
        ("token_channels", c_int64),
        ("shifts", c_int64),
        ("temperature", c_double),
        ("dims", c_int64),
        ("shape", c_int64 * 3),
        ("lengths", c_double * 3),
        ("periodic", c_int32 * 3),
        ("scattered", c_int32),
        ("format", c_int32),
    )


class Observations(ctypes.Structure):
    """Values of frames at scattered points, which it keeps alive; `counts` where each frame has points of its own."""

    _fields_ = (
        ("struct_size", c_size_t),
        ("points", POINTER(Tensor)),
        ("values", POINTER(Tensor)),
        ("counts", POINTER(c_int64)),
        ("num_frames", c_int64),
        ("errors", POINTER(c_double)),
        ("num_errors", c_int64),
    )

    @classmethod
    def of(
        cls, points: np.ndarray, values: np.ndarray, counts: list[int] | None = None, errors: Sequence[float] = ()
    ) -> Observations:
        tensors = [Tensor.of(points), Tensor.of(values)]
        rows = None if counts is None else (c_int64 * len(counts))(*counts)
        deviations = (c_double * len(errors))(*errors) if errors else None
        self = cls(ctypes.sizeof(cls), *map(ctypes.pointer, tensors), rows, 0 if counts is None else len(counts))
        self.errors, self.num_errors = deviations, len(errors)
        self.kept = (tensors, rows, deviations)
        return self


# Arrays of known inputs by name.
Known = Mapping[str, np.ndarray]
LogFunction = ctypes.CFUNCTYPE(None, c_void_p, c_int32, c_char_p)


class ModelOptions(ctypes.Structure):
    _fields_ = (("struct_size", c_size_t), ("log", LogFunction), ("log_user", c_void_p), ("format", c_int32))


class Failure(Exception):
    """A status other than ok, and its message."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


class Library:
    """The functions of enma.h; a failure is an exception."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.dll = ctypes.CDLL(str(path))
        self.dll.enma_last_error.restype = c_char_p
        self.messages: list[tuple[int, str]] = []
        self._log = LogFunction(lambda _, level, message: self.messages.append((level, message.decode())))

    def call(self, name: str, *arguments: Any) -> None:
        status = getattr(self.dll, f"enma_{name}")(*arguments)
        if status != OK:
            raise Failure(status, self.dll.enma_last_error().decode())

    def open(self, folder: Path | str, *, number_format: int = 0) -> Model:
        handle = c_void_p()
        options = ModelOptions(ctypes.sizeof(ModelOptions), self._log, None, number_format)
        self.call("model_open", str(folder).encode(), byref(options), byref(handle))
        return Model(self, handle)


class Model:
    def __init__(self, library: Library, handle: c_void_p) -> None:
        self.library, self.handle = library, handle

    def describe(self) -> Description:
        found = Description(ctypes.sizeof(Description))
        self.library.call("model_info", self.handle, byref(found))
        return found

    def session(self, **options: Any) -> Session:
        isa = options.pop("isa", None)
        asked = {"num_members": 1, "temperature": -1.0, "isa": isa and isa.encode(), **options}
        handle = c_void_p()
        given = SessionOptions(struct_size=ctypes.sizeof(SessionOptions), **asked)
        self.library.call("session_new", self.handle, byref(given), byref(handle))
        return Session(self, handle, asked["num_members"])

    def forecast(
        self,
        history: np.ndarray | None,
        context: np.ndarray | None = None,
        *,
        known: Known | None = None,
        context_known: Known | None = None,
        **options: Any,
    ) -> np.ndarray:
        session = self.session(**options)
        session.observe(history, context, known=known, context_known=context_known)
        values = session.forecast()
        session.free()
        return values

    def close(self) -> None:
        self.library.call("model_close", self.handle)


class Session:
    def __init__(self, model: Model, handle: c_void_p, num_members: int) -> None:
        self.model, self.library, self.handle, self.num_members = model, model.library, handle, num_members
        about = model.describe()
        self.frame_shape = (*about.shape[: about.dims], about.field_channels)
        self.latent_shape = (about.num_tokens, about.token_channels)

    def call(self, name: str, *arguments: Any) -> None:
        self.library.call(f"session_{name}", self.handle, *arguments)

    def known(self, name: str, values: np.ndarray | None, context_values: np.ndarray | None = None) -> None:
        tensors = [None if x is None else Tensor.of(x) for x in (values, context_values)]
        self.call("known", name.encode(), *(None if t is None else byref(t) for t in tensors))

    def observe(
        self,
        history: np.ndarray | None,
        context: np.ndarray | None = None,
        *,
        known: Known | None = None,
        context_known: Known | None = None,
    ) -> None:
        for name, values in (known or {}).items():
            self.known(name, values)
        for name, values in (context_known or {}).items():
            self.known(name, None, values)
        tensors = [None if x is None else Tensor.of(x) for x in (history, context)]
        self.call("observe", *(None if t is None else byref(t) for t in tensors))

    def observe_points(self, history: Observations | None, context: Observations | None = None) -> None:
        self.call("observe_points", *(None if given is None else byref(given) for given in (history, context)))

    def progress(self) -> tuple[int, int]:
        done, total = c_int64(), c_int64()
        self.call("progress", byref(done), byref(total))
        return done.value, total.value

    def forecast(self, out: np.ndarray | None = None) -> np.ndarray:
        done, total = self.progress()
        if out is None:
            out = np.full((self.num_members, total - done, *self.frame_shape), np.nan, np.float32)
        self.call("forecast", byref(Tensor.of(out)))
        return out

    def step(self, out: np.ndarray | None = None) -> np.ndarray:
        if out is None:
            out = np.full((self.num_members, *self.frame_shape), np.nan, np.float32)
        self.call("step", byref(Tensor.of(out)))
        return out

    def stop(self, members: list[int]) -> None:
        """Stop the members at these places of the session."""
        mask = np.zeros(self.num_members, np.uint8)
        mask[members] = 1
        self.call("stop", mask.ctypes.data_as(c_void_p), c_size_t(len(mask)))

    def latents(self) -> np.ndarray:
        count = c_int64()
        self.call("latents", None, byref(count))
        out = np.full((self.num_members, count.value, *self.latent_shape), np.nan, np.float32)
        self.call("latents", byref(Tensor.of(out)), None)
        return out

    def save(self) -> bytes:
        needed = c_size_t()
        self.call("save", None, c_size_t(0), byref(needed))
        buffer = ctypes.create_string_buffer(needed.value)
        self.call("save", buffer, needed, None)
        return buffer.raw

    def restore(self, saved: bytes) -> None:
        self.call("restore", saved, c_size_t(len(saved)))

    def free(self) -> None:
        self.call("free")


def assert_restored_goes_on(
    opened: Model, history: np.ndarray, context: np.ndarray, *, done: int, **known: Known
) -> None:
    """A session that is saved after so many frames, and restored in another one, continues with the same bits."""
    session = opened.session(num_members=3, seed=4)
    session.observe(history, context, **known)
    for _ in range(done):
        session.step()
    kept = session.save()
    expected = session.forecast()
    other = opened.session(num_members=3, seed=4, threads=2)
    other.restore(kept)
    np.testing.assert_array_equal(other.forecast(), expected)
