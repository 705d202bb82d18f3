"""How AWS's published kernel is called, for each of its signatures."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jax_tkg.call.arguments import PARTITIONS, Operands, Parameters
from jax_tkg.call.dimensions import Dimensions
from jax_tkg.call.operand_table import names
from jax_tkg.lowering.kernel_interface import KernelInterface, Launch
from jax_tkg.lowering.nkilib_release import Release, find_module
from jax_tkg.lowering.static_values import ModuleAttribute
from jax_tkg.reference.cache_update import write_slots

SCALES = names("scale")

SKIPPED = 2**32 - 1
"""The slot of a token that is not written."""

CONTEXT_MULTIPLE = 256
"""What two cores that share a sequence's slots divide S_ctx into: 128 slots each."""

OCP_FLOAT8 = "float8_e4m3fn"
"""The float8 format of `dtype_mode` OCP, which needs trn3. NON_OCP is float8_e4m3."""


def interface(release: Release, operands: Operands) -> KernelInterface:
    """AWS's kernel as it takes these operands.

    Args:
      release: what the installed function takes.
      operands: of the call, or their abstract values.
    """
    mask = "attention_mask" if release.joint_mask else "mask_cache"
    # Written out: what this list does not name is refused.
    tensors = (
        "X",
        "W_qkvs",
        "W_outs",
        "W_gates",
        "W_ups",
        "W_downs",
        "W_gamma_qkvs",
        "W_gamma_mlps",
        "K_caches",
        "V_caches",
        "RoPE_cos",
        "RoPE_sin",
        mask,
        "position_ids",
        *SCALES,
    )
    uses_ocp = release.selects_float8 and uses_ocp_float8(operands)

    def kernel_operands(
        given: Operands,
        looped: bool = False,
        layer_kinds: tuple[int, ...] | None = None,
        parameters: Parameters | None = None,
    ) -> dict[str, Any]:
        # It takes a tensor per layer, layers of one kind, and nothing that depends on the rank.
        del looped, layer_kinds, parameters
        plain = {name: getattr(given, name) for name in tensors if name != mask}
        return {
            **plain,
            **{name: _repeated(plain[name]) for name in SCALES},
            mask: joint_mask(given),
            "position_ids": _slots(given, release.token_slots),
        }

    def static_arguments(launch: Launch) -> dict[str, Any]:
        groups = launch.replica_groups
        static: dict[str, Any] = {
            "num_layers": launch.num_layers,
            "eps": launch.parameters.eps,
            "replica_groups": None if groups is None else [list(group) for group in groups],
        }
        if not release.joint_mask:
            return {"mask_active": None, **static}
        static["sbuf_residual_and_cc"] = launch.parameters.sbuf_residual_and_cc
        if uses_ocp:
            static["dtype_mode"] = ModuleAttribute("DtypeMode.OCP")
        return static

    return KernelInterface(
        description="'nkilib'",
        tensors=tensors,
        consumed=("mask_cache", "mask_active", "context_lengths", "context_starts"),
        options=("eps", "clamp_bound", "context_bucket"),
        operands=kernel_operands,
        loops=lambda _: False,
        static_arguments=static_arguments,
        returns_caches=False,
        module=find_module,
    )


def uses_ocp_float8(operands: Operands) -> bool:
    """Whether a weight is float8_e4m3fn."""
    leaves = [leaf for name in names("weight") for leaf in jax.tree.leaves(getattr(operands, name))]
    return any(leaf.dtype.name == OCP_FLOAT8 for leaf in leaves)


def joint_context(operands: Operands, context_bucket: int | None = None) -> int:
    """Rows of the mask that AWS's kernel gets: S_ctx, or with a mask of its own for new keys more.

    The kernel reads as many slots of the caches, of which the last S count as the new keys. So new
    keys that come beside S_ctx slots are put after them, at the next multiple that it can divide.

    Args:
      operands: of the call, or their abstract values.
      context_bucket: S_ctx, if lengths are in place of a mask; None: S_max.
    """
    D = Dimensions.of(operands, context_bucket)
    if operands.mask_cache is not None and operands.mask_active is None:
        return D.S_ctx
    return -(-(D.S_ctx + D.S) // CONTEXT_MULTIPLE) * CONTEXT_MULTIPLE


def joint_mask(operands: Operands) -> jax.Array:
    """[joint_context, B, q, S] uint8: 1 where a query attends. The last S rows are the new keys."""
    cache = operands.mask_cache.astype(jnp.bool_).astype(jnp.uint8)
    if operands.mask_active is None:
        return cache
    active = operands.mask_active.astype(jnp.bool_).astype(jnp.uint8)
    rows = joint_context(operands) - cache.shape[0] - active.shape[0]
    between = jnp.zeros((rows, *cache.shape[1:]), jnp.uint8)
    return jnp.concatenate([cache, between, active])


def _slots(operands: Operands, each_token: bool) -> jax.Array | None:
    """[B, S] or [B, 1] uint32: where new keys and values are written, or `SKIPPED`."""
    positions = operands.position_ids
    if positions is None:
        return None
    D = Dimensions.of(operands)
    slots = write_slots(positions, D.S if each_token else 1, D.S_max).astype(jnp.uint32)
    return jnp.where(slots < D.S_max, slots, jnp.uint32(SKIPPED))


def _repeated(scales: tuple[Any, ...] | None) -> tuple[jax.Array | None, ...] | None:
    """Scales with a row for each partition."""
    if scales is None:
        return None
    return tuple(
        None if scale is None else jnp.broadcast_to(scale[:1], (PARTITIONS, scale.shape[1]))
        for scale in scales
    )
