"""Loops, and the place of a program in the launch grid."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from jax_tkg.simulator import errors
from jax_tkg.simulator.caller import caller
from jax_tkg.simulator.isa.operands import Step
from jax_tkg.simulator.machine.machine import current_core
from jax_tkg.simulator.memory.addressing import DynamicSlice, VirtualRegister
from jax_tkg.simulator.memory.view import described


def ds(start: Any, size: int) -> DynamicSlice:
    """`size` elements from `start`."""
    return DynamicSlice(start, size)


def affine_range(start: int, stop: int | None = None, step: int = 1) -> range:
    """An older name of ``range``."""
    return range(start) if stop is None else range(start, stop, step)


def sequential_range(start: int, stop: int | None = None, step: int = 1) -> range:
    """An older name of ``range``."""
    return affine_range(start, stop, step)


def static_range(start: int, stop: int | None = None, step: int = 1) -> range:
    """An older name of ``range``."""
    return affine_range(start, stop, step)


def dynamic_range(start: Any, stop: Any = None, step: int = 1) -> Iterator[VirtualRegister]:
    """A loop on the device. Its bounds may be registers; it yields registers.

    Raises:
      NkiValidationError: `step` is not a positive integer, a bound is neither an integer nor a
        register, or the loop is inside `no_reorder`.
    """
    first, last = (0, start) if stop is None else (start, stop)
    return _counted("dynamic_range", first, last, step)


def fori_loop(
    lower: Any, upper: Any, body_fun: Callable[[VirtualRegister], object], step: int = 1
) -> None:
    """Calls ``body_fun(i)`` for every i of a loop on the device.

    Raises:
      NkiValidationError: as for `dynamic_range`, or the body returns a value.
    """
    for i in _counted("fori_loop", lower, upper, step):
        returned = body_fun(i)
        if returned is not None:
            raise errors.NkiValidationError(
                f"fori_loop: body_fun must return None, got {described(returned)} ({_place()})"
            )


def while_loop(
    init: VirtualRegister, body_fun: Callable[[VirtualRegister], VirtualRegister]
) -> None:
    """Calls ``register = body_fun(register)`` while the register is not 0.

    Raises:
      NkiValidationError: `init` or the body's result is not a register, or the loop is inside
        `no_reorder`.
    """
    register = _condition("init", init)
    core = current_core()
    loops = core.loops
    with loops.loop("while_loop", _place(), None) as run:
        turns = 0
        while register.read() != 0:
            _mark("loop_turn", turns)
            with loops.turn(turns):
                tested = VirtualRegister(register.read())
                core.register_writers.copy_writer(tested, register)
                returned = body_fun(tested)
            register = _condition("body_fun's result", returned)
            turns += 1
        run.turns = turns
        _mark("loop_end", turns)


def _counted(opcode: str, first: Any, last: Any, step: Any) -> Iterator[VirtualRegister]:
    if not isinstance(step, int) or step < 1:
        raise errors.NkiValidationError(
            f"{opcode}: step must be a positive integer, got {described(step)} ({_place()})"
        )
    return _turns(opcode, range(_bound(opcode, first), _bound(opcode, last), step))


def _turns(opcode: str, values: range) -> Iterator[VirtualRegister]:
    loops = current_core().loops
    with loops.loop(opcode, _place(), len(values)):
        for number, value in enumerate(values):
            _mark("loop_turn", number)
            with loops.turn(number):
                yield VirtualRegister(value)
        _mark("loop_end", len(values))


def _mark(opcode: str, number: int) -> None:
    """Records the start of a turn ("loop_turn") or the end of the loop ("loop_end").

    On the device both wait for everything that the core has started before.
    """
    Step(opcode, "sync", attributes={"turn": number}).done()


def _bound(opcode: str, value: Any) -> int:
    if isinstance(value, VirtualRegister):
        return value.read()
    if isinstance(value, (int, np.integer)):
        return int(value)
    raise errors.NkiValidationError(
        f"{opcode}: a bound must be an integer or a register, got {described(value)} ({_place()})"
    )


def _condition(what: str, value: Any) -> VirtualRegister:
    if isinstance(value, VirtualRegister):
        return value
    raise errors.NkiValidationError(
        f"while_loop: {what} must be a register, got {described(value)} ({_place()})"
    )


def _place() -> str:
    file, line = caller()
    return f"{file}:{line}"


@contextlib.contextmanager
def no_reorder() -> Iterator[None]:
    """Keeps program order within the block. The simulator always does.

    The block cannot contain a device loop.
    """
    loops = current_core().loops
    around = loops.keeps_order
    loops.keeps_order = True
    try:
        yield
    finally:
        loops.keeps_order = around


def program_id(axis: int = 0) -> int:
    """Returns the index of this core in the grid.

    Raises:
      ValueError: there is no such axis.
    """
    core = current_core()
    if axis != 0:
        raise ValueError(f"program_id: axis must be 0, got {axis}")
    return core.index


def num_programs(axes: Any = 0) -> int:
    """Returns the number of cores in the grid.

    Raises:
      ValueError: there is no such axis.
    """
    if axes not in (0, (0,), [0], None):
        raise ValueError(f"num_programs: axes must be 0, got {axes}")
    return current_core().machine.lnc


def program_ndim() -> int:
    """Returns the number of dimensions of the grid: 0 for a single core, else 1."""
    return current_core().machine.grid_ndim
