"""Command lines in a child process that is started again after a crash or a hang, and what they may end in."""

import collections
import json
import selectors
import subprocess
import sys
from pathlib import Path
from typing import Any

CHILD = Path(__file__).with_name("_child.py")
# On the clock of a busy machine; the library gives up on a file that hangs long before.
SECONDS = 120.0


class Runner:
    """One child, and how its commands ended."""

    def __init__(self, *options: str, seconds: float = SECONDS) -> None:
        self.options, self.seconds = options, seconds
        self.process: subprocess.Popen[str] | None = None
        self.changer: Runner | None = None
        self.counts: collections.Counter[str] = collections.Counter()

    def run(self, what: str, *arguments: Any) -> Any:
        """The JSON of a command that ended well, or None where it refused its input in one line.

        Raises
        ------
        AssertionError
            For any other end: a crash, a hang, a traceback, another status, more than one line.
        """
        answer = self._ask([str(argument) for argument in (*arguments, "--json")])
        status, err = answer["status"], answer["err"]
        self.counts[f"{what}: {'accepted' if status == 0 else 'refused' if status == 2 else 'failed'}"] += 1
        assert status in (0, 2), answer
        assert "Traceback" not in err, err
        if status == 2:
            *notes, line = err.splitlines()
            assert line.startswith("error: "), err
            assert all(note.startswith("warning: ") for note in notes), err
            assert all(part.isprintable() for part in (*notes, line)), err
            return None
        return json.loads(answer["out"].splitlines()[-1])

    def _ask(self, arguments: list[str]) -> dict[str, Any]:
        if self.process is None:
            self.process = subprocess.Popen(
                [sys.executable, str(CHILD), *self.options],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                bufsize=1,
            )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            self.process.stdin.write(json.dumps(arguments) + "\n")
            ready = selector.select(self.seconds)
        line = self.process.stdout.readline() if ready else ""
        if line:
            return dict(json.loads(line))
        hung = not ready
        self.process.kill()
        self.process.communicate()
        self.process = None
        self.counts["hung" if hung else "crashed"] += 1
        return {"status": "hung" if hung else "crashed", "out": "", "err": ""}

    def change(self, path: Path, changes: list[list[Any]]) -> bool:
        """Change a field file in a child of its own, which the library may crash in; whether it was done."""
        if self.changer is None:
            self.changer = Runner("change", seconds=120.0)
        return bool(self.changer._ask([str(path), json.dumps(changes)])["status"] == 0)

    def close(self) -> None:
        """End the child."""
        if self.changer is not None:
            self.changer.close()
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
            self.process = None
