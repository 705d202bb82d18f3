"""A llama in float64 NumPy, written from the architecture, on tensors as GGUF files hold them.

Query and key rows are in the file's order, so RoPE turns adjacent pairs; nothing is padded, packed
or cached: every position is computed anew.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from tests.models.tiny import Tiny


def _rms_norm(x: np.ndarray, gamma: np.ndarray, eps: float) -> np.ndarray:
    return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + eps) * gamma


def _rotate_pairs(heads: np.ndarray, angles: np.ndarray) -> np.ndarray:
    """Heads [T, n, d] as d/2 complex numbers of adjacent features, turned by angles [T, d/2]."""
    turned = (heads[..., 0::2] + 1j * heads[..., 1::2]) * np.exp(1j * angles)[:, None, :]
    return np.stack([turned.real, turned.imag], axis=-1).reshape(heads.shape)


def logits(shape: Tiny, tensors: Mapping[str, np.ndarray], tokens: Sequence[int]) -> np.ndarray:
    """[T, V] logits after each of T tokens."""
    wide = {name: np.asarray(tensor, np.float64) for name, tensor in tensors.items()}
    T, d = len(tokens), shape.head_size
    frequencies = shape.rope_theta ** (-2 * np.arange(d // 2) / d)
    frequencies = frequencies / wide.get("rope_freqs.weight", shape.rope_linear_factor)
    angles = np.arange(T)[:, None] * frequencies
    future = np.triu(np.ones((T, T), bool), 1)
    x = wide["token_embd.weight"][list(tokens)]
    for index in range(shape.num_layers):
        layer = {name: wide[f"blk.{index}.{name}.weight"] for name in shape.layer_shapes()}
        normed = _rms_norm(x, layer["attn_norm"], shape.eps)
        query = _rotate_pairs((normed @ layer["attn_q"].T).reshape(T, -1, d), angles)
        key = _rotate_pairs((normed @ layer["attn_k"].T).reshape(T, -1, d), angles)
        value = (normed @ layer["attn_v"].T).reshape(T, -1, d)
        attended = []
        for head in range(shape.num_heads):
            kv_head = head * shape.num_kv_heads // shape.num_heads
            scores = query[:, head] @ key[:, kv_head].T / np.sqrt(d)
            scores[future] = -np.inf
            weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
            weights /= weights.sum(axis=-1, keepdims=True)
            attended.append(weights @ value[:, kv_head])
        x = x + np.concatenate(attended, axis=-1) @ layer["attn_output"].T
        normed = _rms_norm(x, layer["ffn_norm"], shape.eps)
        gate = normed @ layer["ffn_gate"].T
        intermediate = gate / (1 + np.exp(-gate)) * (normed @ layer["ffn_up"].T)
        x = x + intermediate @ layer["ffn_down"].T
    head = wide.get("output.weight", wide["token_embd.weight"])
    return _rms_norm(x, wide["output_norm.weight"], shape.eps) @ head.T
