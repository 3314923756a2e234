"""The curves of a training while it runs: loss and validation, as a file that is written again, or in a notebook."""

from __future__ import annotations

import importlib
import io
import json
from pathlib import Path
from typing import Any

from ..errors import EnmaError
from ..utils.extras import load_extra
from .plots import require_picture, save_figure
from .style import ENSEMBLE, ERROR, STYLE, new_figure

# The error of a mean forecast, and its names by tasks.
_ERRORS = {"rel_l2": "from observed frames", "rel_l2_ivp": "from one frame and a context"}


class TrainingCurve:
    """The picture of the log of a stage (:mod:`enma_fast.training.loop`), drawn again after each validation.

    Parameters
    ----------
    log : the stage's `log.jsonl`, which need not be there yet
    out : picture to write, .png, .svg or .pdf; None to show it in the cell of a notebook

    Raises
    ------
    EnmaError
        If the picture's suffix is another one, there is no notebook, or the `[plots]` extra is missing.
    """

    def __init__(self, log: Path, out: Path | None) -> None:
        if out is not None:
            require_picture(out)
        self._display: Any = None if out is not None else _notebook()
        load_extra("matplotlib", "plots")
        self.log, self.out = log, out
        self._read, self._losses, self._scores = 0, list[tuple[int, float]](), list[dict[str, Any]]()
        self._cell: Any = None

    def refresh(self) -> bool:
        """Draw it again if there was a validation since; returns whether it was drawn."""
        before = len(self._scores)
        if self.log.is_file():
            with self.log.open("rb") as file:
                file.seek(self._read)
                lines = file.read().splitlines(keepends=True)
            # The last line may be half written.
            for line in lines:
                if line.endswith(b"\n"):
                    self._read += len(line)
                    self._add(json.loads(line))
        if len(self._scores) == before:
            return False
        figure = self.figure()
        if self.out is not None:
            save_figure(figure, self.out)
        else:
            self._show(figure)
        return True

    def figure(self) -> Any:
        """Loss of the steps, and relative errors of the validations, over the steps; a matplotlib figure."""
        matplotlib = load_extra("matplotlib", "plots")
        with matplotlib.rc_context(STYLE):
            figure = new_figure((7, 3.6))
            axes = figure.add_subplot()
            if self._losses:
                axes.plot(*zip(*self._losses, strict=True), color="#bbbbbb", linewidth=1, label="loss of the steps")
            for (name, label), color in zip(_ERRORS.items(), (ENSEMBLE, ERROR), strict=True):
                held = [(entry["step"], entry[name]) for entry in self._scores if name in entry]
                if held:
                    axes.plot(*zip(*held, strict=True), "o-", color=color, markersize=4, label=f"validation, {label}")
            axes.set(title="relative error", xlabel="step", yscale="log")
            axes.legend()
        return figure

    def _add(self, entry: dict[str, Any]) -> None:
        if "validation" in entry:
            self._scores.append({"step": entry["step"], **entry["validation"]})
        elif "loss" in entry:
            self._losses.append((entry["step"], entry["loss"]))

    def _show(self, figure: Any) -> None:
        drawn = io.BytesIO()
        figure.savefig(drawn, dpi=110, format="png")
        picture = self._display.Image(drawn.getvalue())
        if self._cell is None:
            self._cell = self._display.display(picture, display_id=True)
        else:
            self._cell.update(picture)


def _notebook() -> Any:
    """What shows pictures in the cell of a notebook."""
    try:
        return importlib.import_module("IPython.display")
    except ImportError:
        raise EnmaError("plot: there is no notebook here; name a picture to write, such as curve.png") from None
