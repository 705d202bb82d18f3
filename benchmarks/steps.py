"""The decode steps to be timed: one call per token, caches donated, all at one fixed length."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import plain_jnp, shapes
from benchmarks.measuring import Candidate
from benchmarks.shapes import Shape
from jax_tkg.api import transformer_tkg
from jax_tkg.bits import as_bits, weights_as_bits
from jax_tkg.call.arguments import is_stacked
from jax_tkg.masks import active_mask, cache_mask
from jax_tkg.models.checkpoint import Checkpoint
from jax_tkg.models.forward import ModelForward
from jax_tkg.models.packing import PackedModel, hidden_multiple_for
from jax_tkg.models.sampling import likeliest_token
from jax_tkg.quantize import quantize_float8
from jax_tkg.rope import rope_tables
from jax_tkg.weights import TransformerWeights

OURS = "jax_tkg"
PLAIN = "plain jnp"

COMPUTE_DTYPES = {"f32": "float32", "bf16": "bfloat16", "fp8": "bfloat16"}
"""Dtype of the activations, caches and attention weights; fp8 concerns the MLP's weights."""

QUANTIZED = (
    ("W_gates", "W_gate_scales"),
    ("W_ups", "W_up_scales"),
    ("W_downs", "W_down_scales"),
)


@dataclasses.dataclass(frozen=True)
class Step:
    """A compiled decode step.

    Attributes:
      candidate: runs it once.
      temporary_bytes: what it allocates beside arguments and results.
    """

    candidate: Candidate
    temporary_bytes: int


def loaded(checkpoint: Checkpoint, dtype: str) -> PackedModel:
    """A model packed as `generate` packs it for a CPU; `dtype` is one of `COMPUTE_DTYPES`."""
    return checkpoint.load(COMPUTE_DTYPES[dtype], 1, None, hidden_multiple_for("cpu"))


def quantized(weights: TransformerWeights) -> TransformerWeights:
    """MLP weights as float8_e4m3fn with a scale per column."""
    quantize = jax.jit(functools.partial(quantize_float8, dtype=jnp.float8_e4m3fn, rows=1))
    changed = {}
    for name, scale_name in QUANTIZED:
        pairs = [quantize(weight) for weight in getattr(weights, name)]
        changed[name] = [weight for weight, _ in pairs]
        changed[scale_name] = [scale for _, scale in pairs]
    return dataclasses.replace(weights, **changed)


def ours(
    weights: TransformerWeights, shape: Shape, batch: int, context: int, capacity: int, dtype: str
) -> Step:
    """`transformer_tkg` on the layers of a shape; positions, masks and tables made in the step.

    Low-precision weights are held as bits, as `jax_tkg.bits` recommends for CPUs. The caches are
    lists or stacked as the weights are.
    """

    def step(
        x: jax.Array, weights: TransformerWeights, caches: Any, length: jax.Array
    ) -> tuple[jax.Array, Any]:
        lengths = jnp.full((batch,), length)
        cos, sin = rope_tables(lengths[:, None], shape.d, 500000.0)
        out = transformer_tkg(
            X=x,
            **weights.arguments(),
            K_caches=caches[0],
            V_caches=caches[1],
            RoPE_cos=cos,
            RoPE_sin=sin,
            mask_cache=cache_mask(lengths, context, shape.q, 1),
            mask_active=active_mask(1, batch, shape.q),
            position_ids=lengths[:, None],
            num_layers=shape.L,
        )
        return out.hidden, (out.K_caches, out.V_caches)

    stacked = is_stacked(weights.W_qkvs)
    made = shapes.random_caches(shape, batch, capacity, COMPUTE_DTYPES[dtype], stacked=stacked)
    caches = jax.tree.map(as_bits, made)
    x = jnp.ones((batch, 1, shape.H), COMPUTE_DTYPES[dtype])
    return _compiled(OURS, step, x, weights_as_bits(weights), caches, jnp.int32(context - 1))


def plain(
    weights: TransformerWeights,
    shape: Shape,
    batch: int,
    context: int,
    capacity: int,
    dtype: str,
    head: jax.Array | None = None,
) -> Step:
    """The same layers in un-tuned jax.numpy, and the product with a head [V, H] if there is one."""

    def step(
        x: jax.Array, weights: tuple[TransformerWeights, Any], caches: Any, length: jax.Array
    ) -> tuple[jax.Array, Any]:
        layers, head = weights
        hidden, K_caches, V_caches = plain_jnp.decode_step(
            x, layers, *caches, length, context, shape.q
        )
        if head is not None:
            hidden = jnp.argmax(hidden @ head.T, axis=-1)
        return hidden, (K_caches, V_caches)

    K_caches, V_caches = shapes.random_caches(shape, batch, capacity, COMPUTE_DTYPES[dtype])
    caches = ([cache.mT for cache in K_caches], V_caches)
    x = jnp.ones((batch, shape.H), COMPUTE_DTYPES[dtype])
    return _compiled(PLAIN, step, x, (weights, head), caches, jnp.int32(context - 1))


def whole_model(forward: ModelForward, batch: int, context: int) -> Step:
    """A model from token to token: embedding, layers, head, the likeliest token."""

    def step(
        tokens: jax.Array, parameters: Any, caches: Any, length: jax.Array
    ) -> tuple[jax.Array, Any]:
        hidden, updated = _layers(forward, tokens, parameters, caches, length, context)
        return likeliest_token(forward.logits(parameters, hidden)), updated

    caches = forward.caches(batch)
    tokens = jnp.ones((batch, 1), jnp.int32)
    return _compiled(OURS, step, tokens, forward.parameters, caches, jnp.int32(context - 1))


def layers_of_model(forward: ModelForward, batch: int, context: int) -> Step:
    """A model's embedding and layers without its head."""

    def step(
        tokens: jax.Array, parameters: Any, caches: Any, length: jax.Array
    ) -> tuple[jax.Array, Any]:
        return _layers(forward, tokens, parameters, caches, length, context)

    caches = forward.caches(batch)
    tokens = jnp.ones((batch, 1), jnp.int32)
    return _compiled("layers", step, tokens, forward.parameters, caches, jnp.int32(context - 1))


def head_of_model(forward: ModelForward, batch: int) -> Step:
    """A model's last RMSNorm, head and choice of the likeliest token."""

    def step(
        hidden: jax.Array, parameters: Any, caches: Any, length: jax.Array
    ) -> tuple[jax.Array, Any]:
        return likeliest_token(forward.logits(parameters, hidden)), caches

    head = forward.model.parameters.head
    hidden = jnp.ones((batch, 1, head.shape[0]), head.dtype)
    return _compiled("head", step, hidden, forward.parameters, jnp.zeros(1), jnp.int32(0))


def _layers(
    forward: ModelForward,
    tokens: jax.Array,
    parameters: Any,
    caches: Any,
    length: jax.Array,
    context: int,
) -> tuple[jax.Array, Any]:
    batch = tokens.shape[0]
    hidden, K_caches, V_caches = forward.hidden(
        parameters,
        tokens,
        jnp.full((batch,), length),
        jnp.ones((batch,), jnp.int32),
        *caches,
        context,
    )
    return hidden, (K_caches, V_caches)


def _compiled(
    name: str, step: Callable[..., Any], x: Any, weights: Any, caches: Any, length: Any
) -> Step:
    compiled = jax.jit(step, donate_argnums=2).lower(x, weights, caches, length).compile()
    held = [caches]

    def run() -> None:
        result, held[0] = compiled(x, weights, held[0], length)
        result.block_until_ready()

    return Step(Candidate(name, run), compiled.memory_analysis().temp_size_in_bytes)
