"""Embedding and output head of a model on its devices: between token ids and hidden states."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jax_tkg.bits import Bits
from jax_tkg.output_head import output_logits


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """The embedding and the output head of a model. A pytree.

    The head is [in, out], like the layers' weights: CPUs read this layout at memory speed.
    Checkpoints hold it as [out, in].

    Attributes:
      head: [H, V], an array or `Bits`.
      embedding: [V, H] array, or None if the head's columns serve as the embedding.
    """

    head: Any
    embedding: Any

    def embed(self, tokens: jax.Array) -> jax.Array:
        """Hidden states [..., H] of token ids [...]."""
        if self.embedding is not None:
            return self.embedding[tokens]
        held = self.head.bits if isinstance(self.head, Bits) else self.head
        columns = jnp.moveaxis(held[:, tokens], 0, -1)
        return Bits(columns, self.head.dtype).values() if isinstance(self.head, Bits) else columns

    def logits(self, hidden: jax.Array, platform: str | None) -> jax.Array:
        """Logits [B, S, V] float32 of normalized hidden states [B, S, H].

        Args:
          hidden: in the head's dtype.
          platform: the platform lowered for, where it is one; chooses the formulation.
        """
        return output_logits(hidden, self.head, platform)
