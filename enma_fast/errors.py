"""The one error type a user meets: a single line that names the file or field, and the mend."""


class EnmaError(ValueError):
    """Bad input, configuration, checkpoint or data. The command line turns it into exit status 2."""
