"""Checkpoints whose weights are stored as fp16 or bf16: widened to fp32, exactly."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from enma_fast.models.checkpoint import write_manifest

from .._tiny import CONFIGS, waves
from ._libenma import CHECKPOINT, CSRC, CXX, Failure, Library

HALVES = [torch.float16, torch.bfloat16]
HISTORY = waves(1, 1, 3, CONFIGS["relative-fast"].codec)[0].numpy()


def stored_as(source: Path, folder: Path, tensors: dict[str, torch.Tensor]) -> Path:
    """The checkpoint `source` with these weights, and the manifest that belongs to them."""
    shutil.copytree(source, folder)
    save_file(tensors, folder / "model.safetensors")
    write_manifest(folder)
    return folder


@pytest.mark.parametrize("dtype", HALVES)
def test_every_pattern_is_widened_exactly(tmp_path: Path, dtype: torch.dtype) -> None:
    """Zeros, subnormal and normal numbers, infinities and NaN."""
    if shutil.which(CXX) is None:
        pytest.skip(f"needs {CXX}")
    name = "from_fp16" if dtype == torch.float16 else "from_bf16"
    source = tmp_path / "main.cpp"
    source.write_text(
        '#include <cstdio>\n#include "core/half.h"\n'
        "int main() { for (unsigned i = 0; i < 65536; ++i) {\n"
        f"const float x = enma::{name}(static_cast<std::uint16_t>(i)); std::fwrite(&x, 4, 1, stdout); }} }}\n"
    )
    program = tmp_path / "main"
    # A program compiled so flushes the subnormal numbers that its arithmetic makes.
    subprocess.run([CXX, "-std=c++20", "-O2", "-ffast-math", f"-I{CSRC}", source, "-o", program], check=True)
    found = np.frombuffer(subprocess.run([program], capture_output=True, check=True).stdout, np.uint32)
    expected = torch.arange(65536, dtype=torch.int32).to(torch.int16).view(dtype).float()
    missing = expected.isnan().numpy()
    assert np.array_equal(found[~missing], expected.numpy().view(np.uint32)[~missing])
    assert np.isnan(found.view(np.float32)[missing]).all()
    assert 0 < missing.sum() < 2100


@pytest.mark.parametrize("dtype", HALVES)
def test_forecasts_are_those_of_the_widened_weights(
    library: Library, folder: Path, tmp_path: Path, dtype: torch.dtype
) -> None:
    whole = load_file(folder / "model.safetensors")
    halves = {name: tensor.to(dtype) for name, tensor in whole.items()}
    # A subnormal number of either kind.
    halves["codec.conv_in.conv.bias"][0] = 3 * torch.finfo(dtype).smallest_normal / 4
    widened = {name: tensor.float() for name, tensor in halves.items()}
    narrow = library.open(stored_as(folder, tmp_path / "narrow", halves)).forecast(HISTORY, num_members=3)
    wide = library.open(stored_as(folder, tmp_path / "wide", widened)).forecast(HISTORY, num_members=3)
    assert np.array_equal(narrow, wide)
    assert not np.array_equal(narrow, library.open(folder).forecast(HISTORY, num_members=3))


def test_tensors_of_several_kinds_in_one_file(library: Library, folder: Path, tmp_path: Path) -> None:
    whole = load_file(folder / "model.safetensors")
    kinds = [torch.float32, torch.float16, torch.bfloat16]
    mixed = {name: tensor.to(kinds[i % 3]) for i, (name, tensor) in enumerate(sorted(whole.items()))}
    widened = {name: tensor.float() for name, tensor in mixed.items()}
    found = library.open(stored_as(folder, tmp_path / "mixed", mixed)).forecast(HISTORY)
    assert np.array_equal(found, library.open(stored_as(folder, tmp_path / "wide", widened)).forecast(HISTORY))


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_a_half_that_is_not_finite_is_refused(
    library: Library, folder: Path, tmp_path: Path, dtype: torch.dtype, value: float
) -> None:
    halves = {name: tensor.to(dtype) for name, tensor in load_file(folder / "model.safetensors").items()}
    halves["latent_mean"][0] = value
    made = stored_as(folder, tmp_path / "it", halves)
    with pytest.raises(Failure, match="latent_mean holds a value that is not finite") as failure:
        library.open(made)
    assert failure.value.status == CHECKPOINT
