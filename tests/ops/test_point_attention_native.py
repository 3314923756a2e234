"""The native point_attention: threads, and memory that does not grow with P x Q."""

import subprocess
import sys

import pytest
import torch

from enma_fast.ops.point_attention import point_attention

from .._extension import needs_native
from ._sanitizers import ROOT
from .test_point_attention import CASES, case, results

pytestmark = needs_native


@pytest.mark.parametrize("name", ["plane", "many-values"])
def test_threads_do_not_change_a_bit(name):
    arguments = case(*CASES[name])
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(results(point_attention, *arguments, backend="native"))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


MEMORY = """
import resource, sys, torch
from enma_fast.ops.point_attention import point_attention

torch.set_num_threads(2)
H, Q, P, K = 2, int(sys.argv[1]), int(sys.argv[2]), 8
q, k, v = (torch.randn(1, H, n, K, requires_grad=True) for n in (Q, P, P))
arguments = dict(query_points=torch.rand(Q, 2), points=torch.rand(P, 2), slopes=torch.ones(H), periods=(1.0, None))
def run(n, p):
    places = arguments | {"query_points": arguments["query_points"][:n], "points": arguments["points"][:p]}
    point_attention(q[:, :, :n], k[:, :, :p], v[:, :, :p], **places, backend="native").sum().backward()
run(8, 8)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
run(Q, P)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


def test_memory_does_not_grow_with_points_times_queries():
    queries, points = 2048, 32768
    # The system counts the most memory of the process that starts one as its own; a shell between them has little.
    command = ["sh", "-c", '"$@"; exit $?', "sh", sys.executable, "-c", MEMORY, str(queries), str(points)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    # The matrix alone would take 512 MB; inputs, outputs and their gradients are 10 MB.
    assert float(done.stdout) < 100
