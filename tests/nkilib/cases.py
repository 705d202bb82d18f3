"""Arguments of AWS's transformer_tkg, and a float64 reference for ranks with different weights."""

import dataclasses
from typing import Any

import ml_dtypes
import numpy as np

from tests.nkilib import library

FLOAT8_MAX = 240.0


@dataclasses.dataclass(frozen=True)
class Size:
    """Dimensions of one case: batch, tokens, hidden, query heads, intermediate, context, layers."""

    B: int = 2
    S: int = 1
    H: int = 512
    q: int = 2
    I: int = 256  # noqa: E741 - the field's letter
    S_ctx: int = 256
    L: int = 1
    d: int = 128


def arguments(
    size: Size, dtype: Any, seed: int = 0, quantized: tuple[int, ...] = ()
) -> dict[str, Any]:
    """Arguments with AWS's test distributions: activations uniform, projections 1/sqrt(fan-in)."""
    g = np.random.default_rng(seed)
    B, S, H, q, d = size.B, size.S, size.H, size.q, size.d
    layers = range(size.L)
    mask = np.ones((B, q, S, size.S_ctx), bool)
    mask[..., size.S_ctx - S :] = np.tril(np.ones((S, S), bool))
    starts = np.arange(B) * 3 + size.S_ctx // 4 * 3
    found = {
        "X": library.uniform(g, (B, S, H), dtype),
        "W_qkvs": [library.normal(g, (H, (q + 2) * d), dtype, H**-0.5) for _ in layers],
        "W_outs": [library.normal(g, (q * d, H), dtype, 0.5) for _ in layers],
        "W_gates": [library.normal(g, (H, size.I), dtype, H**-0.5) for _ in layers],
        "W_ups": [library.normal(g, (H, size.I), dtype, H**-0.5) for _ in layers],
        "W_downs": [library.normal(g, (size.I, H), dtype, size.I**-0.5) for _ in layers],
        "W_gamma_qkvs": [library.uniform(g, (1, H), dtype, 0.5, 1.5) for _ in layers],
        "W_gamma_mlps": [library.uniform(g, (1, H), dtype, 0.5, 1.5) for _ in layers],
        "K_caches": [library.uniform(g, (B, 1, d, size.S_ctx), dtype) for _ in layers],
        "V_caches": [library.uniform(g, (B, 1, size.S_ctx, d), dtype) for _ in layers],
        "RoPE_cos": library.uniform(g, (d // 2, B, S), dtype),
        "RoPE_sin": library.uniform(g, (d // 2, B, S), dtype),
        "mask_cache": np.ascontiguousarray(mask.transpose(3, 0, 1, 2)),
        "position_ids": (starts[:, None] + np.arange(S)).astype(np.uint32),
        "W_gate_scales": None,
        "W_up_scales": None,
        "W_down_scales": None,
    }
    if quantized:
        _quantize(found, size.L, quantized)
    return found


def _quantize(found: dict[str, Any], layers: int, quantized: tuple[int, ...]) -> None:
    """Turns the MLP weights of some layers into float8 with a scale per output column."""
    for weights, scales in (
        ("W_gates", "W_gate_scales"),
        ("W_ups", "W_up_scales"),
        ("W_downs", "W_down_scales"),
    ):
        found[scales] = [None] * layers
        for layer in quantized:
            wide = found[weights][layer].astype(np.float32)
            scale = np.abs(wide).max(axis=0, keepdims=True) / FLOAT8_MAX
            found[weights][layer] = (wide / scale).astype(ml_dtypes.float8_e4m3)
            found[scales][layer] = np.repeat(scale, 128, axis=0)


def kernel_arguments(
    found: dict[str, Any], layers: int, replica_groups: Any = None
) -> dict[str, Any]:
    """The keyword arguments of the kernel."""
    return {
        **found,
        "mask_active": None,
        "num_layers": layers,
        "replica_groups": replica_groups,
    }


def golden(found: dict[str, Any], layers: int, ranks: int = 1) -> np.ndarray:
    """AWS's PyTorch reference, which multiplies by the number of ranks to imitate equal ones."""
    module = library.module("experimental.transformer.transformer_tkg_torch")
    result = module.llama3_transformer_fwd_tkg_torch(
        **library.to_torch(found),
        mask_active=None,
        num_layers=layers,
        replica_groups=[list(range(ranks))],
        mlp_down_proj_layout_enabled=False,
    )
    return library.to_numpy(result)


def float64_transformer(ranks: list[dict[str, Any]], size: Size) -> np.ndarray:
    """The hidden states that all ranks share after all layers, in float64.

    Written from the definition of the operation, not after any implementation.
    """
    x = ranks[0]["X"].astype(np.float64)
    for layer in range(size.L):
        x = x + sum(_attention(x, rank, layer, size) for rank in ranks)
        x = x + sum(_mlp(x, rank, layer) for rank in ranks)
    return x


def _norm(x: np.ndarray, gamma: np.ndarray) -> np.ndarray:
    return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + 1e-6) * gamma.astype(np.float64)


def _rotate(x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    """[B, S, heads, d] by tables [d/2, B, S]."""
    c = cos.astype(np.float64).transpose(1, 2, 0)[:, :, None]
    s = sin.astype(np.float64).transpose(1, 2, 0)[:, :, None]
    a, b = np.split(x, 2, axis=-1)
    return np.concatenate([a * c - b * s, b * c + a * s], axis=-1)


def _attention(x: np.ndarray, rank: dict[str, Any], layer: int, size: Size) -> np.ndarray:
    d, q, S = size.d, size.q, size.S
    normed = _norm(x, rank["W_gamma_qkvs"][layer])
    heads = (normed @ rank["W_qkvs"][layer].astype(np.float64)).reshape(size.B, S, q + 2, d)
    rotated = _rotate(heads[:, :, : q + 1], rank["RoPE_cos"], rank["RoPE_sin"])
    query, key, value = rotated[:, :, :q], rotated[:, :, q], heads[:, :, q + 1]
    # The last S cache slots of the context are the new tokens' places in the mask.
    prior = size.S_ctx - S
    keys = np.concatenate(
        [rank["K_caches"][layer].astype(np.float64)[:, 0, :, :prior].swapaxes(1, 2), key], axis=1
    )
    values = np.concatenate(
        [rank["V_caches"][layer].astype(np.float64)[:, 0, :prior], value], axis=1
    )
    scores = np.einsum("bsqd,bkd->bqsk", query, keys) / np.sqrt(d)
    mask = rank["mask_cache"].transpose(1, 2, 3, 0)
    scores = np.where(mask, scores, -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    mixed = np.einsum("bqsk,bkd->bsqd", weights, values).reshape(size.B, S, q * d)
    return mixed @ rank["W_outs"][layer].astype(np.float64)


def _mlp(x: np.ndarray, rank: dict[str, Any], layer: int) -> np.ndarray:
    normed = _norm(x, rank["W_gamma_mlps"][layer])
    gate = normed @ rank["W_gates"][layer].astype(np.float64)
    up = normed @ rank["W_ups"][layer].astype(np.float64)
    return (gate / (1 + np.exp(-gate)) * up) @ rank["W_downs"][layer].astype(np.float64)
