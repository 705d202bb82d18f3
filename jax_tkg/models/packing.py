"""A model in the layout of `transformer_tkg`.

Hidden and MLP sizes are padded with zeros to multiples of 128, as kernels want them; for CPUs alone
the hidden size is padded less (`hidden_multiple_for`), so that fewer bytes are read. Padding is
exact: padded features stay zero through every layer, and RMSNorm, whose mean then runs over H
features instead of h, is corrected by gamma' = gamma * sqrt(h/H) and eps' = eps * h/H.

A vocabulary that the ranks do not divide is padded with columns of NaN in the head: NaN counts as
the lowest logit (`transformer_tkg`), and of equal ones the lowest ids are chosen, so a column that
is no token is never a candidate. A column of zeros would be, where all logits are negative.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_tkg.limits import SIZE_MULTIPLE
from jax_tkg.models.config import Experts, ModelConfig
from jax_tkg.models.errors import ModelError
from jax_tkg.models.layer_tensors import LayerTensors, StoredLayers
from jax_tkg.weights import HeadSplit, TransformerWeights, pack_qkv, split_heads

CPU_HIDDEN_MULTIPLE = 64
"""Of H where only XLA:CPU runs the model: whole vectors and cache lines of every dtype."""

Progress = Callable[[int, int], None]
"""Called with the number of layers read so far and the number of all layers."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ModelParameters:
    """The arrays of a model; H and I are the padded sizes. A pytree.

    Attributes:
      layers: weights of the layers, stacked, or lists where only some layers have experts; W_qkvs
        are packed for the tensor-parallel ranks.
      embedding: [V, H], or None if it is tied: then the head's columns are the embedding.
      head: [H, V], V padded (`padded_vocabulary_size`).
      final_gamma: [1, H] of the last RMSNorm.
    """

    layers: TransformerWeights
    embedding: Any
    head: Any
    final_gamma: Any


@dataclasses.dataclass(frozen=True)
class PackedModel:
    """A model ready to be placed on devices.

    Attributes:
      config: the model's sizes and constants, from the checkpoint.
      parameters: NumPy arrays.
      tensor_parallel: ranks the weights are packed for.
    """

    config: ModelConfig
    parameters: ModelParameters
    tensor_parallel: int

    @property
    def hidden_size(self) -> int:
        """H, the padded hidden size."""
        return int(self.parameters.final_gamma.shape[-1])

    @property
    def kv_heads(self) -> int:
        """KV heads over all ranks, which its caches have: copies included."""
        return head_split(self.config, self.tensor_parallel).kv_heads

    @property
    def eps(self) -> float:
        """RMSNorm epsilon for the padded hidden size."""
        return self.config.rms_norm_eps * self.config.hidden_size / self.hidden_size


def hidden_multiple_for(platform: str, implementation: str = "auto") -> int:
    """What H is to be a multiple of: whole tiles where a kernel may run, less on CPUs alone.

    Args:
      platform: of the devices, such as "cpu".
      implementation: of `transformer_tkg`; "simulate" runs a kernel on a CPU.
    """
    plain = platform == "cpu" and implementation in ("auto", "cpu", "reference")
    return CPU_HIDDEN_MULTIPLE if plain else SIZE_MULTIPLE


def padded_vocabulary_size(config: ModelConfig, ranks: int) -> int:
    """V over all ranks: the vocabulary size rounded up to equal parts."""
    return _round_up(config.vocabulary_size, ranks)


def padded_intermediate_size(config: ModelConfig, ranks: int) -> int:
    """I over all ranks: every rank's share rounded up to whole tiles of 128."""
    share = -(-config.intermediate_size // ranks)
    return ranks * _round_up(share, SIZE_MULTIPLE)


def padded_expert_size(features: int, ranks: int) -> int:
    """I_expert or I_shared over all ranks: every rank's share rounded up to an integer."""
    return ranks * -(-features // ranks)


def check_values(where: str, values: np.ndarray, dtype: jax.typing.DTypeLike) -> None:
    """Checks that a tensor holds finite numbers, also after its conversion to the model's dtype.

    Args:
      where: file and tensor, for the message.
      values: the tensor, of any float dtype.
      dtype: what matrices will be converted to; vectors, which are gains, become float32.

    Raises:
      ModelError: it holds NaN, an infinity, or a number that becomes one.
    """
    dtype = jnp.dtype(np.float32 if values.ndim == 1 else dtype)
    largest = float(min(jnp.finfo(dtype).max, jnp.finfo(np.float32).max))
    # These need no temporary array, unlike an elementwise comparison, and both propagate NaN.
    for extreme in (float(values.min()), float(values.max())):
        if not abs(extreme) <= largest:
            raise ModelError(
                f"{where}: expected finite numbers of at most {largest:.6g}, the largest of dtype "
                f"{dtype.name}, got {extreme!r}"
            )


def check_layers_present(
    where: str, names: Collection[str], stored: StoredLayers, layers: int, prefix: str
) -> None:
    """Checks that a checkpoint has all tensors of all layers, before room is made for them.

    Args:
      where: the checkpoint, for the message.
      names: of the checkpoint's tensors.
      stored: which tensors a layer has.
      layers: how many there are said to be.
      prefix: what stands before a layer's number and name.

    Raises:
      ModelError: the first tensor that is missing.
    """
    for layer in range(layers):
        for tensor in stored.shapes(layer):
            if (name := f"{prefix}.{layer}.{tensor}") not in names:
                raise ModelError(
                    f"{where}: tensor {name}: expected in a model of {layers} layers, but it is "
                    f"missing"
                )


def check_tensor_parallel(config: ModelConfig, ranks: int) -> None:
    """Checks that the model's heads split evenly over the ranks; see `head_split`.

    Raises:
      ModelError: they do not.
    """
    head_split(config, ranks)


def head_split(config: ModelConfig, ranks: int) -> HeadSplit:
    """The model's heads by rank: several ranks share a KV head where there are more of them.

    Raises:
      ModelError: the heads do not split evenly.
    """
    try:
        return split_heads(config.num_heads, config.num_kv_heads, ranks, "tensor_parallel")
    except ValueError as error:
        raise ModelError(str(error)) from None


def outline(
    config: ModelConfig,
    dtype: jax.typing.DTypeLike,
    tensor_parallel: int,
    tied: bool,
    hidden_multiple: int = SIZE_MULTIPLE,
) -> PackedModel:
    """The model that `build` makes, with shapes in place of arrays: for compiling before loading.

    Args:
      config: the model.
      dtype: dtype of the weights.
      tensor_parallel: ranks to pack for.
      tied: whether the head is tied to the embedding.
      hidden_multiple: as `build` takes it.

    Returns:
      A model whose parameters are jax.ShapeDtypeStruct.

    Raises:
      ModelError: the model's heads do not split evenly over the ranks.
    """
    check_tensor_parallel(config, tensor_parallel)
    hidden, vocabulary = _round_up(config.hidden_size, hidden_multiple), config.vocabulary_size
    parameters = ModelParameters(
        layers=_of_all_layers(
            config,
            (
                _layer_outline(config, config.experts_of(layer), hidden, dtype, tensor_parallel)
                for layer in range(config.num_layers)
            ),
        ),
        embedding=None if tied else jax.ShapeDtypeStruct((vocabulary, hidden), dtype),
        head=jax.ShapeDtypeStruct((hidden, padded_vocabulary_size(config, tensor_parallel)), dtype),
        final_gamma=jax.ShapeDtypeStruct((1, hidden), jnp.float32),
    )
    return PackedModel(config, parameters, tensor_parallel)


def _layer_outline(
    config: ModelConfig,
    experts: Experts | None,
    hidden: int,
    dtype: jax.typing.DTypeLike,
    ranks: int,
) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes of what `_pack_layer` makes of a layer with these experts, or of a dense one."""
    intermediate = padded_intermediate_size(config, ranks)
    attention = config.num_heads * config.head_size
    packed = (config.num_heads + 2 * head_split(config, ranks).kv_heads) * config.head_size
    leading: tuple[int, ...] = ()
    shared = 0
    if experts is not None:
        leading = (experts.count,)
        intermediate = padded_expert_size(experts.intermediate_size, ranks)
        shared = padded_expert_size(experts.shared_size, ranks)

    def array(*shape: int, kind: jax.typing.DTypeLike = dtype) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, kind)

    def gains(count: int) -> jax.ShapeDtypeStruct:
        return array(1, count, kind=jnp.float32)

    options = {
        "W_routers": array(hidden, *leading),
        "bias_routers": array(1, *leading),
        "bias_gates": array(*leading, intermediate),
        "bias_ups": array(*leading, intermediate),
        "bias_downs": array(*leading, hidden),
        "W_shared_gates": array(hidden, shared),
        "W_shared_ups": array(hidden, shared),
        "W_shared_downs": array(shared, hidden),
        "sinks": gains(config.num_heads),
        "bias_qkvs": array(1, packed),
        "bias_outs": array(1, hidden),
        "W_gamma_qs": gains(config.head_size),
        "W_gamma_ks": gains(config.head_size),
        "W_gamma_post_attentions": gains(hidden),
        "W_gamma_post_mlps": gains(hidden),
    }
    return {
        "W_qkvs": array(hidden, packed),
        "W_outs": array(attention, hidden),
        "W_gates": array(*leading, hidden, intermediate),
        "W_ups": array(*leading, hidden, intermediate),
        "W_downs": array(*leading, intermediate, hidden),
        "W_gamma_qkvs": gains(hidden),
        "W_gamma_mlps": gains(hidden),
        **{name: options[name] for name in config.operands_of(experts)},
    }


def _of_all_layers(config: ModelConfig, layers: Iterable[dict[str, Any]]) -> TransformerWeights:
    """The layers' arrays in stacks, or in lists where layers differ; shapes likewise.

    A stack is made before its layers are read, so that no array is held twice.
    """
    fields: dict[str, Any] = {}
    for index, arrays in enumerate(layers):
        for name, array in arrays.items():
            if config.dense_layers:
                fields.setdefault(name, [None] * config.num_layers)[index] = array
                continue
            shape = (config.num_layers, *array.shape)
            if isinstance(array, jax.ShapeDtypeStruct):
                fields[name] = jax.ShapeDtypeStruct(shape, array.dtype)
                continue
            if name not in fields:
                fields[name] = np.empty(shape, array.dtype)
            fields[name][index] = array
    return TransformerWeights(**fields)


def build(
    config: ModelConfig,
    layers: Iterable[LayerTensors],
    embedding: np.ndarray,
    head: np.ndarray | None,
    final_norm: np.ndarray,
    dtype: jax.typing.DTypeLike,
    tensor_parallel: int = 1,
    progress: Progress | None = None,
    hidden_multiple: int = SIZE_MULTIPLE,
) -> PackedModel:
    """Packs and pads a checkpoint's tensors.

    Args:
      config: the model; h is its hidden size.
      layers: the layers' tensors in order; taken one at a time.
      embedding: [V, h].
      head: [V, h], or None where it is tied to the embedding.
      final_norm: [h].
      dtype: dtype of the arrays; RMSNorm gains are float32.
      tensor_parallel: ranks to pack for.
      progress: called after each layer.
      hidden_multiple: what H is a multiple of, see `hidden_multiple_for`.

    Raises:
      ModelError: the model's heads do not split evenly over the ranks.
    """
    check_tensor_parallel(config, tensor_parallel)
    hidden, kind = _round_up(config.hidden_size, hidden_multiple), jnp.dtype(dtype)

    def packed() -> Iterator[dict[str, np.ndarray]]:
        for index, tensors in enumerate(layers):
            experts = config.experts_of(index)
            yield _pack_layer(config, experts, tensors, hidden, kind, tensor_parallel)
            if progress is not None:
                progress(index + 1, config.num_layers)

    stacks = _of_all_layers(config, packed())
    tied = head is None
    rows = embedding if head is None else head
    parameters = ModelParameters(
        layers=stacks,
        embedding=None if tied else _padded(embedding, embedding.shape[0], hidden, kind),
        head=_head(rows, hidden, padded_vocabulary_size(config, tensor_parallel), kind),
        final_gamma=_gamma(final_norm, hidden),
    )
    return PackedModel(config, parameters, tensor_parallel)


def _pack_layer(
    config: ModelConfig,
    experts: Experts | None,
    tensors: LayerTensors,
    hidden: int,
    dtype: np.dtype,
    ranks: int,
) -> dict[str, np.ndarray]:
    intermediate = padded_intermediate_size(config, ranks)
    if experts is not None:
        intermediate = padded_expert_size(experts.intermediate_size, ranks)
    attention_rows = config.num_heads * config.head_size
    # The norms of heads, which are not padded, get the epsilon of the padded hidden size too; with
    # queries and keys scaled by its root they give the same.
    scale = float(np.sqrt(config.hidden_size / hidden)) if config.head_norms else 1.0
    packed = {
        "W_qkvs": _packed_qkv(
            config, (tensors.query.T, tensors.key.T, tensors.value.T), hidden, dtype, ranks, scale
        ),
        "W_outs": _padded(
            _scaled(tensors.output.T, config.residual_scale), attention_rows, hidden, dtype
        ),
        "W_gates": _padded(tensors.gate.swapaxes(-2, -1), hidden, intermediate, dtype),
        "W_ups": _padded(tensors.up.swapaxes(-2, -1), hidden, intermediate, dtype),
        "W_downs": _padded(
            _scaled(tensors.down.swapaxes(-2, -1), config.residual_scale),
            intermediate,
            hidden,
            dtype,
        ),
        "W_gamma_qkvs": _gamma(tensors.attention_norm, hidden),
        "W_gamma_mlps": _gamma(tensors.mlp_norm, hidden),
    }
    biases = (tensors.query_bias, tensors.key_bias, tensors.value_bias)
    rows = tuple(bias[np.newaxis] for bias in biases if bias is not None)
    if rows:
        packed["bias_qkvs"] = _packed_qkv(config, rows, 1, dtype, ranks, scale)
    if tensors.output_bias is not None:
        bias = _scaled(tensors.output_bias[np.newaxis], config.residual_scale)
        packed["bias_outs"] = _padded(bias, 1, hidden, dtype)
    if tensors.router is not None:
        router = tensors.router.T
        packed["W_routers"] = _padded(router, hidden, router.shape[1], dtype)
    if tensors.router_bias is not None:
        packed["bias_routers"] = tensors.router_bias[np.newaxis].astype(dtype)
    for name, added, size in (
        ("bias_gates", tensors.gate_bias, intermediate),
        ("bias_ups", tensors.up_bias, intermediate),
        ("bias_downs", tensors.down_bias, hidden),
    ):
        if added is not None:
            factor = config.residual_scale if name == "bias_downs" else 1.0
            packed[name] = _padded(_scaled(added, factor), added.shape[0], size, dtype)
    if experts is not None and experts.shared_size:
        assert tensors.shared_gate is not None
        assert tensors.shared_up is not None
        assert tensors.shared_down is not None
        shared = padded_expert_size(experts.shared_size, ranks)
        down = _scaled(tensors.shared_down.T, config.residual_scale)
        packed |= {
            "W_shared_gates": _padded(tensors.shared_gate.T, hidden, shared, dtype),
            "W_shared_ups": _padded(tensors.shared_up.T, hidden, shared, dtype),
            "W_shared_downs": _padded(down, shared, hidden, dtype),
        }
    if tensors.sinks is not None:
        packed["sinks"] = tensors.sinks[np.newaxis].astype(np.float32)
    for name, gain in (
        ("W_gamma_post_attentions", tensors.post_attention_norm),
        ("W_gamma_post_mlps", tensors.post_mlp_norm),
        ("W_gamma_qs", tensors.query_norm),
        ("W_gamma_ks", tensors.key_norm),
    ):
        if gain is not None:
            packed[name] = _gamma(gain, hidden if "post" in name else config.head_size)
    return packed


def _packed_qkv(
    config: ModelConfig,
    parts: tuple[np.ndarray, ...],
    rows: int,
    dtype: np.dtype,
    ranks: int,
    scale: float,
) -> np.ndarray:
    """Queries', keys' and values' columns packed for the ranks, the first two scaled."""
    query, key, value = (
        jnp.asarray(_padded(_scaled(part, factor), rows, part.shape[1], dtype))
        for part, factor in zip(parts, (scale, scale, 1.0), strict=True)
    )
    return np.asarray(pack_qkv(query, key, value, config.head_size, ranks))


def _scaled(matrix: np.ndarray, factor: float) -> np.ndarray:
    """A matrix times a factor, rounded once by the caller."""
    return matrix if factor == 1 else matrix.astype(np.float32) * np.float32(factor)


def _round_up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


def _padded(matrix: np.ndarray, rows: int, columns: int, dtype: np.dtype) -> np.ndarray:
    """A matrix, or several along leading axes, with zeros below and to the right."""
    height, width = matrix.shape[-2:]
    padded = np.zeros((*matrix.shape[:-2], rows, columns), dtype)
    padded[..., :height, :width] = matrix.astype(dtype)
    return padded


def _head(rows: np.ndarray, hidden: int, columns: int, dtype: np.dtype) -> np.ndarray:
    """[hidden, columns] of a token's features each, [V, h]; columns beyond V are NaN."""
    head = _padded(rows.T, hidden, columns, dtype)
    head[:, rows.shape[0] :] = np.nan
    return head


def _gamma(gamma: np.ndarray, hidden: int) -> np.ndarray:
    gain = np.sqrt(gamma.shape[0] / hidden)
    return _padded(gamma[np.newaxis].astype(np.float64) * gain, 1, hidden, np.dtype(np.float32))
