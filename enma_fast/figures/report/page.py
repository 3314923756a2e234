"""The page of a report: scores, figures, provenance and viewer, filled into the template `page.html`."""

from __future__ import annotations

import html
import io
import json
import re
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from ...drawing.forecast import Forecast
from ...drawing.physics import spectrum_figure
from ...drawing.plots import REMEDY, forecast_panels
from ...drawing.style import ENSEMBLE, ERROR, INK, TRUTH
from ...errors import EnmaError
from ...evaluation.metrics import SCORES
from ...evaluation.metrics import columns as score_columns
from ...evaluation.physics import Physics
from ...store.layout import KNOWN, MASKED, OUTSIDE, POINTS, TOGETHER
from ...utils.extras import load_extra
from ...utils.files import complete_file
from ...utils.text import counted, times
from .reader import StoreReader, blocks, quiet
from .viewer import MANY_TRAJECTORIES, Thinning

# Longest text of an attribute and most rows of a table that the page shows.
_LONGEST, _MOST_ROWS = 2000, 60
# Colour of the figures -> colour of the page, which depends on its light or dark theme.
COLOURS = {INK: "currentColor", TRUTH: "currentColor", ENSEMBLE: "var(--accent)", ERROR: "var(--error)"}
_LAWS = {"conserved": "should stay: change", "decays": "should only decay: growth"}
_ATTRIBUTES = {
    "model": "model",
    "task": "task",
    "data_name": "data",
    "data_file": "data file",
    "observed_frames": "observed frames",
    POINTS: "points observed of each frame",
    MASKED: "share of the places without values",
    KNOWN: "known inputs",
    TOGETHER: "frames decided together",
    "seed": "seed",
    "sampling": "sampler",
    "precision": "precision",
    "command": "command",
    "versions": "versions",
    "model_sha256": "SHA-256 of the model",
    "config_sha256": "SHA-256 of its settings",
    "data_sha256": "SHA-256 of the data",
    "input_sha256": "SHA-256 of what was used of them",
    "arithmetic": "arithmetic",
    OUTSIDE: "trajectories outside the training data",
}


@quiet
def write_report(store: str | Path, out: str | Path, *, truth: str | Path | None = None) -> dict[str, Any]:
    """Write a report of a forecast store as one HTML page; it appears complete or not at all.

    Parameters
    ----------
    store : the forecast store
    out : path of the page, ending in .html; an old file is replaced
    truth : field file with the truth, if the store holds none

    Returns
    -------
    dict
        `report`, the path; `num_bytes`; `num_trajectories`, `num_members`; `scores` over all trajectories and channels
        as from `metrics.Scores.result`, or None without a truth; `left_out`, number -> why a trajectory is not scored;
        `notes`, sentences on the data that the viewer leaves out to bound the size of the page.

    Raises
    ------
    EnmaError
        If the store cannot be read, if `out` is a folder, does not end in .html or cannot be written, or if an extra is
        missing.
    """
    out = Path(out)
    _require_page(out)
    reader = StoreReader(store, truth)
    many = len(reader.channels) > 1
    # Scores of all channels together (None), and of each one if there are several.
    channels = (None, *range(len(reader.channels))) if many else (None,)
    pools = {channel: reader.scores(channel) for channel in channels}
    thinning, physics = Thinning.choose(reader), reader.physics()
    series, rows = [], []
    for place, trajectory in enumerate(reader):
        for channel, pooled in pools.items():
            scores = pooled.add(trajectory)
            if channel is None:
                rows.append(scores)
                if scores is not None and trajectory.members is not None and trajectory.truth is not None:
                    physics.add(
                        blocks(trajectory.members),
                        trajectory.truth,
                        trajectory.observed,
                        amplitude=trajectory.amplitude,
                    )
        if place in thinning.places:
            series.append([thinning.encode(reader.forecast(trajectory, c)) for c in range(thinning.channels)])
    results = {channel: pooled.result() for channel, pooled in pools.items()}
    case = reader.trajectory(thinning.places[0])
    figures = [
        _figures(reader.forecast(case, c), results[c if many else None], reader) for c in range(thinning.channels)
    ]
    if said := physics.result(has_truth=reader.has_truth):
        figure = spectrum_figure(physics.spectra(), said["spectrum_error"], mirrored=physics.mirrored)
        figures.append(_figure(figure, "spectrum, all channels" if many else "spectrum"))
    left_out = pools[None].left_out
    values = {
        "title": html.escape(f"Forecast of {reader.attributes.get('data_name') or reader.path.name}"),
        "summary": html.escape(_summary(reader)),
        "notes": "".join(f"<li>{html.escape(note)}</li>" for note in thinning.notes),
        "scores": _outside(reader)
        + _score_tables(reader, results, rows, left_out)
        + _physics_table(physics, has_truth=reader.has_truth),
        "figures_of": f"Maps and fan charts are of trajectory {case.number}. Scores are of all trajectories.",
        "figures": "".join(figures),
        "provenance": _provenance(reader),
        "data": _script_json(thinning.document(reader, series)),
    }
    template = Path(__file__).with_suffix(".html").read_text(encoding="utf-8")
    page = re.sub(r"\{\{(\w+)\}\}", lambda match: values[match[1]], template)
    # A file name may have bytes that are not UTF-8.
    encoded = page.encode(errors="backslashreplace")
    with complete_file(out, remedy=REMEDY) as temporary:
        temporary.write_bytes(encoded)
    return {
        "report": str(out),
        "num_bytes": len(encoded),
        "num_trajectories": len(reader),
        "num_members": reader.num_members,
        "scores": results[None],
        "left_out": {str(number): reason for number, reason in left_out.items()},
        "notes": thinning.notes,
    }


def _require_page(out: Path) -> None:
    """Raise `EnmaError` for a page that cannot be written, before any work is done."""
    if out.is_dir():
        raise EnmaError(f"{out}: is a folder; give --out a file that ends in .html")
    if out.suffix.lower() not in (".html", ".htm"):
        raise EnmaError(f"{out}: a report is an HTML page; end --out in .html")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out.parent):
            pass
    except OSError as error:
        raise EnmaError(f"{out}: cannot be written ({error}); choose another --out") from error


def _summary(reader: StoreReader) -> str:
    attrs, seen = reader.attributes, reader.attributes.get("observed_frames")
    parts = [counted(len(reader), "trajectory")]
    if reader.num_members:
        each = " each" if len(reader) > 1 else ""
        parts.append(f"{counted(reader.num_members, 'member')}{each}")
    frames = counted(len(reader.times), "frame")
    part = f" at {reader.seen_points} each" if reader.seen_points else ""
    parts.append(f"{frames} from {seen} observed{part}" if seen else frames)
    parts.append(f"on {times(map(len, reader.coords))} points")
    by = f" by {attrs['model']}" if "model" in attrs else ""
    return f"{', '.join(parts)}{by}."


def _outside(reader: StoreReader) -> str:
    """Warning that observed frames of some trajectories lie outside the training data of the model, if they do."""
    outside = reader.attributes.get(OUTSIDE)
    numbers = [number for number in reader.numbers if number in outside] if isinstance(outside, list) else []
    if not numbers:
        return ""
    listed = ", ".join(map(str, numbers[:_MOST_ROWS])) + (", ..." if len(numbers) > _MOST_ROWS else "")
    return (
        f'<p role="note"><strong>Outside the training data:</strong> the observed frames of {len(numbers)} of '
        f"{counted(len(reader), 'trajectory')} ({html.escape(listed)}). There the spread of the members does not tell "
        "their error.</p>"
    )


def _score_tables(
    reader: StoreReader, results: dict[Any, Any], rows: list[dict[str, Any] | None], left_out: dict[int, str]
) -> str:
    overall = results[None]
    reasons = "".join(
        f"<p>Trajectory {number} is not scored: {html.escape(reason)}.</p>"
        for number, reason in list(left_out.items())[:_MOST_ROWS]
    )
    if overall is None:
        return reasons or "<p>No truth is known for these trajectories, so there are no errors and no calibration.</p>"
    if not reader.has_truth:
        reasons += (
            "<p>Generated trajectories have no truth. What stands in its place is another draw of the environment.</p>"
        )
    columns = [("all channels" if len(results) > 1 else "value", overall)]
    columns += [(reader.channels[c], scores) for c, scores in results.items() if c is not None and scores]
    caption = f"Over {counted(overall['num_trajectories'], 'trajectory')}, all frames and points"
    body = [
        [score.label, *(_number(scores[name]) for _, scores in columns)]
        for name, score in SCORES.items()
        if any(scores[name] is not None for _, scores in columns)
    ]
    text = reasons + _table(caption, ["score", *(name for name, _ in columns)], body)
    if not 1 < len(rows) <= MANY_TRAJECTORIES:
        return text
    shown = [column for column in score_columns("trajectories") if overall[column.name] is not None]
    parameters = dict(list(reader.columns.items())[:8])
    body = [
        [str(number), *("-" if scores is None else _number(scores[column.name]) for column in shown)]
        + [_number(values[i]) for values in parameters.values()]
        for i, (number, scores) in enumerate(zip(reader.numbers, rows, strict=True))
    ]
    return text + _table("Each trajectory", ["trajectory", *(column.short for column in shown), *parameters], body)


def _physics_table(physics: Physics, *, has_truth: bool) -> str:
    """Table of the members' physics beside the truth's; nothing without members or truth."""
    scores = physics.result(has_truth=has_truth)
    if scores is None:
        return ""
    rows = [
        [f"{q['name']} ({_LAWS[q['law']]})", _number(q["violation"]), _number(q["truth"])] for q in scores["quantities"]
    ]
    rows.append(["spectrum, in decades from the truth's", _number(scores["spectrum_error"]), "0"])
    if has_truth:
        rows.append(["mean square, distance from the truth's", _number(scores["energy_error"]), "0"])
    return _table("Physics, relative to the observed amplitude", ["", "members", "truth"], rows)


def _table(caption: str, head: list[str], rows: list[list[str]]) -> str:
    """Table that scrolls sideways if it is wider than the page; its cells are HTML, except those of column 0."""
    top = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in head)
    body = "".join(
        f'<tr><th scope="row">{html.escape(row[0])}</th>{"".join(f"<td>{cell}</td>" for cell in row[1:])}</tr>'
        for row in rows
    )
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{html.escape(caption)}"><table>'
        f"<caption>{html.escape(caption)}</caption><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _number(value: Any) -> str:
    """A number, rounded for reading and in full for programs; other values as text."""
    if value is None:
        return "-"
    if not isinstance(value, (int, float, np.number)):
        return html.escape(str(value))
    shown = str(value) if isinstance(value, (int, np.integer)) else f"{value:.4g}"
    return f'<data value="{float(value)!r}">{shown}</data>'


def _provenance(reader: StoreReader) -> str:
    attrs = reader.attributes
    standard = [name for name in _ATTRIBUTES if name in attrs]
    others = [name for name in attrs if name not in (*_ATTRIBUTES, "channels", "num_members")]
    entries = [("store", reader.path.name), ("channels", ", ".join(reader.channels))]
    if reader.num_members:
        entries.append(("members", str(reader.num_members)))
    for name in (*standard, *others)[:_MOST_ROWS]:
        value = attrs[name]
        entries.append(
            (_ATTRIBUTES.get(name, name), value if isinstance(value, str) else json.dumps(value, default=str))
        )
    return "".join(
        f"<dt>{html.escape(_shortened(name))}</dt><dd>{html.escape(_shortened(text))}</dd>" for name, text in entries
    )


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} ... ({len(text)} characters)"


def _figures(forecast: Forecast, scores: dict[str, Any] | None, reader: StoreReader) -> str:
    """Panels of one channel as inline SVG, in the colours of the page."""
    parts = []
    for label, figure in forecast_panels(forecast, scores=scores).items():
        parts.append(_figure(figure, f"{label}, {forecast.name}" if len(reader.channels) > 1 else label))
    return "".join(parts)


def _figure(figure: Any, label: str) -> str:
    caption = label[:1].upper() + label[1:]
    return f"<figure>{_inline_svg(figure, label)}<figcaption>{html.escape(caption)}</figcaption></figure>"


def _inline_svg(figure: Any, label: str) -> str:
    buffer = io.StringIO()
    matplotlib = load_extra("matplotlib", "plots")
    # A fixed salt: the same store gives the same page, since ids are salted hashes of the elements.
    with matplotlib.rc_context({"svg.hashsalt": label, "svg.fonttype": "path"}):
        figure.savefig(buffer, format="svg", transparent=True, dpi=110, metadata={"Date": None})
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    for drawn, shown in COLOURS.items():
        text = text.replace(drawn, shown)
    return text.replace("<svg ", f'<svg role="img" aria-label="{html.escape(label)}" ', 1)


def _script_json(document: Any) -> str:
    """JSON that cannot end the script element that contains it."""
    text = json.dumps(document, separators=(",", ":"), allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
