"""Attention masks from sequence lengths. In every mask True means "attend"."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def cache_mask(
    lengths: jax.Array, S_ctx: int, q: int, S_tkg: int, dtype: jax.typing.DTypeLike = jnp.bool_
) -> jax.Array:
    """Every query attends the cache slots already filled: slot < lengths[b].

    Args:
      lengths: [B] integers, tokens in the cache before this step.
      S_ctx: context bucket; cache slots covered by the mask.
      q: query heads per rank.
      S_tkg: S, new tokens.
      dtype: dtype of the mask.

    Returns:
      [S_ctx, B, q, S].
    """
    filled = _below(lengths, S_ctx)
    shape = (S_ctx, filled.shape[1], q, S_tkg)
    return jnp.broadcast_to(filled[:, :, None, None], shape).astype(dtype)


def active_mask(
    S_tkg: int,
    B: int,
    q: int,
    new_lengths: jax.Array | None = None,
    dtype: jax.typing.DTypeLike = jnp.bool_,
) -> jax.Array:
    """Causal mask over the new tokens.

    Args:
      S_tkg: S, new tokens.
      B: batch.
      q: query heads per rank.
      new_lengths: [B] integers, how many of the S new tokens of each sequence are real (the first
        ones), or None where all are. Padding attends nothing, nor is it attended.
      dtype: dtype of the mask.

    Returns:
      [S (key), B, q, S (query)]: key <= query, both real.
    """
    token = jnp.arange(S_tkg)
    causal = token[:, None, None] <= token[None, None, :]
    mask = jnp.broadcast_to(causal, (S_tkg, B, S_tkg))
    if new_lengths is not None:
        real = _below(new_lengths, S_tkg)
        mask = mask & real[:, :, None] & real.T[None]
    return jnp.broadcast_to(mask[:, :, None, :], (S_tkg, B, q, S_tkg)).astype(dtype)


def unified_mask(
    lengths: jax.Array, S_ctx: int, q: int, S_tkg: int, dtype: jax.typing.DTypeLike = jnp.bool_
) -> jax.Array:
    """AWS's one-mask form, for `mask_active=None`: the last S rows are the causal active mask.

    Args:
      lengths: [B] integers, tokens in the cache before this step; at most S_ctx - S of them can
        be attended.
      S_ctx: context bucket, at least S.
      q: query heads per rank.
      S_tkg: S, new tokens.
      dtype: dtype of the mask.

    Returns:
      [S_ctx, B, q, S].

    Raises:
      ValueError: S_ctx < S_tkg.
    """
    if S_ctx < S_tkg:
        raise ValueError(f"S_ctx: expected at least S_tkg = {S_tkg}, got {S_ctx}")
    row = jnp.arange(S_ctx)
    prior = _below(lengths, S_ctx) & (row < S_ctx - S_tkg)[:, None]
    token = row[:, None] - (S_ctx - S_tkg)
    active = (token >= 0) & (token <= jnp.arange(S_tkg)[None])
    mask = prior[:, :, None, None] | active[:, None, None, :]
    shape = (S_ctx, prior.shape[1], q, S_tkg)
    return jnp.broadcast_to(mask, shape).astype(dtype)


def _below(counts: jax.Array, size: int) -> jax.Array:
    """[size, B] bool: index < counts[b], for counts [B] of any integer dtype."""
    counts = jnp.asarray(counts)
    largest = min(size, int(jnp.iinfo(counts.dtype).max))
    clipped = jnp.minimum(counts, largest).astype(jnp.int32)
    return jnp.arange(size, dtype=jnp.int32)[:, None] < clipped[None]
