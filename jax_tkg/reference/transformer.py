"""All layers of the forward pass of token generation, in plain jax.numpy."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_tkg.call.arguments import PER_LAYER, Operands, Parameters, is_stacked
from jax_tkg.call.dimensions import Dimensions
from jax_tkg.call.integers import as_int32
from jax_tkg.call.layer_kinds import KindStacks, LayerKinds
from jax_tkg.reference.all_reduce import all_reduce
from jax_tkg.reference.cache_update import Caches, write_slots
from jax_tkg.reference.experts import ExpertWeights, layer_mlp
from jax_tkg.reference.linear import linear
from jax_tkg.reference.mlp import MlpBiases, MlpWeights
from jax_tkg.reference.rms_norm import head_norms, rms_norm
from jax_tkg.reference.rope import Rotation
from jax_tkg.reference.stages import PLAIN, Stages
from jax_tkg.reference.varying_axes import vary_over, varying_axes


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _LayerOperands:
    """One layer's operands, as `Stages.layer_operand` takes them; some may be absent."""

    K_cache: Any
    V_cache: Any
    W_qkv: Any
    W_out: Any
    W_gamma_qkv: jax.Array
    W_gamma_mlp: jax.Array
    mlp: MlpWeights | ExpertWeights
    bias_qkv: jax.Array | None = None
    bias_out: jax.Array | None = None
    W_gamma_q: jax.Array | None = None
    W_gamma_k: jax.Array | None = None
    W_gamma_post_attention: jax.Array | None = None
    W_gamma_post_mlp: jax.Array | None = None
    sinks: jax.Array | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Shared:
    """What every layer of a kind reads."""

    rotation: Rotation
    mask: Any
    block_tables: jax.Array | None = None


@dataclasses.dataclass(frozen=True)
class _Kind:
    """The layers of one kind.

    Attributes:
      operands: as these layers see them.
      shared: what they read.
      dimensions: their sizes.
      stages: what they are made of.
    """

    operands: Operands
    shared: _Shared
    dimensions: Dimensions
    stages: Stages

    @classmethod
    def of(cls, operands: Operands, parameters: Parameters, kind: int, stages: Stages) -> _Kind:
        """The kind of a number."""
        kinds = LayerKinds.of(parameters.layer_kinds, parameters.num_layers)
        own = operands.of_kind(kind, kinds)
        dimensions = Dimensions.of(own, parameters.bucket_of_kind(kind))
        shared = _Shared(
            rotation=stages.rotation(own.RoPE_cos, own.RoPE_sin),
            mask=stages.attended_keys(own, dimensions, kind),
            block_tables=None if own.block_tables is None else as_int32(own.block_tables),
        )
        return cls(own, shared, dimensions, stages)

    def updated_caches(self, keys: Any, values: Any, after: jax.Array) -> tuple[Caches, Caches]:
        """The caches with new columns; `after` depends on everything that was read from them."""
        operands, D = self.operands, self.dimensions
        if operands.position_ids is None:
            return operands.K_caches, operands.V_caches
        caches = operands.K_caches, operands.V_caches
        if D.block_len:
            capacity = D.blocks * D.block_len
            slots = write_slots(operands.position_ids, D.S, capacity, D.block_len)
        else:
            slots = write_slots(operands.position_ids, D.S, D.S_max)
        by_block = D.block_len > 0
        return self.stages.write_caches(
            *caches, slots, keys, values, after=after, by_block=by_block
        )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _LayerResult:
    """What a layer makes.

    Attributes:
      hidden: [B, S, H], the residual stream after it.
      key: [B, S, k, d], for the cache.
      value: [B, S, k, d], likewise.
    """

    hidden: jax.Array
    key: jax.Array
    value: jax.Array


def transformer(
    operands: Operands, parameters: Parameters, stages: Stages = PLAIN
) -> tuple[jax.Array, Caches, Caches]:
    """The forward pass on checked operands.

    Where every per-layer operand is stacked, the layers run in a loop over the pattern of their
    kinds, so that tracing and compiling do not grow with depth; otherwise they are unrolled.

    Args:
      operands: the arrays; see `jax_tkg.transformer_tkg` for shapes and dtypes.
      parameters: the static parameters.
      stages: what a layer is made of.

    Returns:
      Hidden states [B, S, H] in X's dtype, and the updated caches in the form they came in.
    """
    model = _Model.of(operands, parameters, stages)
    fields = [getattr(operands, name) for name in PER_LAYER]
    loops = all(is_stacked(field) for field in fields if field is not None)
    hidden, keys, values = model.looped() if loops else model.unrolled()
    return hidden, *model.updated_caches(keys, values, after=hidden)


@functools.partial(jax.jit, static_argnames=("dimensions", "parameters", "stages"))
def _layer(
    hidden: jax.Array,
    own: _LayerOperands,
    shared: _Shared,
    dimensions: Dimensions,
    parameters: Parameters,
    stages: Stages,
) -> _LayerResult:
    """One layer.

    Jitted so that layers of equal shapes are traced and lowered once.
    """
    B, S, q, k, d = dimensions.B, dimensions.S, dimensions.q, dimensions.k, dimensions.d
    normed = rms_norm(hidden, own.W_gamma_qkv, parameters.eps)
    projected = linear(normed, own.W_qkv, multiply=stages.multiply, bias=own.bias_qkv)
    projected = projected.astype(hidden.dtype).reshape(B, S, q + 2 * k, d)
    heads = head_norms(projected[:, :, : q + k], own.W_gamma_q, own.W_gamma_k, q, parameters.eps)
    rotated = stages.apply_rope(heads, shared.rotation)
    key, value = rotated[:, :, q:], projected[:, :, q + k :]
    K_cache, V_cache = own.K_cache, own.V_cache
    if shared.block_tables is not None:
        K_cache = stages.gather_blocks(K_cache, shared.block_tables, -1)
        V_cache = stages.gather_blocks(V_cache, shared.block_tables, -2)
    attended = stages.attention(
        query=rotated[:, :, :q],
        key=key,
        value=value,
        K_cache=K_cache,
        V_cache=V_cache,
        mask=shared.mask,
        sinks=own.sinks,
        scale=parameters.softmax_scale,
        softcap=parameters.attention_softcap,
    )
    attended = attended.reshape(B, S, q * d)
    attention_part = linear(attended, own.W_out, multiply=stages.multiply)
    update = all_reduce(attention_part, parameters)
    if own.bias_out is not None:
        update = update + own.bias_out.astype(jnp.float32)[None]
    hidden = _add(hidden, update, own.W_gamma_post_attention, parameters.eps)
    normed = rms_norm(hidden, own.W_gamma_mlp, parameters.eps)
    mlp_part = layer_mlp(normed, own.mlp, dimensions, parameters, stages)
    update = all_reduce(mlp_part, parameters)
    hidden = _add(hidden, update, own.W_gamma_post_mlp, parameters.eps)
    return _LayerResult(hidden, key, value)


def _add(residual: jax.Array, update: jax.Array, gain: jax.Array | None, eps: float) -> jax.Array:
    """The residual stream plus an f32 update, rounded once to the stream's dtype.

    The update is normalized first if it has a gain.
    """
    if gain is not None:
        update = rms_norm(update, gain, eps)
    return (residual.astype(jnp.float32) + update).astype(residual.dtype)


@dataclasses.dataclass(frozen=True)
class _Model:
    """All layers, by kind.

    Columns are new keys or values, by kind: of each layer [B, S, k, d], one after the other or
    stacked.
    """

    operands: Operands
    kinds: tuple[_Kind, ...]
    layer_kinds: LayerKinds
    parameters: Parameters
    stages: Stages

    @classmethod
    def of(cls, operands: Operands, parameters: Parameters, stages: Stages) -> _Model:
        layer_kinds = LayerKinds.of(parameters.layer_kinds, parameters.num_layers)
        kinds = tuple(
            _Kind.of(operands, parameters, kind, stages) for kind in range(layer_kinds.count)
        )
        return cls(operands, kinds, layer_kinds, parameters, stages)

    def run_layer(self, hidden: jax.Array, kind: int, layer: Any, place: Any) -> _LayerResult:
        """A layer, given its number and its place among the layers of its kind."""
        of_kind = self.kinds[kind]
        caches = self.operands.K_caches
        in_one_stack = is_stacked(caches) and not isinstance(caches, KindStacks)
        own = self._layer_operands(of_kind.operands, layer, layer if in_one_stack else place)
        return _layer(hidden, own, of_kind.shared, of_kind.dimensions, self.parameters, self.stages)

    def _layer_operands(self, of_kind: Operands, layer: Any, cache: Any) -> _LayerOperands:
        """A layer's operands; its caches are number `cache` of those of its kind."""

        def take(name: str) -> Any:
            return self.stages.layer_operand(self.operands, name, layer)

        return _LayerOperands(
            K_cache=self.stages.layer_operand(of_kind, "K_caches", cache),
            V_cache=self.stages.layer_operand(of_kind, "V_caches", cache),
            W_qkv=take("W_qkvs"),
            W_out=take("W_outs"),
            W_gamma_qkv=take("W_gamma_qkvs"),
            W_gamma_mlp=take("W_gamma_mlps"),
            mlp=_mlp_weights(take),
            bias_qkv=take("bias_qkvs"),
            bias_out=take("bias_outs"),
            W_gamma_q=take("W_gamma_qs"),
            W_gamma_k=take("W_gamma_ks"),
            W_gamma_post_attention=take("W_gamma_post_attentions"),
            W_gamma_post_mlp=take("W_gamma_post_mlps"),
            sinks=take("sinks"),
        )

    def unrolled(self) -> tuple[jax.Array, list[Any], list[Any]]:
        """The layers one after the other: hidden states, and the columns of keys and of values."""
        return self._unrolled_from(0, self.operands.X)

    def _unrolled_from(
        self, first: int, hidden: jax.Array
    ) -> tuple[jax.Array, list[Any], list[Any]]:
        keys: list[Any] = [[] for _ in self.kinds]
        values: list[Any] = [[] for _ in self.kinds]
        of_layers = self.layer_kinds.of_layers
        for layer in range(first, len(of_layers)):
            kind = of_layers[layer]
            result = self.run_layer(hidden, kind, layer, self.layer_kinds.place(layer))
            hidden = result.hidden
            keys[kind].append(result.key)
            values[kind].append(result.value)
        return hidden, keys, values

    def looped(self) -> tuple[jax.Array, list[Any], list[Any]]:
        """The same as a loop over the pattern of kinds; layers after its last whole turn follow."""
        layer_kinds = self.layer_kinds
        pattern = layer_kinds.pattern
        turns = len(layer_kinds.of_layers) // len(pattern)
        counts = [pattern.count(kind) for kind in range(layer_kinds.count)]

        def body(hidden: jax.Array, turn: jax.Array) -> tuple[jax.Array, Any]:
            keys: list[Any] = [[] for _ in counts]
            values: list[Any] = [[] for _ in counts]
            for index, kind in enumerate(pattern):
                layer = _number(turn, len(pattern), index)
                place = _number(turn, counts[kind], layer_kinds.place(index))
                result = self.run_layer(hidden, kind, layer, place)
                hidden = result.hidden
                keys[kind].append(result.key)
                values[kind].append(result.value)
            return hidden, (list(map(_joined, keys)), list(map(_joined, values)))

        numbers = jnp.arange(turns, dtype=jnp.uint32)
        # Inside a shard_map, layers may vary over axes that X does not vary over.
        after_one = jax.jit(body).trace(self.operands.X, numbers[0]).jaxpr.out_avals[0]
        X = vary_over(self.operands.X, varying_axes(after_one))
        hidden, columns = jax.lax.scan(body, X, numbers)
        hidden, *rest = self._unrolled_from(turns * len(pattern), hidden)
        keys, values = (
            [_with_rest(*each) for each in zip(turned, after, strict=True)]
            for turned, after in zip(columns, rest, strict=True)
        )
        return hidden, keys, values

    def updated_caches(self, keys: list[Any], values: list[Any], after: jax.Array) -> Any:
        """Key and value caches with the new columns; `after` depends on all that was read."""
        operands, layer_kinds = self.operands, self.layer_kinds
        given = operands.K_caches
        if is_stacked(given) and not isinstance(given, KindStacks):
            return self.kinds[0].updated_caches(
                _in_order_of_layers(keys, layer_kinds),
                _in_order_of_layers(values, layer_kinds),
                after,
            )
        by_kind = [
            kind.updated_caches(keys[number], values[number], after)
            for number, kind in enumerate(self.kinds)
        ]
        if isinstance(given, KindStacks):
            return tuple(KindStacks(stacks) for stacks in zip(*by_kind, strict=True))
        return tuple(
            tuple(
                caches[kind][layer_kinds.place(layer)]
                for layer, kind in enumerate(layer_kinds.of_layers)
            )
            for caches in zip(*by_kind, strict=True)
        )


def _mlp_weights(take: Callable[[str], Any]) -> MlpWeights | ExpertWeights:
    """A layer's MLP or its experts, given what takes the layer's operand of a name."""
    weights = MlpWeights(
        gate=take("W_gates"),
        up=take("W_ups"),
        down=take("W_downs"),
        gate_scale=take("W_gate_scales"),
        up_scale=take("W_up_scales"),
        down_scale=take("W_down_scales"),
    )
    router = take("W_routers")
    if router is None:
        return weights
    shared = [take(f"W_shared_{name}s") for name in ("gate", "up", "down")]
    return ExpertWeights(
        experts=weights,
        router=router,
        bias_router=take("bias_routers"),
        bias_selection=take("bias_selections"),
        biases=MlpBiases(take("bias_gates"), take("bias_ups"), take("bias_downs")),
        shared=None if shared[0] is None else MlpWeights(*shared),
    )


def _number(turn: jax.Array, count: int, index: int) -> jax.Array:
    """The number of the layer `index` of a turn of `count` layers."""
    return turn if count == 1 else turn * jnp.uint32(count) + jnp.uint32(index)


def _joined(columns: list[jax.Array]) -> jax.Array:
    return columns[0] if len(columns) == 1 else jnp.stack(columns)


def _with_rest(turned: jax.Array, rest: list[jax.Array]) -> jax.Array:
    """[n, B, S, k, d]: the columns of all turns, [turns, ..., B, S, k, d], then the rest."""
    columns = turned.reshape(-1, *turned.shape[-4:])
    return jnp.concatenate([columns, jnp.stack(rest)]) if rest else columns


def _in_order_of_layers(columns: list[Any], layer_kinds: LayerKinds) -> jax.Array:
    """[L, B, S, k, d] of the columns of each kind."""
    if len(columns) == 1:
        return columns[0]
    together = jnp.concatenate([own if is_stacked(own) else jnp.stack(own) for own in columns])
    order = [layer for kind in range(layer_kinds.count) for layer in layer_kinds.layers(kind)]
    return together[np.argsort(order)]
