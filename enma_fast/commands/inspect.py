"""`enma-fast info` and `verify`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from .options import AsJson
from .terminal import Terminal, number, table


def info(as_json: AsJson = False) -> None:
    """Show versions, machine, operators, shipped models with their measured scores, and presets."""
    from ..checkpoint import available
    from ..config import PRESETS
    from ..system import machine, versions

    terminal = Terminal(as_json)
    found: dict[str, Any] = {
        "versions": versions(),
        "machine": machine(),
        "operators": _operators(),
        "checkpoints": [_checkpoint(name) for name in available()],
        "presets": {name: preset.model.dataset for name, preset in PRESETS.items()},
    }
    rows = [[name, value or "not installed"] for name, value in found["versions"].items()]
    rows += [[key, _text(value)] for key, value in found["machine"].items()]
    terminal.show(table("enma-fast", ["", "value"], rows))
    lines = []
    for op, rows_of in found["operators"].items():
        used, *others = sorted(rows_of, key=lambda row: not row["used"])
        lines.append([op, used["implementation"], ""])
        lines += [["", f"not {row['implementation']}", row["problem"]] for row in others if row["problem"]]
    terminal.show(table("operators", ["operator", "runs as", "because"], lines))
    columns = ["shipped model", "parameters", "MB", "task", "split", "rel. L2", "members"]
    lines = []
    for checkpoint in found["checkpoints"]:
        own = [checkpoint["name"], f"{checkpoint['num_parameters']:,}", f"{checkpoint['bytes'] / 1e6:.1f}"]
        for row in checkpoint["scores"] or [{}]:
            size = str(row.get("num_members", "-"))
            scores = [row.get("task", "-"), row.get("split", "-"), number(row.get("rel_l2")), size]
            lines.append([*own, *scores])
            own = ["", "", ""]
    terminal.show(table("models", columns, lines))
    terminal.show(f"presets: {', '.join(PRESETS)}")
    terminal.result(found)


def verify(
    checkpoint: Annotated[str, typer.Argument(help="A shipped model by name, or a checkpoint folder.")],
    as_json: AsJson = False,
) -> None:
    """Check size and SHA-256 of every file of a checkpoint, and that config and weights belong together."""
    import json

    from ..checkpoint import MANIFEST, WEIGHTS, load_model, load_tokenizer, locate, read_tensors
    from ..checkpoint import verify as check

    terminal = Terminal(as_json)
    folder = locate(checkpoint)
    check(folder)
    tensors, _ = read_tensors(folder / WEIGHTS)
    whole = any(name.startswith("dynamics.") for name in tensors)
    module = load_model(folder) if whole else load_tokenizer(folder)[0]
    files = json.loads((folder / MANIFEST).read_text())["files"]
    rows = [[name, f"{entry['bytes']:,}", entry["sha256"]] for name, entry in files.items()]
    terminal.show(table(f"{checkpoint}: whole", ["file", "bytes", "SHA-256"], rows))
    terminal.result(
        {
            "checkpoint": str(checkpoint),
            "kind": "model" if whole else "tokenizer",
            "num_parameters": sum(p.numel() for p in module.parameters()),
            "files": files,
        }
    )


def _operators() -> dict[str, list[dict[str, Any]]]:
    """Implementations of each operator, best first: which one runs here, and why the better ones do not."""
    import torch

    from ..engine import candidates as samplers
    from ..ops import best, implementations

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    found = {}
    known = implementations(device, torch.float32) | {"sampler": samplers(device, torch.float32, head_dim=64)}
    for op, candidates in known.items():
        used = best(candidates)
        found[op] = [
            {"implementation": name, "used": name == used, "problem": problem} for name, problem in candidates.items()
        ]
    return found


def _checkpoint(name: str) -> dict[str, Any]:
    """A shipped model: size, and the scores that its card reports."""
    from ..card import read_metrics
    from ..checkpoint import WEIGHTS, load_model, locate

    folder = locate(name)
    model = load_model(folder)
    metrics = read_metrics(folder)
    return {
        "name": name,
        "dataset": model.config.dataset,
        "num_parameters": sum(p.numel() for p in model.parameters()),
        "bytes": (folder / WEIGHTS).stat().st_size,
        "scores": [] if metrics is None else metrics["rows"],
    }


def _text(value: Any) -> str:
    return ", ".join(value) if isinstance(value, list) else "none" if value is None else str(value)
