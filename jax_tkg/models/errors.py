"""The error of everything that can be wrong with a model on disk."""


class ModelError(ValueError):
    """A checkpoint cannot be used; the message is one line that names the file and the reason."""
