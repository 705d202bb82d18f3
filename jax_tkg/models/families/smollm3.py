"""SmolLM3: layers without RoPE among the others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jax_tkg.models.config import LayerKind
from jax_tkg.models.families import gguf_layers, json_layers
from jax_tkg.models.families.family import (
    NAMES_IN_GGUF,
    NAMES_IN_JSON,
    GgufFamily,
    JsonFamily,
    Sizes,
)
from jax_tkg.models.gguf_file import GgufFile
from jax_tkg.models.json_rope import read_rope
from jax_tkg.models.layer_tensors import Storage
from jax_tkg.models.rope_scaling import Rope
from jax_tkg.models.typed_keys import Range, TypedKeys

_PERIOD = 4
"""Every fourth layer is without RoPE, if the file does not say otherwise; GGUF files cannot."""


def _layers(
    sizes: Sizes, rope: Rope, turns: Sequence[bool], windows: Sequence[int | None]
) -> tuple[LayerKind, ...]:
    ropes = {True: rope, False: Rope(())}
    return tuple(
        sizes.kind(ropes[turn], window) for turn, window in zip(turns, windows, strict=True)
    )


def _with_rope(period: int, num_layers: int) -> list[bool]:
    return [bool((index + 1) % period) for index in range(num_layers)]


def _smollm3(keys: TypedKeys, sizes: Sizes) -> dict[str, Any]:
    period = keys.integer("no_rope_layer_interval", Range(1, 1 << 12), _PERIOD)
    turns = _with_rope(period, sizes.num_layers)
    if "no_rope_layers" in keys:
        # 1 is a layer with RoPE, whatever the name says.
        turns = keys.flags("no_rope_layers", sizes.num_layers)
    window = json_layers.window(keys) if keys.boolean("use_sliding_window", False) else None
    default = [window is not None and not turn for turn in turns]
    sliding = json_layers.are_sliding(keys, default)
    if any(sliding) and window is None:
        raise keys.error("layer_types", "'full_attention' for each layer, for there is no window")
    windows = [window if slides else None for slides in sliding]
    rope = read_rope(keys, sizes.head_size, theta=2e6)
    return {
        "layers": _layers(sizes, rope, turns, windows),
        "activation": json_layers.activation(keys),
        **json_layers.biases(keys),
    }


def _gguf(file: GgufFile, sizes: Sizes) -> dict[str, Any]:
    turns = _with_rope(_PERIOD, sizes.num_layers)
    rope = gguf_layers.read_rope(file, sizes)
    return {
        "layers": _layers(sizes, rope, turns, [None] * sizes.num_layers),
        **gguf_layers.biases(file),
    }


SMOLLM3 = JsonFamily(
    model_type="smollm3",
    classes=("SmolLM3ForCausalLM",),
    storage=Storage(NAMES_IN_JSON),
    read=_smollm3,
    reads=json_layers.READS_WINDOWS
    | {"attention_bias", "no_rope_layers", "no_rope_layer_interval"},
)
SMOLLM3_GGUF = GgufFamily("smollm3", Storage(NAMES_IN_GGUF, interleaved=True), _gguf)
