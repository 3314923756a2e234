"""An environment on a bare GPU machine, without a network: `python -m benchmarks.gpu_bootstrap`.

It sees the packages of the interpreter that runs this (PyTorch, Triton), has the wheels of out/gpu-wheels that
`make gpu-wheels` fetched, and this package, built in place for the GPU that is there. An extension that an earlier call
built from the same sources, here or packed in the folder that ENMA_FAST_RESULTS names, is taken as it is.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WHEELS = ROOT / "out" / "gpu-wheels"
ENVIRONMENT = ROOT / "out" / "gpu-venv"
PYTHON = ENVIRONMENT / "bin" / "python"
OUT = ROOT / "out" / "gpu"
TRITON_CACHE = OUT / "triton"
# Packages that benchmarks and tests import, beside PyTorch.
NEEDED = ("triton", "numpy", "pydantic", "safetensors", "typer", "rich", "pytest")
# Record of the sources that the extension was built from.
BUILT = OUT / "built.txt"


def ask_gpu(field: str) -> str:
    """One field of the first GPU, or nothing where there is none."""
    if shutil.which("nvidia-smi") is None:
        return ""
    command = ["nvidia-smi", f"--query-gpu={field}", "--format=csv,noheader"]
    lines = subprocess.run(command, capture_output=True, text=True).stdout.splitlines()
    return lines[0].strip() if lines else ""


def architecture(capability: str) -> str:
    """The architecture to compile for, as nvcc and CMake name it: from Hopper on of this generation alone."""
    number = capability.replace(".", "")
    return f"{number}a" if int(capability.partition(".")[0]) >= 9 else number


def cuda_home(nvcc: str | None, installed: Path = Path("/usr/local/cuda")) -> str | None:
    """The CUDA toolkit to compile with; beside an nvcc that only calls the one of a toolkit there is none."""
    beside = Path(nvcc).parents[1] if nvcc else None
    found = [folder for folder in (beside, installed) if folder and (folder / "include" / "cuda_runtime.h").is_file()]
    return str(found[0]) if found else None


def sources(architectures: str) -> str:
    """A hash of all that decides the extension: its sources, Python, and the GPUs it is for. It fits every PyTorch."""
    found = hashlib.sha256("|".join([sys.version, architectures]).encode())
    for path in [ROOT / "setup.py", *sorted((ROOT / "csrc").rglob("*"))]:
        if path.is_file():
            found.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes())
    return found.hexdigest()


def unpack(archive: Path) -> None:
    """Take what an earlier call built, unless there is something here."""
    if archive.is_file() and not BUILT.exists():
        with tarfile.open(archive) as packed:
            packed.extractall(ROOT, filter="data")


def missing() -> list[str]:
    """Packages of `NEEDED` that the environment lacks."""
    code = f"import importlib.util as u; print(*[n for n in {NEEDED!r} if u.find_spec(n) is None])"
    return subprocess.run([str(PYTHON), "-c", code], capture_output=True, text=True, check=True).stdout.split()


def main() -> int:
    """Make the environment anew; exit status 1 where it has no extension, which is for parts that need none."""
    venv.EnvBuilder(clear=True).create(ENVIRONMENT)
    # The interpreter may belong to an environment itself, so its packages are named rather than inherited.
    there = dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib"))
    inner = next((ENVIRONMENT / "lib").glob("python*")) / "site-packages"
    (inner / "base.pth").write_text("".join(f"import site; site.addsitedir({path!r})\n" for path in there))
    variables = dict(os.environ)
    # Ninja may be a program of either environment.
    folders = [str(ENVIRONMENT / "bin"), sysconfig.get_path("scripts")]
    variables["PATH"] = os.pathsep.join([*folders, variables.get("PATH", os.defpath)])
    if home := cuda_home(shutil.which("nvcc")):
        variables.setdefault("CUDACXX", f"{home}/bin/nvcc")
    variables.setdefault("ENMA_FAST_CUDA", "1")
    if capability := ask_gpu("compute_cap"):
        variables.setdefault("CUDAARCHS", f"{architecture(capability)}-real")
    pip = [str(PYTHON), "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
    wheels = sorted(map(str, WHEELS.glob("*.whl")))
    if wheels:
        subprocess.run([*pip, "--no-compile", "--ignore-installed", *wheels], check=True)
    for name in missing():
        print(f"warning: there is no {name}; what needs it will fail (make gpu-wheels)", flush=True)
    OUT.mkdir(parents=True, exist_ok=True)
    if kept := os.environ.get("ENMA_FAST_RESULTS"):
        unpack(Path(kept) / "cache.tar")
    wanted = sources(variables.get("CUDAARCHS", ""))
    there = BUILT.is_file() and BUILT.read_text() == wanted and any((ROOT / "enma_fast").glob("_C*.so"))
    print("the extension is the one of an earlier call" if there else "building the extension", flush=True)
    if there:
        variables["ENMA_FAST_NO_EXT"] = "1"
    # Until it is checked there is no build.
    BUILT.unlink(missing_ok=True)
    install = [*pip, "--no-build-isolation", "--editable", str(ROOT)]
    check = "import enma_fast._C as built; assert hasattr(built, 'flow_head_cuda'), 'built without CUDA kernels'"
    for command, settings in ((install, variables), ([str(PYTHON), "-c", check], None)):
        if subprocess.run(command, env=settings).returncode:
            print("there is no extension: Triton and PyTorch do its work", flush=True)
            subprocess.run(install, check=True, env=variables | {"ENMA_FAST_NO_EXT": "1"})
            return 1
    BUILT.write_text(wanted)
    return 0


if __name__ == "__main__":
    sys.exit(main())
