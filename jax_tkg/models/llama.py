"""A llama-architecture model in the layout of `transformer_tkg`.

Hidden and MLP sizes that are no multiple of 128 are padded with zeros, which is exact: padded
features stay zero through every layer, and RMSNorm's mean over H features in place of h is undone
by gamma' = gamma * sqrt(h/H) and eps' = eps * h/H.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_tkg.arguments import PARTITIONS
from jax_tkg.models.config import LlamaConfig
from jax_tkg.models.errors import ModelError
from jax_tkg.weights import TransformerWeights, pack_qkv


@dataclasses.dataclass(frozen=True)
class LayerTensors:
    """One layer as checkpoints hold it: matrices are [out, in], NumPy float32.

    Query and key rows are in the order of contiguous-halves RoPE.
    """

    query: np.ndarray
    key: np.ndarray
    value: np.ndarray
    output: np.ndarray
    gate: np.ndarray
    up: np.ndarray
    down: np.ndarray
    attention_norm: np.ndarray
    mlp_norm: np.ndarray


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LlamaParameters:
    """The arrays of a model; H and I are the padded sizes. A pytree.

    Attributes:
      layers: weights of the layers; W_qkvs are packed for the tensor-parallel ranks.
      embedding: [V, H].
      head: [V, H]; the embedding itself where the checkpoint ties them.
      final_gamma: [1, H] of the last RMSNorm.
    """

    layers: TransformerWeights
    embedding: jax.Array
    head: jax.Array
    final_gamma: jax.Array


@dataclasses.dataclass(frozen=True)
class LlamaModel:
    """A model ready to run.

    Attributes:
      config: as the checkpoint says it.
      parameters: the arrays.
      tensor_parallel: ranks the weights are packed for.
      eps: RMSNorm epsilon, adjusted to the padded hidden size.
    """

    config: LlamaConfig
    parameters: LlamaParameters
    tensor_parallel: int
    eps: float


def check_tensor_parallel(config: LlamaConfig, ranks: int, source: str) -> None:
    """Checks that the model's heads split evenly over the ranks.

    Args:
      config: the model.
      ranks: tensor-parallel ranks.
      source: file the model comes from, for the message.

    Raises:
      ModelError: they do not.
    """
    if ranks < 1:
        raise ModelError(f"{source}: tensor_parallel: expected at least 1, got {ranks}")
    for name, heads in (("query heads", config.num_heads), ("KV heads", config.num_kv_heads)):
        if heads % ranks:
            raise ModelError(
                f"{source}: tensor_parallel: expected a divisor of the model's {heads} {name}, "
                f"got {ranks} ({heads} % {ranks} = {heads % ranks})"
            )


def build(
    config: LlamaConfig,
    layers: Iterable[Callable[[], LayerTensors]],
    embedding: np.ndarray,
    head: np.ndarray | None,
    final_norm: np.ndarray,
    dtype: jax.typing.DTypeLike,
    tensor_parallel: int = 1,
) -> LlamaModel:
    """Packs and pads a checkpoint's tensors.

    Args:
      config: the model.
      layers: a function per layer that reads its tensors; called in turn, so that one layer at a
        time is in memory as float32.
      embedding: [V, h].
      head: [V, h], or None where it is tied to the embedding.
      final_norm: [h].
      dtype: dtype of the arrays; RMSNorm gains stay float32.
      tensor_parallel: ranks to pack for.

    Returns:
      The model, its arrays on the default device.
    """
    hidden = _round_up(config.hidden_size, PARTITIONS)
    gain = np.float32(np.sqrt(config.hidden_size / hidden))
    packed = [_pack_layer(config, read(), hidden, gain, dtype, tensor_parallel) for read in layers]
    weights = TransformerWeights(
        **{name: [layer[name] for layer in packed] for name in packed[0]},
    )
    embedded = _matrix(embedding, embedding.shape[0], hidden, dtype)
    parameters = LlamaParameters(
        layers=weights,
        embedding=embedded,
        head=embedded if head is None else _matrix(head, head.shape[0], hidden, dtype),
        final_gamma=_gamma(final_norm, hidden, gain),
    )
    eps = config.rms_norm_eps * config.hidden_size / hidden
    return LlamaModel(config, parameters, tensor_parallel, eps)


def _pack_layer(
    config: LlamaConfig,
    tensors: LayerTensors,
    hidden: int,
    gain: np.float32,
    dtype: jax.typing.DTypeLike,
    ranks: int,
) -> dict[str, Any]:
    attention_rows = config.num_heads * config.head_size
    # Every rank's share of the MLP is padded, so that an even split gives multiples of 128.
    share = -(-config.intermediate_size // ranks)
    intermediate = ranks * _round_up(share, PARTITIONS)
    query, key, value = (
        _padded(matrix.T, hidden, matrix.shape[0])
        for matrix in (tensors.query, tensors.key, tensors.value)
    )
    return {
        "W_qkvs": pack_qkv(query, key, value, config.head_size, ranks).astype(dtype),
        "W_outs": _matrix(tensors.output.T, attention_rows, hidden, dtype),
        "W_gates": _matrix(tensors.gate.T, hidden, intermediate, dtype),
        "W_ups": _matrix(tensors.up.T, hidden, intermediate, dtype),
        "W_downs": _matrix(tensors.down.T, intermediate, hidden, dtype),
        "W_gamma_qkvs": _gamma(tensors.attention_norm, hidden, gain),
        "W_gamma_mlps": _gamma(tensors.mlp_norm, hidden, gain),
    }


def _round_up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


def _padded(matrix: np.ndarray, rows: int, columns: int) -> np.ndarray:
    padded = np.zeros((rows, columns), np.float32)
    padded[: matrix.shape[0], : matrix.shape[1]] = matrix
    return padded


def _matrix(matrix: np.ndarray, rows: int, columns: int, dtype: jax.typing.DTypeLike) -> jax.Array:
    return jnp.asarray(_padded(matrix, rows, columns).astype(jnp.dtype(dtype)))


def _gamma(gamma: np.ndarray, hidden: int, gain: np.float32) -> jax.Array:
    return jnp.asarray(_padded(gamma[np.newaxis].astype(np.float32) * gain, 1, hidden))
