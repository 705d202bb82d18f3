"""Attention masks from sequence lengths. In every mask True means "attend"."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jax_tkg.call.integers import as_int32, by_token


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


def context_mask(
    lengths: jax.Array,
    S_ctx: int,
    q: int,
    S_tkg: int,
    starts: jax.Array | None = None,
    dtype: jax.typing.DTypeLike = jnp.bool_,
) -> jax.Array:
    """The mask that `context_lengths` and `context_starts` of `transformer_tkg` stand for.

    Args:
      lengths: [B] or [B, S] integers: each query attends the slots below. Negative ones count as 0.
      S_ctx: context bucket; cache slots covered by the mask.
      q: query heads per rank.
      S_tkg: S, new tokens.
      starts: [B] or [B, S] integers, the first slot attended; None: 0. A start above the length
        wraps: the slots below the length and those from the start on are attended.
      dtype: dtype of the mask.

    Returns:
      [S_ctx, B, q, S].
    """
    slot = jnp.arange(S_ctx, dtype=jnp.int32)[:, None, None]
    end = jnp.maximum(as_int32(lengths, "lengths"), 0)
    attended = slot < by_token(end)[None]
    if starts is not None:
        start = jnp.maximum(as_int32(starts, "starts"), 0)
        begun = slot >= by_token(start)[None]
        wraps = (by_token(start) > by_token(end))[None]
        attended = jnp.where(wraps, attended | begun, attended & begun)
    shape = (S_ctx, attended.shape[1], q, S_tkg)
    return jnp.broadcast_to(attended[:, :, None], shape).astype(dtype)


def window_mask(
    lengths: jax.Array,
    window: int,
    S_ctx: int,
    q: int,
    S_tkg: int,
    S_max: int | None = None,
    dtype: jax.typing.DTypeLike = jnp.bool_,
) -> jax.Array:
    """Mask of a sliding window over a cache that may be a ring.

    The query at position t attends the positions from t - window + 1 to t: `window` tokens, itself
    included, as Hugging Face's `sliding_window` does. Slot j of a ring holds the latest position p
    before the new tokens for which p % S_max == j. The new tokens are `active_mask`'s.

    Args:
      lengths: [B] integers, tokens of each sequence before this step; the new tokens have the
        positions from there on.
      window: W, in tokens.
      S_ctx: context bucket; cache slots covered by the mask. S_max, unless no length exceeds it.
      q: query heads per rank.
      S_tkg: S, new tokens.
      S_max: slots of the cache; None: S_ctx. A ring has at least W - 1 of them.
      dtype: dtype of the mask.

    Returns:
      [S_ctx, B, q, S].

    Raises:
      ValueError: the window is not positive, S_ctx > S_max, or S_max < window - 1.
    """
    S_max = S_ctx if S_max is None else S_max
    _check_window(window)
    if not S_ctx <= S_max:
        raise ValueError(f"S_ctx: expected at most S_max = {S_max}, got {S_ctx}")
    if S_max < window - 1:
        raise ValueError(f"S_max: expected at least window - 1 = {window - 1}, got {S_max}")
    position = ring_positions(lengths, S_max)[:, :S_ctx].T
    query = _new_positions(as_int32(lengths, "lengths"), S_tkg)
    attended = (position >= 0)[:, :, None] & (position[:, :, None] > query[None] - window)
    shape = (S_ctx, attended.shape[1], q, S_tkg)
    return jnp.broadcast_to(attended[:, :, None], shape).astype(dtype)


def window_ranges(
    lengths: jax.Array, window: int, S_tkg: int, S_max: int | None = None
) -> tuple[jax.Array, jax.Array]:
    """`context_lengths` and `context_starts` of a sliding window: the ranges of `window_mask`.

    Args:
      lengths: [B] integers, tokens of each sequence before this step.
      window: W, in tokens; a query attends W of them at most, itself included.
      S_tkg: S, new tokens.
      S_max: slots of a ring, at least W - 1; None: the cache holds position p in slot p.

    Returns:
      [B, S] int32 each.

    Raises:
      ValueError: the window is not positive, or S_max < window - 1.
    """
    _check_window(window)
    if S_max is not None and S_max < window - 1:
        raise ValueError(f"S_max: expected at least window - 1 = {window - 1}, got {S_max}")
    filled = as_int32(lengths, "lengths")
    query = _new_positions(filled, S_tkg)
    first = jnp.clip(query - (window - 1), 0, filled[:, None])
    if S_max is None:
        return jnp.broadcast_to(filled[:, None], first.shape), first
    # The end is 1..S_max where there are tokens, so that a start on it has gone round: all slots.
    end = jnp.where(filled > 0, (filled - 1) % S_max + 1, 0)
    start = jnp.where(first < filled[:, None], first % S_max, end[:, None])
    whole = filled[:, None] - first == S_max
    # Each query's length is the sequence's, and where all slots are attended it is S_max.
    ends = jnp.where(whole, S_max, end[:, None])
    return ends, jnp.where(whole, 0, start)


def ring_positions(lengths: jax.Array, S_max: int) -> jax.Array:
    """The position that each slot of a ring holds: the latest of those that share the slot.

    Args:
      lengths: [B] integers, tokens of each sequence.
      S_max: slots of the ring.

    Returns:
      [B, S_max] int32; negative for a slot without a token.
    """
    last = as_int32(lengths, "lengths")[:, None] - 1
    return last - (last - jnp.arange(S_max, dtype=jnp.int32)[None]) % S_max


def _new_positions(lengths: jax.Array, S_tkg: int) -> jax.Array:
    """[B, S] int32: the positions of the new tokens behind `lengths` [B] int32."""
    return lengths[:, None] + jnp.arange(S_tkg, dtype=jnp.int32)[None]


def active_mask(
    S_tkg: int,
    B: int,
    q: int,
    new_lengths: jax.Array | None = None,
    dtype: jax.typing.DTypeLike = jnp.bool_,
    window: int | None = None,
) -> jax.Array:
    """Causal mask over the new tokens.

    Args:
      S_tkg: S, new tokens.
      B: batch.
      q: query heads per rank.
      new_lengths: [B] integers, how many of the S new tokens of each sequence are real (the first
        ones), or None where all are. Padding attends nothing, nor is it attended.
      dtype: dtype of the mask.
      window: W, how many tokens a query attends at most, itself included; None: all.

    Returns:
      [S (key), B, q, S (query)]: key <= query, both real, and query - key < window.

    Raises:
      ValueError: the window is not positive.
    """
    token = jnp.arange(S_tkg)
    causal = token[:, None, None] <= token[None, None, :]
    if window is not None:
        _check_window(window)
        causal = causal & (token[:, None, None] > token[None, None, :] - window)
    mask = jnp.broadcast_to(causal, (S_tkg, B, S_tkg))
    if new_lengths is not None:
        real = _below(new_lengths, S_tkg, "new_lengths")
        mask = mask & real[:, :, None] & real.T[None]
    return jnp.broadcast_to(mask[:, :, None, :], (S_tkg, B, q, S_tkg)).astype(dtype)


def tree_mask(parents: jax.Array, q: int, dtype: jax.typing.DTypeLike = jnp.bool_) -> jax.Array:
    """`mask_active` of token trees: each new token attends itself and those that lead to it.

    Trees are several continuations of a sequence that one call verifies. The token s of sequence b
    is written to slot lengths[b] + s, but turned by RoPE as position lengths[b] +
    `tree_depths(parents)[b, s]`; all tokens attend the sequence in the cache.
    `jax_tkg.caches.compact` keeps the accepted ones.

    Args:
      parents: [B, S] integers: which new token comes before each; negative: the sequence itself.
      q: query heads per rank.
      dtype: dtype of the mask.

    Returns:
      [S, B, q, S].
    """
    parents = as_int32(parents, "parents")
    B, S = parents.shape
    leading = _leading(parents)
    tokens = jnp.arange(S, dtype=jnp.int32)[None, None, None]
    attended = (leading[:, :, :, None] == tokens).any(axis=0)
    return jnp.broadcast_to(attended.transpose(2, 0, 1)[:, :, None], (S, B, q, S)).astype(dtype)


def tree_depths(parents: jax.Array) -> jax.Array:
    """How many new tokens lead to each token of a tree.

    Args:
      parents: as of `tree_mask`.

    Returns:
      [B, S] int32: 0 for a token that follows the sequence itself.
    """
    return (_leading(as_int32(parents, "parents"))[1:] >= 0).sum(axis=0, dtype=jnp.int32)


def _leading(parents: jax.Array) -> jax.Array:
    """[S, B, S] int32: each token, the one before it, and so on; -1 from where there is none."""
    tokens = jnp.broadcast_to(jnp.arange(parents.shape[1], dtype=jnp.int32), parents.shape)
    leading = [tokens]
    for _ in range(parents.shape[1] - 1):
        before = jnp.take_along_axis(parents, jnp.maximum(leading[-1], 0), axis=1)
        leading.append(jnp.where(leading[-1] >= 0, before, -1))
    return jnp.stack(leading)


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


def _below(counts: jax.Array, size: int, name: str = "lengths") -> jax.Array:
    """[size, B] bool: index < counts[b], for counts [B] of any integer dtype."""
    return jnp.arange(size, dtype=jnp.int32)[:, None] < as_int32(counts, name)[None]


def _check_window(window: int) -> None:
    if window < 1:
        raise ValueError(f"window: expected at least 1, got {window}")
