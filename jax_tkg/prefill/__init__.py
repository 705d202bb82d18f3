"""Reading prompts: the operation for hundreds of new tokens, in jax.numpy.

`transformer_prefill` computes what calls of `transformer_tkg` with few tokens each compute. Memory
is bounded by the new tokens of a call: no array has both their number and the context's as axes.
`padded_prompt` gives prompts of all lengths a few shapes.
"""

from jax_tkg.prefill.operation import transformer_prefill
from jax_tkg.prefill.padding import padded_prompt

__all__ = ["padded_prompt", "transformer_prefill"]
