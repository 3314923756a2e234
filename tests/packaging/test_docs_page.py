"""The pages on many members do what they say, one after the other.

Their blocks marked `sh` and `python` are run in order, in one folder and one Python session, with few members in place
of 1000. Blocks marked `console` (clusters, other machines) and `text` (output) are not.
"""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from enma_fast.cli import main
from enma_fast.store.read import read_forecast

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGES = [DOCS / f"{name}.md" for name in ("run-a-thousand-members", "run-on-a-cluster", "reference/stores")]
TEXT = "".join(page.read_text(encoding="utf-8") for page in PAGES)
EXAMPLES = sorted((DOCS / "examples").glob("*.sh"))
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# More than a shard of the page holds.
FEW = "70"


def blocks() -> list[tuple[str, str]]:
    return FENCE.findall(TEXT)


def commands(script: str) -> Iterator[str]:
    """Lines of a shell script, those that go on joined."""
    yield from (line for line in script.replace("\\\n", " ").splitlines() if line.strip())


def run_shell(line: str) -> None:
    """A command of ours in this process, which spares its start; any other by the shell."""
    if line.startswith("enma-fast "):
        assert main(shlex.split(line)[1:]) == 0, line
        return
    environ = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(["bash", "-euc", line], env=environ, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, (line, done.stdout, done.stderr)


@pytest.mark.slow
def test_the_pages_run_from_top_to_bottom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    session: dict[str, Any] = {}
    for kind, text in blocks():
        text = re.sub(r"\b1000\b", FEW, text)
        if kind == "sh":
            for line in commands(text):
                run_shell(line)
        elif kind == "python":
            exec(compile(text, PAGES[0].name, "exec"), session)
    made = {path.name for path in tmp_path.iterdir()}
    stores = {"more.zarr", "run.zarr", "shared.zarr", "sharded.zarr", "statistics.zarr"}
    assert made == stores | {"longer.zarr", "observed.h5", "run.png", "run.html", "run.nc"}
    longer, shorter = (read_forecast(name)["u"] for name in ("longer.zarr", "run.zarr"))
    assert longer.sizes["time"] == 40
    assert longer[0, :, :17].equals(shorter[0, :50])
    assert [len(read_forecast(name)["realization"]) for name in sorted(stores)[:4]] == [int(FEW)] * 4


def test_every_block_says_what_it_is() -> None:
    kinds = [kind for kind, _ in blocks()]
    assert set(kinds) == {"sh", "python", "console", "text"}
    assert TEXT.count("```") == 2 * len(kinds), "a block without a kind"


def test_every_script_is_on_a_page() -> None:
    assert {path.name for path in EXAMPLES} == set(re.findall(r"\(examples/([^)]+)", TEXT))


def test_errors_on_the_pages_are_those_of_the_code() -> None:
    source = " ".join(path.read_text() for path in (DOCS.parent / "enma_fast").rglob("*.py"))
    for part in (
        "what was written is kept, fix this and repeat the command",
        "belongs to another run: ",
        "can be made; put members together: --shard",
        "rows at a time from now on; no result changes",
        "flipped: its CRC-32C differs",
    ):
        assert part in TEXT, part
        # A long message is broken over two lines there.
        assert part in re.sub(r'"\s+f?"', "", source), part


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_examples_start_the_command(
    example: Path,
    test_in: Path,
    tiny: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With launchers that start one process, and that one, here, on the tiny checkpoint."""
    (tmp_path / "observed.h5").symlink_to(test_in)
    tools = tmp_path / "bin"
    tools.mkdir()
    start = '#!/bin/bash\nwhile [ "$1" != enma-fast ]; do echo "option $1" >&2; shift; done\nexec "$@"\n'
    for name, text in {
        "srun": start,
        "mpirun": start,
        "enma-fast": '#!/bin/bash\nprintf \'%s\\0\' "$OMP_NUM_THREADS" "$@" > started\n',
    }.items():
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    environ = os.environ | {"PATH": f"{tools}:{os.environ['PATH']}", "SLURM_CPUS_PER_TASK": "3", "THREADS": "3"}
    options = ("--checkpoint", str(tiny), "--select", "1", "--dry-run", "--json")
    done = subprocess.run(
        ["bash", str(example), *options], cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    threads, *arguments = (tmp_path / "started").read_text().split("\0")[:-1]
    assert threads == "3"
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 0, capsys.readouterr().err
    assert '"members": 1000' in capsys.readouterr().out
    assert example.stat().st_mode & 0o111, "it can be run"
