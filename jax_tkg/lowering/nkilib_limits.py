"""What AWS's published kernel cannot run, found before it is launched.

The limits are those that the kernel asserts or documents, and defects of branch 2.29_release that
the simulator shows; each message says which. Later releases are held to the same limits, except
for what their signature settles: nobody has run them in the simulator. What the on-chip buffers
hold is not among the limits: the kernel's own allocator refuses that when the kernel is compiled.
"""

from __future__ import annotations

from collections.abc import Iterator

import jax.numpy as jnp

from jax_tkg.call.arguments import PARTITIONS, PER_LAYER, Operands, Parameters, is_stacked
from jax_tkg.call.dimensions import Dimensions
from jax_tkg.lowering.nkilib_kernel import (
    OCP_FLOAT8,
    SCALES,
    joint_context,
    uses_ocp_float8,
)
from jax_tkg.lowering.nkilib_release import Release

QUANTIZED_TOKENS = 96
"""B * S up to which its MLP takes the decode path; above, float8 weights fail to transpose."""

SHARDED_CONTEXT = 256
"""S_ctx from which two cores share the slots of one sequence."""


def check_nkilib_limits(
    operands: Operands, parameters: Parameters, cores: int, release: Release
) -> None:
    """Checks that AWS's kernel can run a call.

    Args:
      operands: the arrays, or their abstract values.
      parameters: the static parameters.
      cores: physical cores per logical core, 1 or 2.
      release: what the installed function takes.

    Raises:
      ValueError: it cannot; the message names the argument, the limit and what came.
    """
    dimensions = Dimensions.of(operands)
    for argument, expected, got in (
        *_options(operands, parameters, release),
        *_sizes(dimensions, parameters.num_layers, cores),
        *_context(joint_context(operands, parameters.context_bucket), dimensions, cores),
        *_quantized(operands, dimensions, release),
    ):
        raise ValueError(f"{argument}: expected {expected} for 'nkilib', got {got}")


_Problem = tuple[str, str, str]
"""Argument, what was expected and what came."""


def _options(operands: Operands, parameters: Parameters, release: Release) -> Iterator[_Problem]:
    if parameters.sbuf_residual_and_cc and not release.joint_mask:
        yield "sbuf_residual_and_cc", "False (the kernel's on-chip path names no mask)", "True"
    if parameters.clamp_bound > 0:
        yield "clamp_bound", "0 (the decode kernel ignores it)", f"{parameters.clamp_bound}"
    rows = joint_context(operands, parameters.context_bucket)
    *_, capacity = operands.layer_shape("K_caches")
    if rows > capacity:
        yield (
            "mask_active" if operands.mask_active is not None else "context_lengths",
            "None and the mask of the new keys in the last S rows of mask_cache, or S_max >= "
            f"{rows} (the kernel reads both masks as one, with as many cache slots)",
            f"an array and S_max = {capacity}",
        )
    for name in PER_LAYER:
        if is_stacked(getattr(operands, name)):
            yield name, "a sequence with an array per layer", "one array with a layer axis"
    positions = operands.position_ids
    if positions is not None and positions.shape[1] != 1 and not release.token_slots:
        yield "position_ids", "[B, 1], the slot of the first token", f"{tuple(positions.shape)}"


def _sizes(D: Dimensions, layers: int, cores: int) -> Iterator[_Problem]:
    if D.k != 1:
        yield "K_caches", "one KV head per rank", f"k = {D.k}"
    if D.d not in (64, 128):
        yield "V_caches", "d of 64 or 128", f"{D.d}"
    tokens = D.B * D.S
    if tokens * D.q > PARTITIONS:
        yield (
            "X",
            f"B * S * q <= {PARTITIONS}",
            f"{D.B} * {D.S} * {D.q} = {tokens * D.q}",
        )
    for argument, letter, size in (("X", "H", D.H), ("W_gates", "I", D.I)):
        if size % PARTITIONS:
            yield argument, f"{letter} to be a multiple of {PARTITIONS}", f"{size}"
    tiles = D.H // PARTITIONS
    if tiles % cores:
        yield "X", f"H / {PARTITIONS} divisible by lnc = {cores}", f"{D.H} / {PARTITIONS} = {tiles}"
    if layers > 1 and (tiles % 2 or (tokens * tiles // cores) % 2):
        # Its allocator rounds sizes, and the second layer finds less room than the first.
        yield (
            "X",
            f"H / {PARTITIONS} and B * S * H / {PARTITIONS} / lnc to be even with several layers",
            f"{tiles} and {tokens} * {tiles} / {cores} = {tokens * tiles // cores}",
        )


def _context(rows: int, D: Dimensions, cores: int) -> Iterator[_Problem]:
    if cores == 1:
        if rows % PARTITIONS:
            yield "mask_cache", f"S_ctx to be a multiple of {PARTITIONS}", f"{rows}"
        return
    if rows % PARTITIONS == 0 and rows < SHARDED_CONTEXT and D.B % 2 == 0:
        return
    if rows < SHARDED_CONTEXT and D.B % 2:
        # One core writes the caches while the other may still read them.
        yield (
            "mask_cache",
            f"S_ctx >= {SHARDED_CONTEXT} with lnc = 2 and an odd B (else its cores race)",
            f"S_ctx = {rows} and B = {D.B}",
        )
    multiple = PARTITIONS * (1 if rows < SHARDED_CONTEXT else 2)
    if rows % multiple:
        yield "mask_cache", f"S_ctx to be a multiple of {multiple} with lnc = 2", f"{rows}"


def _quantized(operands: Operands, D: Dimensions, release: Release) -> Iterator[_Problem]:
    # One module has one float8_e4m3: `dtype_mode` says which.
    ocp = release.selects_float8 and uses_ocp_float8(operands)
    wanted = jnp.dtype(OCP_FLOAT8 if ocp else "float8_e4m3")
    for layer in range(D.L):
        scaled = [operands.layer(name, layer) is not None for name in SCALES]
        if any(scaled) and not all(scaled):
            yield (
                SCALES[scaled.index(False)],
                f"scales of all three weights or of none in layer {layer}",
                "None",
            )
        for name, has_scale in zip(("W_gates", "W_ups", "W_downs"), scaled, strict=True):
            dtype = operands.layer(name, layer).dtype
            if has_scale and dtype != wanted:
                yield name, f"{wanted} in layer {layer}", f"{dtype}"
        if any(scaled) and D.B * D.S > QUANTIZED_TOKENS:
            yield (
                "X",
                f"B * S <= {QUANTIZED_TOKENS} with float8 weights",
                f"{D.B} * {D.S} = {D.B * D.S}",
            )
        if any(scaled) and D.dtype == jnp.float32:
            yield "X", "a 16-bit dtype with float8 weights (nc_matmul's rule)", "float32"
