"""The library as a C, C++ or Fortran program meets it: symbols, headers, examples, packages."""

import hashlib
import os
import platform
import re
import shutil
import subprocess
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save, save_file

from enma_fast.data import example, well
from enma_fast.data.shipped import shipped_file
from enma_fast.models.checkpoint import PRETRAINED, write_manifest

from .._objects import compiler
from .._objects import installed as installed_objects
from .._tiny import CONFIGS, waves
from ._libenma import CC, CSRC, CXX, FLAGS, ROOT, SANITIZERS, Library, Model, objects, run
from ._programs import WARNINGS, linked, needs

CHECKPOINT = PRETRAINED / "combined-fast"


@pytest.fixture
def frames(tmp_path: Path) -> Path:
    """Three observed frames as an example reads them."""
    path = tmp_path / "frames"
    example().tofile(path)
    return path


def test_only_functions_of_the_header_are_exported(library: Library) -> None:
    needs("nm")
    symbols = {line.split()[-1] for line in run(["nm", "-D", "--defined-only", str(library.path)]).splitlines()}
    declared = set(re.findall(r"ENMA_API [^(]*?(enma_\w+)\(", (CSRC / "include/enma/enma.h").read_text()))
    assert symbols == declared
    assert len(declared) > 10


def test_neither_python_nor_torch_is_needed(library: Library) -> None:
    needs("ldd")
    names = [Path(line.split()[0]).name for line in run(["ldd", str(library.path)]).splitlines()]
    known = r"linux-vdso|libasan|libubsan|libomp|libstdc\+\+|libm\.|libgomp|libgcc_s|libc\.|ld-|libdl|libpthread"
    assert not [name for name in names if not re.match(known, name)]


def test_the_header_is_c11_and_cpp(tmp_path: Path) -> None:
    needs(CC, CXX)
    source = tmp_path / "header.c"
    source.write_text(
        "#include <enma/enma.h>\n#include <enma/enma.h>\n"
        "int main(void) { enma_session_options o = ENMA_SESSION_OPTIONS; enma_model_options m = ENMA_MODEL_OPTIONS;\n"
        "enma_model_description d = ENMA_MODEL_DESCRIPTION;\n"
        "return (int)(o.struct_size + m.struct_size + d.grid) == 0; }\n"
    )
    include = f"-I{CSRC / 'include'}"
    run([CC, "-std=c11", "-pedantic", *WARNINGS, include, "-fsyntax-only", str(source)])
    run([CXX, "-std=c++11", "-pedantic", *WARNINGS, include, "-fsyntax-only", "-x", "c++", str(source)])


def test_each_header_of_the_runtime_stands_alone() -> None:
    needs(CXX)
    text = "".join(
        f'#include "runtime/{path.name}"\n' * 2 for path in sorted((CSRC / "runtime").glob("*.h"), reverse=True)
    )
    command = [CXX, *FLAGS, "-fsyntax-only", "-x", "c++", "-"]
    done = subprocess.run(command, input=text, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_example_in_c(library: Library, fast: Model, frames: Path, tmp_path: Path) -> None:
    needs(CC)
    program, out = tmp_path / "forecast", tmp_path / "out"
    source = str(CSRC / "examples/forecast.c")
    include = f"-I{CSRC / 'include'}"
    run([CC, "-std=c11", "-pedantic", *WARNINGS, include, source, *linked(library), "-lm", "-o", str(program)])
    printed = run([str(program), str(CHECKPOINT), str(frames), "4", str(out)])
    expected = fast.forecast(example(), num_members=4)
    assert np.array_equal(np.fromfile(out, np.float32).reshape(expected.shape), expected)
    spread = np.sqrt(expected[:, 16].var(0, ddof=1, dtype=float).mean())
    assert printed.splitlines()[16] == f"frame 16: mean {expected[:, 16].mean(dtype=float):.6f}, spread {spread:.6f}"
    failed = subprocess.run([program, tmp_path, frames, "4", out], capture_output=True, text=True)
    assert failed.returncode == 1
    assert failed.stderr == f"enma: {tmp_path}/manifest.json: cannot be opened (No such file or directory)" + (
        "; copy the checkpoint again\n"
    )


@pytest.mark.parametrize("standard", ["c++17", pytest.param("c++20", marks=pytest.mark.slow)])
def test_the_header_for_cpp(library: Library, fast: Model, frames: Path, tmp_path: Path, standard: str) -> None:
    needs(CXX)
    program, out = tmp_path / "program", tmp_path / "out"
    source = str(Path(__file__).with_name("cpp_main.cpp"))
    include = f"-I{CSRC / 'include'}"
    flags = [f"-std={standard}", "-pedantic", *WARNINGS, "-Wshadow", "-Wconversion", "-Wno-sign-conversion", include]
    run([CXX, *flags, source, *linked(library), "-o", str(program)])
    assert run([str(program), str(CHECKPOINT), str(frames), str(out)]) == "ok\n"
    expected = fast.forecast(example(), num_members=4)
    assert np.array_equal(np.fromfile(out, np.float32).reshape(expected.shape), expected)


def test_the_example_in_fortran(library: Library, fast: Model, frames: Path, tmp_path: Path) -> None:
    """Stopped half way, and continued from its restart file."""
    needs("gfortran")
    program, out = tmp_path / "restart", tmp_path / "out"
    files = [str(CSRC / "fortran/enma.f90"), str(CSRC / "examples/restart.f90")]
    run(["gfortran", "-std=f2018", *WARNINGS, f"-J{tmp_path}", *files, *linked(library), "-o", str(program)])
    run([str(program), str(CHECKPOINT), str(frames), "3", str(tmp_path / "saved"), str(out)])
    expected = fast.forecast(example(), num_members=3).swapaxes(0, 1)
    assert np.array_equal(np.fromfile(out, np.float32).reshape(expected.shape), expected)
    failed = subprocess.run([program, tmp_path, frames, "3", out, out], capture_output=True, text=True)
    assert failed.returncode != 0
    assert "enma: " in failed.stderr
    assert "manifest.json: cannot be opened" in failed.stderr


def test_planes_in_fortran_and_in_c(library: Library, plane: Path, tmp_path: Path) -> None:
    needs(CC, "gfortran")
    history = waves(1, 1, 3, CONFIGS["plane"].tokenizer)[0].numpy()
    history.tofile(tmp_path / "frames")
    expected = library.open(plane).forecast(history, num_members=2)
    program, out = tmp_path / "program", tmp_path / "out"
    files = [str(CSRC / "fortran/enma.f90"), str(Path(__file__).with_name("plane_main.f90"))]
    run(["gfortran", "-std=f2018", *WARNINGS, f"-J{tmp_path}", *files, *linked(library), "-o", str(program)])
    run([str(program), str(plane), str(tmp_path / "frames"), str(out)])
    first, rest = np.split(np.fromfile(out, np.float32), [expected[:, 0].size])
    assert np.array_equal(first.reshape(expected[:, 0].shape), expected[:, 0])
    rest = rest.reshape(expected[:, 1:].shape)
    assert np.array_equal(rest[0], expected[0, 1:])
    assert np.isnan(rest[1]).all()
    include = f"-I{CSRC / 'include'}"
    source = str(CSRC / "examples/forecast.c")
    run([CC, "-std=c11", *WARNINGS, include, source, *linked(library), "-lm", "-o", str(program)])
    run([str(program), str(plane), str(tmp_path / "frames"), "2", str(out)])
    assert np.array_equal(np.fromfile(out, np.float32).reshape(expected.shape), expected)


def compiled_example(name: str, library: Library, folder: Path) -> str:
    """Path of an example in C++."""
    needs(CXX)
    flags = ["-std=c++17", "-O2", "-pedantic", *WARNINGS, f"-I{CSRC / 'include'}"]
    run([CXX, *flags, str(CSRC / f"examples/{name}.cpp"), *linked(library), "-o", str(folder / name)])
    return str(folder / name)


def test_a_solver_hands_over_and_takes_over_again(library: Library, tmp_path: Path) -> None:
    """Its frames are those of the data, the surrogate's are close, and what it makes of them stays so."""
    program, path = compiled_example("handover", library, tmp_path), tmp_path / "trajectory"
    fields = well.read(shipped_file("combined", "test-in"), select=[0])
    fields.u[0].astype(np.float32).tofile(path)
    values = [str(fields.parameters[name][0]) for name in ("alpha", "beta", "gamma")]
    printed = run([program, str(CHECKPOINT), str(path), *values])
    errors = re.findall(r"frame +(\d+): (surrogate|handed back) (\S+), solver (\S+)", printed)
    assert [int(frame) for frame, *_ in errors] == list(range(5, 20))
    assert [who for _, who, *_ in errors] == 9 * ["surrogate"] + 6 * ["handed back"]
    # The solution in fp32 has no more digits.
    assert max(float(solver) for *_, solver in errors) < 1e-6
    assert 1e-4 < max(float(mixed) for _, _, mixed, _ in errors) < 0.03
    assert re.search(r"cost of a frame: solver \S+ s, surrogate \S+ s for 16 members", printed)
    failed = subprocess.run([program, CHECKPOINT, "/nowhere", *values], capture_output=True, text=True)
    assert (failed.returncode, failed.stderr) == (1, "/nowhere: too few frames\n")


@pytest.mark.slow
def test_a_particle_filter(library: Library, tmp_path: Path) -> None:
    """Observations at scattered points bring the members to the truth, where those without stay away from it."""
    program, path = compiled_example("filter", library, tmp_path), tmp_path / "trajectory"
    for number in (0, 5):
        example(trajectory=number, frames=20).tofile(path)
        printed = run([program, str(CHECKPOINT), str(path)])
        errors = re.findall(r"frame +\d+: filtered (\S+), free run (\S+)", printed)
        filtered, free = np.array(errors, float).T
        assert len(filtered) == 16
        assert np.array_equal(filtered[:4], free[:4])
        assert filtered[-4:].mean() < 0.5 * free[-4:].mean()


def test_ranks_of_mpi(library: Library, fast: Model, frames: Path, tmp_path: Path) -> None:
    """Four ranks give the bytes of one, and so does a run that stopped and went on from its restart file."""
    needs("mpifort", "mpirun", "gfortran")
    program, restart = tmp_path / "ensemble", tmp_path / "restart"
    files = [str(CSRC / "fortran/enma.f90"), str(CSRC / "examples/ensemble.f90")]
    run(["mpifort", "-std=f2018", *WARNINGS, f"-J{tmp_path}", *files, *linked(library), "-o", str(program)])
    environ = os.environ | {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    environ |= {"PRTE_ALLOW_RUN_AS_ROOT": "1", "PRTE_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}

    def ranks(count: int, out: str, *steps: str) -> list[str]:
        command = ["mpirun", "--oversubscribe", "-np", str(count), str(program), str(CHECKPOINT), str(frames), "8"]
        command += [str(restart), str(tmp_path / out), *steps]
        done = subprocess.run(command, capture_output=True, text=True, env=environ)
        assert done.returncode == 0, (done.stdout[-2000:], done.stderr[-4000:])
        return re.findall(r"frame +\d+: mean +\S+, spread +\S+", done.stdout)

    whole = ranks(4, "four")
    values = fast.forecast(example(), num_members=8)
    assert np.array_equal(np.fromfile(tmp_path / "four", np.float32).reshape(17, 8, 128, 1), values.swapaxes(0, 1))
    spread = np.sqrt(values[:, 16].var(0, ddof=1, dtype=float).mean())
    assert whole[16] == f"frame 16: mean {values[:, 16].mean(dtype=float):10.6f}, spread {spread:10.6f}"
    assert not restart.exists()
    parts = ranks(4, "parts", "7")
    assert restart.exists()
    parts += ranks(4, "parts", "6")
    parts += ranks(4, "parts")
    assert parts == whole
    restart.unlink()
    ranks(1, "one")
    assert (tmp_path / "parts").read_bytes() == (tmp_path / "four").read_bytes() == (tmp_path / "one").read_bytes()


def test_the_code_of_the_page_compiles(tmp_path: Path) -> None:
    needs(CC)
    pages = [(ROOT / f"docs/{name}.md").read_text() for name in ("embedding", "mpi-and-restarts")]
    (whole, scattered), (part,) = (re.findall(r"^```c\n(.*?)^```$", page, re.MULTILINE | re.DOTALL) for page in pages)
    head, body = whole.split("\n", 1)
    body = body.replace("enma_session* session;", f"{part}enma_session* session;")
    (tmp_path / "page.c").write_text(
        f"{head}\nstatic void use(const float* frame) {{ (void)frame; }}\n"
        f"void begin(enma_session* session, DLTensor points, DLTensor values) {{\n{scattered}}}\n"
        f"int main(void) {{ const int rank = 0;\n{body}}}\n"
    )
    run([CC, "-std=c11", *WARNINGS, f"-I{CSRC / 'include'}", "-fsyntax-only", str(tmp_path / "page.c")])


@pytest.fixture(scope="module")
def installed(library: Library, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of programs with an `enma-fast` whose `embed` names a prefix around the library."""
    prefix = tmp_path_factory.mktemp("prefix")
    shutil.copytree(CSRC / "include", prefix / "include")
    shutil.copy(CSRC / "fortran/enma.f90", prefix / "include/enma")
    (prefix / "lib/cmake/enma").mkdir(parents=True)
    for name in ("libenma.so", "libenma.so.1"):
        (prefix / "lib" / name).symlink_to(library.path)
    for path in (CSRC / "embed").glob("*.in"):
        text = path.read_text().replace("@ABI@", "1").replace("@VERSION@", "0.2.0")
        (prefix / "lib/cmake/enma" / path.stem).write_text(text)
    script = prefix / "bin/enma-fast"
    script.parent.mkdir()
    script.write_text(
        '#!/bin/sh\ncase "$2" in\n'
        f"--cmake-dir) echo {prefix}/lib/cmake/enma ;;\n--include-dir) echo {prefix}/include ;;\n"
        f"--library-dir) echo {prefix}/lib ;;\n--checkpoint) echo {PRETRAINED}/$3 ;;\nesac\n"
    )
    script.chmod(0o755)
    return script.parent


@pytest.mark.parametrize(
    ("page", "programs", "printed"),
    [
        ("embed-in-cpp", ("cmake", "g++"), "frame 17: mean"),
        ("embed-in-fortran", ("gfortran",), "frame 17: mean"),
        ("mpi-and-restarts", ("g++",), "the same bits"),
        ("errors-and-threads", ("gcc", "g++"), "the same bits in eight threads"),
    ],
)
def test_a_page_in_an_empty_folder(
    installed: Path, tmp_path: Path, page: str, programs: tuple[str, ...], printed: str
) -> None:
    """Its blocks become the files that their first lines name, and its commands build and run them."""
    needs(*programs)
    blocks = re.findall(r"^```(\w+)\n(.*?)^```$", (ROOT / f"docs/{page}.md").read_text(), re.MULTILINE | re.DOTALL)
    names = re.compile(r"(?://|!|#|/\*) (\S+\.\w+)")
    for _, text in blocks:
        if name := names.match(text):
            (tmp_path / name[1]).write_text(text)
    script = "".join(text for kind, text in blocks if kind == "sh")
    environ = os.environ | {"PATH": f"{installed}:{os.environ['PATH']}"}
    done = subprocess.run(["sh", "-euc", script], cwd=tmp_path, env=environ, capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout[-2000:], done.stderr[-4000:])
    assert printed in done.stdout
    # The other programs of the page compile.
    include = f"-I{CSRC / 'include'}"
    for path in tmp_path.glob("*.cpp"):
        run([CXX, "-std=c++17", *WARNINGS, include, "-fsyntax-only", str(path)])
    files = [str(tmp_path / name) for name in ("refused.f90",) if (tmp_path / name).exists()]
    if files:
        run(["gfortran", "-std=f2018", f"-J{tmp_path}", "-fsyntax-only", str(CSRC / "fortran/enma.f90"), *files])


@dataclass(frozen=True)
class Watched:
    """The library compiled so that every access is watched, and how to compile and link programs over it."""

    compiler: str
    flags: list[str]
    objects: list[str]
    # What Clang said where it has no libFuzzer; None where it has.
    refusal: str | None

    def program(self, main: Path, out: Path, *flags: str, others: Sequence[str] = (), without: str = "") -> Path:
        """Compile a program of one file and link it to the library, without the object of one of its files."""
        kept = [path for path in self.objects if not (without and path.endswith(f"_{without}.o"))]
        run([self.compiler, *FLAGS, *self.flags, *flags, str(main), *others, *kept, "-o", str(out)])
        return out

    def with_kernels(self, made: Path | None, folder: Path) -> "Watched":
        """The same over the kernels of all instruction sets, not watched: objects of `make install`, or else by GCC."""
        if made is None:
            gcc = self.compiler == "g++"
            return self if gcc else Watched("g++", SANITIZERS, objects(folder, SANITIZERS, "g++"), self.refusal)
        kept = []
        for path in self.objects:
            part, name = Path(path).stem.split("_", 1)
            if name.startswith(("gemm_", "vector_kernels_")):
                path = str(made / f"csrc/core/{part}/{name}.o")
            elif name in ("dispatch", "gemm"):
                # Which instruction sets there are; Clang would not name those that GCC alone makes.
                source, path = str(CSRC / f"core/{part}/{name}.cpp"), str(folder / f"{part}_{name}.o")
                run([self.compiler, *FLAGS, *self.flags, "-DENMA_X86_KERNELS", "-c", source, "-o", path])
            kept.append(path)
        return replace(self, objects=kept)


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Watched:
    """By Clang where it has libFuzzer and OpenMP, so that one build serves readers and sessions; else by GCC."""
    folder = tmp_path_factory.mktemp("watched")
    (folder / "probe.cpp").write_text('extern "C" int LLVMFuzzerTestOneInput(const char*, long) { return 0; }')
    watch = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g1", "-O1"]
    probe = ["clang++", *FLAGS, *watch, "-fsanitize=fuzzer", str(folder / "probe.cpp"), "-o", str(folder / "probe")]
    refusal = "needs clang++"
    if shutil.which("clang++"):
        done = subprocess.run(probe, capture_output=True, text=True)
        if done.returncode == 0:
            made = objects(folder, [*watch, "-fsanitize=fuzzer-no-link"], "clang++")
            return Watched("clang++", watch, made, None)
        refusal = done.stderr[-4000:]
    needs("g++")
    return Watched("g++", SANITIZERS, objects(folder, SANITIZERS, "g++"), refusal)


@pytest.mark.slow
def test_readers_under_sanitizers(watched: Watched, folder: Path, scattered: Path, tmp_path: Path) -> None:
    """Changed files of two checkpoints, one with fp16 weights, and changed saved sessions; and the portable SHA-256."""
    main, portable = Path(__file__).with_name("readers_main.cpp"), str(CSRC / "runtime/sha256.cpp")
    program = watched.program(main, tmp_path / "readers", "-DENMA_PORTABLE", others=[portable], without="sha256")
    halves = Path(shutil.copytree(scattered, tmp_path / "halves"))
    tensors = load_file(halves / "model.safetensors")
    save_file({name: values.astype(np.float16) for name, values in tensors.items()}, halves / "model.safetensors")
    write_manifest(halves)
    assert run([str(program), str(halves), "500", "15"]).splitlines()[-1].startswith("ok")
    *digests, last = run([str(program), str(folder), "500", "15"]).splitlines()
    assert last.startswith("ok")
    data = (folder / "model.safetensors").read_bytes()
    assert digests == [hashlib.sha256(data[:size]).hexdigest() for size in range(200)]


@pytest.mark.slow
def test_readers_under_libfuzzer(watched: Watched, small: Model, folder: Path, tmp_path: Path) -> None:
    """From inputs of an earlier run, which reach what these seeds alone do not in half a minute."""
    if watched.refusal is not None:
        known = ("needs clang++", "libclang_rt.fuzzer", "cannot find -lomp")
        assert any(reason in watched.refusal for reason in known), watched.refusal
        pytest.skip("needs a clang++ with libFuzzer and OpenMP")
    corpus, main = tmp_path / "corpus", Path(__file__).with_name("readers_main.cpp")
    program = watched.program(main, tmp_path / "fuzz", "-DENMA_LIBFUZZER", "-fsanitize=fuzzer")
    with tarfile.open(Path(__file__).with_name("corpus.tar.xz")) as found:
        found.extractall(corpus, filter="data")
    assert len(list(corpus.iterdir())) > 500
    (corpus / "config").write_bytes(b"c" + (folder / "config.json").read_bytes())
    (corpus / "weights").write_bytes(b"w" + (folder / "model.safetensors").read_bytes()[:20_000])
    few = {name: np.array([1.5, -0.0, 6e-8], kind) for name, kind in (("a", np.float16), ("b", np.float32))}
    (corpus / "halves").write_bytes(b"w" + save(few))
    session = small.session(num_members=2, temperature=1.0)
    session.observe(waves(1, 1, 3, CONFIGS["relative-fast"].tokenizer)[0].numpy())
    session.step()
    # Without its digest.
    (corpus / "session").write_bytes(b"s" + session.save()[:-32])
    options = [f"-folder={folder}", "-max_total_time=30", "-max_len=30000", "-rss_limit_mb=2048"]
    # The system counts the most memory of the process that starts one as its own; a shell between them has little.
    command = ["sh", "-c", '"$@"; exit $?', "sh", str(program), str(corpus), *options]
    environ = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environ, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-4000:]
    assert re.search(r"Done \d{3,} runs", done.stderr), done.stderr[-2000:]


@pytest.mark.slow
def test_a_session_under_sanitizers(watched: Watched, folder: Path, plane: Path, scattered: Path, tmp_path: Path):
    """The example in C, and enma.hpp, over a library in which every access but those of the kernels is watched.

    With the instruction sets of this machine, which GCC makes; the kernels have tests of their own.
    """
    needs("gcc", "g++")
    watched, here = watched.with_kernels(installed_objects(), tmp_path), Path(__file__)
    example, program = str(tmp_path / "example.o"), tmp_path / "forecast"
    source, include = str(CSRC / "examples/forecast.c"), f"-I{CSRC / 'include'}"
    run([watched.compiler, *watched.flags, include, "-x", "c", "-c", source, "-o", example])
    run([watched.compiler, "-fopenmp", *watched.flags, *watched.objects, example, "-o", str(program)])
    watched.program(here.with_name("cpp_main.cpp"), tmp_path / "cpp", "-std=c++17")
    frames = tmp_path / "frames"
    for checkpoint, points in ((folder, 32), (plane, 16 * 8 * 2)):
        np.linspace(-1, 1, 3 * points, dtype=np.float32).tofile(frames)
        assert run([str(program), str(checkpoint), str(frames), "3", str(tmp_path / "out")]).count("frame") == 5
        assert run([str(tmp_path / "cpp"), str(checkpoint), str(frames), str(tmp_path / "out")]) == "ok\n"
    program = watched.program(here.with_name("points_main.cpp"), tmp_path / "seen-at-points", "-std=c++17")
    np.linspace(0, 1, 2 * 9, dtype=np.float32).tofile(tmp_path / "points")
    np.linspace(-1, 1, 3 * 9 * 2, dtype=np.float32).tofile(frames)
    run([str(program), str(scattered), str(tmp_path / "points"), str(frames), str(tmp_path / "out")])


@pytest.mark.slow
def test_cmake_installs_what_cmake_and_pkg_config_find(frames: Path, tmp_path: Path) -> None:
    needs("cmake", "pkg-config", CC, CXX)
    build, prefix = tmp_path / "build", tmp_path / "prefix"
    # A third of the time to compile, or hardly any after `make install`. Where this library is measured against others
    # it is built as `make libenma` does.
    quick = ["-DCMAKE_CXX_FLAGS=-DENMA_SMALL", "-DCMAKE_CXX_FLAGS_RELEASE=-O0 -DNDEBUG"]
    made = installed_objects()
    if made is not None:
        quick = [f"-DCMAKE_CXX_COMPILER_LAUNCHER={compiler(tmp_path / 'launcher', made, ROOT)}"]
    places = [f"-DCMAKE_INSTALL_PREFIX={prefix}", "-DCMAKE_INSTALL_LIBDIR=lib"]
    run(["cmake", "-S", str(CSRC), "-B", str(build), *places, *quick])
    run(["cmake", "--build", str(build)])
    run(["cmake", "--install", str(build)])
    # It can be moved.
    moved = tmp_path / "moved"
    prefix.rename(moved)
    user = tmp_path / "user"
    user.mkdir()
    shutil.copy(CSRC / "examples/forecast.c", user)
    (user / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.20)\nproject(user C)\nfind_package(enma REQUIRED)\n"
        "add_executable(forecast forecast.c)\ntarget_link_libraries(forecast PRIVATE enma::enma m)\n"
    )
    run(["cmake", "-S", str(user), "-B", str(user / "build"), f"-DCMAKE_PREFIX_PATH={moved}"])
    run(["cmake", "--build", str(user / "build")])
    run([str(user / "build/forecast"), str(CHECKPOINT), str(frames), "2", str(tmp_path / "out")])
    assert len(np.fromfile(tmp_path / "out", np.float32)) == 2 * 17 * 128
    environ = os.environ | {"PKG_CONFIG_PATH": str(moved / "lib/pkgconfig")}
    found = subprocess.run(["pkg-config", "--cflags", "--libs", "enma"], env=environ, capture_output=True, text=True)
    program = tmp_path / "by-pkg-config"
    flags = [*found.stdout.split(), "-lm", f"-Wl,-rpath,{moved / 'lib'}"]
    run([CC, str(user / "forecast.c"), *flags, "-o", str(program)])
    run([str(program), str(CHECKPOINT), str(frames), "2", str(tmp_path / "again")])
    assert (tmp_path / "again").read_bytes() == (tmp_path / "out").read_bytes()


@pytest.mark.parametrize("version", ["0.2.0", "1.9.3"])
def test_the_wheel_and_cmake_serve_the_same_versions(tmp_path: Path, version: str) -> None:
    """Of programs that ask for one, for it alone, and for a range."""
    needs("cmake")
    text = (CSRC / "embed/enma-config-version.cmake.in").read_text().replace("@VERSION@", version)
    for folder in ("wheel", "cmake"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "enma-config.cmake").write_text("")
    (tmp_path / "wheel/enma-config-version.cmake").write_text(text)
    numbers = ["0.1.9", "0.2", "0.2.9", "0.3", "1", "1.9", "1.9.2", "1.9.3", "1.9.4", "1.10", "2"]
    asked = [*numbers, "0.2.0", "0.2.0 EXACT", "1.9.3 EXACT", "1.9 EXACT"]
    asked += [f"{least}...{end}{most}" for least, most in combinations(numbers, 2) for end in ("", "<")]
    lines = ["cmake_minimum_required(VERSION 3.20)", "include(CMakePackageConfigHelpers)"]
    made = f"{tmp_path}/cmake/enma-config-version.cmake VERSION {version}"
    lines += [f"write_basic_package_version_file({made} COMPATIBILITY SameMinorVersion ARCH_INDEPENDENT)"]
    for wanted in asked:
        for folder in ("wheel", "cmake"):
            lines += ["unset(enma_DIR CACHE)"]
            lines += [f"find_package(enma {wanted} CONFIG QUIET NO_DEFAULT_PATH PATHS {tmp_path / folder})"]
            lines += ['message("${enma_FOUND}")']
    (tmp_path / "ask.cmake").write_text("\n".join(lines))
    done = subprocess.run(["cmake", "-P", str(tmp_path / "ask.cmake")], capture_output=True, text=True, check=True)
    found = done.stderr.split()
    wheel, by_cmake = (dict(zip(asked, found[i::2], strict=True)) for i in range(2))
    assert wheel == by_cmake
    assert wheel[f"{version} EXACT"] == "1"
    assert set(wheel.values()) == {"0", "1"}


@pytest.mark.slow
def test_pkg_config_where_the_folder_of_libraries_is_absolute(tmp_path: Path) -> None:
    needs("cmake", "pkg-config", CC, CXX)
    build, prefix = tmp_path / "build", tmp_path / "prefix"
    folders = {"libdir": tmp_path / "elsewhere/lib64", "includedir": prefix / "include"}
    places = [f"-DCMAKE_INSTALL_PREFIX={prefix}", f"-DCMAKE_INSTALL_LIBDIR={folders['libdir']}"]
    run(["cmake", "-S", str(CSRC), "-B", str(build), *places])
    installed = folders["libdir"] / "pkgconfig"
    installed.mkdir(parents=True)
    shutil.copy(build / "enma.pc", installed)
    environ = os.environ | {"PKG_CONFIG_PATH": str(installed)}
    for name, expected in folders.items():
        command = ["pkg-config", f"--variable={name}", "enma"]
        found = subprocess.run(command, env=environ, capture_output=True, text=True, check=True).stdout
        assert Path(os.path.normpath(found.strip())) == expected


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the flag is for x86-64")
def test_a_flag_that_names_a_processor_changes_no_bit(tmp_path: Path) -> None:
    """As Spack adds one: products and sums are fused in vectors of AVX2 and AVX-512, and nowhere else."""
    needs("g++")
    builds = [(ROOT / name).read_text() for name in ("setup.py", "csrc/CMakeLists.txt")]
    (flag,) = {found for text in builds for found in re.findall(r"-ffp-contract=\w+", text)}
    assert all(flag in text for text in builds)
    kernels = [(CSRC / f"core/cpu/vector_kernels_{name}.cpp").read_text() for name in ("avx2", "avx512")]
    (pragma,) = {found for text in kernels for found in re.findall("#pragma GCC optimize.*", text)}
    assert all(pragma in text for text in kernels)
    source = tmp_path / "sums.cpp"
    body = "(float a, float b, float c) { return a * b + c; }"
    source.write_text(f'float one{body}\n#pragma GCC target("avx2,fma")\n{pragma}\nfloat other{body}\n')
    command = ["g++", "-O2", "-march=haswell", "-S", str(source), "-o", "-"]
    assert run(command).count("vfmadd") == 2
    assert run([*command, flag]).count("vfmadd") == 1


def test_sources_are_shipped_with_the_package() -> None:
    """The source distribution carries what the library is built from."""
    manifest = (ROOT / "MANIFEST.in").read_text()
    shipped = next(line for line in manifest.splitlines() if line.startswith("recursive-include csrc")).split()[2:]
    names = [path.name for path in CSRC.rglob("*") if path.is_file()]
    assert not [name for name in names if not any(Path(name).match(pattern) for pattern in shipped)]
