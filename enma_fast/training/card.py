"""Model cards: what a model was trained on, by which commands, and what it reaches, all measured.

`publish` writes a checkpoint folder with the card (`README.md`) and the same figures for programs (`metrics.json`).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..config import DynamicsConfig, ModelConfig
from ..data import DEFAULT_GROUPS, EQUATIONS, FieldFile, count, read, spread_out
from ..data.splits import TRAJECTORIES_PER_GROUP, default_groups
from ..errors import EnmaError
from ..evaluation.metrics import columns, relative_l2
from ..evaluation.paper import paper_source
from ..evaluation.scoring import paper_table, score
from ..models.checkpoint import IN_RUN, MANIFEST, METRICS, load_model, locate, round_weights, save_model
from ..models.covariance import FieldCovariance
from ..models.envelope import Envelope
from ..models.model import Model
from ..utils.dataclass_json import replace
from ..utils.text import counted, markdown_table, short, times
from .lineage import json_word, trace
from .recipes import data_file

# Task, ensemble size, trajectories at most, whether of the packed file: 16 members for errors over all of a file, 64
# for calibration. The packed files are shipped with the package, so their rows can be made again without any data.
CASES: tuple[tuple[str, int, int | None, bool], ...] = (
    ("temporal", 16, None, False),
    ("temporal", 64, 120, False),
    ("temporal", 16, None, True),
    ("initial-value", 16, None, False),
    ("initial-value", 16, None, True),
    ("generation", 16, 120, False),
)
SPLITS = ("test-in", "test-out")
# Training trajectories that describe the envelope of a model.
_TOLD = 4096
# Those of them from which its covariance is made.
_VARIED = 512
_ROW_DROPS = ("per_frame", "rank_histogram", "channels")


def publish(
    run: Path,
    *,
    tokenizer: Path | None = None,
    dynamics: Path | None = None,
    head: Path | None = None,
    forecasts: Path | None = None,
    begun: Sequence[str | Path] = (),
    data_dir: Path,
    out: Path,
    sampling: Mapping[str, Any] | None = None,
    limit: int | None = None,
    members: int | None = None,
    half: bool = False,
    seed: int = 0,
    progress: Callable[[int, int, str], None] | None = None,
) -> dict[str, Any]:
    """Score a trained model and write it with card and metrics.

    Parameters
    ----------
    run, tokenizer, dynamics, head, forecasts, begun : finished run folders, and the runs and checkpoints that they
        began from (:func:`enma_fast.training.lineage.trace`)
    data_dir : folder of the training and test files
    out : checkpoint folder to write
    sampling : changes of the sampler's defaults (`SamplingConfig`), chosen on validation data
    limit : score the first so many trajectories of each file
    members : leave out the cases of larger ensembles; by default there are none
    half : round the weights to fp16 before they are scored, and store them so: half the size
    seed : of the noise
    progress : called with (cases done, cases, name of the case)

    Returns
    -------
    dict
        The contents of `metrics.json`: `rows` of scores, the `tokenizer`'s reconstruction error, and the `training`.

    Raises
    ------
    EnmaError
        If a run is not finished, the two do not belong together, data is missing, or `out` holds other files.
    """
    if out.exists() and not (out.is_dir() and ((out / MANIFEST).is_file() or not any(out.iterdir()))):
        raise EnmaError(f"{out}: exists and is not a checkpoint; choose another --out")
    training = trace(run, tokenizer=tokenizer, dynamics=dynamics, head=head, forecasts=forecasts, begun=begun)
    model = load_model(locate(run / IN_RUN))
    if half:
        round_weights(model)
    settings = replace(model.config.sampling, sampling or {}, source="sampling")
    model.config = model.dynamics.config = dataclasses.replace(model.config, sampling=settings)
    tell_training(model, data_file(data_dir, model.config.dataset, "train"))
    files = {split: read(data_file(data_dir, model.config.dataset, split)) for split in SPLITS}
    metrics = {
        "seed": seed,
        **measure(model, files, limit=limit, members=members, seed=seed, progress=progress),
        "training": training,
        "sampling": dict(sampling or {}),
        "members": members,
        "half": half,
        "data": _trajectories(data_dir, model.config.dataset),
    }
    save_model(model, out, card=card_text(model.config, metrics), metrics=metrics, half=half)
    return metrics


def tell_training(model: Model, path: Path) -> None:
    """Give a model its envelope and covariance from trajectories evenly spread over the file that it was trained on."""
    data = read(path, select=slice(None, None, -(-count(path) // _TOLD)))
    units = tuple(data.units.get(channel, "1") for channel in data.channels)
    # Without any unit the file stays as it was before units were kept.
    model.envelope = Envelope.of(data.u, data.channels, units if set(units) != {"1"} else ())
    if model.config.tokenizer.interpolation is None:
        some = data.u[:: -(-len(data) // _VARIED)]
        model.covariance = FieldCovariance.of(some, lengths=data.lengths, periodic=data.periodic)


def measure(
    model: Model,
    files: dict[str, FieldFile],
    *,
    limit: int | None = None,
    members: int | None = None,
    seed: int = 0,
    progress: Callable[[int, int, str], None] | None = None,
) -> dict[str, Any]:
    """Scores of a model in all cases of at most so many members, on files by split."""
    rows: list[dict[str, Any]] = []
    packed = {split: spread_out(data) for split, data in files.items()}
    environments = packed["test-in"].environment
    assert environments is not None
    cases = [case for case in _cases(files, packed, limit) if members is None or case[2] <= members]
    for done, (split, task, size, most, small) in enumerate(cases):
        if progress is not None:
            progress(done, len(cases), f"{task}, {split}")
        data = (packed if small else files)[split]
        row = score(model, data, task=task, num_members=size, seed=seed, limit=most)
        kept = {key: value for key, value in row.items() if key not in _ROW_DROPS}
        rows.append({**kept, "limit": most, "packed": small})
    inside = files["test-in"]
    return {
        "rows": rows,
        "packed_environments": len(np.unique(environments)),
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
    grid = times(tok.grid)
    latent, tokens = tok.latent_frames(config.num_frames), config.num_tokens
    # Cards of older models have a dozen.
    packed = metrics.get("packed_environments", 12)
    environments = "a dozen environments" if packed == 12 else counted(packed, "environment")
    limits = [
        f"- It knows the `{config.dataset}` data set's equation, initial conditions, grid, domain and frame spacing, "
        "and nothing else; other input is refused where it can be recognised.",
        f"- Frames beyond {config.num_frames} were not seen in training.",
        "- Out of distribution error and calibration are those of the test-out rows: where spread/skill is far below 1 "
        "there, the spread does not tell the error. `forecast` warns where observed frames lie outside the training "
        "data, and refuses them with `strict`; its hits and false alarms are the column `outside` of the test-out and "
        "the test-in rows.",
        "- Members of one trajectory differ by the noise of the sampler; their spread is as good as the rows above.",
    ]
    parts = [
        f"# {config.name}",
        f"An ENMA model (arXiv 2506.06158) for the data set `{config.dataset}`: {grid} points, {config.num_frames} "
        f"frames {config.frame_interval:g} apart. {metrics['num_parameters']:,} parameters, of which the tokenizer has "
        f"{metrics['tokenizer_parameters']:,}; {config.num_frames} frames become {latent} latent frames of {tokens} "
        f"tokens with {config.token_channels} channels. Dynamics: width {dyn.width}, {dyn.temporal_layers} causal and "
        f"{dyn.spatial_layers} masked layers, {_head(dyn)}.",
        "It is not a model of the authors, whose code and data are public (`itsakk/enma`, its generator "
        "`itsakk/PPDEGeneration`, data `2ailesB/enma-datasets`), but of an independent implementation made for speed, "
        "trained on data of this project's own solver.",
        "```python\nimport enma_fast\n\n"
        f'model = enma_fast.load_model("{config.name}")\n'
        "ensemble = enma_fast.forecast(model, history, num_members=64)  # history: [3, *grid, channels]\n```",
        "## Scores",
        "Relative L2 is not squared, per trajectory over all forecast frames: of the ensemble mean, averaged over "
        "trajectories, with the median and the 90 % quantile over them beside it, and of single members, averaged. The "
        "mean is ruled by trajectories whose truth decays to nearly nothing, the median is not. CRPS is the fair one, "
        "in the field's units, and then divided by the RMS of what was observed of each trajectory (for `generation`, "
        "of the truth). RMSCE is that of a Gaussian with the ensemble's mean and spread. Spread/skill is 1 for a "
        "calibrated ensemble. `generation` has no truth: CRPS and "
        "calibration there are against another draw of the same environment, and `solver` is the distance from the "
        "solver's own trajectory that starts at the generated first frame. `outside` counts the trajectories whose "
        "observed frames, or context, are taken for outside the training data, which `forecast` warns of.",
        _score_rows(metrics["rows"]),
        "The tokenizer alone (fields to latent frames and back): relative L2 "
        f"{short(metrics['tokenizer']['rel_l2'])} on {metrics['tokenizer']['num_trajectories']} trajectories of "
        f"{metrics['tokenizer']['split']}. Noise seed "
        f"{metrics['seed']}. A row is made again by its command below. `packed` are the test files in the package: two "
        f"trajectories of each of {environments}, evenly spread over those of `data`, as `enma-fast data subset "
        "data/FILE --out packed/FILE` writes them.",
        "```\n" + "\n".join(dict.fromkeys(_score_command(config, row) for row in metrics["rows"])) + "\n```",
        f"Beside it, the paper's figures ({paper_source()}), on its own data of the same kind. It does not say whether "
        "its CRPS and RMSCE are of the temporal task or of the initial value problem; they stand beside the temporal "
        "one here:",
        _paper_rows(metrics["rows"]),
        "## Training",
        _training_text(config, metrics),
        "## Limits",
        "\n".join(limits),
    ]
    return "\n\n".join(parts) + "\n"


def _cases(
    files: dict[str, FieldFile], packed: dict[str, FieldFile], limit: int | None
) -> Iterator[tuple[str, str, int, int | None, bool]]:
    """Split, task, members, limit and whether packed of each row; cases that come out the same stand once."""
    seen = set()
    for split in SPLITS:
        for task, members, most, small in CASES:
            there = len((packed if small else files)[split])
            rows = min(n for n in (there, most, limit) if n is not None)
            if (split, task, members, rows, small) not in seen:
                seen.add((split, task, members, rows, small))
                yield split, task, members, None if rows == there else rows, small


def _head(dyn: DynamicsConfig) -> str:
    """What decides tokens: the flow head, or local heads."""
    parts = [f"{name} {h.layers} x {h.width}" for name, h in (("local head", dyn.local), ("frame 0", dyn.first)) if h]
    flow = [] if dyn.first is not None else [f"flow head {dyn.flow.layers} x {dyn.flow.width}"]
    return ", ".join(flow + parts)


def _steps(config: ModelConfig) -> str:
    if config.dynamics.first is not None:
        return "decides a frame in one pass (frame 0, which only generation draws, by a head of its own)"
    settings = config.sampling
    steps = (
        f"takes {settings.mask_steps} mask steps a frame and {settings.flow_steps} {settings.method} flow steps a token"
    )
    if config.dynamics.decoder == "one-pass":
        return f"decides a frame in one pass (frame 0, which only generation draws, {steps})"
    return steps


def _score_command(config: ModelConfig, row: dict[str, Any]) -> str:
    limit = "" if row["limit"] is None else f" --limit {row['limit']}"
    return (
        f"enma-fast score {'packed' if row['packed'] else 'data'}/{row['dataset']}-{row['split']}.h5 "
        f"--checkpoint {config.name} --task {row['task']} "
        f"--history 3 --members {row['num_members']} --seed {row['seed']}{limit}"
    )


def _score_rows(rows: list[dict[str, Any]]) -> str:
    shown = columns("card")
    lines = []
    for row in rows:
        split = f"{row['split']}, packed" if row["packed"] else row["split"]
        outside = "-" if row["num_outside"] is None else row["num_outside"]
        scores = [short(row.get(column.name)) for column in shown]
        lines.append([row["task"], split, row["num_trajectories"], row["num_members"], *scores, outside])
    heads = (column.short for column in shown)
    return markdown_table(["task", "split", "trajectories", "members", *heads, "outside"], lines)


def _paper_rows(rows: list[dict[str, Any]]) -> str:
    lines, seen, shown = [], set(), columns("paper")
    for row in rows:
        if (row["task"], row["split"]) in seen:
            continue
        seen.add((row["task"], row["split"]))
        for other in paper_table(row):
            scores = [short(other.get(column.name)) for column in shown]
            lines.append([row["task"], row["split"], other["model"], *scores])
    return markdown_table(["task", "split", "model", *(column.short for column in shown)], lines)


def _trajectories(data_dir: Path, dataset: str) -> dict[str, int]:
    """Trajectories of the files of a data set, by split, as far as they are there."""
    files = {split: data_dir / f"{dataset}-{split}.h5" for split in DEFAULT_GROUPS}
    return {split: count(path) for split, path in files.items() if path.is_file()}


def _data_commands(dataset: str, trajectories: Mapping[str, int]) -> list[str]:
    """The commands that make a data set, one for each split whose number of trajectories is not the paper's."""
    command = f"enma-fast data generate {dataset} --out data"
    if dataset not in EQUATIONS:
        return [command]
    wholes = {split: TRAJECTORIES_PER_GROUP * default_groups(EQUATIONS[dataset], split) for split in trajectories}
    if trajectories == wholes:
        return [command]
    commands = []
    for split, size in trajectories.items():
        groups = -(-size // TRAJECTORIES_PER_GROUP)
        part = f"  # the first {size:,} of its trajectories" if size % TRAJECTORIES_PER_GROUP else ""
        commands.append(f"{command} --split {split} --groups {groups}{part}")
    return commands


def _training_text(config: ModelConfig, metrics: dict[str, Any]) -> str:
    training, sampling = metrics["training"], metrics["sampling"]
    changes = "".join(f" --set {key}={json_word(value)}" for key, value in sampling.items())
    now = {stage: part for stage, part in training.items() if not stage.endswith(" before")}
    last = list(now)[-1]
    # Cards of older models do not say it.
    half = " --half" if metrics.get("half") else ""
    most = f" --members {metrics['members']}" if metrics.get("members") else ""
    folders = [part["command"].split(" --out ")[1].split()[0] for part in training.values()]
    repeated = len(set(folders)) < len(folders)
    runs = "".join(f" --{stage} runs/{stage}" for stage in now if stage != last)
    lines = [
        "Data of this project's own solver (seed 0), then the tokenizer, the dynamics on its latent frames, and whole "
        "forecasts by a proper score, as far as they are listed"
        + (", and at last what draws frame 0 alone" if "first-frame" in now else "")
        + (" (commands of one `--out` in folders of their own):" if repeated else ":"),
        "```",
        *_data_commands(config.dataset, metrics.get("data", {})),
        *(part["command"] for part in now.values()),
        f"enma-fast train publish runs/{last}{runs} --data data --out {config.name}{changes}{most}{half}",
        "```",
        "",
    ]
    if len(now) < len(training):
        lines += [
            "Runs that begin with `--from` and a model's name, or its name and `-before`, started from the weights of "
            "its version before this one, those with `--from runs/NAME-before` from an earlier run (add `--begun-from` "
            "to `publish`). These are the commands before, not always in the order of their time:",
            "```",
            *(part["command"] for stage, part in training.items() if stage not in now),
            "```",
            "",
        ]
    lines += [
        f"The sampler {_steps(config)}, and scales its noise by {config.sampling.temperature:g}"
        + (", chosen on validation data." if "temperature" in sampling else ".")
        + (" Weights are stored in fp16 and computed with in fp32." if half else ""),
        "",
    ]
    head = ["stage", "steps", "trajectories seen", "hours", "precision", "machine", "torch"]
    rows = []
    for stage, part in training.items():
        machine = part["machine"]
        where = machine["gpu"] or f"{machine['cpu']}, {counted(machine['threads'], 'thread')}"
        where = where if part["ranks"] == 1 else f"{part['ranks']} x {where}"
        hours = f"{part['seconds'] / 3600:.2f}"
        seen = f"{part['trajectories']:,}"
        rows.append([stage, f"{part['steps']:,}", seen, hours, part["precision"], where, part["versions"]["torch"]])
    return "\n".join(lines) + markdown_table(head, rows)
