"""The error of everything that can be wrong with a model on disk."""


class ModelError(ValueError):
    """A checkpoint cannot be used; the message is one line that names the file and the reason."""


def one_line(error: BaseException) -> str:
    """An error's message with every run of white space, line ends among them, as one space."""
    return " ".join(str(error).split())
