"""The public arguments in canonical form, and the results in the form of the arguments."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp

from jax_tkg.bits import Bits
from jax_tkg.call.arguments import (
    MAX_NEW_TOKENS,
    PER_KIND,
    PER_LAYER_CACHES,
    Operands,
    Parameters,
    is_stacked,
)
from jax_tkg.call.checks import check_operands
from jax_tkg.call.entries import holds_kind_stacks
from jax_tkg.call.expert_checks import RoutingOptions
from jax_tkg.call.explicit_axes import run_on_auto_axes
from jax_tkg.call.head_checks import check_head
from jax_tkg.call.integers import saturated
from jax_tkg.call.layer_kinds import KindStacks, LayerKinds, by_kind
from jax_tkg.call.operand_table import BY_NAME, OPERANDS
from jax_tkg.call.options import OPTION_NAMES, canonical_options

RunOperation = Callable[[Operands, Parameters], tuple[Any, ...]]
"""Runs the operation; gives hidden states, key caches and value caches as `Operands` holds them,
and with a head the logits and ids of candidates."""


def run_checked(
    run: RunOperation, arguments: Mapping[str, Any], max_new_tokens: int | None = MAX_NEW_TOKENS
) -> tuple[Any, ...]:
    """Checks the public arguments, runs the operation on them, and restores the caches' form.

    Args:
      run: the operation.
      arguments: a value for every public argument, by name.
      max_new_tokens: the largest S; None: any.

    Returns:
      Hidden states, key caches and value caches; the caches in the container and rank of the given
      ones. With a head also the logits and ids of candidates.

    Raises:
      TypeError: an argument is missing or has a wrong type or dtype.
      ValueError: a shape, size or option is wrong.
    """
    options = canonical_options({name: arguments[name] for name in OPTION_NAMES})
    num_layers = options["num_layers"]
    arrays = {row.name: arguments[row.name] for row in OPERANDS}
    check_operands(
        arrays,
        num_layers,
        options["layer_kinds"],
        options["context_bucket"],
        RoutingOptions.of(options),
        max_new_tokens,
        options["context_parallel"],
    )
    check_head(arrays, options)
    operands = Operands(
        **{name: _canonical(name, value, num_layers) for name, value in arrays.items()}
    )
    if LayerKinds.of(options["layer_kinds"], num_layers).count == 1:
        operands = dataclasses.replace(
            operands, **{name: by_kind(getattr(operands, name), 0) for name in PER_KIND}
        )
        options["layer_kinds"] = None
        options["context_bucket"] = by_kind(options["context_bucket"], 0)
    hidden, *rest = run_on_auto_axes(run, operands, Parameters(**options))
    caches, candidates = rest[:2], rest[2:]
    K_caches, V_caches = (
        _as_given(updated, arrays[name], num_layers)
        for name, updated in zip(PER_LAYER_CACHES, caches, strict=True)
    )
    return hidden, K_caches, V_caches, *candidates


def _canonical(name: str, value: Any, num_layers: int) -> Any:
    """The argument as `Operands` holds it: a tuple of L arrays, or one array."""
    if value is None:
        return None
    row = BY_NAME[name]
    if not row.per_layer:
        if not isinstance(value, Sequence):
            return _as_array(value)
        entries = tuple(None if entry is None else _as_array(entry) for entry in value)
        return None if all(entry is None for entry in entries) else entries
    # Caches of one KV head may come without its axis, which follows the batch's.
    is_cache = row.kind == "cache"
    if is_stacked(value):
        return _as_array(value if not is_cache or value.ndim == 5 else value[:, :, None])
    if is_cache and holds_kind_stacks(value):
        stacks = tuple(_as_array(stack) for stack in value)
        return KindStacks(stacks) if len(stacks) > 1 else stacks[0]
    layers = value[:num_layers]
    if is_cache:
        layers = [layer if layer.ndim == 4 else layer[:, None] for layer in layers]
    if all(layer is None for layer in layers):
        return None
    return tuple(None if layer is None else _as_array(layer) for layer in layers)


def _as_array(value: Any) -> Any:
    """A JAX array, or `Bits` of one, that is not weakly typed, as what `jnp.full` makes is."""
    if isinstance(value, Bits):
        return Bits(jnp.asarray(value.bits), value.dtype)
    value = saturated(value)
    return jnp.asarray(value, dtype=value.dtype)


def _as_given(caches: Any, given: Any, num_layers: int) -> Any:
    """Updated caches in the container and rank of the given ones; further layers as they came."""
    if is_stacked(given):
        return caches if given.ndim == 5 else caches[:, :, 0]
    container = tuple if isinstance(given, tuple) else list
    if holds_kind_stacks(given):
        return container(caches.stacks if isinstance(caches, KindStacks) else [caches])
    updated = [
        cache if before.ndim == 4 else cache[:, 0]
        for cache, before in zip(caches, given[:num_layers], strict=True)
    ]
    return container([*updated, *given[num_layers:]])
