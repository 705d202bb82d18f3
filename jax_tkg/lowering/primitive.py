"""The JAX primitive: evaluation, abstract evaluation, lowering, batching, differentiation.

The operands of the primitive are the leaves of `Operands`; its parameters are the pytree structure
of the operands and the static `Parameters`. The results are the hidden states and then the leaves
of the updated key and value caches: in that order, so that donated caches pair with results. With
a head the logits and ids of candidates follow.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from jax_tkg.call.arguments import Operands, Parameters, is_stacked
from jax_tkg.call.operand_table import OPERANDS
from jax_tkg.lowering.choice import choose
from jax_tkg.lowering.host_call import own_exceptions
from jax_tkg.lowering.implementation import Implementation
from jax_tkg.lowering.reference import REFERENCE
from jax_tkg.lowering.registry import named

transformer_tkg_p = Primitive("transformer_tkg")
transformer_tkg_p.multiple_results = True


def bind(operands: Operands, parameters: Parameters) -> tuple[Any, ...]:
    """Binds the primitive on checked operands.

    Returns:
      Hidden states, the updated caches as `Operands` holds them, and with a head the candidates.
    """
    leaves, structure = jax.tree.flatten(operands)
    hidden, *rest = transformer_tkg_p.bind(*leaves, structure=structure, parameters=parameters)
    K_structure, V_structure = (
        jax.tree.structure(given) for given in (operands.K_caches, operands.V_caches)
    )
    count = len(jax.tree.leaves(operands.K_caches))
    return (
        hidden,
        jax.tree.unflatten(K_structure, rest[:count]),
        jax.tree.unflatten(V_structure, rest[count : 2 * count]),
        *rest[2 * count :],
    )


@functools.lru_cache(maxsize=256)
def _compiled_bind(structure: Any, parameters: Parameters) -> Any:
    def call(*leaves: Any) -> list[jax.Array]:
        return transformer_tkg_p.bind(*leaves, structure=structure, parameters=parameters)

    return jax.jit(call)


@transformer_tkg_p.def_impl
def _evaluate(*leaves: Any, structure: Any, parameters: Parameters) -> list[jax.Array]:
    """Eager use: one jitted call, so that it lowers exactly as it does inside a jit."""
    # Under jax.disable_jit the jitted call would come back here without end.
    with jax.disable_jit(False):
        call = _compiled_bind(structure, parameters)
        asked = parameters.implementation
        if asked == "auto" or not named(asked).calls_host:
            return call(*leaves)
        with own_exceptions():
            return jax.block_until_ready(call(*leaves))


@transformer_tkg_p.def_abstract_eval
def _abstract_evaluate(*avals: Any, structure: Any, parameters: Parameters) -> list[Any]:
    """Traces the reference: its results' shapes, dtypes and shard_map types are the primitive's."""
    call = functools.partial(
        _computed,
        structure=structure,
        parameters=parameters,
        implementation=REFERENCE,
        platform=None,
    )
    return list(jax.jit(call).trace(*avals).jaxpr.out_avals)


def _computed(
    *leaves: Any,
    structure: Any,
    parameters: Parameters,
    implementation: Implementation,
    platform: str | None,
) -> list[jax.Array]:
    """An implementation on the primitive's operands, with the primitive's results."""
    operands = jax.tree.unflatten(structure, leaves)
    return jax.tree.leaves(implementation.run(operands, parameters, platform))


def _lower(ctx: Any, *values: Any, structure: Any, parameters: Parameters) -> Any:
    """The lowering rule of all platforms: it asks for which ones it lowers.

    A rule of its own for "neuron" could be registered only once a plugin has made it known.
    """
    platforms = tuple(ctx.platforms or ctx.module_context.platforms)
    choice = choose(jax.tree.unflatten(structure, ctx.avals_in), parameters, platforms)
    platform = platforms[0] if len(platforms) == 1 else None
    run = functools.partial(
        _computed, implementation=named(choice.implementation), platform=platform
    )
    rule = mlir.lower_fun(run, multiple_results=True)
    return rule(ctx, *values, structure=structure, parameters=parameters)


mlir.register_lowering(transformer_tkg_p, _lower)


def _not_differentiable(*_: Any, **__: Any) -> Any:
    raise TypeError(
        "transformer_tkg: expected no differentiation (the operation is for inference and updates "
        "its caches in place), got a tangent. jax_tkg.reference.transformer_tkg takes the same "
        "arguments and is differentiable."
    )


ad.primitive_jvps[transformer_tkg_p] = _not_differentiable


def _batch(
    leaves: Sequence[Any], axes: Sequence[Any], *, structure: Any, parameters: Parameters
) -> tuple[list[jax.Array], list[int]]:
    """Batching rule: the new axis joins B, unless an array without B has it (then one by one)."""
    # Axes are put in the place of arrays; -1 stands for "not batched", as None is no leaf.
    marked = jax.tree.unflatten(structure, [-1 if axis is None else axis for axis in axes])
    shared = [getattr(marked, row.name) for row in OPERANDS if row.batch_axis is None]
    # Blocks are no part of a sequence: each member of the new axis has its own.
    flat = marked.block_tables is None
    # Without members there would be no sequence in the joined batch.
    has_members = all(
        leaf.shape[axis] for leaf, axis in zip(leaves, axes, strict=True) if axis is not None
    )
    if flat and has_members and all(axis == -1 for axis in jax.tree.leaves(shared)):
        return _batch_folded(leaves, axes, structure, parameters)
    return _batch_in_turn(leaves, axes, structure, parameters)


batching.primitive_batchers[transformer_tkg_p] = _batch


def _batch_in_turn(
    leaves: Sequence[Any], axes: Sequence[Any], structure: Any, parameters: Parameters
) -> tuple[list[jax.Array], list[int]]:
    batched = [
        jnp.moveaxis(leaf, axis, 0)
        for leaf, axis in zip(leaves, axes, strict=True)
        if axis is not None
    ]

    def one(entries: Sequence[Any]) -> list[jax.Array]:
        remaining = iter(entries)
        full = [
            leaf if axis is None else next(remaining)
            for leaf, axis in zip(leaves, axes, strict=True)
        ]
        return transformer_tkg_p.bind(*full, structure=structure, parameters=parameters)

    results = jax.lax.map(one, batched)
    return results, [0] * len(results)


def _batch_folded(
    leaves: Sequence[Any], axes: Sequence[Any], structure: Any, parameters: Parameters
) -> tuple[list[jax.Array], list[int]]:
    """Runs N batches of B sequences as one batch of N*B, so that weights are read once."""
    size = next(
        leaf.shape[axis] for leaf, axis in zip(leaves, axes, strict=True) if axis is not None
    )
    operands = jax.tree.unflatten(structure, leaves)
    marked = jax.tree.unflatten(structure, [-1 if axis is None else axis for axis in axes])
    # A stacked cache has its layer axis before B.
    layers = int(is_stacked(operands.K_caches))
    places = {
        row.name: row.batch_axis + (int(is_stacked(getattr(operands, row.name))) * row.per_layer)
        for row in OPERANDS
        if row.batch_axis is not None
    }

    def fold(leaf: Any, axis: int, place: int) -> jax.Array:
        if axis == -1:
            leaf, axis = jnp.broadcast_to(leaf, (size, *leaf.shape)), 0
        moved = jnp.moveaxis(leaf, axis, place)
        shape = (*moved.shape[:place], size * moved.shape[place + 1], *moved.shape[place + 2 :])
        return moved.reshape(shape)

    folded = {
        name: jax.tree.map(
            functools.partial(fold, place=place), getattr(operands, name), getattr(marked, name)
        )
        for name, place in places.items()
    }
    results = bind(dataclasses.replace(operands, **folded), parameters)

    def unfold(leaf: jax.Array, place: int) -> jax.Array:
        shape = (*leaf.shape[:place], size, leaf.shape[place] // size, *leaf.shape[place + 1 :])
        return leaf.reshape(shape)

    hidden, K_caches, V_caches, *candidates = results
    caches = jax.tree.leaves((K_caches, V_caches))
    places_of_results = [0] + [layers] * len(caches) + [0] * len(candidates)
    unfolded = map(unfold, [hidden, *caches, *candidates], places_of_results)
    return list(unfolded), places_of_results
