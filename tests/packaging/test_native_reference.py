"""The pages of C, C++ and Fortran hold every public function, with its arguments, shapes and errors."""

import re
from pathlib import Path

import pytest

from docs import native_reference as native

from ._prose import prose_faults

ROOT = Path(__file__).resolve().parents[2]
FILES = ("csrc/include/enma/enma.h", "csrc/include/enma/enma.hpp", "csrc/fortran/enma.f90")
PAGES = dict(zip(FILES, ("c", "cpp", "fortran"), strict=True))
# An array of values, and how its shape is written.
ARRAY = {
    "c": r"\bDLTensor\*",
    "cpp": r"\bView<|\bstd::vector<T>",
    "fortran": r"real\(kind\).*(?:\(\.\.\)|\(:)",
}
# A size in memory, which has a unit.
SIZE = re.compile(r"\bsize_t\b")
STATUS = re.compile(r"\bENMA_[A-Z_]+\b")


def faults(entry: native.Entry, language: str) -> list[str]:
    """What the comment of a function or a type does not say."""
    # The first sentence of a group of constants is its name.
    found = [] if entry.text or " " in entry.name else ["no text"]
    found += [f"{code}: no comment" for code, said in entry.fields.items() if not said]
    if entry.parameters is None:
        return found
    told = {name: said for names, said in entry.arguments.items() for name in names.split(", ")}
    # The status of Fortran is the same everywhere: the comment of the module has it.
    expected = [name for name in entry.parameters if (language, name) != ("fortran", "status")]
    if sorted(told) != sorted(expected):
        found.append(f"describes {sorted(told)}, has {sorted(expected)}")
    for name, said in told.items():
        declared = entry.parameters.get(name, "")
        shaped = re.search(r"\[.*\]|\(\w.*\)|\bscalar\b|\blikewise\b|\bthe same\b|\bof the same shape\b", said)
        if re.search(ARRAY[language], declared) and not shaped:
            found.append(f"{name}: no shape")
        if SIZE.search(declared) and not re.search(r"\bbytes\b|\bnumber\b", said):
            found.append(f"{name}: no unit")
    if not entry.errors:
        found.append("no errors")
    return found


@pytest.mark.parametrize("file", FILES)
def test_comments_say_arguments_shapes_and_errors(file: str) -> None:
    found = {one.name: faults(one, PAGES[file]) for one in native.entries(file)}
    assert not {name: each for name, each in found.items() if each}


def test_errors_and_names_in_comments_exist() -> None:
    entries = [one for file in FILES for one in native.entries(file)]
    statuses = {name for one in entries for code in one.fields for name in STATUS.findall(code)}
    functions = {one.name for one in entries} | {one.name.rpartition(":")[2] for one in entries}
    for one in entries:
        assert set(STATUS.findall(one.errors)) <= statuses, one.name
        for name in re.findall(r"\bthose of (\w+)(?: and (\w+))?", one.errors):
            assert {each for each in name if each} <= functions, one.name


def test_every_public_name_is_on_its_page() -> None:
    header, module = ((ROOT / FILES[at]).read_text() for at in (0, 2))
    paths = [*(ROOT / "csrc/examples").glob("*.cpp"), *(ROOT / "tests/runtime").glob("*.cpp")]
    programs = "".join(text for text in (path.read_text() for path in paths) if "enma/enma.hpp" in text)
    public = {
        FILES[0]: re.findall(r"^ENMA_API [^(]*?(\w+)\(", header, re.MULTILINE)
        + re.findall(r"^\} (enma_\w+);", header, re.MULTILINE),
        # What the tests and the examples call.
        FILES[1]: re.findall(r"\b(?:session|model)\.(\w+)\(", programs),
        FILES[2]: [
            name for line in re.findall(r"^ +public :: (.*)$", module, re.MULTILINE) for name in line.split(", ")
        ],
    }
    for file, names in public.items():
        page = native.included(f"::: {file}\n")
        headings = re.findall(r"^### (?:\w+::)?(\w+)$", page, re.MULTILINE)
        assert len(set(names)) >= 10
        assert set(names) <= set(headings), file
        assert f"\n::: {file}\n" in (ROOT / f"docs/reference/{PAGES[file]}.md").read_text()


@pytest.mark.parametrize("file", FILES)
def test_their_prose_is_plain(file: str) -> None:
    assert not prose_faults(native.reference(file))


def test_what_a_comment_lacks_is_found() -> None:
    text = """/* Reads a frame.
 *
 *   frame: [grid]
 *   size: of it
 *
 * Errors: none. */
ENMA_API enma_status enma_read(const DLTensor* frame, size_t size);

/* Writes it.
 *
 *   frame: written */
ENMA_API enma_status enma_write(DLTensor* frame, int64_t count);

ENMA_API void enma_end(void);

/* A place. */
typedef struct {
    double x; /* along the line, in metres */
    double y;
} enma_place;
"""
    found = {one.name: faults(one, "c") for one in native.c_entries(text)}
    assert found == {
        "enma_read": ["size: no unit"],
        "enma_write": ["describes ['frame'], has ['count', 'frame']", "frame: no shape", "no errors"],
        "enma_end": ["no text", "no errors"],
        "enma_place": ["double y: no comment"],
    }
