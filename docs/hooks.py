"""Hooks of the site: pages from elsewhere in the tree and of notebooks, generated references, equations as MathML."""

from __future__ import annotations

import base64
import html
import json
import posixpath
import re
from pathlib import Path
from typing import Any

import config_reference
import latex2mathml.converter
import native_reference
import typer
from mkdocs.structure.files import File, Files
from tutorials.run import SHELL

from enma_fast.cli import app

ROOT = Path(__file__).resolve().parents[1]
# File of the tree -> page of the site.
ELSEWHERE = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    **{
        f"docs/tutorials/{path.name}": f"tutorials/{path.stem}.md"
        for path in sorted(ROOT.glob("docs/tutorials/*.ipynb"))
    },
    **{
        str(card.relative_to(ROOT)): f"models/{card.parent.name}.md"
        for card in sorted((ROOT / "enma_fast" / "pretrained").glob("*/README.md"))
    },
}
COMMAND_LINE = "reference/cli.md"

_LINK = re.compile(r"(\]\()(?![a-z]+:|#)([^)#\s]+)")
_MATH = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)
_ROLE = re.compile(r":(?:class|func|meth|mod):<code>~?([\w.]+)</code>")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages and pictures that are not files of docs/."""
    for source, page in ELSEWHERE.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        if source.endswith(".ipynb"):
            text, pictures = notebook(text, Path(source).stem)
            for name, content in pictures.items():
                files.append(File.generated(config, f"tutorials/{name}", content=content))
        files.append(File.generated(config, page, content=text))
    for picture in sorted(ROOT.glob("benchmarks/results/*/*.png")):
        files.append(File.generated(config, picture.relative_to(ROOT).as_posix(), abs_src_path=str(picture)))
    files.append(File.generated(config, COMMAND_LINE, content=command_line()))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Add references that are generated, and let links between files of the tree lead from page to page."""
    at = page.file.src_uri
    source = {made: source for source, made in ELSEWHERE.items()}.get(at, f"docs/{at}")

    def moved(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), link[2]))
        made = ELSEWHERE.get(target, target.removeprefix("docs/"))
        return link[1] + posixpath.relpath(made, posixpath.dirname(at) or ".")

    return _LINK.sub(moved, config_reference.included(native_reference.included(markdown)))


def on_page_content(content: str, **_: Any) -> str:
    """Set equations, and let the roles of docstrings lead to what they name."""

    def set_equation(found: re.Match[str]) -> str:
        display = "block" if found[2] == "[" else "inline"
        return str(latex2mathml.converter.convert(html.unescape(found[3]).strip(), display=display))

    content = _MATH.sub(set_equation, content)
    return _ROLE.sub(r'<autoref optional identifier="\1"><code>\1</code></autoref>', content)


def notebook(text: str, name: str) -> tuple[str, dict[str, bytes]]:
    """A notebook of this name as a page, with what its cells print and draw, and its pictures by their names."""
    parts, pictures = [], dict[str, bytes]()
    for cell in json.loads(text)["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        language = "sh" if source.startswith(SHELL) else "python"
        parts.append(f"```{language}\n{source.removeprefix(SHELL)}\n```")
        for output in cell["outputs"]:
            if "text" in output:
                parts.append(f"```text\n{''.join(output['text']).rstrip()}\n```")
            else:
                picture = f"{name}-{len(pictures) + 1}.png"
                pictures[picture] = base64.b64decode("".join(output["data"]["image/png"]))
                parts.append(f"![What the code above draws]({picture})")
    # Links within the tree would lead to this page.
    parts.insert(1, f'<a href="{name}.ipynb" download>This page is a notebook</a>, which runs.')
    return "\n\n".join(parts), pictures


def command_line() -> str:
    """Markdown page of all commands with their arguments and options."""
    group: Any = typer.main.get_command(app)
    context = typer.Context(group, info_name="enma-fast")
    parts = ["# Command line", group.help, *_sections(group, context, level=2)]
    parts.append(
        "Exit status: 0; 2 for bad usage or input, and where `verify` finds damage; 130 after Ctrl-C, 143 after "
        "SIGTERM; 1 for any other failure. What went wrong is one line on standard error; `--debug`, at "
        "any place, adds the traceback."
    )
    return "\n\n".join(parts) + "\n"


def _sections(group: Any, context: Any, *, level: int) -> list[str]:
    parts = []
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        inner = typer.Context(command, info_name=name, parent=context)
        parts += [f"{'#' * level} {inner.command_path}", command.help]
        if hasattr(command, "list_commands"):
            parts += _sections(command, inner, level=level + 1)
            continue
        parts.append(f"```text\n{inner.command_path} {' '.join(command.collect_usage_pieces(inner))}\n```")
        records = [record for p in command.get_params(inner) if (record := p.get_help_record(inner)) is not None]
        lines = [f"| `{_cell(names)}` | {html.escape(_cell(text))} |" for names, text in records]
        parts.append("\n".join(["| argument or option | |", "|---|---|", *lines]))
    return parts


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
