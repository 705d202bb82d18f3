"""The sizes that `transformer_tkg` takes, for programs that prepare models for it."""

from __future__ import annotations

from jax_tkg import hardware

MAX_NEW_TOKENS = 8
"""Largest S, the new tokens of one call; the limit of token generation in AWS's `attention_tkg`."""

SIZE_MULTIPLE = hardware.PARTITIONS
"""H and I are multiples of this for kernels: they are tiled by the partitions of on-chip memory."""

MAX_HEAD_SIZE = 2 * hardware.PARTITIONS
"""Largest d: the halves of a head, which RoPE pairs, each fit on the partitions."""
