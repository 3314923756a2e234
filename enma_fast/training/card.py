"""Model cards: what a model was trained on, by which recipe, and what it reaches, all measured.

`publish` writes a checkpoint folder with the card (`README.md`) and the same figures for programs (`metrics.json`).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..config import ModelConfig
from ..data import FieldFile, count, read, spread_out
from ..errors import EnmaError
from ..evaluation.metrics import columns, relative_l2
from ..evaluation.paper import paper_source
from ..evaluation.scoring import paper_table, score
from ..models.checkpoint import (
    IN_RUN,
    MANIFEST,
    METRICS,
    RECIPE,
    available,
    load_config,
    load_model,
    locate,
    round_weights,
    save_model,
)
from ..models.covariance import FieldCovariance
from ..models.envelope import Envelope
from ..models.floors.equation import EquationSolver
from ..models.floors.equation_text import equation_text
from ..models.model import Model
from ..utils.text import counted, markdown_table, short, times
from .loop import RunOptions
from .ranks import join_ranks
from .recipes import Recipe, read_recipe
from .run import DATA, Progress, account, data_file, generated, train

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
# Members of the rows that models are compared by.
_MEMBERS = 16
# What the columns of a card's table of scores are.
_SCORES = (
    ["rel. L2", "relative L2 error of the ensemble mean, over all forecast frames: the mean over trajectories"],
    ["median, 90 %", "quantiles of the same over trajectories. Those that decay to zero dominate the mean only"],
    ["one member", "the error of single members, averaged"],
    ["CRPS", "the fair one, in the field's units, and divided by the RMS of the observed frames"],
    ["RMSCE", "of a Gaussian with the ensemble's mean and spread"],
    ["spread/skill", "1 for a calibrated ensemble"],
    ["solver", "distance of a generated trajectory from the solver's own with the same first frame"],
    ["outside", "trajectories that `forecast` warns of: what is observed is unlike the training data"],
    ["`generation`", "has no truth: CRPS, calibration and RMS are of another trajectory of the environment"],
)
_HALF = "\n\nWeights are stored in fp16 and computed with in fp32."
_ROW_DROPS = ("per_frame", "rank_histogram", "channels")


def publish(
    run: Path,
    *,
    out: Path,
    data_dir: Path | None = None,
    limit: int | None = None,
    members: int | None = None,
    half: bool = False,
    seed: int = 0,
    progress: Callable[[int, int, str], None] | None = None,
) -> dict[str, Any]:
    """Score a trained model and write it with card and metrics.

    Parameters
    ----------
    run : finished run folder of a recipe
    out : checkpoint folder to write
    data_dir : folder of the training and test files; by default that of the run, in which test files are generated
    limit : score the first so many trajectories of each file
    members : leave out the cases of larger ensembles; by default there are none
    half : round the weights to fp16 before they are scored, and store them so: half the size
    seed : of the noise
    progress : called with (cases done, cases, name of the case)

    Returns
    -------
    dict
        The contents of `metrics.json`: `rows` of scores, the `tokenizer`'s reconstruction error, the `equation` that a
        floor found, the `training`, and, of a model without a network, the best shipped model that `learned`.

    Raises
    ------
    EnmaError
        If the run is not finished, data is missing, or `out` holds other files.
    """
    if out.exists() and not (out.is_dir() and ((out / MANIFEST).is_file() or not any(out.iterdir()))):
        raise EnmaError(f"{out}: exists and is not a checkpoint; choose another --out")
    recipe = read_recipe(run / RECIPE)
    training = account(run, recipe)
    model = load_model(locate(run / IN_RUN))
    if half:
        round_weights(model)
    if data_dir is None:
        data_dir = generated(recipe, run / DATA, SPLITS)
    tell_training(model, data_file(data_dir, model.config.dataset, "train"))
    files = {split: read(data_file(data_dir, model.config.dataset, split)) for split in SPLITS}
    metrics = {
        "seed": seed,
        **measure(model, files, limit=limit, members=members, seed=seed, progress=progress),
        "equation": equation_of(model, files["test-in"].channels),
        "learned": _learned(model.config) if is_closed_form(training) else None,
        "training": training,
        "members": members,
        "half": half,
    }
    section = training_text(training) + (_HALF if half else "")
    save_model(model, out, card=card_text(model.config, metrics, section), metrics=metrics, half=half)
    return metrics


def train_recipe(
    recipe: Recipe,
    *,
    options: RunOptions,
    data_dir: Path | None = None,
    start: str | Path | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Train a recipe, and write the model with the card of its training; as :func:`enma_fast.training.run.train`.

    Returns the `training` (:func:`enma_fast.training.run.account`), and the `checkpoint`: None if
    `options.stop_after` ended the run before.
    """
    model = train(recipe, options=options, data_dir=data_dir, start=start, progress=progress)
    out = options.out
    if model is not None and join_ranks().is_first and not (out / IN_RUN / MANIFEST).is_file():
        tell_training(model, data_file(data_dir or out / DATA, recipe.model.dataset, "train"))
        assert model.envelope is not None
        metrics: dict[str, Any] = {
            "training": account(out, recipe),
            "equation": equation_of(model, model.envelope.channels),
        }
        card = "\n\n".join([*_about(model.config, metrics), "## Training", training_text(metrics["training"])])
        save_model(model, out / IN_RUN, card=f"{card}\n")
    return {"checkpoint": None if model is None else str(out / IN_RUN), "training": account(out, recipe)}


def is_closed_form(training: Mapping[str, Any]) -> bool:
    """Whether no stage of a training took a step, so that the floor is the model."""
    stages = training.get("stages", {})
    return bool(stages) and not any(part["steps"] for part in stages.values())


def equation_of(model: Model, channels: Sequence[str]) -> list[str]:
    """The equation that a model's floor found, a line for each of the named channels; none for another floor."""
    floor, config = getattr(model.dynamics.context, "floor", None), model.config
    if not isinstance(floor, EquationSolver):
        return []
    codec = config.codec
    scales = codec.field_scale or (1.0,) * codec.field_channels
    return equation_text(floor, channels, scales=scales, spacings=codec.spacings, interval=config.frame_interval)


def _learned(config: ModelConfig) -> dict[str, Any] | None:
    """Name and errors of the best shipped model of a data set that has no floor."""
    models: list[dict[str, Any]] = []
    for name in available():
        other, metrics = load_config(name), read_metrics(locate(name))
        if other.dataset == config.dataset and getattr(other.context, "floor", None) is None and metrics is not None:
            rows = [row for row in metrics["rows"] if row["split"] == "test-in" and row["num_members"] == _MEMBERS]
            errors = {row["task"]: row["rel_l2"] for row in rows if not row["packed"] and row["rel_l2"] is not None}
            models.append({"name": name, "rel_l2": errors})
    return min(models, key=lambda each: each["rel_l2"]["temporal"], default=None)


def tell_training(model: Model, path: Path) -> None:
    """Give a model its envelope and covariance from trajectories evenly spread over the file that it was trained on."""
    data = read(path, select=slice(None, None, -(-count(path) // _TOLD)))
    units = tuple(data.units.get(channel, "1") for channel in data.channels)
    # Without any unit the file stays as it was before units were kept.
    u = model.codec.without_gaps(torch.from_numpy(data.u)).numpy()
    model.envelope = Envelope.of(u, data.channels, units if set(units) != {"1"} else ())
    if not (model.config.codec.at_points or model.config.codec.masked):
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
        "tokenizer_parameters": sum(p.numel() for p in model.codec.parameters()),
    }


@torch.inference_mode()
def reconstruction(model: Model, data: FieldFile) -> float:
    """Mean relative L2 error of fields that go through the tokenizer and back."""
    errors = []
    for u in torch.from_numpy(data.u).split(64):
        decoded = model.codec.decode(model.codec.encode(u), u.shape[1])
        errors.append(relative_l2(decoded, u))
    return float(torch.cat(errors).mean())


def read_metrics(folder: Path) -> dict[str, Any] | None:
    """`metrics.json` of a checkpoint folder, or None without one."""
    path = folder / METRICS
    return json.loads(path.read_text()) if path.is_file() else None


def _about(config: ModelConfig, metrics: Mapping[str, Any]) -> list[str]:
    """What a model is: title and first paragraphs, with the numbers of its parameters if they are known."""
    tok = config.codec
    data = (
        f"for the data set `{config.dataset}`: {times(tok.grid)} points, {config.num_frames} frames "
        f"{config.frame_interval:g} apart."
    )
    if is_closed_form(metrics.get("training", {})):
        return [f"# {config.name}", f"A forecast in closed form {data} {_closed_form(config, metrics)}"]
    latent, tokens, counts = tok.latent_frames(config.num_frames), config.num_tokens, ""
    if "num_parameters" in metrics:
        own, whole = metrics["tokenizer_parameters"], metrics["num_parameters"]
        counts = f"{whole:,} parameters, of which the tokenizer has {own:,}; "
    return [
        f"# {config.name}",
        f"An ENMA model (arXiv 2506.06158) {data} {counts}{config.num_frames} frames become "
        f"{latent} latent frames of {tokens} tokens with {config.token_channels} channels. Context: "
        f"{config.context.kind}; {_decoders(config)}.",
    ]


def _closed_form(config: ModelConfig, metrics: Mapping[str, Any]) -> str:
    """What a model without a network does, and what its scores therefore measure."""
    context: Any = config.context
    parts = ["It has no network."]
    if equation := metrics.get("equation"):
        lines = "\n".join(f"    {line}" for line in equation)
        parts.append(
            f"It solves the equation that was found in the training data:\n\n{lines}\n\n"
            "The coefficients of a trajectory are fitted to its observed frames, or to those of its context."
        )
    else:
        parts.append(
            f"It is a linear law of the kind `{context.floor}`, whose coefficients are fitted to the observed frames "
            "of a trajectory, or to those of its context, by least squares."
        )
    parts.append(f"So its scores measure {'a solver' if equation else 'least squares'} and not learning.")
    if learned := metrics.get("learned"):
        errors = learned["rel_l2"]
        parts.append(
            f"The best shipped model without such a floor is `{learned['name']}`. Its relative errors are "
            f"{short(errors['temporal'])} from 3 frames and {short(errors['initial-value'])} from one and a context."
        )
    parts.append("Another training seed gives the same forecasts, since there is no network to draw.")
    return " ".join(parts)


def card_text(config: ModelConfig, metrics: dict[str, Any], training: str) -> str:
    """The model card in Markdown, with its section on the training."""
    # Cards of older models have a dozen.
    packed = metrics.get("packed_environments", 12)
    environments = "a dozen environments" if packed == 12 else counted(packed, "environment")
    closed = is_closed_form(metrics.get("training", {}))
    drawn = "coefficients, as uncertain as the observed frames leave them" if closed else "the noise of the sampler"
    limits = [
        "- It knows the equation, initial conditions, grid, domain and frame spacing of the data set "
        f"`{config.dataset}`. It knows nothing else. Other input is refused where it can be recognised.",
        f"- It saw no frames after frame {config.num_frames} in training.",
        "- The rows of `test-out` have its error and calibration out of distribution. Where spread/skill is far below "
        "1, the spread does not tell the error. `forecast` warns of observed frames that are unlike the training "
        "data, and refuses them with `strict`. The column `outside` counts the warnings.",
        f"- Members of one trajectory differ by {drawn}. Their calibration is that of the rows above.",
    ]
    parts = [
        *_about(config, metrics),
        "This is an independent implementation made for speed, trained on data of this project's own solver. The "
        "authors have published their code and data: `itsakk/enma`, its generator `itsakk/PPDEGeneration`, data "
        "`2ailesB/enma-datasets`.",
        "```python\nimport enma_fast\n\n"
        f'model = enma_fast.load_model("{config.name}")\n'
        "ensemble = enma_fast.forecast(model, history, num_members=64)  # history: [3, *grid, channels]\n```",
        "## Scores",
        markdown_table(["score", "what"], _SCORES),
        _score_rows(metrics["rows"]),
        ("" if closed else _tokenizer(metrics["tokenizer"])) + f"Noise seed {metrics['seed']}. "
        "A command below gives each row. `packed` are the test files in the package: two trajectories of each of "
        f"{environments}, evenly spread over those of `data`. `enma-fast data subset data/FILE --out packed/FILE` "
        "writes them.",
        "```\n" + "\n".join(dict.fromkeys(_score_command(config, row) for row in metrics["rows"])) + "\n```",
        f"The paper's figures ({paper_source()}) are of its own data of the same equation. It does not say whether its "
        "CRPS and RMSCE are of the temporal task or of the initial value problem. Here they are in the temporal rows:",
        _paper_rows(metrics["rows"]),
        "## Training",
        training,
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
            total = len((packed if small else files)[split])
            rows = min(n for n in (total, most, limit) if n is not None)
            if (split, task, members, rows, small) not in seen:
                seen.add((split, task, members, rows, small))
                yield split, task, members, None if rows == total else rows, small


def _decoders(config: ModelConfig) -> str:
    """What decides frames, with the sizes of its layers."""
    said = []
    for what, decoder in (("frame 0", config.initial), ("frames", config.step)):
        if decoder is not None:
            sizes = dataclasses.asdict(decoder)
            layers = f" {sizes['layers']} x {sizes['width']}" if "layers" in sizes else ""
            said.append(f"{what} by {decoder.kind}{layers}")
    return ", ".join(said)


def _tokenizer(measured: Mapping[str, Any]) -> str:
    return (
        "The tokenizer alone (fields to latent frames and back): relative L2 "
        f"{short(measured['rel_l2'])} on {measured['num_trajectories']} trajectories of {measured['split']}. "
    )


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


def training_text(training: Mapping[str, Any]) -> str:
    """How a model was trained, from the account of its run: recipe, data, seed, hours and machine."""
    machine, ranks = training["machine"], training["ranks"]
    where = machine["gpu"] or f"{machine['cpu']}, {counted(machine['threads'], 'thread')}"
    rows = [
        [name, f"{part['steps']:,}", f"{part['trajectories']:,}", f"{part['seconds'] / 3600:.2f}"]
        for name, part in training["stages"].items()
    ]
    used = training["versions"]
    package = f"enma-fast {used.get('enma-fast', '')}".strip()
    package += f" of commit {commit}" if (commit := training.get("commit")) else ""
    files = ", ".join(f"`{file}` {digest[:16]}..." for file, digest in training["data"].items())
    begun = f" It began with the weights {training['start'][:16]}..." if training["start"] else ""
    if closed := is_closed_form(training):
        seconds = sum(part["cpu_seconds"] for part in training["stages"].values())
        took = f"{seconds:.3g} CPU seconds, without making the data,"
    else:
        hours = sum(part["seconds"] for part in training["stages"].values()) / 3600
        took = f"{hours:.2f} hours in {training['precision']}"
    recipe = training["recipe"]
    return "\n\n".join(
        [
            f"{took} on {where if ranks == 1 else f'{ranks} x {where}'}, with {package}, Torch {used['torch']} and "
            f"seed {training['seed']}. SHA-256 of the data: {files}.{begun}",
            *([] if closed else [markdown_table(["stage", "steps", "trajectories seen", "hours"], rows)]),
            f"The recipe, which `enma-fast train` takes, has the SHA-256 {sha256(recipe.encode()).hexdigest()[:16]}...:"
            f"\n\n```toml\n{recipe.strip()}\n```",
        ]
    )
