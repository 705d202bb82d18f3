"""Which instruction of a core last wrote each register.

An instruction that reads a register waits for the one that loaded it. A register with a constant,
or that counts the turns of a device loop, has no such instruction: the start of a turn waits for
everything before it anyway.
"""

from __future__ import annotations

import weakref

from jax_tkg.simulator.memory.addressing import VirtualRegister


class RegisterWriters:
    """The registers of one core, and the instructions that wrote them, by `Instruction.index`."""

    def __init__(self) -> None:
        self._writers: weakref.WeakKeyDictionary[VirtualRegister, int] = weakref.WeakKeyDictionary()

    def writer(self, register: VirtualRegister) -> int | None:
        """The instruction that wrote a register's value, or None if none did."""
        return self._writers.get(register)

    def set_writer(self, register: VirtualRegister, index: int | None) -> None:
        """Remembers which instruction wrote a register; None: it holds a constant now."""
        if index is None:
            self._writers.pop(register, None)
        else:
            self._writers[register] = index

    def copy_writer(self, register: VirtualRegister, source: VirtualRegister) -> None:
        """Remembers that a register has the value of another one."""
        self.set_writer(register, self.writer(source))
