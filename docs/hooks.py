"""Hooks of the site: pages from elsewhere in the tree, references that are generated, and equations as MathML."""

from __future__ import annotations

import html
import posixpath
import re
from pathlib import Path
from typing import Any

import config_reference
import latex2mathml.converter
import native_reference
import typer
from mkdocs.structure.files import File, Files

from enma_fast.cli import app

ROOT = Path(__file__).resolve().parents[1]
# File of the tree -> page of the site.
ELSEWHERE = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
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
        files.append(File.generated(config, page, content=(ROOT / source).read_text(encoding="utf-8")))
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
