"""The command `enma-fast`: the list of its commands, and what becomes of errors, signals and messages.

Exit status: 0, or 2 for bad usage or input, or 1 for any other failure; what went wrong is one line on standard
error, with a traceback only under `--debug`.
"""

from __future__ import annotations

import io
import logging
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any

import typer

from .commands import data, demo, embed, export, figures, forecast, inspect, score, train
from .commands.terminal import printable
from .errors import EnmaError
from .utils.launch import detect

app = typer.Typer(
    name="enma-fast",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Ensemble forecasts of parametric PDEs from a few observed frames.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
data_app = typer.Typer(no_args_is_help=True, help="Make and look at field files.")
app.add_typer(data_app, name="data")

app.command("demo")(demo.demo)
data_app.command("generate")(data.generate)
data_app.command("import")(data.import_)
data_app.command("subset")(data.subset)
data_app.command("info")(data.info)
app.command("train")(train.train)
app.command("publish")(train.publish)
app.command("forecast")(forecast.forecast)
app.command("score")(score.score)
app.command("plot")(figures.plot)
app.command("export-netcdf")(export.netcdf)
app.command("report")(figures.report)
app.command("embed")(embed.embed)
app.command("info")(inspect.info)
app.command("verify")(inspect.verify)


def _show_version(wanted: bool) -> None:
    if wanted:
        from . import __version__

        sys.stdout.write(f"enma-fast {__version__}\n")
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error; at any place.")] = False,
    shown: Annotated[
        bool, typer.Option("--version", help="Show the version and stop.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Options of every command."""


def main(arguments: Sequence[str] | None = None, *, of: typer.Typer = app, name: str = "enma-fast") -> int:
    """Run a command line and return its exit status; `of` has the commands, `name` is what messages call it."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    given = [argument for argument in given if argument != "--debug"]
    with _any_characters(), _log_to_stderr(), _terminated() as signals:

        def stopped() -> int:
            return _fail("stopped by SIGTERM; what was written is kept", 143) if signals else _fail("interrupted", 130)

        try:
            status = of(given, prog_name=name, standalone_mode=False)
            # Newer releases of typer turn an interrupt into this status themselves.
            return stopped() if status == 130 else status or 0
        except KeyboardInterrupt:
            return stopped()
        except Exception as error:
            if debug:
                raise
            if isinstance(error, EnmaError):
                return _fail(str(error), error.status)
            if hasattr(error, "format_message"):
                # Typer's own errors: those of click in older releases, of a copy of click in newer ones.
                return _usage(error)
            if type(error).__name__ == "Abort":
                return stopped()
            return _fail(f"{type(error).__name__}: {error}", 1)


def _usage(error: Exception) -> int:
    message = error.format_message()  # type: ignore[attr-defined]
    if type(error).__name__ == "NoArgsIsHelpError":
        sys.stderr.write(message + "\n")
        return 2
    context = getattr(error, "ctx", None)
    where = f"; see: {context.command_path} --help" if context is not None else ""
    return _fail(f"{message.rstrip('.')}{where}", 2)


def _fail(message: str, status: int) -> int:
    sys.stderr.write(f"error: {printable(' '.join(message.split()))}\n")
    return status


@contextmanager
def _any_characters() -> Iterator[None]:
    """Show characters that the encoding of the locale lacks as escapes, in place of failing at the first."""
    # In the C locale they pass on what came from file names, and no other character.
    usual = {s: s.errors for s in (sys.stdout, sys.stderr) if isinstance(s, io.TextIOWrapper)}
    for stream in usual:
        stream.reconfigure(errors="backslashreplace")
    try:
        yield
    finally:
        for stream, errors in usual.items():
            stream.reconfigure(errors=errors)


@contextmanager
def _terminated() -> Iterator[list[int]]:
    """A SIGTERM ends a command as Ctrl-C does, so that what was sampled is kept; yields those that came."""
    came: list[int] = []

    def end(number: int, frame: object) -> None:
        came.append(number)
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        # A host program has its own.
        yield came
        return
    signal.signal(signal.SIGTERM, end)
    try:
        yield came
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


class _StderrHandler(logging.Handler):
    """Writes to what standard error is at the time: a progress bar replaces it while it is drawn."""

    def emit(self, record: logging.LogRecord) -> None:
        sys.stderr.write(self.format(record) + "\n")


@contextmanager
def _log_to_stderr() -> Iterator[None]:
    """Show the package's messages while a command runs, and what will change in a line each."""
    log, handler = logging.getLogger("enma_fast"), _StderrHandler()
    level, usual = log.level, warnings.showwarning
    log.addHandler(handler)
    # The first of several ranks reports what all of them do.
    log.setLevel(logging.INFO if detect().is_reporter else logging.WARNING)

    def show(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
        if category is FutureWarning:
            log.warning("%s", message)
        else:
            usual(message, category, *place, **more)

    warnings.showwarning = show
    try:
        yield
    finally:
        warnings.showwarning = usual
        log.removeHandler(handler)
        log.setLevel(level)
