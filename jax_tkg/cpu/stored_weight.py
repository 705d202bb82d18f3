"""One layer's weight where it is stored: in an array of its own or within a stack of layers."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_tkg.bits import Bits
from jax_tkg.call.arguments import FLOAT8_DTYPES
from jax_tkg.cpu import float8


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class StoredWeight:
    """A weight [n, m] of which blocks of rows are read, so that a layer is never copied whole.

    Attributes:
      values: an array or `Bits`, [n, m], or [L, n, m] where `layer` is given; of experts with a
        further axis before n.
      layer: uint32 scalar, or None.
    """

    values: Any
    layer: Any = None

    @property
    def shape(self) -> tuple[int, int]:
        """n and m."""
        n, m = self.values.shape[-2:]
        return n, m

    def expert(self, number: jax.Array) -> StoredWeight:
        """Matrix `number` (an int32 scalar) of a weight of experts, [E_held, n, m]."""
        held, *matrix = self.values.shape[-3:]
        place = number.astype(jnp.uint32)
        if self.layer is not None:
            place = self.layer * jnp.uint32(held) + place
        together = jax.tree.map(lambda stored: stored.reshape(-1, *matrix), self.values)
        return StoredWeight(together, place)

    @property
    def dtype(self) -> np.dtype:
        """The weight's own dtype, whatever form its bits are in."""
        return jnp.dtype(self.values.dtype)

    @property
    def is_bits(self) -> bool:
        """Whether the weight is held as unsigned integers."""
        return isinstance(self.values, Bits)

    @property
    def factor(self) -> float:
        """What values read with `rows` or `rows_in` are to be multiplied by: a power of two."""
        return float8.FACTORS[self.dtype.name] if self._is_float8_bits else 1.0

    @property
    def _is_float8_bits(self) -> bool:
        return self.is_bits and self.dtype in FLOAT8_DTYPES

    def whole(self) -> jax.Array:
        """The weight as an array [n, m] of its own dtype."""
        stored = self.values.bits if self.is_bits else self.values
        if self.layer is not None:
            stored = jax.lax.dynamic_index_in_dim(stored, self.layer, keepdims=False)
        return self._in_own_dtype(stored)

    def rows(self, start: Any, count: int) -> jax.Array:
        """Rows start..start+count as f32 [count, m], over `factor`."""
        stored = self._stored_rows(start, count)
        if self._is_float8_bits:
            return float8.decode(stored, self.dtype)
        if self.is_bits and self.dtype == jnp.bfloat16:
            # bfloat16 is the upper half of f32; XLA's own conversion gives slower loops here.
            return jax.lax.bitcast_convert_type(stored.astype(jnp.uint32) << 16, jnp.float32)
        return self._in_own_dtype(stored).astype(jnp.float32)

    def rows_in(self, dtype: jax.typing.DTypeLike, start: Any, count: int) -> jax.Array:
        """Rows start..start+count in a dtype that holds them exactly, over `factor`."""
        target = jnp.dtype(dtype)
        if target == self.dtype:
            return self._in_own_dtype(self._stored_rows(start, count))
        wide = self.rows(start, count)
        if target == jnp.bfloat16:
            # Float8 fits into the upper half of f32, so that nothing is to be rounded.
            upper = jax.lax.bitcast_convert_type(wide, jnp.uint32) >> 16
            return jax.lax.bitcast_convert_type(upper.astype(jnp.uint16), jnp.bfloat16)
        return wide.astype(target)

    def _in_own_dtype(self, stored: jax.Array) -> jax.Array:
        return jax.lax.bitcast_convert_type(stored, self.dtype) if self.is_bits else stored

    def _stored_rows(self, start: Any, count: int) -> jax.Array:
        stored = self.values.bits if self.is_bits else self.values
        if self.layer is None:
            if count == stored.shape[0]:
                return stored
            if isinstance(start, int):
                return jax.lax.slice_in_dim(stored, start, start + count)
            return jax.lax.dynamic_slice_in_dim(stored, start, count)
        return _rows_of_matrix(count, stored, self.layer, jnp.uint32(start))


def _rows_of_matrix(
    count: int, stored: jax.Array, number: jax.Array, start: jax.Array
) -> jax.Array:
    """Rows of one matrix of a stack; by `jax.vmap`, of several matrices.

    Args:
      count: how many; it divides n.
      stored: [L, n, m].
      number: uint32 scalar, of the matrix.
      start: uint32 scalar, the first row, a multiple of `count`.

    Returns:
      [count, m].
    """

    def slice_rows(stored: jax.Array, number: jax.Array, start: jax.Array) -> jax.Array:
        at = (number, start, jnp.uint32(0))
        return jax.lax.dynamic_slice(stored, at, (1, count, stored.shape[2]))[0]

    take = jax.custom_batching.custom_vmap(slice_rows)

    @take.def_vmap
    def take_of_several(
        axis_size: int,
        in_batched: list[bool],
        stored: jax.Array,
        number: jax.Array,
        start: jax.Array,
    ) -> tuple[jax.Array, bool]:
        del axis_size
        if in_batched != [False, True, False]:
            axes = [0 if batched else None for batched in in_batched]
            return jax.vmap(slice_rows, axes)(stored, number, start), True
        # In place of three numbers of each slice, which XLA puts together in a kernel for each of
        # them, there is one, of a block of rows, which it computes where it reads the block.
        L, n, m = stored.shape
        each = n // count
        block = number * jnp.uint32(each) + start // jnp.uint32(count)
        taken = jax.lax.gather(
            stored.reshape(L * each, count, m),
            block[:, None],
            jax.lax.GatherDimensionNumbers(
                offset_dims=(1, 2), collapsed_slice_dims=(0,), start_index_map=(0,)
            ),
            slice_sizes=(1, count, m),
            mode=jax.lax.GatherScatterMode.PROMISE_IN_BOUNDS,
        )
        return taken, True

    return take(stored, number, start)
