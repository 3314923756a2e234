"""Tables without a terminal: 80 columns where words allow it, and no word, number or line of text is broken."""

import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from enma_fast.commands.terminal import PLAIN_WIDTH, Terminal, table

SCORES = ["rel_l2", "rel_l2_member", "crps", "rmsce", "rmsce_rank", "spread_skill"]


def shown(capsys: pytest.CaptureFixture[str], *parts: object) -> list[str]:
    capsys.readouterr()
    Terminal(as_json=False).show(*parts)
    return [line.rstrip() for line in capsys.readouterr().out.splitlines()]


@pytest.mark.parametrize("command", [("info",), ("verify", "combined-small"), ("data", "info")], ids=" ".join)
def test_commands_fit_where_words_allow_it(enma: Callable, test_in: Path, command: tuple[str, ...]) -> None:
    done = enma(*command, test_in) if command[0] == "data" else enma(*command)
    lines = done.out.splitlines()
    assert done.status == 0
    assert len(lines) > 5
    # One SHA-256 beside the longest name is wider than a page.
    assert max(map(len, lines)) <= (100 if command[0] == "verify" else PLAIN_WIDTH)


def test_a_table_of_scores_fits(capsys: pytest.CaptureFixture[str]) -> None:
    lines = shown(
        capsys,
        table("scores", ["", *SCORES], [["combined-small (this run)", "0.0827", "0.106", "8.27e-3", *["0.0282"] * 3]]),
    )
    assert max(map(len, lines)) <= PLAIN_WIDTH
    assert all(name in " ".join(lines) for name in SCORES)


def test_words_stay_whole_where_a_table_is_wider_than_a_page(capsys: pytest.CaptureFixture[str]) -> None:
    word = "0123456789abcdef" * 8
    lines = shown(capsys, table("", ["file", "SHA-256", "note"], [["name", word, "two words"]], text=(0, 1, 2)))
    (line,) = (line for line in lines if word in line)
    assert line.startswith("name")
    assert "two" in line


def test_text_in_cells_wraps_between_words(capsys: pytest.CaptureFixture[str]) -> None:
    text = " ".join(f"word{i:03}" for i in range(40))
    lines = shown(capsys, table("", ["", "value"], [["name", text]], text=(0, 1)))
    assert max(map(len, lines)) <= PLAIN_WIDTH
    assert " ".join(lines).split()[-40:] == text.split()


def test_a_name_in_a_cell_cannot_look_like_a_row(capsys: pytest.CaptureFixture[str]) -> None:
    lines = shown(capsys, table("", ["", "value"], [["parameters", "a\nrms  u 0.1\x1b[31m"]], text=(0, 1)))
    assert [line for line in lines if "u 0.1" in line] == ["parameters  a\\nrms  u 0.1\\x1b[31m"]


def test_lines_of_text_stay_whole(capsys: pytest.CaptureFixture[str]) -> None:
    line = "error " * 60
    assert shown(capsys, line) == [line.rstrip()]


def test_tables_follow_the_width_of_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("TERM", "xterm")
    lines = shown(capsys, table("", ["", *SCORES], [["this run", *["8.27e-2"] * 6]]))
    assert max(len(re.sub(r"\x1b\[\d*m", "", line)) for line in lines) <= 40
