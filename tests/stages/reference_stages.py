"""The stages of the implementations in jax.numpy, on NumPy arrays."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_tkg.call.arguments import Operands
from jax_tkg.masks import active_mask, context_mask
from jax_tkg.reference.attention import attention_mask
from jax_tkg.reference.cache_update import write_slots
from jax_tkg.reference.float8_caches import CacheScales
from jax_tkg.reference.linear import linear
from jax_tkg.reference.mlp import MlpWeights, mlp
from jax_tkg.reference.rms_norm import head_norms, rms_norm
from jax_tkg.reference.stages import Stages

_NOTHING = Operands(**{field.name: None for field in dataclasses.fields(Operands)})


@dataclasses.dataclass(frozen=True)
class ReferenceStages:
    """Stages, as `jax_tkg.reference.transformer` calls them."""

    stages: Stages

    def _own(self, name: str, array: Any) -> Any:
        """One layer's weight or cache in the form that the stages take."""
        operands = dataclasses.replace(_NOTHING, **{name: (array,)})
        return self.stages.layer_operand(operands, name, 0)

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
        run = jax.jit(
            lambda heads, cos, sin: self.stages.apply_rope(heads, self.stages.rotation(cos, sin))
        )
        return np.asarray(run(heads, cos, sin))

    def linear(
        self, x: np.ndarray, weight: np.ndarray, scale: np.ndarray | None = None
    ) -> np.ndarray:
        run = jax.jit(
            lambda x, weight, scale: linear(
                x, self._own("W_outs", weight), scale, multiply=self.stages.multiply
            )
        )
        return np.asarray(run(x, weight, scale))

    def masks(
        self,
        lengths: np.ndarray,
        starts: np.ndarray | None,
        slots: int,
        q: int,
        B: int,
        S: int,
        stored: int,
    ) -> tuple[np.ndarray, np.ndarray]:
        del stored  # Only the kernel reads slots beyond those that are attended.
        cache = context_mask(lengths, slots, q, S, starts)
        return np.asarray(cache), np.asarray(active_mask(S, B, q))

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
        block_tables: np.ndarray | None = None,
        k_scale: np.ndarray | None = None,
        v_scale: np.ndarray | None = None,
    ) -> np.ndarray:
        def run(
            mask_cache: jax.Array, mask_active: jax.Array, K: jax.Array, V: jax.Array, **new: Any
        ) -> jax.Array:
            mask = attention_mask(mask_cache, mask_active, key.shape[2])
            K_own, V_own = self._own("K_caches", K), self._own("V_caches", V)
            if block_tables is not None:
                K_own = self.stages.gather_blocks(K_own, jnp.asarray(block_tables), -1)
                V_own = self.stages.gather_blocks(V_own, jnp.asarray(block_tables), -2)
            return self.stages.attention(
                **new,
                K_cache=K_own,
                V_cache=V_own,
                mask=mask,
                scale=scale,
                softcap=softcap,
                scales=CacheScales(k_scale, v_scale),
            )

        given = {"query": query, "key": key, "value": value, "K": K_cache, "V": V_cache}
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
            own = [self._own("W_outs", weight) for weight in weights]
            own_mlp = MlpWeights(*own, *scales)
            return mlp(x, own_mlp, clamp_bound, self.stages.multiply, activation)

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
            slots = write_slots(ids, key.shape[1], capacity)
            return self.stages.write_caches((K,), (V,), slots, [key], [value], after=key)

        (K,), (V,) = jax.jit(run)(K_cache, V_cache, key, value, jnp.asarray(position_ids))
        return np.asarray(K), np.asarray(V)
