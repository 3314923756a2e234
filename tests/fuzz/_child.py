"""Runs command lines, one JSON list a line on standard input, and answers each with a line; its parent ends it."""

import contextlib
import io
import json
import os
import resource
import sys
from pathlib import Path


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    # What a library prints is part of what the command shows, not of the answer.
    os.dup2(2, 1)
    import torch

    torch.set_num_threads(1)
    from enma_fast.cli import main as run

    page, size = os.sysconf("SC_PAGE_SIZE"), int(Path("/proc/self/statm").read_text().split()[0])
    limit = page * size + (3 << 30)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for line in sys.stdin:
        out, err = io.StringIO(), io.StringIO()
        arguments = json.loads(line)
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            if arguments[0] == "change":
                # Beside this file.
                from _changes import change_file

                change_file(Path(arguments[1]), json.loads(arguments[2]))
                status = 0
            else:
                status = run(arguments)
        answers.write(json.dumps({"status": status, "out": out.getvalue(), "err": err.getvalue()}) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
