"""The errors that the simulator raises."""


class NkiValidationError(Exception):
    """A documented limit of the API or the hardware is broken."""


class UninitializedReadError(NkiValidationError):
    """An instruction reads bytes that no instruction has written."""


class OutOfBoundsError(NkiValidationError):
    """A runtime index addresses memory outside its tensor, under ``oob_mode.error``."""


class CapacityError(NkiValidationError):
    """The tensors alive at one time do not fit in SBUF or PSUM."""


class RaceError(NkiValidationError):
    """Two cores access the same memory, at least one writes, and nothing orders them."""


class MissingPeerError(NkiValidationError):
    """A core or rank waits at a meeting point that another core or rank never reaches."""


class PeerMismatchError(NkiValidationError):
    """Cores or ranks meet with operands that do not match."""


class PeerFailedError(Exception):
    """This core was stopped because another one failed; the other's error is the cause."""


class NotSimulatedError(NotImplementedError):
    """A documented call that the simulator does not implement; the message names it."""
