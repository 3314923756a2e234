"""A run is continued by the arithmetic that began it, or not at all; the store says which that is."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from enma_fast.errors import EnmaError
from enma_fast.models.checkpoint import load_model
from enma_fast.ops._backend import extension
from enma_fast.runs import fingerprint as module
from enma_fast.runs.fingerprint import fingerprint
from enma_fast.store.layout import FINGERPRINT, LEDGER
from enma_fast.store.ledger import write_ledger
from enma_fast.store.metadata import DIGEST, METADATA, read_metadata

from .._runs import prepare

# Forecasts of fields on their grid, and as if PyTorch encoded and decoded them, as it does for scattered points.
CODE = """
import os, sys
from enma_fast.forecasting import encoding
from enma_fast.models.checkpoint import load_model
from enma_fast.runs.fingerprint import fingerprint

for plain in (False, True):
    child = os.fork()
    if not child:
        if plain:
            encoding.native_codec = lambda codec: None
        print(fingerprint(load_model(sys.argv[1]), "a", settings=None, dtype=None), flush=True)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
"""


def start(test_in: Path, tiny: Path, out: Path):
    return prepare(test_in, out, checkpoint=tiny, num_members=2, trajectories=[0])


def unfinished(test_in: Path, tiny: Path, out: Path) -> None:
    """A store of which a member is still to be sampled."""
    start(test_in, tiny, out).execute()
    write_ledger(out / LEDGER, np.array([True, False]))


def test_it_is_the_same_for_any_number_of_threads_and_asked_once(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    threads, found, calls = torch.get_num_threads(), set(), []
    sample = module.sample_fields
    monkeypatch.setattr(module, "sample_fields", lambda *a, **o: (calls.append(1), sample(*a, **o))[1])
    model = load_model(tiny)
    try:
        for count in (1, 2, 1):
            torch.set_num_threads(count)
            found.add(fingerprint(model, "threads", settings=None, dtype=None))
    finally:
        torch.set_num_threads(threads)
    assert len(found) == 1
    assert len(calls) == 2


@pytest.fixture(scope="module")
def under_limits() -> list[tuple[str, ...]]:
    """Fingerprints of forecasts on the grid, and of those that PyTorch encodes, each under every limit."""
    found = []
    for name, value in (("NOTHING", ""), ("ONEDNN_MAX_CPU_ISA", "AVX2"), ("MKL_CBWR", "COMPATIBLE")):
        environ = os.environ | {name: value, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", CODE, "combined-small"]
        said = subprocess.run(command, env=environ, capture_output=True, text=True, check=True).stdout
        found.append(said.split())
    return list(zip(*found, strict=True))


@pytest.mark.slow
@pytest.mark.skipif("avx512f" not in Path("/proc/cpuinfo").read_text(), reason="needs two instruction sets")
@pytest.mark.parametrize("plain", [True, False])
def test_instructions_that_the_environment_chooses_are_in_it(plain: bool, under_limits: list[tuple[str, ...]]) -> None:
    found = under_limits[plain]
    assert len(found) == 3
    # Native tokenizer and sampler multiply without oneDNN and MKL, so what these are limited to changes no bit.
    assert len(set(found)) == (3 if plain or extension() is None else 1), found


def test_a_run_is_not_continued_by_other_arithmetic(
    test_in: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run.zarr"
    unfinished(test_in, tiny, out)
    assert len(read_metadata(out)["attributes"][FINGERPRINT]) == 16
    monkeypatch.setattr("enma_fast.runs.block_sampler.fingerprint", lambda *a, **o: "of-another-kind")
    message = r"sampled by other arithmetic \(fingerprint is \w+ there, of-another-kind here; here: float32_matmul_"
    for step in ("plan", "execute"):
        with pytest.raises(EnmaError, match=message):
            getattr(start(test_in, tiny, out), step)()
    monkeypatch.undo()
    assert start(test_in, tiny, out).execute()["members_sampled"] == 1


def test_an_older_store_is_continued_by_its_instruction_set(test_in: Path, tiny: Path, tmp_path: Path) -> None:
    """It has neither fingerprint, digest nor checksums, and gets none."""
    out = tmp_path / "run.zarr"
    unfinished(test_in, tiny, out)
    whole = (out / "u" / "c.0.1.0.0").read_bytes()
    (out / "u" / "c.0.1.0.0").unlink()
    (out / ".checksums").unlink()
    root = json.loads((out / METADATA).read_text())
    del root["attributes"][DIGEST], root["attributes"][FINGERPRINT]
    (out / METADATA).write_text(json.dumps(root))
    assert start(test_in, tiny, out).execute()["members_sampled"] == 1
    assert (out / "u" / "c.0.1.0.0").read_bytes() == whole
    assert not (out / ".checksums").exists()
    root["attributes"]["arithmetic"] = "another processor"
    (out / METADATA).write_text(json.dumps(root))
    with pytest.raises(EnmaError, match="arithmetic is another processor there"):
        start(test_in, tiny, out).execute()
