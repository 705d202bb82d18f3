"""Reading llama-architecture models from GGUF files."""

from __future__ import annotations

import re
from collections.abc import Iterator

import jax
import numpy as np

from jax_tkg.models import llama
from jax_tkg.models.config import LlamaConfig
from jax_tkg.models.errors import ModelError
from jax_tkg.models.gguf_config import read_config
from jax_tkg.models.gguf_file import GgufFile

__all__ = ["GgufFile", "load", "read_config"]

_LAYER_TENSORS = {
    "query": "attn_q",
    "key": "attn_k",
    "value": "attn_v",
    "output": "attn_output",
    "gate": "ffn_gate",
    "up": "ffn_up",
    "down": "ffn_down",
    "attention_norm": "attn_norm",
    "mlp_norm": "ffn_norm",
}
"""Names of one layer's tensors by the fields of `llama.LayerTensors`."""

_OTHER_TENSORS = ("token_embd.weight", "output.weight", "output_norm.weight", "rope_freqs.weight")


def load(
    file: GgufFile,
    dtype: jax.typing.DTypeLike,
    tensor_parallel: int = 1,
    progress: llama.Progress | None = None,
) -> llama.LlamaModel:
    """Loads a model.

    Args:
      file: an open file.
      dtype: dtype of the weights.
      tensor_parallel: ranks to pack for; a divisor of the numbers of heads.
      progress: called after each layer.

    Raises:
      ModelError: the file is no complete llama model, has tensors that such a model does not, or
        its heads do not split over the ranks.
    """
    config = read_config(file)
    _check_names(file, config)
    templates = [f"blk.{{layer}}.{tensor}.weight" for tensor in _LAYER_TENSORS.values()]
    llama.check_layers_present(file.path, set(file.tensor_names), templates, config.num_layers)
    vocabulary = (config.vocabulary_size, config.hidden_size)
    tied = "output.weight" not in file.tensor_names
    llama.check_tensor_parallel(config, tensor_parallel)
    return llama.build(
        config,
        layers=_read_layers(file, config, dtype),
        embedding=_checked(file, "token_embd.weight", vocabulary, dtype),
        head=None if tied else _checked(file, "output.weight", vocabulary, dtype),
        final_norm=_checked(file, "output_norm.weight", (config.hidden_size,), dtype),
        dtype=dtype,
        tensor_parallel=tensor_parallel,
        progress=progress,
    )


def _checked(
    file: GgufFile, name: str, shape: tuple[int, ...], dtype: jax.typing.DTypeLike
) -> np.ndarray:
    """A tensor of the given shape whose values the model's dtype can hold."""
    values = file.tensor(name, shape)
    llama.check_values(f"{file.path}: tensor {name}", values, dtype)
    return values


def _check_names(file: GgufFile, config: LlamaConfig) -> None:
    """Refuses tensors that would be left out, such as biases: the model would be another one."""
    known = _LAYER_TENSORS.values()
    for name in file.tensor_names:
        layer = re.fullmatch(rf"blk\.({llama.LAYER_NUMBER})\.(\w+)\.weight", name)
        expected = layer and layer[2] in known and int(layer[1]) < config.num_layers
        if not expected and name not in _OTHER_TENSORS:
            raise ModelError(
                f"{file.path}: tensor {name}: expected no tensor of that name in a llama model of "
                f"{config.num_layers} layers, got one"
            )


def _read_layers(
    file: GgufFile, config: LlamaConfig, dtype: jax.typing.DTypeLike
) -> Iterator[llama.LayerTensors]:
    heads = {"query": config.num_heads, "key": config.num_kv_heads}
    for index in range(config.num_layers):
        tensors = {
            field: _checked(file, f"blk.{index}.{_LAYER_TENSORS[field]}.weight", shape, dtype)
            for field, shape in llama.layer_shapes(config).items()
        }
        for field, count in heads.items():
            tensors[field] = _contiguous_halves(tensors[field], count)
        yield llama.LayerTensors(**tensors)


def _contiguous_halves(rows: np.ndarray, heads: int) -> np.ndarray:
    """Undoes GGUF's order of query and key rows, which is for RoPE on adjacent pairs.

    Row 2i + j of a head goes to row j * d/2 + i.
    """
    by_pair = rows.reshape(heads, -1, 2, rows.shape[1])
    return by_pair.swapaxes(1, 2).reshape(rows.shape)
