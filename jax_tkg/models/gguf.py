"""Reading models from GGUF files."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator

import jax
import numpy as np

from jax_tkg.models import packing
from jax_tkg.models.config import ModelConfig
from jax_tkg.models.errors import ModelError
from jax_tkg.models.families import known
from jax_tkg.models.families.gguf_layers import OTHER_TENSORS
from jax_tkg.models.gguf_config import read_config
from jax_tkg.models.gguf_file import GgufFile
from jax_tkg.models.layer_tensors import (
    LAYER_NUMBER,
    LayerTensors,
    Storage,
    separated,
    stored_shapes,
)

__all__ = ["GgufFile", "load", "read_config"]


def load(
    file: GgufFile,
    dtype: jax.typing.DTypeLike,
    tensor_parallel: int = 1,
    progress: packing.Progress | None = None,
) -> packing.PackedModel:
    """Loads a model.

    Args:
      file: an open file.
      dtype: dtype of the weights.
      tensor_parallel: ranks to pack for; see `jax_tkg.weights.split_heads`.
      progress: called after each layer.

    Raises:
      ModelError: the file is no complete model of a known family, has tensors that such a model
        does not, or its heads do not split over the ranks.
    """
    config = read_config(file)
    storage = known.gguf_family(file.metadata).storage
    names = stored_shapes(config, storage)
    _check_names(file, config, names)
    templates = [f"blk.{{layer}}.{tensor}" for tensor in names]
    packing.check_layers_present(file.path, set(file.tensor_names), templates, config.num_layers)
    vocabulary = (config.vocabulary_size, config.hidden_size)
    tied = "output.weight" not in file.tensor_names
    packing.check_tensor_parallel(config, tensor_parallel)
    final_norm = _checked(file, "output_norm.weight", (config.hidden_size,), dtype)
    return packing.build(
        config,
        layers=_read_layers(file, config, storage, dtype),
        embedding=_checked(file, "token_embd.weight", vocabulary, dtype),
        head=None if tied else _checked(file, "output.weight", vocabulary, dtype),
        final_norm=storage.gain(final_norm),
        dtype=dtype,
        tensor_parallel=tensor_parallel,
        progress=progress,
    )


def _checked(
    file: GgufFile, name: str, shape: tuple[int, ...], dtype: jax.typing.DTypeLike
) -> np.ndarray:
    """A tensor of the given shape whose values the model's dtype can hold."""
    values = file.tensor(name, shape)
    packing.check_values(f"{file.path}: tensor {name}", values, dtype)
    return values


def _check_names(file: GgufFile, config: ModelConfig, known_names: Collection[str]) -> None:
    """Refuses tensors that would be left out, such as biases: the model would be another one."""
    for name in file.tensor_names:
        layer = re.fullmatch(rf"blk\.({LAYER_NUMBER})\.(.+)", name)
        expected = layer and layer[2] in known_names and int(layer[1]) < config.num_layers
        if not expected and name not in OTHER_TENSORS:
            architecture = file.metadata.raw("general.architecture")
            raise ModelError(
                f"{file.path}: tensor {name}: expected no tensor of that name in a {architecture} "
                f"model of {config.num_layers} layers, got one"
            )


def _read_layers(
    file: GgufFile, config: ModelConfig, storage: Storage, dtype: jax.typing.DTypeLike
) -> Iterator[LayerTensors]:
    for index in range(config.num_layers):
        stored = {
            name: _checked(file, f"blk.{index}.{name}", shape, dtype)
            for name, shape in stored_shapes(config, storage).items()
        }
        yield separated(config, storage, stored)
