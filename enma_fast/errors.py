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


# Messages of allocators and libraries that have no memory left: PyTorch's on the CPU, C++, CUDA, cuBLAS.
_NO_MEMORY = ("can't allocate memory", "bad_alloc", "bad allocation", "out of memory", "STATUS_ALLOC_FAILED")


def out_of_memory(error: BaseException) -> bool:
    """True if an error says that memory ran out, on a GPU or in the machine."""
    # PyTorch's own type, without importing it.
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return any(words in str(error) for words in _NO_MEMORY)
