"""Versions of packages and properties of the machine, as plain data."""

from __future__ import annotations

import ctypes
import os
import platform
import subprocess
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

_PACKAGES = (
    "enma-fast",
    "torch",
    "numpy",
    "safetensors",
    "h5py",
    "zarr",
    "xarray",
    "matplotlib",
)
_CPU_INFO = Path("/proc/cpuinfo")


def versions() -> dict[str, str | None]:
    """Versions of Python and of the packages that affect results; None for one that is not installed."""
    return dict(_versions())


@cache
def _versions() -> dict[str, str | None]:
    releases: dict[str, str | None] = {"python": ".".join(map(str, sys.version_info[:3]))}
    for name in _PACKAGES:
        try:
            releases[name] = version(name)
        except PackageNotFoundError:
            releases[name] = None
    return releases


def commit() -> str | None:
    """Commit of the checkout that runs, with `-dirty` if its files are others; None without a checkout or git."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or None
    except OSError:
        return None


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine() -> dict[str, Any]:
    """Processor, its cores and vector instructions, number of threads, and the GPU or None."""
    import torch

    flags = torch.cpu.get_capabilities()
    simd = sorted(name for name, has in flags.items() if has is True and name.startswith(("avx", "amx", "sve", "neon")))
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "cpu": _cpu_name(),
        "cores": usable_cores(),
        "simd": simd,
        "torch_simd": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "gpu": gpu,
        "system": f"{platform.system()} {platform.machine()}",
    }


def memory() -> int:
    """Size of the main memory in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def gpu_memory(device: Any) -> int:
    """Size of a GPU's memory in bytes."""
    import torch

    return int(torch.cuda.get_device_properties(device).total_memory)


def free_gpu_memory(device: Any) -> int:
    """Bytes of a GPU's memory that this process can still take, those that PyTorch holds unused among them."""
    import torch

    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(torch.cuda.mem_get_info(device)[0]) + unused


def _cpu_name() -> str:
    if _CPU_INFO.is_file():
        for line in _CPU_INFO.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def keep_freed_memory() -> bool:
    """Have the C library keep what is freed for the next call; False where it cannot be told so.

    By default glibc gives blocks of 32 MB and more back at once, and the kernel clears each of their pages anew.
    """
    setting = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if setting is None:
        return False
    trim_threshold, mmap_threshold, most = -1, -3, 2**31 - 1
    return bool(setting(trim_threshold, most)) and bool(setting(mmap_threshold, most))
