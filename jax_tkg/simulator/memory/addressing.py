"""The parts of an address: registers, slices, and indices that are known only at run time."""

import dataclasses
from typing import Any

from jax_tkg.simulator import errors
from jax_tkg.simulator.memory.objects import NKIObject


class VirtualRegister(NKIObject):
    """A scalar register. It holds an int32 once it is written."""

    def __init__(self, state: int | None = None, frozen: bool = False):
        self.value = state
        self.frozen = frozen

    def read(self) -> int:
        """Returns the value.

        Raises:
          UninitializedReadError: the register was never written.
        """
        if self.value is None:
            raise errors.UninitializedReadError("a register is read before anything was put in it")
        return int(self.value)

    def __bool__(self) -> bool:
        return self.read() != 0

    def __index__(self) -> int:
        return self.read()

    def __int__(self) -> int:
        return self.read()


@dataclasses.dataclass(frozen=True)
class DynamicSlice:
    """`nl.ds(start, size)`: `size` elements from `start`."""

    start: Any
    size: int


@dataclasses.dataclass(frozen=True)
class Indirection:
    """How a view's first address depends on a value known only at run time.

    Attributes:
      index: an SBUF tensor or a register.
      is_vector: whether there is one index per entry of dimension 0, or one index for the view.
      stride: elements that one step of the index advances.
      limit: one past the largest valid index.
      tensor_indirection: whether the view comes from `NkiTensor.indirect`, of NeuronCore-v4.
    """

    index: Any
    is_vector: bool
    stride: int
    limit: int
    tensor_indirection: bool = False
