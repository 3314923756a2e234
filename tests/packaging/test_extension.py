"""The compiled extension as installed, and the install without it: the same forecasts, on any machine."""

import platform
import re
import shutil
import subprocess
import sys
import tarfile
import textwrap
import tomllib
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from enma_fast.data.shipped import PRETRAINED

from .._objects import installed, launcher, object_of
from .test_build import build_sdist, build_wheel, copy_checkout, install, run

# Wheels are built, from nothing where there is no `make install`: a minute or two.
pytestmark = pytest.mark.slow

x86_only = pytest.mark.skipif(platform.machine() != "x86_64", reason="reads x86-64 instructions")

# Beyond what every x86-64 processor has. tzcnt is missing: older ones run it as bsf, which is how compilers use it.
WIDE = re.compile(
    r"^(?:v(?!err|erw|m[clrwpxo])\w+|andn|bextr|bls\w+|bzhi|mulx|pdep|pext|rorx|sarx|shlx|shrx|lzcnt|popcnt|movbe"
    r"|h(?:add|sub)p[sd]|lddqu|mov(?:ddup|shdup|sldup)|p(?:shufb|alignr|mulld|mulhrsw|minsd|minud|maxsd|maxud|test)"
    r"|pblend\w+|blend\w+|round[sp][sd]|dpp[sd]|insertps|extractps|p(?:insr|extr)[bdq]|pmov[sz]x\w+|pcmp(?:eq|gt)q"
    r"|packusdw|crc32\w*)$"
)
AVX512_OPERAND = re.compile(r"%zmm|%k[0-7]|%[xy]mm(?:1[6-9]|2\d|3[01])")
FUNCTION = re.compile(r"^[0-9a-f]+ <(.+)>:$")
INSTRUCTION = re.compile(r"^\s+[0-9a-f]+:\s+(?:\{\w+\} )?(?:(?:rep\w*|lock|bnd|notrack|data16|cs) )*(\S+)(.*)$")


@dataclass(frozen=True)
class Build:
    """A wheel, what it was built from, and the objects on the way."""

    source: Path
    wheel: Path
    objects: list[Path]


def unpacked(sdist: Path, folder: Path) -> Path:
    """The source tree in a source distribution."""
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    (source,) = folder.iterdir()
    return source


@pytest.fixture(scope="module")
def checkout(root: Path, source_files: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_checkout(root, source_files, tmp_path_factory.mktemp("checkout") / "project")


@pytest.fixture(scope="module")
def sdist(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_sdist(checkout, tmp_path_factory.mktemp("sdist") / "dist", ENMA_FAST_NO_EXT="1")


@pytest.fixture(scope="module")
def build(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Build:
    """The extension, built from the source distribution; pip builds in the tree and leaves the objects there.

    Files that `make install` has compiled are not compiled once more; without it they are not optimised.
    """
    if shutil.which("g++") is None:
        pytest.skip("no g++")
    folder = tmp_path_factory.mktemp("extension")
    source = unpacked(sdist, folder / "source")
    made, how = installed(), {"CXXFLAGS": "-O0 -DENMA_SMALL"}
    if made is not None:
        how = {"CMAKE_CXX_COMPILER_LAUNCHER": str(launcher(folder / "launcher", made))}
    wheel = build_wheel(source, folder / "dist", ENMA_FAST_NO_EXT="0", MAX_JOBS="2", **how)
    return Build(source, wheel, sorted(source.glob("build/**/*.o")))


@pytest.fixture(scope="module")
def site(build: Build, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return install(build.wheel, tmp_path_factory.mktemp("site") / "native")


@pytest.fixture(scope="module")
def pure_site(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pure")
    wheel = build_wheel(unpacked(sdist, folder / "source"), folder / "dist", ENMA_FAST_NO_EXT="1")
    assert wheel.name.endswith("-py3-none-any.whl")
    return install(wheel, folder / "site")


# An editable install answers for every submodule that an installation lacks, so also for its missing extension.
ALONE = """
import sys
sys.meta_path = [finder for finder in sys.meta_path if "__editable__" not in getattr(finder, "__module__", "")]
"""


def probe(text: str, site: Path, *arguments: str | Path, merge: bool = False) -> str:
    """Output of a Python text under an installation; `merge` adds the standard error."""
    command = [sys.executable, "-W", "ignore", "-c", ALONE + textwrap.dedent(text), *arguments]
    if merge:
        command = ["sh", "-c", 'exec "$@" 2>&1', "sh", *command]
    # The interpreter of kernels is for tests of kernels.
    return run(*command, cwd=site.parent, PYTHONPATH=str(site), TRITON_INTERPRET="0")


def test_the_source_distribution_holds_the_very_sources(checkout: Path, build: Build) -> None:
    sources = [path.relative_to(checkout) for path in checkout.glob("csrc/**/*") if path.is_file()]
    assert sources
    assert not [path for path in sources if (build.source / path).read_bytes() != (checkout / path).read_bytes()]
    engine = {path.name for path in sources if path.suffix == ".cpp" and path.parts[1] in ("core", "runtime")}
    assert {f"{name}.o" for name in engine} <= {path.name for path in build.objects}
    (unit,) = build.source.glob("build/**/_C.dir/Unity/*.cxx")
    included = re.findall(r'^#include ".*/python/(\w+\.cpp)"$', unit.read_text(), re.MULTILINE)
    bindings = {path.name for path in sources if path.parts[1] == "python" and path.suffix == ".cpp"}
    assert set(included) == bindings


def test_the_wheel_is_bound_to_this_interpreter_and_holds_two_libraries(build: Build) -> None:
    assert not build.wheel.name.endswith("-any.whl")
    with zipfile.ZipFile(build.wheel) as archive:
        libraries = {
            name.split(".")[0]: archive.getinfo(name).file_size for name in archive.namelist() if ".so" in name
        }
        assert not [name for name in archive.namelist() if name.startswith("csrc") or name.endswith(".a")]
    assert set(libraries) == {"enma_fast/_C", "enma_fast/embed/lib/libenma"}
    assert max(libraries.values()) < 20_000_000


def test_the_wheel_is_enough_to_embed(site: Path, root: Path, tmp_path: Path) -> None:
    """A C program finds libenma through CMake and through pkg-config, with what the command prints."""
    for program in ("cmake", "pkg-config", "gcc"):
        if shutil.which(program) is None:
            pytest.skip(f"needs {program}")

    def embed(*options: str) -> str:
        text = "from enma_fast.cli import main; import sys; sys.exit(main(['embed', *sys.argv[1:]]))"
        return probe(text, site, *options).strip()

    shutil.copy(root / "csrc/examples/forecast.c", tmp_path)
    (tmp_path / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.20)\nproject(user C)\nfind_package(enma 0.1.9 REQUIRED)\n"
        "add_executable(forecast forecast.c)\ntarget_link_libraries(forecast PRIVATE enma::enma m)\n"
    )
    build = tmp_path / "build"
    command = ("cmake", "-S", tmp_path, "-B", build, f"-Denma_DIR={embed('--cmake-dir')}")
    refused = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    assert refused.returncode != 0
    assert "compatible with requested version" in " ".join(refused.stderr.split())
    newest = tomllib.loads((root / "pyproject.toml").read_text())["project"]["version"]
    text = (tmp_path / "CMakeLists.txt").read_text().replace("0.1.9", newest)
    (tmp_path / "CMakeLists.txt").write_text(text)
    run(*command, cwd=tmp_path)
    run("cmake", "--build", build, cwd=tmp_path)
    np.linspace(-1, 1, 3 * 128, dtype=np.float32).tofile(tmp_path / "frames")
    checkpoint = embed("--checkpoint", "combined-fast")
    arguments = (checkpoint, tmp_path / "frames", "2")
    assert run(build / "forecast", *arguments, tmp_path / "out", cwd=tmp_path).count("frame") == 17
    libraries = embed("--library-dir")
    flags = run(
        "pkg-config", "--cflags", "--libs", "enma", cwd=tmp_path, PKG_CONFIG_PATH=f"{libraries}/pkgconfig"
    ).split()
    run("gcc", "forecast.c", *flags, "-lm", f"-Wl,-rpath,{libraries}", "-o", "by-pkg-config", cwd=tmp_path)
    run(tmp_path / "by-pkg-config", *arguments, tmp_path / "again", cwd=tmp_path)
    assert (tmp_path / "again").read_bytes() == (tmp_path / "out").read_bytes()
    assert (Path(embed("--include-dir")) / "enma/enma.hpp").is_file()


def test_the_installed_extension_runs(site: Path) -> None:
    text = """
        import torch
        from enma_fast.ops._backend import extension
        from enma_fast.ops.philox_normal import philox_normal
        print(extension().__file__)
        arguments = dict(seed=3, members=torch.arange(70), frame=1, mask_step=2, tokens=torch.arange(50), channels=6)
        native = philox_normal(**arguments, backend="native")
        torch.testing.assert_close(native, philox_normal(**arguments, backend="reference"), rtol=1e-6, atol=0)
        try:
            extension().philox_normal(*[torch.zeros(3, dtype=torch.int64)] * 5, torch.zeros(2, 3, 4))
        except ValueError as error:
            print("ValueError", str(error).splitlines()[0])
    """
    file, refusal = probe(text, site).splitlines()
    assert Path(file).parent == site / "enma_fast"
    assert refusal.startswith("ValueError philox_normal: ")


def library(site: Path) -> Path:
    (found,) = (site / "enma_fast").glob("_C*.so")
    return found


def test_only_the_module_is_exported(site: Path) -> None:
    lines = run("nm", "-D", "--defined-only", library(site), cwd=site).splitlines()
    symbols = [line.split(maxsplit=2)[1:] for line in lines]
    # Inline functions of libstdc++ are weak: its headers declare them visible.
    assert [name for kind, name in symbols if kind not in "WVu"] == ["PyInit__C"]
    assert not [name for _, name in symbols if name.startswith(("_ZN4enma", "_ZNK4enma"))]


def test_threads_are_those_of_torch(site: Path) -> None:
    text = """
        import ctypes, torch
        torch.set_num_threads(2)
        from enma_fast.ops.philox_normal import philox_normal

        def threads():
            return next(line.split()[1] for line in open("/proc/self/status") if line.startswith("Threads:"))

        torch.randn(2000, 2000).exp().sum()
        before = threads()
        arguments = dict(members=torch.arange(64), frame=1, mask_step=2, tokens=torch.arange(64), channels=16)
        philox_normal(seed=3, **arguments, backend="native")
        print(before, threads(), torch.__config__.parallel_info().count("OpenMP"))
    """
    before, after, openmp = probe(text, site).split()
    if openmp == "0":
        pytest.skip("this torch does not use OpenMP")
    assert int(before) >= 2
    assert after == before, "the extension started a second pool of threads"


def hazards(file: Path) -> list[str]:
    """Functions of an object that may run on a machine without the instructions they hold.

    Wide instructions belong to files or functions named after their instruction set, which are called after a look at
    the processor. Not even there may a weak function hold one: of its copies in all files the linker keeps any. Nor
    may such a file have a start-up function, which always runs.
    """
    listing = run("nm", "--defined-only", file, cwd=file.parent).splitlines()
    weak = {line.split()[2] for line in listing if line.split()[1] in "WVu"}
    found: dict[str, str] = {}
    name = ""
    for line in run("objdump", "-d", "--no-show-raw-insn", file, cwd=file.parent).splitlines():
        if start := FUNCTION.match(line):
            name = start[1]
            if name.startswith("_GLOBAL__sub_I") and "avx" in file.stem:
                found[name] = f"{file.name}: {name}: runs at start-up"
            continue
        instruction = INSTRUCTION.match(line)
        if instruction is None or name in found:
            continue
        mnemonic, operands = instruction.groups()
        # Mangled names hold the plain ones.
        label = f"{file.stem} {name}"
        everywhere = name.split(".")[0] in weak or name in weak
        if AVX512_OPERAND.search(operands):
            allowed = "avx512" in label and not everywhere
        elif WIDE.match(mnemonic) or "%ymm" in operands:
            allowed = ("avx2" in label or "avx512" in label or "block_sha" in name) and not everywhere
        else:
            continue
        if not allowed:
            found[name] = f"{file.name}: {demangled(name)}: {mnemonic}{operands.rstrip()}"
    return list(found.values())


def demangled(name: str) -> str:
    return run("c++filt", name, cwd=Path.cwd()).strip() if name.startswith("_Z") else name


@x86_only
def test_wide_instructions_stay_behind_a_look_at_the_processor(root: Path) -> None:
    """In the objects that `make install` has left: those that users get."""
    made = root / "build/editable"
    if not made.is_dir():
        pytest.skip("needs the objects of `make install`")
    objects = [
        object_of(path, made)
        for folder in ("core", "core/cpu", "runtime")
        for path in root.glob(f"csrc/{folder}/*.cpp")
    ]
    objects += made.glob("CMakeFiles/_C.dir/Unity/*.o")
    found = [line for file in objects for line in hazards(file)]
    assert not found, "\n".join(found)
    for isa, register in (("avx2", "%ymm"), ("avx512", "%zmm")):
        for file in objects:
            if file.name.endswith(f"_{isa}.cpp.o"):
                assert register in run("objdump", "-d", file, cwd=file.parent), f"{file.name} makes no use of its name"
    # Processors with AVX-512 need not have its products of bf16.
    pairs = [file.name for file in objects if "\tvdpbf16ps" in run("objdump", "-d", file, cwd=file.parent)]
    assert pairs == ["gemm_avx512_bf16.cpp.o"]


@x86_only
@pytest.mark.parametrize(
    ("file", "text", "culprits"),
    [
        ("plain", "float f(float* x, int n) { float s = 0; for (int i = 0; i < n; ++i) s += x[i]; return s; }", []),
        ("plain", "TARGET(avx2,fma) void f(float* x) { for (int i = 0; i < 64; ++i) x[i] = x[i] * 3 + 1; }", ["f"]),
        ("plain", "TARGET(avx2,fma) void f_avx2(float* x) { for (int i = 0; i < 64; ++i) x[i] *= 3; }", []),
        ("plain_avx2", "TARGET(avx2) void f(float* x) { for (int i = 0; i < 64; ++i) x[i] *= 3; }", []),
        ("plain_avx2", "TARGET(avx512f) WIDEST void f(float* x) { for (int i = 0; i < 64; ++i) x[i] *= 3; }", ["f"]),
        ("plain_avx512", "TARGET(avx512f) WIDEST void f(float* x) { for (int i = 0; i < 64; ++i) x[i] *= 3; }", []),
        # Inline functions behind the pragma: the linker may keep this copy for all.
        (
            "plain_avx2",
            "TARGET(avx2) __attribute__((noinline)) inline void g(float* x) { for (int i = 0; i < 64; ++i) x[i] *= 3; }"
            "\nvoid f(float* x) { g(x); }",
            ["g"],
        ),
        (
            "plain_avx2",
            '#pragma GCC target("avx2")\nfloat y[64];\n'
            "static float f() { for (int i = 0; i < 64; ++i) y[i] = y[i] * 3 + 1; return y[0]; }\nfloat x = f();",
            ["_GLOBAL__sub_I"],
        ),
        ("plain", "unsigned f(unsigned x) { return x ? __builtin_ctz(x) : 0; }", []),
        ("plain", 'TARGET(popcnt) int f(unsigned x) { return __builtin_popcount(x); }', ["f"]),
        ("plain", 'TARGET(popcnt) int block_sha(unsigned x) { return __builtin_popcount(x); }', []),
    ],
)  # fmt: skip
def test_hazards_are_found(file: str, text: str, culprits: list[str], tmp_path: Path) -> None:
    head = (
        "#define TARGET(...) __attribute__((target(#__VA_ARGS__)))\n"
        '#define WIDEST __attribute__((optimize("prefer-vector-width=512")))\n'
    )
    (tmp_path / f"{file}.cpp").write_text(head + text)
    run("g++", "-std=c++20", "-O3", "-fPIC", "-c", f"{file}.cpp", cwd=tmp_path)
    found = hazards(tmp_path / f"{file}.o")
    assert len(found) == len(culprits), found
    assert all(f" {name}" in line for name, line in zip(culprits, found, strict=True))


FORECAST = """
    import importlib, logging, pkgutil, sys
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    import numpy, torch
    torch.set_num_threads(2)
    import enma_fast
    from enma_fast import ops
    from enma_fast.ops._backend import extension

    model = enma_fast.load_model(sys.argv[2])
    (n,) = model.config.codec.grid
    x = torch.arange(n) / n * 6.2831853
    history = torch.stack([torch.sin(x - 0.05 * t) for t in range(3)])[..., None]

    def forecast():
        return enma_fast.forecast(model, history, num_frames=4, num_members=2, seed=5).numpy()

    default, again = forecast(), forecast()
    assert numpy.array_equal(default, again)
    # Every operator by its reference, whatever could run here.
    for each in pkgutil.iter_modules(ops.__path__):
        module = importlib.import_module(f"enma_fast.ops.{each.name}")
        if hasattr(module, "choose"):
            module.choose = lambda op, candidates, backend: "reference"
    numpy.savez(sys.argv[1], default=default, reference=forecast())
    print("extension", extension() is not None)
"""


def forecasts(site: Path, folder: Path) -> tuple[str, dict[str, np.ndarray]]:
    out = folder / f"{site.name}.npz"
    # Of more steps than the model that the wheel holds.
    said = probe(FORECAST, site, out, PRETRAINED / "combined-small", merge=True)
    with np.load(out, allow_pickle=False) as arrays:
        return said, dict(arrays)


def test_without_the_extension_forecasts_are_those_of_the_reference(pure_site: Path, tmp_path: Path) -> None:
    said, found = forecasts(pure_site, tmp_path)
    assert "extension False" in said
    assert np.isfinite(found["reference"]).all()
    assert found["reference"].std() > 0.01
    np.testing.assert_allclose(found["default"], found["reference"], rtol=0, atol=1e-4)
    lines = [line for line in said.splitlines() if line.startswith("philox_normal ") and "enma_fast._C is not" in line]
    assert len(lines) == 1, said


def test_with_the_extension_forecasts_are_those_of_the_reference(site: Path, tmp_path: Path) -> None:
    said, found = forecasts(site, tmp_path)
    assert "extension True" in said
    assert "enma_fast._C is not" not in said
    np.testing.assert_allclose(found["default"], found["reference"], rtol=0, atol=1e-3)
