"""Calls that libenma refuses: a status, a message that names the cause, and the program lives on."""

import ctypes
import threading
from ctypes import byref, c_void_p
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from .._extension import ISAS
from .._tiny import CONFIGS, waves
from ._libenma import (
    INVALID_ARGUMENT,
    STATE,
    UNSUPPORTED,
    Failure,
    Library,
    LogFunction,
    Model,
    ModelOptions,
    SessionOptions,
    Tensor,
)
from ._refusals import refused

HISTORY = waves(1, 1, 3, CONFIGS["relative-fast"].codec)[0].numpy()


def test_null_and_freed_handles(library: Library, folder: Path) -> None:
    call = library.call
    refused(INVALID_ARGUMENT, "folder is NULL", lambda: call("model_open", None, None, byref(c_void_p())))
    refused(INVALID_ARGUMENT, "model is NULL", lambda: call("model_open", str(folder).encode(), None, None))
    refused(INVALID_ARGUMENT, "session is NULL", lambda: call("session_step", None, None))
    call("session_free", None)
    call("model_close", None)
    model = library.open(folder)
    session = model.session()
    refused(STATE, "no open session", lambda: call("session_step", model.handle, None))
    model.close()
    refused(STATE, "no open model", model.close)
    refused(STATE, "no open model", model.describe)
    # A session keeps what it needs of its model.
    session.observe(HISTORY)
    assert np.isfinite(session.forecast()).all()
    session.free()
    refused(STATE, "no open session: it was freed", session.free)
    refused(STATE, "no open session", lambda: session.observe(HISTORY))


def test_calls_out_of_order(small: Model) -> None:
    session = small.session()
    for call in (session.step, session.save, session.latents):
        refused(STATE, "observe first", call)
    session.observe(HISTORY)
    session.forecast()
    refused(STATE, "all 5 frames were given out", session.step)
    refused(INVALID_ARGUMENT, "both NULL", lambda: session.observe(None))
    refused(INVALID_ARGUMENT, "at least 3", lambda: session.observe(HISTORY[:2]))
    # A refusal leaves the session as it was.
    assert session.progress() == (5, 5)
    long = np.tile(HISTORY, (3, 1, 1))
    refused(INVALID_ARGUMENT, "history has 9 frames, as many as", lambda: session.observe(long))
    assert session.progress() == (5, 5)
    begun = small.session()
    begun.observe(HISTORY)
    first = begun.step()
    refused(INVALID_ARGUMENT, "history has 9 frames, as many as", lambda: begun.observe(long))
    whole = small.forecast(HISTORY)
    assert np.array_equal(first, whole[:, 0])
    assert np.array_equal(begun.forecast(), whole[:, 1:])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_members": 0}, "num_members is 0"),
        ({"num_members": -1}, "num_members is -1"),
        ({"num_members": 2**40}, "num_members"),
        ({"num_members": 2**30}, "use several"),
        ({"first_member": -1}, "first_member -1"),
        ({"first_member": 2**32}, "first_member"),
        ({"num_frames": -1}, "num_frames is -1"),
        ({"num_frames": 30_001}, "num_frames is 30001"),
        ({"threads": -1}, "threads is -1"),
        ({"threads": 10**6}, "threads is 1000000"),
        ({"shifts": -1}, "shifts is -1"),
        ({"shifts": 99}, "use no more"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": float("inf")}, "temperature"),
        ({"isa": "mmx"}, "isa 'mmx' is unknown"),
        ({"isa": "emulated_avx512"}, "isa 'emulated_avx512'"),
    ],
)
def test_options_out_of_bounds(small: Model, options: dict[str, Any], message: str) -> None:
    refused(INVALID_ARGUMENT, message, lambda: small.session(**options))


def test_an_instruction_set_that_is_not_here(small: Model) -> None:
    missing = {"avx2", "avx512", "avx512_bf16"} - set(ISAS)
    if not missing:
        pytest.skip("this processor has them all")
    for isa in missing:
        refused(INVALID_ARGUMENT, "not supported", lambda isa=isa: small.session(isa=isa))


def test_structs_of_other_versions(library: Library, small: Model) -> None:
    def new(size: int, given: Any) -> None:
        given.struct_size = size
        library.call("session_new", small.handle, byref(given), byref(c_void_p()))

    class Later(SessionOptions):
        _fields_ = (("more", ctypes.c_int64),)

    # Fields that an earlier header does not have keep their defaults.
    new(SessionOptions.isa.offset, SessionOptions(num_members=1, temperature=-1.0, isa=b"not read"))
    new(ctypes.sizeof(Later), Later(num_members=1, temperature=-1.0))
    refused(UNSUPPORTED, "does not know", lambda: new(ctypes.sizeof(Later), Later(num_members=1, more=1)))
    refused(INVALID_ARGUMENT, "struct_size is 0", lambda: new(0, SessionOptions(num_members=1)))


@pytest.mark.parametrize(
    ("history", "message"),
    [
        (HISTORY[:, :-1], r"shape \[3, 31, 1\]; \[any, 32, 1\] is expected"),
        (HISTORY[..., 0], "2 axes"),
        (HISTORY[:0], r"shape \[0, 32, 1\]"),
        (HISTORY.astype(np.float16), "16 bits"),
        (HISTORY.astype(np.int32), "type code 0"),
        (np.where(np.arange(32)[:, None] == 5, np.nan, HISTORY), "not finite, first in frame 0"),
        (np.where(np.arange(3)[:, None, None] == 2, np.inf, HISTORY), "not finite, first in frame 2"),
        (np.full_like(HISTORY, 1e300, dtype=np.float64), "not finite"),
        (np.full_like(HISTORY, 9.969209968386869e36), "missing one"),
    ],
)
def test_arrays_that_do_not_fit(small: Model, history: np.ndarray, message: str) -> None:
    refused(INVALID_ARGUMENT, message, lambda: small.session().observe(history))


def test_arrays_elsewhere(small: Model) -> None:
    session = small.session(num_members=2)
    for change, message in (
        (lambda t: setattr(t.device, "device_type", 2), "device type 2"),
        (lambda t: setattr(t.device, "device_type", -1), "device type -1"),
        (lambda t: setattr(t, "data", None), "no data"),
        (lambda t: setattr(t, "byte_offset", 2), "not aligned"),
        (lambda t: setattr(t.dtype, "lanes", 4), "4 lanes"),
    ):
        tensor = Tensor.of(HISTORY)
        change(tensor)
        refused(INVALID_ARGUMENT, message, lambda tensor=tensor: session.call("observe", byref(tensor), None))
    session.observe(HISTORY)
    frame = np.full((2, 32, 1), np.nan, np.float32)
    shared = np.lib.stride_tricks.as_strided(frame, (2, 32, 1), (4, 4, 4))
    refused(INVALID_ARGUMENT, "share memory", lambda: session.step(shared))
    shared = np.broadcast_to(frame[:1], frame.shape)
    refused(INVALID_ARGUMENT, "share memory", lambda: session.step(shared))
    refused(INVALID_ARGUMENT, r"strides \[0, -1, ", lambda: session.step(shared[:, ::-1]))
    refused(INVALID_ARGUMENT, r"shape \[3, 32, 1\]", lambda: session.step(np.zeros((3, 32, 1), np.float32)))
    refused(INVALID_ARGUMENT, "frame is NULL", lambda: session.call("step", None))
    assert np.isnan(frame).all()
    assert session.progress() == (0, 5)


def test_a_session_in_use_is_detected(library: Library, folder: Path) -> None:
    """A message arrives while the session is in use: another thread's call is then refused."""
    found: list[Failure] = []

    def use() -> None:
        try:
            session.progress()
        except Failure as failure:
            found.append(failure)

    def log(_: Any, level: int, message: bytes) -> None:
        if level > 0:
            other = threading.Thread(target=use)
            other.start()
            other.join()

    function = LogFunction(log)
    options = ModelOptions(ctypes.sizeof(ModelOptions), function, None)
    handle = c_void_p()
    library.call("model_open", str(folder).encode(), byref(options), byref(handle))
    session = Model(library, handle).session(num_frames=6)
    session.observe(HISTORY)
    assert [(failure.status, "another thread" in failure.message) for failure in found] == [(STATE, True)]
    assert session.progress() == (0, 6)


def test_messages_belong_to_threads(library: Library, small: Model) -> None:
    refused(INVALID_ARGUMENT, "num_members", lambda: small.session(num_members=0))
    found: list[bytes] = []
    other = threading.Thread(target=lambda: found.append(library.dll.enma_last_error()))
    other.start()
    other.join()
    assert found == [b""]
    assert b"num_members" in library.dll.enma_last_error()
