"""What `transformer_tkg` is called with: the arrays, the static parameters and the dimensions.

The letters are those of the AWS documentation and are used throughout the package: B batch,
S (S_tkg) new tokens, H hidden, I MLP intermediate per rank, d (d_head) size of one head, q query
heads per rank, k KV heads per rank, L layers, S_ctx context bucket, S_max cache capacity.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

PER_LAYER_WEIGHTS = (
    "W_qkvs",
    "W_outs",
    "W_gates",
    "W_ups",
    "W_downs",
    "W_gamma_qkvs",
    "W_gamma_mlps",
)
PER_LAYER_CACHES = ("K_caches", "V_caches")
PER_LAYER_SCALES = ("W_gate_scales", "W_up_scales", "W_down_scales")
PER_LAYER = PER_LAYER_WEIGHTS + PER_LAYER_CACHES + PER_LAYER_SCALES

COMPUTE_DTYPES = tuple(jnp.dtype(name) for name in ("bfloat16", "float16", "float32"))
"""The dtypes X may have: compute and output dtype of the operation."""

FLOAT8_DTYPES = tuple(jnp.dtype(name) for name in ("float8_e4m3", "float8_e4m3fn", "float8_e5m2"))
"""The dtypes a quantised MLP weight may have."""

MAX_NEW_TOKENS = 8
"""Largest S_tkg; the limit of token generation in AWS's `attention_tkg`."""

MAX_HEAD_SIZE = 128
"""Largest d_head: one head fills the 128 partitions of the tensor engine at most."""

PARTITIONS = 128
"""Partitions of on-chip memory: H and I are tiled by it."""

IMPLEMENTATIONS = ("auto", "reference", "nki", "simulate", "nkilib")
"""Values of `implementation`."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Operands:
    """The arrays of one call, in the order of the public arguments; a pytree.

    A per-layer field is either a tuple of L arrays (for scales: arrays or None) or one array with
    a leading layer axis of L or more. Caches always have their KV-head axis here.
    """

    X: Any
    W_qkvs: Any
    W_outs: Any
    W_gates: Any
    W_ups: Any
    W_downs: Any
    W_gamma_qkvs: Any
    W_gamma_mlps: Any
    K_caches: Any
    V_caches: Any
    RoPE_cos: Any
    RoPE_sin: Any
    mask_cache: Any
    mask_active: Any
    position_ids: Any
    W_gate_scales: Any
    W_up_scales: Any
    W_down_scales: Any

    def layer(self, name: str, index: int) -> Any:
        """Array number `index` of the per-layer field `name`, or None where there is none."""
        field = getattr(self, name)
        return None if field is None else field[index]

    def layer_shape(self, name: str) -> tuple[int, ...]:
        """Shape of one layer's array of a per-layer field; of abstract values too."""
        field = getattr(self, name)
        return tuple(field.shape[1:] if is_stacked(field) else field[0].shape)


@dataclasses.dataclass(frozen=True)
class Parameters:
    """The static parameters of one call: hashable, and all that a lowering needs beside the arrays.

    Attributes:
      num_layers: L, how many layers to execute.
      eps: RMSNorm epsilon.
      axis_names: shard_map axes of the all-reduce; empty where there is none.
      replica_groups: groups of ranks that reduce together, or None for no all-reduce. Ranks
        number the devices of the mesh in row-major order.
      sbuf_residual_and_cc: keep residual and all-reduce on chip (Neuron only).
      clamp_bound: bound of the inputs of quantised matrix products; 0.0 for none.
      lnc: physical cores per logical core (1 or 2), or None for the platform's setting.
      implementation: one of `IMPLEMENTATIONS`.
      layers_per_launch: most layers that one launch of the kernel runs, or None for all.
    """

    num_layers: int
    eps: float = 1e-6
    axis_names: tuple[str, ...] = ()
    replica_groups: tuple[tuple[int, ...], ...] | None = None
    sbuf_residual_and_cc: bool = False
    clamp_bound: float = 0.0
    lnc: int | None = None
    implementation: str = "auto"
    layers_per_launch: int | None = None


@dataclasses.dataclass(frozen=True)
class Dimensions:
    """The sizes of one call; see the module's docstring for the letters."""

    B: int
    S: int
    H: int
    I: int  # noqa: E741 - the field's letter for the MLP intermediate size
    d: int
    q: int
    k: int
    L: int
    S_ctx: int
    S_max: int
    dtype: Any

    @property
    def qkv_columns(self) -> int:
        """Columns of W_qkv: (q + 2k) * d."""
        return (self.q + 2 * self.k) * self.d

    @property
    def queries_per_kv_head(self) -> int:
        """How many query heads share one KV head: q // k."""
        return self.q // self.k

    @classmethod
    def of(cls, operands: Operands) -> Dimensions:
        """Reads the sizes off arrays that have been checked."""
        B, S, H = operands.X.shape
        _, k, d, S_max = operands.layer_shape("K_caches")
        S_ctx, _, q, _ = operands.mask_cache.shape
        return cls(
            B=B,
            S=S,
            H=H,
            I=operands.layer_shape("W_gates")[-1],
            d=d,
            q=q,
            k=k,
            L=operands.K_caches.shape[0]
            if is_stacked(operands.K_caches)
            else len(operands.K_caches),
            S_ctx=S_ctx,
            S_max=S_max,
            dtype=jnp.dtype(operands.X.dtype),
        )


def is_stacked(argument: Any) -> bool:
    """Whether a per-layer argument is one array with a layer axis, not a sequence of arrays."""
    return argument is not None and not isinstance(argument, Sequence)
