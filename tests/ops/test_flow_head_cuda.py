"""The flow head's CUDA kernels: on CPU threads (values, races, bounds), and as cubins."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from enma_fast.errors import EnmaError
from enma_fast.ops import _flow_head_cuda

from . import _flow_head_shim as shim
from ._backends import check_load
from ._flow_head_shim import FLOOR, Cut, inputs, make_plan, reference
from ._oracle import assert_close_as_reference

# Rows, the head, the cut: one row, primes, rows over two subtiles and two passes, channels over two batches of output
# tiles, conditions that are no multiple of 32, Euler and midpoint, modulations in chunks, all ways to exchange.
SHIM_CASES = {
    "one-row": (1, {"channels": 4, "condition": 64, "blocks": 1, "evaluations": 2, "moves_per_step": 2}, Cut()),
    "two-groups": (
        3,
        {"channels": 7, "condition": 40, "blocks": 2, "evaluations": 2, "moves_per_step": 2},
        Cut(groups=2),
    ),
    "two-subtiles": (
        17,
        {"channels": 4, "condition": 64, "blocks": 2, "evaluations": 2, "moves_per_step": 1},
        Cut(cluster=1),
    ),
    "chunks-split-a-step": (
        5,
        {"channels": 16, "condition": 8, "blocks": 1, "evaluations": 4, "moves_per_step": 4},
        Cut(modulation_bytes=1),
    ),
    "all-channels": (
        3,
        {"channels": 64, "condition": 72, "blocks": 1, "evaluations": 2, "moves_per_step": 2},
        Cut(cluster=1),
    ),
    "two-passes": (
        33,
        {"channels": 4, "condition": 64, "blocks": 1, "evaluations": 1, "moves_per_step": 1},
        # Too little shared memory for more than one subtile of two tiles.
        Cut(shared_limit=9300, warps=1),
    ),
    "wide-kernel": (
        2,
        {"channels": 20, "condition": 64, "blocks": 2, "evaluations": 2, "moves_per_step": 2},
        Cut(shared_limit=16000, chunks=4, warps=1),
    ),
    "remote-one-row": (
        1,
        {"channels": 4, "condition": 64, "blocks": 1, "evaluations": 2, "moves_per_step": 2},
        Cut(cluster=2),
    ),
    "remote-two-passes": (
        11,
        {"channels": 7, "condition": 40, "blocks": 3, "evaluations": 2, "moves_per_step": 1},
        Cut(cluster=2, modulation_bytes=1),
    ),
    "remote-two-clusters": (
        13,
        {"channels": 4, "condition": 64, "blocks": 2, "evaluations": 2, "moves_per_step": 2},
        # Too little shared memory for four tiles.
        Cut(cluster=2, groups=2, shared_limit=16000, warps=1),
    ),
    "remote-idle-cluster": (
        5,
        {"channels": 4, "condition": 64, "blocks": 1, "evaluations": 2, "moves_per_step": 2},
        Cut(cluster=2, groups=4),
    ),
    "remote-all-channels": (
        8,
        {"channels": 64, "condition": 72, "blocks": 1, "evaluations": 2, "moves_per_step": 2},
        Cut(cluster=2),
    ),
}


# --- on CPU threads -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The shim's program by the name of its build, compiled once."""
    if shim.compiler() is None:
        pytest.skip("no C++ compiler")
    built: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in built:
            built[name] = shim.build(name, tmp_path_factory.mktemp(name))
        return built[name]

    return get


@pytest.mark.parametrize("case", SHIM_CASES)
def test_values_on_threads(case: str, program: Callable[[str], Path], tmp_path: Path) -> None:
    rows, head, cut = SHIM_CASES[case]
    plan = make_plan(width=64, **head)
    c, noise = inputs(plan, rows)
    out, done = shim.run(program("plain"), plan, c, noise, tmp_path, cut)
    assert done.returncode == 0, done.stderr
    same_dtype, exact = reference(plan, c, noise)
    assert_close_as_reference(out, same_dtype, exact, floor=FLOOR)


def test_bits_of_a_row_depend_on_the_row_alone(program: Callable[[str], Path], tmp_path: Path) -> None:
    plan = make_plan(channels=4, condition=64, width=64, blocks=1, evaluations=2, moves_per_step=2)
    c, noise = inputs(plan, 19)
    cuts = {
        "one group": (Cut(), slice(0, 19)),
        "other groups, other tiles, single evaluations": (
            Cut(groups=2, shared_limit=13000, modulation_bytes=1),
            slice(0, 19),
        ),
        "its row alone, in a cluster": (Cut(cluster=1), slice(17, 18)),
        "remote": (Cut(cluster=2), slice(0, 19)),
        "its row alone, remote, other tiles": (Cut(cluster=2, shared_limit=13000), slice(17, 18)),
    }
    geometries = []
    first = None
    for name, (cut, rows) in cuts.items():
        out, done = shim.run(program("plain"), plan, c[rows], noise[rows], tmp_path, cut)
        geometries.append(tuple(shim.geometry(done)[key] for key in ("tiles", "groups", "rows", "evaluations")))
        first = out if first is None else first
        assert torch.equal(out, first[rows]), name
    assert geometries == [(4, 1, 19, 2), (2, 2, 10, 1), (4, 1, 1, 2), (4, 1, 7, 2), (2, 1, 1, 2)]


def test_what_does_not_fit_is_said(program: Callable[[str], Path], tmp_path: Path) -> None:
    def reason(cut: Cut, *, width: int = 512, blocks: int = 3) -> str:
        done = shim.start(program("plain"), [1, 4, 512, width, blocks, 20, 2], [], tmp_path, cut, "-")
        assert done.returncode != 0
        return done.stderr.strip()

    assert reason(Cut(), width=96) == "needs a head width that is a multiple of 64"
    assert reason(Cut(shared_limit=50000)) == "the shared memory of this GPU is too small for 64 rows of inputs"
    too_large = "the weights of the blocks do not fit into the shared memory of this GPU"
    assert reason(Cut(shared_limit=69000), blocks=6) == too_large
    assert reason(Cut(cluster=2), width=576) == "needs more blocks than a cluster has"
    assert reason(Cut(cluster=2, shared_limit=166912)) == "needs more blocks than a cluster has"
    assert reason(Cut(groups=0)) == "this GPU cannot run enough blocks at the same time to hold the weights"


@pytest.mark.parametrize(
    ("limit", "width", "blocks", "expected"),
    [
        pytest.param(232448, 512, 3, {"tiles": 4, "blocks": 16}, id="H100-paper-one-cluster-of-16"),
        pytest.param(166912, 512, 3, {"tiles": 2, "blocks": 32}, id="A100-paper"),
        pytest.param(101376, 512, 3, {"tiles": 1, "blocks": 64}, id="small-shared-memory"),
        pytest.param(232448, 128, 3, {"tiles": 4, "blocks": 4}, id="H100-small-model"),
        pytest.param(232448, 1024, 4, {"tiles": 1, "blocks": 128}, id="H100-widest"),
        pytest.param(232448, 960, 2, {"tiles": 2, "blocks": 60}, id="H100-not-a-power-of-two"),
    ],
)
@pytest.mark.parametrize("channels", [4, 64])
def test_cut_fits(
    limit: int,
    width: int,
    blocks: int,
    channels: int,
    expected: dict[str, int],
    program: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    for rows in (1, 7, 129, 1024):
        sizes = [rows, channels, 512, width, blocks, 20, 2]
        done = shim.start(program("plain"), sizes, [], tmp_path, Cut(warps=8, shared_limit=limit, groups=8), "-")
        cut = shim.geometry(done)
        assert expected.items() <= cut.items()
        assert cut["shared"] <= limit
        assert cut["rows"] <= 16 * cut["subtiles"]
        assert cut["groups"] <= rows
        modulation = rows * (3 * blocks + 2) * width * 2
        assert cut["evaluations"] * modulation <= max(1 << 25, modulation)


@pytest.mark.parametrize(("width", "tiles"), [(512, 4), (128, 4), (320, 4)])
@pytest.mark.parametrize("channels", [4, 64])
def test_remote_cut_fits(width: int, tiles: int, channels: int, program: Callable[[str], Path], tmp_path: Path) -> None:
    for rows in (1, 7, 64, 129):
        sizes = [rows, channels, 512, width, 3, 20, 2]
        cut = shim.geometry(shim.start(program("plain"), sizes, [], tmp_path, Cut(warps=8, groups=8, cluster=2), "-"))
        assert (cut["tiles"], cut["blocks"]) == (tiles, width // 8 // tiles)
        assert cut["shared"] <= shim.SHARED_LIMIT
        assert cut["groups"] == min(rows, 8)
        passes = -(-rows // 64)
        assert cut["rows"] == -(-rows // (passes * cut["groups"])) <= 8


def has_sanitizer(program: Callable[[str], Path], name: str, folder: Path) -> Path:
    """The sanitized program; skips where the compiler or the kernel has no such sanitizer."""
    try:
        built = program(name)
    except AssertionError as error:
        if "cannot find -l" in str(error) or "unrecognized" in str(error):
            pytest.skip(f"the compiler has no sanitizer for {name}")
        raise
    done = shim.start(built, [1, 4, 64, 64, 1, 1, 1], [], folder, Cut(), "-")
    if done.returncode != 0:
        pytest.skip(f"programs with the sanitizer for {name} do not run here: {done.stderr[-200:]}")
    return built


RACE_HEAD = {"channels": 4, "condition": 64, "width": 64, "blocks": 2, "evaluations": 2, "moves_per_step": 2}


@pytest.mark.slow
@pytest.mark.parametrize("cluster", [0, 1, 2], ids=["counter", "cluster", "remote"])
def test_no_races(cluster: int, program: Callable[[str], Path], tmp_path: Path) -> None:
    race = has_sanitizer(program, "race", tmp_path)
    plan = make_plan(**RACE_HEAD)
    c, noise = inputs(plan, 19)
    # Remote in four blocks, passes of 7, 7 and 5 rows.
    limit = 16000 if cluster == 2 else shim.SHARED_LIMIT
    cut = Cut(cluster=cluster, modulation_bytes=1, shared_limit=limit)
    out, done = shim.run(race, plan, c, noise, tmp_path, cut)
    assert done.returncode == 0, done.stderr[:4000]
    same_dtype, exact = reference(plan, c, noise)
    assert_close_as_reference(out, same_dtype, exact, floor=FLOOR)


# Every place where threads of the flow head wait, and atomics without order: none can be left out. By the site, and the
# way to exchange (`Cut.cluster`).
MUTATIONS = {
    "rows-loaded": (1, 0),
    "state-loaded": (2, 0),
    "inward": (3, 0),
    "operand": (4, 0),
    "product": (5, 0),
    "partial-sums": (6, 0),
    "next-operand": (7, 0),
    "up-arrive": (10, 0),
    "up-leave": (11, 0),
    "down-arrive": (20, 0),
    "down-leave": (21, 0),
    "up-cluster": (10, 1),
    "down-cluster": (20, 1),
    "relaxed-atomics": (100, 0),
    "state-loaded-remote": (2, 2),
    "inward-remote": (3, 2),
    "operand-remote": (4, 2),
    "product-remote": (5, 2),
    "partial-sums-remote": (6, 2),
    "next-operand-remote": (7, 2),
    "begin-remote": (8, 2),
    "up-remote": (10, 2),
    "down-remote": (20, 2),
    "relaxed-atomics-remote": (100, 2),
}


@pytest.mark.slow
@pytest.mark.parametrize("mutation", MUTATIONS)
def test_every_barrier_is_needed(mutation: str, program: Callable[[str], Path], tmp_path: Path) -> None:
    race = has_sanitizer(program, "race", tmp_path)
    site, cluster = MUTATIONS[mutation]
    plan = make_plan(**RACE_HEAD)
    c, noise = inputs(plan, 18)
    cut = Cut(cluster=cluster, modulation_bytes=1, skipped_site=site)
    _, done = shim.run(race, plan, c, noise, tmp_path, cut)
    assert done.returncode == 66, f"no race without the barrier at {site}: {done.stdout}{done.stderr[:2000]}"
    assert "ThreadSanitizer: data race" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    ["two-groups", "chunks-split-a-step", "all-channels", "wide-kernel", "remote-two-passes", "remote-all-channels"],
)
def test_nothing_out_of_bounds(case: str, program: Callable[[str], Path], tmp_path: Path) -> None:
    address = has_sanitizer(program, "address", tmp_path)
    rows, head, cut = SHIM_CASES[case]
    plan = make_plan(width=64, **head)
    c, noise = inputs(plan, rows)
    _, done = shim.run(address, plan, c, noise, tmp_path, cut)
    assert done.returncode == 0, done.stderr[:4000]


# --- packing and reasons --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "k", "steps"), [(64, 64, 2), (5, 40, 2), (64, 7, 1), (8, 48, 1)])
def test_fragments_hold_what_each_lane_multiplies(n: int, k: int, steps: int) -> None:
    weight = torch.arange(1, n * k + 1, dtype=torch.float64).reshape(n, k)
    packed = _flow_head_cuda.fragments(weight, steps=steps)
    groups = -(-k // (16 * steps))
    packed = packed.reshape(-(-n // 8), groups, 32, steps, 2, 2)
    for lane in range(32):
        for step in range(steps):
            for half in range(2):
                for e in range(2):
                    # PTX: element (k, n) of b lies in lane 4 n + k % 8 / 2, register k / 8, half k % 2.
                    column, inner = lane // 4, 2 * (lane % 4) + 8 * half + e
                    for tile in range(packed.shape[0]):
                        for group in range(groups):
                            row, input_ = 8 * tile + column, 16 * (steps * group + step) + inner
                            expected = weight[row, input_] if row < n and input_ < k else 0.0
                            assert packed[tile, group, lane, step, half, e] == expected


def test_weights_are_loaded_where_they_are_packed() -> None:
    plan, other = (make_plan(**RACE_HEAD, seed=seed) for seed in range(2))
    check_load("cuda", _flow_head_cuda.pack, plan, other)


def test_reasons_name_what_is_missing() -> None:
    plan = make_plan(**RACE_HEAD)
    assert "needs a CUDA device" in str(_flow_head_cuda.problem(torch.device("cpu"), torch.bfloat16, plan))
    if not torch.cuda.is_available():
        assert _flow_head_cuda.problem(torch.device("cuda"), torch.bfloat16) is not None
    c, noise = inputs(plan, 2)
    with pytest.raises(EnmaError, match="backend 'cuda'"):
        _flow_head_cuda.run(c, noise, plan)


# --- cubins ---------------------------------------------------------------------------------------------------------


def nvcc_version() -> tuple[int, ...]:
    """Major and minor."""
    said = subprocess.run(["nvcc", "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"release (\d+)\.(\d+)", said)
    assert found is not None, said
    return tuple(map(int, found.groups()))


@pytest.mark.slow
@pytest.mark.parametrize(
    "architecture",
    [pytest.param("sm_80", marks=pytest.mark.long), "sm_90a", pytest.param("sm_100a", marks=pytest.mark.long)],
)
def test_cubins(architecture: str, tmp_path: Path) -> None:
    if shutil.which("nvcc") is None:
        pytest.skip("no nvcc")
    pytest.importorskip("triton", reason="its cuobjdump reads the cubins")
    kernels = shim.cubins(architecture, tmp_path)
    assert len([name for name in kernels if "flow_loop" in name]) == 8
    assert len(kernels) == 10
    for name, found in kernels.items():
        assert found["spills"] == 0, name
        assert found["stack"] == 0, name
        assert found["reg"] * 32 * 8 <= 65536, name
        # All shared memory is asked for at launch; the compiler itself keeps at most 1 KiB.
        assert found["shared"] <= 1024, name
        clusters = architecture != "sm_80"
        assert (found["cluster_barriers"] > 0) == ("flow_loop" in name and clusters), name
        # The name ends with the template's last argument.
        remote = "flow_loop" in name and "ELb1EE" in name
        # A GPU without clusters only traps there.
        assert (found["tensor_core"] > 0) == (clusters or not remote), name
        assert (found["remote_stores"] > 0) == (remote and clusters), name
        if remote and clusters:
            # Blocks meet once, before their barriers count, and nothing afterwards waits for the whole GPU's memory.
            assert found["cluster_barriers"] == 1, name
            assert found["fences"] == 0, name
            if nvcc_version() >= (12, 8):
                assert found["flushes"] <= 1, name
        elif "flow_loop" in name and clusters:
            # What is looked for is there to be found.
            assert found["fences"] > 0, name
            assert found["flushes"] > 1, name
