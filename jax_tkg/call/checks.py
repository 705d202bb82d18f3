"""Every check of the arguments of `transformer_tkg`, made before anything is traced further.

Each error names the argument, what was expected (with the arithmetic) and what came.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from jax_tkg.call.arguments import (
    COMPUTE_DTYPES,
    FLOAT8_DTYPES,
    IMPLEMENTATIONS,
    MAX_HEAD_SIZE,
    MAX_NEW_TOKENS,
    PARTITIONS,
    PER_LAYER,
    PER_LAYER_CACHES,
    PER_LAYER_SCALES,
    Dimensions,
    is_stacked,
)


def check_options(
    num_layers: Any,
    eps: Any,
    clamp_bound: Any,
    lnc: Any,
    implementation: Any,
    layers_per_launch: Any,
) -> None:
    """Checks the static options that depend on no array.

    Raises:
      TypeError: `num_layers` or `layers_per_launch` is no integer; `eps` or `clamp_bound` is no
        number.
      ValueError: a value is out of its range.
    """
    _check_count("num_layers", num_layers)
    if layers_per_launch is not None:
        _check_count("layers_per_launch", layers_per_launch)
    for name, value in (("eps", eps), ("clamp_bound", clamp_bound)):
        if not isinstance(value, int | float | np.number):
            raise TypeError(f"{name}: expected a Python number (it is static), got {value!r}")
        if not value >= 0 or not np.isfinite(value):
            raise ValueError(f"{name}: expected a finite number >= 0, got {value}")
    if lnc not in (None, 1, 2):
        raise ValueError(f"lnc: expected 1, 2 or None, got {lnc!r}")
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(
            f"implementation: expected one of {', '.join(map(repr, IMPLEMENTATIONS))}, "
            f"got {implementation!r}"
        )


def _check_count(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name}: expected an integer, got {value!r}")
    if value < 1:
        raise ValueError(f"{name}: expected at least 1, got {value}")


def check_lengths(arguments: dict[str, Any], num_layers: int) -> None:
    """Checks that every per-layer argument holds `num_layers` layers or more.

    Args:
      arguments: the public arguments by name.
      num_layers: L.

    Raises:
      TypeError: a required argument is missing, a per-layer argument is neither a sequence nor an
        array, or an entry that may not be None is None.
      ValueError: too few layers, or one cache argument stacked and the other not.
    """
    optional = ("mask_active", "position_ids", *PER_LAYER_SCALES)
    for name, value in arguments.items():
        if value is None and name not in optional:
            raise TypeError(f"{name}: expected an array or a sequence of arrays, got None")
        if name not in PER_LAYER and not hasattr(value, "shape") and value is not None:
            raise TypeError(f"{name}: expected an array, got {type(value).__name__}")
    for name in PER_LAYER:
        value = arguments[name]
        if value is None:
            continue
        if is_stacked(value):
            if not hasattr(value, "shape"):
                raise TypeError(
                    f"{name}: expected a sequence of arrays or one array with a leading layer "
                    f"axis, got {type(value).__name__}"
                )
            count = value.shape[0] if value.shape else 0
        else:
            count = len(value)
        if count < num_layers:
            raise ValueError(
                f"{name}: expected at least num_layers = {num_layers} layers, got {count}"
            )
        if isinstance(value, Sequence):
            _check_entries(name, value[:num_layers])
    stacked = [is_stacked(arguments[name]) for name in PER_LAYER_CACHES]
    if stacked[0] != stacked[1]:
        forms = {True: "one stacked array", False: "a sequence of arrays"}
        raise ValueError(
            f"V_caches: expected the form of K_caches, {forms[stacked[0]]}, got {forms[stacked[1]]}"
        )


def _check_entries(name: str, entries: Sequence[Any]) -> None:
    for index, entry in enumerate(entries):
        if entry is None and name not in PER_LAYER_SCALES:
            raise TypeError(f"{name}[{index}]: expected an array, got None")
        if entry is not None and not hasattr(entry, "shape"):
            raise TypeError(f"{name}[{index}]: expected an array, got {type(entry).__name__}")


def infer_dimensions(arguments: dict[str, Any], num_layers: int) -> Dimensions:
    """Reads the sizes off X, mask_cache, the first K cache and the first gate weight.

    Raises:
      TypeError: X's dtype is none of `COMPUTE_DTYPES`.
      ValueError: a rank or a size is outside of what the operation supports.
    """
    X, mask_cache = arguments["X"], arguments["mask_cache"]
    _check_rank("X", X.shape, "[B, S, H]", (3,))
    if jnp.dtype(X.dtype) not in COMPUTE_DTYPES:
        names = ", ".join(dtype.name for dtype in COMPUTE_DTYPES)
        raise TypeError(f"X: expected dtype {names}, got {X.dtype}")
    _check_rank("mask_cache", mask_cache.shape, "[S_ctx, B, q, S]", (4,))
    label, cache = first_layer(arguments, "K_caches")
    _check_rank(label, cache, "[B, k, d, S_max] or [B, d, S_max]", (4, 3))
    label, gate = first_layer(arguments, "W_gates")
    _check_rank(label, gate, "[H, I]", (2,))
    dimensions = Dimensions(
        B=X.shape[0],
        S=X.shape[1],
        H=X.shape[2],
        I=gate[1],
        d=cache[-2],
        q=mask_cache.shape[2],
        k=cache[1] if len(cache) == 4 else 1,
        L=num_layers,
        S_ctx=mask_cache.shape[0],
        S_max=cache[-1],
        dtype=jnp.dtype(X.dtype),
    )
    _check_sizes(dimensions)
    return dimensions


def first_layer(arguments: dict[str, Any], name: str) -> tuple[str, tuple[int, ...]]:
    """Label and shape of layer 0 of a per-layer argument."""
    value = arguments[name]
    if is_stacked(value):
        return f"{name} (one layer)", tuple(value.shape[1:])
    return f"{name}[0]", tuple(value[0].shape)


def _check_rank(label: str, shape: Sequence[int], layout: str, ranks: tuple[int, ...]) -> None:
    if len(shape) not in ranks:
        wanted = " or ".join(str(rank) for rank in ranks)
        raise ValueError(
            f"{label}: expected {wanted} dimensions, {layout}, got {len(shape)}: {list(shape)}"
        )


def _check_sizes(dimensions: Dimensions) -> None:
    D = dimensions
    if D.B < 1:
        raise ValueError(f"X: expected B >= 1 in [B, S, H], got B = {D.B}")
    if not 1 <= D.S <= MAX_NEW_TOKENS:
        raise ValueError(f"X: expected 1 <= S <= {MAX_NEW_TOKENS} in [B, S, H], got S = {D.S}")
    for argument, layout, letter, size in (
        ("X", "[B, S, H]", "H", D.H),
        ("W_gates", "[H, I]", "I", D.I),
    ):
        if size < 1 or size % PARTITIONS:
            raise ValueError(
                f"{argument}: expected {letter} in {layout} to be a positive multiple of "
                f"{PARTITIONS}, got {letter} = {size} ({size} % {PARTITIONS} = "
                f"{size % PARTITIONS})"
            )
    if D.d % 2 or not 2 <= D.d <= MAX_HEAD_SIZE:
        raise ValueError(
            f"K_caches: expected d in [B, k, d, S_max] to be even and in 2..{MAX_HEAD_SIZE}, "
            f"got d = {D.d}"
        )
    if D.k < 1 or D.q < 1 or D.q % D.k:
        raise ValueError(
            f"mask_cache: expected q in [S_ctx, B, q, S] to be a positive multiple of k = {D.k} "
            f"(K_caches), got q = {D.q}"
        )
    if D.S_ctx > D.S_max:
        raise ValueError(
            f"mask_cache: expected S_ctx <= S_max = {D.S_max} (K_caches), got S_ctx = {D.S_ctx}"
        )


def check_shapes(arguments: dict[str, Any], dimensions: Dimensions) -> None:
    """Checks shape and dtype of every array against the sizes.

    Raises:
      TypeError: a dtype is not one of those the argument may have.
      ValueError: a shape differs from the expected one, or a float8 weight lacks its scale, or a
        scale lacks its float8 weight.
    """
    D = dimensions
    for name, layout, shapes in _expected_shapes(D, arguments):
        for label, value in _entries(arguments, name, D.L):
            if value is not None and tuple(value.shape) not in shapes:
                wanted = " or ".join(str(list(shape)) for shape in shapes)
                raise ValueError(
                    f"{label}: expected shape {layout} = {wanted}, got {list(value.shape)}"
                )
            if value is not None:
                _check_dtype(label, name, value.dtype, D)
    if arguments["mask_active"] is None and D.S_ctx < D.S:
        raise ValueError(
            f"mask_cache: expected S_ctx >= S = {D.S} where mask_active is None (its last S rows "
            f"are the active mask), got S_ctx = {D.S_ctx}"
        )
    for weight, scale in (
        ("W_gates", "W_gate_scales"),
        ("W_ups", "W_up_scales"),
        ("W_downs", "W_down_scales"),
    ):
        _check_scales(arguments, weight, scale, D.L)


def _expected_shapes(
    D: Dimensions, arguments: dict[str, Any]
) -> list[tuple[str, str, list[tuple[int, ...]]]]:
    """Name, layout in letters, and the accepted shapes of each argument (of one layer)."""
    qkv = f"[H, (q + 2k)*d] = [{D.H}, ({D.q} + 2*{D.k})*{D.d}]"
    out = f"[q*d, H] = [{D.q}*{D.d}, {D.H}]"
    K_shapes: list[tuple[int, ...]] = [(D.B, D.k, D.d, D.S_max)]
    V_shapes: list[tuple[int, ...]] = [(D.B, D.k, D.S_max, D.d)]
    if D.k == 1:
        # Caches come with or without their KV-head axis, both of them alike.
        rank = len(first_layer(arguments, "K_caches")[1])
        K_shapes = [shape if rank == 4 else (shape[0], *shape[2:]) for shape in K_shapes]
        V_shapes = [shape if rank == 4 else (shape[0], *shape[2:]) for shape in V_shapes]
    half = (D.d // 2, D.B, D.S)
    return [
        ("W_qkvs", qkv, [(D.H, D.qkv_columns)]),
        ("W_outs", out, [(D.q * D.d, D.H)]),
        ("W_gates", "[H, I]", [(D.H, D.I)]),
        ("W_ups", "[H, I]", [(D.H, D.I)]),
        ("W_downs", "[I, H]", [(D.I, D.H)]),
        ("W_gamma_qkvs", "[1, H]", [(1, D.H)]),
        ("W_gamma_mlps", "[1, H]", [(1, D.H)]),
        ("K_caches", "[B, k, d, S_max]", K_shapes),
        ("V_caches", "[B, k, S_max, d]", V_shapes),
        ("RoPE_cos", "[d//2, B, S]", [half]),
        ("RoPE_sin", "[d//2, B, S]", [half]),
        ("mask_cache", "[S_ctx, B, q, S]", [(D.S_ctx, D.B, D.q, D.S)]),
        ("mask_active", "[S, B, q, S]", [(D.S, D.B, D.q, D.S)]),
        ("position_ids", "[B, 1] or [B, S]", [(D.B, 1), (D.B, D.S)]),
        ("W_gate_scales", "[128, I] or [1, I]", [(PARTITIONS, D.I), (1, D.I)]),
        ("W_up_scales", "[128, I] or [1, I]", [(PARTITIONS, D.I), (1, D.I)]),
        ("W_down_scales", "[128, H] or [1, H]", [(PARTITIONS, D.H), (1, D.H)]),
    ]


class _Layer:
    """Shape and dtype of one layer of a stacked argument."""

    def __init__(self, stacked: Any) -> None:
        self.shape = tuple(stacked.shape[1:])
        self.dtype = stacked.dtype


def _entries(arguments: dict[str, Any], name: str, num_layers: int) -> list[tuple[str, Any]]:
    """Label and array of every layer of a per-layer argument, or of the argument itself."""
    value = arguments[name]
    if name not in PER_LAYER or value is None:
        return [(name, value)]
    if is_stacked(value):
        return [(f"{name} (one layer)", _Layer(value))]
    return [(f"{name}[{index}]", value[index]) for index in range(num_layers)]


def _check_dtype(label: str, name: str, dtype: Any, D: Dimensions) -> None:
    dtype = jnp.dtype(dtype)
    if name in ("W_qkvs", "W_outs", *PER_LAYER_CACHES):
        accepted = [D.dtype]
    elif name in ("W_gates", "W_ups", "W_downs"):
        accepted = [D.dtype, *FLOAT8_DTYPES]
    elif name in PER_LAYER_SCALES:
        accepted = [jnp.dtype(jnp.float32)]
    elif name == "position_ids":
        if not jnp.issubdtype(dtype, jnp.integer):
            raise TypeError(f"{label}: expected an integer dtype, got {dtype.name}")
        return
    elif name in ("mask_cache", "mask_active"):
        return
    else:
        accepted = [*COMPUTE_DTYPES]
    if dtype not in accepted:
        wanted = " or ".join(candidate.name for candidate in accepted)
        raise TypeError(f"{label}: expected dtype {wanted}, got {dtype.name}")


def _check_scales(arguments: dict[str, Any], weight: str, scale: str, num_layers: int) -> None:
    weights = _entries(arguments, weight, num_layers)
    scales = _entries(arguments, scale, num_layers)
    if len(weights) != len(scales):
        weights = weights * num_layers if len(weights) == 1 else weights
        scales = scales * num_layers if len(scales) == 1 else scales
    for (weight_label, weight_value), (scale_label, scale_value) in zip(
        weights, scales, strict=True
    ):
        dtype = jnp.dtype(weight_value.dtype)
        if dtype in FLOAT8_DTYPES and scale_value is None:
            raise ValueError(
                f"{scale_label}: expected a scale for {weight_label} of dtype {dtype.name}, "
                f"got None"
            )
        if dtype not in FLOAT8_DTYPES and scale_value is not None:
            raise ValueError(
                f"{scale_label}: expected None, because {weight_label} has dtype {dtype.name} and "
                f"not a float8 one, got a scale of shape {list(scale_value.shape)}"
            )
