"""The results of one call."""

from __future__ import annotations

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


jax.export.register_namedtuple_serialization(
    TransformerTkgOutput, serialized_name="jax_tkg.TransformerTkgOutput"
)
