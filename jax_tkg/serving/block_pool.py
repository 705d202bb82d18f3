"""Which blocks of a paged cache are free."""

from __future__ import annotations

from collections.abc import Iterable


class BlockPool:
    """Blocks 0 .. count - 1, each free or taken.

    Args:
      count: how many there are.
    """

    def __init__(self, count: int):
        self._free = list(reversed(range(count)))
        self._taken: set[int] = set()

    @property
    def free(self) -> int:
        """How many blocks are free."""
        return len(self._free)

    def take(self, count: int) -> list[int] | None:
        """Takes blocks: as many as asked for, or None and no block is taken."""
        if count > len(self._free):
            return None
        blocks = [self._free.pop() for _ in range(count)]
        self._taken.update(blocks)
        return blocks

    def give_back(self, blocks: Iterable[int]) -> None:
        """Makes blocks free again.

        Raises:
          ValueError: one of them is not taken; those before it are free then.
        """
        for block in blocks:
            if block not in self._taken:
                raise ValueError(f"blocks: expected blocks that are taken, got {block}")
            self._taken.remove(block)
            self._free.append(block)
