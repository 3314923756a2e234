"""Members of the shipped models keep their bits; `_members` says what is recorded, and how it is recorded anew."""

import json
from pathlib import Path

import numpy as np
import pytest

import enma_fast
from enma_fast.data import EQUATIONS, FieldFile
from enma_fast.models.checkpoint import load_config
from enma_fast.models.model import Model
from enma_fast.store.read import read_forecast

from .._extension import NATIVE, needs_native
from .._runs import start
from . import _members
from ._members import BACKENDS, CASES, FILE, FRAMES, ISAS, MEMBERS, MODELS, OF_MODEL, SEED, TASKS, TASKS_OF

GOLDEN = json.loads(FILE.read_text())


def recorded(backend: str, key: str, name: str = "") -> dict[str, str]:
    """Hashes of all models, or of one; a model that was published on another processor lacks some."""
    prefix = f"{name}/" if name else ""
    found = {case: digest for case, digest in GOLDEN[backend].get(key, {}).items() if case.startswith(prefix)}
    if not found:
        pytest.skip(f"no members of {name or 'the models'} by the backend {backend} are recorded for {key}")
    return found


def isa() -> str:
    return "" if NATIVE is None else NATIVE.cpu_isa()


def test_every_model_task_and_instruction_set_is_recorded() -> None:
    for backend, formats in BACKENDS.items():
        cases = {
            f"{name}/{task}/{form}"
            for name, form in CASES
            for task in TASKS_OF.get((backend, name), TASKS)
            if form in formats
        }
        for hashes in GOLDEN[backend].values():
            assert set(hashes) <= cases
            # Only models that fit an equation were published on one processor.
            lacking = {case.partition("/")[0] for case in cases - set(hashes)}
            assert all(hasattr(load_config(name).context, "floor") for name in lacking)
        # Those that every processor in use has.
        assert backend != "native" or all(set(GOLDEN[backend][isa]) == cases for isa in ("scalar", "avx2"))
    assert set(GOLDEN["native"]) == set(ISAS)


@needs_native
@pytest.mark.parametrize("name", MODELS)
def test_native_members_keep_their_bits(name: str) -> None:
    expected, model = recorded("native", isa(), name), enma_fast.load_model(name)
    for task in TASKS:
        for form in OF_MODEL[name]:
            found = _members.digest(_members.members(model, task, form, "native"))
            assert found == expected[f"{name}/{task}/{form}"], (task, form)


@pytest.mark.slow
@needs_native
@pytest.mark.parametrize("other", ISAS)
def test_native_members_of_other_instruction_sets_keep_their_bits(other: str) -> None:
    if NATIVE is None or other not in NATIVE.cpu_isas():
        pytest.skip(f"this processor has no {other}")
    if other == isa():
        pytest.skip("the test above is of the one in use")
    assert json.loads(_members.printed("native", other)).items() >= recorded("native", other).items()


@pytest.mark.slow
def test_members_of_the_reference_keep_their_bits() -> None:
    expected = recorded("reference", _members.machine())
    assert json.loads(_members.printed("reference", None)).items() >= expected.items()


def channels(model: Model) -> tuple[str, ...]:
    return tuple(EQUATIONS[model.config.dataset].channels)


def field_file(model: Model) -> FieldFile:
    """The observed trajectory as a file holds it."""
    tokenizer, u = model.config.codec, _members.observed(model)[:1]
    coords = [
        np.linspace(0.0, length, n, endpoint=not ring)
        for n, length, ring in zip(tokenizer.grid, tokenizer.lengths, tokenizer.periodic, strict=True)
    ]
    return FieldFile(
        path=Path("observed.h5"),
        name=model.config.dataset,
        u=u,
        channels=channels(model),
        times=np.arange(u.shape[1]) * model.config.frame_interval,
        coords=tuple(coords),
        lengths=tuple(tokenizer.lengths),
        periodic=tuple(tokenizer.periodic),
        parameters={},
        environment=None,
    )


@needs_native
@pytest.mark.parametrize(("name", "form"), CASES)
def test_members_on_disk_are_those_in_memory(tmp_path: Path, name: str, form: str) -> None:
    expected, model = recorded("native", isa(), name), enma_fast.load_model(name)
    run = start(
        field_file(model),
        tmp_path / "out.zarr",
        task="temporal",
        checkpoint=name,
        precision=form,
        num_members=MEMBERS,
        num_frames=FRAMES,
        seed=SEED,
    )
    run.execute()
    stored = read_forecast(tmp_path / "out.zarr")
    found = np.stack([stored[channel].values[0] for channel in channels(model)], axis=-1)
    assert _members.digest(found) == expected[f"{name}/temporal/{form}"]
