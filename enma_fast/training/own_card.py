"""The model card of a model that was trained on the user's own data."""

from __future__ import annotations

from typing import Any

from ..evaluation.baselines import BASELINES
from ..evaluation.channel_scores import hidden_changes
from ..utils.text import boundaries, markdown_table, short, times
from .card import training_text
from .own_plan import Plan, moves


def own_card(plan: Plan, metrics: dict[str, Any], command: str) -> str:
    """The card in Markdown: the data, the scores beside the baselines, the cost, the limits."""
    model = plan.recipe.model
    tok, name = model.codec, model.name
    held = ", ".join(
        f"{split} {plan.trajectories[split]} in {plan.environments[split]} environments" for split in plan.trajectories
    )
    shifted = moves(plan.recipe)
    parts = [
        f"# {name}",
        f"An ENMA model (arXiv 2506.06158) of size `{plan.request.size}`, trained by `enma-fast train` on own data: "
        f"{times(tok.grid)} points ({boundaries(tok.periodic)}) of a domain of {times(tok.lengths)}, "
        f"{model.num_frames} frames {model.frame_interval:g} apart, channels {', '.join(plan.channels)}, each "
        f"standardised. {plan.num_parameters:,} parameters.",
        "## Data",
        f"Trajectories of each split: {held}. SHA-256 of the files: "
        + ", ".join(f"`{file}` {digest[:16]}..." for file, digest in plan.data.items())
        + ".",
        "## Scores",
        "On the held-out test split, over all forecast frames. Relative L2 is that of the mean of the members. "
        "Persistence repeats the last observed frame, climatology is the mean of the training trajectories at each "
        "point. CRPS is fair and in the units of the fields, spread/skill is 1 for a calibrated ensemble."
        + "".join(f" {note}" for note in notes(plan)),
        _rows(metrics["rows"]),
        _channels(metrics["rows"]),
        "## Training",
        f"```\n{command}\n```",
        training_text(metrics["training"]),
        "## Limits",
        "\n".join(
            [
                "- It knows the data it was trained on and nothing else; `forecast` warns where observed frames lie "
                "outside them.",
                f"- Frames beyond {model.num_frames} were not seen in training.",
                "- The physics was taken to be the same at every place of the periodic axes"
                + _views(metrics["sampling"])
                if shifted
                else "- Places are told apart: forecasts of shifted fields are no shifted forecasts.",
                "- Forecasts from one frame and a context were trained."
                if plan.contexts
                else "- Some environments have one trajectory, so forecasts from a context were not trained.",
            ]
        ),
    ]
    return "\n\n".join(parts) + "\n"


def _views(sampling: dict[str, Any]) -> str:
    if sampling["shifts"] is None:
        return "."
    return (
        f": members see the field from {sampling['shifts']} places, and their noise is scaled by "
        f"{sampling['temperature']:g}, chosen on validation data."
    )


def notes(plan: Plan) -> list[str]:
    """Sentences that a reader of the scores needs for these fields."""
    tok = plan.recipe.model.codec
    pairs = zip(plan.channels, tok.field_mean or (), tok.field_scale or (), strict=True)
    return [said for name, mean, scale in pairs if (said := hidden_changes(name, mean, scale)) is not None]


def _rows(rows: list[dict[str, Any]]) -> str:
    head = ["task", "trajectories", "members", "rel. L2", "median"]
    head += [word for name in BASELINES for word in (name, "its median")]
    lines = []
    for row in rows:
        parts = (row, *(row[name] for name in BASELINES))
        errors = [part[key] for part in parts for key in ("rel_l2", "rel_l2_median")]
        scores = (short(value) for value in (*errors, row["crps"], row["spread_skill"]))
        lines.append([row["task"], row["num_trajectories"], row["num_members"], *scores])
    return markdown_table([*head, "CRPS", "spread/skill"], lines)


def _channels(rows: list[dict[str, Any]]) -> str:
    keys = ["rmse", *(f"{name}_rmse" for name in BASELINES)]
    lines = [
        [row["task"], channel, errors["unit"], *(short(errors[key]) for key in keys)]
        for row in rows
        for channel, errors in row["channels"].items()
    ]
    return markdown_table(["task", "channel", "unit", "RMS error of the mean", *(f"of {n}" for n in BASELINES)], lines)
