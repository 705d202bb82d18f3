"""Reading llama-architecture models from folders in the format of Hugging Face transformers.

Such a folder holds `config.json` and `model.safetensors`, or several files of tensors listed in
`model.safetensors.index.json`.
"""

from __future__ import annotations

import contextlib
import json
import pathlib
import re
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import safetensors

from jax_tkg.models import llama
from jax_tkg.models.config import LlamaConfig
from jax_tkg.models.errors import ModelError, one_line
from jax_tkg.rope import Llama3Scaling

_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_EMBEDDING, _HEAD, _FINAL_NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"
_LAYER_TENSORS = {
    "query": "self_attn.q_proj",
    "key": "self_attn.k_proj",
    "value": "self_attn.v_proj",
    "output": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
    "attention_norm": "input_layernorm",
    "mlp_norm": "post_attention_layernorm",
}
"""Names of one layer's tensors by the fields of `llama.LayerTensors`."""


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
      ModelError: the file is absent or holds no JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelError(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise ModelError(f"{path}: not a readable JSON file: {one_line(error)}") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path}: expected a JSON object, got {type(content).__name__}")
    return content


def read_config(folder: pathlib.Path) -> LlamaConfig:
    """The model's sizes from `config.json`.

    Raises:
      ModelError: another architecture than llama, a missing or impossible value, or a feature that
        `transformer_tkg` does not have.
    """
    path = folder / "config.json"
    content = read_json(path)

    def required(name: str) -> Any:
        if content.get(name) is None:
            raise ModelError(f"{name} is missing")
        return content[name]

    try:
        if content.get("model_type") != "llama":
            raise ModelError(f"model_type: expected 'llama', got {content.get('model_type')!r}")
        for name, only in (("hidden_act", "silu"), ("attention_bias", False), ("mlp_bias", False)):
            if content.get(name, only) != only:
                raise ModelError(f"{name}: expected {only!r}, got {content[name]!r}")
        heads = required("num_attention_heads")
        head_size = content.get("head_dim") or required("hidden_size") // heads
        theta, scaling, factors = _rope(content, head_size)
        return LlamaConfig(
            num_layers=required("num_hidden_layers"),
            hidden_size=required("hidden_size"),
            intermediate_size=required("intermediate_size"),
            num_heads=heads,
            num_kv_heads=content.get("num_key_value_heads") or heads,
            head_size=head_size,
            vocabulary_size=required("vocab_size"),
            context_length=required("max_position_embeddings"),
            rope_theta=theta,
            rms_norm_eps=required("rms_norm_eps"),
            rope_scaling=scaling,
            rope_factors=factors,
        )
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from None
    except (TypeError, ZeroDivisionError, KeyError) as error:
        raise ModelError(f"{path}: not a readable model description: {error!r}") from error


def _rope(
    content: dict[str, Any], head_size: int
) -> tuple[float, Llama3Scaling | None, tuple[float, ...] | None]:
    """Base, Llama 3's scaling and divisors of the RoPE frequencies."""
    # transformers 5 writes one dictionary where earlier releases wrote two entries.
    rope = content.get("rope_parameters") or content.get("rope_scaling") or {}
    theta = float(rope.get("rope_theta", content.get("rope_theta", 10000.0)))
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return theta, None, None
    if kind == "linear":
        return theta, None, (float(rope["factor"]),) * (head_size // 2)
    if kind == "llama3":
        scaling = Llama3Scaling(
            factor=float(rope["factor"]),
            low_frequency_factor=float(rope["low_freq_factor"]),
            high_frequency_factor=float(rope["high_freq_factor"]),
            original_context_length=int(rope["original_max_position_embeddings"]),
        )
        return theta, scaling, None
    raise ModelError(f"rope_type: expected default, linear or llama3, got {kind!r}")


class _Tensors:
    """The tensors of all files of a folder, by name."""

    def __init__(self, folder: pathlib.Path, stack: contextlib.ExitStack):
        index = folder / _INDEX
        names = {_SINGLE}
        if not (folder / _SINGLE).exists() and index.exists():
            weight_map = read_json(index).get("weight_map")
            if not isinstance(weight_map, dict) or not weight_map:
                raise ModelError(f"{index}: weight_map is missing")
            names = set(weight_map.values())
        self._where: dict[str, tuple[pathlib.Path, Any]] = {}
        for path in (folder / name for name in sorted(names)):
            try:
                file = stack.enter_context(safetensors.safe_open(path, framework="np"))
            except (OSError, safetensors.SafetensorError) as error:
                raise ModelError(
                    f"{path}: not a readable safetensors file: {one_line(error)}"
                ) from error
            self._where.update((name, (path, file)) for name in file.keys())  # noqa: SIM118
        self._folder = folder

    @property
    def names(self) -> list[str]:
        return list(self._where)

    def read(self, name: str, *shape: int) -> np.ndarray:
        """A tensor that must have the given shape."""
        if name not in self._where:
            raise ModelError(f"{self._folder}: tensor {name} is missing")
        path, file = self._where[name]
        actual = file.get_slice(name).get_shape()
        if list(actual) != list(shape):
            raise ModelError(f"{path}: tensor {name}: expected shape {list(shape)}, got {actual}")
        values = file.get_tensor(name)
        if not np.isfinite(values.astype(np.float32)).all():
            raise ModelError(f"{path}: tensor {name} holds values that are not finite")
        return values


def load(
    folder: pathlib.Path,
    dtype: jax.typing.DTypeLike,
    tensor_parallel: int = 1,
    progress: llama.Progress | None = None,
) -> llama.LlamaModel:
    """Loads a model.

    Args:
      folder: holds `config.json` and the tensors.
      dtype: dtype of the weights.
      tensor_parallel: ranks to pack for; a divisor of the numbers of heads.
      progress: called after each layer.

    Raises:
      ModelError: the folder holds no complete llama model, or tensors that such a model does not
        have, or its heads do not split over the ranks.
    """
    config = read_config(folder)
    vocabulary = (config.vocabulary_size, config.hidden_size)
    with contextlib.ExitStack() as stack:
        tensors = _Tensors(folder, stack)
        _check_names(folder, tensors.names, config)
        templates = [
            f"model.layers.{{layer}}.{tensor}.weight" for tensor in _LAYER_TENSORS.values()
        ]
        llama.check_layers_present(str(folder), set(tensors.names), templates, config.num_layers)
        tied = bool(read_json(folder / "config.json").get("tie_word_embeddings", False))
        return llama.build(
            config,
            layers=_read_layers(tensors, config),
            embedding=tensors.read(_EMBEDDING, *vocabulary),
            head=None if tied else tensors.read(_HEAD, *vocabulary),
            final_norm=tensors.read(_FINAL_NORM, config.hidden_size),
            dtype=dtype,
            tensor_parallel=tensor_parallel,
            progress=progress,
        )


def _check_names(folder: pathlib.Path, names: list[str], config: LlamaConfig) -> None:
    """Refuses tensors that would be left out, such as biases: the model would be another one."""
    known = _LAYER_TENSORS.values()
    for name in names:
        layer = re.fullmatch(r"model\.layers\.(\d+)\.(.+)\.weight", name)
        expected = layer and layer[2] in known and int(layer[1]) < config.num_layers
        # Old checkpoints store the RoPE frequencies, which follow from the configuration.
        derived = name.endswith(".rotary_emb.inv_freq")
        if not (expected or derived or name in (_EMBEDDING, _HEAD, _FINAL_NORM)):
            raise ModelError(
                f"{folder}: tensor {name}: expected none of that name in a llama model of "
                f"{config.num_layers} layers"
            )


def _read_layers(tensors: _Tensors, config: LlamaConfig) -> Iterator[llama.LayerTensors]:
    for index in range(config.num_layers):
        layer = {
            field: tensors.read(f"model.layers.{index}.{_LAYER_TENSORS[field]}.weight", *shape)
            for field, shape in llama.layer_shapes(config).items()
        }
        yield llama.LayerTensors(**layer)
