"""Checks of the arrays of `transformer_tkg` together, made before anything is traced further.

Each error names the argument, what was expected (with the arithmetic) and what came.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp

from jax_tkg.call.arguments import (
    COMPUTE_DTYPES,
    FLOAT8_CACHE_DTYPES,
    FLOAT8_DTYPES,
    MAX_HEAD_SIZE,
    MAX_NEW_TOKENS,
    PER_LAYER_CACHES,
)
from jax_tkg.call.dimensions import (
    LETTERS_OF_KINDS,
    SOLVING_ORDER,
    Dimensions,
    infer_sizes,
    layout_of_rank,
)
from jax_tkg.call.entries import (
    entries,
    holds_kind_stacks,
    is_in_blocks,
    layer_of,
    row_of,
    said_of_kind,
)
from jax_tkg.call.expert_checks import (
    NO_EXPERTS,
    RoutingOptions,
    check_expert_layers,
    check_expert_options,
)
from jax_tkg.call.form_checks import check_cache_forms, check_kind_entries, check_presence
from jax_tkg.call.layer_kinds import LayerKinds, by_kind
from jax_tkg.call.operand_table import BY_NAME, OPERANDS, Operand


def check_operands(
    arguments: Mapping[str, Any],
    num_layers: int,
    layer_kinds: tuple[int, ...] | None = None,
    context_bucket: int | tuple[int | None, ...] | None = None,
    routing: RoutingOptions = NO_EXPERTS,
    max_new_tokens: int | None = MAX_NEW_TOKENS,
    context_parallel: int = 1,
) -> None:
    """Checks the arrays of a call.

    Args:
      arguments: the public array arguments by name.
      num_layers: L.
      layer_kinds: the canonical kinds of the layers, or None.
      context_bucket: S_ctx where `context_lengths` is in place of a mask, or one for each kind.
      routing: the options that layers with experts depend on.
      max_new_tokens: the largest S; None: any.
      context_parallel: ranks that share out the slots of a sequence.

    Raises:
      TypeError: an argument is missing or no array, or has a dtype that it may not have.
      ValueError: too few layers; a wrong rank, shape or size; not one entry for each kind; a float8
        weight or cache without its scale or a scale without its float8 array.
    """
    kinds = LayerKinds.of(layer_kinds, num_layers)
    for row in OPERANDS:
        if row.per_kind and isinstance(arguments[row.name], Sequence):
            check_kind_entries(row, arguments[row.name], layer_kinds)
        else:
            check_presence(row, arguments[row.name], kinds, named=layer_kinds is not None)
    check_cache_forms(arguments)
    for kind in range(kinds.count):
        _check_context(arguments, kinds, kind, by_kind(context_bucket, kind))
    for row in OPERANDS:
        for kind in range(kinds.count):
            for label, value in entries(row, arguments[row.name], kinds, kind):
                _check_rank(row_of(row, arguments, kinds, kind, value), label, value)
    layers = {
        row.name: [layer_of(row.name, arguments[row.name], index) for index in range(num_layers)]
        for row in OPERANDS
        if row.of_experts is not None or row.needs_experts
    }
    check_expert_layers(layers)
    dimensions = [
        _with_bucket(D, arguments, by_kind(context_bucket, kind), kinds, kind, context_parallel)
        for kind, D in enumerate(_infer_dimensions(arguments, kinds))
    ]
    for row in OPERANDS:
        for kind, D in enumerate(dimensions):
            _check_shapes(row, arguments, D, kinds, kind)
    for kind, D in enumerate(dimensions):
        _check_sizes(arguments, D, kinds, kind, max_new_tokens, context_parallel)
    check_expert_options(layers, dimensions[0], routing)
    for row in OPERANDS:
        if row.scaled_by is not None:
            _check_scales(row, arguments, kinds)


def _check_context(
    arguments: Mapping[str, Any], kinds: LayerKinds, kind: int, bucket: int | None
) -> None:
    """Checks that either a mask or lengths say which cache slots a kind's queries attend."""
    mask, lengths, starts = (
        entries(BY_NAME[name], arguments[name], kinds, kind)
        for name in ("mask_cache", "context_lengths", "context_starts")
    )
    of_kind = said_of_kind(kinds, kind)
    if not mask and not lengths:
        several = isinstance(arguments["mask_cache"], Sequence)
        label = f"mask_cache[{kind}]" if several else "mask_cache"
        raise TypeError(f"{label}: expected an array, or context_lengths{of_kind}, got None")
    if mask and lengths:
        ((label, _),), ((beside, _),) = lengths, mask
        raise ValueError(
            f"{label}: expected None beside {beside}, which says which slots are attended, got an "
            "array"
        )
    if starts and not lengths:
        ((label, _),) = starts
        raise ValueError(f"{label}: expected None without context_lengths{of_kind}, got an array")
    tables = entries(BY_NAME["block_tables"], arguments["block_tables"], kinds, kind)
    if tables and bucket is not None:
        ((beside, _),) = tables
        raise ValueError(
            f"context_bucket{of_kind}: expected None beside {beside}, [B, n], where S_ctx = n * "
            f"block_len, got {bucket}"
        )
    if mask and bucket is not None:
        ((beside, value),) = mask
        raise ValueError(
            f"context_bucket{of_kind}: expected None beside {beside}, whose first axis is S_ctx = "
            f"{value.shape[0] if value.shape else 0}, got {bucket}"
        )


def _with_bucket(
    D: Dimensions,
    arguments: Mapping[str, Any],
    bucket: int | None,
    kinds: LayerKinds,
    kind: int,
    context_parallel: int,
) -> Dimensions:
    """The sizes with S_ctx where no mask says it, and with S_max where caches are in blocks."""
    if is_in_blocks(arguments, kinds, kind):
        D = dataclasses.replace(D, S_max=D.n * D.block_len)
    if entries(BY_NAME["mask_cache"], arguments["mask_cache"], kinds, kind):
        return D
    return dataclasses.replace(D, S_ctx=D.S_max * context_parallel if bucket is None else bucket)


def _check_rank(row: Operand, label: str, value: Any) -> None:
    if layout_of_rank(row, len(value.shape)) is None:
        accepted = [*row.layouts, *([] if row.of_experts is None else [row.of_experts])]
        ranks = dict.fromkeys(len(layout.axes) for layout in accepted)
        layouts = " or ".join(layout.text for layout in accepted)
        raise ValueError(
            f"{label}: expected {' or '.join(map(str, ranks))} dimensions, {layouts}, got "
            f"{len(value.shape)}: {list(value.shape)}"
        )


def _infer_dimensions(arguments: Mapping[str, Any], kinds: LayerKinds) -> list[Dimensions]:
    """For each kind of layers, the sizes that most arrays agree on.

    Of per-layer arguments each layer has a vote. One layer that differs from its neighbors is then
    the one that is blamed.
    """
    shapes: list[list[tuple[str, tuple[int, ...]]]] = []
    for kind in range(kinds.count):
        shapes.append([])
        for row in OPERANDS:
            votes: dict[str, list[tuple[int, ...]]] = {}
            for _, value in entries(row, arguments[row.name], kinds, kind):
                name = row_of(row, arguments, kinds, kind, value).name
                votes.setdefault(name, []).append(tuple(value.shape))
            shapes[-1] += [
                (name, max(dict.fromkeys(counts), key=counts.count))
                for name, counts in votes.items()
            ]
    L, dtype = len(kinds.of_layers), jnp.dtype(arguments["X"].dtype)
    if kinds.count == 1:
        return [Dimensions(**infer_sizes(tuple(shapes[0])), L=L, dtype=dtype)]
    # The kinds agree on the other letters, and vote on them together.
    common = tuple(letter for letter in SOLVING_ORDER if letter not in LETTERS_OF_KINDS)
    together = tuple(dict.fromkeys(itertools.chain.from_iterable(shapes)))
    known = tuple(infer_sizes(together, common).items())
    return [
        Dimensions(**infer_sizes(tuple(own), LETTERS_OF_KINDS, known), L=L, dtype=dtype)
        for own in shapes
    ]


def _check_shapes(
    row: Operand, arguments: Mapping[str, Any], D: Dimensions, kinds: LayerKinds, kind: int
) -> None:
    sizes = D.sizes()
    for label, value in entries(row, arguments[row.name], kinds, kind):
        layouts = row_of(row, arguments, kinds, kind, value).layouts
        if row.kind == "cache" and layouts is row.layouts:
            layouts = tuple(
                layout
                for layout in layouts
                if len(layout.axes) == _cache_rank(arguments, kinds)
                and (layout is row.layout or D.k == 1)
            ) or (row.layout,)
        shapes = [layout.shape(sizes) for layout in layouts]
        if tuple(value.shape) not in shapes:
            which = said_of_kind(kinds, kind) if row.kind == "cache" else ""
            raise ValueError(
                f"{label}{which}: expected shape {_described(layouts, sizes)}, got "
                f"{list(value.shape)}"
            )
        _check_dtype(row, label, value.dtype, D)


def _cache_rank(arguments: Mapping[str, Any], kinds: LayerKinds) -> int:
    """Caches come with or without their KV-head axis, all of them alike: as the first one does."""
    name = PER_LAYER_CACHES[0]
    ((_, first), *_) = entries(BY_NAME[name], arguments[name], kinds, kinds.of_layers[0])
    return len(first.shape)


def _described(layouts: Sequence[Any], sizes: Mapping[str, int]) -> str:
    """ "[H, I] = [128, 256]", with the arithmetic in between where there is some."""
    forms = [
        [layout.text for layout in layouts],
        [layout.with_sizes(sizes) for layout in layouts],
        [str(list(layout.shape(sizes))) for layout in layouts],
    ]
    return " = ".join(dict.fromkeys(" or ".join(form) for form in forms))


def _check_sizes(
    arguments: Mapping[str, Any],
    D: Dimensions,
    kinds: LayerKinds,
    kind: int,
    max_new_tokens: int | None,
    context_parallel: int,
) -> None:
    """The limits of each letter, said of the argument that shows it best."""
    masks = entries(BY_NAME["mask_cache"], arguments["mask_cache"], kinds, kind)
    mask = masks[0][0] if masks else None
    if D.B < 1:
        raise ValueError(f"X: expected B >= 1 in [B, S, H], got B = {D.B}")
    largest = D.S if max_new_tokens is None else max_new_tokens
    if not 1 <= D.S <= largest:
        wanted = "S >= 1" if max_new_tokens is None else f"1 <= S <= {max_new_tokens}"
        raise ValueError(f"X: expected {wanted} in [B, S, H], got S = {D.S}")
    has_dense_layers = any(
        len(gate.shape) == len(BY_NAME["W_gates"].layout.axes)
        for _, gate in entries(BY_NAME["W_gates"], arguments["W_gates"], kinds, kind)
    )
    for argument, layout, letter, size in (
        ("X", "[B, S, H]", "H", D.H),
        *([("W_gates", "[H, I]", "I", D.I)] if has_dense_layers else []),
    ):
        if size < 1:
            raise ValueError(
                f"{argument}: expected {letter} >= 1 in {layout}, got {letter} = {size}"
            )
    if D.d % 2 or not 2 <= D.d <= MAX_HEAD_SIZE:
        raise ValueError(
            f"K_caches: expected d in [B, k, d, S_max] to be even and in 2..{MAX_HEAD_SIZE}, "
            f"got d = {D.d}"
        )
    row = BY_NAME["K_caches"]
    cache_layout, letters = row.layout, {"S_max": D.S_max}
    if row.in_blocks is not None and is_in_blocks(arguments, kinds, kind):
        cache_layout, letters = row.in_blocks, {"blocks": D.blocks, "block_len": D.block_len}
    for letter, size in letters.items():
        if size < 1:
            raise ValueError(
                f"K_caches{said_of_kind(kinds, kind)}: expected {letter} >= 1 in "
                f"{cache_layout.text}, got {letter} = {size}"
            )
    if D.k < 1 or D.q < 1 or D.q % D.k:
        shown = f"{mask}: expected q in [S_ctx, B, q, S]"
        if mask is None:
            shown = "W_outs: expected q in [q*d, H]"
        raise ValueError(
            f"{shown} to be a positive multiple of k = {D.k} (K_caches), got q = {D.q}"
        )
    if context_parallel > 1 and D.k != 1:
        raise ValueError(
            f"context_parallel: expected 1 with several KV heads per rank (k = {D.k}, K_caches): "
            f"ranks share out the context of one KV head, got {context_parallel}"
        )
    slots = D.S_max * context_parallel
    # Each of the ranks that share out the context has a part of a sequence's slots.
    most = "S_max"
    if context_parallel > 1:
        most = f"context_parallel * S_max = {context_parallel} * {D.S_max}"
    if D.block_len and D.S_ctx != slots:
        by_rank = "" if context_parallel == 1 else f" * {context_parallel} (context_parallel)"
        raise ValueError(
            f"{mask}: expected S_ctx = n * block_len = {D.n} * {D.block_len}{by_rank} = {slots} "
            f"(block_tables), got S_ctx = {D.S_ctx}"
        )
    if D.S_ctx > slots:
        raise ValueError(
            f"{mask or 'context_bucket'}: expected S_ctx <= {most} = {slots} "
            f"(K_caches{said_of_kind(kinds, kind)}), got "
            f"S_ctx = {D.S_ctx}"
        )
    unified = not entries(BY_NAME["mask_active"], arguments["mask_active"], kinds, kind)
    if mask is not None and unified and D.S_ctx < D.S:
        raise ValueError(
            f"{mask}: expected S_ctx >= S = {D.S} where mask_active is None (its last S rows "
            f"are the active mask), got S_ctx = {D.S_ctx}"
        )


def _check_dtype(row: Operand, label: str, dtype: Any, D: Dimensions) -> None:
    dtype = jnp.dtype(dtype)
    if row.kind == "mask":
        # 0 and -1e9, the usual additive bias, would be read as the inverse of what they mean.
        if dtype != jnp.bool_ and not jnp.issubdtype(dtype, jnp.integer):
            raise TypeError(
                f"{label}: expected a boolean or integer mask, non-zero where a query attends (no "
                f"additive bias), got {dtype.name}"
            )
        return
    if row.kind == "index":
        if not jnp.issubdtype(dtype, jnp.integer):
            raise TypeError(f"{label}: expected an integer dtype, got {dtype.name}")
        return
    accepted = _accepted_dtypes(row, D)
    if dtype not in accepted:
        wanted = " or ".join(candidate.name for candidate in accepted)
        raise TypeError(f"{label}: expected dtype {wanted}, got {dtype.name}")


def _accepted_dtypes(row: Operand, D: Dimensions) -> tuple[Any, ...]:
    if row.kind in ("scale", "cache_scale", "logit"):
        return (jnp.dtype(jnp.float32),)
    if row.kind == "head" or (row.kind == "weight" and row.scaled_by is None):
        return (D.dtype,)
    if row.kind == "cache":
        return (D.dtype, *FLOAT8_CACHE_DTYPES)
    if row.kind == "weight":
        return (D.dtype, *FLOAT8_DTYPES)
    if row.kind == "router":
        return tuple(dict.fromkeys((D.dtype, jnp.dtype(jnp.float32))))
    return COMPUTE_DTYPES


def _check_scales(row: Operand, arguments: Mapping[str, Any], kinds: LayerKinds) -> None:
    """A layer's weight, or cache, is float8 exactly where it has a scale."""
    assert row.scaled_by is not None
    by_kind_stacks = row.kind == "cache" and holds_kind_stacks(arguments[row.name])
    for index, kind in enumerate(kinds.of_layers):
        weight_label, weight = layer_of(
            row.name, arguments[row.name], kind if by_kind_stacks else index
        )
        scale_label, scale = layer_of(row.scaled_by, arguments[row.scaled_by], index)
        dtype = jnp.dtype(weight.dtype)
        if dtype in FLOAT8_DTYPES and scale is None:
            raise ValueError(
                f"{scale_label}: expected a scale for {weight_label} of dtype {dtype.name}, "
                f"got None"
            )
        if dtype not in FLOAT8_DTYPES and scale is not None:
            raise ValueError(
                f"{scale_label}: expected None, because {weight_label} has dtype {dtype.name} and "
                f"not a float8 one, got a scale of shape {list(scale.shape)}"
            )
