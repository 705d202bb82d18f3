"""The error of everything that can be wrong with a model on disk."""

from jax_tkg.errors import UserError

MAX_MESSAGE = 1000
"""Characters of a `ModelError`'s message; files hold names and values of any length."""


class ModelError(ValueError, UserError):
    """A checkpoint cannot be used.

    The message names the file, the key or tensor, what was expected and what the file has. Whatever
    text of a file it quotes, it is one printable line of at most `MAX_MESSAGE` characters.
    """

    def __init__(self, message: str):
        line = " ".join(message.split())
        # Names in damaged files hold control characters and lone surrogates, which no terminal
        # and no encoding takes.
        line = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)
        if len(line) > MAX_MESSAGE:
            # Names are what is long; what was expected comes after them.
            line = line[: MAX_MESSAGE // 2 - 3] + "..." + line[-MAX_MESSAGE // 2 :]
        super().__init__(line)


def one_line(error: BaseException) -> str:
    """An error's message with every run of white space, line ends among them, as one space."""
    return " ".join(str(error).split())
