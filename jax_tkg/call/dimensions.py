"""The sizes of one call, inferred from all of its arrays together.

Every axis of every array is an equation in the dimension letters. Where arrays disagree about a
letter the majority decides, so that the array that is wrong gets the blame and not the one that
happens to be read first.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp

from jax_tkg.call.arguments import Operands, is_stacked
from jax_tkg.call.layouts import Axis, Layout
from jax_tkg.call.operand_table import BY_NAME, OPERANDS, Operand

Shapes = tuple[tuple[str, tuple[int, ...]], ...]
"""Names of the given operands with their shapes (of one layer)."""

SOLVING_ORDER = (
    *("B", "S", "H", "I", "d", "S_max", "S_ctx", "q", "k", "n", "blocks", "block_len"),
    *("E", "E_held", "I_expert", "I_shared", "V"),
)
"""Letters in an order in which each has an axis of its own or only earlier letters beside it."""

LETTERS_OF_KINDS = ("S_max", "S_ctx", "n", "blocks", "block_len")
"""Letters that may differ from one kind of layers to another."""

_HALF_A_VOTE = ("mask", "index")
"""Kinds that a caller makes anew for each call: more often wrong than weights and caches."""


@dataclasses.dataclass(frozen=True)
class Dimensions:
    """The sizes of one call; `operand_table` explains the letters.

    With `block_tables`, S_max is n * block_len, what a sequence can have. Else n, `blocks` and
    `block_len` are 0. Without experts E, E_held, I_expert and I_shared are 0; I is 0 if all layers
    have experts. V is 0 without a head.
    """

    B: int
    S: int
    H: int
    I: int  # noqa: E741 - the field's letter for the MLP intermediate size
    d: int
    q: int
    k: int
    L: int
    S_ctx: int
    S_max: int
    dtype: Any
    n: int = 0
    blocks: int = 0
    block_len: int = 0
    E: int = 0
    E_held: int = 0
    I_expert: int = 0
    I_shared: int = 0
    V: int = 0

    @property
    def qkv_columns(self) -> int:
        """Columns of W_qkv: (q + 2k) * d."""
        return (self.q + 2 * self.k) * self.d

    @property
    def queries_per_kv_head(self) -> int:
        """How many query heads share one KV head: q // k."""
        return self.q // self.k

    def sizes(self) -> dict[str, int]:
        """The letters of the layouts with their sizes."""
        return {letter: getattr(self, letter) for letter in SOLVING_ORDER}

    @classmethod
    def of(cls, operands: Operands, context_bucket: int | None = None) -> Dimensions:
        """Reads the sizes off arrays that have been checked, of one kind of layers.

        Args:
          operands: as the layers of the kind see them.
          context_bucket: S_ctx, if there is no `mask_cache`; None: S_max.
        """
        B, S, H = operands.X.shape
        first, k, d, S_max = operands.layer_shape("K_caches")
        n, blocks, block_len = 0, 0, 0
        if operands.block_tables is not None:
            n, blocks, block_len = operands.block_tables.shape[1], first, S_max
            S_max = n * block_len
        q = operands.layer_shape("W_outs")[0] // d
        mask = operands.mask_cache
        S_ctx = (context_bucket or S_max) if mask is None else mask.shape[0]
        caches = operands.K_caches
        gates = operands.layer_shapes("W_gates")
        E_held, _, I_expert = next((shape for shape in gates if len(shape) == 3), (0, 0, 0))
        (*_, E), (*_, I_shared) = (
            next(iter(operands.layer_shapes(name)), (0,))
            for name in ("W_routers", "W_shared_gates")
        )
        return cls(
            B=B,
            S=S,
            H=H,
            I=next((shape[1] for shape in gates if len(shape) == 2), 0),
            d=d,
            q=q,
            k=k,
            L=caches.shape[0] if is_stacked(caches) else len(caches),
            S_ctx=S_ctx,
            S_max=S_max,
            dtype=jnp.dtype(operands.X.dtype),
            n=n,
            blocks=blocks,
            block_len=block_len,
            E=E,
            E_held=E_held,
            I_expert=I_expert,
            I_shared=I_shared,
            V=0 if operands.W_head is None else operands.W_head.shape[1],
        )


_IN_BLOCKS = {
    f"{row.name} in blocks": dataclasses.replace(row, layouts=(row.in_blocks,))
    for row in OPERANDS
    if row.in_blocks is not None
}
_OF_EXPERTS = {
    f"{row.name} of experts": dataclasses.replace(row, layouts=(row.of_experts,))
    for row in OPERANDS
    if row.of_experts is not None
}
_ROWS = {**BY_NAME, **_IN_BLOCKS, **_OF_EXPERTS}


def in_blocks(row: Operand) -> Operand:
    """A cache's row where the cache is in blocks. Its shapes vote under the name of this row."""
    name = f"{row.name} in blocks"
    return dataclasses.replace(_IN_BLOCKS[name], name=name)


def of_experts(row: Operand) -> Operand:
    """An MLP operand's row in a layer with experts. Its shapes vote under the name of this row."""
    name = f"{row.name} of experts"
    return dataclasses.replace(_OF_EXPERTS[name], name=name)


def layout_of_rank(row: Operand, rank: int) -> Layout | None:
    """The layout of an operand that has `rank` axes, or None."""
    return next((layout for layout in row.layouts if len(layout.axes) == rank), None)


@functools.lru_cache(maxsize=128)
def infer_sizes(
    shapes: Shapes,
    letters: tuple[str, ...] = SOLVING_ORDER,
    known: tuple[tuple[str, int], ...] = (),
) -> dict[str, int]:
    """The size of each letter that most arrays agree on.

    Args:
      shapes: the given operands by name, each of a rank that one of its layouts has. A name may
        occur more than once.
      letters: which letters, in the order of `SOLVING_ORDER`.
      known: other letters with their sizes.

    Returns:
      A size for each of `letters` and of `known`; the caller must not change it.
    """
    equations = [(name, axis, size) for name, shape in shapes for axis, size in _axes(name, shape)]
    sizes = dict(known)
    suspects: set[str] = set()
    for letter in letters:
        every_vote = [
            (name, value)
            for name, axis, size in equations
            for value in [_solution(axis, letter, sizes, size)]
            if value is not None
        ]
        votes = [vote for vote in every_vote if vote[0] not in suspects] or every_vote
        sizes[letter] = _majority(votes)
        suspects.update(name for name, value in votes if value != sizes[letter])
        # An array none of whose axes can be explained has nothing to say of later letters either.
        suspects.update(
            name
            for name, axis, size in equations
            if letter in axis.letters
            and axis.letters <= sizes.keys()
            and axis.evaluate(sizes) != size
        )
    return sizes


def _axes(name: str, shape: tuple[int, ...]) -> Iterator[tuple[Axis, int]]:
    row = _ROWS[name]
    layout = layout_of_rank(row, len(shape))
    assert layout is not None, (name, shape)
    same_rank = [one for one in row.layouts if len(one.axes) == len(shape)]
    for index, size in enumerate(shape):
        # [B, 1] or [B, S]: an axis that may be written in two ways says nothing.
        if len({one.axes[index].text for one in same_rank}) == 1:
            yield layout.axes[index], size
    if row.kind == "cache" and len(layout.axes) < len(row.layout.axes):
        # A cache without a KV-head axis has one KV head.
        yield Axis("k"), 1


def _solution(axis: Axis, letter: str, sizes: dict[str, int], size: int) -> int | None:
    if letter not in axis.letters or not (axis.letters - {letter}) <= sizes.keys():
        return None
    return axis.solve(letter, sizes, size)


def _majority(votes: list[tuple[str, int]]) -> int:
    """The value with most votes; of equals the one that an earlier row of the table gives."""
    counts: collections.Counter[int] = collections.Counter()
    for name, value in votes:
        counts[value] += 1 if _ROWS[name].kind in _HALF_A_VOTE else 2
    order = {name: index for index, name in enumerate(_ROWS)}
    best = min(votes, key=lambda vote: (-counts[vote[1]], order[vote[0]]), default=("", 0))
    return best[1]
