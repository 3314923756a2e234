"""The first minute on a GPU: what is missing, every operator against float64, a member by each rung of the ladder.

    python -m benchmarks.gpu_smoke --out benchmarks/results/NAME/results.json

Nothing is built or installed: the extension is taken where it is, and wheels of out/gpu-wheels that the machine lacks
are unpacked into out/gpu-site. A line is said and a row is written as soon as it is known. What fails is a row with
its reason, and what the time does not reach is one too.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.metadata
import os
import shutil
import sys
import sysconfig
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.gpu import OPERATORS
from benchmarks.gpu_bootstrap import NEEDED, ROOT, WHEELS, ask_gpu
from benchmarks.rows import add

SITE = ROOT / "out" / "gpu-site"
PRESET = "combined-paper"
# Latent frames of the member: two observed, and two that are sampled.
LATENTS = 4
# Calls of which the shortest counts, and seconds after which there is no other.
CALLS, LONG = 5, 1.0

Row = dict[str, Any]
Check = Callable[[Any], Row]


def unpack_wheels() -> None:
    """Put the wheels that were carried along after the packages of the machine, which come first."""
    for wheel in sorted(WHEELS.glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(SITE)
    sys.path.append(str(SITE))
    # Kernels are a folder of their own until the package is installed.
    sys.modules.setdefault("enma_fast.kernels", importlib.import_module("kernels"))


def packages() -> Row:
    """The packages that are needed and missing, then those that were carried, which it unpacks, and all versions."""
    there = _versions()
    unpack_wheels()
    found = _versions()
    missing = [name for name in ("torch", *NEEDED) if name not in found]
    return {"missing": missing, "carried": [name for name in found if name not in there], "versions": found}


def _versions() -> dict[str, str]:
    found = {}
    for name in ("torch", *NEEDED):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def machine() -> Row:
    """The GPU, its driver, and what compiles for it."""
    header = Path(sysconfig.get_path("include")) / "Python.h"
    tools = {tool: shutil.which(tool) or "" for tool in ("nvcc", "gcc", "c++", "ninja", "compute-sanitizer", "ncu")}
    fields = ("name", "compute_cap", "driver_version", "memory.total")
    return {"gpu": {field: ask_gpu(field) for field in fields}, "Python.h": header.is_file(), **tools}


def operators() -> dict[str, Check]:
    """A check of each operator at paper sizes, by name."""

    def check(name: str) -> Check:
        def checked(device: Any) -> Row:
            cases = importlib.import_module("benchmarks.cases")
            build, rows = cases.CASES[name]
            case = build(rows[len(rows) // 2], number_format(device), device, compiled=False)
            run = case.contenders["ours"]
            row = {"rows": case.rows, "dtype": short(case.dtype), **agreement(run(), case.exact, case.allowance)}
            return row | {"ms": milliseconds(run, device)}

        return checked

    return {name: check(name) for name in OPERATORS} | {
        "philox_normal": _philox,
        "frame_rows": _frame_rows,
        "self_attention": _self_attention,
        "swiglu": _swiglu,
    }


def number_format(device: Any) -> Any:
    """bf16, or what is faster on a CPU, where bf16 without instructions for it takes a hundred times as long."""
    torch, rates = importlib.import_module("torch"), importlib.import_module("enma_fast.ops.rates")
    return torch.bfloat16 if device.type == "cuda" else rates.FORMATS[rates.measured(device).training]


def short(dtype: Any) -> str:
    """A number format in a row."""
    return str(dtype).removeprefix("torch.")


def agreement(ours: Any, exact: Any, allowance: float) -> Row:
    """The largest distance from the float64 answer, and what plain code of the same type is allowed."""
    error = (ours.double() - exact).abs().max().item()
    return {"error": error, "allowed_error": allowance, "ok": error <= allowance}


def milliseconds(run: Callable[[], Any], device: Any) -> float:
    """The shortest of a few calls, of fewer where they take long."""
    harness = importlib.import_module("benchmarks.harness")
    clock = harness.gpu_seconds if device.type == "cuda" else harness._seconds
    seconds: list[float] = []
    while len(seconds) < CALLS and sum(seconds) < LONG:
        seconds.append(clock(run))
    return 1e3 * min(seconds)


def _against_float64(run: Callable[..., Any], reference: Callable[..., Any], tensors: Row, device: Any) -> Row:
    dtype = number_format(device)
    inputs = {name: x.to(device, dtype) for name, x in tensors.items()}
    exact = reference(**{name: x.double() for name, x in inputs.items()}).double()
    plain = (reference(**inputs).double() - exact).abs().max().item()
    allowance = 2 * plain + 4e-7 * exact.abs().max().item()
    row = {"dtype": short(dtype), **agreement(run(**inputs), exact, allowance)}
    return row | {"ms": milliseconds(lambda: run(**inputs), device)}


def _philox(device: Any) -> Row:
    """The noise is the same on every device: at most a last bit in 10^8 differs."""
    torch, op = importlib.import_module("torch"), importlib.import_module("enma_fast.ops.philox_normal")
    words = {"seed": 1, "frame": 3, "mask_step": 2, "channels": 4}

    def noise(where: Any, run: Callable[..., Any]) -> Any:
        members, tokens = torch.arange(1024, device=where), torch.arange(16, device=where)
        return run(**words, members=members, tokens=tokens)

    exact = noise(torch.device("cpu"), op.philox_normal_ref).double().to(device)
    row = agreement(noise(device, op.philox_normal), exact, 1e-6)
    return {"rows": 1024, **row, "ms": milliseconds(lambda: noise(device, op.philox_normal), device)}


def _frame_rows(device: Any) -> Row:
    torch, op = importlib.import_module("torch"), importlib.import_module("enma_fast.ops.frame_rows")
    tensors = {"x": torch.randn(64, 16, 512), "weight": torch.randn(4, 512) / 512**0.5, "bias": torch.randn(4)}
    linear = torch.nn.functional.linear

    def run(x: Any, weight: Any, bias: Any) -> Any:
        return op.read(x, weight, bias)

    return {"rows": 64, **_against_float64(run, lambda x, weight, bias: linear(x, weight, bias), tensors, device)}


def _self_attention(device: Any) -> Row:
    torch, op = importlib.import_module("torch"), importlib.import_module("enma_fast.ops.self_attention")

    def run(backend: str | None) -> Callable[..., Any]:
        def call(qkv: Any, q: Any, k: Any) -> Any:
            return op.self_attention(qkv, (q, k), frame=16, eps=1e-5, backend=backend)[0]

        return call

    tensors = {"qkv": torch.randn(16, 80, 3, 8, 64), "q": torch.ones(64), "k": torch.ones(64)}
    return {"rows": 16, **_against_float64(run(None), run("reference"), tensors, device)}


def _swiglu(device: Any) -> Row:
    torch, op = importlib.import_module("torch"), importlib.import_module("enma_fast.ops.swiglu")
    return {"rows": 1024, **_against_float64(op.swiglu, op.swiglu_ref, {"x": torch.randn(1024, 2048)}, device)}


class Rungs:
    """A member of the paper's model by each rung of the ladder, the one that always works first."""

    def __init__(self, preset: str = PRESET) -> None:
        self.preset = preset
        self.expected: Any = None

    def check(self, rung: str | None) -> Check:
        """Time of a latent frame of one member, and its distance from that of plain PyTorch.

        Without a rung by the one on which the ladder ends, which the row names.
        """

        def checked(device: Any) -> Row:
            torch, trajectory = importlib.import_module("torch"), importlib.import_module("benchmarks.trajectory")
            engine_module = importlib.import_module("enma_fast.sampling.engine")
            config = importlib.import_module("enma_fast.training.recipes").find_recipe(self.preset).model
            dynamics = trajectory.random_dynamics(config).to(device)
            history = torch.randn(1, 2, config.num_tokens, config.token_channels, generator=torch.Generator())
            words = torch.zeros(1, dtype=torch.int64, device=device)
            os.environ.pop("ENMA_GPU", None)
            if rung is not None:
                os.environ["ENMA_GPU"] = rung
            try:
                engine = engine_module.Engine(dynamics)

                def member() -> Any:
                    given = {"num_latents": LATENTS, "seeds": words, "members": words}
                    return torch.stack(list(engine.trajectory([history.to(device)], **given)), 1)

                clock = time.perf_counter()
                made = member().float()
                first = time.perf_counter() - clock
            finally:
                os.environ.pop("ENMA_GPU", None)
            self.expected = made if self.expected is None else self.expected
            distance = float((made[:, 0] - self.expected[:, 0]).norm() / self.expected[:, 0].norm())
            most = engine_module.HALF_TOLERANCE
            row = {"rows": 1, "backend": engine.backend, "first_s": first, "distance": distance, "ok": distance <= most}
            return row | {"ms_per_frame": milliseconds(member, device) / (LATENTS - 2)}

        return checked


def checks() -> Iterator[tuple[str, Check]]:
    """What is checked on the device, in this order."""
    rungs = Rungs()
    yield from operators().items()
    yield f"{PRESET} by eager", rungs.check("eager")
    # What everyone gets, before the rungs that may fail alone.
    yield f"{PRESET} by the ladder", rungs.check(None)
    for rung in ("static", "graph"):
        yield f"{PRESET} by {rung}", rungs.check(rung)


def run(out: Path, *, device: str, seconds: float) -> int:
    """Say and write all rows; the number of checks that failed."""
    end, failed = time.monotonic() + seconds, 0

    def told(what: str, row: Row) -> None:
        add({"part": "smoke", "what": what, **row}, out)
        print(line(what, row), flush=True)

    told("packages", packages())
    told("machine", machine())
    try:
        found = list(checks())
        torch = importlib.import_module("torch")
        where = torch.device(device)
        torch.manual_seed(0)
    except Exception as error:
        told("imports", {"ok": False, "failed": reason(error)})
        return 1
    for what, check in found:
        if time.monotonic() > end:
            told(what, {"left_out": f"no time is left of {seconds:.0f} s"})
            continue
        try:
            with torch.no_grad():
                row = check(where)
        # A check that cannot run does not cost the others their rows.
        except Exception as error:
            row = {"ok": False, "failed": reason(error)}
        failed += not row["ok"]
        told(what, row)
    return failed


def reason(error: Exception) -> str:
    """Type and first line of an error."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def line(what: str, row: Row) -> str:
    """A row for people."""
    words = "  ".join(
        f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}" for name, value in row.items()
    )
    return f"{what:<28} {words}"


def main() -> int:
    """Command line; exit status 1 if a check failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_smoke", description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="file to which rows are added")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seconds", type=float, default=50.0, help="no check begins after so many")
    options = parser.parse_args()
    return int(run(options.out, device=options.device, seconds=options.seconds) > 0)


if __name__ == "__main__":
    sys.exit(main())
