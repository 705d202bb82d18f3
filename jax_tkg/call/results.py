"""The results of one call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.export


class TransformerTkgOutput(NamedTuple):
    """Results of `transformer_tkg`.

    Attributes:
      hidden: [B, S, H], the hidden states after the last layer, in X's dtype.
      K_caches: the updated key caches, in the form and container of the given ones.
      V_caches: the updated value caches, in the form and container of the given ones.
    """

    hidden: jax.Array
    K_caches: Any
    V_caches: Any


class TransformerTkgCandidates(NamedTuple):
    """Results of `transformer_tkg` with a head.

    Attributes:
      hidden: [B, S, H], the hidden states after the last layer, in X's dtype.
      K_caches: the updated key caches, in the form and container of the given ones.
      V_caches: the updated value caches, in the form and container of the given ones.
      candidate_logits: [B, S, candidates_per_token] float32, the largest logits of each token among
        those of this rank's part of the vocabulary, in descending order.
      candidate_ids: [B, S, candidates_per_token] int32, their ids in the whole vocabulary; equal
        logits in ascending order of ids.
    """

    hidden: jax.Array
    K_caches: Any
    V_caches: Any
    candidate_logits: jax.Array
    candidate_ids: jax.Array


def named_results(results: Sequence[Any]) -> TransformerTkgOutput | TransformerTkgCandidates:
    """The results of `canonical.run_checked` by name."""
    if len(results) == len(TransformerTkgOutput._fields):
        return TransformerTkgOutput(*results)
    return TransformerTkgCandidates(*results)


for _kind in (TransformerTkgOutput, TransformerTkgCandidates):
    jax.export.register_namedtuple_serialization(_kind, serialized_name=f"jax_tkg.{_kind.__name__}")
