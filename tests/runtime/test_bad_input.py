"""Input that libenma refuses: a status, a message that names the cause, and the program lives on."""

import ctypes
import json
import random
import shutil
import struct
import threading
from collections.abc import Callable
from ctypes import byref, c_void_p
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from enma_fast.models.checkpoint import write_manifest

from .._extension import ISAS
from .._tiny import CONFIGS, waves
from ._libenma import (
    CHECKPOINT,
    INVALID_ARGUMENT,
    OK,
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

HISTORY = waves(1, 1, 3, CONFIGS["relative-fast"].tokenizer)[0].numpy()


def refused(status: int, message: str, call: Callable[[], Any]) -> None:
    with pytest.raises(Failure, match=message) as failure:
        call()
    assert failure.value.status == status, failure.value.message
    assert "\n" not in failure.value.message


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_flipped_bit(library: Library, copied: Path, name: str) -> None:
    data = bytearray((copied / name).read_bytes())
    data[len(data) // 2] ^= 1
    (copied / name).write_bytes(data)
    refused(CHECKPOINT, f"{name}: SHA-256 differs", lambda: library.open(copied))


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "manifest.json"])
def test_a_file_that_is_missing_or_cut_short(library: Library, copied: Path, name: str) -> None:
    data = (copied / name).read_bytes()
    (copied / name).write_bytes(data[:-10])
    refused(CHECKPOINT, name, lambda: library.open(copied))
    (copied / name).unlink()
    refused(CHECKPOINT, f"{name}: cannot be opened", lambda: library.open(copied))
    (copied / name).mkdir()
    refused(CHECKPOINT, f"{name}: not a regular file", lambda: library.open(copied))


def test_the_folder_of_a_run_is_told_from_a_checkpoint(library: Library, copied: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    copied.rename(run / "checkpoint")
    refused(CHECKPOINT, f"{run}: the folder of a training run, .*; give {run}/checkpoint$", lambda: library.open(run))
    library.open(run / "checkpoint")


def test_a_later_format(library: Library, copied: Path) -> None:
    manifest = json.loads((copied / "manifest.json").read_text())
    (copied / "manifest.json").write_text(json.dumps(manifest | {"format": 2}))
    refused(UNSUPPORTED, "format 2", lambda: library.open(copied))
    manifest["files"]["../config.json"] = manifest["files"]["config.json"]
    (copied / "manifest.json").write_text(json.dumps(manifest))
    refused(CHECKPOINT, "not a manifest", lambda: library.open(copied))


@pytest.mark.parametrize(
    ("place", "value", "status", "message"),
    [
        (("sampling", "guidance"), 1, UNSUPPORTED, "sampling.guidance: unknown field"),
        (("tokenizer", "interpolation"), {}, CHECKPOINT, "conv_in.conv.weight has shape .*; config asks for"),
        (("tokenizer", "interpolation"), 1, CHECKPOINT, "interpolation: an object is expected"),
        (("tokenizer", "interpolation"), {"kernel": 3}, UNSUPPORTED, "interpolation.kernel: unknown field"),
        (("tokenizer", "interpolation"), {"heads": 2}, CHECKPOINT, "slopes: one entry for each head"),
        (("tokenizer", "interpolation"), {"slopes": [1, 2, 3, 0]}, CHECKPOINT, "slopes"),
        (("tokenizer", "interpolation"), {"features": 30}, CHECKPOINT, "features: a multiple of heads"),
        (("tokenizer", "interpolation"), {"distance_power": 3}, CHECKPOINT, "distance_power: 1 or 2"),
        (("tokenizer", "interpolation"), {"slices": 2**20}, CHECKPOINT, "slices: at most 4096"),
        (("tokenizer", "grid"), [16, 8], CHECKPOINT, "periodic: one entry for each dimension"),
        (("tokenizer", "grid"), [8, 8, 8], UNSUPPORTED, "3-dimensional"),
        (("tokenizer", "grid"), [31], CHECKPOINT, "multiple of"),
        (("tokenizer", "kernel"), 4, CHECKPOINT, "odd"),
        (("tokenizer", "field_mean"), [1.0], CHECKPOINT, "beside field_mean"),
        (("tokenizer", "field_scale"), [1.0, 2.0], CHECKPOINT, "one entry for each channel"),
        (("tokenizer", "width"), 2**40, CHECKPOINT, "tokenizer.width"),
        (("tokenizer", "width"), 9, CHECKPOINT, "config asks for"),
        (("tokenizer", "layers"), ["residual", "wavelet"], UNSUPPORTED, "tokenizer.layers is a list with 'wavelet'"),
        (("tokenizer", "layers"), ["residual", 3], CHECKPOINT, "tokenizer.layers"),
        (("tokenizer", "layers"), ["space"] * 40, CHECKPOINT, "too many"),
        (("tokenizer", "periodic"), "yes", CHECKPOINT, "periodic"),
        (("dynamics", "heads"), 0, CHECKPOINT, "dynamics.heads"),
        (("dynamics", "first"), {"width": 24}, CHECKPOINT, r"first\.width: a multiple of 16"),
        (("dynamics", "first"), {"past": 2}, UNSUPPORTED, r"first\.past: unknown field"),
        (("dynamics", "first"), {"modes": 0}, CHECKPOINT, r"first\.modes"),
        (("dynamics", "first"), {"width": 16, "modes": 99}, CHECKPOINT, r"first\.modes: at most"),
        (("dynamics", "temporal_layers"), 1, CHECKPOINT, "holds unknown"),
        (("dynamics", "temporal_layers"), 3, CHECKPOINT, "lacks"),
        (("dynamics", "decoder"), "diffusion", CHECKPOINT, "dynamics.decoder"),
        (("dynamics", "patch"), [3], CHECKPOINT, "patch"),
        (("dynamics", "patch"), [2, 2], CHECKPOINT, "patch: one entry for each dimension"),
        (("dynamics", "mlp_ratio"), 1e9, CHECKPOINT, "mlp_ratio"),
        (("sampling", "temperature"), -1.0, CHECKPOINT, "temperature"),
        (("sampling", "shifts"), 40, INVALID_ARGUMENT, "shifts is 40"),
        (("name",), 3, CHECKPOINT, "name"),
    ],
)
def test_a_config_that_does_not_fit(
    library: Library, copied: Path, place: tuple[str, ...], value: Any, status: int, message: str
) -> None:
    config = json.loads((copied / "config.json").read_text())
    part = config
    for key in place[:-1]:
        part = part[key]
    part[place[-1]] = value
    (copied / "config.json").write_text(json.dumps(config))
    write_manifest(copied)
    refused(status, message, lambda: library.open(copied))


@pytest.mark.parametrize(
    ("place", "value", "status", "message"),
    [
        (("tokenizer", "grid"), [2**20, 2**20], CHECKPOINT, "more than 4194304 points"),
        (("tokenizer", "grid"), [16, 9], CHECKPOINT, "multiple of"),
        (("tokenizer", "kernel"), 11, CHECKPOINT, "reaches around all tokens"),
        (("tokenizer", "kernel_ends"), 9, CHECKPOINT, "larger than the grid"),
        (("tokenizer", "stride_ends"), 4, CHECKPOINT, "larger than the grid"),
        (("tokenizer", "stride_ends"), 2**20, CHECKPOINT, "stride_ends: at most 64"),
        (("tokenizer", "stride_ends"), 0, CHECKPOINT, "stride_ends"),
        (("tokenizer", "lengths"), [1.0], CHECKPOINT, "lengths: one entry for each dimension"),
        (("dynamics", "patch"), [2, 3], CHECKPOINT, "patch"),
        (("tokenizer", "latent_channels"), 2**20, CHECKPOINT, "patch: a token has more than 1048576 channels"),
        (("dynamics", "heads"), 4, CHECKPOINT, "rotary positions need 16 channels a head"),
        (("sampling", "shifts"), 9, INVALID_ARGUMENT, "shifts is 9"),
    ],
)
def test_a_config_of_a_plane_that_does_not_fit(
    library: Library, plane: Path, tmp_path: Path, place: tuple[str, ...], value: Any, status: int, message: str
) -> None:
    test_a_config_that_does_not_fit(
        library, Path(shutil.copytree(plane, tmp_path / "it")), place, value, status, message
    )


def test_channels_of_the_ends_that_wrap_to_none(library: Library, plane: Path, tmp_path: Path) -> None:
    """2^20 of 64 x 64 points are 2^32, none in 32 bits: 4 MB that once divided by zero."""
    copied = Path(shutil.copytree(plane, tmp_path / "it"))
    config = json.loads((copied / "config.json").read_text())
    small = {"grid": [128, 128], "layers": [], "latent_channels": 1, "width": 1, "kernel_ends": 1, "kernel_time": 1}
    config["tokenizer"] |= {**small, "kernel": 1, "variational": False, "stride_ends": 64, "field_channels": 2**20}
    (copied / "config.json").write_text(json.dumps(config))
    one = np.ones(1, np.float32)
    tensors = {f"tokenizer.{name}.bias": one for name in ("conv_in.conv", "to_latent", "from_latent")}
    tensors |= {f"tokenizer.{name}.weight": one.reshape(1, 1) for name in ("to_latent", "from_latent")}
    tensors["tokenizer.conv_in.conv.weight"] = np.ones((1, 2**20, 1, 1, 1), np.float32)
    tensors["tokenizer.conv_out.conv.conv.weight"] = np.ones((0, 1, 1, 1, 1), np.float32)
    tensors["tokenizer.conv_out.conv.conv.bias"] = np.ones(0, np.float32)
    save_file(tensors, copied / "model.safetensors")
    write_manifest(copied)
    message = "conv_out.conv.conv.(bias|weight) has a shape that is not valid"
    refused(CHECKPOINT, message, lambda: library.open(copied))
    del tensors["tokenizer.conv_out.conv.conv.weight"], tensors["tokenizer.conv_out.conv.conv.bias"]
    save_file(tensors, copied / "model.safetensors")
    write_manifest(copied)
    refused(CHECKPOINT, "field_channels: at most 256 is expected with stride_ends 64", lambda: library.open(copied))


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b'{"name": }',
        b'{"name": "a", "name": "b"}',
        b'{"name": "a",}',
        b'{"name": 01}',
        b'{"name": NaN}',
        b'{"name": 1e999}',
        b'{"name": "\xff"}',
        b'{"name": "\xc0\x80"}',
        b'{"name": "\\ud800"}',
        b'{"name": "\\x"}',
        b'{"name": "a\nb"}',
        b"[" * 100_000,
        b'{"name": "a"} {}',
        b'\xef\xbb\xbf{"name": "a"}',
    ],
)
def test_text_that_is_no_json(library: Library, copied: Path, text: bytes) -> None:
    (copied / "config.json").write_bytes(text)
    write_manifest(copied)
    refused(CHECKPOINT, "not valid JSON", lambda: library.open(copied))


def weights(header: Any, data: bytes = b"", *, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(shape: list[Any], begin: Any, end: Any, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not a whole safetensors file"),
        (b"1234567", "not a whole safetensors file"),
        (weights({}, length=2**63), "not a whole safetensors file"),
        (weights(b"[]"), "not a whole safetensors file"),
        (weights({"a": entry([2], 0, 8)}, b"1234"), "data_offsets"),
        (weights({"a": entry([2], 8, 0)}, b"12345678"), "data_offsets"),
        (weights({"a": entry([2], -8, 0)}, b"12345678"), "data_offsets"),
        (weights({"a": entry([2], 0.5, 8)}, b"12345678"), "data_offsets"),
        (weights({"a": entry([2**20, 2**20, 2**20, 2**20], 0, 0)}), "too large"),
        (weights({"a": entry([2**30, 2**10, 2**30], 0, 0)}), "too large"),
        (weights({"a": entry([-1], 0, 4)}, b"1234"), "shape"),
        (weights({"a": entry([2, 0], 0, 0)}), "shape"),
        (weights({"a": entry([1], 0, 4), "b": entry([1], 0, 4)}, b"1234"), "overlap"),
        (weights({"a": entry([1], 4, 8)}, b"12345678"), "hole"),
        (weights({"a": entry([1], 0, 4)}, b"12345678"), "do not cover"),
        (weights({"a": entry([4], 0, 4, "I8")}, b"1234"), "is I8; libenma reads F32, F16 and BF16"),
        (weights({"a": {"dtype": "F32"}}), "no dtype, shape"),
        (weights({"a": entry([1], 0, 4)}, struct.pack("<f", float("nan"))), "not finite"),
    ],
)
def test_weights_that_are_no_safetensors(library: Library, copied: Path, data: bytes, message: str) -> None:
    (copied / "model.safetensors").write_bytes(data)
    write_manifest(copied)
    with pytest.raises(Failure, match=message) as failure:
        library.open(copied)
    assert failure.value.status in (CHECKPOINT, UNSUPPORTED)


def test_weights_of_another_shape(library: Library, copied: Path) -> None:
    tensors = load_file(copied / "model.safetensors")
    tensors["latent_mean"] = tensors["latent_mean"][:1]
    save_file(tensors, copied / "model.safetensors")
    write_manifest(copied)
    refused(CHECKPOINT, r"latent_mean has shape \(1\); config asks for \(2\)", lambda: library.open(copied))


def test_random_changes_of_files_are_refused_or_harmless(library: Library, copied: Path) -> None:
    """Behind the hash, as in files that somebody made up."""
    choose = random.Random(0)
    statuses = []

    def status() -> int:
        try:
            library.open(copied).close()
        except Failure as failure:
            return failure.status
        return OK

    for name, reach in (("config.json", None), ("model.safetensors", 6000)):
        original = (copied / name).read_bytes()
        for _ in range(150):
            data = bytearray(original)
            for _ in range(choose.randint(1, 3)):
                data[choose.randrange(reach or len(data))] = choose.choice(b'0919",:{}[]eE-. \x00\xff')
            (copied / name).write_bytes(data)
            write_manifest(copied)
            statuses.append(status())
        (copied / name).write_bytes(original)
    assert set(statuses) <= {OK, CHECKPOINT, UNSUPPORTED, INVALID_ARGUMENT}
    assert statuses.count(OK) < 150


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
