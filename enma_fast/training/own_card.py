"""The model card of a model that was trained on the user's own data."""

from __future__ import annotations

from typing import Any

from ..utils.text import boundaries, markdown_table, short, times
from .own_plan import Plan


def own_card(plan: Plan, metrics: dict[str, Any], command: str) -> str:
    """The card in Markdown: the data, the scores beside persistence, the cost, the limits."""
    model = plan.preset.model
    tok, name = model.tokenizer, model.name
    held = ", ".join(
        f"{split} {plan.trajectories[split]} in {plan.environments[split]} environments" for split in plan.trajectories
    )
    shifted = plan.preset.forecast_training.shift
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
        "Persistence repeats the last observed frame. CRPS is fair and in the units of the fields, spread/skill is 1 "
        "for a calibrated ensemble.",
        _rows(metrics["rows"]),
        _channels(metrics["rows"]),
        "## Training",
        f"```\n{command}\n```",
        _cost(metrics["training"]),
        "## Limits",
        "\n".join(
            [
                "- It knows the data it was trained on and nothing else; `forecast` warns where observed frames lie "
                "outside them.",
                f"- Frames beyond {model.num_frames} were not seen in training.",
                "- The physics was taken to be the same at every place of the periodic axes."
                if shifted
                else "- Places are told apart: forecasts of shifted fields are no shifted forecasts.",
                "- Forecasts from one frame and a context were trained."
                if plan.contexts
                else "- Some environments have one trajectory, so forecasts from a context were not trained.",
            ]
        ),
    ]
    return "\n\n".join(parts) + "\n"


def _rows(rows: list[dict[str, Any]]) -> str:
    head = ["task", "trajectories", "members", "rel. L2", "median", "persistence", "its median", "CRPS", "spread/skill"]
    lines = [
        [
            row["task"],
            row["num_trajectories"],
            row["num_members"],
            *(short(row[key]) for key in ("rel_l2", "rel_l2_median")),
            *(short(row["persistence"][key]) for key in ("rel_l2", "rel_l2_median")),
            *(short(row[key]) for key in ("crps", "spread_skill")),
        ]
        for row in rows
    ]
    return markdown_table(head, lines)


def _channels(rows: list[dict[str, Any]]) -> str:
    lines = [
        [row["task"], channel, short(errors["rmse"]), short(errors["persistence_rmse"])]
        for row in rows
        for channel, errors in row["channels"].items()
    ]
    return markdown_table(["task", "channel", "RMS error of the mean", "of persistence"], lines)


def _cost(training: dict[str, Any]) -> str:
    lines = [
        [
            stage,
            f"{part['steps']:,}",
            f"{part['trajectories']:,}",
            f"{part['seconds'] / 60:.1f}",
            part["machine"]["cpu"],
        ]
        for stage, part in training.items()
    ]
    return markdown_table(["stage", "steps", "trajectories seen", "minutes", "machine"], lines)
