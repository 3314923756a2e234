"""`enma-fast info` and `verify`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import EnmaError
from .options import AsJson
from .terminal import Terminal, number, table


def info(as_json: AsJson = False) -> None:
    """Show versions, machine, operators, shipped models with their measured scores, and recipes."""
    from ..models.checkpoint import available
    from ..ops import instruction_set
    from ..training.recipes import RECIPES
    from ..utils.system import machine, versions

    terminal = Terminal(as_json)
    report: dict[str, Any] = {
        "versions": versions(),
        "machine": machine() | {"kernels": instruction_set()},
        "rates": _rates(),
        "operators": _operators(),
        "field_models": _field_models(),
        "checkpoints": [_checkpoint(name) for name in available()],
        "recipes": {name: recipe.model.dataset for name, recipe in RECIPES.items()},
    }
    rows = [[name, value or "not installed"] for name, value in report["versions"].items()]
    rows += [[key, _text(value)] for key, value in report["machine"].items()]
    terminal.show(table("enma-fast", ["", "value"], rows, text=(0, 1)))
    lines = [
        [place, name, *(f"{rate:,.0f}" for rate in row["gflops"].values()), row["fastest"]]
        for place, rows_of_place in report["rates"].items()
        for name, row in rows_of_place.items()
    ]
    columns = ["device", "used in", "fp32, GFLOP/s", "bf16, GFLOP/s", "auto is"]
    terminal.show(table("rates of number formats (of one core on a CPU)", columns, lines, text=(0, 1, 4)))
    lines = []
    for op, rows_of in report["operators"].items():
        used, *others = sorted(rows_of, key=lambda row: not row["used"])
        lines.append([op, used["implementation"], ""])
        lines += [["", f"not {row['implementation']}", row["problem"]] for row in others if row["problem"]]
    terminal.show(table("operators", ["operator", "runs as", "because"], lines, text=(0, 1, 2)))
    lines = [[str(row["axes"]), row["engine"], row["problem"] or ""] for row in report["field_models"]]
    terminal.show(table("field models", ["axes of the grid", "run by", "because"], lines, text=(0, 1, 2)))
    shipped = report["checkpoints"]
    lines = [[m["name"], m["dataset"], f"{m['num_parameters'] or 0:,}", f"{m['bytes'] / 1e6:.1f}"] for m in shipped]
    terminal.show(table("shipped models", ["model", "data set", "parameters", "MB"], lines, text=(0, 1)))
    columns = ["model", "task", "split", "trajectories", "members", "rel. L2"]
    lines = [line for model in shipped for line in _score_lines(model)]
    terminal.show(table("their scores", columns, lines, text=(0, 1, 2)))
    terminal.show(
        table("recipes", ["recipe", "data set"], [list(row) for row in report["recipes"].items()], text=(0, 1))
    )
    terminal.result(report)


def verify(
    what: Annotated[
        str, typer.Argument(metavar="WHAT", help="A forecast store, a checkpoint folder, or a shipped model by name.")
    ],
    mark: Annotated[
        bool, typer.Option("--mark", help="Mark what is damaged in a store, for the command that wrote it to repair.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Check every file of a forecast store by its CRC-32C, or of a checkpoint by size and SHA-256.

    Nothing is changed, and the status is 2 until a damaged store is repaired: with --mark, what is damaged is noted in
    the store, and the command that wrote it writes that again, and only that.
    """
    terminal = Terminal(as_json)
    if (Path(what) / "zarr.json").is_file() or what.rstrip("/").endswith(".zarr"):
        _verify_store(terminal, Path(what), mark=mark)
    elif mark:
        raise EnmaError(f"--mark: {what} is not a forecast store, of which alone a part can be written again")
    else:
        _verify_checkpoint(terminal, what)


def _verify_store(terminal: Terminal, store: Path, *, mark: bool) -> None:
    """Table of the damage; `EnmaError` if there is any."""
    from ..store.layout import FINGERPRINT, LEDGER
    from ..store.metadata import read_unchecked_metadata, repeated
    from ..store.verify import check_store, mark_damaged

    with terminal.progress("checking") as update:
        damages = check_store(store, progress=update)
    # A store whose coordinates are damaged cannot be opened as a dataset.
    attributes = read_unchecked_metadata(store)["attributes"]
    unfinished = (store / LEDGER).exists() or bool(damages)
    again = repeated(store, attributes)
    failed = None
    if mark and damages:
        try:
            mark_damaged(store, damages)
        except EnmaError as error:
            # What is damaged is reported even if the store cannot be written.
            failed = error
    marks = [damage.marked or (mark and failed is None) for damage in damages]
    if damages:
        rows = [[damage.holds, damage.problem, damage.file] for damage in damages]
        terminal.show(table(f"{store}: {len(damages)} damaged", ["what", "problem", "file"], rows, text=(0, 1, 2)))
    else:
        terminal.show(f"{store}: {'unfinished, and whole as far as it goes' if unfinished else 'whole'}")
    terminal.result(
        {
            "store": str(store),
            "kind": "forecast",
            "unfinished": unfinished,
            "fingerprint": attributes.get(FINGERPRINT),
            "damaged": [
                {"file": damage.file, "problem": damage.problem, "holds": damage.holds, "marked": marked}
                for damage, marked in zip(damages, marks, strict=True)
            ],
            "command": again,
        }
    )
    if failed is not None:
        raise failed
    if damages:
        marked = all(marks)
        first_damage = f"{damages[0].file} ({damages[0].problem})"
        more = f" and {len(damages) - 1} more are" if len(damages) > 1 else " is"
        state = "damaged" if not marked else "damaged and marked"
        first_mark = "" if marked else f"enma-fast verify {shlex.quote(str(store))} --mark, then "
        raise EnmaError(f"{store}: {first_damage}{more} {state}; repeat: {first_mark}{again}")


def _verify_checkpoint(terminal: Terminal, checkpoint: str) -> None:
    """Sizes and hashes, and that config and weights belong together."""
    from ..models.checkpoint import listed, load_model, locate

    folder = locate(checkpoint)
    model = load_model(folder)
    files = {name: {"bytes": size, "sha256": digest} for name, (size, digest) in listed(folder).items()}
    rows = [[name, f"{entry['bytes']:,}", str(entry["sha256"])] for name, entry in files.items()]
    terminal.show(table(f"{checkpoint}: whole", ["file", "bytes", "SHA-256"], rows, text=(0, 2)))
    terminal.result(
        {
            "checkpoint": str(checkpoint),
            "kind": "model",
            "num_parameters": sum(p.numel() for p in model.parameters()),
            "files": files,
        }
    )


def _rates() -> dict[str, dict[str, dict[str, Any]]]:
    """Measured rates of fp32 and bf16 by device and use, and the format that `auto` is there."""
    import torch

    from ..ops import rates

    by_device = {}
    for kind in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        here = rates.measured(torch.device(kind))
        by_device[kind] = {
            "training": {"gflops": _gflops(here.products), "fastest": here.training},
            "sampling": {"gflops": _gflops(here.head or here.products), "fastest": here.sampling},
        }
    return by_device


def _gflops(rates: dict[str, float]) -> dict[str, float]:
    return {name: round(rate / 1e9, 1) for name, rate in rates.items()}


def _operators() -> dict[str, list[dict[str, Any]]]:
    """Implementations of each operator, best first: which one runs here, and why the better ones do not."""
    import torch

    from ..config import ModelConfig
    from ..ops import best, implementations
    from ..sampling.engine import candidates as samplers

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    operators = {}
    small = ModelConfig(name="sampler", dataset="sampler")
    choices = implementations(device, torch.float32) | {"sampler": samplers(small, device, torch.float32)}
    for op, candidates in choices.items():
        used = best(candidates)
        operators[op] = [
            {"implementation": name, "used": name == used, "problem": problem} for name, problem in candidates.items()
        ]
    return operators


def _field_models() -> list[dict[str, Any]]:
    """The engine of field models here by the axes of their grid, and why it is no better one."""
    import torch

    from ..config import BlocksConfig, FieldConfig, ModelConfig, PhysicsConfig
    from ..ops import best
    from ..sampling.engine import candidates

    engines = []
    for axes in (1, 2, 3):
        ones = (1,) * axes
        codec = BlocksConfig(grid=(8,) * axes, lengths=(1.0,) * axes, periodic=(True,) * axes, block=1, frames=1)
        config = ModelConfig(
            name="field", dataset="field", codec=codec, context=PhysicsConfig(patch=ones), step=FieldConfig()
        )
        samplers = candidates(config, torch.device("cpu"), torch.float32)
        engines.append({"axes": axes, "engine": best(samplers), "problem": samplers["native"]})
    return engines


def _checkpoint(name: str) -> dict[str, Any]:
    """A shipped model: size, and the scores that its card reports."""
    from ..models.checkpoint import WEIGHTS, load_config, locate
    from ..training.card import read_metrics

    folder = locate(name)
    metrics = read_metrics(folder) or {"num_parameters": None, "rows": []}
    return {
        "name": name,
        "dataset": load_config(folder).dataset,
        "num_parameters": metrics["num_parameters"],
        "bytes": (folder / WEIGHTS).stat().st_size,
        "scores": metrics["rows"],
    }


def _score_lines(model: dict[str, Any]) -> list[list[str]]:
    """Lines of the table of scores, the model's name on the first."""
    lines = []
    for i, row in enumerate(model["scores"]):
        counts = [f"{row[name]:,}" for name in ("num_trajectories", "num_members")]
        name = "" if i else model["name"]
        lines.append([name, row["task"], row["split"], *counts, number(row.get("rel_l2"))])
    return lines


def _text(value: Any) -> str:
    return ", ".join(value) if isinstance(value, list) else "none" if value is None else str(value)
