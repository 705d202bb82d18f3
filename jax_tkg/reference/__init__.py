"""The operation in plain jax.numpy, a module per stage: the contract every kernel is held to."""

from typing import Any

from jax_tkg.reference.transformer import transformer

__all__ = ["transformer", "transformer_tkg"]


def transformer_tkg(*args: Any, **kwargs: Any) -> Any:
    """`jax_tkg.transformer_tkg` as plain jax.numpy, without the primitive around it.

    Takes the same arguments, makes the same checks and returns the same results; differentiable.
    """
    # Imported late: the public function itself is built on this package.
    from jax_tkg.api import call_with_signature

    return call_with_signature(transformer, *args, **kwargs)
