"""Memory that was freed is used again without a fault."""

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource
import torch
from enma_fast.utils.system import keep_freed_memory

assert keep_freed_memory()
faults = []
for _ in range(3):
    torch.zeros(16_000_000)
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
print(faults[1] - faults[0], faults[2] - faults[1])
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="is for glibc")
@pytest.mark.skipif(
    tuple(map(int, (platform.libc_ver()[1] or "0.0").split(".")[:2])) < (2, 35), reason="older ones take less"
)
def test_freed_memory_is_used_again():
    """64 MB are 16,000 pages."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert all(int(count) < 1000 for count in done.stdout.split()), done.stdout
