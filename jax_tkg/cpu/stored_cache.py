"""One layer's cache where it is stored: in an array of its own or within a stack of layers."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_tkg.bits import Bits
from jax_tkg.cpu import float8


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class StoredCache:
    """A cache of which the slots of some heads are read, so that a layer is never copied whole.

    Attributes:
      values: an array or `Bits`, [B, k, ...] with d and S_max last in either order, or
        [L, B, k, ...] where `layer` is given.
      layer: uint32 scalar, or None.
    """

    values: Any
    layer: Any = None

    @property
    def shape(self) -> tuple[int, ...]:
        """[B, k, ...] of one layer."""
        return tuple(self.values.shape[-4:])

    @property
    def dtype(self) -> np.dtype:
        """The cache's own dtype, whatever form its bits are in."""
        return jnp.dtype(self.values.dtype)

    def slots(
        self,
        slot_axis: int,
        context: int,
        start: jax.Array,
        count: int,
        after: jax.Array,
        first: jax.Array | None = None,
    ) -> jax.Array:
        """T slots of heads start..start+count of the B*k.

        Args:
          slot_axis: the axis of the slots, -1 or -2.
          context: T.
          start: uint32 scalar.
          count: heads.
          after: uint32 0, before which nothing is copied or converted.
          first: the first of the slots, a uint32 scalar; None: 0.

        Returns:
          [count, d, T] or [count, T, d], as `slot_axis` says, in the cache's own dtype; of float8
          bits f32.
        """
        cache, layer = self.values, self.layer
        one = cache.bits if isinstance(cache, Bits) else cache
        *_, batch, k, rows, columns = one.shape
        one = one.reshape(*one.shape[:-4], batch * k, rows, columns)
        place, sizes = [start, jnp.uint32(0), jnp.uint32(0)], [count, rows, columns]
        place[slot_axis] = after if first is None else first + after
        sizes[slot_axis] = context
        if layer is not None:
            place, sizes = [layer + after, *place], [1, *sizes]
        if isinstance(cache, Bits) and tuple(sizes) == one.shape:
            one = one | after.astype(one.dtype)  # This slice is the whole, wherever it begins.
        one = jax.lax.dynamic_slice(one, place, sizes).reshape(sizes[-3:])
        if not isinstance(cache, Bits):
            return one
        factor = float8.FACTORS.get(self.dtype.name)
        if factor is not None:
            return float8.decode(one, self.dtype) * factor
        return jax.lax.bitcast_convert_type(one, cache.dtype)
