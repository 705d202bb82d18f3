"""Which keys each query attends, as ranges of slots: no mask is as large as the context."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from jax_tkg.call.arguments import Operands
from jax_tkg.call.dimensions import Dimensions
from jax_tkg.call.integers import as_int32, by_token

BLOCK_SLOTS = 256
"""Cache slots that attention takes at once, at most."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Ranges:
    """What the queries of a kind of layers attend; a pytree.

    Rows are those of `jax_tkg.reference.attention.rows_of_queries`: R = q // k * S for each of the
    N = B * k KV heads.

    Attributes:
      starts: [N, R, 1] int32, the first slot that each row attends. Where it is above the end, the
        range wraps: the slots below the end and those from the start on are attended.
      ends: [N, R, 1] int32, the slot after the last one.
      last: uint32 scalar, how many blocks of slots hold all that is attended; None: all blocks are
        looked at.
      context: S_ctx.
      tokens: S.
      window: how many tokens a query attends, itself included; None: all.
      attends_new: bool scalar, whether this rank attends the new tokens too; None: it does.
    """

    starts: jax.Array
    ends: jax.Array
    last: jax.Array | None
    context: int = dataclasses.field(metadata={"static": True})
    tokens: int = dataclasses.field(metadata={"static": True})
    window: int | None = dataclasses.field(metadata={"static": True})
    attends_new: jax.Array | None = None

    @property
    def block(self) -> int:
        """Slots of a block."""
        return min(BLOCK_SLOTS, self.context)

    @property
    def turns(self) -> jax.Array | int:
        """How many blocks are looked at."""
        return -(-self.context // self.block) if self.last is None else self.last


@dataclasses.dataclass(frozen=True)
class AttendedKeys:
    """Makes `Ranges` of the operands, in place of `jax_tkg.reference.masks.attended_keys`.

    Attributes:
      windows: of each kind of layers, or None.
      fixed: whether all blocks of the context are looked at, and not only those that are attended.
    """

    windows: tuple[int | None, ...]
    fixed: bool

    def __call__(self, operands: Operands, dimensions: Dimensions, kind: int) -> Ranges:
        """The ranges of the layers of a kind."""
        D = dimensions
        # Beyond the context they still say whether a range wraps.
        ends = jnp.maximum(by_token(as_int32(operands.context_lengths)), 0)
        starts = jnp.zeros_like(ends)
        if operands.context_starts is not None:
            starts = jnp.maximum(by_token(as_int32(operands.context_starts)), 0)
        starts, ends = jnp.broadcast_arrays(starts, ends)
        # Callers give no such mask: where there is one, it is that of a rank that has a part of the
        # context, on which the first token attends itself or no token attends any.
        active = operands.mask_active
        ranges = Ranges(
            starts=_rows(starts, D),
            ends=_rows(ends, D),
            last=None,
            context=D.S_ctx,
            tokens=D.S,
            window=self.windows[kind],
            attends_new=None if active is None else active[0, 0, 0, 0],
        )
        if self.fixed or not D.S_ctx:
            return ranges
        slots = jnp.where(starts > ends, D.S_ctx, jnp.minimum(ends, D.S_ctx)).max()
        last = (slots + (ranges.block - 1)) // ranges.block
        return dataclasses.replace(ranges, last=last.astype(jnp.uint32))


def _rows(numbers: jax.Array, D: Dimensions) -> jax.Array:
    """[B, 1] or [B, S] as [B*k, q // k * S, 1]."""
    g = D.queries_per_kv_head
    wide = jnp.broadcast_to(numbers[:, None, None], (D.B, D.k, g, D.S))
    return wide.reshape(D.B * D.k, g * D.S, 1)
