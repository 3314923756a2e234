"""The runs that led to a model: each stage trained on, or from the weights of, an earlier one; for its card.

Weights are known by their SHA-256, which a run records of what it started from.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import EnmaError
from ..models.checkpoint import METRICS, WEIGHTS, locate, sha256
from ..utils.dataclass_json import from_json, to_json
from ..utils.untrusted import parse_json, read_bytes
from .presets import find_preset
from .recipes import STAGES, recipe
from .record import RUN, read_record, summary

# Largest size of the metrics of a checkpoint.
_MOST_BYTES = 1 << 26


def trace(
    run: Path,
    *,
    tokenizer: Path | None = None,
    dynamics: Path | None = None,
    head: Path | None = None,
    forecasts: Path | None = None,
    begun: Sequence[str | Path] = (),
) -> dict[str, dict[str, Any]]:
    """The accounts of the runs that made a model, by stage in order.

    `run` is the finished run of the last stage (any but the tokenizer), `tokenizer`, `dynamics`, `head` and
    `forecasts` those of the stages before it. `begun` are other runs and checkpoints whose weights some of them started
    from: a run, and the stages in the card of a checkpoint, come first, as `tokenizer before` and so on. `EnmaError` if
    a run is of another stage, or was trained on weights that none of the others has.
    """
    last = read_record(run)["stage"]
    if last not in STAGES[1:]:
        raise EnmaError(f"{run}: is a run of the {last}, not of the {', '.join(STAGES[1:-1])} or {STAGES[-1]}")
    given = {"tokenizer": tokenizer, "dynamics": dynamics, "head": head, "forecasts": forecasts}
    for stage in STAGES[STAGES.index(last) : -1]:
        if given[stage] is not None:
            raise EnmaError(f"{run}: is a run of the {last}, which needs no later one; leave out --{stage}")
    folders = {stage: folder for stage, folder in (given | {last: run}).items() if folder is not None}
    records = {stage: read_record(folder) for stage, folder in folders.items()}
    for stage, record in records.items():
        if record["stage"] != stage:
            raise EnmaError(f"{folders[stage]}: is a run of the {record['stage']}, not of the {stage}")
    earlier = {folder: read_record(Path(folder)) for folder in begun if (Path(folder) / RUN).is_file()}
    # As a command names them: a run as its commands here do.
    outs: dict[str | Path, str] = {}
    for folder, record in earlier.items():
        out = f"{record['stage']}-before"
        while out in outs.values():
            out += "-before"
        outs[folder] = out
    weights = {stage: sha256(locate(folder) / WEIGHTS) for stage, folder in folders.items() if stage != last}
    names = {
        sha256(locate(folder) / WEIGHTS): f"runs/{outs[folder]}" if folder in outs else str(folder) for folder in begun
    }
    starts = {of: f"runs/{stage}" for stage, of in weights.items()} | names
    for folder, record in [*earlier.items(), *((folders[stage], record) for stage, record in records.items())]:
        on, start = record["tokenizer"], record["start"]
        if on is not None and on not in starts:
            raise EnmaError(
                f"{folder}: was not trained on the tokenizer of {tokenizer or 'any given run'}; name the one that it "
                "was by --tokenizer, or by --begun-from where a later stage took another"
            )
        if start is not None and start not in starts:
            raise EnmaError(
                f"{folder}: started from weights that none of the given runs has (SHA-256 {start[:12]}...); "
                "name their run by --dynamics, --head or --forecasts, or a run or checkpoint by --begun-from"
            )
    done: dict[str, dict[str, Any]] = {}

    def add(label: str, part: dict[str, Any]) -> None:
        while label in done:
            label += " before"
        done[label] = part

    for folder in begun:
        for stage, part in _accounts(locate(folder) / METRICS).items():
            add(f"{stage} before", part)
    for folder, record in earlier.items():
        command = _train_command(record, starts, out=outs[folder])
        add(f"{record['stage']} before", account(Path(folder), record, command))
    for stage in STAGES:
        if stage in records:
            record = records[stage]
            command = _train_command(record, starts, out=stage)
            add(stage, account(folders[stage], record, command))
    return done


def _accounts(path: Path) -> dict[str, dict[str, Any]]:
    """The accounts in the metrics of a checkpoint, which others may have made; empty without metrics."""
    if not path.is_file():
        return {}
    try:
        accounts: dict[str, dict[str, Any]] = parse_json(read_bytes(path, most=_MOST_BYTES))["training"]
        for part in accounts.values():
            machine = part["machine"]
            texts = (
                part["command"],
                part["precision"],
                part["versions"]["torch"],
                machine["cpu"],
                machine["gpu"] or "",
            )
            numbers = (part["steps"], part["trajectories"], part["seconds"], part["ranks"], machine["threads"])
            if not all(isinstance(text, str) for text in texts) or not all(isinstance(n, int | float) for n in numbers):
                raise TypeError
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        if isinstance(error, EnmaError):
            raise
        raise EnmaError(f"{path}: does not say how the model was trained; copy the checkpoint again") from None
    return accounts


def account(folder: Path, record: dict[str, Any], command: str) -> dict[str, Any]:
    """The account of one run by its record, and by the command that makes it again."""
    done = summary(folder)
    batch = record["training"]["batch"]
    return {
        "command": command,
        "steps": done["steps"],
        "trajectories": done["steps"] * batch,
        "seconds": done["seconds"],
        "validation": done["validation"],
        "seed": record["seed"],
        "precision": record["precision"],
        "ranks": record["ranks"],
        "data": record["data"],
        "machine": record["machine"],
        "versions": record["versions"],
    }


def _train_command(record: dict[str, Any], sources: Mapping[str, str], *, out: str) -> str:
    """The command that makes the run again in `runs/<out>`: the preset, and every setting that differs from it.

    `sources` names weights by their hash, among them those that it was trained on and started from.
    """
    stage, preset = record["stage"], find_preset(record["preset"])
    words = ["enma-fast train", stage, record["preset"]]
    for option, weights in (("--tokenizer", record["tokenizer"]), ("--from", record["start"])):
        words += [f"{option} {sources[weights]}"] if weights is not None else []
    words += [f"--data data --out runs/{out} --seed {record['seed']}"]
    words += [f"--precision {record['precision']}"] if record["precision"] != "auto" else []
    words += ["--compile"] if record["compile"] else []
    for key, value in _differences(preset.model, record["model"]):
        # How short contexts were follows from the training's own settings.
        if key != "shortest_context" and (stage == "tokenizer" or not key.startswith("tokenizer.")):
            words.append(f"--set {key}={value}")
    for key, value in _differences(recipe(preset, stage), record["training"]):
        words.append(f"--{key} {value}" if key in ("steps", "batch") else f"--train-set {key}={value}")
    return " ".join(words)


def _differences(config: Any, changed: dict[str, Any]) -> list[tuple[str, str]]:
    """Dotted keys, and their JSON values, in which a recorded config differs from a preset's."""
    # Keys that are newer than the record have the values of their time.
    recorded = from_json(type(config), json.dumps(changed), source="run.json")
    old, new = (_flat(json.loads(to_json(x))) for x in (config, recorded))
    return [(key, json_word(value)) for key, value in new.items() if old.get(key) != value]


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def json_word(value: Any) -> str:
    text = json.dumps(value, separators=(",", ":"))
    return value if isinstance(value, str) else f"'{text}'" if isinstance(value, list) else text
