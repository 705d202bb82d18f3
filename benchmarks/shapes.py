"""Named model shapes with random weights."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_tkg.caches import allocate_caches
from jax_tkg.models.packing import PackedModel, padded_intermediate_size
from jax_tkg.weights import TransformerWeights


@dataclasses.dataclass(frozen=True)
class Shape:
    """Sizes of the layers of a model on one device; letters as in `jax_tkg.transformer_tkg`."""

    L: int
    H: int
    I: int  # noqa: E741 - the field's letter for the MLP intermediate size
    q: int
    k: int
    d: int

    @property
    def qkv_columns(self) -> int:
        """Columns of W_qkv."""
        return (self.q + 2 * self.k) * self.d


LLAMA_3_2_1B = Shape(L=16, H=2048, I=8192, q=32, k=8, d=64)
"""The layers of Llama-3.2-1B, without embedding and head."""


@functools.partial(jax.jit, static_argnums=(1, 2))
def _normal(key: jax.Array, shape: tuple[int, ...], dtype: str) -> jax.Array:
    return (jax.random.normal(key, shape) * shape[-2] ** -0.5).astype(dtype)


def shape_of(model: PackedModel) -> Shape:
    """The sizes of a packed model, padding included."""
    config = model.config
    return Shape(
        L=config.num_layers,
        H=model.hidden_size,
        I=padded_intermediate_size(config, 1),
        q=config.num_heads,
        k=config.num_kv_heads,
        d=config.head_size,
    )


def random_weights(shape: Shape, dtype: str) -> TransformerWeights:
    """Lists of N(0, 1/fan_in) weights; gammas of one."""
    keys = iter(jax.random.split(jax.random.key(0, impl="rbg"), 5 * shape.L))

    def each(*sizes: int) -> list[jax.Array]:
        return [_normal(next(keys), sizes, dtype) for _ in range(shape.L)]

    def ones() -> list[jax.Array]:
        return [jnp.ones((1, shape.H), jnp.float32) for _ in range(shape.L)]

    return TransformerWeights(
        W_qkvs=each(shape.H, shape.qkv_columns),
        W_outs=each(shape.q * shape.d, shape.H),
        W_gates=each(shape.H, shape.I),
        W_ups=each(shape.H, shape.I),
        W_downs=each(shape.I, shape.H),
        W_gamma_qkvs=ones(),
        W_gamma_mlps=ones(),
    )


def random_caches(
    shape: Shape, batch: int, capacity: int, dtype: str, stacked: bool = False
) -> tuple[Any, Any]:
    """Caches filled with uniform [-1, 1]."""
    empty = allocate_caches(
        shape.L, B=batch, k=shape.k, d=shape.d, S_max=capacity, dtype=dtype, stacked=stacked
    )
    rng = np.random.default_rng(0)

    def fill(cache: jax.Array) -> jax.Array:
        return jnp.asarray(rng.uniform(-1, 1, cache.shape).astype(np.float32), dtype)

    K_caches, V_caches = jax.tree.map(fill, empty)
    return K_caches, V_caches


def nbytes(tree: Any) -> int:
    """Bytes of all arrays of a pytree."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))
