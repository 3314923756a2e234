"""Checkpoints that libenma refuses: a status, a message that names the cause, and the program lives on."""

import json
import random
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from enma_fast.models.checkpoint import write_manifest

from ._libenma import CHECKPOINT, INVALID_ARGUMENT, OK, UNSUPPORTED, Failure, Library
from ._refusals import refused


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
    (copied / "manifest.json").write_text(json.dumps(manifest | {"format": 3}))
    refused(UNSUPPORTED, "format 3", lambda: library.open(copied))
    manifest["files"]["../config.json"] = manifest["files"]["config.json"]
    (copied / "manifest.json").write_text(json.dumps(manifest))
    refused(CHECKPOINT, "not a manifest", lambda: library.open(copied))


@pytest.mark.parametrize(
    ("place", "value", "status", "message"),
    [
        (("sampling", "guidance"), 1, UNSUPPORTED, "sampling.guidance: unknown field"),
        (("codec", "kind"), "wavelet", UNSUPPORTED, "codec.kind"),
        (("codec", "interpolation"), {}, UNSUPPORTED, "interpolation: unknown field"),
        (("codec", "grid"), [16, 8], CHECKPOINT, "periodic: one entry for each dimension"),
        (("codec", "grid"), [8, 8, 8], UNSUPPORTED, "3-dimensional"),
        (("codec", "grid"), [31], CHECKPOINT, "multiple of"),
        (("codec", "kernel_ends"), 4, CHECKPOINT, "odd"),
        (("codec", "field_mean"), [1.0], CHECKPOINT, "beside field_mean"),
        (("codec", "field_scale"), [1.0, 2.0], CHECKPOINT, "one entry for each channel"),
        (("codec", "width"), 2**40, CHECKPOINT, "codec.width"),
        (("codec", "width"), 9, CHECKPOINT, "config asks for"),
        (("codec", "layers"), ["residual", "wavelet"], UNSUPPORTED, "codec.layers is a list with 'wavelet'"),
        (("codec", "layers"), ["residual", 3], CHECKPOINT, "codec.layers"),
        (("codec", "layers"), ["space"] * 40, CHECKPOINT, "too many"),
        (("codec", "periodic"), "yes", CHECKPOINT, "periodic"),
        (("context", "heads"), 0, CHECKPOINT, "context.heads"),
        (("context", "layers"), 1, CHECKPOINT, "holds unknown"),
        (("context", "layers"), 3, CHECKPOINT, "lacks"),
        (("step", "kind"), "diffusion", UNSUPPORTED, "step.kind"),
        (("context", "kind"), "state-space", UNSUPPORTED, "context.kind"),
        (("context", "patch"), [3], CHECKPOINT, "patch"),
        (("context", "patch"), [2, 2], CHECKPOINT, "patch: one entry for each dimension"),
        (("context", "width"), 2**20, CHECKPOINT, "width"),
        (("sampling", "temperature"), -1.0, CHECKPOINT, "temperature"),
        (("sampling", "shifts"), 40, INVALID_ARGUMENT, "shifts is 40"),
        (("sampling", "method"), "euler", UNSUPPORTED, "sampling.method"),
        (("sampling", "last_flow_steps"), 7, UNSUPPORTED, "sampling.last_flow_steps"),
        (("tokenizer",), {}, UNSUPPORTED, "tokenizer"),
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
        (("codec", "grid"), [2**20, 2**20], CHECKPOINT, "more than 4194304 points"),
        (("codec", "grid"), [16, 9], CHECKPOINT, "multiple of"),
        (("codec", "kernel_ends"), 9, CHECKPOINT, "larger than the grid"),
        (("codec", "stride_ends"), 4, CHECKPOINT, "larger than the grid"),
        (("codec", "stride_ends"), 2**20, CHECKPOINT, "stride_ends: a whole number from 1 to 64"),
        (("codec", "stride_ends"), 0, CHECKPOINT, "stride_ends"),
        (("codec", "lengths"), [1.0], CHECKPOINT, "lengths: one entry for each dimension"),
        (("context", "patch"), [2, 3], CHECKPOINT, "patch"),
        (("codec", "latent_channels"), 2**20, CHECKPOINT, "patch: a token has more than 1048576 channels"),
        (("context", "heads"), 4, CHECKPOINT, "rotary positions need 16 channels a head"),
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
    """2^20 of 64 x 64 points are 2^32, none in 32 bits: 12 MB that once divided by zero."""
    copied = Path(shutil.copytree(plane, tmp_path / "it"))
    config = json.loads((copied / "config.json").read_text())
    small = {"grid": [128, 128], "layers": [], "latent_channels": 1, "width": 1, "kernel_ends": 1}
    config["codec"] |= {**small, "variational": False, "stride_ends": 64, "field_channels": 2**20}
    (copied / "config.json").write_text(json.dumps(config))
    one = np.ones(1, np.float32)
    tensors = {f"codec.{name}.bias": one for name in ("conv_in.conv", "to_latent", "from_latent")}
    tensors |= {f"codec.{name}.weight": one.reshape(1, 1) for name in ("to_latent", "from_latent")}
    tensors["codec.conv_in.conv.weight"] = np.ones((1, 2**20, 3, 1, 1), np.float32)
    tensors["codec.conv_out.conv.conv.weight"] = np.ones((0, 1, 3, 1, 1), np.float32)
    tensors["codec.conv_out.conv.conv.bias"] = np.ones(0, np.float32)
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
        (weights({"a": entry([2, -1], 0, 0)}), "shape"),
        (weights({"a": entry([1], 0, 4), "b": entry([1], 0, 4)}, b"1234"), "overlap"),
        (weights({"a": entry([1], 4, 8)}, b"12345678"), "hole"),
        (weights({"a": entry([1], 0, 4)}, b"12345678"), "do not cover"),
        (weights({"a": entry([4], 0, 4, "I8")}, b"1234"), "is I8; libenma reads F64, F32, F16, BF16, I64 and BOOL"),
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


@pytest.mark.slow
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
