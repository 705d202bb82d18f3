"""Where the slots of a running batch keep their keys and values: flat caches, or blocks of a pool.

A prompt is read into flat caches of one sequence and then inserted. Who takes part in a step passes
`tables` to the step, and `target` to the insertion: of flat caches None and a row, of blocks the
numbers of the blocks.
"""

from __future__ import annotations

import abc
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_tkg.bits import Bits
from jax_tkg.caches import context_bucket, insert
from jax_tkg.models.forward import ModelForward
from jax_tkg.serving.block_pool import BlockPool


class SlotCaches(abc.ABC):
    """The caches of all slots.

    Args:
      capacity: most tokens of a sequence.

    Attributes:
      arrays: key caches and value caches, as `ModelForward.hidden` takes them. Whoever donates them
        puts what comes back here.
    """

    arrays: tuple[Any, Any]

    def __init__(self, capacity: int):
        self._capacity = capacity

    @abc.abstractmethod
    def check(self, tokens: int) -> None:
        """Raises ValueError where a sequence of so many tokens never finds room."""

    @abc.abstractmethod
    def reserve(self, slot: int, tokens: int) -> bool:
        """Keeps room for all tokens that a sequence will write; False where it has to wait."""

    @abc.abstractmethod
    def release(self, slot: int) -> None:
        """Gives up what a slot has reserved."""

    @abc.abstractmethod
    def bucket(self, length: int) -> int:
        """S_ctx of a step before which a sequence has `length` tokens."""

    @abc.abstractmethod
    def tables(self, S_ctx: int) -> np.ndarray | None:
        """`block_tables` of a step with this context bucket, or None."""

    @abc.abstractmethod
    def target(self, slot: int, length: int) -> np.ndarray:
        """Where `inserted` puts a prompt of `length` tokens."""

    @abc.abstractmethod
    def inserted(
        self, caches: tuple[Any, Any], target: jax.Array, new: tuple[Any, Any], length: int
    ) -> tuple[Any, Any]:
        """Puts a prompt's keys and values into the caches; for use inside a jitted function.

        Args:
          caches: as `arrays`.
          target: from `target`.
          new: flat caches of one sequence, as `ModelForward.caches(1)` makes them.
          length: a context bucket that holds the prompt; static.
        """

    def finite(self, caches: tuple[Any, Any], length: int) -> tuple[Any, Any]:
        """Flat caches of one sequence with zeros in place of what is not finite.

        Slots that no query attends must hold finite numbers too. For use inside a jitted function.

        Args:
          caches: as `ModelForward.caches(1)` makes them.
          length: of how many tokens; those that follow are as they were; static.
        """
        K_caches, V_caches = caches
        return _finite(K_caches, -1, length), _finite(V_caches, -2, length)


class FlatCaches(SlotCaches):
    """A row of `capacity` tokens for each slot; windows' rings are shorter.

    Args:
      forward: the model.
      slots: how many.
      capacity: most tokens of a sequence.
    """

    def __init__(self, forward: ModelForward, slots: int, capacity: int):
        super().__init__(capacity)
        self.arrays = forward.caches(slots)
        self._context_parallel = forward.context_parallel

    def check(self, tokens: int) -> None:
        """A slot has room for every sequence."""

    def reserve(self, slot: int, tokens: int) -> bool:
        """A slot has room for every sequence."""
        return True

    def release(self, slot: int) -> None:
        """What is written stays until the next sequence's tokens take its place."""

    def bucket(self, length: int) -> int:
        """A power of two, or the capacity."""
        return context_bucket(length, self._capacity)

    def tables(self, S_ctx: int) -> None:
        """None: there are no blocks."""
        return None

    def target(self, slot: int, length: int) -> np.ndarray:
        """The row, an int32 scalar."""
        return np.asarray(slot, np.int32)

    def inserted(
        self, caches: tuple[Any, Any], target: jax.Array, new: tuple[Any, Any], length: int
    ) -> tuple[Any, Any]:
        """Writes the first `length` slots of a row, or all of a shorter ring.

        Where ranks share out contexts, a row of each has every so-many-th of them.
        """
        K_new, V_new = new
        length = -(-length // self._context_parallel)
        return insert(*caches, target, _slots(K_new, -1, 0, length), _slots(V_new, -2, 0, length))


class BlockCaches(SlotCaches):
    """Blocks that all slots share. A sequence has as many as its prompt and its answer may need.

    Args:
      forward: the model, whose layers are of one kind, without a window.
      slots: how many.
      capacity: most tokens of a sequence; a multiple of `block_len`.
      blocks: how many there are.
      block_len: tokens of a block.

    Attributes:
      pool: the blocks that are free.

    Raises:
      ValueError: the sizes do not fit, or the model has windows.
    """

    def __init__(
        self, forward: ModelForward, slots: int, capacity: int, blocks: int, block_len: int
    ):
        super().__init__(capacity)
        if blocks < 1:
            raise ValueError(f"blocks: expected at least 1, got {blocks}")
        if block_len < 1 or capacity % block_len:
            raise ValueError(
                f"block_len: expected a divisor of the capacity, {capacity} tokens, got {block_len}"
            )
        self.arrays = forward.block_caches(blocks, block_len)
        self.pool = BlockPool(blocks)
        self._blocks = blocks
        self._block_len = block_len
        self._tables = np.full((slots, capacity // block_len), -1, np.int32)
        self._taken: dict[int, list[int]] = {}

    def check(self, tokens: int) -> None:
        """Raises ValueError where there are fewer blocks than the sequence needs."""
        needed = self._needed(tokens)
        if needed > self._blocks:
            raise ValueError(
                f"prompt, max_tokens: expected at most the {self._blocks} blocks of "
                f"{self._block_len} tokens that there are, got {tokens} tokens, which need {needed}"
            )

    def reserve(self, slot: int, tokens: int) -> bool:
        """Takes the blocks of so many tokens, or none."""
        blocks = self.pool.take(self._needed(tokens))
        if blocks is None:
            return False
        self._taken[slot] = blocks
        self._tables[slot, : len(blocks)] = blocks
        return True

    def release(self, slot: int) -> None:
        """Gives the slot's blocks back."""
        self.pool.give_back(self._taken.pop(slot))
        self._tables[slot] = -1

    def bucket(self, length: int) -> int:
        """A power of two, or the capacity, in whole blocks; that of the new token is among them."""
        bucket = context_bucket(length + 1, self._capacity)
        return -(-bucket // self._block_len) * self._block_len

    def tables(self, S_ctx: int) -> np.ndarray:
        """[B, S_ctx / block_len] int32; -1 where there is no block."""
        return self._tables[:, : S_ctx // self._block_len].copy()

    def target(self, slot: int, length: int) -> np.ndarray:
        """[n] int32, the blocks of the context bucket; -1 from those on that the prompt leaves."""
        target = self._tables[slot, : self.bucket(length) // self._block_len].copy()
        target[self._needed(length) :] = -1
        return target

    def inserted(
        self, caches: tuple[Any, Any], target: jax.Array, new: tuple[Any, Any], length: int
    ) -> tuple[Any, Any]:
        """Writes the blocks of a prompt."""
        # Blocks beyond the prompt's last one write that one again: the program is always the same.
        last = jnp.sum(target >= 0) - 1
        for index in range(length // self._block_len):
            source = jnp.minimum(index, last)
            start = source * self._block_len
            K_new, V_new = (
                _slots(new[kind], axis, start, self._block_len) for kind, axis in ((0, -1), (1, -2))
            )
            caches = insert(*caches, target[source], K_new, V_new)
        return caches

    def _needed(self, tokens: int) -> int:
        """Blocks of so many tokens."""
        return -(-tokens // self._block_len)


def _slots(caches: Any, axis: int, start: jax.Array | int, length: int) -> Any:
    """`length` slots of each cache, or all where there are fewer."""
    if isinstance(caches, list | tuple):
        return type(caches)([_slots(cache, axis, start, length) for cache in caches])
    if isinstance(caches, Bits):
        return Bits(_slots(caches.bits, axis, start, length), caches.dtype)
    axis += caches.ndim
    size = min(length, caches.shape[axis])
    return jax.lax.dynamic_slice_in_dim(caches, start, size, axis)


def _finite(caches: Any, axis: int, length: int) -> Any:
    """`caches` with zeros in place of what is not finite in the first `length` slots."""
    if isinstance(caches, list | tuple):
        return type(caches)([_finite(cache, axis, length) for cache in caches])
    first = _slots(caches, axis, 0, length)
    if isinstance(caches, Bits):
        cleared = jnp.where(jnp.isfinite(first.values()), first.bits, 0)
        bits = jax.lax.dynamic_update_slice_in_dim(caches.bits, cleared, 0, axis)
        return Bits(bits, caches.dtype)
    cleared = jnp.where(jnp.isfinite(first), first, 0)
    return jax.lax.dynamic_update_slice_in_dim(caches, cleared, 0, axis)
