"""The environment of a bare GPU machine: which builds of an earlier call fit, and what happens where one fails."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks import gpu_bootstrap, gpu_files


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A machine that is bare: its tree, and the commands that it ran with the environment variable of each."""
    monkeypatch.delenv("ENMA_FAST_RESULTS", raising=False)
    monkeypatch.delenv("ENMA_FAST_NO_EXT", raising=False)
    ran: list[str] = []
    # Commands that fail, by the first words of `ran`.
    failing: set[str] = set()

    def run(command, *, env=None, check=False, **_):
        if "--editable" in command:
            what = "install without" if env.get("ENMA_FAST_NO_EXT") == "1" else "build"
        else:
            what = "load"
        ran.append(what)
        if what == "build" and what not in failing:
            (made.root / "enma_fast" / "_C.so").write_text("built")
        there = (made.root / "enma_fast" / "_C.so").exists()
        status = int(what in failing or (what == "load" and not there))
        if status and check:
            raise subprocess.CalledProcessError(status, command)
        return SimpleNamespace(returncode=status)

    def bare(name: str) -> None:
        made.root = tmp_path / name
        (made.root / "enma_fast").mkdir(parents=True)
        (made.root / "csrc").mkdir()
        (made.root / "setup.py").write_text("")
        (made.root / "csrc" / "a.cpp").write_text("1")
        out = made.root / "out" / "gpu"
        for module in (gpu_bootstrap, gpu_files):
            monkeypatch.setattr(module, "ROOT", made.root)
            monkeypatch.setattr(module, "OUT", out)
            monkeypatch.setattr(module, "BUILT", out / "built.txt")
            monkeypatch.setattr(module, "TRITON_CACHE", out / "triton")
        monkeypatch.setattr(gpu_bootstrap, "WHEELS", made.root / "out" / "gpu-wheels")
        ran.clear()

    made = SimpleNamespace(root=tmp_path, ran=ran, failing=failing, bare=bare)
    monkeypatch.setattr(gpu_bootstrap, "create_environment", lambda: None)
    monkeypatch.setattr(gpu_bootstrap, "missing", list)
    monkeypatch.setattr(gpu_bootstrap, "ask_gpu", lambda field: "9.0")
    monkeypatch.setattr(gpu_bootstrap.subprocess, "run", run)
    bare("first")
    return made


def test_a_build_is_recorded_once_it_loads(machine, capsys) -> None:
    assert gpu_bootstrap.main() == 0
    assert machine.ran == ["build", "load"]
    assert gpu_bootstrap.BUILT.read_text() == gpu_bootstrap.build_key("90a-real")
    assert "building the extension" in capsys.readouterr().out
    # What is there is loaded and not built.
    machine.ran.clear()
    assert gpu_bootstrap.main() == 0
    assert machine.ran == ["install without", "load"]


@pytest.mark.parametrize("failing", ["build", "load"])
def test_where_the_build_fails_the_install_goes_on_without_an_extension(failing, machine, capsys) -> None:
    machine.failing.add(failing)
    assert gpu_bootstrap.main() == 1
    assert machine.ran == ["build", *(["load"] if failing == "load" else []), "install without"]
    assert "there is no extension" in capsys.readouterr().out
    assert not gpu_bootstrap.BUILT.exists()


def test_an_install_that_fails_without_an_extension_is_an_error(machine) -> None:
    machine.failing.update(("build", "install without"))
    with pytest.raises(subprocess.CalledProcessError):
        gpu_bootstrap.main()


@pytest.mark.parametrize("place", ["results", "out"])
def test_a_build_of_another_machine_is_taken(place, machine, tmp_path, monkeypatch) -> None:
    kept = tmp_path / "kept"
    monkeypatch.setenv("ENMA_FAST_RESULTS", str(kept))
    gpu_bootstrap.main()
    gpu_files.pack()
    # Another patch release of Python.
    monkeypatch.setattr(sys, "version", "3.99.1 (a compiler)")
    machine.bare("second")
    if place == "out":
        monkeypatch.setenv("ENMA_FAST_RESULTS", str(tmp_path / "empty"))
        gpu_bootstrap.OUT.mkdir(parents=True)
        for part in gpu_bootstrap.cache_parts(kept):
            part.rename(gpu_bootstrap.OUT / part.name)
    assert gpu_bootstrap.main() == 0
    assert machine.ran == ["install without", "load"]


def test_a_carried_build_that_does_not_load_is_built_anew(machine, tmp_path, monkeypatch) -> None:
    """As with an older libstdc++."""
    monkeypatch.setenv("ENMA_FAST_RESULTS", str(tmp_path))
    gpu_bootstrap.main()
    gpu_files.pack()
    machine.bare("second")
    machine.failing.add("load")
    assert gpu_bootstrap.main() == 1
    assert machine.ran == ["install without", "load", "build", "load", "install without"]


@pytest.mark.parametrize("harm", ["other sources", "not whole"])
def test_a_carried_build_that_does_not_fit_is_not_used(harm, machine, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("ENMA_FAST_RESULTS", str(tmp_path))
    gpu_bootstrap.main()
    gpu_files.pack()
    machine.bare("second")
    if harm == "other sources":
        (machine.root / "csrc" / "a.cpp").write_text("2")
    else:
        (part,) = gpu_bootstrap.cache_parts(tmp_path)
        part.write_bytes(part.read_bytes()[: part.stat().st_size // 2])
    machine.failing.add("build")
    assert gpu_bootstrap.main() == 1
    assert machine.ran == ["build", "install without"]
    assert not gpu_bootstrap.extensions()


def test_a_build_is_known_by_its_sources_and_by_what_it_links(machine, monkeypatch) -> None:
    here = gpu_bootstrap.build_key("90a")
    # PyTorch and patch releases of Python do not matter.
    with monkeypatch.context() as other:
        other.setattr(sys, "version", "3.99.1 (a compiler)")
        assert gpu_bootstrap.build_key("90a") == here
    others = (
        (sysconfig, "get_config_var", lambda name: "cpython-399-x86_64-linux-gnu"),
        (platform, "machine", lambda: "riscv64"),
        (gpu_bootstrap, "driver_cuda", lambda: 99),
    )
    for module, name, value in others:
        with monkeypatch.context() as other:
            other.setattr(module, name, value)
            assert gpu_bootstrap.build_key("90a") != here, name
    assert gpu_bootstrap.build_key("90a") == here != gpu_bootstrap.build_key("100a")
    for path in ("csrc/a.cpp", "setup.py"):
        (machine.root / path).write_text("2")
        assert gpu_bootstrap.build_key("90a") != here
        here = gpu_bootstrap.build_key("90a")


def test_the_cuda_of_the_driver_is_its_major_version(monkeypatch) -> None:
    def version(pointer) -> int:
        pointer._obj.value = 13020
        return 0

    monkeypatch.setattr(gpu_bootstrap.ctypes, "CDLL", lambda name: SimpleNamespace(cuDriverGetVersion=version))
    assert gpu_bootstrap.driver_cuda() == 13

    def absent(name):
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(gpu_bootstrap.ctypes, "CDLL", absent)
    assert gpu_bootstrap.driver_cuda() == 0


def test_the_cache_of_triton_moves_with_its_folder(tmp_path) -> None:
    group = tmp_path / "hash" / "__grp___read_kernel.json"
    group.parent.mkdir()
    group.write_text(json.dumps({"child_paths": {"_read_kernel.cubin": "elsewhere/hash/_read_kernel.cubin"}}))
    gpu_bootstrap.relocate(tmp_path)
    found = json.loads(group.read_text())["child_paths"]
    assert found == {"_read_kernel.cubin": str(tmp_path / "hash" / "_read_kernel.cubin")}


def test_the_toolkit_is_where_its_headers_are(tmp_path) -> None:
    toolkit, wrapper = tmp_path / "cuda", tmp_path / "local" / "bin" / "nvcc"
    (toolkit / "include").mkdir(parents=True)
    assert gpu_bootstrap.cuda_home(str(wrapper), toolkit) is None
    (toolkit / "include" / "cuda_runtime.h").write_text("")
    assert gpu_bootstrap.cuda_home(str(wrapper), toolkit) == str(toolkit)
    assert gpu_bootstrap.cuda_home(str(toolkit / "bin" / "nvcc"), tmp_path) == str(toolkit)
    assert gpu_bootstrap.cuda_home(None, toolkit) == str(toolkit)
