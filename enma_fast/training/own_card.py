"""The model card of a model that was trained on the user's own data, and the rows of its scores."""

from __future__ import annotations

from typing import Any

from ..evaluation.channel_scores import hidden_changes
from ..utils.text import boundaries, markdown_table, short, times
from .card import training_text
from .own_data import TEST
from .own_plan import Plan

# Test trajectories that are scored at most.
SCORED = 64
# Of another forecast it is said how its error compares, if that is less than this many times the model's.
_CLOSE = 1.02
HEAD = ("task", "forecast", "rel. L2", "median", "CRPS", "spread/skill")


def own_card(plan: Plan, metrics: dict[str, Any], command: str) -> str:
    """The card in Markdown: the data, the scores beside those of other methods, the cost, the limits."""
    model = plan.recipe.model
    tok, name = model.codec, model.name
    held = ", ".join(
        f"{split} {plan.trajectories[split]} in {plan.environments[split]} environments" for split in plan.trajectories
    )
    parts = [
        f"# {name}",
        f"A field model of size `{plan.request.size}`, trained by `enma-fast train` on own data: "
        f"{times(tok.grid)} points ({boundaries(tok.periodic)}) of a domain of {times(tok.lengths)}, "
        f"{model.num_frames} frames {model.frame_interval:g} apart, channels {', '.join(plan.channels)}, each "
        f"standardised. {plan.num_parameters:,} parameters."
        + (f" Known inputs: {', '.join(map(str, model.known))}." if model.known else ""),
        "## Data",
        f"Trajectories of each split: {held}. SHA-256 of the files: "
        + ", ".join(f"`{file}` {digest[:16]}..." for file, digest in plan.data.items())
        + ".",
        "## Scores",
        "On the held-out test split, over all forecast frames. Relative L2 is that of the mean of the members. "
        "Persistence repeats the last observed frame, climatology is the mean of the training trajectories at each "
        "point, and linear is the best forecast in closed form. CRPS is fair and in the units of the fields, that of a "
        "single forecast is its absolute error; spread/skill is 1 for a calibrated ensemble."
        + "".join(f" {note}" for note in notes(plan, metrics)),
        markdown_table(HEAD, score_rows(metrics["rows"], short)),
        _channels(metrics["rows"]),
        "## Training",
        f"```\n{command}\n```",
        training_text(metrics["training"]),
        f"Of the network's correction {metrics['size']:g} is added, and what members draw is multiplied by "
        f"{metrics['spread'][0]:.3g}, beside a context by {metrics['spread'][1]:.3g}: both were chosen on validation "
        "data.",
        "## Limits",
        "\n".join(
            [
                "- It knows the data it was trained on and nothing else; `forecast` warns where observed frames lie "
                "outside them.",
                f"- Frames beyond {model.num_frames} were not seen in training.",
                "- Forecasts from one frame and a context were trained."
                if plan.contexts
                else "- Some environments have one trajectory, so forecasts from a context were not trained.",
            ]
        ),
    ]
    return "\n\n".join(parts) + "\n"


def notes(plan: Plan, metrics: dict[str, Any]) -> list[str]:
    """Sentences that a reader of the scores needs."""
    tok = plan.recipe.model.codec
    pairs = zip(plan.channels, tok.field_mean or (), tok.field_scale or (), strict=True)
    said = [text for name, mean, scale in pairs if (text := hidden_changes(name, mean, scale)) is not None]
    said += [f"The equation of the training data: {line}." for line in metrics.get("equation", ())]
    if plan.linear is not None:
        said.append(f"The linear forecast is of the kind {plan.linear!r}.")
    if plan.right:
        said.append(f"The floor {plan.best} is right, so no network was trained.")
        return said
    if metrics.get("alone"):
        said.append(f"{plan.best} alone forecasts validation data better than the network, so the model is that.")
    for row in metrics["rows"]:
        scored, total = row["num_trajectories"], plan.trajectories[TEST]
        if scored < min(total, SCORED):
            said.append(f"Task {row['task']}: scored on {scored} of {total} trajectories, since the time was over.")
        best = min(row["methods"], key=lambda name: row["methods"][name]["rel_l2"])
        ratio = row["methods"][best]["rel_l2"] / row["rel_l2"]
        if ratio < _CLOSE:
            where = "above" if ratio > 1 else "below"
            said.append(f"Task {row['task']}: the error of {best} is {100 * abs(ratio - 1):.1f} % {where} the model's.")
    return said


def score_rows(rows: list[dict[str, Any]], shown: Any) -> list[list[str]]:
    """The model and other methods, a row each for each task, with numbers as `shown` writes them."""
    lines = []
    for row in rows:
        for name, part in (*row["methods"].items(), ("model", row)):
            numbers = [part["rel_l2"], part["rel_l2_median"], part["crps"], part.get("spread_skill")]
            lines.append([row["task"], name, *map(shown, numbers)])
    return lines


def _channels(rows: list[dict[str, Any]]) -> str:
    names = list(rows[0]["methods"])
    keys = ["rmse", *(f"{name}_rmse" for name in names)]
    lines = [
        [row["task"], channel, errors["unit"], *(short(errors[key]) for key in keys)]
        for row in rows
        for channel, errors in row["channels"].items()
    ]
    return markdown_table(["task", "channel", "unit", "RMS error of the mean", *(f"of {n}" for n in names)], lines)
