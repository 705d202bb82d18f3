"""Where tensors without an address could lie on chip, which orders those that share bytes.

NKI leaves the place of such a tensor to the compiler, and how it chooses is not published. Bytes
may be reused once their tensor was used for the last time in program order; what uses them next
waits until that use has ended. How long that takes depends on the choice:

- A tensor with bytes of its own (`APART`) waits for none. No memory is large enough for all.
- The bytes that have been idle the longest (`OLDEST`) are the most likely to be free in time.
- The lowest free address (`LOWEST`) is often that of the tensor that was used last.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Iterable, Iterator

from jax_tkg.hardware import PSUM_BANK_BYTES, PSUM_PARTITION_BYTES, TARGETS
from jax_tkg.simulator.machine.record import Instruction


class Placement(enum.Enum):
    """How tensors without an address are placed."""

    APART = "apart"
    OLDEST = "oldest"
    LOWEST = "lowest"


SBUF_ALIGNMENT = 32
"""Bytes. No document gives the compiler's; smaller ones pack tensors hardly closer."""

_NEVER = -1
_ALWAYS = 1 << 62


@dataclasses.dataclass(slots=True)
class _Tensor:
    """A tensor's bytes per partition, and the first and the last instruction that use it."""

    row_bytes: int
    address: int | None
    first_use: int
    last_use: int


@dataclasses.dataclass(slots=True)
class _Span:
    """Bytes of a partition up to `end`, and the last instruction that uses them."""

    start: int
    end: int
    last_use: int


def place(
    stream: Iterable[Instruction], space: str, target: str, placement: Placement
) -> dict[int, int]:
    """Places a core's tensors in SBUF or PSUM, in the order of their first uses.

    Tensors at addresses of their own keep their bytes for the whole run. One for which no bytes
    side by side are free gets no address: a compiler, which knows what comes, would have placed the
    others elsewhere.

    Args:
      stream: the core's instructions.
      space: "sbuf" or "psum".
      target: "trn1", "trn2" or "trn3".
      placement: how; `APART` places none.

    Returns:
      Byte addresses by the numbers of the storages.
    """
    if placement is Placement.APART:
        return {}
    tensors = _tensors(stream, space)
    memory = _Memory(_capacity(space, target))
    for tensor in tensors.values():
        if tensor.address is not None:
            memory.take(tensor.address, tensor.row_bytes, _ALWAYS)
    addresses = {}
    for number, tensor in tensors.items():
        if tensor.address is None:
            alignment = _alignment(space, tensor.row_bytes)
            start = memory.choose(tensor, alignment, placement)
            if start is not None:
                memory.take(start, tensor.row_bytes, tensor.last_use)
                addresses[number] = start
    return addresses


def _tensors(stream: Iterable[Instruction], space: str) -> dict[int, _Tensor]:
    """By the numbers of their storages, in the order of their first uses."""
    found: dict[int, _Tensor] = {}
    for instruction in stream:
        for access in instruction.accesses:
            if access.space != space:
                continue
            known = found.get(access.storage)
            if known is None:
                index = instruction.index
                found[access.storage] = _Tensor(access.row_bytes, access.address, index, index)
            else:
                known.last_use = instruction.index
    return found


def _capacity(space: str, target: str) -> int:
    return TARGETS[target].sbuf_partition_bytes if space == "sbuf" else PSUM_PARTITION_BYTES


def _alignment(space: str, row_bytes: int) -> int:
    """A matrix product must not cross a bank of PSUM, so a smaller tensor is kept from it."""
    if space == "sbuf":
        return SBUF_ALIGNMENT
    return min(PSUM_BANK_BYTES, 1 << (row_bytes - 1).bit_length())


class _Memory:
    """The bytes of a partition, as spans side by side."""

    def __init__(self, capacity: int):
        self._capacity = capacity
        self._spans = [_Span(0, capacity, _NEVER)]

    def choose(self, tensor: _Tensor, alignment: int, placement: Placement) -> int | None:
        """Where a tensor is placed, or None if it fits nowhere."""
        best = None
        for start, last_use in self._places(tensor.row_bytes, alignment):
            if last_use >= tensor.first_use:
                continue
            if placement is Placement.LOWEST:
                return start
            if best is None or last_use < best[1]:
                best = start, last_use
        return None if best is None else best[0]

    def _places(self, size: int, alignment: int) -> Iterator[tuple[int, int]]:
        """Where spans begin: each place with the last use of any of the bytes from there on."""
        for number, span in enumerate(self._spans):
            start = -(-span.start // alignment) * alignment
            end = start + size
            if start >= span.end or end > self._capacity:
                continue
            last_use = span.last_use
            for other in self._spans[number + 1 :]:
                if other.start >= end:
                    break
                last_use = max(last_use, other.last_use)
            yield start, last_use

    def take(self, start: int, size: int, last_use: int) -> None:
        """Bytes start .. start + size are used until instruction `last_use`."""
        end = start + size
        spans = []
        for span in self._spans:
            if span.end <= start or span.start >= end:
                spans.append(span)
                continue
            if span.start < start:
                spans.append(_Span(span.start, start, span.last_use))
            if span.start <= start:
                spans.append(_Span(start, end, last_use))
            if span.end > end:
                spans.append(_Span(end, span.end, span.last_use))
        self._spans = spans
