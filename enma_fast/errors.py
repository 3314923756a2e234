"""The one error type a user meets: a single line that names the file or field, and the fix."""


class EnmaError(ValueError):
    """Bad input, configuration, checkpoint or data. The command line ends with its status."""

    status = 2


class TrainingError(EnmaError):
    """A training whose numbers are not finite any more; what it saved before stays."""

    status = 1


def first_line(error: BaseException) -> str:
    """The first line of the message of an error of another library, or else its type."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__
