"""Runs command lines, one JSON list a line on standard input, and answers each with a line; its parent ends it.

Started with the argument `change` it changes field files instead, which the library that writes them may not survive.
"""

import contextlib
import io
import json
import os
import resource
import sys
from collections.abc import Callable
from pathlib import Path


def limit_memory(num_bytes: int) -> None:
    """So much beside what the process has."""
    page, size = os.sysconf("SC_PAGE_SIZE"), int(Path("/proc/self/statm").read_text().split()[0])
    limit = page * size + num_bytes
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def command() -> Callable[[list[str]], int]:
    import torch

    torch.set_num_threads(1)
    from enma_fast.cli import main

    limit_memory(3 << 30)
    return main


def changer() -> Callable[[list[str]], int]:
    # Beside this file.
    from _changes import change_file

    limit_memory(1 << 30)

    def change(arguments: list[str]) -> int:
        change_file(Path(arguments[0]), json.loads(arguments[1]))
        return 0

    return change


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    # Output of libraries belongs to the output of the command, not to the answer.
    os.dup2(2, 1)
    run = changer() if sys.argv[1:] == ["change"] else command()
    for line in sys.stdin:
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = run(json.loads(line))
        answers.write(json.dumps({"status": status, "out": out.getvalue(), "err": err.getvalue()}) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
