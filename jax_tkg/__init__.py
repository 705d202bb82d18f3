"""The token-generation forward pass of a Llama-style transformer as one JAX primitive."""

from jax_tkg import caches, masks, quantize, reference, rope, sharding, weights
from jax_tkg.api import transformer_tkg
from jax_tkg.call.results import TransformerTkgOutput
from jax_tkg.explain import explain
from jax_tkg.lowering.neuron import dry_run

__version__ = "0.1.0"

__all__ = [
    "TransformerTkgOutput",
    "caches",
    "dry_run",
    "explain",
    "masks",
    "quantize",
    "reference",
    "rope",
    "sharding",
    "transformer_tkg",
    "weights",
]
