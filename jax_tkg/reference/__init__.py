"""The operation in plain jax.numpy, a module per stage: the contract every kernel is held to."""

from typing import Any

from jax_tkg.call.canonical import run_checked
from jax_tkg.call.results import (
    TransformerTkgCandidates,
    TransformerTkgOutput,
    named_results,
)
from jax_tkg.call.signature import bind_arguments
from jax_tkg.reference.transformer import transformer

__all__ = ["transformer", "transformer_tkg"]


def transformer_tkg(*args: Any, **kwargs: Any) -> TransformerTkgOutput | TransformerTkgCandidates:
    """`jax_tkg.transformer_tkg` as plain jax.numpy, without the primitive around it.

    Takes the same arguments, makes the same checks and returns the same results; differentiable.
    """
    return named_results(run_checked(transformer, bind_arguments(*args, **kwargs)))
