"""The reference of the C header, the C++ header and the Fortran module, made from their comments.

A comment describes the declaration under it. It has paragraphs, a line ``name: text`` for each argument, indented by
two more, and at its end a paragraph that begins with ``Errors:``. A line ``::: FILE`` in a page stands for a file.
"""

from __future__ import annotations

import dataclasses
import html
import re
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HEADER, CLASSES, MODULE = "csrc/include/enma/enma.h", "csrc/include/enma/enma.hpp", "csrc/fortran/enma.f90"
ERRORS = "Errors: "


@dataclasses.dataclass
class Entry:
    """A function with its overloads, or a type, or a group of constants."""

    name: str
    code: str = ""
    text: str = ""
    errors: str = ""
    arguments: dict[str, str] = dataclasses.field(default_factory=dict)
    # Of a type or a group: declaration -> what it is.
    fields: dict[str, str] = dataclasses.field(default_factory=dict)
    # Argument -> its declaration; None where this is no function.
    parameters: dict[str, str] | None = None


def described(entry: Entry, comment: str) -> Entry:
    """An entry with what its comment says, without the signs of a comment."""
    paragraphs: list[str] = [""]
    for line in comment.strip("\n").split("\n"):
        argument = re.match(r" {2}(\w+(?:, \w+)*): (.+)", line)
        if argument:
            entry.arguments[argument[1]] = argument[2]
        elif line.startswith("    ") and (not paragraphs[-1] or paragraphs[-1].startswith("    ")):
            paragraphs[-1] += f"\n{line}" if paragraphs[-1] else line
        elif not line.strip():
            paragraphs += [""]
        else:
            paragraphs[-1] += f" {line.strip()}" if paragraphs[-1] else line.strip()
    entry.errors = " ".join(each.removeprefix(ERRORS) for each in paragraphs if each.startswith(ERRORS))
    entry.text = "\n\n".join(each for each in paragraphs if each and not each.startswith(ERRORS))
    return entry


def _of_block(comment: str) -> str:
    """The text of a block comment of C: a star begins its lines."""
    return "\n".join(re.sub(r"^ ?\*? ?", "", line) for line in comment.strip().split("\n"))


def _of_lines(lines: list[str], mark: str) -> str:
    """The text of lines that are comments."""
    return "\n".join(line.strip().removeprefix(mark).removeprefix(" ") for line in lines)


def _fields(body: str, mark: str) -> dict[str, str]:
    """Declarations, a line each, with the comment at the end of it."""
    parts = [line.partition(mark) for line in body.split("\n") if line.partition(mark)[0].strip()]
    return {code.strip().rstrip(";,"): comment.removesuffix("*/").strip() for code, _, comment in parts}


def _parameters(given: str) -> dict[str, str]:
    """Names of arguments in C and C++, and their declarations."""
    declarations = [one.partition(" = ")[0] for one in re.split(r", (?![^<]*>)", given) if one not in ("", "void")]
    return {re.findall(r"\w+", one)[-1]: one for one in declarations}


def c_entries(text: str) -> Iterator[Entry]:
    """What a C header declares, in its order."""
    kinds = (
        r"ENMA_API (?P<function>[^;]*);",
        r"typedef struct \{\n(?P<fields>(?:(?!\n\}).)*)\n\} (?P<struct>enma_\w+);",
        r"(?:typedef int32_t (?P<status>\w+);\n)?enum \{\n(?P<values>.*?)\n\};",
        r"(?P<other>typedef (?:struct \w+|void \(\*)(?: |)(?P<name>enma_\w+)[^;]*;|#define (?P<constant>\w+) \d+$)",
    )
    pattern = rf"^(?:/\*((?:(?!\*/).)*)\*/\n)?(?:{'|'.join(kinds)})"
    for found in re.finditer(pattern, text, re.DOTALL | re.MULTILINE):
        comment, part = _of_block(found[1] or ""), found.groupdict()
        if part["function"]:
            code = " ".join(part["function"].split())
            name, given = re.findall(r"(\w+)\((.*)\)$", code)[0]
            entry = Entry(name, f"{code};", parameters=_parameters(given))
        elif part["struct"]:
            entry = Entry(part["struct"], fields=_fields(part["fields"], "/*"))
        elif part["values"]:
            title, _, comment = (
                " ".join(comment.split()) if not part["status"] else f"{part['status']}. {comment}"
            ).partition(". ")
            entry = Entry(title.rstrip("."), fields=_fields(part["values"], "/*"))
        else:
            entry = Entry(part["name"] or part["constant"], part["other"])
        yield described(entry, comment)


def _declaration(lines: list[str]) -> tuple[str, int]:
    """A C++ declaration without its body, and the number of lines of both."""
    code, count = "", 0
    while count == 0 or code.count("{") > code.count("}") or not re.search(r"[;}]$", code):
        code = f"{code} {lines[count].partition('//')[0].strip()}".strip()
        count += 1
    shown, inside = "", 0
    for place, sign in enumerate(code):
        # A body follows, or what a constructor begins with.
        if inside == 0 and (sign in "{;" or code[place : place + 2] == ": "):
            break
        inside += (sign in "(<") - (sign in ")>")
        shown += sign
    return " ".join(shown.split()), count


def cpp_entries(text: str) -> Iterator[Entry]:
    """Types of a C++ header, and the public functions of classes as Class::name."""
    lines = text[: text.index("namespace detail")].split("\n")
    lines += text[text.index("}  // namespace detail") :].split("\n")[1:]
    found: dict[str, Entry] = {}
    at, owner, public, comment = 0, "", True, list[str]()
    while at < len(lines):
        line, step = lines[at].strip(), 1
        kind = re.match(r"(class|struct) (\w+)[^;]*\{$", line)
        if line.startswith("//"):
            comment.append(line)
        elif re.match(r"template <.*>$", line) and re.match(r"(class|struct) ", lines[at + 1].strip()):
            pass
        elif line in ("public:", "private:"):
            public = line == "public:"
        elif lines[at] == "};":
            owner, public = "", True
        elif kind and public:
            body = lines[at + 1 : at + lines[at:].index("};")]
            entry = found[kind[2]] = described(Entry(kind[2]), _of_lines(comment, "//"))
            if kind[1] == "class":
                owner, public = kind[2], False
            else:
                fields = _fields("\n".join(body), "//")
                entry.fields = {re.sub(r"\{\}| = .*", "", code): said for code, said in fields.items()}
                step = len(body) + 2
        elif alias := re.match(r"using (\w+) = .*;$", line):
            found[alias[1]] = described(Entry(alias[1], line), _of_lines(comment, "//"))
        elif owner and public and line and not line.startswith("static_assert"):
            code, step = _declaration(lines[at:])
            name, given = re.findall(r"(\w+)\((.*)\)", code)[0]
            entry = found.setdefault(f"{owner}::{name}", Entry(f"{owner}::{name}", parameters={}))
            entry.code = f"{entry.code}\n{code};".strip()
            entry.parameters = {**(entry.parameters or {}), **_parameters(given)}
            if comment:
                described(entry, _of_lines(comment, "//"))
        comment = comment if line.startswith(("//", "template")) and step == 1 else []
        at += step
    yield from found.values()


def fortran_entries(text: str) -> Iterator[Entry]:
    """Constants, types and procedures that a Fortran module makes public, in the order in which it declares them."""
    listed = re.findall(r"^ +public :: (.*)$", text, re.MULTILINE)
    public = {name for line in listed for name in line.split(", ")}
    start = r"^ +(?:(type) :: |(interface) |subroutine |function |(integer).*, public :: )(\w+).*"
    for found in re.finditer(rf"((?:^ +!.*\n)*){start}", text, re.MULTILINE):
        comment, is_type, is_generic, is_constant, name = found.groups()
        said = _of_lines(comment.rstrip("\n").split("\n"), "!")
        if is_constant and said:
            title, _, rest = said.partition(". ")
            constants = "\n".join(re.findall(r"ENMA_.*", text[found.end(4) :].partition("\n\n")[0].partition("!")[0]))
            yield described(Entry(title.rstrip("."), constants), rest)
        elif is_type and name in public:
            fields = _fields(text[found.end() :].partition("end type")[0], "!")
            yield described(
                Entry(name, fields={re.sub(r" = .*", "", code): each for code, each in fields.items()}), said
            )
        elif name in public:
            own = re.findall(r"module procedure (\w+)", text[found.end() :])[0] if is_generic else name
            (given, body), *_ = re.findall(
                rf"^ +(?:subroutine|function) {own}\(((?:[^)]|\n)*)\)(.*?)end (?:subroutine|function) {own}$",
                text,
                re.DOTALL | re.MULTILINE,
            )
            declared = [line.strip() for line in body.split("\n") if "intent(" in line]
            declared = [line.replace("real(real32)", "real(kind)") if is_generic else line for line in declared]
            parameters = {
                one: next(line for line in declared if re.search(rf"\b{one}\b", line.partition("::")[2]))
                for one in re.findall(r"\w+", given.replace("&", ""))
            }
            shown = ", ".join(f"[{one}]" if "optional" in each else one for one, each in parameters.items())
            call = "call " if re.search(rf"subroutine {own}\b", text) else "message = "
            kinds = ["! kind: real32 or real64"] if is_generic else []
            code = "\n".join([f"{call}{name}({shown})", *kinds, *declared])
            yield described(Entry(name, code, parameters=parameters), said)


READERS: dict[str, tuple[str, Callable[[str], Iterator[Entry]]]] = {
    HEADER: ("c", c_entries),
    CLASSES: ("cpp", cpp_entries),
    MODULE: ("fortran", fortran_entries),
}


def entries(file: str) -> list[Entry]:
    """What a file of the tree declares."""
    return list(READERS[file][1]((ROOT / file).read_text(encoding="utf-8")))


def opening(file: str) -> str:
    """The comment at the top of a file, as paragraphs."""
    text = (ROOT / file).read_text(encoding="utf-8")
    if text.startswith("/*"):
        return described(Entry(""), _of_block(text[2 : text.index("*/")])).text
    mark = "//" if text.startswith("//") else "!"
    lines = text.split("\n")
    first = next(at for at, line in enumerate(lines) if not line.startswith(mark))
    return described(Entry(""), _of_lines(lines[:first], mark)).text


def _marked(text: str, here: bool) -> str:
    """Text as Markdown: shapes and names as code, functions of C as links."""
    functions = {one.name for one in entries(HEADER) if one.parameters is not None}

    def mark(found: re.Match[str]) -> str:
        name = found[0]
        return f"[`{name}`]({'' if here else 'c.md'}#{name})" if name in functions else f"`{name}`"

    paragraphs = text.split("\n\n")
    marked = [re.sub(r"\[[^\])]*\]|\b\w*_\w+\b(?:\(\))?", mark, html.escape(each, quote=False)) for each in paragraphs]
    return "\n\n".join(old if old.startswith("    ") else new for old, new in zip(paragraphs, marked, strict=True))


def reference(file: str) -> str:
    """Markdown of what a file of the tree declares: its opening, constants and types, functions."""
    here, found = file == HEADER, entries(file)
    parts = [_marked(opening(file), here)]
    for title, functions in (("Types and constants", False), ("Functions", True)):
        parts.append(f"## {title}")
        for one in found:
            if (one.parameters is not None) != functions:
                continue
            parts += [f"### {one.name}", f"```{READERS[file][0]}\n{one.code}\n```" if one.code else ""]
            parts.append(_marked(one.text, here))
            for head, rows in (("argument", one.arguments), ("name", one.fields)):
                lines = [f"| `{name}` | {_marked(said, here)} |" for name, said in rows.items()]
                parts.append("\n".join([f"| {head} | |", "|---|---|", *lines]) if lines else "")
            parts.append(f"**Errors:** {_marked(one.errors, here)}" if one.errors else "")
    return "\n\n".join(part for part in parts if part)


def included(markdown: str) -> str:
    """A page with the reference of each file that it names in a line ``::: FILE``."""
    return re.sub(r"^::: (csrc/\S+)$", lambda line: reference(line[1]), markdown, flags=re.MULTILINE)
