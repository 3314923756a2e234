"""The generator: published vectors, NumPy's Philox, and the same words and uniforms in PyTorch, Triton and C++."""

import ctypes
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from enma_fast.ops._backend import triton_problem
from enma_fast.ops.philox_normal import normals_of_words, philox_normal, philox_normal_ref, philox_uniform

from .._extension import needs_native
from ._philox import KNOWN_ANSWERS, numpy_words, philox_4x32, philox_4xw

ROOT = Path(__file__).resolve().parents[2]

# The header behind C symbols.
SHIM = """
#include "core/philox.h"
extern "C" void words(std::int64_t n, const std::uint32_t* counter, const std::uint32_t* key, std::uint32_t* out) {
    for (; n > 0; --n, counter += 4, key += 2, out += 4) {
        const enma::PhiloxWords w =
            enma::philox_4x32({counter[0], counter[1], counter[2], counter[3]}, key[0], key[1]);
        out[0] = w.w0, out[1] = w.w1, out[2] = w.w2, out[3] = w.w3;
    }
}
extern "C" void uniforms(std::int64_t n, const std::uint32_t* word, double* out) {
    while (n-- > 0) *out++ = enma::philox_uniform(*word++);
}
extern "C" void normals(std::int64_t n, const std::uint32_t* word, float* out) {
    for (; n > 0; --n, word += 2, out += 2) {
        const enma::NormalPair pair = enma::philox_normal_pair(word[0], word[1]);
        out[0] = pair.first, out[1] = pair.second;
    }
}
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """csrc/core alone, compiled without Torch and Python."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++")
    folder = tmp_path_factory.mktemp("philox")
    (folder / "shim.cpp").write_text(SHIM)
    options = ["-std=c++20", "-O3", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", f"-I{ROOT / 'csrc'}"]
    subprocess.run([compiler, *options, "shim.cpp", "-o", "shim.so"], cwd=folder, check=True)
    return ctypes.CDLL(str(folder / "shim.so"))


def cpp(library: ctypes.CDLL, name: str, out: np.ndarray, *inputs: np.ndarray) -> np.ndarray:
    arrays = [*(np.ascontiguousarray(values, dtype=np.uint32) for values in inputs), out]
    getattr(library, name)(ctypes.c_int64(len(out)), *(ctypes.c_void_p(array.ctypes.data) for array in arrays))
    return out


def cpp_words(library: ctypes.CDLL, counter: np.ndarray, key: np.ndarray) -> np.ndarray:
    return cpp(library, "words", np.empty((len(counter), 4), np.uint32), counter, key)


@pytest.fixture
def triton_kernel(device: torch.device):
    problem = triton_problem(device)
    if problem is not None:
        pytest.skip(problem)
    from . import _philox_kernels

    return _philox_kernels


def random_words(rng: np.random.Generator, *shape: int) -> np.ndarray:
    words = rng.integers(0, 2**32, shape, dtype=np.uint64)
    corners = np.array([0, 1, 511, 512, 2**31 - 1, 2**31, 2**32 - 512, 2**32 - 1], np.uint64)
    words.reshape(-1)[:8] = corners
    return words


def ulps(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Steps of float32 between two results of the same sign."""
    return (a.contiguous().view(torch.int32).long() - b.contiguous().view(torch.int32).long()).abs()


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN_ANSWERS.values(), ids=list(KNOWN_ANSWERS))
def test_published_words(counter, key, words):
    assert philox_4x32(torch.tensor(counter), torch.tensor(key)).tolist() == list(words)
    assert philox_4xw(counter, key, 32) == list(words)
    assert numpy_words(np.array([counter]), np.array([key]))[0].tolist() == list(words)


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN_ANSWERS.values(), ids=list(KNOWN_ANSWERS))
def test_published_words_in_cpp(library, counter, key, words):
    assert cpp_words(library, np.array([counter]), np.array([key]))[0].tolist() == list(words)


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN_ANSWERS.values(), ids=list(KNOWN_ANSWERS))
def test_published_words_in_triton(triton_kernel, device, counter, key, words):
    counters, keys = torch.tensor([counter], device=device), torch.tensor([key], device=device)
    assert triton_kernel.words(counters, keys)[0].tolist() == list(words)


def test_the_oracle_is_numpys_philox(rng):
    # NumPy has the generator with words of 64 bits only: the same code, other constants.
    for _ in range(20):
        counter = rng.integers(0, 2**64 - 1, 4, dtype=np.uint64)
        key = rng.integers(0, 2**64, 2, dtype=np.uint64)
        drawn = np.random.Philox(counter=counter, key=key).random_raw(4).tolist()
        # NumPy steps the counter before it draws.
        counter[0] += np.uint64(1)
        assert drawn == philox_4xw(counter.tolist(), key.tolist(), 64)


def test_words_are_the_same_everywhere(library, rng):
    counter, key = random_words(rng, 20000, 4), random_words(rng, 20000, 2)
    expected = numpy_words(counter, key)
    for n in range(16):
        assert expected[n].tolist() == philox_4xw(counter[n].tolist(), key[n].tolist(), 32)
    ours = philox_4x32(torch.from_numpy(counter.astype(np.int64)), torch.from_numpy(key.astype(np.int64)))
    assert np.array_equal(ours.numpy().astype(np.uint64), expected)
    assert np.array_equal(cpp_words(library, counter, key).astype(np.uint64), expected)


def test_words_are_the_same_in_triton(triton_kernel, device, rng):
    counter, key = random_words(rng, 1025, 4), random_words(rng, 1025, 2)
    arguments = (torch.from_numpy(values.astype(np.int64)).to(device) for values in (counter, key))
    assert np.array_equal(triton_kernel.words(*arguments).cpu().numpy().astype(np.uint64), numpy_words(counter, key))


def test_counters_and_keys_broadcast():
    counter = torch.randint(0, 2**32, (5, 1, 4))
    key = torch.randint(0, 2**32, (3, 2))
    words = philox_4x32(counter, key)
    assert words.shape == (5, 3, 4)
    for i in range(5):
        for j in range(3):
            assert words[i, j].tolist() == philox_4xw(counter[i, 0].tolist(), key[j].tolist(), 32)


def test_uniform_is_exact_and_inside_the_open_interval():
    bits = torch.tensor([0, 511, 512, 2**31, 2**32 - 512, 2**32 - 1])
    expected = [0.5 * 2.0**-23, 0.5 * 2.0**-23, 1.5 * 2.0**-23, 0.5 + 2.0**-24, 1 - 2.0**-24, 1 - 2.0**-24]
    uniform = philox_uniform(bits)
    assert uniform.dtype == torch.float32
    assert uniform.double().tolist() == expected
    assert 0.0 < uniform.min().item() < uniform.max().item() < 1.0


def all_quarters(rng: np.random.Generator, n: int) -> np.ndarray:
    """Pairs of words, with angles at and beside every multiple of an eighth of a turn, where reductions change."""
    words = random_words(rng, n, 2)
    eighths = np.arange(8, dtype=np.uint64)[:, None] * np.uint64(2**29) + np.array([0, 2**9, 2**32 - 2**9], np.uint64)
    words[: eighths.size, 1] = eighths.reshape(-1) % np.uint64(2**32)
    return words


def test_uniforms_and_normals_in_cpp(library, rng):
    words = all_quarters(rng, 200000)
    on_torch = torch.from_numpy(words.astype(np.int64))
    uniform = cpp(library, "uniforms", np.empty(words.size), words.reshape(-1))
    assert np.array_equal(uniform, philox_uniform(on_torch.flatten()).double().numpy())
    normals = torch.from_numpy(cpp(library, "normals", np.empty((len(words), 2), np.float32), words))
    expected = normals_of_words(on_torch.reshape(-1, 4)).reshape(-1, 2)
    apart = ulps(normals, expected)
    assert apart.max() <= 1
    assert (apart > 0).float().mean() < 1e-5


def test_uniforms_and_normals_in_triton(triton_kernel, device, rng):
    words = torch.from_numpy(all_quarters(rng, 8192).astype(np.int64)).to(device)
    uniform, normals = triton_kernel.values(words)
    assert torch.equal(uniform.cpu(), philox_uniform(words.cpu()).double())
    apart = ulps(normals.cpu(), normals_of_words(words.cpu().reshape(-1, 4)).reshape(-1, 2))
    assert apart.max() <= 1
    assert (apart > 0).float().mean() < 2e-4


@needs_native
@pytest.mark.parametrize(("B", "M", "C"), [(1, 1, 1), (3, 5, 7), (65, 17, 5), (2, 3, 4096)])
def test_the_cpu_loop_over_views(B, M, C):
    # Members two apart, tokens transposed, one seed for all.
    given = {"seed": -3, "frame": torch.arange(B) + 2**40, "mask_step": 6, "channels": C}
    given |= {"members": torch.arange(2 * B)[::2], "tokens": torch.randint(0, 1000, (M, B)).T}
    apart = ulps(philox_normal(**given, backend="native"), philox_normal_ref(**given))
    assert apart.max() <= 1
    assert (apart > 0).float().mean() < 2e-4
