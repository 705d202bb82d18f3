"""What messages of the simulator say beside the broken rule: the line, and the right name."""

import difflib
import inspect
import re
from collections.abc import Iterable

from jax_tkg.simulator import collectives, errors, isa, language
from jax_tkg.simulator.caller import Call, failed_call
from jax_tkg.simulator.memory.view import View

_EXPLAINED = (
    errors.NkiValidationError,
    errors.NotSimulatedError,
    AttributeError,
    TypeError,
    ValueError,
)

_KEYWORD = re.compile(r"(\w+)\(\) got an unexpected keyword argument '(\w+)'")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A clause with the known name that a misspelled one is nearest to; empty if none is near."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def explain(error: BaseException) -> None:
    """Completes the message of an error that stopped a kernel.

    It gets the labels of the tensors that it speaks of and the file and line of the kernel's
    statement, unless it has them or the kernel raised the error itself; and for a misspelled
    keyword argument the right name.
    """
    if not isinstance(error, _EXPLAINED) or not error.args or not isinstance(error.args[0], str):
        return
    message = error.args[0]
    if isinstance(error, TypeError):
        message += _right_keyword(message)
    call = failed_call(error)
    if call is not None:
        message = _with_operands(message, call)
        if f"{call.file}:{call.line}" not in message:
            message += f" ({call.file}:{call.line})"
    error.args = (message, *error.args[1:])


def _with_operands(message: str, call: Call) -> str:
    """The message and, of each operand that it names without its label, the label."""
    code = call.called.f_code
    names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    operands = {name: call.called.f_locals.get(name) for name in names}
    labels = [
        f"{name} is {value.label}"
        for name, value in operands.items()
        if isinstance(value, View)
        and value.label not in message
        and re.search(rf"\b{name}\b", message)
    ]
    if not labels:
        return message
    place = f" ({call.file}:{call.line})"
    return f"{message.removesuffix(place)}; {', '.join(labels)}{place}"


def _right_keyword(message: str) -> str:
    found = _KEYWORD.match(message)
    if found is None or "did you mean" in message.lower():
        return ""
    for module in (isa, language, collectives):
        function = getattr(module, found[1], None)
        if inspect.isfunction(function):
            return did_you_mean(found[2], inspect.signature(function).parameters)
    return ""
