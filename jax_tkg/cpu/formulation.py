"""How products and attention are written for XLA:CPU: the one place that decides.

XLA:CPU runs the same product up to a hundred times slower in one formulation than in another.
What follows was measured on two cores of an AMD EPYC with AVX-512, weights [2048, 8192], all
alternatives in turn; the figures are times over the time that memory takes to deliver the weight,
on JAX 0.10.2 (0.7.0, no longer supported, and 0.12.0 where they differ).

| rows                                 | 1            | 2   | 4   | 8   |
|--------------------------------------|--------------|-----|-----|-----|
| f32, `x @ W`                         | 1.3          | 2.4 | 2.5 | 3.0 |
| f32, `Form.BLOCKS`                   | 1.6          | 1.9 | 1.9 | 2.5 |
| bfloat16, `x @ W`                    | 60           | 3.4 | 4   | 4.3 |
| bfloat16, one row padded to two      | 3.3 (90)     |     |     |     |
| bfloat16, W stored as [out, in]      | 2.5 (90, 3)  | 2.5 | 3.2 | 3.3 |
| bfloat16 bits, `Form.BLOCKS`         | 2.5          | 2.2 | 3.2 | 2.7 |
| float8 bits, `BLOCKS`, over bfloat16 | 0.65         | 0.6 | 0.8 | 0.7 |

The last row is float8 over bfloat16 stored as [out, in]. `Form.SUMMED` and, behind it, `BLOCKS`
(for the large weights with up to 4 rows in f32 and 2 in bfloat16 sums in steps of 1 Mi elements,
of all columns at once), over one row in `SUMMED`, which takes 1.1 (f32) and 1.3 (bfloat16) times
what memory takes: twelve layers of [576, 960], [576, 576], [576, 3072] and [1536, 576], and one of
[2048, 3072], [2048, 2048], [2048, 16384] and [8192, 2048]; the least of five turns.
`benchmarks/product_forms_cpu.py` measures them all.

| rows          | 2        | 4        | 8        | 16       | 32       |
|---------------|----------|----------|----------|----------|----------|
| f32           | 1.1, 2.0 | 1.3, 2.4 | 1.8, 2.9 | 2.6, 3.1 | 6.2, 6.8 |
| f32, large    | 1.1, 1.2 | 1.4, 1.6 | 1.6, 4.8 | 2.6, 5.8 | 4.2, 9.3 |
| bfloat16 bits | 1.3, 3.1 | 1.3, 3.0 | 2.9, 3.7 | 8.4, 7.2 |          |
| large         | 1.2, 1.3 | 1.7, 3.2 | 2.9, 4.2 | 5.4, 6.9 |          |
| float8 bits   | 2.0, 2.3 | 3.4, 2.7 | 6.5, 3.7 |          |          |
| large         | 2.1, 2.4 | 4.3, 3.1 | 6.7, 4.2 |          |          |

"Bits" are weights held as unsigned integers (`jax_tkg.bits`): up to JAX 0.10 XLA:CPU
up-casts a whole bfloat16 array before it takes a block of it, and a whole float8 array on every
version.
"""

from __future__ import annotations

import enum
import functools
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_tkg.cpu.stored_weight import StoredWeight

TERMS = 8
"""Rows of the weight that one loop of `Form.SUMMED` reads side by side.

At 16 and more the processor's prefetchers lose track and the loop is 1.5 times slower.
"""

SUMMED_ELEMENTS = 1 << 20
"""Elements of the weight that one step of `Form.SUMMED` takes for one row, at least.

A step costs a few microseconds beside its work, and its partial sums stay in the second-level
cache: 64 Ki to 1 Mi elements are level, less is slower. The most of these, because a weight that
one step takes whole needs no loop, and compiles in two thirds of the time.
"""

SEVERAL_ROWS_ELEMENTS = 1 << 17
"""As `SUMMED_ELEMENTS`, for several rows, of which each has partial sums of its own.

For thirty layers of [576, 3072] and smaller, four times as many elements are 1.4 times slower in
f32 and up to 6 times in bfloat16; for [2048, 16384] they are level.
"""

BLOCK_COLUMNS = 256
"""Columns that `Form.SUMMED` takes at once for several rows, at most.

`TERMS` rows of so many columns are 8 KiB in f32, so that each row of activations after the first
reads them from the first-level cache. 128 to 512 are level; all of 3072 are 1.1 to 1.3 times
slower, of 16384 1.5 times.
"""

SMALLEST_BLOCK_COLUMNS = 32
"""Columns of a block of `Form.SUMMED`, at least: a loop over fewer is not worth its start."""

BLOCK_ELEMENTS = 1 << 21
"""Elements of the weight in one block of `Form.BLOCKS`, at most.

The decoded block (4 or 8 MiB) is read from the last-level cache; four times as many elements are
1.5 times slower, a fourth as many 1.1 times.
"""

SMALLEST_BLOCK_ELEMENTS = 1 << 14
"""Elements of the weight in one block of `Form.BLOCKS`, at least; smaller weights are one dot."""


MANY_ROWS_BLOCK_ELEMENTS = 1 << 23
"""Elements of the weight in one block of a product of many rows, at most: 32 MiB in f32.

It bounds the memory for decoded weights. Each further block costs an addition of all sums.
"""

ATTENTION_ELEMENTS = 1 << 19
"""Elements of a cache of keys, or of values, that attention converts at once, at most.

Attention over sixteen caches of eight sequences (8 heads of 64, 512 slots, bfloat16) takes 3.5
times what memory takes to deliver them; converted whole it takes four times as long. Half as many
elements are level.
"""


class Form(enum.Enum):
    """A way to write rows @ weight."""

    WHOLE = "one dot"
    SUMMED = "rows of the weight times numbers, summed in loops"
    BLOCKS = "a dot for each block of rows of the weight"


_MOST_SUMMED_ROWS = {4: 32, 2: 8, 1: 2}
"""By bytes of a weight's element, the largest number of rows for which SUMMED is fastest.

Each row of activations decodes the weight anew, which is the dearer the more decoding there is.
"""

_MOST_SUMMED_ROWS_WITH_PRODUCTS = 2
"""The same where a block is a product of bfloat16 for which the processor has instructions.

Steps of SmolLM2-135M in bfloat16 take 0.65 to 0.7 of the time in BLOCKS with 4 rows, and half with
8; those of the shape of Llama-3.2-1B 0.85 and 0.6, with 2 rows 1.4 times.
"""


def choose(weight: StoredWeight, rows: int, activations: jax.typing.DTypeLike = "float32") -> Form:
    """The formulation of a product.

    Args:
      weight: [n, m].
      rows: rows of activations, B*S.
      activations: their dtype.
    """
    if not (weight.is_bits or is_sliced_without_conversion(weight.dtype)):
        return Form.WHOLE
    inner, columns = weight.shape
    # Without a loop, partial sums of several rows are as large as the weight and more: thirty
    # weights [640, 1536] in f32 take 140 ms for four rows, in blocks 11.
    most = _MOST_SUMMED_ROWS[weight.dtype.itemsize]
    if many_rows_dtype(activations, weight.dtype) == jnp.bfloat16:
        most = min(most, _MOST_SUMMED_ROWS_WITH_PRODUCTS)
    few = rows <= most and inner % TERMS == 0
    # XLA of JAX 0.9 fuses what leads to the activations, all layers before included, into a sum
    # outside of a loop: thirty layers in bfloat16 take 2.7 seconds a step, f32 a fifth longer.
    separate = jax.__version_info__ >= (0, 10) or weight.dtype.itemsize == 4
    if few and ((rows == 1 and separate) or inner > TERMS * group_rows(inner, columns, rows)):
        return Form.SUMMED
    block_elements = block_rows(inner, columns) * columns
    return Form.BLOCKS if block_elements >= SMALLEST_BLOCK_ELEMENTS else Form.WHOLE


def experts_at_once(pairs: int, weight: StoredWeight) -> int:
    """How many pairs of a token and an expert run side by side: a divisor of `pairs`.

    The sums of small matrices are too little work for XLA:CPU to share between cores; those of
    several experts in one loop are enough. They read as much as one step of a large weight.

    Args:
      pairs: of a token and an expert.
      weight: of experts, [..., n, m].
    """
    inner, columns = weight.shape
    if choose(weight, 1) is not Form.SUMMED:
        return 1
    return max(s for s in _divisors(pairs) if s == 1 or s * inner * columns <= SUMMED_ELEMENTS)


def attention_heads(cache: Any, heads: int, context: int) -> int:
    """How many of the B*k heads of a cache attention takes at once: a divisor of them.

    Low-precision caches are converted to f32 for the products; of `ATTENTION_ELEMENTS` at a time
    the results stay in the processor's caches. float32 is read as it is.

    Args:
      cache: [..., B, k, d, S_max], whatever has a shape and a dtype.
      heads: B*k.
      context: slots attended.
    """
    if jnp.dtype(cache.dtype).itemsize >= 4:
        return heads
    each = cache.shape[-2] * context
    few = (count for count in _divisors(heads) if count * each <= ATTENTION_ELEMENTS)
    return max(few, default=1)


def is_sliced_without_conversion(dtype: jax.typing.DTypeLike) -> bool:
    """Whether XLA:CPU slices and updates arrays of a dtype without converting all of them.

    It does for f32 and f16; for bfloat16 since JAX 0.12 (not in 0.10; those between were not
    tried); for float8 it converts to f16 first.
    """
    kind = jnp.dtype(dtype)
    if kind == jnp.bfloat16:
        return jax.__version_info__ >= (0, 12)
    return kind.itemsize > 1


def group_rows(inner: int, columns: int, rows: int) -> int:
    """Rows of the weight that each of the `TERMS` terms of one step of `Form.SUMMED` has.

    Args:
      inner: n, a multiple of `TERMS`.
      columns: m.
      rows: rows of activations.
    """
    each = inner // TERMS
    least = SUMMED_ELEMENTS if rows == 1 else SEVERAL_ROWS_ELEMENTS
    enough = [size for size in _divisors(each) if TERMS * size * columns >= least]
    return min(enough, default=each)


def block_columns(columns: int, rows: int) -> int:
    """Columns that `Form.SUMMED` takes at once: a divisor of the weight's.

    Args:
      columns: m.
      rows: rows of activations; one row needs no blocks.
    """
    largest = max(size for size in _divisors(columns) if size <= BLOCK_COLUMNS)
    return columns if rows == 1 or largest < SMALLEST_BLOCK_COLUMNS else largest


def many_rows_block(weight: StoredWeight) -> int:
    """Rows of the weight in one block of a product of many rows: a divisor of n.

    A weight of a list that is held in other elements than f32 has two blocks at least, as in
    `block_rows`.
    """
    inner, columns = weight.shape
    sizes = _divisors(inner)
    if weight.layer is None and weight.dtype != jnp.float32:
        sizes = sizes[:-1] or sizes
    return max((s for s in sizes if s * columns <= MANY_ROWS_BLOCK_ELEMENTS), default=1)


def block_rows(inner: int, columns: int) -> int:
    """Rows of one block of `Form.BLOCKS`: the largest divisor of n within `BLOCK_ELEMENTS`.

    There are two blocks at least: outside of a loop XLA decodes the weights of all layers before
    it begins with the first.
    """
    small = (size for size in _divisors(inner)[:-1] if size * columns <= BLOCK_ELEMENTS)
    return max(small, default=1)


def _divisors(number: int) -> list[int]:
    return [candidate for candidate in range(1, number + 1) if number % candidate == 0]


def many_rows_dtype(activations: jax.typing.DTypeLike, weight: np.dtype) -> np.dtype:
    """The dtype in which products of hundreds of rows are fastest, which arithmetic bounds.

    On an AMD EPYC with AVX512-BF16 products of bfloat16 run at 1.8 to 2.8 times the rate of f32
    (256 and 512 rows, weights [640, 960] to [1536, 640]). On processors without such instructions
    they take 1.0 to 1.4 times as long as f32 (256 rows, [640, 1536]).
    """
    if not has_bfloat16_products():
        return jnp.dtype(jnp.float32)
    return multiplication_dtype(activations, weight)


@functools.cache
def has_bfloat16_products() -> bool:
    """Whether this machine's processor has instructions that multiply bfloat16 (x86, on Linux)."""
    try:
        words = pathlib.Path("/proc/cpuinfo").read_text().split()
    except OSError:
        return False
    return not {"avx512_bf16", "amx_bf16"}.isdisjoint(words)


def multiplication_dtype(activations: jax.typing.DTypeLike, weight: np.dtype) -> np.dtype:
    """The dtype in which XLA:CPU multiplies a block: that of its fast library paths.

    bfloat16 has one (products in f32); f16 has none.
    """
    exact = jnp.dtype(weight).itemsize == 1 or jnp.dtype(weight) == jnp.bfloat16
    both = jnp.dtype(activations) == jnp.bfloat16 and exact
    return jnp.dtype(jnp.bfloat16 if both else jnp.float32)
