"""Reading prompts: the operation for hundreds of new tokens, in jax.numpy.

`transformer_prefill` computes what calls of `transformer_tkg` with few tokens each compute. Memory
is bounded by the new tokens of a call: no array has both their number and the context's as axes.
"""

from jax_tkg.prefill.operation import transformer_prefill

__all__ = ["transformer_prefill"]
