"""The reference's stages on NumPy arrays, as it computes them for one platform."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_tkg.reference import cache_update
from jax_tkg.reference.attention import attention, attention_mask
from jax_tkg.reference.linear import linear
from jax_tkg.reference.mlp import MlpWeights, mlp
from jax_tkg.reference.rms_norm import head_norms, rms_norm
from jax_tkg.reference.rope import apply_rope, rotation
from jax_tkg.reference.stored_weight import StoredWeight


@dataclasses.dataclass(frozen=True)
class ReferenceStages:
    """The stages as lowered for a platform, or None: for any."""

    platform: str | None

    def rms_norm(self, x: np.ndarray, gamma: np.ndarray, eps: float) -> np.ndarray:
        return np.asarray(jax.jit(rms_norm)(x, gamma, eps))

    def head_norms(
        self,
        heads: np.ndarray,
        gamma_q: np.ndarray | None,
        gamma_k: np.ndarray | None,
        q: int,
        eps: float,
    ) -> np.ndarray:
        return np.asarray(jax.jit(head_norms, static_argnums=3)(heads, gamma_q, gamma_k, q, eps))

    def rope(self, heads: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
        run = jax.jit(lambda heads, cos, sin: apply_rope(heads, rotation(cos, sin)))
        return np.asarray(run(heads, cos, sin))

    def linear(
        self, x: np.ndarray, weight: np.ndarray, scale: np.ndarray | None = None
    ) -> np.ndarray:
        run = jax.jit(
            lambda x, weight, scale: linear(x, StoredWeight(weight), scale, platform=self.platform)
        )
        return np.asarray(run(x, weight, scale))

    def attention(
        self,
        query: np.ndarray,
        key: np.ndarray,
        value: np.ndarray,
        K_cache: np.ndarray,
        V_cache: np.ndarray,
        mask_cache: np.ndarray,
        mask_active: np.ndarray,
        sinks: np.ndarray | None = None,
        scale: float | None = None,
        softcap: float = 0.0,
    ) -> np.ndarray:
        def run(mask_cache: jax.Array, mask_active: jax.Array, **arrays: jax.Array) -> jax.Array:
            mask = attention_mask(mask_cache, mask_active, key.shape[2])
            return attention(  # type: ignore[misc]
                **arrays,  # type: ignore[arg-type]
                layer=None,
                mask=mask,
                platform=self.platform,
                scale=scale,
                softcap=softcap,
            )

        given = {"query": query, "key": key, "value": value, "K_cache": K_cache, "V_cache": V_cache}
        if sinks is not None:
            given["sinks"] = sinks
        return np.asarray(jax.jit(run)(mask_cache, mask_active, **given))

    def mlp(
        self,
        x: np.ndarray,
        weights: Sequence[np.ndarray],
        scales: Sequence[np.ndarray | None],
        clamp_bound: float,
        activation: str = "silu",
    ) -> np.ndarray:
        def run(x: jax.Array, weights: Any, scales: Any) -> jax.Array:
            stored = MlpWeights(*map(StoredWeight, weights), *scales)
            return mlp(x, stored, clamp_bound, self.platform, activation)

        return np.asarray(jax.jit(run)(x, tuple(weights), tuple(scales)))

    def write_caches(
        self,
        K_cache: np.ndarray,
        V_cache: np.ndarray,
        key: np.ndarray,
        value: np.ndarray,
        position_ids: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray]:
        capacity = K_cache.shape[-1]

        def run(
            K: jax.Array, V: jax.Array, key: jax.Array, value: jax.Array, ids: jax.Array
        ) -> Any:
            slots = cache_update.write_slots(ids, key.shape[1], capacity)
            plan = cache_update.plan_writes(slots, capacity)
            return cache_update.write_caches((K,), (V,), plan, [key], [value], after=key)

        (K,), (V,) = jax.jit(run)(K_cache, V_cache, key, value, jnp.asarray(position_ids))
        return np.asarray(K), np.asarray(V)
