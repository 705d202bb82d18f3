"""Cases of several ranks, each with weights, caches and masks of its own, joined for a mesh."""

from __future__ import annotations

from typing import Any

import numpy as np

import jax_tkg
import jax_tkg.sharding
from jax_tkg.call.arguments import PER_LAYER
from jax_tkg.call.operand_table import OPERANDS
from tests import cases

Ranks = list[list[dict[str, Any]]]
"""[data-parallel group][tensor-parallel rank] -> the arguments of one rank."""

REPLICATED = tuple(
    row.name for row in OPERANDS if row.batch_axis is not None and row.tensor_axis is None
)
"""Inputs that every rank of one tensor-parallel group holds alike."""

SHARED_WEIGHTS = tuple(
    row.name for row in OPERANDS if row.batch_axis is None and row.tensor_axis is None
)
"""What every rank holds alike: gains, and scales of caches and of output columns that are whole."""


def random_ranks(shape: cases.Shape, groups: int, ranks: int, seed: int) -> Ranks:
    """Arguments per rank; weights differ over tensor-parallel ranks and not over groups."""
    rng = np.random.default_rng(seed)
    weights = [cases.random_weights(shape, rng) for _ in range(ranks)]
    for other in weights[1:]:
        other.update({name: weights[0][name] for name in SHARED_WEIGHTS if name in other})
    rows = []
    for _ in range(groups):
        inputs = [cases.random_inputs(shape, rng) for _ in range(ranks)]
        for other in inputs[1:]:
            other.update({name: inputs[0][name] for name in REPLICATED})
        for own in inputs:
            first = rows[0][0] if rows else inputs[0]
            own.update({name: first[name] for name in SHARED_WEIGHTS if name in own})
        rows.append([{**weights[rank], **inputs[rank]} for rank in range(ranks)])
    return rows


def join(
    ranks: Ranks, specs: jax_tkg.sharding.TransformerTkgSpecs, tensor_axis: Any, data_axis: Any
) -> dict[str, Any]:
    """The whole model's arguments: every rank's arrays side by side along the sharded axes."""

    def one(spec: Any, arrays: list[list[Any]]) -> Any:
        if arrays[0][0] is None:
            return None
        if isinstance(arrays[0][0], tuple):
            # An entry for each kind of layers.
            return tuple(
                one(spec, [[array[kind] for array in row] for row in arrays])
                for kind in range(len(arrays[0][0]))
            )
        over_ranks = [
            np.concatenate(row, axis=list(spec).index(tensor_axis)) if tensor_axis in spec
            else row[0]
            for row in arrays
        ]  # fmt: skip
        if data_axis is None or data_axis not in spec:
            return over_ranks[0]
        return np.concatenate(over_ranks, axis=list(spec).index(data_axis))

    whole: dict[str, Any] = {}
    for name, value in ranks[0][0].items():
        spec = getattr(specs, name)
        if name in PER_LAYER:
            whole[name] = [
                one(spec, [[rank[name][layer] for rank in row] for row in ranks])
                for layer in range(len(value))
            ]
        else:
            whole[name] = one(spec, [[rank[name] for rank in row] for row in ranks])
    return whole


def check(actual: Any, shape: cases.Shape, ranks: Ranks) -> None:
    """Compares the joined results with the oracle's answer for every group."""
    for group, row in enumerate(ranks):
        hidden, K, V, written = cases.expected(shape, row, row)
        sequences = slice(group * shape.B, (group + 1) * shape.B)
        for rank, arguments in enumerate(row):
            heads = slice(rank * shape.k, (rank + 1) * shape.k)
            mine = jax_tkg.TransformerTkgOutput(
                hidden=actual.hidden[sequences],
                K_caches=[cache[sequences, heads] for cache in actual.K_caches],
                V_caches=[cache[sequences, heads] for cache in actual.V_caches],
            )
            cases.check(mine, shape, arguments, hidden, K[rank], V[rank], written)
