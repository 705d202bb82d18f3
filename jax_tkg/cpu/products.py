"""rows @ weight in the formulations of `jax_tkg.cpu.formulation`, all accumulated in f32."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_tkg.cpu import formulation
from jax_tkg.cpu.formulation import Form
from jax_tkg.cpu.loops import repeat
from jax_tkg.cpu.stored_weight import StoredWeight
from jax_tkg.reference.varying_axes import vary_with
from jax_tkg.reference.zeros import opaque_zero


def multiply(rows: jax.Array, weight: StoredWeight, form: Form | None = None) -> jax.Array:
    """rows @ weight, accumulated in f32.

    Args:
      rows: [R, n] in the compute dtype.
      weight: [n, m] in the compute dtype or float8.
      form: how it is computed, or None: as `formulation.choose` says. SUMMED wants n to be a
        multiple of `formulation.TERMS`.

    Returns:
      [R, m] f32.
    """
    form = form or formulation.choose(weight, rows.shape[0], rows.dtype)
    return {Form.WHOLE: _whole, Form.SUMMED: _summed, Form.BLOCKS: _in_blocks}[form](rows, weight)


def _whole(rows: jax.Array, weight: StoredWeight) -> jax.Array:
    # Every float8 value is a value of each compute dtype, so this conversion is exact.
    return dot(rows, weight.whole().astype(rows.dtype))


def dot(rows: jax.Array, matrix: jax.Array, contracted: int = 0) -> jax.Array:
    """[R, n] times [n, m], or [m, n] where its axis 1 is contracted, in f32: [R, m]."""
    if rows.shape[0] == 1 and rows.dtype != jnp.float32:
        # XLA:CPU multiplies a single low-precision row 10 to 25 times slower than two rows,
        # because only matrix-matrix products take its library path.
        return dot(jnp.concatenate([rows, jnp.zeros_like(rows)]), matrix, contracted)[:1]
    return jax.lax.dot_general(
        rows,
        matrix,
        (((1,), (contracted,)), ((), ())),
        precision=jax.lax.Precision.HIGHEST,
        preferred_element_type=jnp.float32,
    )


def _summed(rows: jax.Array, weight: StoredWeight) -> jax.Array:
    """Sums of rows of the weight, each times its activation, in loops that XLA vectorizes.

    A step takes `TERMS` groups of consecutive rows of the weight and adds them up, so that each
    place of a group has a partial sum of its own; at the end these are added. Several rows of
    activations take a block of columns in turn, which stays in the processor's first cache.
    """
    inner, columns = weight.shape
    terms, count = formulation.TERMS, rows.shape[0]
    group = formulation.group_rows(inner, columns, count)
    steps = inner // (terms * group)
    factors = (rows.astype(jnp.float32) * weight.factor).T
    block = formulation.block_columns(columns, count)
    shape = (group, columns // block, count, block)

    def step(first: Any) -> Iterator[jax.Array]:
        for term in range(terms):
            start = first + (term * group if isinstance(first, int) else jnp.uint32(term * group))
            mine = jax.lax.dynamic_slice_in_dim(factors, start, group)
            values = weight.rows(start, group).reshape(group, columns // block, block)
            yield jax.lax.broadcast_in_dim(mine, shape, (0, 2)) * jax.lax.broadcast_in_dim(
                values, shape, (0, 1, 3)
            )

    def add(turn: jax.Array, partial: jax.Array) -> jax.Array:
        first = (turn + jnp.uint32(1)) * jnp.uint32(terms * group)
        return functools.reduce(jnp.add, step(first), partial)

    # The first step stands before the loop. Zeros to add to would depend on nothing, so XLA would
    # make those of all products of all layers before the first, and read them from memory later.
    partial = repeat(steps - 1, add, functools.reduce(jnp.add, step(0)))
    sums = _sum_of_rows(partial.reshape(group, -1)).reshape(shape[1:])
    return sums.swapaxes(0, 1).reshape(count, columns)


@jax.custom_batching.custom_vmap
def _sum_of_rows(partial: jax.Array) -> jax.Array:
    """[m] f32 of [n, m]."""
    # Two rows of ones, because a product of two goes to a library, of one is compiled anew.
    return dot(jnp.ones((2, partial.shape[0]), jnp.float32), partial)[0]


@_sum_of_rows.def_vmap
def _sums_of_rows(
    axis_size: int, in_batched: list[bool], partial: jax.Array
) -> tuple[jax.Array, bool]:
    """[k, m] of [k, n, m]: a product of a batch. One product of all columns transposes first."""
    del in_batched
    ones = jnp.ones((axis_size, 2, partial.shape[1]), jnp.float32)
    sums = jax.lax.dot_general(
        ones, partial, (((2,), (1,)), ((0,), (0,))), precision=jax.lax.Precision.HIGHEST
    )
    return sums[:, 0], True


def multiply_many(rows: jax.Array, weight: StoredWeight) -> jax.Array:
    """As `multiply`, for hundreds of rows: few large dots, of `formulation.many_rows_dtype`.

    With 256 rows and a weight [640, 1536], XLA:CPU takes 1.1 to 1.4 times as long in two blocks.
    """
    dtype = formulation.many_rows_dtype(rows.dtype, weight.dtype)
    return _in_blocks(rows, weight, formulation.many_rows_block(weight), dtype)


def _in_blocks(
    rows: jax.Array,
    weight: StoredWeight,
    size: int | None = None,
    dtype: np.dtype | None = None,
) -> jax.Array:
    """One dot for each block of rows of the weight, which is decoded into cache memory.

    Args:
      rows: [R, n].
      weight: [n, m].
      size: rows of a block, a divisor of n; None: as for few rows of activations.
      dtype: in which blocks are multiplied; None: likewise.
    """
    inner, columns = weight.shape
    size = size or formulation.block_rows(inner, columns)
    dtype = dtype or formulation.multiplication_dtype(rows.dtype, weight.dtype)
    scaled = (rows.astype(jnp.float32) * weight.factor).astype(dtype)

    def add(block: jax.Array, total: jax.Array) -> jax.Array:
        start = block * jnp.uint32(size)
        mine = jax.lax.dynamic_slice_in_dim(scaled, start, size, axis=1)
        return total + dot(mine, weight.rows_in(dtype, start, size))

    if size == inner:
        return dot(scaled, weight.rows_in(dtype, 0, inner))
    # Opaque zeros: XLA would make plain ones of all products of all layers before the first, and
    # read them from memory later.
    zero = jax.lax.bitcast_convert_type(opaque_zero(rows), jnp.float32)
    total = jnp.broadcast_to(zero, (rows.shape[0], columns))
    return repeat(inner // size, add, vary_with(total, weight))
