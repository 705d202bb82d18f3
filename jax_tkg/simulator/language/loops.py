"""Loops, and what a program knows of its place in the launch grid."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from jax_tkg.simulator.machine.machine import current_core
from jax_tkg.simulator.memory.addressing import DynamicSlice, VirtualRegister


def ds(start: Any, size: int) -> DynamicSlice:
    """`size` elements from `start`."""
    return DynamicSlice(start, size)


def affine_range(start: int, stop: int | None = None, step: int = 1) -> range:
    """``range``, under its older name."""
    return range(start) if stop is None else range(start, stop, step)


def sequential_range(start: int, stop: int | None = None, step: int = 1) -> range:
    """``range``, under its older name."""
    return affine_range(start, stop, step)


def static_range(start: int, stop: int | None = None, step: int = 1) -> range:
    """``range``, under its older name."""
    return affine_range(start, stop, step)


def dynamic_range(start: Any, stop: Any = None, step: int = 1) -> Iterator[VirtualRegister]:
    """A loop on the device; its bounds may be registers, and it yields registers.

    Raises:
      ValueError: `step` is not a positive integer.
    """
    if not isinstance(step, int) or step < 1:
        raise ValueError(f"dynamic_range: step must be a positive integer, got {step!r}")
    first, last = (0, int(start)) if stop is None else (int(start), int(stop))
    for i in range(first, last, step):
        yield VirtualRegister(i)


def fori_loop(
    lower: Any, upper: Any, body_fun: Callable[[VirtualRegister], None], step: int = 1
) -> None:
    """Calls ``body_fun(i)`` for every i of a loop on the device."""
    for i in dynamic_range(lower, upper, step):
        body_fun(i)


def while_loop(init: Any, body_fun: Callable[[VirtualRegister], VirtualRegister]) -> None:
    """Calls ``register = body_fun(register)`` while the register is not 0."""
    register = VirtualRegister(int(init))
    while register.read() != 0:
        register = VirtualRegister(int(body_fun(VirtualRegister(register.read()))))


@contextlib.contextmanager
def no_reorder() -> Iterator[None]:
    """Program order within the block, which the simulator always keeps."""
    yield


def program_id(axis: int = 0) -> int:
    """This core's place in the grid.

    Raises:
      ValueError: there is no such axis.
    """
    core = current_core()
    if axis != 0:
        raise ValueError(f"program_id: axis must be 0, got {axis}")
    return core.index


def num_programs(axes: Any = 0) -> int:
    """Cores in the grid.

    Raises:
      ValueError: there is no such axis.
    """
    if axes not in (0, (0,), [0], None):
        raise ValueError(f"num_programs: axes must be 0, got {axes}")
    return current_core().machine.lnc


def program_ndim() -> int:
    """Dimensions of the launch grid: 0 for a single core, else 1."""
    return current_core().machine.grid_ndim
