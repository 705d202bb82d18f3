"""One layer as the checkpoints of any family hold it, converted to the form that is packed.

Checkpoints differ in names, in which matrices are fused, in the order of a head's features and in
whether gains are stored less one. `Storage` says how one format holds one family; `StoredLayers`
undoes it.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping

import numpy as np

from jax_tkg.models.config import Experts, ModelConfig

LAYER_NUMBER = r"0|[1-9][0-9]{0,5}"
"""Regular expression of a layer's number in a tensor's name: no leading zeros."""

FUSED: Mapping[str, tuple[str, ...]] = {
    "query_key_value": ("query", "key", "value"),
    "gate_up": ("gate", "up"),
    "shared_gate_up": ("shared_gate", "shared_up"),
    "expert_gate_up": ("expert_gate", "expert_up"),
}
"""Tensors that some families store as one, rows of the first above those of the next; of experts,
those of each expert."""

_OF_EXPERTS = {
    "expert_gate": "gate",
    "expert_up": "up",
    "expert_down": "down",
    "expert_gate_bias": "gate_bias",
    "expert_up_bias": "up_bias",
    "expert_down_bias": "down_bias",
}
"""Fields of `LayerTensors` that hold the experts of a layer, by what `Storage` calls these."""

_EXPERT = "{expert}"
"""In a tensor's name, the number of an expert: each has a tensor of its own."""

_OF_HEADS = ("query", "key", "query_bias", "key_bias", "query_norm", "key_norm")
_NORMS = (
    "attention_norm",
    "mlp_norm",
    "query_norm",
    "key_norm",
    "post_attention_norm",
    "post_mlp_norm",
)


@dataclasses.dataclass(frozen=True)
class LayerTensors:
    """One layer's tensors: matrices are [out, in], NumPy, of any float dtype.

    Of a layer with experts gate, up and down are [experts, out, in], and router is [experts, in].

    Features of a query or key head are in the order of contiguous-halves RoPE; see `head_order`.
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
    query_bias: np.ndarray | None = None
    key_bias: np.ndarray | None = None
    value_bias: np.ndarray | None = None
    output_bias: np.ndarray | None = None
    query_norm: np.ndarray | None = None
    key_norm: np.ndarray | None = None
    post_attention_norm: np.ndarray | None = None
    post_mlp_norm: np.ndarray | None = None
    router: np.ndarray | None = None
    router_bias: np.ndarray | None = None
    shared_gate: np.ndarray | None = None
    shared_up: np.ndarray | None = None
    shared_down: np.ndarray | None = None
    gate_bias: np.ndarray | None = None
    up_bias: np.ndarray | None = None
    down_bias: np.ndarray | None = None
    sinks: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Storage:
    """How the files of one format hold the layers of one family.

    Attributes:
      names: the name of each tensor, within its layer, by the fields of `LayerTensors` or the keys
        of `FUSED`; experts are "expert_gate", "expert_up" and "expert_down", of all experts in one
        tensor, or of one where the name contains "{expert}". There may be more names than a model
        has tensors.
      interleaved: whether RoPE turns adjacent features, 2i and 2i + 1, and not i and i + r/2 of the
        r features that turn.
      gains_less_one: whether gains of RMSNorms are stored less one.
      experts_by_column: whether matrices of experts are [in, out], with gate and up in one tensor,
        "expert_gate_up", whose columns are theirs in turn; its bias is "expert_gate_up_bias".
    """

    names: Mapping[str, str]
    interleaved: bool = False
    gains_less_one: bool = False
    experts_by_column: bool = False

    def gain(self, stored: np.ndarray) -> np.ndarray:
        """The gain of an RMSNorm as it multiplies."""
        return stored.astype(np.float32) + 1 if self.gains_less_one else stored


def layer_shapes(config: ModelConfig, experts: Experts | None) -> dict[str, tuple[int, ...]]:
    """The shapes of the tensors of a layer, by their keys in `Storage`; absent ones left out.

    Args:
      config: the model.
      experts: the layer's; None if it is dense.
    """
    hidden, intermediate = config.hidden_size, config.intermediate_size
    query_rows = config.num_heads * config.head_size
    kv_rows = config.num_kv_heads * config.head_size
    shapes: dict[str, tuple[int, ...]] = {
        "query": (query_rows, hidden),
        "key": (kv_rows, hidden),
        "value": (kv_rows, hidden),
        "output": (hidden, query_rows),
        "attention_norm": (hidden,),
        "mlp_norm": (hidden,),
    }
    if experts is None:
        shapes |= {"gate": (intermediate, hidden), "up": (intermediate, hidden)}
        shapes |= {"down": (hidden, intermediate)}
    else:
        inner = experts.intermediate_size
        shapes |= {
            "router": (experts.count, hidden),
            "expert_gate": (experts.count, inner, hidden),
            "expert_up": (experts.count, inner, hidden),
            "expert_down": (experts.count, hidden, inner),
        }
        if experts.biases:
            shapes |= {
                "router_bias": (experts.count,),
                "expert_gate_bias": (experts.count, inner),
                "expert_up_bias": (experts.count, inner),
                "expert_down_bias": (experts.count, hidden),
            }
        if shared := experts.shared_size:
            shapes |= {"shared_gate": (shared, hidden), "shared_up": (shared, hidden)}
            shapes |= {"shared_down": (hidden, shared)}
    if config.sinks:
        shapes |= {"sinks": (config.num_heads,)}
    if config.projection_bias:
        shapes |= {"query_bias": (query_rows,), "key_bias": (kv_rows,), "value_bias": (kv_rows,)}
    if config.output_bias:
        shapes |= {"output_bias": (hidden,)}
    if config.head_norms:
        shapes |= {"query_norm": (config.head_size,), "key_norm": (config.head_size,)}
    if config.post_norms:
        shapes |= {"post_attention_norm": (hidden,), "post_mlp_norm": (hidden,)}
    return shapes


@dataclasses.dataclass(frozen=True)
class StoredLayers:
    """How the files of one format hold the layers of one model.

    Attributes:
      config: the model.
      storage: how its family is stored.
    """

    config: ModelConfig
    storage: Storage

    def shapes(self, layer: int) -> Mapping[str, tuple[int, ...]]:
        """The shapes in which files hold a layer, by the tensors' names within the layer."""
        return self._dense if self.config.experts_of(layer) is None else self._with_experts

    def holds(self, layer: int, name: str) -> bool:
        """Whether the model has such a layer, and this such a tensor."""
        return layer < self.config.num_layers and name in self.shapes(layer)

    def separated(self, layer: int, stored: Mapping[str, np.ndarray]) -> LayerTensors:
        """A layer from its tensors as `shapes` names them."""
        return _separated(self.config, self.storage, stored, self.config.experts_of(layer))

    @functools.cached_property
    def _dense(self) -> Mapping[str, tuple[int, ...]]:
        return _stored_shapes(self.config, self.storage, None)

    @functools.cached_property
    def _with_experts(self) -> Mapping[str, tuple[int, ...]]:
        return _stored_shapes(self.config, self.storage, self.config.experts)


def _stored_shapes(
    config: ModelConfig, storage: Storage, experts: Experts | None
) -> dict[str, tuple[int, ...]]:
    shapes = layer_shapes(config, experts)
    for fused, parts in _fused_by_row(storage).items():
        if parts[0] in shapes:
            *leading, _, columns = shapes[parts[0]]
            shapes[fused] = (*leading, sum(shapes[part][-2] for part in parts), columns)
            for part in parts:
                del shapes[part]
    if storage.experts_by_column and experts is not None:
        count, inner, _ = shapes.pop("expert_gate")
        del shapes["expert_up"]
        shapes["expert_gate_up"] = (count, config.hidden_size, 2 * inner)
        shapes["expert_down"] = (count, inner, config.hidden_size)
        if shapes.pop("expert_gate_bias", None):
            del shapes["expert_up_bias"]
            shapes["expert_gate_up_bias"] = (count, 2 * inner)
    stored: dict[str, tuple[int, ...]] = {}
    for field, shape in shapes.items():
        name = storage.names[field]
        if _EXPERT in name:
            stored |= {name.format(expert=expert): shape[1:] for expert in range(shape[0])}
        else:
            stored[name] = shape
    return stored


def _fused_by_row(storage: Storage) -> dict[str, tuple[str, ...]]:
    """The entries of `FUSED` that a family has."""
    by_column = ("expert_gate_up",) if storage.experts_by_column else ()
    return {
        fused: parts
        for fused, parts in FUSED.items()
        if fused in storage.names and fused not in by_column
    }


def _separated(
    config: ModelConfig,
    storage: Storage,
    stored: Mapping[str, np.ndarray],
    experts: Experts | None,
) -> LayerTensors:
    fields = {name: field for field, name in storage.names.items()}
    tensors = {fields[name]: tensor for name, tensor in stored.items() if name in fields}
    shapes = layer_shapes(config, experts)
    for field, name in storage.names.items():
        if _EXPERT in name and field in shapes:
            each = (stored[name.format(expert=expert)] for expert in range(shapes[field][0]))
            tensors[field] = np.stack(list(each))
    if storage.experts_by_column and experts is not None:
        tensors |= _by_row(tensors)
    for fused, parts in _fused_by_row(storage).items():
        if fused in tensors:
            ends = np.cumsum([shapes[part][-2] for part in parts])[:-1]
            tensors |= zip(parts, np.split(tensors.pop(fused), ends, axis=-2), strict=True)
    tensors = {_OF_EXPERTS.get(field, field): tensor for field, tensor in tensors.items()}
    for field in _NORMS:
        if field in tensors:
            tensors[field] = storage.gain(tensors[field])
    order = head_order(config.head_size, config.rotary_size, storage.interleaved)
    if order is not None:
        for field in _OF_HEADS:
            if field in tensors:
                tensors[field] = _reordered(tensors[field], order)
    return LayerTensors(**tensors)


def _by_row(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Replaces the tensors of `Storage.experts_by_column` by those that they stand for."""
    found = {"expert_down": tensors.pop("expert_down").swapaxes(1, 2)}
    both = tensors.pop("expert_gate_up").swapaxes(1, 2)
    found |= {"expert_gate": both[:, ::2], "expert_up": both[:, 1::2]}
    bias = tensors.pop("expert_gate_up_bias", None)
    if bias is not None:
        found |= {"expert_gate_bias": bias[:, ::2], "expert_up_bias": bias[:, 1::2]}
    return found


def head_order(head_size: int, rotary_size: int, interleaved: bool) -> np.ndarray | None:
    """For each feature of a head in contiguous-halves order, its index in the stored order.

    RoPE of the operation turns features i and i + d/2. Of a head whose first r features turn, the
    first of each pair come first, then half of the features that stay as they are; then the second
    of each pair, and the other half.

    Args:
      head_size: d.
      rotary_size: r, the features that turn.
      interleaved: whether a pair is stored as 2i and 2i + 1, and not as i and i + r/2.

    Returns:
      [d] indices, or None if the order is the stored one.
    """
    rotary = np.arange(rotary_size)
    pairs = rotary.reshape(-1, 2).T if interleaved else rotary.reshape(2, -1)
    still = np.arange(rotary_size, head_size).reshape(2, -1)
    order = np.concatenate([pairs, still], axis=1).reshape(-1)
    return None if (order == np.arange(head_size)).all() else order


def _reordered(tensor: np.ndarray, order: np.ndarray) -> np.ndarray:
    """A tensor whose rows are the features of one or more heads, in another order in each head."""
    heads = tensor.reshape(-1, order.size, *tensor.shape[1:])
    return heads[:, order].reshape(tensor.shape)
