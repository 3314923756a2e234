"""Ours against every baseline on the same inputs, in turn, in one process; a wrong contender reports no time.

    python -m benchmarks.compare flow_head --rows 3,64,2048 --json
    python -m benchmarks.compare trajectory --preset combined-fast-paper --members 1,16,64 --json
    python -m benchmarks.compare forecast --preset combined-fast --members 1,16,64 --json
    python -m benchmarks.compare ensemble --members 64,1024,4096 --json
    python -m benchmarks.compare embed --preset combined-fast --members 1,16,64 --json
    python -m benchmarks.compare embed --others --preset combined-fast --members 1,16,64 --json

Rounds run A B C A B C ...; a ratio is the median over rounds of baseline by ours. `gemm_rate` is the best FLOP/s of
square products measured before and after the rounds, of the case's dtype and of fp32, whichever is faster on this
machine. `seconds` are those of all rounds, `busy` and `drifted` say that the machine was not quiet.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch

from benchmarks import embed, embed_others
from benchmarks.cases import CASES, SHORT, Case
from benchmarks.ensemble import ensemble_case, overhead
from benchmarks.forecast import forecast_case
from benchmarks.harness import REPEATS, gemm_rate, graphed, interleave, machine, ratios
from benchmarks.rows import add, as_json, save
from benchmarks.trajectory import trajectory_case
from enma_fast.errors import EnmaError, first_line
from enma_fast.ops import _flow_head_cuda
from enma_fast.ops._checks import dtype_name
from enma_fast.ops.recordings import CudaRecorder
from enma_fast.training.recipes import RECIPES

# Largest over smallest ratio, above which a comparison says nothing.
BUSY = 3.0
# Ratio of the later half of a run's times to the earlier one, or of rates of products after it to those before, beyond
# which the machine changed.
DRIFT = 1.5
DTYPES = {SHORT[dtype]: dtype for dtype in (torch.bfloat16, torch.float32)}
# Cases beside operators, and the dtype that they have by default.
WHOLE = {"trajectory": "bf16", "forecast": "fp32", "ensemble": "fp32"}
# Options that do something only in these cases; all others do in every case.
TAKEN = {
    "preset": ("trajectory", "forecast", "embed"),
    "dtype": (*CASES, *WHOLE),
    "threads": (*CASES, *WHOLE),
    "device": (*CASES, *WHOLE),
    "no_compile": (*CASES, "trajectory", "forecast"),
    # An ensemble is set against its engine.
    "alone": (*CASES, "trajectory", "forecast"),
    "flag_wrong": (*CASES, *WHOLE),
    "no_flow": ("trajectory",),
    "exchange": ("flow_head",),
    "library": ("embed",),
    "others": ("embed",),
}


def compare(case: Case, *, rounds: int, flag: bool = False, graphs: bool = False) -> dict[str, Any]:
    """Times of all contenders that agree with the float64 answer; with `flag`, of the others too, which are named.

    With `graphs` a contender is timed as a CUDA graph of calls one after the other, where it can be captured.
    """
    errors, wrong, left_out = {}, {}, dict(case.left_out)
    for name, run in case.contenders.items():
        exact, allowance = case.others.get(name, (case.exact, case.allowance))
        try:
            error = (run().double() - exact).abs().max().item()
        except Exception as failure:
            # One that cannot run, for lack of memory or of a kernel, does not cost the others their times.
            if name == "ours":
                raise
            left_out[name] = f"failed: {type(failure).__name__}: {first_line(failure)}"
            continue
        # fp32 baselines see inputs that were rounded already, and are held to the same line.
        (errors if error <= allowance else wrong)[name] = error
    result: dict[str, Any] = {
        "case": case.name,
        "rows": case.rows,
        "dtype": dtype_name(case.dtype),
        "threads": torch.get_num_threads(),
        "ours_s": None,
        "against": {},
        "busy": False,
        "drifted": False,
        "gemm_rate": None,
        "fraction_of_gemm_rate": None,
        "error": errors.get("ours", wrong.get("ours")),
        "allowed_error": case.allowance,
        "wrong": wrong,
        "left_out": left_out,
        **case.notes,
    }
    if "ours" in wrong and not flag:
        return result
    on_gpu = case.device.type == "cuda"
    timed = {name: run for name, run in case.contenders.items() if name in errors or (flag and name in wrong)}
    recorders = {name: CudaRecorder(case.device) for name in timed} if graphs and on_gpu else {}
    captured = {name: graphed(timed[name], recorder) for name, recorder in recorders.items()}
    replays = {name: replay for name, replay in captured.items() if replay is not None}
    if replays:
        # Its ratio to graphs is one of launches too.
        left_out |= {name: "not captured: timed call by call" for name in timed if name not in {"ours", *replays}}
    rates = rates_of_products(case)
    fast = interleave(timed | replays, rounds=rounds, synchronise=on_gpu)
    calls = {name: REPEATS if name in replays else 1 for name in timed}
    fast = {name: [s / case.units / calls[name] for s in seconds] for name, seconds in fast.items()}
    for recorder in recorders.values():
        recorder.close()
    after = rates_of_products(case)
    drifted = drifts(fast["ours"]) or any(apart(after[d], rates[d]) > DRIFT for d in rates)
    rates = {d: max(rate, after[d]) for d, rate in rates.items()}
    ours = statistics.median(fast["ours"])
    best = max(rates.values())
    against = ratios(fast, "ours")
    return result | {
        "ours_s": ours,
        "against": against,
        "busy": too_busy(against),
        "drifted": drifted,
        "seconds": fast,
        "gemm_rate": best,
        "gemm_rates": {dtype_name(d): rate for d, rate in rates.items()},
        "fraction_of_gemm_rate": case.flops / case.units / ours / best if case.flops else None,
        "rounds": rounds,
        "graphs": sorted(replays),
    }


def rates_of_products(case: Case) -> dict[torch.dtype, float]:
    """FLOP/s of square products, of the case's dtype and of fp32; measured before the rounds and after them."""
    return {d: gemm_rate(d, device=case.device, seconds=0.25) for d in {case.dtype, torch.float32}}


def apart(a: float, b: float) -> float:
    """The larger by the smaller."""
    return max(a, b) / min(a, b)


def drifts(seconds: list[float]) -> bool:
    """True if the later half of the rounds took another time than the earlier, as where a processor slows down."""
    half = len(seconds) // 2
    return half > 0 and apart(statistics.median(seconds[:half]), statistics.median(seconds[-half:])) > DRIFT


def too_busy(against: dict[str, Any]) -> bool:
    """True if ratios of interleaved runs lie so far apart that they describe the machine and not the code."""
    return any(row["ratio_max"] > BUSY * row["ratio_min"] for row in against.values())


def line(result: dict[str, Any]) -> str:
    """One row of the table for people."""
    head = f"{result['case']:<16} rows {result['rows']:>6}  {result['dtype']:<9}"
    off = f"  WRONG: {', '.join(result['wrong'])}" if result.get("wrong") else ""
    if result["ours_s"] is None:
        return f"{head} WRONG: error {result['error']:.2e}, allowed {result['allowed_error']:.2e}; no time is reported"
    against = "  ".join(
        f"{name} {row['ratio']:.2f}x ({row['ratio_min']:.2f} to {row['ratio_max']:.2f})"
        for name, row in result["against"].items()
    )
    part = result["fraction_of_gemm_rate"]
    if result["busy"]:
        against += f"  (the machine is too busy to compare: ratios lie more than {BUSY:g}x apart)"
    if result.get("drifted"):
        against += f"  (the machine changed: times of ours, or rates of products, drifted by more than {DRIFT:g}x)"
    share = "" if part is None else f"  {100 * part:.0f} % of {result['gemm_rate'] / 1e9:.0f} GFLOP/s"
    return f"{head} {1e3 * result['ours_s']:9.3f} ms{share}  {against}{off}"


def main() -> int:
    """Command line; exit status 1 when ours is wrong."""
    parser = command_line()
    options = parser.parse_args()
    if problem := unusable(options):
        parser.error(problem)
    try:
        return libenma(options) if options.case == "embed" else measured(options)
    except EnmaError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def command_line() -> argparse.ArgumentParser:
    """Options without defaults of their own, so that those which are given are known."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare", description=__doc__.partition("\n")[0])
    parser.add_argument("case", choices=[*CASES, *WHOLE, "embed"])
    parser.add_argument(
        "--rows",
        "--members",
        type=counts,
        help="comma-separated: rows of an operator, members of a forecast; by default the case's",
    )
    parser.add_argument(
        "--preset", choices=sorted(RECIPES), help="of trajectories combined-paper, of forecasts combined-fast"
    )
    parser.add_argument(
        "--dtype", choices=[*DTYPES, "all"], help="bf16, of forecasts and ensembles fp32; all: one after the other"
    )
    parser.add_argument("--threads", type=count, help="PyTorch's own number by default; of embed always 1")
    parser.add_argument(
        "--rounds", type=count, help="11, of whole forecasts 5, of embed 9, of ensembles 5 or more where they are small"
    )
    parser.add_argument("--device", help="by default a GPU where there is one; ensemble and embed run on the CPU")
    parser.add_argument(
        "--no-compile", action="store_true", help="leave out torch.compile, which takes minutes on a CPU"
    )
    parser.add_argument("--alone", action="store_true", help="time ours alone, without baselines")
    parser.add_argument(
        "--no-flow", action="store_true", help="leave out the model of the same sizes by flow throughout"
    )
    parser.add_argument(
        "--exchange",
        choices=_flow_head_cuda.GROUPS,
        help="of flow_head: how thread blocks of its CUDA kernels exchange",
    )
    parser.add_argument("--flag-wrong", action="store_true", help="time contenders that are off too, and name them")
    parser.add_argument("--out", type=Path, help="file for the rows, as JSON, written anew after each")
    parser.add_argument("--add", type=Path, help="file to whose rows each is added, as JSON")
    parser.add_argument("--json", action="store_true", help="the last line is one JSON list, one object per row")
    parser.add_argument("--library", type=Path, help="libenma.so, of the case embed")
    parser.add_argument(
        "--others", action="store_true", help="of embed: beside TorchScript and ONNX Runtime, by frames"
    )
    return parser


def count(text: str) -> int:
    """A number of threads, rounds or rows: 1 or more."""
    number = int(text) if text.strip().isdecimal() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no count; give 1 or more")
    return number


def counts(text: str) -> list[int]:
    """Counts between commas."""
    return [count(part) for part in text.split(",")]


def unusable(options: argparse.Namespace) -> str | None:
    """Why the options do not fit the case, in one line."""
    case = options.case
    for name, cases in TAKEN.items():
        given = getattr(options, name)
        if given is not None and given is not False and case not in cases:
            flag = f"--{name.replace('_', '-')}"
            return f"{flag}: has no effect on {case}, only on {', '.join(cases)}; leave it out"
    if case == "ensemble" and options.dtype not in (None, "fp32"):
        return f"--dtype: is {options.dtype}, but the shipped model of ensemble samples in fp32; give fp32"
    try:
        device = torch.device(options.device or "cpu")
    except RuntimeError as error:
        return f"--device: {first_line(error)}; give cpu or cuda"
    if device.type not in ("cpu", "cuda"):
        return f"--device: is {options.device}; give cpu or cuda"
    if case == "ensemble" and device.type != "cpu":
        return f"--device: is {options.device}, but ensemble compares stores on the CPU; give cpu"
    if device.type == "cuda" and not torch.cuda.is_available():
        return f"--device: is {options.device}, but PyTorch finds no GPU; give cpu"
    return None


def libenma(options: argparse.Namespace) -> int:
    """The case embed."""
    case = embed_others if options.others else embed
    found = []
    for row in case.measure(
        options.preset or "combined-fast",
        options.rows or [1, 16, 64],
        rounds=options.rounds or 9,
        library=options.library or embed.LIBRARY,
    ):
        print(case.line(row), file=sys.stderr if options.json else sys.stdout)
        found.append(row | {"machine": machine()})
        if options.out is not None:
            save(found, options.out)
    if options.json:
        print(as_json(found))
    return 0


def measured(options: argparse.Namespace) -> int:
    """All other cases."""
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    if options.case == "trajectory":
        preset = options.preset or "combined-paper"
        build, default_rows = partial(trajectory_case, preset=preset, flow=not options.no_flow), (1, 16, 64)
    elif options.case == "forecast":
        build, default_rows = partial(forecast_case, preset=options.preset or "combined-fast"), (1, 16, 64)
    elif options.case == "ensemble":
        build, default_rows = ensemble_case, (64, 256, 1024, 4096)
    else:
        build, default_rows = CASES[options.case]
        if options.exchange is not None:
            build = partial(build, exchange=options.exchange)
    asked = options.dtype or WHOLE.get(options.case, "bf16")
    dtypes = list(DTYPES.values()) if asked == "all" else [DTYPES[asked]]
    on_gpu = torch.cuda.is_available() and options.case != "ensemble"
    device = torch.device(options.device or ("cuda" if on_gpu else "cpu"))
    results = []
    with torch.no_grad():
        for n, dtype in product(options.rows or default_rows, dtypes):
            case = build(n, dtype, device, compiled=not (options.no_compile or options.alone))
            if options.alone:
                case = replace(case, contenders={"ours": case.contenders["ours"]})
            result = compare(
                case,
                rounds=options.rounds or _rounds(options.case, n),
                flag=options.flag_wrong,
                graphs=options.case not in WHOLE,
            )
            result = overhead(result) if options.case == "ensemble" else result
            results.append(result | {"machine": machine()})
            print(line(results[-1]), file=sys.stderr if options.json else sys.stdout, flush=True)
            if options.out is not None:
                save(results, options.out)
            if options.add is not None:
                add(results[-1], options.add)
    if options.json:
        print(as_json(results))
    return int(any("ours" in result["wrong"] for result in results))


def _rounds(case: str, rows: int) -> int:
    """Ensembles sample 4,096 members at least: one of 64 takes 0.2 s, and single ratios lie 10 % apart."""
    if case == "ensemble":
        return max(5, 4096 // rows)
    return 5 if case in WHOLE else 11


if __name__ == "__main__":
    sys.exit(main())
