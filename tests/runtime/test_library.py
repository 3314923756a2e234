"""The library as a C, C++ or Fortran program meets it: symbols, headers, examples, pages."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from enma_fast.data import example, well
from enma_fast.data.shipped import shipped_file
from enma_fast.models.checkpoint import PRETRAINED

from .._tiny import CONFIGS, waves
from ._libenma import CC, CSRC, CXX, FC, FLAGS, ROOT, SONAME, Library, Model, run
from ._programs import CHECKPOINT, FORTRAN, WARNINGS, compiled, linked, needs


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
    program, out = compiled("cpp_main", standard, library, tmp_path), tmp_path / "out"
    assert run([program, str(CHECKPOINT), str(frames), str(out)]) == "ok\n"
    expected = fast.forecast(example(), num_members=4)
    assert np.array_equal(np.fromfile(out, np.float32).reshape(expected.shape), expected)


def test_the_example_in_fortran(library: Library, fast: Model, frames: Path, tmp_path: Path) -> None:
    """Stopped half way, and continued from its restart file."""
    needs(FC)
    program, out = tmp_path / "restart", tmp_path / "out"
    files = [str(CSRC / "fortran/enma.f90"), str(CSRC / "examples/restart.f90")]
    run([*FORTRAN, f"-J{tmp_path}", *files, *linked(library), "-o", str(program)])
    run([str(program), str(CHECKPOINT), str(frames), "3", str(tmp_path / "saved"), str(out)])
    expected = fast.forecast(example(), num_members=3).swapaxes(0, 1)
    assert np.array_equal(np.fromfile(out, np.float32).reshape(expected.shape), expected)
    failed = subprocess.run([program, tmp_path, frames, "3", out, out], capture_output=True, text=True)
    assert failed.returncode != 0
    assert "enma: " in failed.stderr
    assert "manifest.json: cannot be opened" in failed.stderr


def test_planes_in_fortran_and_in_c(library: Library, plane: Path, tmp_path: Path) -> None:
    needs(CC, FC)
    history = waves(1, 1, 3, CONFIGS["plane"].codec)[0].numpy()
    history.tofile(tmp_path / "frames")
    expected = library.open(plane).forecast(history, num_members=2)
    program, out = tmp_path / "program", tmp_path / "out"
    files = [str(CSRC / "fortran/enma.f90"), str(Path(__file__).with_name("plane_main.f90"))]
    run([*FORTRAN, f"-J{tmp_path}", *files, *linked(library), "-o", str(program)])
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

    def start(count: int, out: str, *steps: str) -> subprocess.CompletedProcess[str]:
        command = ["mpirun", "--oversubscribe", "-np", str(count), str(program), str(CHECKPOINT), str(frames), "8"]
        command += [str(restart), str(tmp_path / out), *steps]
        return subprocess.run(command, capture_output=True, text=True, env=environ)

    def ranks(count: int, out: str, *steps: str) -> list[str]:
        done = start(count, out, *steps)
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
    assert start(2, "no such folder/out").returncode != 0


def test_the_parts_of_programs_on_pages_compile(tmp_path: Path) -> None:
    needs(CC)
    pages = [(ROOT / f"docs/{name}.md").read_text() for name in ("embedding", "reference/c", "mpi-and-restarts")]
    whole, scattered, part = (re.search(r"^```c\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)[1] for page in pages)
    begin = "void begin(enma_session* session, DLTensor points, DLTensor values, const int rank)"
    (tmp_path / "page.c").write_text(
        f"{whole}{begin};\n{begin} {{\n{scattered}enma_session_options options;\n{part}}}\n"
    )
    run(
        [
            CC,
            "-std=c11",
            *WARNINGS,
            f"-I{CSRC / 'include'}",
            "-Wno-unused-but-set-variable",
            "-fsyntax-only",
            str(tmp_path / "page.c"),
        ]
    )


@pytest.fixture(scope="module")
def installed(library: Library, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of programs with an `enma-fast` whose `embed` names a prefix around the library."""
    needs("cmake", CC, CXX)
    prefix, build = tmp_path_factory.mktemp("prefix"), tmp_path_factory.mktemp("build")
    run(["cmake", "-S", str(CSRC), "-B", str(build), "-DCMAKE_INSTALL_LIBDIR=lib"])
    # In place of one that would be compiled now.
    shutil.copy(library.path, build / SONAME)
    (build / "libenma.so").symlink_to(SONAME)
    run(["cmake", "--install", str(build), "--component", "library", "--prefix", str(prefix)])
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
        ("embedding", ("gcc",), "frame 17: "),
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
    # Its last command again, with the path of a checkpoint that is not there.
    command = script.splitlines()[-1].split()[0]
    failed = subprocess.run([command, "no such checkpoint"], cwd=tmp_path, env=environ, capture_output=True, text=True)
    assert failed.returncode == 1
    assert "no such checkpoint" in failed.stderr
    # The other programs of the page compile.
    include = f"-I{CSRC / 'include'}"
    for path in tmp_path.glob("*.cpp"):
        run([CXX, "-std=c++17", *WARNINGS, include, "-fsyntax-only", str(path)])
    files = [str(tmp_path / name) for name in ("refused.f90",) if (tmp_path / name).exists()]
    if files:
        run(["gfortran", "-std=f2018", f"-J{tmp_path}", "-fsyntax-only", str(CSRC / "fortran/enma.f90"), *files])
