"""The base of errors whose message is one line for whoever runs a command."""


class UserError(Exception):
    """What a user gave, or what is installed, cannot be used; the message is one line."""
