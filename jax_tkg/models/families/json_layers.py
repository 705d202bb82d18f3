"""Parts of a `config.json` that several families have: windows, biases, activations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jax_tkg.models.config import EXPERT_COUNT, LIMITS, MULTIPLIER, Experts
from jax_tkg.models.typed_keys import Range, TypedKeys

WINDOW = Range(1, 1 << 24)
"""Range of a window, in tokens."""

SLIDING, FULL = "sliding_attention", "full_attention"

_ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "relu2": "relu2",
}
"""transformers' names of activations, and the operation's."""


def activation(keys: TypedKeys, key: str = "hidden_act", default: str = "silu") -> str:
    """The activation of the MLP's gate, under the operation's name."""
    return _ACTIVATIONS[keys.string(key, tuple(_ACTIVATIONS), default)]


def biases(keys: TypedKeys, default: bool = False) -> dict[str, bool]:
    """`attention_bias`: queries, keys, values and attention's output have biases."""
    has = keys.boolean("attention_bias", default)
    return {"projection_bias": has, "output_bias": has}


def multiplier(keys: TypedKeys, key: str, default: float = 1.0) -> float:
    """A positive factor."""
    return keys.number(key, MULTIPLIER, default)


def soft_cap(keys: TypedKeys, key: str, default: float) -> float:
    """A soft cap; 0 for none, which `null` says."""
    if key not in keys:
        return 0.0 if keys.states(key) else default
    return keys.number(key, MULTIPLIER)


def are_sliding(keys: TypedKeys, default: Sequence[bool]) -> list[bool]:
    """Which layers have a window: as `layer_types` says, or `default` if it is absent."""
    key = "layer_types"
    if key not in keys:
        return list(default)
    types = keys.strings(key)
    if len(types) != len(default) or not set(types) <= {SLIDING, FULL}:
        raise keys.error(key, f"{SLIDING!r} or {FULL!r} for each of {len(default)} layers")
    return [kind == SLIDING for kind in types]


def window(keys: TypedKeys, default: int | None = None) -> int | None:
    """`sliding_window`, in tokens; None for none, which `null` says."""
    key = "sliding_window"
    if key not in keys:
        return None if keys.states(key) else default
    return keys.integer(key, WINDOW)


def window_from_a_layer_on(
    keys: TypedKeys, num_layers: int, default_first: int = 28
) -> list[int | None]:
    """Each layer's window where it holds from layer `max_window_layers` on (Qwen)."""
    size = window(keys, 4096) if keys.boolean("use_sliding_window", False) else None
    first = keys.integer("max_window_layers", Range(0, 1 << 12), default_first)
    default = [size is not None and index >= first for index in range(num_layers)]
    sliding = are_sliding(keys, default)
    if any(sliding) and size is None:
        raise keys.error("layer_types", f"{FULL!r} for each layer, for there is no window")
    return [size if slides else None for slides in sliding]


def experts(keys: TypedKeys, size: str, per_token: int, **options: Any) -> Experts:
    """The experts of each layer.

    Args:
      keys: of `config.json`.
      size: the key of the features inside an expert.
      per_token: how many run for a token, if the file does not say it.
      **options: fields of `Experts` that the family has.
    """
    # transformers 5 writes the second name in place of the first.
    key = next((key for key in ("num_experts", "num_local_experts") if key in keys), "num_experts")
    count = keys.integer(key, EXPERT_COUNT)
    most = Range(EXPERT_COUNT.minimum, count)
    return Experts(
        count=count,
        per_token=keys.integer("num_experts_per_tok", most, per_token),
        intermediate_size=keys.integer(size, LIMITS["intermediate_size"]),
        **options,
    )


def dense_layers(keys: TypedKeys, num_layers: int) -> tuple[int, ...]:
    """The layers without experts: all but every `decoder_sparse_step`-th one, and those that
    `mlp_only_layers` lists (Qwen)."""
    every = keys.integer("decoder_sparse_step", Range(1, 1 << 12), 1)
    key = "mlp_only_layers"
    listed = keys.integers(key, Range(0, num_layers - 1)) if key in keys else []
    return tuple(n for n in range(num_layers) if n in listed or (n + 1) % every)


READS_EXPERTS = frozenset({"num_experts", "num_local_experts", "num_experts_per_tok"})
"""Keys that `experts` reads, without that of the size."""

READS_WINDOWS = frozenset(
    {"use_sliding_window", "sliding_window", "max_window_layers", "layer_types"}
)
"""Keys that `window_from_a_layer_on` reads."""
