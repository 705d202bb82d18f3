"""Token generation in float64 NumPy, written from the operation's definition, query by query.

Nothing here shares code or formulation with the package: one query of one head at a time, over only
the keys that it attends.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

UNWRITTEN = 2**32 - 1


def wide(array: Any) -> np.ndarray:
    """Any array as float64."""
    return np.asarray(array).astype(np.float32).astype(np.float64)


@dataclasses.dataclass
class Rank:
    """One rank's weights, caches and masks (of its own heads).

    Lists have an entry per layer, tuples one per kind of layers.
    """

    W_qkvs: list[Any]
    W_outs: list[Any]
    W_gates: list[Any]
    W_ups: list[Any]
    W_downs: list[Any]
    K_caches: list[Any]
    V_caches: list[Any]
    mask_cache: Any
    mask_active: Any
    W_gate_scales: list[Any] | None = None
    W_up_scales: list[Any] | None = None
    W_down_scales: list[Any] | None = None
    bias_qkvs: list[Any] | None = None
    W_routers: list[Any] | None = None
    bias_routers: list[Any] | None = None
    bias_selections: list[Any] | None = None
    bias_gates: list[Any] | None = None
    bias_ups: list[Any] | None = None
    bias_downs: list[Any] | None = None
    W_shared_gates: list[Any] | None = None
    W_shared_ups: list[Any] | None = None
    W_shared_downs: list[Any] | None = None
    sinks: list[Any] | None = None
    context_lengths: Any = None
    context_starts: Any = None
    block_tables: Any = None
    k_scales: list[Any] | None = None
    v_scales: list[Any] | None = None


def _normalize(rows: np.ndarray, gamma: np.ndarray, eps: float) -> np.ndarray:
    return rows / np.sqrt(np.square(rows).mean(axis=-1, keepdims=True) + eps) * gamma[0]


def _rotate(head: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    half = len(head) // 2
    first, second = head[:half], head[half:]
    return np.concatenate([first * cos - second * sin, second * cos + first * sin])


def _product(x: np.ndarray, weight: Any, scale: Any, clamp: float) -> np.ndarray:
    if scale is None:
        return x @ wide(weight)
    if clamp > 0:
        x = np.minimum(np.maximum(x, -clamp), clamp)
    return (x @ wide(weight)) * wide(scale)[0]


def _of_layer(arrays: list[Any] | None, layer: int) -> Any:
    """The layer's array of an operand that may be absent, in all layers or in one."""
    return None if arrays is None else arrays[layer]


def _norm_if_given(rows: np.ndarray, gains: list[Any] | None, layer: int, eps: float) -> np.ndarray:
    """RMSNorm over the last axis, where the layer has a gain."""
    gain = _of_layer(gains, layer)
    return rows if gain is None else _normalize(rows, wide(gain), eps)


def _slot(position_ids: np.ndarray, b: int, j: int, capacity: int) -> int | None:
    """The slot that new token j of sequence b is written to, or None."""
    per_token = position_ids.shape[1] > 1
    given = int(position_ids[b, j if per_token else 0])
    if given < 0 or given == UNWRITTEN:
        return None
    slot = given if per_token else given + j
    return slot if slot < capacity else None


def _put_together(caches: np.ndarray, tables: np.ndarray, slot_axis: int) -> np.ndarray:
    """The flat cache of each sequence, block after block; zeros for a missing one."""
    rows = []
    for table in tables:
        blocks = [caches[block] if block >= 0 else np.zeros_like(caches[0]) for block in table]
        rows.append(np.concatenate(blocks, axis=slot_axis))
    return np.array(rows)


def _place_in_block(
    position_ids: np.ndarray, b: int, j: int, blocks: int, block_len: int
) -> tuple[int, int] | None:
    """Block and offset of new token j of sequence b, or None."""
    per_token = position_ids.shape[1] > 1
    given = int(position_ids[b, j if per_token else 0])
    if given < 0 or given == UNWRITTEN:
        return None
    block, offset = divmod(given, block_len)
    offset += 0 if per_token else j
    return (block, offset) if block < blocks and offset < block_len else None


def _of_kind(value: Any, layer: int, common: dict[str, Any]) -> Any:
    """The entry of the layer's kind, if the operand has one for each kind."""
    return value[common["layer_kinds"][layer]] if isinstance(value, tuple) else value


def _number(numbers: Any, b: int, s: int) -> int:
    """A token's number, of numbers of sequences or of tokens."""
    numbers = np.asarray(numbers)
    return int(numbers[b] if numbers.ndim == 1 else numbers[b, s])


def _slots_in_range(lengths: Any, starts: Any, b: int, s: int, slots: int) -> list[int]:
    """The slots that a query attends, by walking from the start, round the end if it wraps."""
    length = max(0, _number(lengths, b, s))
    start = 0 if starts is None else max(0, _number(starts, b, s))
    if start <= length:
        return list(range(start, min(length, slots)))
    return [slot for slot in range(slots) if not length <= slot < start]


def _attend(
    query: np.ndarray,
    keys: np.ndarray,
    values: np.ndarray,
    sink: float | None,
    scale: float | None,
    cap: float,
) -> np.ndarray:
    """One query's [d] attention output over the [n, d] keys and values that it attends."""
    n, d = keys.shape
    if n == 0:
        return np.zeros(d)
    scores = keys @ query * (1 / math.sqrt(d) if scale is None else scale)
    if cap:
        scores = cap * np.tanh(scores / cap)
    # A sink is a further logit whose weight goes to no value.
    logits = scores if sink is None else np.append(scores, sink)
    weights = np.exp(logits - logits.max())
    return (weights / weights.sum())[:n] @ values


def _as_stored(column: np.ndarray, scale: Any, dtype: Any) -> np.ndarray:
    """What a cache holds of a key or value, not rounded."""
    if scale is None:
        return column
    largest = {"float8_e4m3": 240.0, "float8_e4m3fn": 448.0}[np.dtype(dtype).name]
    return np.minimum(np.maximum(column * wide(scale)[0, 0], -largest), largest)


def _attention(
    rank: Rank, layer: int, n: np.ndarray, common: dict[str, Any]
) -> tuple[np.ndarray, list[tuple[int, int, np.ndarray, np.ndarray]]]:
    """This rank's attention output [B, S, H], and the (b, slot, key, value) to write."""
    K, V = wide(rank.K_caches[layer]), wide(rank.V_caches[layer])
    k_scale, v_scale = _of_layer(rank.k_scales, layer), _of_layer(rank.v_scales, layer)
    K = K if k_scale is None else K / wide(k_scale)[0, 0]
    V = V if v_scale is None else V / wide(v_scale)[0, 0]
    tables = _of_kind(rank.block_tables, layer, common)
    blocks, block_len = K.shape[0], K.shape[3]
    if tables is not None:
        K, V = _put_together(K, tables, -1), _put_together(V, tables, -2)
    batch, kv_heads, d, capacity = K.shape
    mask_cache = _of_kind(rank.mask_cache, layer, common)
    mask_active = _of_kind(rank.mask_active, layer, common)
    lengths, starts = (
        _of_kind(value, layer, common) for value in (rank.context_lengths, rank.context_starts)
    )
    position_ids = _of_kind(common["position_ids"], layer, common)
    new, heads = n.shape[1], np.shape(rank.W_outs[layer])[0] // d
    unified = mask_cache is not None and mask_active is None
    if mask_cache is None:
        slots = _of_kind(common.get("context_bucket"), layer, common) or capacity
    else:
        mask_cache = np.asarray(mask_cache)
        slots = len(mask_cache) - (new if unified else 0)
    active = mask_cache[slots:] if unified else mask_active
    active = None if active is None else np.asarray(active)
    qkv = n @ wide(rank.W_qkvs[layer])
    bias, sinks = _of_layer(rank.bias_qkvs, layer), _of_layer(rank.sinks, layer)
    if bias is not None:
        qkv = qkv + wide(bias)[0]
    cos, sin = (wide(_of_kind(common[name], layer, common)) for name in ("RoPE_cos", "RoPE_sin"))
    W_out = wide(rank.W_outs[layer])
    attended = np.zeros((batch, new, heads * d))
    writes = []
    for b in range(batch):
        split = qkv[b].reshape(new, heads + 2 * kv_heads, d).copy()
        for kind, gains in (
            (slice(0, heads), "W_gamma_qs"),
            (slice(heads, heads + kv_heads), "W_gamma_ks"),
        ):
            split[:, kind] = _norm_if_given(split[:, kind], common.get(gains), layer, common["eps"])
        keys = np.array(
            [
                [_rotate(split[j, heads + g], cos[:, b, j], sin[:, b, j]) for g in range(kv_heads)]
                for j in range(new)
            ]
        )
        values = split[:, heads + kv_heads :]
        for s in range(new):
            for h in range(heads):
                group = h // (heads // kv_heads)
                query = _rotate(split[s, h], cos[:, b, s], sin[:, b, s])
                if mask_cache is None:
                    chosen = _slots_in_range(lengths, starts, b, s, slots)
                else:
                    chosen = np.flatnonzero(mask_cache[:slots, b, h, s])
                if active is None:
                    fresh = list(range(s + 1))
                else:
                    fresh = np.flatnonzero(active[:, b, h, s])
                attended[b, s, h * d : (h + 1) * d] = _attend(
                    query,
                    np.concatenate([K[b, group][:, chosen].T, keys[fresh, group]]),
                    np.concatenate([V[b, group][chosen], values[fresh, group]]),
                    None if sinks is None else float(sinks[0, h]),
                    common.get("softmax_scale"),
                    common.get("attention_softcap", 0.0),
                )
        if position_ids is not None:
            for j in range(new):
                ids = np.asarray(position_ids)
                if tables is not None:
                    place = _place_in_block(ids, b, j, blocks, block_len)
                else:
                    slot = _slot(ids, b, j, capacity)
                    place = None if slot is None else (b, slot)
                if place is not None:
                    key = _as_stored(keys[j], k_scale, rank.K_caches[layer].dtype)
                    value = _as_stored(values[j], v_scale, rank.V_caches[layer].dtype)
                    writes.append((*place, key, value))
    return attended @ W_out, writes


def _activate(x: np.ndarray, name: str) -> np.ndarray:
    if name == "silu":
        return x / (1 + np.exp(-x))
    if name == "gelu":
        return x * (1 + np.vectorize(math.erf, otypes=[float])(x / math.sqrt(2))) / 2
    if name == "gelu_tanh":
        return x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2
    assert name == "relu2", name
    return np.where(x > 0, x * x, 0.0)


def _gated(gate: np.ndarray, up: np.ndarray, common: dict[str, Any]) -> np.ndarray:
    if common["activation"] == "swiglu_oai":
        limit, alpha = common.get("activation_limit", 7.0), common.get("activation_alpha", 1.702)
        gate, up = np.minimum(gate, limit), np.maximum(np.minimum(up, limit), -limit)
        return gate / (1 + np.exp(-alpha * gate)) * (up + 1)
    return _activate(gate, common["activation"]) * up


def _mlp(rank: Rank, layer: int, m: np.ndarray, clamp: float, common: dict[str, Any]) -> np.ndarray:
    gate = _product(m, rank.W_gates[layer], _of_layer(rank.W_gate_scales, layer), clamp)
    up = _product(m, rank.W_ups[layer], _of_layer(rank.W_up_scales, layer), clamp)
    hidden = _gated(gate, up, common)
    return _product(hidden, rank.W_downs[layer], _of_layer(rank.W_down_scales, layer), clamp)


def router_scores(
    rank: Rank, layer: int, token: np.ndarray, routing: str
) -> tuple[np.ndarray, np.ndarray]:
    """Of each expert the value that it is chosen by, and the logit or sigmoid behind its weight."""
    assert rank.W_routers is not None
    logits = token @ wide(rank.W_routers[layer])
    bias = _of_layer(rank.bias_routers, layer)
    if bias is not None:
        logits = logits + wide(bias)[0]
    if routing != "sigmoid_topk":
        return logits, logits
    values = 1 / (1 + np.exp(-logits))
    selection = _of_layer(rank.bias_selections, layer)
    return values if selection is None else values + wide(selection)[0], values


def _chosen(
    rank: Rank, layer: int, token: np.ndarray, common: dict[str, Any]
) -> list[tuple[int, float]]:
    """The experts that a token goes to, with its weights."""
    routing = common.get("routing", "softmax_topk")
    scores, values = router_scores(rank, layer, token, routing)
    remaining = list(range(len(scores)))
    chosen = []
    for _ in range(common["experts_per_token"]):
        best = max(remaining, key=lambda expert: (scores[expert], -expert))
        remaining.remove(best)
        chosen.append(best)
    common["gaps"].append(
        min((scores[best] - scores[other] for other in remaining for best in chosen), default=1.0)
    )
    if routing == "sigmoid_topk":
        weights = {expert: values[expert] for expert in chosen}
    else:
        over = chosen if routing == "topk_softmax" else range(len(scores))
        total = sum(math.exp(values[expert]) for expert in over)
        weights = {expert: math.exp(values[expert]) / total for expert in chosen}
    total = sum(weights.values()) if common.get("normalize_expert_weights") else 1.0
    scale = common.get("routed_scale", 1.0)
    return [(expert, weight / total * scale) for expert, weight in weights.items()]


def _expert(
    rank: Rank, layer: int, index: int, token: np.ndarray, clamp: float, common: dict[str, Any]
) -> np.ndarray:
    """The result of one of the experts that a rank holds, without the bias of down."""

    def product(x: np.ndarray, name: str) -> np.ndarray:
        scale = _of_layer(getattr(rank, f"W_{name}_scales"), layer)
        weight = getattr(rank, f"W_{name}s")[layer][index]
        return _product(x, weight, None if scale is None else scale[index], clamp)

    gate, up = product(token, "gate"), product(token, "up")
    for bias, total in ((rank.bias_gates, gate), (rank.bias_ups, up)):
        if _of_layer(bias, layer) is not None:
            total += wide(_of_layer(bias, layer)[index])
    return product(_gated(gate, up, common), "down")


def _experts(
    ranks: list[Rank], layer: int, m: np.ndarray, clamp: float, common: dict[str, Any]
) -> np.ndarray:
    """The sum over all ranks of a layer's experts, [B, S, H]."""
    held = len(ranks[0].W_gates[layer])
    total = np.zeros_like(m)
    for b, s in np.ndindex(*m.shape[:2]):
        token = m[b, s]
        assert ranks[0].W_routers is not None
        experts = np.shape(ranks[0].W_routers[layer])[1]
        for expert, weight in _chosen(ranks[0], layer, token, common):
            # Either each rank has a slice of every expert, or one rank has the whole expert.
            owners = ranks if held == experts else [ranks[expert // held]]
            out = sum(_expert(rank, layer, expert % held, token, clamp, common) for rank in owners)
            bias = _of_layer(owners[0].bias_downs, layer)
            if bias is not None:
                out = out + wide(bias[expert % held])
            total[b, s] += weight * out
    for rank in ranks:
        if _of_layer(rank.W_shared_gates, layer) is not None:
            assert rank.W_shared_gates is not None
            assert rank.W_shared_ups is not None
            assert rank.W_shared_downs is not None
            gate, up = m @ wide(rank.W_shared_gates[layer]), m @ wide(rank.W_shared_ups[layer])
            total = total + _gated(gate, up, common) @ wide(rank.W_shared_downs[layer])
    return total


def transformer_tkg(
    X: Any,
    ranks: list[Rank],
    num_layers: int,
    eps: float = 1e-6,
    clamp_bound: float = 0.0,
    activation: str = "silu",
    **common: Any,
) -> tuple[np.ndarray, list[list[np.ndarray]], list[list[np.ndarray]], list[set[tuple[int, int]]]]:
    """All layers on one replica group of ranks.

    Args:
      X: [B, S, H].
      ranks: what differs from rank to rank; their partial sums are added.
      num_layers: L.
      eps: of the normalizations.
      clamp_bound: 0.0 for none.
      activation: of the gate.
      **common: what all ranks have alike: gains and the bias of the output per layer, RoPE_cos,
        RoPE_sin, position_ids, softmax_scale, attention_softcap and the options of experts. With
        a list `gaps`, the distance between what each token chose and what it did not is added.

    Returns:
      Hidden states, the updated K and V caches as [rank][layer] float64, and the (sequence, slot)
      pairs written, per layer.
    """
    x = wide(X)
    K_caches = [[wide(cache) for cache in rank.K_caches] for rank in ranks]
    V_caches = [[wide(cache) for cache in rank.V_caches] for rank in ranks]
    written: list[set[tuple[int, int]]] = []
    common = {"gaps": [], **common, "eps": eps, "activation": activation}
    for layer in range(num_layers):
        n = _normalize(x, wide(common["W_gamma_qkvs"][layer]), eps)
        total, pairs = np.zeros_like(x), set()
        for index, rank in enumerate(ranks):
            part, writes = _attention(rank, layer, n, common)
            total += part
            for b, slot, key, value in writes:
                K_caches[index][layer][b, :, :, slot] = key
                V_caches[index][layer][b, :, slot] = value
                pairs.add((b, slot))
        bias = _of_layer(common.get("bias_outs"), layer)
        if bias is not None:
            total = total + wide(bias)[0]
        x = x + _norm_if_given(total, common.get("W_gamma_post_attentions"), layer, eps)
        m = _normalize(x, wide(common["W_gamma_mlps"][layer]), eps)
        if np.ndim(ranks[0].W_gates[layer]) == 3:
            total = _experts(ranks, layer, m, clamp_bound, common)
        else:
            total = sum(_mlp(rank, layer, m, clamp_bound, common) for rank in ranks)
        x = x + _norm_if_given(total, common.get("W_gamma_post_mlps"), layer, eps)
        written.append(pairs)
    return x, K_caches, V_caches, written
