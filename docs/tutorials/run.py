"""Runs notebooks from top to bottom, each in an empty folder, and stores them with what they print and draw.

python docs/tutorials/run.py docs/tutorials/first-forecast.ipynb

It needs no Jupyter. A cell that begins with %%bash is a script of the shell.
"""

import base64
import contextlib
import io
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

SHELL = "%%bash\n"


def outputs(source: str, names: dict[str, Any]) -> list[dict[str, Any]]:
    """What a cell prints to standard output, and the figures that it draws; it reads and sets `names`."""
    if source.startswith(SHELL):
        command = ["bash", "-euc", source.removeprefix(SHELL)]
        printed = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    else:
        with contextlib.redirect_stdout(io.StringIO()) as told:
            exec(compile(source, "cell", "exec"), names)
        printed = told.getvalue()
    found: list[dict[str, Any]] = []
    if printed:
        lines = "\n".join(line.rstrip() for line in printed.strip("\n").split("\n"))
        found.append({"name": "stdout", "output_type": "stream", "text": lines.splitlines(keepends=True)})
    pyplot = sys.modules.get("matplotlib.pyplot")
    for number in pyplot.get_fignums() if pyplot else ():
        picture = io.BytesIO()
        pyplot.figure(number).savefig(picture, format="png", dpi=100)
        data = {"image/png": base64.b64encode(picture.getvalue()).decode()}
        found.append({"data": data, "metadata": {}, "output_type": "display_data"})
    if pyplot:
        pyplot.close("all")
    return found


def run(notebook: Path) -> None:
    """Run the cells of a notebook in an empty folder, and store it with their outputs."""
    document = json.loads(notebook.read_text(encoding="utf-8"))
    cells = [cell for cell in document["cells"] if cell["cell_type"] == "code"]
    names: dict[str, Any] = {"__name__": "__main__"}
    os.environ.setdefault("MPLBACKEND", "agg")
    os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        for number, cell in enumerate(cells, 1):
            cell.update(execution_count=number, outputs=outputs("".join(cell["source"]), names))
    notebook.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    for path in sys.argv[1:]:
        run(Path(path).resolve())
