"""Checkpoints come back to the bit; every kind of damage is one line that names the file."""

import json
import os
import re
import shutil
import warnings
from functools import partial
from pathlib import Path

import pytest
import torch

from enma_fast.data import shipped as shipped_module
from enma_fast.data.shipped import IN_MODELS, LEAVING
from enma_fast.errors import EnmaError
from enma_fast.models import checkpoint, saving
from enma_fast.models.checkpoint import (
    available,
    load_model,
    load_tensors,
    locate,
    read_tensors,
    round_weights,
    save_model,
    verify,
    write_manifest,
    write_tensors,
)
from enma_fast.training.recipes import RECIPES
from enma_fast.utils.dataclass_json import to_json
from enma_fast.utils.files import write_atomic

from .._tiny import CONFIGS, model, waves

FILES = ("config.json", "model.safetensors", "manifest.json", "README.md", "metrics.json")


@pytest.fixture(scope="module")
def made():
    return model("relative")


@pytest.fixture(scope="module")
def saved(made, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "checkpoint"
    save_model(made, folder, card="# relative\n")
    (folder / "metrics.json").write_text('{"rel_l2": 0.5}\n')
    write_manifest(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    """A copy to damage."""
    return shutil.copytree(saved, tmp_path / "checkpoint")


def message(call, *arguments):
    """The one line of the error that a call raises."""
    with pytest.raises(EnmaError) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_model_comes_back_to_the_bit(name, tmp_path):
    made = model(name)
    save_model(made, tmp_path)
    again = load_model(tmp_path)
    assert again.config == made.config
    expected, found = made.state_dict(), again.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    u = waves(1, 2, 5, made.config.codec)
    assert torch.equal(again.encode(u), made.encode(u))
    assert not again.training
    assert not any(p.requires_grad for p in again.parameters())


def test_special_values_come_back_to_the_bit(tmp_path):
    bits = torch.tensor([0x7FC00001, -0x400000, 1, -0x80000000, 0x7F800000], dtype=torch.int64).to(torch.int32)
    tensors = {
        "floats": bits.view(torch.float32),
        "half": torch.arange(5.0).half(),
        "brain": torch.arange(5.0).bfloat16(),
        "whole": torch.tensor(2**40),
        "empty": torch.zeros(0, 3),
        "strided": torch.arange(12.0).view(3, 4).T,
    }
    write_tensors(tmp_path / "a.safetensors", tensors, {"step": "7"})
    found, metadata = read_tensors(tmp_path / "a.safetensors")
    assert metadata == {"step": "7"}
    assert found.keys() == tensors.keys()
    for key, value in tensors.items():
        assert (found[key].dtype, found[key].shape) == (value.dtype, value.shape)
        assert found[key].contiguous().view(-1).view(torch.uint8).equal(value.contiguous().view(-1).view(torch.uint8))


def test_checkpoints_are_written_as_format_2(saved):
    assert json.loads((saved / "manifest.json").read_text())["format"] == checkpoint.FORMAT_VERSION == 2
    assert {"codec", "context", "trunk", "initial", "step"} <= json.loads((saved / "config.json").read_text()).keys()


def test_the_same_model_makes_the_same_files(made, saved, tmp_path):
    save_model(made, tmp_path, card="# relative\n")
    for name in ("config.json", "model.safetensors", "README.md"):
        assert (tmp_path / name).read_bytes() == (saved / name).read_bytes()


def test_weights_stored_in_half_lose_nothing_once_rounded(tmp_path):
    made = model("relative")
    before = {name: t.clone() for name, t in made.state_dict().items()}
    round_weights(made)
    weights = {name for name, _ in made.named_parameters()}
    for name, t in made.state_dict().items():
        assert torch.equal(t, before[name].half().float() if name in weights else before[name])
    save_model(made, tmp_path / "half", half=True)
    save_model(made, tmp_path / "whole")
    stored, _ = read_tensors(tmp_path / "half" / "model.safetensors")
    assert {name for name, t in stored.items() if t.dtype == torch.float16} == weights
    found = load_model(tmp_path / "half").state_dict()
    for name, t in load_model(tmp_path / "whole").state_dict().items():
        assert found[name].dtype == t.dtype
        assert torch.equal(found[name], t)
    with torch.no_grad():
        next(made.parameters()).view(-1)[0] = 7e4
    with pytest.raises(EnmaError, match="65504"):
        round_weights(made)


def test_weights_in_half_precision_are_read(made, folder):
    tensors, _ = read_tensors(folder / "model.safetensors")
    write_tensors(folder / "model.safetensors", {key: t.bfloat16() for key, t in tensors.items()})
    write_manifest(folder)
    found = load_model(folder).state_dict()
    for key, value in made.state_dict().items():
        assert found[key].dtype == value.dtype
        assert torch.equal(found[key], value.bfloat16().to(value.dtype))


@pytest.mark.parametrize("name", FILES)
def test_truncated_files_are_named(folder, name):
    data = (folder / name).read_bytes()
    for length in {0, 1, 7, 8, 9, len(data) // 2, len(data) - 1} - {len(data)}:
        (folder / name).write_bytes(data[:length])
        if name == "manifest.json" and length == len(data) - 1:
            # Only the last line break is gone.
            verify(folder)
            continue
        said = message(load_model, folder)
        assert said.startswith(f"{folder / name}: "), said
    (folder / name).write_bytes(data + b"\0")
    assert message(load_model, folder).startswith(f"{folder / name}: ")


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_is_found(folder, name, rng):
    data = (folder / name).read_bytes()
    for place in rng.integers(len(data) * 8, size=40):
        flipped = bytearray(data)
        flipped[place // 8] ^= 1 << (place % 8)
        (folder / name).write_bytes(flipped)
        said = message(load_model, folder)
        # A damaged manifest may describe another file wrongly, or name one that is not there.
        assert said.startswith(f"{folder}/" if name == "manifest.json" else f"{folder / name}: "), said


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    said = message(load_model, folder)
    if name == "manifest.json":
        assert said == f"{folder}: holds no manifest.json; it is not a whole checkpoint"
    else:
        assert said == f"{folder / name}: missing; copy the checkpoint again"


def rewrite_config(folder, change):
    """Change the config and sign it, as an editor with too much zeal would."""
    document = json.loads((folder / "config.json").read_text())
    change(document)
    (folder / "config.json").write_text(json.dumps(document))
    write_manifest(folder)


def rewrite_weights(folder, change):
    tensors, _ = read_tensors(folder / "model.safetensors")
    change(tensors)
    write_tensors(folder / "model.safetensors", tensors)
    write_manifest(folder)


def test_an_unknown_key_of_the_config_is_named(folder):
    rewrite_config(folder, lambda document: document["context"].update(colour="red"))
    assert message(load_model, folder).startswith(f"{folder / 'config.json'}: context.colour: ")


def test_config_and_weights_must_belong_together(folder):
    weights = folder / "model.safetensors"
    rewrite_config(folder, lambda document: document["context"].update(layers=3))
    assert message(load_model, folder).startswith(f"{weights}: lacks dynamics.context.blocks.2.")
    rewrite_config(folder, lambda document: document["context"].update(layers=1))
    assert message(load_model, folder).startswith(f"{weights}: holds unknown dynamics.context.blocks.1.")
    rewrite_config(folder, lambda document: document["context"].update(layers=2) or document["step"].update(width=40))
    assert re.search(r"dynamics\.step\..* has shape \(.*; config asks for \(.*40", message(load_model, folder))


def test_wrong_weights_are_named(folder):
    weights = folder / "model.safetensors"
    rewrite_weights(folder, lambda tensors: tensors.update(extra=torch.zeros(1)))
    assert message(load_model, folder).startswith(f"{weights}: holds unknown extra")
    rewrite_weights(folder, lambda tensors: (tensors.pop("extra"), tensors.pop("latent_std")))
    assert message(load_model, folder).startswith(f"{weights}: lacks latent_std")
    rewrite_weights(folder, lambda tensors: tensors.update(latent_std=torch.ones(3)))
    assert message(load_model, folder).startswith(f"{weights}: latent_std has shape (3,); config asks for (2,)")


def test_other_formats_of_the_weights_are_refused(folder):
    weights = folder / "model.safetensors"
    for data in (b"", b"PK\x03\x04 a zip file", b"\xff" * 64, (2**40).to_bytes(8, "little") + b"{}"):
        weights.write_bytes(data)
        write_manifest(folder)
        assert message(load_model, folder).startswith(f"{weights}: not a whole safetensors file")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda m: m.update(format=3), "format 3; this version of enma_fast reads up to 2"),
        (lambda m: m.update(format="2"), "format 2; this version of enma_fast reads up to 2"),
        (lambda m: m.pop("format"), "not a manifest"),
        (lambda m: m.update(files=[]), "not a manifest"),
        (lambda m: m["files"]["config.json"].update(bytes="many"), "not a manifest"),
        (lambda m: m["files"]["config.json"].pop("sha256"), "not a manifest"),
        (lambda m: m["files"].pop("model.safetensors"), "lists no model.safetensors"),
        (lambda m: m["files"].pop("config.json"), "lists no config.json"),
    ],
)
def test_a_wrong_manifest_is_named(folder, change, said):
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))
    assert message(load_model, folder).startswith(f"{path}: {said}")


@pytest.mark.parametrize("text", ["", "[]", "3", "{", "null", '{"format": 1, "files": {"config.json": 3}}'])
def test_what_is_no_manifest_is_refused(folder, text):
    (folder / "manifest.json").write_text(text)
    assert message(load_model, folder).startswith(f"{folder / 'manifest.json'}: not a manifest")


def test_unknown_names_list_the_shipped_models(tmp_path, monkeypatch, saved):
    shipped = tmp_path / "pretrained"
    for name in ("b-small", "a-small"):
        shutil.copytree(saved, shipped / name)
    (shipped / "half").mkdir()
    monkeypatch.setattr(shipped_module, "PRETRAINED", shipped)
    assert available() == ["a-small", "b-small"]
    assert locate("a-small") == shipped / "a-small"
    assert load_model("a-small").config == CONFIGS["relative"]
    said = message(load_model, "c-small")
    assert said == "checkpoint 'c-small': neither a folder nor a shipped model (shipped: a-small, b-small)"


def test_models_that_leave_with_the_next_release_warn(tmp_path, monkeypatch, saved):
    shipped = tmp_path / "pretrained"
    for name in ("old", "new"):
        shutil.copytree(saved, shipped / name)
    monkeypatch.setattr(shipped_module, "PRETRAINED", shipped)
    monkeypatch.setattr(shipped_module, "LEAVING", {"old": "new"})
    with pytest.warns(FutureWarning) as warned:
        load_model("old")
    (words,) = (str(each.message).split() for each in warned)
    assert (words[2], words[-1]) == ("old", "new")
    monkeypatch.chdir(tmp_path)
    shutil.copytree(saved, tmp_path / "old")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_model("new")
        # A folder of the same name is the user's own.
        load_model("old")
        load_model(shipped / "old")


def test_every_model_that_leaves_has_one_that_stays():
    assert set(LEAVING) <= set(IN_MODELS)
    assert set(LEAVING.values()) <= set(RECIPES)
    assert not set(LEAVING.values()) & set(LEAVING)


def test_a_run_goes_before_a_shipped_model_of_its_name(tmp_path, monkeypatch, saved):
    shutil.copytree(saved, tmp_path / "pretrained" / "wave")
    monkeypatch.setattr(shipped_module, "PRETRAINED", tmp_path / "pretrained")
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "wave"
    (run / "data").mkdir(parents=True)
    assert locate("wave") == tmp_path / "pretrained" / "wave"
    (run / checkpoint.RECIPE).write_text("")
    assert message(locate, "wave").startswith("wave: this run has no checkpoint")
    shutil.copytree(saved, run / "checkpoint")
    assert locate("wave") == Path("wave/checkpoint")


@pytest.mark.parametrize("device", ["cuda:99", "mine"])
def test_a_device_that_is_not_there_is_refused(saved, device):
    said = message(partial(load_model, device=device), saved)
    assert said.startswith(f"device {device}: cannot be used here (")
    assert said.endswith("; use cpu")


def test_a_folder_that_is_no_checkpoint_says_so(tmp_path):
    assert message(load_model, tmp_path) == f"{tmp_path}: holds no manifest.json; it is not a whole checkpoint"


def interrupted(monkeypatch, name):
    """Make a call of the os module fail, as a full disk or a lost mount would."""

    def fail(*args, **kwargs):
        raise OSError("no space left on device")

    monkeypatch.setattr(os, name, fail)


@pytest.mark.parametrize("call", ["fsync", "rename"])
def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch, call):
    path = tmp_path / "a.bin"
    write_atomic(path, b"old")
    with monkeypatch.context() as patch:
        interrupted(patch, call)
        with pytest.raises(OSError, match="no space"):
            write_atomic(path, b"new and longer")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.bin"]
    write_atomic(path, b"new")
    assert path.read_bytes() == b"new"


def test_a_torn_save_is_never_taken_for_a_whole_one(made, folder, monkeypatch):
    done = []

    def stop(path, data):
        if done:
            raise OSError("no space left on device")
        done.append(path)
        write_atomic(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(saving, "write_atomic", stop)
        with pytest.raises(OSError, match="no space"):
            save_model(made, folder)
    assert done == [folder / "model.safetensors"]
    assert message(load_model, folder) == f"{folder}: holds no manifest.json; it is not a whole checkpoint"
    save_model(made, folder)
    verify(folder)


def test_a_saved_model_has_no_card_of_another(made, tmp_path):
    save_model(made, tmp_path, card="# of the first", metrics={"rows": []})
    assert {"README.md", "metrics.json"} <= {path.name for path in tmp_path.iterdir()}
    save_model(made, tmp_path)
    verify(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "manifest.json", "model.safetensors"]


@pytest.mark.parametrize("name", CONFIGS)
def test_loading_draws_no_numbers_of_the_caller(name, tmp_path):
    save_model(model(name), tmp_path)
    before = torch.get_rng_state()
    load_model(tmp_path)
    assert torch.equal(torch.get_rng_state(), before)


def test_missing_tensors_files_are_named(tmp_path):
    path = tmp_path / "a.safetensors"
    assert message(read_tensors, path) == f"{path}: no such file; check the path"


def test_nothing_is_loaded_when_something_is_wrong(made):
    module = torch.nn.Linear(2, 2)
    before = {key: value.clone() for key, value in module.state_dict().items()}
    with pytest.raises(EnmaError, match="w: bias has shape"):
        load_tensors(module, {"weight": torch.zeros(2, 2), "bias": torch.zeros(3)}, source="w")
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())


def test_files_can_be_read_by_others(saved):
    assert {
        (saved / name).stat().st_mode & 0o777 for name in ("config.json", "model.safetensors", "manifest.json")
    } == {0o644}


def test_the_config_of_a_checkpoint_is_readable(saved):
    assert (saved / "config.json").read_text() == to_json(CONFIGS["relative"])
