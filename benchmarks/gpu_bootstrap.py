"""An environment on a bare GPU machine, without a network: `python -m benchmarks.gpu_bootstrap`.

It sees the packages of the interpreter that runs this (PyTorch, Triton), has the wheels of out/gpu-wheels that
`make gpu-wheels` fetched, and this package, built in place for the GPU that is there. An extension that an earlier call
built from the same sources for such a machine is taken as it is. It is here, or packed as cache.tar.gz.0, .1 and so on
in the folder that ENMA_FAST_RESULTS names or in out/gpu, where `benchmarks.gpu_tree` takes it along.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import io
import json
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zlib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WHEELS = ROOT / "out" / "gpu-wheels"
ENVIRONMENT = ROOT / "out" / "gpu-venv"
PYTHON = ENVIRONMENT / "bin" / "python"
OUT = ROOT / "out" / "gpu"
TRITON_CACHE = OUT / "triton"
PIP = (str(PYTHON), "-m", "pip", "install", "--quiet", "--no-index", "--no-deps")
PACKAGE = (*PIP, "--no-build-isolation", "--editable", str(ROOT))
# Packages that benchmarks and tests import, beside PyTorch.
NEEDED = ("triton", "numpy", "pydantic", "safetensors", "typer", "rich", "pytest")
# Record of the sources that the extension was built from.
BUILT = OUT / "built.txt"
# Name of what was built, packed; its parts have numbers after it.
CACHE = "cache.tar.gz"


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


def driver_cuda() -> int:
    """The major version of CUDA that the driver offers, 0 without a driver."""
    version = ctypes.c_int(0)
    with contextlib.suppress(OSError):
        ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version))
    return version.value // 1000


def build_key(architectures: str) -> str:
    """A hash of all that decides the extension and the machines that it fits.

    These are its sources, the GPUs that it is for, the ABI of Python, and the major version of CUDA: its runtime is
    linked statically and needs such a driver. The other libraries that it links (libstdc++, libgomp, libc) are the
    system's. One that does not load with them is built anew. It fits every PyTorch.
    """
    fits = [str(sysconfig.get_config_var("SOABI")), platform.machine(), str(driver_cuda()), architectures]
    found = hashlib.sha256("|".join(fits).encode())
    for path in [ROOT / "setup.py", *sorted((ROOT / "csrc").rglob("*"))]:
        if path.is_file():
            found.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes())
    return found.hexdigest()


def extensions() -> list[Path]:
    """The extension in the tree, if there is one."""
    return sorted((ROOT / "enma_fast").glob("_C*.so"))


def cache_parts(folder: Path) -> list[Path]:
    """The parts of a packed build in a folder, in their order."""
    return sorted(folder.glob(f"{CACHE}.[0-9]"))


def unpack(*folders: Path) -> bool:
    """Take what earlier calls packed in these folders, until there is a build; true if anything was there.

    A call without a build packs Triton's kernels alone.
    """
    unpacked = False
    for folder in folders:
        parts = cache_parts(folder)
        if not parts or BUILT.exists():
            continue
        unpacked = True
        packed = io.BytesIO(b"".join(part.read_bytes() for part in parts))
        try:
            with tarfile.open(fileobj=packed, mode="r:gz") as archive:
                archive.extractall(ROOT, filter="data")
        except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
            print(f"warning: {folder / CACHE} is not whole: {error}", flush=True)
        else:
            relocate(TRITON_CACHE)
    return unpacked


def relocate(cache: Path) -> None:
    """Give Triton's cache the paths of this machine: the list of a kernel's files holds absolute ones."""
    for path in cache.glob("*/__grp__*.json"):
        group = json.loads(path.read_text())
        group["child_paths"] = {name: str(path.with_name(name)) for name in group["child_paths"]}
        path.write_text(json.dumps(group))


def missing() -> list[str]:
    """Packages of `NEEDED` that the environment lacks."""
    code = f"import importlib.util as u; print(*[n for n in {NEEDED!r} if u.find_spec(n) is None])"
    return subprocess.run([str(PYTHON), "-c", code], capture_output=True, text=True, check=True).stdout.split()


def create_environment() -> None:
    """An environment that sees the packages of the interpreter that runs this."""
    venv.EnvBuilder(clear=True).create(ENVIRONMENT)
    # The interpreter may belong to an environment itself, so its packages are named rather than inherited.
    there = dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib"))
    inner = next((ENVIRONMENT / "lib").glob("python*")) / "site-packages"
    (inner / "base.pth").write_text("".join(f"import site; site.addsitedir({path!r})\n" for path in there))


def build_variables() -> dict[str, str]:
    """The environment variables of the build."""
    variables = dict(os.environ)
    # Ninja may be a program of either environment.
    folders = [str(ENVIRONMENT / "bin"), sysconfig.get_path("scripts")]
    variables["PATH"] = os.pathsep.join([*folders, variables.get("PATH", os.defpath)])
    if home := cuda_home(shutil.which("nvcc")):
        variables.setdefault("CUDACXX", f"{home}/bin/nvcc")
    variables.setdefault("ENMA_FAST_CUDA", "1")
    if capability := ask_gpu("compute_cap"):
        variables.setdefault("CUDAARCHS", f"{architecture(capability)}-real")
    return variables


def install(variables: dict[str, str]) -> bool:
    """Install this package, and the extension where it is to be built; true if the extension then loads."""
    check = "import enma_fast._C as built; assert hasattr(built, 'flow_head_cuda'), 'built without CUDA kernels'"
    steps = ((PACKAGE, variables), ([str(PYTHON), "-c", check], None))
    return all(subprocess.run(command, env=settings).returncode == 0 for command, settings in steps)


def main() -> int:
    """Make the environment anew; exit status 1 where it has no extension, which is for parts that need none."""
    create_environment()
    variables = build_variables()
    wheels = sorted(map(str, WHEELS.glob("*.whl")))
    if wheels:
        subprocess.run([*PIP, "--no-compile", "--ignore-installed", *wheels], check=True)
    for name in missing():
        print(f"warning: there is no {name}; what needs it will fail (make gpu-wheels)", flush=True)
    OUT.mkdir(parents=True, exist_ok=True)
    results = os.environ.get("ENMA_FAST_RESULTS")
    unpacked = unpack(*([Path(results)] if results else []), OUT)
    wanted = build_key(variables.get("CUDAARCHS", ""))
    without = variables | {"ENMA_FAST_NO_EXT": "1"}
    fits = BUILT.is_file() and BUILT.read_text() == wanted and bool(extensions())
    # Until it is checked there is no build.
    BUILT.unlink(missing_ok=True)
    if fits:
        print("the extension is the one of an earlier call", flush=True)
    if not (fits and install(without)):
        # One that does not fit, or does not load, must not be used where the build fails.
        for path in extensions() if fits or unpacked else []:
            path.unlink()
        print("building the extension", flush=True)
        if not install(variables):
            print("there is no extension: Triton and PyTorch do its work", flush=True)
            subprocess.run(PACKAGE, check=True, env=without)
            return 1
    BUILT.write_text(wanted)
    return 0


if __name__ == "__main__":
    sys.exit(main())
