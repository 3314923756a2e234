"""An environment on a bare GPU machine, without a network: `python -m benchmarks.gpu_bootstrap`.

It sees the packages of the interpreter that runs this (PyTorch, Triton), has the wheels of out/gpu-wheels that
`make gpu-wheels` fetched, and this package, built in place for the GPU that is there.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WHEELS = ROOT / "out" / "gpu-wheels"
ENVIRONMENT = ROOT / "out" / "gpu-venv"
PYTHON = ENVIRONMENT / "bin" / "python"


def ask_gpu(field: str) -> str:
    """One field of the first GPU, or nothing where there is none."""
    if shutil.which("nvidia-smi") is None:
        return ""
    command = ["nvidia-smi", f"--query-gpu={field}", "--format=csv,noheader"]
    lines = subprocess.run(command, capture_output=True, text=True).stdout.splitlines()
    return lines[0].strip() if lines else ""


def architecture(capability: str) -> str:
    """The architecture to compile for: from Hopper on, code that runs on this generation alone."""
    return f"{capability}a" if int(capability.partition(".")[0]) >= 9 else capability


def main() -> None:
    """Make the environment anew."""
    venv.EnvBuilder(clear=True).create(ENVIRONMENT)
    # The interpreter may belong to an environment itself, so its packages are named rather than inherited.
    there = dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib"))
    inner = next((ENVIRONMENT / "lib").glob("python*")) / "site-packages"
    (inner / "base.pth").write_text("".join(f"import site; site.addsitedir({path!r})\n" for path in there))
    variables = dict(os.environ)
    if capability := ask_gpu("compute_cap"):
        variables.setdefault("TORCH_CUDA_ARCH_LIST", architecture(capability))
    pip = [str(PYTHON), "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
    wheels = sorted(map(str, WHEELS.glob("*.whl")))
    if wheels:
        subprocess.run([*pip, "--no-compile", "--ignore-installed", *wheels], check=True)
    subprocess.run([*pip, "--no-build-isolation", "--editable", str(ROOT)], check=True, env=variables)
    # The extension finds PyTorch's libraries once PyTorch has loaded them.
    check = "import pydantic, torch, enma_fast._C as built; print('CUDA kernels:', hasattr(built, 'flow_head_cuda'))"
    subprocess.run([str(PYTHON), "-c", check], check=True)


if __name__ == "__main__":
    sys.exit(main())
