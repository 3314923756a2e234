"""A checkpoint of unknown origin either loads or is refused in one line; and the ways to name one."""

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from enma_fast.errors import EnmaError
from enma_fast.models.checkpoint import (
    available,
    hashes,
    load_config,
    load_model,
    locate,
    read_tensors,
    verify,
    write_manifest,
)
from enma_fast.models.checkpoint import write_tensors as write


@pytest.fixture
def folder(tiny: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(tiny, tmp_path / "checkpoint"))


@pytest.fixture(autouse=True)
def limited() -> Iterator[None]:
    """Waiting for the other end of a pipe is a failure, not a hang."""

    def late(*_: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def message(call: Callable[..., Any], *arguments: Any) -> str:
    with pytest.raises(EnmaError) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def entry(**changes: Any) -> dict[str, Any]:
    return {"bytes": 3, "sha256": "0" * 64, **changes}


MANIFESTS: dict[str, Callable[[str], str]] = {
    "nested": lambda text: "[" * 100_000,
    "nested objects": lambda text: '{"a":' * 100_000,
    "an infinite format": lambda text: text.replace('"format": 2', '"format": 1e999'),
    "not a number": lambda text: text.replace('"format": 2', '"format": NaN'),
    "an infinite size": lambda text: text.replace('"bytes": ', '"bytes": 1e999, "was": ', 1),
    "half a byte": lambda text: text.replace('"bytes": ', '"bytes": 0.5, "was": ', 1),
    "a size below 0": lambda text: text.replace('"bytes": ', '"bytes": -', 1),
    "a true size": lambda text: text.replace('"bytes": ', '"bytes": true, "was": ', 1),
    "a hash of another kind": lambda text: text.replace('"sha256": "', '"sha256": "x', 1),
    "no text": lambda text: "\udcff",
    **{
        f"the name {name[:20]!r}": lambda text, name=name: text.replace(
            '"files": {', f'"files": {{{json.dumps(name)}: {json.dumps(entry())},'
        )
        for name in ("../config.json", "/proc/self/status", "a/b", "..", ".", "", "a" * 5000, "a\0b", "a\nb", ".hidden")
    },
}


@pytest.mark.parametrize("case", MANIFESTS)
def test_what_a_manifest_may_not_hold(case: str, folder: Path) -> None:
    path = folder / "manifest.json"
    path.write_bytes(MANIFESTS[case](path.read_text()).encode("utf-8", "surrogateescape"))
    for call in (load_model, verify, hashes):
        assert message(call, folder) == f"{path}: not a manifest; copy the checkpoint again"


def test_an_endless_manifest_is_not_read(folder: Path) -> None:
    path = folder / "manifest.json"
    with path.open("r+b") as file:
        file.truncate(1 << 40)
    assert message(load_model, folder).startswith(f"{path}: is larger than 1,048,576 bytes")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "README.md"])
def test_files_of_a_checkpoint_are_regular_files(name: str, folder: Path) -> None:
    path = folder / name
    path.unlink()
    os.mkfifo(path)
    assert message(load_model, folder) == f"{path}: is not a file; check the path"
    path.unlink()
    path.symlink_to(name)
    assert message(load_model, folder).startswith(f"{path}: cannot be opened (Too many levels of symbolic links)")
    path.unlink()
    path.symlink_to("/proc/self/status")
    assert message(load_model, folder).startswith(f"{path}: 0 bytes, ")
    path.unlink()
    path.mkdir()
    assert message(load_model, folder) == f"{path}: is not a file; check the path"


def test_a_config_alone_is_a_regular_file_of_text(folder: Path) -> None:
    path = folder / "config.json"
    path.write_bytes(b"\xff\xfe")
    assert message(load_config, folder).startswith(f"{path}: is not text")
    path.write_text("[" * 100_000)
    assert message(load_config, folder).startswith(f"{path}: ")
    path.unlink()
    os.mkfifo(path)
    assert message(load_config, folder).startswith(f"{path}: is not a file")


def test_linked_files_are_read(folder: Path, tmp_path: Path) -> None:
    # The cache of a hub looks like this.
    (folder / "model.safetensors").rename(tmp_path / "blob")
    (folder / "model.safetensors").symlink_to(tmp_path / "blob")
    load_model(folder)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("context.width", 10**9, "context.width is 1000000000; at most 65536 is possible"),
        ("context.layers", 10**9, "context.layers is 1000000000; at most 256 is possible"),
        ("frame_interval", 1e300, "frame_interval is 1e+300; at most 1e+12 is possible"),
        ("sampling.flow_steps", 10**9, "sampling.flow_steps is 1000000000; at most 1000 is possible"),
        ("num_frames", 10**9, "num_frames is 1000000000; at most 30000 is possible"),
        ("codec.lengths", [1e999], "codec.lengths is inf; a finite number is needed"),
        ("codec.layers", ["time"] * 1000, "codec.layers has 1000 entries; at most 256 are possible"),
        ("context.width", 65536, "config asks for"),
        ("codec.width", 65536, "config asks for"),
    ],
)
def test_a_config_asks_for_no_more_than_its_weights_hold(folder: Path, key: str, value: Any, said: str) -> None:
    path = folder / "config.json"
    document = json.loads(path.read_text())
    *parents, last = key.split(".")
    node = document
    for parent in parents:
        node = node[parent]
    node[last] = value
    path.write_text(json.dumps(document))
    write_manifest(folder)
    assert said in message(load_model, folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_are_finite(folder: Path, value: float) -> None:
    path = folder / "model.safetensors"
    tensors, _ = read_tensors(path)
    tensors["latent_std"] = torch.full_like(tensors["latent_std"], value)
    write(path, tensors)
    write_manifest(folder)
    assert message(load_model, folder) == (
        f"{path}: latent_std holds a value that is not finite; copy or train it again"
    )


def test_the_folder_of_a_run_stands_for_its_checkpoint(folder: Path, tmp_path: Path) -> None:
    assert locate(tmp_path) == folder
    shutil.rmtree(folder)
    (tmp_path / "log.jsonl").write_text("")
    assert message(locate, tmp_path) == f"{tmp_path}: this run has no checkpoint yet; let it finish first"


def test_a_recipe_is_no_checkpoint_and_is_told_apart_from_a_wrong_name() -> None:
    said = message(locate, "combined-points-small")
    assert said.startswith("checkpoint 'combined-points-small': is a recipe without weights; train it first")
    assert said.endswith(f", or use a shipped model ({', '.join(available())})")
    for name in ("combined-huge", "a" * 5000, "a\0b", ""):
        assert "neither a folder nor a shipped model" in message(locate, name) or not name
