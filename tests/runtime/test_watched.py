"""The library under sanitizers and a fuzzer: what it reads from files, and sessions."""

import hashlib
import os
import re
import shutil
import subprocess
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save, save_file

from enma_fast.models.checkpoint import save_model, write_manifest

from .._objects import installed as installed_objects
from .._objects import object_of
from .._tiny import CONFIGS, waves
from .._tiny_field import field_model
from .._told import KNOWN
from ._libenma import CSRC, FLAGS, SANITIZERS, Library, Model, objects, run
from ._programs import needs
from .test_field_models import TOLD, observed


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
                path = str(object_of(CSRC / f"core/{part}/{name}.cpp", made))
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
    # Readers stop by the clock, and sessions are short: it takes longer to optimise them.
    flags = ["-O0" if flag == "-O1" else flag for flag in SANITIZERS]
    return Watched("g++", flags, objects(folder, flags, "g++", installed_objects()), refusal)


@pytest.mark.slow
def test_readers_under_sanitizers(watched: Watched, folder: Path, scattered: Path, tmp_path: Path) -> None:
    """Changed files of checkpoints and changed saved sessions; and the portable SHA-256.

    One has fp16 weights, and one is a field model that is told known inputs.
    """
    main, portable = Path(__file__).with_name("readers_main.cpp"), str(CSRC / "runtime/sha256.cpp")
    program = watched.program(main, tmp_path / "readers", "-DENMA_PORTABLE", others=[portable], without="sha256")
    halves = Path(shutil.copytree(scattered, tmp_path / "halves"))
    tensors = load_file(halves / "model.safetensors")
    save_file({name: values.astype(np.float16) for name, values in tensors.items()}, halves / "model.safetensors")
    write_manifest(halves)
    told = tmp_path / "told"
    save_model(field_model(grid=(6, 8), periodic=(True, False), masked=True, known=KNOWN), told)
    for checkpoint in (halves, told):
        assert run([str(program), str(checkpoint), "500", "6"]).splitlines()[-1].startswith("ok")
    *digests, last = run([str(program), str(folder), "500", "6"]).splitlines()
    assert last.startswith("ok")
    data = (folder / "model.safetensors").read_bytes()
    assert digests == [hashlib.sha256(data[:size]).hexdigest() for size in range(200)]


@pytest.mark.slow
def test_readers_under_libfuzzer(
    watched: Watched, library: Library, small: Model, folder: Path, tmp_path: Path
) -> None:
    """From inputs of an earlier run, which reach what these seeds alone do not in ten seconds."""
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
    save_model(field_model(**TOLD), tmp_path / "told")
    history, context, told = observed(TOLD, 2)
    given = {
        folder: (small, {"history": waves(1, 1, 3, CONFIGS["relative-fast"].codec)[0].numpy()}),
        tmp_path / "told": (library.open(tmp_path / "told"), {"history": history, "context": context, **told}),
    }
    for checkpoint, (model, observation) in given.items():
        session = model.session(num_members=2, temperature=1.0)
        session.observe(**observation)
        session.step()
        # Without its digest.
        (corpus / "session").write_bytes(b"s" + session.save()[:-32])
        options = [f"-folder={checkpoint}", "-max_total_time=10", "-max_len=30000", "-rss_limit_mb=2048"]
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
