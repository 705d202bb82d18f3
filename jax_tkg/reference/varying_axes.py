"""Which axes of `jax.shard_map` a value varies over: a loop carries values of one type."""

from __future__ import annotations

from typing import Any

import jax


def varying_axes(aval: Any) -> frozenset[str]:
    """The manual mesh axes over which an abstract value (`jax.typeof(array)`) varies.

    Empty outside of `shard_map`, and inside of one that has `check_vma=False`.
    """
    # JAX 0.9 has `vma`, JAX 0.10 and later `manual_axis_type`.
    if hasattr(aval, "manual_axis_type"):
        return aval.manual_axis_type.varying
    return aval.vma


def vary_over(array: jax.Array, axes: frozenset[str]) -> jax.Array:
    """The array, typed as varying over `axes` too. Only its type changes; nothing is computed."""
    missing = axes - varying_axes(jax.typeof(array))
    return jax.lax.pcast(array, tuple(sorted(missing)), to="varying") if missing else array


def vary_with(array: jax.Array, *others: Any) -> jax.Array:
    """The array, typed as varying over every axis that an array in `others` (pytrees) does."""
    axes = [varying_axes(jax.typeof(other)) for other in jax.tree.leaves(others)]
    return vary_over(array, frozenset().union(*axes))
