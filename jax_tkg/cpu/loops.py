"""Counted loops that XLA compiles with as few instructions as possible."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def repeat(turns: int | jax.Array, body: Callable[[jax.Array, Any], Any], value: Any) -> Any:
    """`jax.lax.fori_loop(0, turns, body, value)` with an unsigned counter; no reverse mode.

    Unsigned, because JAX adds a comparison and a choice for each signed index of a slice;
    `fori_loop` besides carries two counters and calls its body through a function.

    Args:
      turns: how often, an int or a uint32 scalar; there is no loop for an int less than two.
      body: takes the number of the turn, uint32 from 0, and the value.
      value: what the body takes and returns.
    """
    if isinstance(turns, int) and turns < 2:
        return body(jnp.uint32(0), value) if turns else value

    def step(carry: tuple[jax.Array, Any]) -> tuple[jax.Array, Any]:
        turn, value = carry
        return turn + jnp.uint32(1), body(turn, value)

    def unfinished(carry: tuple[jax.Array, Any]) -> jax.Array:
        return carry[0] < jnp.uint32(turns)

    return jax.lax.while_loop(unfinished, step, (jnp.uint32(0), value))[1]
