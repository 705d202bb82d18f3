"""All layers of the forward pass of token generation, in plain jax.numpy."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_tkg.bits import Bits
from jax_tkg.call.arguments import PER_LAYER, Operands, Parameters, is_stacked
from jax_tkg.call.dimensions import Dimensions
from jax_tkg.call.layer_kinds import KindStacks, LayerKinds
from jax_tkg.reference import cache_update, prepare
from jax_tkg.reference.all_reduce import all_reduce
from jax_tkg.reference.attention import attention, attention_mask
from jax_tkg.reference.cache_update import Caches
from jax_tkg.reference.linear import linear
from jax_tkg.reference.mlp import MlpWeights, mlp
from jax_tkg.reference.rms_norm import head_norms, rms_norm
from jax_tkg.reference.rope import Rotation, apply_rope, rotation
from jax_tkg.reference.stored_weight import StoredWeight
from jax_tkg.reference.varying_axes import vary_over, varying_axes


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _LayerWeights:
    """One layer's weights; those with a default may be absent."""

    W_qkv: StoredWeight
    W_out: StoredWeight
    W_gamma_qkv: jax.Array
    W_gamma_mlp: jax.Array
    mlp: MlpWeights
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
    mask: jax.Array


@dataclasses.dataclass(frozen=True)
class _Kind:
    """The layers of one kind.

    Attributes:
      operands: as these layers see them.
      shared: what they read.
      dimensions: their sizes.
    """

    operands: Operands
    shared: _Shared
    dimensions: Dimensions

    @classmethod
    def of(cls, operands: Operands, kinds: LayerKinds, kind: int) -> _Kind:
        """The kind of a number."""
        own = operands.of_kind(kind, kinds)
        dimensions = Dimensions.of(own)
        shared = _Shared(
            rotation=rotation(own.RoPE_cos, own.RoPE_sin),
            mask=attention_mask(own.mask_cache, own.mask_active, dimensions.k),
        )
        return cls(own, shared, dimensions)

    def updated_caches(self, keys: Any, values: Any, after: jax.Array) -> tuple[Caches, Caches]:
        """The caches with new columns; `after` depends on everything that was read from them."""
        operands, D = self.operands, self.dimensions
        if operands.position_ids is None:
            return operands.K_caches, operands.V_caches
        slots = cache_update.write_slots(operands.position_ids, D.S, D.S_max)
        plan = cache_update.plan_writes(slots, D.S_max)
        caches = operands.K_caches, operands.V_caches
        return cache_update.write_caches(*caches, plan, keys, values, after=after)


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
    operands: Operands, parameters: Parameters, platform: str | None = None
) -> tuple[jax.Array, Caches, Caches]:
    """The forward pass on checked operands.

    Where every per-layer operand is stacked, the layers run in a loop over the pattern of their
    kinds, so that tracing and compiling do not grow with depth; otherwise they are unrolled.

    Args:
      operands: the arrays; see `jax_tkg.transformer_tkg` for shapes and dtypes.
      parameters: the static parameters.
      platform: the platform lowered for, where it is one: how products are formulated depends on
        it (`jax_tkg.reference.formulation`), what they are does not.

    Returns:
      Hidden states [B, S, H] in X's dtype, and the updated caches in the form they came in.
    """
    if platform != "cpu":
        return _transformer(operands, parameters, platform)
    prepared = prepare.for_cpu(operands)
    hidden, K_caches, V_caches = _transformer(prepared, parameters, platform)
    return (
        hidden,
        prepare.as_given(K_caches, operands.K_caches),
        prepare.as_given(V_caches, operands.V_caches),
    )


def _transformer(
    operands: Operands, parameters: Parameters, platform: str | None
) -> tuple[jax.Array, Caches, Caches]:
    model = _Model.of(operands, parameters, platform)
    fields = [getattr(operands, name) for name in PER_LAYER]
    loops = all(is_stacked(field) for field in fields if field is not None)
    hidden, keys, values = model.looped() if loops else model.unrolled()
    return hidden, *model.updated_caches(keys, values, after=hidden)


def _layer_weights(operands: Operands, index: Any) -> _LayerWeights:
    return _LayerWeights(
        W_qkv=_stored(operands, "W_qkvs", index),
        W_out=_stored(operands, "W_outs", index),
        W_gamma_qkv=operands.layer("W_gamma_qkvs", index),
        W_gamma_mlp=operands.layer("W_gamma_mlps", index),
        mlp=MlpWeights(
            gate=_stored(operands, "W_gates", index),
            up=_stored(operands, "W_ups", index),
            down=_stored(operands, "W_downs", index),
            gate_scale=operands.layer("W_gate_scales", index),
            up_scale=operands.layer("W_up_scales", index),
            down_scale=operands.layer("W_down_scales", index),
        ),
        bias_qkv=operands.layer("bias_qkvs", index),
        bias_out=operands.layer("bias_outs", index),
        W_gamma_q=operands.layer("W_gamma_qs", index),
        W_gamma_k=operands.layer("W_gamma_ks", index),
        W_gamma_post_attention=operands.layer("W_gamma_post_attentions", index),
        W_gamma_post_mlp=operands.layer("W_gamma_post_mlps", index),
        sinks=operands.layer("sinks", index),
    )


def _stored(operands: Operands, name: str, index: Any) -> StoredWeight:
    field = getattr(operands, name)
    if is_stacked(field):
        return StoredWeight(field, jnp.uint32(index))
    return StoredWeight(field[index])


@functools.partial(jax.jit, static_argnames=("dimensions", "parameters", "platform"))
def _layer(
    hidden: jax.Array,
    K_cache: jax.Array | Bits,
    V_cache: jax.Array | Bits,
    layer: jax.Array | None,
    weights: _LayerWeights,
    shared: _Shared,
    dimensions: Dimensions,
    parameters: Parameters,
    platform: str | None,
) -> _LayerResult:
    """One layer; `layer` says which entry of the caches is its own, if they have several.

    Jitted so that layers of equal shapes are traced and lowered once.
    """
    B, S, q, k, d = dimensions.B, dimensions.S, dimensions.q, dimensions.k, dimensions.d
    normed = rms_norm(hidden, weights.W_gamma_qkv, parameters.eps)
    projected = linear(normed, weights.W_qkv, platform=platform, bias=weights.bias_qkv)
    projected = projected.astype(hidden.dtype).reshape(B, S, q + 2 * k, d)
    heads = head_norms(
        projected[:, :, : q + k], weights.W_gamma_q, weights.W_gamma_k, q, parameters.eps
    )
    rotated = apply_rope(heads, shared.rotation)
    key, value = rotated[:, :, q:], projected[:, :, q + k :]
    attended = attention(
        query=rotated[:, :, :q],
        key=key,
        value=value,
        K_cache=K_cache,
        V_cache=V_cache,
        layer=layer,
        mask=shared.mask,
        platform=platform,
        sinks=weights.sinks,
        scale=parameters.softmax_scale,
        softcap=parameters.attention_softcap,
    )
    attention_part = linear(attended.reshape(B, S, q * d), weights.W_out, platform=platform)
    update = all_reduce(attention_part, parameters)
    if weights.bias_out is not None:
        update = update + weights.bias_out.astype(jnp.float32)[None]
    hidden = _add(hidden, update, weights.W_gamma_post_attention, parameters.eps)
    normed = rms_norm(hidden, weights.W_gamma_mlp, parameters.eps)
    mlp_part = mlp(normed, weights.mlp, parameters.clamp_bound, platform, parameters.activation)
    update = all_reduce(mlp_part, parameters)
    hidden = _add(hidden, update, weights.W_gamma_post_mlp, parameters.eps)
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
    platform: str | None

    @classmethod
    def of(cls, operands: Operands, parameters: Parameters, platform: str | None) -> _Model:
        layer_kinds = LayerKinds.of(parameters.layer_kinds, parameters.num_layers)
        kinds = tuple(_Kind.of(operands, layer_kinds, kind) for kind in range(layer_kinds.count))
        return cls(operands, kinds, layer_kinds, parameters, platform)

    def run_layer(self, hidden: jax.Array, kind: int, layer: Any, place: Any) -> _LayerResult:
        """A layer, given its number and its place among the layers of its kind."""
        own = self.kinds[kind]
        caches: Any = own.operands.K_caches, own.operands.V_caches
        index = None
        if isinstance(caches[0], tuple):
            caches = tuple(layers[place] for layers in caches)
        else:
            in_own_stack = isinstance(self.operands.K_caches, KindStacks)
            index = jnp.uint32(place if in_own_stack else layer)
        weights = _layer_weights(self.operands, layer)
        return _layer(
            hidden,
            *caches,
            index,
            weights,
            own.shared,
            own.dimensions,
            self.parameters,
            self.platform,
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
