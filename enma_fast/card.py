"""Model cards: what a model was trained on, by which commands, and what it reaches, all measured.

`publish` writes a checkpoint folder with the card (`README.md`) and the same figures for programs (`metrics.json`).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from .checkpoint import MANIFEST, METRICS, WEIGHTS, load_model, locate, save_model, sha256, write_atomic
from .config import ModelConfig, find_preset, replace, to_json
from .data import FieldFile, read
from .errors import EnmaError
from .metrics import relative_l2
from .model import Model
from .paper import paper_source
from .recipes import CHECKPOINT, data_file, read_record, summary
from .scoring import paper_table, score

# Task, ensemble size, trajectories at most: 16 members for errors over all of a file, 64 for calibration. The first
# trajectories of each file are shipped with the package, so the small rows can be made again without any data.
CASES: tuple[tuple[str, int, int | None], ...] = (
    ("temporal", 16, None),
    ("temporal", 64, 120),
    ("temporal", 16, 5),
    ("initial-value", 16, None),
    ("initial-value", 16, 5),
    ("generation", 16, 120),
)
SPLITS = ("test-in", "test-out")
_ROW_DROPS = ("per_frame", "rank_histogram")


def publish(
    run: Path,
    tokenizer: Path,
    *,
    data_dir: Path,
    out: Path,
    sampling: Mapping[str, Any] | None = None,
    limit: int | None = None,
    seed: int = 0,
    progress: Callable[[int, int, str], None] | None = None,
) -> dict[str, Any]:
    """Score a trained model and write it with card and metrics.

    Parameters
    ----------
    run, tokenizer : finished run folders of the dynamics and of the tokenizer it was trained on
    data_dir : folder of the test files
    out : checkpoint folder to write
    sampling : changes of the sampler's defaults (`SamplingConfig`), chosen on validation data
    limit : score the first so many trajectories of each file
    seed : of the noise
    progress : called with (cases done, cases, what is being scored)

    Returns
    -------
    dict
        What `metrics.json` holds: `rows` of scores, the `tokenizer`'s reconstruction error, and the `training`.

    Raises
    ------
    EnmaError
        If a run is not finished, the two do not belong together, data is missing, or `out` holds other files.
    """
    if out.exists() and not (out.is_dir() and ((out / MANIFEST).is_file() or not any(out.iterdir()))):
        raise EnmaError(f"{out}: exists and is not a checkpoint; choose another --out")
    records = {"tokenizer": read_record(tokenizer), "dynamics": read_record(run)}
    for stage, folder in (("tokenizer", tokenizer), ("dynamics", run)):
        if records[stage]["stage"] != stage:
            raise EnmaError(f"{folder}: is a run of the {records[stage]['stage']}, not of the {stage}")
    if sha256(locate(tokenizer) / WEIGHTS) != records["dynamics"]["tokenizer"]:
        raise EnmaError(f"{run}: was not trained on the tokenizer of {tokenizer}; name the one that it was")
    model = load_model(locate(run / CHECKPOINT))
    settings = replace(model.config.sampling, sampling or {}, source="sampling")
    model.config = model.dynamics.config = dataclasses.replace(model.config, sampling=settings)
    files = {split: read(data_file(data_dir, model.config.dataset, split)) for split in SPLITS}
    training = {
        stage: _training(folder, records[stage]) for stage, folder in (("tokenizer", tokenizer), ("dynamics", run))
    }
    metrics = {
        "seed": seed,
        **measure(model, files, limit=limit, seed=seed, progress=progress),
        "training": training,
        "sampling": dict(sampling or {}),
    }
    write_atomic(out / METRICS, (json.dumps(metrics, indent=1, allow_nan=False) + "\n").encode())
    save_model(model, out, card=card_text(model.config, metrics))
    return metrics


def measure(
    model: Model,
    files: dict[str, FieldFile],
    *,
    limit: int | None = None,
    seed: int = 0,
    progress: Callable[[int, int, str], None] | None = None,
) -> dict[str, Any]:
    """Scores of a model in all cases, on files by split."""
    rows: list[dict[str, Any]] = []
    cases = list(_cases(files, limit))
    for done, (split, task, members, most) in enumerate(cases):
        if progress is not None:
            progress(done, len(cases), f"{task}, {split}")
        row = score(model, files[split], task=task, members=members, seed=seed, limit=most)
        rows.append({**{key: value for key, value in row.items() if key not in _ROW_DROPS}, "limit": most})
    inside = files["test-in"]
    return {
        "rows": rows,
        "tokenizer": {
            "split": "test-in",
            "num_trajectories": len(inside),
            "rel_l2": reconstruction(model, inside),
        },
        "num_parameters": rows[0]["num_parameters"],
        "tokenizer_parameters": sum(p.numel() for p in model.tokenizer.parameters()),
    }


@torch.inference_mode()
def reconstruction(model: Model, data: FieldFile) -> float:
    """Mean relative L2 error of fields that go through the tokenizer and back."""
    errors = []
    for u in torch.from_numpy(data.u).split(64):
        decoded = model.tokenizer.decode(model.tokenizer.encode(u), u.shape[1])
        errors.append(relative_l2(decoded, u))
    return float(torch.cat(errors).mean())


def read_metrics(folder: Path) -> dict[str, Any] | None:
    """`metrics.json` of a checkpoint folder, or None without one."""
    path = folder / METRICS
    return json.loads(path.read_text()) if path.is_file() else None


def card_text(config: ModelConfig, metrics: dict[str, Any]) -> str:
    """The model card in Markdown."""
    tok, dyn = config.tokenizer, config.dynamics
    grid = " x ".join(map(str, tok.grid))
    latent, tokens = tok.latent_frames(config.num_frames), config.num_tokens
    limits = [
        f"- It knows the `{config.dataset}` data set's equation, initial conditions, grid, domain and frame spacing, "
        "and nothing else; other input is refused where it can be recognised.",
        f"- Frames beyond {config.num_frames} were not seen in training.",
        "- Out of distribution the error is that of the test-out rows; the ensemble does not know that it is there.",
        "- Members of one trajectory differ by the noise of the sampler; their spread is as good as the rows above.",
    ]
    parts = [
        f"# {config.name}",
        f"An ENMA model (arXiv 2506.06158) for the data set `{config.dataset}`: {grid} points, {config.num_frames} "
        f"frames {config.frame_interval:g} apart. {metrics['num_parameters']:,} parameters, of which the tokenizer has "
        f"{metrics['tokenizer_parameters']:,}; {config.num_frames} frames become {latent} latent frames of {tokens} "
        f"tokens with {config.token_channels} channels. Dynamics: width {dyn.width}, {dyn.temporal_layers} causal and "
        f"{dyn.spatial_layers} masked layers, flow head {dyn.flow.layers} x {dyn.flow.width}.",
        "```python\nimport enma_fast\n\n"
        f'model = enma_fast.load_model("{config.name}")\n'
        "ensemble = enma_fast.forecast(model, history, num_members=64)  # history: [3, *grid, channels]\n```",
        "## Scores",
        "Relative L2 is not squared, per trajectory over all forecast frames, then averaged: of the ensemble mean "
        "and of single members. CRPS is the fair one, in the field's units. RMSCE is that of a Gaussian with the "
        "ensemble's mean and spread. Spread/skill is 1 for a calibrated ensemble. `generation` has no truth: CRPS and "
        "calibration there are against another draw of the same environment, and `solver` is the distance from the "
        "solver's own trajectory that starts at the generated first frame.",
        _score_rows(metrics["rows"]),
        f"The tokenizer alone (fields to latent frames and back): relative L2 {_e(metrics['tokenizer']['rel_l2'])} on "
        f"{metrics['tokenizer']['num_trajectories']} trajectories of {metrics['tokenizer']['split']}. Noise seed "
        f"{metrics['seed']}. A row is made again by its command below; those of 5 trajectories also from the test "
        "files in the package.",
        "```\n" + "\n".join(dict.fromkeys(_score_command(config, row) for row in metrics["rows"])) + "\n```",
        f"Beside it, the paper's figures ({paper_source()}), on its own data of the same kind:",
        _paper_rows(metrics["rows"]),
        "## Training",
        _training_text(config, metrics["training"], metrics["sampling"]),
        "## Limits",
        "\n".join(limits),
    ]
    return "\n\n".join(parts) + "\n"


def _cases(files: dict[str, FieldFile], limit: int | None) -> Iterator[tuple[str, str, int, int | None]]:
    """Split, task, members and limit of each row; cases that come out the same stand once."""
    seen = set()
    for split in SPLITS:
        for task, members, most in CASES:
            count = min(n for n in (len(files[split]), most, limit) if n is not None)
            if (split, task, members, count) not in seen:
                seen.add((split, task, members, count))
                yield split, task, members, None if count == len(files[split]) else count


def _training(folder: Path, record: dict[str, Any]) -> dict[str, Any]:
    """What one run did, for the card."""
    done = summary(folder)
    batch = record["training"]["batch"]
    return {
        "command": _train_command(record),
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


def _train_command(record: dict[str, Any]) -> str:
    """The command that makes the run again: the preset, and every setting that differs from it."""
    stage, preset = record["stage"], find_preset(record["preset"])
    training = preset.tokenizer_training if stage == "tokenizer" else preset.dynamics_training
    words = ["enma-fast train", stage, record["preset"]]
    words += ["--tokenizer runs/tokenizer"] if stage == "dynamics" else []
    words += [f"--data data --out runs/{stage} --seed {record['seed']}"]
    words += [f"--precision {record['precision']}"] if record["precision"] != "auto" else []
    words += ["--compile"] if record["compile"] else []
    for key, value in _differences(preset.model, record["model"]):
        if stage == "tokenizer" or not key.startswith("tokenizer."):
            words.append(f"--set {key}={value}")
    for key, value in _differences(training, record["training"]):
        words.append(f"--{key} {value}" if key in ("steps", "batch") else f"--train-set {key}={value}")
    return " ".join(words)


def _differences(config: Any, changed: dict[str, Any]) -> list[tuple[str, str]]:
    """Dotted keys, and their JSON values, in which a recorded config differs from a preset's."""
    old, new = _flat(json.loads(to_json(config))), _flat(changed)
    return [(key, _json_word(value)) for key, value in new.items() if old.get(key) != value]


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def _json_word(value: Any) -> str:
    text = json.dumps(value, separators=(",", ":"))
    return value if isinstance(value, str) else f"'{text}'" if isinstance(value, list) else text


def _score_command(config: ModelConfig, row: dict[str, Any]) -> str:
    limit = "" if row["limit"] is None else f" --limit {row['limit']}"
    return (
        f"enma-fast score data/{row['dataset']}-{row['split']}.h5 --checkpoint {config.name} --task {row['task']} "
        f"--history 3 --members {row['num_members']} --seed {row['seed']}{limit}"
    )


def _score_rows(rows: list[dict[str, Any]]) -> str:
    names = ("rel_l2", "rel_l2_member", "crps", "rmsce", "spread_skill", "solver_fidelity")
    head = [
        "task",
        "split",
        "trajectories",
        "members",
        "rel. L2",
        "one member",
        "CRPS",
        "RMSCE",
        "spread/skill",
        "solver",
    ]
    lines = [
        [row["task"], row["split"], row["num_trajectories"], row["num_members"], *(_e(row[name]) for name in names)]
        for row in rows
    ]
    return _markdown(head, lines)


def _paper_rows(rows: list[dict[str, Any]]) -> str:
    lines, seen = [], set()
    for row in rows:
        if (row["task"], row["split"]) in seen:
            continue
        seen.add((row["task"], row["split"]))
        for other in paper_table(row):
            scores = [_e(other.get(name)) for name in ("rel_l2", "crps", "rmsce", "solver_fidelity")]
            lines.append([row["task"], row["split"], other["model"], *scores])
    return _markdown(["task", "split", "model", "rel. L2", "CRPS", "RMSCE", "solver"], lines)


def _training_text(config: ModelConfig, training: dict[str, Any], sampling: dict[str, Any]) -> str:
    changes = "".join(f" --set {key}={_json_word(value)}" for key, value in sampling.items())
    lines = [
        "Data of this project's own solver (seed 0), then the tokenizer, then the dynamics on its latent frames:",
        "```",
        f"enma-fast data generate {config.dataset} --out data",
        *(part["command"] for part in training.values()),
        f"enma-fast train publish runs/dynamics --tokenizer runs/tokenizer --data data --out {config.name}{changes}",
        "```",
        "",
        f"The sampler takes {config.sampling.mask_steps} mask steps a frame and {config.sampling.flow_steps} "
        f"{config.sampling.method} flow steps a token, and scales its noise by {config.sampling.temperature:g}"
        + (", chosen on validation data." if "temperature" in sampling else "."),
        "",
    ]
    head = ["stage", "steps", "trajectories seen", "hours", "precision", "machine", "torch"]
    rows = []
    for stage, part in training.items():
        machine = part["machine"]
        where = machine["gpu"] or f"{machine['cpu']}, {machine['threads']} thread{'s' * (machine['threads'] != 1)}"
        where = where if part["ranks"] == 1 else f"{part['ranks']} x {where}"
        hours = f"{part['seconds'] / 3600:.2f}"
        seen = f"{part['trajectories']:,}"
        rows.append([stage, f"{part['steps']:,}", seen, hours, part["precision"], where, part["versions"]["torch"]])
    return "\n".join(lines) + _markdown(head, rows)


def _markdown(head: list[str], rows: list[list[Any]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def _e(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}" if 0.1 <= abs(value) < 1000 else f"{value:.2e}"
